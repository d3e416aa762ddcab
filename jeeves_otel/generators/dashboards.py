# SPDX-License-Identifier: Apache-2.0
"""Turn dashboards into the JSON that Grafana's provisioning reads: the classic model, schema version 41.

In: `Dashboard` objects. Out: ``collector/grafana/dashboards/NAME.json``. No ids and no inputs, which provisioning does
not fill in; the data source is a variable, and every panel says what it shows, in which unit, and what an empty one means.
"""

from __future__ import annotations

import json
import math
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from jeeves_otel.promql import pretty
from jeeves_otel.queries import Rises, Slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jeeves_otel.dashboards import Ask, Dashboard, Panel

Json = dict[str, Any]

WINDOW = "$__rate_interval"  # four times the interval in which services send, or more where less is to be seen
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHT = 8
_NOTE = "Generated from jeeves_otel/data/dashboards by `jeeves-otel render`; edits here are overwritten and fail CI."


def files(dashboards: Iterable[Dashboard]) -> dict[str, str]:
    """Return the dashboards, ``{path: JSON}``, paths relative to the project's root."""
    return {
        f"collector/grafana/dashboards/{each.name}.json": json.dumps(page(each), indent=2, ensure_ascii=False) + "\n"
        for each in dashboards
    }


def page(dashboard: Dashboard) -> Json:
    """Return one dashboard as Grafana's JSON."""
    return {
        "id": None,
        "uid": f"jeeves-{dashboard.name}",
        "title": dashboard.title,
        "description": f"{dashboard.about}\n\n{_NOTE}",
        "tags": ["jeeves-otel"],
        "schemaVersion": 41,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_data_source_variable()]},
        "annotations": {"list": [_alert_annotations()]},
        "links": [_other_dashboards()],
        "panels": list(_panels(dashboard)),
    }


def _data_source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "regex": "",
    }


def _alert_annotations() -> Json:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "target": {"refId": "Anno", "expr": 'ALERTS{alertstate="firing", severity=~"critical|warning"}'},
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{slo}} {{tier}}",
    }


def _other_dashboards() -> Json:
    return {
        "title": "jeeves-otel",
        "tooltip": "The other dashboards",
        "icon": "external link",
        "type": "dashboards",
        "tags": ["jeeves-otel"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    """Yield the rows and their panels, placed from left to right and down."""
    number, y = 0, 0
    for row in dashboard.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": _place(0, y, _COLUMNS, 1),
            "panels": [],
        }
        y, x = y + 1, 0
        for panel, following in zip_longest(row.panels, row.panels[1:]):
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            number += 1
            # What nothing stands beside has the width for itself.
            last = following is None or x + panel.width + following.width > _COLUMNS
            yield {
                "id": number,
                **_panel(panel),
                "gridPos": _place(x, y, _COLUMNS - x if last else panel.width, _HEIGHT),
            }
            x += panel.width
        y += _HEIGHT


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "targets": [_target(panel, ask, chr(ord("A") + index)) for index, ask in enumerate(panel.asks)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "links": [{"title": f"Runbook: {name}", "url": url, "targetBlank": True} for name, url in panel.alerts],
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


def _target(panel: Panel, ask: Ask, letter: str) -> Json:
    instant = panel.kind != "timeseries"
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": expression(ask),
        "legendFormat": ask.legend or panel.title,
        "instant": instant,
        "range": not instant,
        "exemplar": panel.exemplars,
        **({"format": "table"} if panel.kind == "table" else {}),
    }


def expression(ask: Ask) -> str:
    """Return the PromQL of *ask*, with Grafana's variables for windows; what has risen is asked of all that is shown."""
    stand_in, range_ = "7m", "53m"  # no query has these; a parser knows nothing of Grafana's variables
    text = ask.query.promql(range_ if isinstance(ask.query, Rises) else stand_in).replace("$__range", range_)
    return pretty(text).replace(f"[{stand_in}]", f"[{WINDOW}]").replace(range_, "$__range")


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.thresholds:
        colours = sorted(panel.thresholds, key=lambda each: each[1])
        # What lies below the first one has its colour.
        steps = [{"color": colour, "value": value if index else None} for index, (colour, value) in enumerate(colours)]
    limit = _limit(panel)
    if limit is not None:
        steps.append({"color": "red", "value": limit})
    return {
        "unit": panel.unit,
        # What may be less is cut off otherwise, and its line with it.
        **({"min": 0} if not any(-math.inf < value < 0 for _, value in panel.thresholds) else {}),
        **({"max": 1} if panel.kind == "bargauge" else {}),
        "noValue": "nothing" if panel.incident else "no data",
        "color": {"mode": "thresholds" if panel.kind != "timeseries" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        **({"custom": _custom(limited=len(steps) > 1)} if panel.kind == "timeseries" else {}),
    }


def _limit(panel: Panel) -> float | None:
    """Return the line that the panel's objective draws: its bound where times are shown, else the share that may be bad."""
    if panel.slo is None:
        return None
    if panel.unit == "s" and isinstance(panel.slo.sli, Slower):
        return panel.slo.sli.than
    return float(panel.slo.budget)


def _custom(*, limited: bool) -> Json:
    return {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if limited else "off"},
    }


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
    },
    "table": {
        "showHeader": True,
        "cellHeight": "sm",
    },
}
_TABLE = [
    {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "__name__": True},
            "indexByName": {},
            "renameByName": {"Value": "value"},
        },
    }
]
