# SPDX-License-Identifier: Apache-2.0
"""Laws of translation: what goes in comes out, merged, under promised labels, whatever it is."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, NumberDataPoint, ScopeMetrics, Sum
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from jeeves_otel import failsafe
from jeeves_otel.translation import Inexact, Translator
from tests.property import LAWS
from tests.property.strategies import (
    CUMULATIVE,
    DELTA,
    FED,
    OVERFLOW,
    REGISTRY,
    all_metrics,
    collection,
    collections,
    promised_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import MetricsData

    from jeeves_otel.registry import Metric as Promised, Source

STARTED = 2_000  # after every start and before every end in the random collections
TRANSLATE = Translator(REGISTRY, started_unix_nano=STARTED)
LAYERED = "gen_ai.client.operation.duration"


# ---- a reference as plain as can be ----------------------------------------------------------------------------------


def _fed_points(data: MetricsData, promised: Promised) -> Iterator[tuple[Source, Any]]:
    """Yield the points that feed a family, with the source that reads them. No older spelling is in the data."""
    for metric in all_metrics(data):
        for source in promised.sources:
            if metric.name == source.instrument:
                yield from ((source, point) for point in metric.data.data_points if _feeds(source, promised, point))


def _feeds(source: Source, promised: Promised, point: Any) -> bool:
    if point.attributes == OVERFLOW:  # has lost what the conditions ask for; only a gauge could not bear it
        return not source.conditions or promised.type != "gauge"
    for key, accepted in source.conditions.items():
        spelled = [point.attributes[name] for name in REGISTRY.spelled(key) if name in point.attributes]
        if (spelled[0] if spelled else None) not in accepted:
            return False
    return True


def _amount(source: Source, point: Any) -> float:
    return {"count": lambda: point.count, "histogram": lambda: point.count, "sum": lambda: point.sum}.get(
        source.take, lambda: point.value
    )()


def _total(metric: Metric | None) -> float:
    points = metric.data.data_points if metric is not None else ()
    return sum(point.count if isinstance(point, HistogramDataPoint) else point.value for point in points)


# ---- laws ------------------------------------------------------------------------------------------------------------


@LAWS
@given(collections())
def test_totals_are_unchanged(data: MetricsData) -> None:
    """For every family that adds up: all that its sources have counted, and nothing else."""
    found = promised_metrics(TRANSLATE(data))
    adding = {name: metric for name, metric in REGISTRY.metrics.items() if metric.merge == "sum"}

    assert {
        name: sum(_amount(source, point) for source, point in _fed_points(data, metric))
        for name, metric in adding.items()
    } == {name: _total(found.get(name)) for name in adding}


@LAWS
@given(collections([name for name in FED if REGISTRY.instruments[name].kind == "histogram"]))
def test_sums_and_buckets_of_histograms_agree(data: MetricsData) -> None:
    """The sum of a family is the sum of its sources; its buckets add up to its count and have the promised bounds."""
    for name, metric in promised_metrics(TRANSLATE(data)).items():
        if not isinstance(metric.data, Histogram):
            continue
        points = metric.data.data_points

        assert sum(point.sum for _, point in _fed_points(data, REGISTRY.metrics[name])) == sum(p.sum for p in points)
        assert all(sum(point.bucket_counts) == point.count for point in points)
        assert {REGISTRY.metrics[name].buckets} == {point.explicit_bounds for point in points}


@LAWS
@given(collections())
def test_labels_are_the_declared_ones_and_no_two_points_share_them(data: MetricsData) -> None:
    """Names in promised order, values never empty and always text, one point per combination."""
    for name, metric in promised_metrics(TRANSLATE(data)).items():
        labels = [point.attributes for point in metric.data.data_points]

        assert {REGISTRY.metrics[name].label_names} == {tuple(each) for each in labels}
        assert all(type(value) is str and value for each in labels for value in each.values())
        assert len(labels) == len({tuple(each.values()) for each in labels})


@LAWS
@given(collections())
def test_closed_labels_hold_only_values_that_the_registry_names(data: MetricsData) -> None:
    """Whatever was recorded, a closed label shows a promised value or the one for what is not promised."""
    for name, metric in promised_metrics(TRANSLATE(data)).items():
        for label in REGISTRY.metrics[name].labels:
            seen = {point.attributes[label.name] for point in metric.data.data_points}

            assert label.is_open or seen <= {*label.values, label.unmapped, label.absent, "other"}


@LAWS
@given(collections())
def test_unknown_metrics_pass_through_as_they_are(data: MetricsData) -> None:
    """What no view maps keeps its identity, its order and its scope."""
    unknown = [
        (scope.scope, metric)
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name not in FED
    ]
    passed = [
        (scope.scope, metric)
        for scope in TRANSLATE(data).resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name not in REGISTRY.metrics
    ]

    assert unknown == passed
    assert all(before[1] is after[1] for before, after in zip(unknown, passed, strict=True))


@LAWS
@given(collections())
def test_unknown_metrics_are_dropped_on_request(data: MetricsData) -> None:
    """Without them nothing but promised metrics leaves."""
    left = all_metrics(Translator(REGISTRY, keep_unmapped=False)(data))

    assert {metric.name for metric in left} <= set(REGISTRY.metrics)


@LAWS
@given(collections())
def test_input_is_not_mutated(data: MetricsData) -> None:
    """The exporter beside this one gets the same collection."""
    before = deepcopy(data)
    TRANSLATE(data)

    assert before == data


@LAWS
@given(collections(), st.randoms(use_true_random=False))
def test_output_does_not_depend_on_the_order_of_the_input(data: MetricsData, rng: Any) -> None:
    """Equal input gives equal output in the same order, however scopes, metrics and points were shuffled."""
    shuffled = collection([_shuffled(scope, rng) for scope in _permuted(_scopes(data), rng)])

    assert _comparable(TRANSLATE(data)) == _comparable(TRANSLATE(data))
    assert _comparable(TRANSLATE(data)) == _comparable(TRANSLATE(shuffled))


def _scopes(data: MetricsData) -> list[ScopeMetrics]:
    return list(data.resource_metrics[0].scope_metrics)


def _shuffled(scope: ScopeMetrics, rng: Any) -> ScopeMetrics:
    shuffled = [
        replace(metric, data=replace(metric.data, data_points=_permuted(metric.data.data_points, rng)))
        for metric in scope.metrics
    ]
    return ScopeMetrics(scope.scope, _permuted(shuffled, rng), scope.schema_url)


def _permuted(items: Any, rng: Any) -> list[Any]:
    return list(rng.sample(list(items), len(items)))


def _comparable(data: MetricsData) -> list[Any]:
    """Return the promised metrics in order; exemplars are a set."""
    return [
        (
            metric.name,
            [replace(point, exemplars=sorted(map(repr, point.exemplars))) for point in metric.data.data_points],
        )
        for metric in promised_metrics(data).values()
    ]


@LAWS
@given(collections(), collections(), collections())
def test_merging_is_associative_and_commutative(one: MetricsData, two: MetricsData, three: MetricsData) -> None:
    """Translating together equals adding up what was translated apart, in whatever order and grouping."""
    apart: dict[Any, Any] = {}
    for part in (three, one, two):
        _add_series(apart, TRANSLATE(part))
    together: dict[Any, Any] = {}
    _add_series(together, TRANSLATE(collection([*_renamed(one, 1), *_renamed(two, 2), *_renamed(three, 3)])))

    assert apart == together


def _renamed(data: MetricsData, number: int) -> list[ScopeMetrics]:
    return [replace(scope, scope=InstrumentationScope(f"{scope.scope.name}{number}")) for scope in _scopes(data)]


def _add_series(total: dict[Any, Any], data: MetricsData) -> None:
    for name, metric in promised_metrics(data).items():
        worst = REGISTRY.metrics[name].merge == "min"
        for point in metric.data.data_points:
            key = (name, *point.attributes.values())
            if isinstance(point, HistogramDataPoint):
                parts = (point.count, point.sum, *point.bucket_counts)
                total[key] = tuple(map(sum, zip(parts, total.get(key, (0,) * len(parts)), strict=True)))
            elif worst:
                total[key] = min(total.get(key, point.value), point.value)
            else:
                total[key] = total.get(key, 0) + point.value


@LAWS
@given(collections())
def test_exemplars_are_kept_and_carry_no_attributes(data: MetricsData) -> None:
    """Each family has the exemplars of its sources, with their spans, and nothing that a view has filtered out."""
    found = promised_metrics(TRANSLATE(data))
    for name, promised in REGISTRY.metrics.items():
        expected = Counter(
            (each.trace_id, each.span_id, each.time_unix_nano, 1 if source.take == "count" else each.value)
            for source, point in _fed_points(data, promised)
            for each in point.exemplars
        )
        kept = [each for point in (found[name].data.data_points if name in found else ()) for each in point.exemplars]

        assert expected == Counter((each.trace_id, each.span_id, each.time_unix_nano, each.value) for each in kept)
        assert all(each.filtered_attributes == {} for each in kept)


@LAWS
@given(collections())
def test_a_series_spans_the_time_of_all_its_points(data: MetricsData) -> None:
    """A family begins with the earliest of its sources, ends no earlier than any of them and no later than the collection."""
    for name, metric in promised_metrics(TRANSLATE(data)).items():
        fed = [point for _, point in _fed_points(data, REGISTRY.metrics[name])]
        points = metric.data.data_points
        if fed:
            assert min(p.start_time_unix_nano for p in fed) == min(p.start_time_unix_nano for p in points)
            assert max(p.time_unix_nano for p in fed) <= max(p.time_unix_nano for p in points) <= _end(data)
        assert all(point.start_time_unix_nano <= point.time_unix_nano for point in points)


def _end(data: MetricsData) -> int:
    return max(point.time_unix_nano for metric in all_metrics(data) for point in metric.data.data_points)


@LAWS
@given(
    st.sampled_from([CUMULATIVE, DELTA]).flatmap(lambda kind: st.tuples(st.just(kind), collections(temporality=kind)))
)
def test_temporality_is_kept(case: tuple[Any, MetricsData]) -> None:
    """Deltas stay deltas and totals stay totals; counters are monotonic sums."""
    temporality, data = case
    fed = {metric.name for metric in all_metrics(data) if metric.data.data_points}
    for name, metric in promised_metrics(TRANSLATE(data)).items():
        promised = REGISTRY.metrics[name]
        if promised.type != "gauge" and fed & {source.instrument for source in promised.sources}:
            assert metric.data.aggregation_temporality is temporality
        assert promised.type != "counter" or (isinstance(metric.data, Sum) and metric.data.is_monotonic)


@LAWS
@given(collections(temporality=DELTA).filter(lambda data: any(_is_delta(metric) for metric in all_metrics(data))))
def test_a_collection_of_deltas_holds_no_totals(data: MetricsData) -> None:
    """Zeros from the start belong to totals; a backend that adds up deltas must not get both for one family."""
    totals = [
        name
        for name, metric in promised_metrics(TRANSLATE(data)).items()
        if REGISTRY.metrics[name].type != "gauge" and metric.data.aggregation_temporality is CUMULATIVE
    ]

    assert totals == []


def _is_delta(metric: Metric) -> bool:
    return bool(metric.data.data_points) and getattr(metric.data, "aggregation_temporality", None) is DELTA


# ---- overflow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FED)
@given(value=st.integers(1, 2**40))
@settings(LAWS, max_examples=5)
def test_overflow_stays_overflow(name: str, value: int) -> None:
    """The SDK's overflow point has lost its attributes: it is `other` in every label, and nothing of it is lost."""
    data = collection([ScopeMetrics(InstrumentationScope("a"), [_overflow_metric(name, value)], "")])
    found = promised_metrics(TRANSLATE(data))
    for promised in REGISTRY.metrics.values():
        if {name} != {source.instrument for source in promised.sources} or not promised.labels:
            continue
        other = dict.fromkeys(promised.label_names, "other")
        values = {tuple(p.attributes.items()): _value(p) for p in found[promised.name].data.data_points if _value(p)}

        assert {tuple(other.items()): value} == values


def test_overflow_of_connections_is_in_no_state() -> None:
    """Connections whose state was lost are connections, but neither used nor idle: nothing is counted twice."""
    name = "db.client.connection.count"
    found = promised_metrics(
        TRANSLATE(collection([ScopeMetrics(InstrumentationScope("a"), [_overflow_metric(name, 7)], "")]))
    )

    assert {"jeeves_db_connections": 7} == {n: _total(m) for n, m in found.items() if n.startswith("jeeves_db")}


def _value(point: Any) -> float:
    return float(point.count if isinstance(point, HistogramDataPoint) else point.value)


def _overflow_metric(name: str, value: int) -> Metric:
    instrument = REGISTRY.instruments[name]
    if instrument.kind != "histogram":
        return Metric(name, "", instrument.unit, Sum([NumberDataPoint(OVERFLOW, 1, 2, value, [])], CUMULATIVE, True))
    bounds = sorted(
        {b for m in REGISTRY.metrics.values() for b in m.buckets if name in {s.instrument for s in m.sources}}
    )
    point = HistogramDataPoint(OVERFLOW, 1, 2, value, value, (value, *[0] * len(bounds)), tuple(bounds), 0, 0, [])
    return Metric(name, "", instrument.unit, Histogram([point], CUMULATIVE))


# ---- exact or refused ------------------------------------------------------------------------------------------------


@st.composite
def _bounds_and_values(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    bounds = draw(
        st.lists(st.sampled_from([0.05, 0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 60, 100]), unique=True, min_size=1)
    )
    return sorted(bounds), draw(st.lists(st.floats(0, 200), max_size=20))


@LAWS
@given(_bounds_and_values())
def test_coarsening_is_exact_or_refused(case: tuple[list[float], list[float]]) -> None:
    """With every promised bound among the source's, the buckets are those of the values themselves; else there are none."""
    bounds, values = case
    metric = Metric("jeeves.pipeline.duration", "", "s", Histogram([_histogram_point(bounds, values)], CUMULATIVE))
    data = collection([ScopeMetrics(InstrumentationScope("a"), [metric], "")])
    buckets = REGISTRY.metrics["jeeves_pipeline_duration_seconds"].buckets
    if not set(buckets) <= set(bounds):
        with pytest.raises(Inexact):
            TRANSLATE(data)
        return
    point = promised_metrics(TRANSLATE(data))["jeeves_pipeline_duration_seconds"].data.data_points[0]

    assert _histogram_point(buckets, values).bucket_counts == point.bucket_counts


def _histogram_point(bounds: Any, values: list[float]) -> HistogramDataPoint:
    edges = [float("-inf"), *bounds, float("inf")]
    counts = tuple(sum(low < value <= high for value in values) for low, high in pairwise(edges))
    return HistogramDataPoint({}, 1, STARTED, len(values), sum(values), counts, tuple(bounds), 0, 200, [])


@pytest.mark.parametrize("divisor", [1_000, 1_000_000, 1_000_000_000])
def test_every_promised_bound_survives_the_way_through_smaller_units(divisor: int) -> None:
    """A bound in ms, µs or ns, divided, is the bound again: no histogram is refused because of rounding."""
    bounds = {bound for metric in REGISTRY.metrics.values() for bound in metric.buckets}

    assert {bound for bound in bounds if float(bound * divisor) / divisor != bound} == set()


@LAWS
@given(
    collections(),
    st.sampled_from(["jeeves.pipeline.duration", "jeeves.agent.duration", "http.server.request.duration"]),
)
def test_one_family_that_fails_does_not_take_others_along(data: MetricsData, name: str) -> None:
    """A histogram without the promised bounds costs its own family and one counted failure; all else is as before."""
    failsafe.set_strict(False)
    failsafe.reset()
    point = _histogram_point([7.7], [1.0])
    broken = ScopeMetrics(InstrumentationScope("broken"), [Metric(name, "", "s", Histogram([point], CUMULATIVE))], "")
    lost = {
        promised.name
        for promised in REGISTRY.metrics.values()
        if any(source.instrument == name and source.take == "histogram" for source in promised.sources)
    }
    unrelated = {p.name for p in REGISTRY.metrics.values() if name not in {source.instrument for source in p.sources}}
    before, after = TRANSLATE(data), TRANSLATE(collection([broken, *_scopes(data)]))

    assert lost.isdisjoint(promised_metrics(after))
    assert {f"translation.{each}": 1 for each in lost} == failsafe.counts()
    assert [each for each in _comparable(before) if each[0] in unrelated] == [
        each for each in _comparable(after) if each[0] in unrelated
    ]
