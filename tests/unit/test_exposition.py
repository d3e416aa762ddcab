# SPDX-License-Identifier: Apache-2.0
"""exposition: one page, whatever stands on it; that parsers read back what went in is in tests/property."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from jeeves_otel import failsafe
from jeeves_otel.exposition import bucket_index, prometheus_name, render
from jeeves_otel.registry import load, profile_names
from tests.helpers import samples_of

if TYPE_CHECKING:
    from collections.abc import Mapping

CUMULATIVE = AggregationTemporality.CUMULATIVE
START = 1_700_000_000_000_000_000


def _data(*scoped: tuple[InstrumentationScope, Metric]) -> MetricsData:
    return MetricsData(
        [ResourceMetrics(Resource({}), [ScopeMetrics(scope, [metric], "") for scope, metric in scoped], "")]
    )


def _scope(name: str = "a", version: str | None = None) -> InstrumentationScope:
    return InstrumentationScope(name, version)


def _counter(name: str, value: float = 1, unit: str = "", help_text: str = "Help.", **more: Any) -> Metric:
    points = [NumberDataPoint(more.get("attributes", {}), START, START, value, more.get("exemplars", []))]
    return Metric(name, help_text, unit, Sum(points, more.get("temporality", CUMULATIVE), is_monotonic=True))


def _gauge(name: str, value: float = 1, unit: str = "", attributes: Mapping[str, Any] | None = None) -> Metric:
    return Metric(name, "Help.", unit, Gauge([NumberDataPoint(attributes or {}, START, START, value, [])]))


def _histogram(name: str, attributes: Mapping[str, Any] | None = None, exemplars: tuple[Exemplar, ...] = ()) -> Metric:
    point = HistogramDataPoint(attributes or {}, START, START, 3, 4.5, (1, 1, 1), (1.0, 2.0), 0.5, 3.0, list(exemplars))
    return Metric(name, "Help.", "s", Histogram([point], CUMULATIVE))


def _exemplar(value: float, second: int, span: int = 1) -> Exemplar:
    return Exemplar({}, value, START + second * 1_000_000_000, span, 0xABC)


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_text_page_is_as_the_format_asks() -> None:
    """Families by name, HELP and TYPE, cumulative buckets, no exemplars, no creation times."""
    page = render(
        _data((_scope(), _histogram("b", {"x": "y"}, (_exemplar(0.5, 1),))), (_scope(), _counter("a"))),
        openmetrics=False,
    )

    assert page == (
        "# HELP a_total Help.\n"
        "# TYPE a_total counter\n"
        "a_total 1.0\n"
        "# HELP b_seconds Help.\n"
        "# TYPE b_seconds histogram\n"
        'b_seconds_bucket{x="y",le="1.0"} 1.0\n'
        'b_seconds_bucket{x="y",le="2.0"} 2.0\n'
        'b_seconds_bucket{x="y",le="+Inf"} 3.0\n'
        'b_seconds_count{x="y"} 3.0\n'
        'b_seconds_sum{x="y"} 4.5\n'
    )


def test_openmetrics_page_is_as_the_format_asks() -> None:
    """Counters lose their suffix in the family's name, creation times and exemplars appear, the end is marked."""
    ids = 'trace_id="00000000000000000000000000000abc",span_id="0000000000000001"'
    metrics = (
        _counter("a", exemplars=[_exemplar(1, 0)]),
        _histogram("b", None, (_exemplar(1.5, 1), _exemplar(1.7, 2))),
    )
    page = render(_data(*((_scope(), metric) for metric in metrics)), openmetrics=True)

    assert page == (
        "# HELP a Help.\n"
        "# TYPE a counter\n"
        f"a_total 1.0 # {{{ids}}} 1.0 1700000000.000\n"
        "a_created 1700000000.0\n"
        "# HELP b_seconds Help.\n"
        "# TYPE b_seconds histogram\n"
        'b_seconds_bucket{le="1.0"} 1.0\n'
        f'b_seconds_bucket{{le="2.0"}} 2.0 # {{{ids}}} 1.7 1700000002.000\n'
        'b_seconds_bucket{le="+Inf"} 3.0\n'
        "b_seconds_count 3.0\n"
        "b_seconds_sum 4.5\n"
        "b_seconds_created 1700000000.0\n"
        "# EOF\n"
    )


def test_exemplar_without_a_span_is_not_written() -> None:
    """An exemplar that leads nowhere is of no use."""
    page = render(_data((_scope(), _counter("a", exemplars=[Exemplar({}, 1, START)]))), openmetrics=True)

    assert "# {" not in page


def test_empty_collection_is_an_empty_page() -> None:
    """Both formats know a page without metrics."""
    assert ("\n", "# EOF\n") == (render(MetricsData([]), openmetrics=False), render(MetricsData([]), openmetrics=True))


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (2**53, "9007199254740992.0")]
)
def test_numbers_that_are_none_have_their_names(value: float, text: str) -> None:
    """NaN and the infinities are written as Prometheus reads them."""
    assert f"a {text}\n" in render(_data((_scope(), _gauge("a", value))), openmetrics=False)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", profile_names())
def test_promised_names_are_fixed_points(profile: str) -> None:
    """No page, exporter or backend changes an exported name again."""
    names = load((profile,)).metrics
    points: list[Any] = [NumberDataPoint({}, START, START, 1, [])]
    data = {
        "counter": Sum(points, CUMULATIVE, is_monotonic=True),
        "gauge": Gauge(points),
        "histogram": Histogram([], CUMULATIVE),
    }

    assert list(names) == [prometheus_name(Metric(name, "", m.unit, data[m.type])) for name, m in names.items()]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (_counter("http.server.requests"), "http_server_requests_total"),
        (_counter("process.cpu.time", unit="s"), "process_cpu_time_seconds_total"),
        (_counter("requests.total"), "requests_total"),
        (_gauge("system.memory.usage", unit="By"), "system_memory_usage_bytes"),
        (_gauge("http.server.active_requests", unit="{request}"), "http_server_active_requests"),
        (_gauge("cpu.utilization", unit="1"), "cpu_utilization_ratio"),
        (_gauge("speed", unit="m/s"), "speed_meters_per_second"),
        (_gauge("rate", unit="{thing}/s"), "rate_per_second"),
        (_gauge("3.numbers..and-signs"), "_3_numbers_and_signs"),
        (_gauge("already_seconds", unit="s"), "already_seconds"),
        (_gauge("odd", unit="°"), "odd"),
    ],
)
def test_unmapped_metrics_get_the_names_of_the_compatibility_rules(metric: Metric, name: str) -> None:
    """Dots become underscores, units become words, counters get their suffix, once."""
    assert name == prometheus_name(metric)


def test_attributes_that_get_the_same_label_stand_together() -> None:
    """Two points that differ in one of them stay two series, in whatever order the attributes come."""
    pages = [
        render(_data((_scope(), _gauge("a", 1, attributes=attributes))), openmetrics=False)
        for attributes in ({"x.y": "1", "x_y": "2"}, {"x_y": "2", "x.y": "1"})
    ]

    assert {("a", (("x_y", "1;2"),)): 1} == samples_of(pages[0]) == samples_of(pages[1])


@pytest.mark.parametrize(
    ("attribute", "label"),
    [("a.b-c", "a_b_c"), ("1st", "key_1st"), ("__name__", "_name_"), ("ü", "_"), ("le", "key_le")],
)
def test_no_attribute_makes_a_page_unreadable(attribute: str, label: str) -> None:
    """Reserved and strange keys get a name that is neither; a histogram's own `le` stays alone."""
    samples = samples_of(render(_data((_scope(), _histogram("a", {attribute: "x"}))), openmetrics=False))

    assert ("a_seconds_bucket", (("le", "1.0"), (label, "x"))) in {
        (n, tuple(sorted(k, key=lambda p: p[0] != "le"))) for n, k in samples
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (7, "7"), (0.5, "0.5"), (("a", "b"), '["a","b"]'), (None, "null"), (b"x", "\"b'x'\"")],
)
def test_values_that_are_no_text_are_written_as_json(value: object, text: str) -> None:
    """As the specification asks."""
    page = render(_data((_scope(), _gauge("a", attributes={"x": value}))), openmetrics=False)

    assert {("a", (("x", text),)): 1} == samples_of(page)


# ---- several scopes --------------------------------------------------------------------------------------------------


def test_points_of_two_scopes_are_told_apart_by_scope() -> None:
    """Two libraries that use one name do not overwrite each other."""
    page = render(_data((_scope("a"), _counter("c", 1)), (_scope("b"), _counter("c", 2))), openmetrics=False)

    assert {("c_total", (("otel_scope_name", "a"),)): 1, ("c_total", (("otel_scope_name", "b"),)): 2} == samples_of(
        page
    )


def test_points_of_two_versions_of_a_scope_are_told_apart_by_version() -> None:
    """A library that is loaded twice does not lose half of its counts."""
    page = render(_data((_scope("a", "1"), _counter("c", 1)), (_scope("a", "2"), _counter("c", 2))), openmetrics=False)

    assert {("c_total", (("otel_scope_version", v),)): n for v, n in (("1", 1), ("2", 2))} == samples_of(page)


def test_series_that_stands_twice_is_written_once_and_counted() -> None:
    """A page that repeats a series would be refused as a whole."""
    failsafe.set_strict(False)
    page = render(_data((_scope(), _counter("c", 1)), (_scope(), _counter("c", 2))), openmetrics=False)

    assert {("c_total", ()): 1} == samples_of(page)
    assert {"exposition.c_total": 1} == failsafe.counts()


# ---- one metric that fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "site"),
    [
        (_counter("c", temporality=AggregationTemporality.DELTA), "exposition.c"),
        (Metric("c", "", "", ExponentialHistogram([], CUMULATIVE)), "exposition.c"),
        (_counter("c", 10**400), "exposition.c_total"),
        (_gauge("good_total"), "exposition.good_total"),
    ],
    ids=["delta", "exponential", "huge", "another type"],
)
def test_metric_that_cannot_be_written_takes_nothing_along(bad: Metric, site: str) -> None:
    """It is left out and counted; the rest of the page stands, in both formats."""
    failsafe.set_strict(False)
    data = _data((_scope(), _counter("good")), (_scope(), bad))

    assert {("good_total", ()): 1} == samples_of(render(data, openmetrics=False))
    assert ["good"] == [family.name for family in openmetrics_families(render(data, openmetrics=True))]
    assert {site: 2} == failsafe.counts()


def test_text_without_bytes_costs_a_question_mark_and_not_the_page() -> None:
    """Half a surrogate pair in a value, a help text or a scope's name leaves a page that can be sent."""
    half = "\ud800"
    data = _data(
        (_scope(half), _counter("c", help_text=half, attributes={"x": half})),
        (_scope("b"), _counter("c", attributes={"x": "y"})),
    )

    assert 'c_total{x="?",otel_scope_name="?"} 1.0' in render(data, openmetrics=False).encode().decode()


@pytest.mark.parametrize(("value", "index"), [(0, 0), (1, 0), (1.0001, 1), (2, 1), (3, 2)])
def test_upper_bounds_of_buckets_are_inclusive(value: float, index: int) -> None:
    """A value on a bound belongs below it."""
    assert index == bucket_index(value, (1, 2))
