# SPDX-License-Identifier: Apache-2.0
"""Random collections: what the SDK could hand over for the instruments of the jeeves profile, and what it could not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
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

from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jeeves_otel.registry import Instrument

REGISTRY = load(("jeeves",))
FED = sorted({source.instrument for metric in REGISTRY.metrics.values() for source in metric.sources})
CUMULATIVE = AggregationTemporality.CUMULATIVE
DELTA = AggregationTemporality.DELTA
OVERFLOW = {"otel.metric.overflow": True}
RESOURCE = Resource({"service.name": "test"})

_MEANINGFUL = (
    "chat", "text_completion", "embeddings", "input", "output", "cached", "engine", "provider", "inner", "used", "idle",
    "success", "error", "terminated", "OK", "NOT_FOUND", "GET", "select", "SELECT", "openai", "azure.ai.openai",
    "azure.ai.inference", "pending", "accept", "planner_retry",
)  # fmt: skip
_values = st.one_of(
    st.sampled_from(_MEANINGFUL),
    st.sampled_from(["", "other", 'q"uote', "back\\slash", "new\nline", "ünï", "a" * 300]),
    st.integers(0, 20),
    st.booleans(),
    st.sampled_from([0.5, 1e300]),
    st.sampled_from([("a", "b"), ()]),
)
_times = st.integers(1_000, 1_010)


def histogram_bounds(instrument: Instrument) -> list[float]:
    """Return the bounds that the promised families of *instrument* need."""
    needed: set[float] = set()
    for metric in REGISTRY.metrics.values():
        if any(source.instrument == instrument.name and source.take == "histogram" for source in metric.sources):
            needed.update(metric.buckets)
    return sorted(needed)


@st.composite
def attributes(draw: st.DrawFn, instrument: Instrument) -> dict[str, Any]:
    """Attributes in any spelling, with any value, and one that no view reads; or those of the SDK's overflow point."""
    if draw(st.integers(0, 9)) == 0:
        return dict(OVERFLOW)
    keys = [spelling for key in instrument.attributes for spelling in REGISTRY.spelled(key)]
    found = draw(st.dictionaries(st.sampled_from(keys), _values, max_size=5)) if keys else {}
    if instrument.name.startswith("gen_ai."):
        found.setdefault("gen_ai.operation.name", draw(st.sampled_from(["chat", "embeddings"])))
    return {**found, **draw(st.sampled_from([{}, {"not.read": "secret"}]))}


@st.composite
def exemplars(draw: st.DrawFn) -> list[Exemplar]:
    """Exemplars that carry what a view has filtered out."""
    spans = draw(st.lists(st.integers(1, 2**64 - 1), max_size=2))
    return [
        Exemplar({"user.text": "secret"}, draw(st.integers(0, 100)), draw(_times), span, span << 3) for span in spans
    ]


@st.composite
def number_points(draw: st.DrawFn, instrument: Instrument) -> NumberDataPoint:
    """A point of a sum or gauge."""
    start = draw(_times)
    value = draw(st.integers(0, 2**40))
    return NumberDataPoint(draw(attributes(instrument)), start, start + draw(_times), value, draw(exemplars()))


@st.composite
def histogram_points(draw: st.DrawFn, instrument: Instrument, bounds: Sequence[float]) -> HistogramDataPoint:
    """A point of a histogram whose parts agree with each other; its sum is a whole number, so that adding is exact."""
    counts = draw(st.lists(st.integers(0, 50), min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    start = draw(_times)
    return HistogramDataPoint(
        attributes=draw(attributes(instrument)),
        start_time_unix_nano=start,
        time_unix_nano=start + draw(_times),
        count=sum(counts),
        sum=draw(st.integers(0, 2**40)),
        bucket_counts=tuple(counts),
        explicit_bounds=tuple(bounds),
        min=0,
        max=draw(st.integers(0, 100)),
        exemplars=draw(exemplars()),
    )


@st.composite
def metrics(draw: st.DrawFn, name: str, temporality: AggregationTemporality = CUMULATIVE) -> Metric:
    """The instrument *name* of the registry with up to six points."""
    instrument = REGISTRY.instruments[name]
    data: Any
    if instrument.kind == "histogram":
        more = draw(st.lists(st.sampled_from([0.0001, 0.33, 3.3, 77.0]), unique=True, max_size=3))
        bounds = sorted({*histogram_bounds(instrument), *more})
        data = Histogram(draw(st.lists(histogram_points(instrument, bounds), max_size=6)), temporality)
    else:
        points = draw(st.lists(number_points(instrument), max_size=6))
        monotonic = instrument.kind == "counter"
        data = (
            Gauge(points)
            if instrument.kind == "gauge"
            else Sum(points, temporality if monotonic else CUMULATIVE, monotonic)
        )
    return Metric(name, "", instrument.unit, data)


@st.composite
def unmapped_metrics(draw: st.DrawFn) -> Metric:
    """A metric that no view knows."""
    name = draw(st.sampled_from(["http.server.active_requests", "my.own", "llm_calls", "jeeves.unheard.of"]))
    points = [NumberDataPoint({"any.thing": draw(_values)}, draw(_times), 2_000, draw(st.integers()), [])]
    return Metric(name, "as it was", "{thing}", draw(st.sampled_from([Gauge(points), Sum(points, CUMULATIVE, False)])))


@st.composite
def collections(
    draw: st.DrawFn, names: Sequence[str] = tuple(FED), temporality: AggregationTemporality = CUMULATIVE
) -> MetricsData:
    """One collection: up to three scopes, each with some instruments of the registry and some of nobody's."""
    scopes = []
    for scope in draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3)):
        chosen = draw(st.lists(st.sampled_from(list(names)), unique=True, max_size=3))
        found = [draw(metrics(name, temporality)) for name in chosen]
        found += draw(st.lists(unmapped_metrics(), max_size=1))
        scopes.append(ScopeMetrics(InstrumentationScope(scope), draw(st.permutations(found)), "schema"))
    return collection(scopes)


def collection(scopes: list[ScopeMetrics]) -> MetricsData:
    """Return the collection of one resource."""
    return MetricsData([ResourceMetrics(RESOURCE, scopes, "")])


def all_metrics(data: MetricsData) -> list[Metric]:
    """Return the metrics of *data*, of all scopes."""
    return [
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]


def promised_metrics(data: MetricsData) -> dict[str, Metric]:
    """Return ``{name: metric}`` of the promised ones."""
    return {metric.name: metric for metric in all_metrics(data) if metric.name in REGISTRY.metrics}
