# SPDX-License-Identifier: Apache-2.0
"""Ask Prometheus, Jaeger and Alertmanager what has arrived, in the terms in which the demo knows what it has sent.

In: the URL of each. Out: samples, spans, and exceptions.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any

from jeeves_otel.demo.receiver import CLIENT, SERVER, Span
from jeeves_otel.demo.stage import read

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jeeves_otel.demo.samples import Series

ALERT = "ServiceException"  # what alerts.yaml calls an exception
Exceptions = set[tuple[str, str, str]]  # service, class of the exception, severity

_KINDS = {"client": CLIENT, "server": SERVER}


def samples(url: str) -> dict[Series, float]:
    """Return the newest values that Prometheus has of the demo's series, processes added up as on their pages."""
    query = urllib.parse.urlencode({"query": '{job=~"jeeves-.*"}'})
    sums: dict[Series, float] = {}
    for found in json.loads(read(f"{url}/api/v1/query?{query}"))["data"]["result"]:
        labels = {key: text for key, text in found["metric"].items() if key not in {"__name__", "job", "instance"}}
        series = found["metric"]["__name__"], frozenset(labels.items())
        sums[series] = sums.get(series, 0.0) + float(found["value"][1])
    return sums


def traces(url: str, service: str, limit: int) -> list[dict[str, Any]]:
    """Return the newest *limit* traces in which *service* takes part, as Jaeger gives them."""
    query = urllib.parse.urlencode({"service": service, "limit": limit, "lookback": "1h"})
    found: list[dict[str, Any]] = json.loads(read(f"{url}/api/traces?{query}"))["data"] or []
    return found


def spans(trace: dict[str, Any]) -> list[Span]:
    """Return the spans of one trace of Jaeger."""
    made = []
    for each in trace["spans"]:
        tags = {tag["key"]: tag["value"] for tag in each["tags"]}
        made.append(
            Span(
                trace=each["traceID"],
                id=each["spanID"],
                parent="".join(parent["spanID"] for parent in each["references"]),
                name=each["operationName"],
                service=trace["processes"][each["processID"]]["serviceName"],
                scope=tags.get("otel.scope.name", ""),
                kind=_KINDS.get(tags.get("span.kind", ""), 0),
                start_ns=each["startTime"] * 1_000,
                end_ns=(each["startTime"] + each["duration"]) * 1_000,
                failed=_failed(tags),
                attributes=tags,
            )
        )
    return made


def exceptions(of: Iterable[dict[str, Any]]) -> Exceptions:
    """Return which exceptions spans of Jaeger have recorded, with the severity that alerts.yaml gives them."""
    found = set()
    for trace in of:
        for span in trace["spans"]:
            tags = {tag["key"]: tag["value"] for tag in span["tags"]}
            for log in span["logs"] or []:
                event = {field["key"]: field["value"] for field in log["fields"]}
                if event.get("event") == "exception":
                    service = trace["processes"][span["processID"]]["serviceName"]
                    severity = "critical" if _failed(tags) else "warning"
                    found.add((service, str(event.get("exception.type", "")), severity))
    return found


def _failed(tags: dict[str, Any]) -> bool:
    return bool(tags.get("otel.status_code") == "ERROR")


def alerts(url: str) -> list[dict[str, Any]]:
    """Return the exceptions that Alertmanager has, each an alert with ``labels`` and ``annotations``."""
    query = urllib.parse.urlencode({"filter": f'alertname="{ALERT}"'})
    found: list[dict[str, Any]] = json.loads(read(f"{url}/api/v2/alerts?{query}"))
    return found


def alerted(found: Iterable[dict[str, Any]]) -> Exceptions:
    """Return what *found* alerts say in the terms of `exceptions`."""
    labels = [each["labels"] for each in found]
    return {(each.get("service", ""), each.get("exception_type", ""), each.get("severity", "")) for each in labels}
