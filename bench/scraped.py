# SPDX-License-Identifier: Apache-2.0
"""The competitors that answer a scrape of 1,000 histogram series."""

from __future__ import annotations

from itertools import product

import prometheus_client as prom
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

from bench.recorded import HTTP_BUCKETS, jeeves_provider
from bench.timing import Case, Group, each

_SERIES = list(product(["GET", "POST", "PUT", "PATCH", "DELETE"], [f"/route/{n}" for n in range(200)]))
_NAME = "http.server.request.duration"


def scrape_group() -> Group:
    """Return: one page with 1,000 histogram series of 11 buckets, and the 1,000 counters beside them where promised."""
    meters, collector = jeeves_provider()
    ours = meters.get_meter("bench").create_histogram(_NAME, "s")
    registry, by_hand = prom.CollectorRegistry(), prom.CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    stock = provider.get_meter("bench").create_histogram(
        _NAME, "s", explicit_bucket_boundaries_advisory=[float(bound) for bound in HTTP_BUCKETS]
    )
    seconds = prom.Histogram("http_seconds", "x", ["method", "path"], registry=by_hand, buckets=HTTP_BUCKETS)
    requests = prom.Counter("http_requests", "x", ["method", "path", "status_code"], registry=by_hand)
    for number, (method, path) in enumerate(_SERIES):
        value = number % 97 / 10
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": path,
            "http.response.status_code": 200,
        }
        ours.record(value, attributes)
        stock.record(value, attributes)
        seconds.labels(method, path).observe(value)
        requests.labels(method, path, "200").inc()
    return Group(
        "one scrape of 1,000 histogram series",
        (
            Case(
                "prometheus_client generate_latest, with the 1,000 counters",
                each(lambda: prom.generate_latest(by_hand)),
            ),
            Case("stock PrometheusMetricReader, without them", each(lambda: prom.generate_latest(registry))),
            Case("jeeves_otel page, with the 1,000 counters", each(collector.page)),
        ),
    )
