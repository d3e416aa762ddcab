# SPDX-License-Identifier: Apache-2.0
"""Turn ``data/dashboards/*.yaml`` into dashboards of panels whose queries a registry vouches for, or into findings.

In: YAML files, the families that there are, and the objectives, whose records may be asked too. Out: `Dashboard` objects;
for objectives of a user, who has no such files, one that shows each of them, and every question of its runbook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jeeves_otel.documents import did_you_mean, read
from jeeves_otel.queries import VARIABLES, Promql, Quantile, Rate, Rises, Share, Slower, read_query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.documents import Finding, Node
    from jeeves_otel.objectives import Alert, Objectives, Runbook, Slo
    from jeeves_otel.promql import Families
    from jeeves_otel.queries import Query

FOLDER = Path(__file__).parent / "data" / "dashboards"
KINDS = ("timeseries", "stat", "bargauge", "table")
# Of Grafana's units, those that our metrics need.
UNITS = ("short", "s", "bytes", "percentunit", "reqps", "ops")
_PANEL_KEYS = (
    "title",
    "kind",
    "unit",
    "about",
    "asks",
    "width",
    "slo",
    "alerts",
    "exemplars",
    "thresholds",
    "incident",
    "missing",
)
_UNITS_OF_NAMES = (("_seconds", "s"), ("_bytes", "bytes"))
_COLUMNS = 24
_VARIABLES = (*VARIABLES, "$__range")


@dataclass(frozen=True, slots=True)
class Ask:
    """One query of a panel, and what its lines are called."""

    query: Query
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a dashboard.

    ``incident`` says that there is something to see only while something is wrong; ``missing`` names what brings its
    source, if nothing does yet.
    """

    title: str
    kind: str
    unit: str
    about: str
    asks: tuple[Ask, ...]
    width: int
    slo: Slo | None
    alerts: tuple[tuple[str, str], ...]  # (name, address of its runbook)
    exemplars: bool = False
    thresholds: tuple[tuple[str, float], ...] = ()  # (colour, from)
    incident: bool = False
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page of Grafana; ``name`` is its file and, behind ``jeeves-``, its uid."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]


def names() -> tuple[str, ...]:
    """Return the names of the packaged dashboards."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def examine(families: Families, objectives: Objectives) -> tuple[tuple[Dashboard, ...], list[Finding]]:
    """Return the dashboards, in the order of their names, and every finding."""
    findings: list[Finding] = []
    dashboards = []
    for path in sorted(FOLDER.glob("*.yaml")):
        root, document = read(path.read_text(encoding="utf-8"), f"dashboards/{path.name}")
        top = root.fields(("title", "about", "rows"), required=("title", "about", "rows"))
        rows = tuple(_row(node, families, objectives) for node in (top["rows"].items() if "rows" in top else ()))
        title, about = (top[key].text() if key in top else "" for key in ("title", "about"))
        dashboards.append(Dashboard(path.stem, title, about, rows))
        findings += document.findings
    return tuple(dashboards), findings


def _row(node: Node, families: Families, objectives: Objectives) -> Row:
    entry = node.fields(("title", "panels"), required=("title", "panels"))
    panels = (_panel(each, families, objectives) for each in (entry["panels"].items() if "panels" in entry else ()))
    return Row(entry["title"].text() if "title" in entry else "", tuple(panels))


def _panel(node: Node, families: Families, objectives: Objectives) -> Panel:
    entry = node.fields(_PANEL_KEYS, required=("title", "kind", "unit", "about", "asks"))
    return Panel(
        title=entry["title"].text() if "title" in entry else "",
        kind=entry["kind"].choice(KINDS) if "kind" in entry else "timeseries",
        unit=entry["unit"].choice(UNITS) if "unit" in entry else "short",
        about=entry["about"].text() if "about" in entry else "",
        asks=tuple(
            _ask(each, families, objectives.records) for each in (entry["asks"].items() if "asks" in entry else ())
        ),
        width=entry["width"].whole(_COLUMNS) if "width" in entry else _COLUMNS // 2,
        slo=_slo(entry.get("slo"), objectives),
        alerts=tuple(_alert(each, objectives) for each in (entry["alerts"].items() if "alerts" in entry else ())),
        exemplars=entry["exemplars"].truth() if "exemplars" in entry else False,
        thresholds=tuple((colour, each.number()) for colour, each in entry["thresholds"].fields().items())
        if "thresholds" in entry
        else (),
        incident=entry["incident"].truth() if "incident" in entry else False,
        missing=entry["missing"].text() if "missing" in entry else "",
    )


def _ask(node: Node, families: Families, records: frozenset[str]) -> Ask:
    entry = node.fields(("ask", "legend"), required=("ask",))
    query = read_query(entry["ask"], families, records, _VARIABLES) if "ask" in entry else Promql("")
    return Ask(query, entry["legend"].text() if "legend" in entry else "")


def _slo(node: Node | None, objectives: Objectives) -> Slo | None:
    if node is None:
        return None
    named = {slo.name: slo for slo in objectives.slos}
    name = node.text()
    if name not in named:
        node.report("unknown-slo", f"there is no objective `{name}`", did_you_mean(name, named))
    return named.get(name)


def _alert(node: Node, objectives: Objectives) -> tuple[str, str]:
    name = node.text()
    if name not in objectives.runbooks:
        node.report("unknown-alert", f"there is no alert `{name}`", did_you_mean(name, objectives.runbooks))
    return name, objectives.runbooks.get(name, "")


# ---- objectives of a user --------------------------------------------------------------------------------------------


def of_own(name: str, title: str, objectives: Objectives) -> Dashboard:
    """Return a dashboard of *objectives*: each with what is left of it and every question of its runbook, then each alert."""
    rows = [*(_row_of_slo(slo) for slo in objectives.slos), *(_row_of_alert(alert) for alert in objectives.alerts)]
    about = f"Objectives and alerts of {title}, and the questions of their runbooks."
    return Dashboard(name, title, about, tuple(rows))


def _row_of_slo(slo: Slo) -> Row:
    link = (slo.alert, slo.links["runbook_url"])

    def recorded(record: str) -> Promql:
        return Promql(f'{record}{{slo="{slo.name}"}}', ("slo",))

    bad = Panel(
        title="Bad events",
        kind="timeseries",
        unit="percentunit",
        about=f"{slo.meaning} Share of events that were not so; the line is what was promised. No line, no events.".strip(),
        asks=tuple(Ask(recorded(f"slo:error_ratio:rate{window}"), f"{{{{slo}}}} {window}") for window in ("5m", "1h")),
        width=_COLUMNS // 2,
        slo=slo,
        alerts=(link,),
    )
    left = Panel(
        title="Budget left",
        kind="stat",
        unit="percentunit",
        about=f"What is left of the error budget of {slo.period.text}; below 0 the promise is broken.",
        asks=(Ask(recorded("slo:budget_remaining:ratio"), "{{slo}}"),),
        width=_COLUMNS // 4,
        slo=None,
        alerts=(),
        thresholds=(("red", 0.0), ("yellow", 0.25), ("green", 0.5)),
    )
    events = Panel(
        title="Events",
        kind="timeseries",
        unit="ops",
        about="How many there are per second.",
        asks=(Ask(recorded("slo:total:rate5m"), "{{slo}}"),),
        width=_COLUMNS // 4,
        slo=None,
        alerts=(),
    )
    return Row(slo.title, (bad, left, events, *_questions(slo.runbook)))


def _row_of_alert(alert: Alert) -> Row:
    asked = Panel(
        title=alert.name,
        kind="timeseries",
        unit=_unit(alert.query),
        about="What the alert asks; the line is where it fires.",
        asks=(_ask_of(alert.query),),
        width=_COLUMNS // 2,
        slo=None,
        alerts=((alert.name, alert.links["runbook_url"]),),
        exemplars=isinstance(alert.query, Quantile),
        thresholds=_line_of(alert),
        incident=not alert.comparison,
    )
    return Row(alert.name, (asked, *_questions(alert.runbook)))


def _line_of(alert: Alert) -> tuple[tuple[str, float], ...]:
    """Return the line at which *alert* fires, and the colours on both sides of it; of what has none, nothing."""
    colours = {">": ("green", "red"), "<": ("red", "green")}.get(alert.comparison, ())
    return tuple(zip(colours, (-math.inf, float(alert.threshold)), strict=False))


def _questions(runbook: Runbook) -> Iterator[Panel]:
    for step in runbook.diagnosis:
        yield Panel(
            title=step.say,
            kind="timeseries",
            unit=_unit(step.ask),
            about="A question of the runbook.",
            asks=(_ask_of(step.ask),),
            width=_COLUMNS // 2,
            slo=None,
            alerts=(),
            exemplars=isinstance(step.ask, Quantile),
            incident=isinstance(step.ask, Rises),
        )


def _ask_of(query: Query) -> Ask:
    return Ask(query, " ".join(f"{{{{{label}}}}}" for label in query.by))


def _unit(query: Query) -> str:
    """Return the unit in which *query* answers, by its shape and the name of what it asks."""
    if isinstance(query, Share | Slower):
        return "percentunit"
    if isinstance(query, Rate):
        return "ops"
    family = getattr(query, "family", "")
    return next((unit for suffix, unit in _UNITS_OF_NAMES if family.endswith(suffix)), "short")
