# SPDX-License-Identifier: Apache-2.0
"""Draw the dashboards as they look in an incident: ``make previews``. These are previews, not Grafana's pictures.

In: the generated dashboards, and the run of the demo that `panel_feeds` plays. Out: ``docs/images/NAME.png``, one per
dashboard, each panel in its place, with what Prometheus answers to its own queries.
"""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jeeves_otel import specification
from jeeves_otel.dashboards import examine
from jeeves_otel.demo import parts
from jeeves_otel.generators import dashboards as generated
from jeeves_otel.promql import families_of
from jeeves_otel.registry import load
from tests import examples
from tests.integration.panel_feeds import HEALTHY, INCIDENT, INTERVAL_S, Phase, Run, run as played

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

Json = dict[str, Any]

IMAGES = Path(__file__).parents[2] / "docs" / "images"
FEED = "written"  # through the Collector
WHOLE = "whole"  # the time in which all was well, and that of the incidents
COLUMN_IN, ROW_IN = 0.55, 0.32  # inches of one unit of Grafana's grid
COLOURS = {"green": "#37872d", "yellow": "#e0b400", "red": "#c4162a"}
LETTERS_PER_COLUMN = 11  # of a legend
MOST_ROWS = 9  # of a table
MANY = 100.0
_UNITS = {"percentunit": (100, " %"), "s": (1, " s"), "reqps": (1, " /s"), "ops": (1, " /s"), "bytes": (2**-20, " MiB")}


def main() -> None:
    """Play the demo once, and draw every dashboard."""
    programs = {part: parts.program(part, print) for part in ("collector", "prometheus", "alertmanager")}
    promised, _ = specification.examine(load())
    pages, _ = examine(families_of(load()), promised)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jeeves-previews-") as folder:
        print("playing the demo, well and in four incidents")
        with played(programs, Path(folder)) as run:
            phases = run.phases
            whole = Phase(phases[HEALTHY].began, phases[INCIDENT].ended)
            seen = Run(run.feeds, {**phases, WHOLE: whole})
            for dashboard in (*pages, examples.DASHBOARD):
                path = IMAGES / f"{dashboard.name}.png"
                draw(generated.page(dashboard), seen, path)
                print(path.relative_to(IMAGES.parents[1]))


def draw(page: Json, run: Run, path: Path) -> None:
    """Write a picture of the dashboard *page* to *path*."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in page["panels"]) + 2
    figure = Figure(figsize=(24 * COLUMN_IN, rows * ROW_IN), dpi=80, facecolor="#f4f5f5")
    figure.text(0.01, 1 - 1.2 / rows, page["title"], fontsize=15, weight="bold")
    note = "a preview of its queries' answers, not Grafana; shaded: models, database and backends fail"
    figure.text(0.99, 1 - 1.2 / rows, note, fontsize=8, ha="right", color="#666666")
    for panel in page["panels"]:
        at = panel["gridPos"]
        top = at["y"] + 2
        if panel["type"] == "row":
            figure.text(0.01, 1 - (top + 0.8) / rows, panel["title"], fontsize=11, color="#444444")
            continue
        place = (at["x"] / 24 + 0.043, 1 - (top + at["h"] - 1.9) / rows, at["w"] / 24 - 0.053, (at["h"] - 3.1) / rows)
        card = (at["x"] / 24 + 0.003, 1 - (top + at["h"] - 0.1) / rows, at["w"] / 24 - 0.006, (at["h"] - 0.2) / rows)
        figure.add_artist(Rectangle(card[:2], *card[2:], color="white", zorder=-1))
        axes = figure.add_axes(place)
        axes.set_title(panel["title"], fontsize=9, loc="left", weight="bold")
        _DRAWN[panel["type"]](axes, panel, run)
    figure.savefig(path, metadata={"Software": None})


def _answers(panel: Json, run: Run) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return ``[(legend, [(second, number)])]`` of all queries of *panel*; instants are asked at the end of the incident."""
    phase = run.phases[WHOLE]
    lines = []
    for target in panel["targets"]:
        asked = INCIDENT if target["instant"] else WHOLE
        for series in run.series(FEED, asked, target):
            legend = re.sub(
                r"\{\{(\w+)\}\}", lambda match, of=series["metric"]: of.get(match[1], ""), target["legendFormat"]
            )
            times = series.get("times") or [phase.ended] * len(series["values"])
            lines.append(
                (legend, [(at - phase.began, value) for at, value in zip(times, series["values"], strict=True)])
            )
    return sorted(lines)


def _time_series(axes: Axes, panel: Json, run: Run) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    factor, _ = _UNITS.get(unit, (1, ""))
    lines = _answers(panel, run)
    for legend, points in lines:
        whole_line = list(_with_gaps(points))
        axes.plot(
            [at for at, _ in whole_line], [value * factor for _, value in whole_line], linewidth=1.2, label=legend
        )
    incident, whole = run.phases[INCIDENT], run.phases[WHOLE]
    axes.axvspan(incident.began - whole.began, incident.ended - whole.began, color="#c4162a", alpha=0.06)
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if (
            step["value"] is not None
            and panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "line"
        ):
            axes.axhline(step["value"] * factor, color=COLOURS[step["color"]], linewidth=0.8, linestyle="--")
    axes.set_xlim(0, whole.ended - whole.began)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#dddddd", linewidth=0.5)
    axes.tick_params(labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: _shown(value / factor, unit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    handles, legends = axes.get_legend_handles_labels()
    room = panel["gridPos"]["w"] * LETTERS_PER_COLUMN
    columns = min(4, room // max(len(legend) + 6 for legend in ["", *legends]))
    most = 2 * columns
    if len(legends) > most:
        legends = [*legends[: most - 1], f"and {len(legends) - most + 1} more"]
    below = {"loc": "upper left", "bbox_to_anchor": (-0.01, -0.12), "ncols": columns, "frameon": False}
    axes.legend(handles[: len(legends)], legends, fontsize=6.5, columnspacing=1, handlelength=1, **below)


def _with_gaps(points: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield *points*, and no number where the next one is more than a step away: a line ends there."""
    for (at, value), (following, _) in itertools.pairwise([*points, (points[-1][0], 0.0)]):
        yield at, value
        if following - at > 1.5 * INTERVAL_S:
            yield at + INTERVAL_S, math.nan


def _stat(axes: Axes, panel: Json, run: Run) -> None:
    axes.axis("off")
    defaults, lines = panel["fieldConfig"]["defaults"], _answers(panel, run)
    for index, (legend, points) in enumerate(lines):
        value, x = points[-1][1], (index + 0.5) / len(lines)
        axes.text(
            x,
            0.5,
            _shown(value, defaults["unit"]),
            fontsize=17,
            ha="center",
            va="center",
            color=_colour(value, defaults),
        )
        axes.text(x, 0.1, legend if len(lines) > 1 else "", fontsize=7, ha="center", color="#444444")


def _bar_gauge(axes: Axes, panel: Json, run: Run) -> None:
    defaults, lines = panel["fieldConfig"]["defaults"], _answers(panel, run)
    for index, (legend, points) in enumerate(reversed(lines)):
        value = points[-1][1]
        axes.barh(index, 1, color="#e8e8e8")
        axes.barh(index, min(max(value, 0.0), 1.0), color=_colour(value, defaults))
        axes.text(0.02, index, f"{legend}  {_shown(value, defaults['unit'])}", fontsize=8, va="center")
    axes.axis("off")


def _table(axes: Axes, panel: Json, run: Run) -> None:
    axes.axis("off")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    answers = [series for target in panel["targets"] for series in run.series(FEED, INCIDENT, target)]
    if not answers:
        axes.text(0.5, 0.5, panel["fieldConfig"]["defaults"]["noValue"], ha="center", fontsize=10, color="#666666")
        return
    labels = sorted({label for series in answers for label in series["metric"]} - {"__name__"})
    cells = [
        [*(series["metric"].get(label, "") for label in labels), _shown(series["values"][0], unit)]
        for series in answers
    ]
    shown = sorted(cells)[:MOST_ROWS]
    table = axes.table(
        cellText=shown, colLabels=[*labels, "value"], loc="upper left", cellLoc="left", edges="horizontal"
    )
    table.auto_set_font_size(value=False)
    table.set_fontsize(7)
    table.auto_set_column_width(list(range(len(labels) + 1)))


def _colour(value: float, defaults: Json) -> str:
    steps = defaults["thresholds"]["steps"]
    return COLOURS[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


def _shown(value: float, unit: str) -> str:
    factor, suffix = _UNITS.get(unit, (1, ""))
    number = value * factor
    return (
        "nothing" if math.isnan(value) else f"{number:,.0f}{suffix}" if abs(number) >= MANY else f"{number:.3g}{suffix}"
    )


_DRAWN = {"timeseries": _time_series, "stat": _stat, "bargauge": _bar_gauge, "table": _table}

if __name__ == "__main__":
    main()
