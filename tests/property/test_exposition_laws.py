# SPDX-License-Identifier: Apache-2.0
"""Laws of exposition: other people's parsers read back exactly what went in."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hypothesis import given, strategies as st
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
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
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from jeeves_otel.exposition import render
from tests.property import LAWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CUMULATIVE = AggregationTemporality.CUMULATIVE
START = 1_700_000_000_000_000_000
BOUNDS = (0.0, 0.005, 1.0, 1e6)

_texts = st.one_of(
    st.text(st.sampled_from('"\\\n\r\t{}=,#; né\u2028😀'), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
_labels = st.dictionaries(st.sampled_from(["a", "b_c", "D9", "_x"]), _texts, max_size=3)
_values = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**300, -0.0, 2**63]),
)
_amounts = st.one_of(st.floats(0, allow_nan=False), st.integers(0, 2**70))
_exemplars = st.builds(
    Exemplar,
    st.just({}),
    st.floats(-2, 2e6),
    st.integers(START, START + 10**10),
    st.integers(1, 2**64 - 1),
    st.integers(1, 2**128 - 1),
)


def _unique(points: Iterable[Any]) -> list[Any]:
    return list({tuple(sorted(point.attributes.items())): point for point in points}.values())


@st.composite
def _number(draw: st.DrawFn, values: st.SearchStrategy[float]) -> NumberDataPoint:
    exemplars = draw(st.lists(_exemplars, max_size=2))
    return NumberDataPoint(draw(_labels), START, START, draw(values), exemplars)


@st.composite
def _distribution(draw: st.DrawFn) -> HistogramDataPoint:
    counts = draw(st.lists(st.integers(0, 2**40), min_size=5, max_size=5))
    exemplars = draw(st.lists(_exemplars, max_size=3))
    return HistogramDataPoint(
        draw(_labels), START, START, sum(counts), draw(_amounts), tuple(counts), BOUNDS, 0, 1, exemplars
    )


@st.composite
def _metrics(draw: st.DrawFn) -> list[Metric]:
    helps = [draw(_texts) for _ in range(3)]
    counts = _unique(draw(st.lists(_number(_amounts), max_size=4)))
    levels = _unique(draw(st.lists(_number(_values), max_size=4)))
    distributions = _unique(draw(st.lists(_distribution(), max_size=3)))
    return [
        Metric("c_total", helps[0], "", Sum(counts, CUMULATIVE, is_monotonic=True)),
        Metric("g", helps[1], "", Gauge(levels)),
        Metric("h", helps[2], "", Histogram(distributions, CUMULATIVE)),
    ]


def _page(metrics: list[Metric], *, openmetrics: bool) -> str:
    scopes = [ScopeMetrics(InstrumentationScope("a"), metrics, "")]
    return render(MetricsData([ResourceMetrics(Resource({}), scopes, "")]), openmetrics=openmetrics)


# ---- what parsers should find ----------------------------------------------------------------------------------------


def _expected(metrics: list[Metric]) -> dict[Any, str]:
    """Return ``{(sample name, labels): value}``; values as text, so that NaN equals NaN and -0 is not 0."""
    return {(name, frozenset(labels.items())): repr(float(value)) for name, labels, value in _samples(metrics)}


def _samples(metrics: list[Metric]) -> Iterator[tuple[str, dict[str, str], float]]:
    for metric in metrics:
        for point in metric.data.data_points:
            labels: dict[str, Any] = dict(point.attributes or {})
            if not isinstance(point, HistogramDataPoint):
                yield metric.name, labels, point.value  # type: ignore[union-attr]  # there are no others
                continue
            for bound, count in zip((*BOUNDS, math.inf), accumulate(point.bucket_counts), strict=True):
                yield "h_bucket", {**labels, "le": "+Inf" if bound == math.inf else _go(bound)}, count
            yield "h_count", labels, point.count
            yield "h_sum", labels, point.sum


def _go(bound: float) -> str:
    return repr(bound)


def _read(families: Iterable[Any], *leave_out: str) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for family in families:
        for sample in family.samples:
            if not sample.name.endswith(leave_out or ("\0",)):
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found
                found[key] = repr(float(sample.value))
    return found


@LAWS
@given(_metrics())
def test_text_parser_reads_back_what_went_in(metrics: list[Metric]) -> None:
    """Hostile label values, NaN, infinities and huge integers included."""
    assert _expected(metrics) == _read(text_families(_page(metrics, openmetrics=False)))


@LAWS
@given(_metrics())
def test_openmetrics_parser_reads_back_what_went_in(metrics: list[Metric]) -> None:
    """The strict format too, and every series but a gauge's says since when it counts."""
    families = list(openmetrics_families(_page(metrics, openmetrics=True)))
    created = [sample for family in families for sample in family.samples if sample.name.endswith("_created")]

    assert _expected(metrics) == _read(families, "_created")
    assert sum(len(metric.data.data_points) for metric in metrics if metric.name != "g") == len(created)
    assert {START / 1e9} >= {sample.value for sample in created}


@LAWS
@given(_metrics())
def test_help_and_type_are_read_back(metrics: list[Metric]) -> None:
    """Help texts keep their newlines and backslashes; only space around them is the parser's."""
    kinds = {"c": "counter", "g": "gauge", "h": "histogram"}
    text = {family.name: family for family in text_families(_page(metrics, openmetrics=False))}
    strict = {family.name: family for family in openmetrics_families(_page(metrics, openmetrics=True))}
    helps = {metric.name.removesuffix("_total"): (metric.description or "").strip() for metric in metrics}

    assert kinds == {name: family.type for name, family in text.items()} == {n: f.type for n, f in strict.items()}
    for families in (text, strict):
        assert helps == {name: family.documentation.strip() for name, family in families.items()}


@LAWS
@given(_metrics())
def test_page_equals_that_of_prometheus_client_for_equal_families(metrics: list[Metric]) -> None:
    """The reference implementation's page of the same families is read as the same samples."""

    class Reference:
        def collect(self) -> Iterator[Any]:
            yield from _reference_families(metrics)

    registry = CollectorRegistry()
    registry.register(Reference())  # type: ignore[arg-type]  # a collector by shape
    reference = generate_latest(registry).decode()

    assert _read(text_families(reference)) == _read(text_families(_page(metrics, openmetrics=False)))


def _reference_families(metrics: list[Metric]) -> Iterator[Any]:
    counter, gauge, histogram = metrics
    for metric, make in ((counter, CounterMetricFamily), (gauge, GaugeMetricFamily)):
        for point in metric.data.data_points:
            family = make(metric.name, metric.description or "")
            family.add_sample(metric.name, dict(point.attributes), float(point.value))  # type: ignore[arg-type, union-attr]
            yield family
    for point in histogram.data.data_points:
        family = HistogramMetricFamily("h", histogram.description or "")
        for name, labels, value in _samples([Metric("h", "", "", Histogram([point], CUMULATIVE))]):  # type: ignore[list-item]
            family.add_sample(name, labels, float(value))
        yield family


@LAWS
@given(_metrics())
def test_exemplars_stand_in_their_buckets(metrics: list[Metric]) -> None:
    """A bucket shows the newest exemplar whose value lies in it, a counter its newest, with the ids of the span."""
    found: dict[Any, Any] = {}
    for family in openmetrics_families(_page(metrics, openmetrics=True)):
        for sample in family.samples:
            if sample.exemplar is not None:
                found[sample.name, frozenset(sample.labels.items())] = sample.exemplar
    expected = {}
    for metric in metrics:
        for point in metric.data.data_points if metric.name != "g" else ():
            for exemplar in sorted(point.exemplars, key=lambda each: each.time_unix_nano):
                expected[_place(metric.name, point, exemplar)] = exemplar

    assert found.keys() == expected.keys()
    for place, exemplar in expected.items():
        ids = {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}
        assert (ids, exemplar.value) == (found[place].labels, found[place].value)


def _place(name: str, point: Any, exemplar: Exemplar) -> tuple[str, frozenset[tuple[str, str]]]:
    if not isinstance(point, HistogramDataPoint):
        return name, frozenset(point.attributes.items())
    bound = next((_go(bound) for bound in BOUNDS if exemplar.value <= bound), "+Inf")
    return "h_bucket", frozenset({**point.attributes, "le": bound}.items())
