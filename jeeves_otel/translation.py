# SPDX-License-Identifier: Apache-2.0
"""Map collected metrics to the promised names, labels and values, merging points that collide.

In: the `MetricsData` of one collection and the registry. Out: a new `MetricsData` in which every promised metric that
has a source stands in one scope, and metrics that no view maps stay as they were. Nothing is mutated, nothing is
remembered between two collections, and equal input gives equal output, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric as OtelMetric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from jeeves_otel.exposition import prometheus_name
from jeeves_otel.failsafe import swallow
from jeeves_otel.labels import OVERFLOW_KEY, condition_function, label_function, overflow_labels
from jeeves_otel.registry import PER_SECOND, TRANSLATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jeeves_otel.registry import Form, Metric, Registry, Source

    Attributes = Mapping[str, Any]
    LabelValues = tuple[str, ...]

SCOPE = InstrumentationScope("jeeves_otel")
_OURS = "jeeves_otel."  # what we say about ourselves has no other name than the promised one


class Inexact(Exception):
    """A histogram cannot be given the promised buckets without guessing, so the metric is not exported."""


class NameTaken(Exception):
    """A metric that no view maps would leave under a promised name."""


@dataclass(slots=True)
class _Number:
    """A sum or gauge under construction."""

    value: float
    start: int
    time: int
    exemplars: list[Exemplar]


@dataclass(slots=True)
class _Distribution:
    """A histogram under construction; ``counts`` is per promised bucket, the last one is +Inf."""

    counts: list[int]
    count: int
    sum: float
    min: float
    max: float
    start: int
    time: int
    exemplars: list[Exemplar]


class _Family:
    """One promised metric while a collection is translated."""

    __slots__ = ("failed", "points", "temporality", "view")

    def __init__(self, view: _View) -> None:
        self.view = view
        self.points: dict[LabelValues, Any] = {}
        self.temporality: AggregationTemporality | None = None
        self.failed = False


class _View:
    """A metric of the registry, compiled."""

    __slots__ = ("labels", "marked", "metric", "open_positions", "start_values")

    def __init__(self, metric: Metric, registry: Registry) -> None:
        self.metric = metric
        self.labels = tuple(label_function(label, registry) for label in metric.labels)
        self.start_values = [label.start_values for label in metric.labels]
        self.marked = metric.type == "counter" and any(self.start_values)
        self.open_positions = [i for i, values in enumerate(self.start_values) if not values]

    def label_values(self, attributes: Attributes) -> LabelValues:
        if OVERFLOW_KEY in attributes:
            return overflow_labels(self.metric.labels)
        return tuple([compute(attributes) for compute in self.labels])


class _Feed:
    """One way into a family: a source of its metric, read from one spelling of its instrument."""

    __slots__ = ("accepts", "assume", "form", "index", "take")

    def __init__(self, index: int, metric: Metric, source: Source, form: Form, registry: Registry) -> None:
        self.index = index
        self.take = source.take
        self.form = form
        self.assume = dict(form.assume)
        # What adds up must not be lost; a level must not stand in two families at once.
        self.accepts = condition_function(source, registry, overflow_feeds=metric.type != "gauge")


class Translator:
    """The translation of one registry, compiled once; safe to call from several threads.

    Args:
        registry: What is promised.
        keep_unmapped: Whether metrics that no view maps pass through unchanged.
        keep_mapped: Whether metrics that a view maps stay beside what it makes of them, under their own names.
        declared: Label sets that exist with 0 from the start, for example ``[{"agent": "planner"}]``.
        started_unix_nano: When the process began to count; the start time of series that exist from the start.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        keep_unmapped: bool = True,
        keep_mapped: bool = False,
        declared: Iterable[Mapping[str, str]] = (),
        started_unix_nano: int = 0,
    ) -> None:
        self._views = [_View(metric, registry) for metric in registry.metrics.values()]
        self._promised = frozenset(registry.metrics)
        self._keep_unmapped = keep_unmapped
        self._keep_mapped = keep_mapped
        self._started = started_unix_nano
        self._feeds: dict[str, list[_Feed]] = {}
        self._better: dict[str, list[str]] = {}
        declared = list(declared)
        self._from_start = [self._start_combinations(view, declared) for view in self._views]
        for index, metric in enumerate(registry.metrics.values()):
            for source in metric.sources:
                self._plan(index, metric, source, registry)

    def _plan(self, index: int, metric: Metric, source: Source, registry: Registry) -> None:
        better: list[str] = []
        for generation in registry.instruments[source.instrument].generations:
            for form in generation:
                self._feeds.setdefault(form.name, []).append(_Feed(index, metric, source, form, registry))
                self._better[form.name] = list(better)
            better += [form.name for form in generation]

    @staticmethod
    def _start_combinations(view: _View, declared: Iterable[Mapping[str, str]]) -> list[LabelValues]:
        """Return the values of the unmarked labels that exist before anything was measured."""
        if not view.marked:
            return []
        names = view.metric.label_names
        unmarked = [names[i] for i in view.open_positions]
        combinations: list[LabelValues] = [()] if not unmarked else []
        for labels in declared:
            # A declared provider without a model exists under the default model, but never invents a pipeline.
            values = [labels.get(name, view.metric.labels[names.index(name)].absent) for name in unmarked]
            if set(labels) & set(unmarked) == set(labels) and labels and all(value is not None for value in values):
                combinations.append(tuple(str(value) for value in values))
        return list(dict.fromkeys(combinations))

    def __call__(self, data: MetricsData) -> MetricsData:
        """Return *data* translated."""
        return MetricsData([self._translate_resource(resource) for resource in data.resource_metrics])

    def _translate_resource(self, resource: ResourceMetrics) -> ResourceMetrics:
        families = [_Family(view) for view in self._views]
        untouched: list[ScopeMetrics] = []
        for scope in resource.scope_metrics:
            present = {metric.name for metric in scope.metrics if metric.data.data_points}
            rest = [metric for metric in scope.metrics if self._stays(metric, self._feed(metric, present, families))]
            if rest:
                untouched.append(ScopeMetrics(scope.scope, rest, scope.schema_url))
        now = _time_of_totals(resource, self._started)
        promised = [
            metric
            for family, start in zip(families, self._from_start, strict=True)
            for metric in self._finish(family, start, now)
        ]
        scopes = [ScopeMetrics(SCOPE, promised, "")] if promised else []
        return ResourceMetrics(resource.resource, scopes + untouched, resource.schema_url)

    def _stays(self, metric: OtelMetric, mapped: bool) -> bool:  # noqa: FBT001 - private
        if mapped:
            ours = metric.name.startswith(_OURS) or prometheus_name(metric) in self._promised
            return self._keep_mapped and not ours
        return self._keep_unmapped and not self._takes_promised_name(metric)

    def _takes_promised_name(self, metric: OtelMetric) -> bool:
        """Return whether *metric*, which no view maps, would leave under a promised name; count that."""
        name = prometheus_name(metric)
        if name not in self._promised:
            return False
        # Beside the promised series it would double every sum, and a page could tell the two apart by scope only.
        hint = f"{name} is promised by a view, so what another library calls like that is not exported"
        swallow(f"translation.{metric.name}", NameTaken(name), hint)
        return True

    def _feed(self, metric: OtelMetric, present: set[str], families: list[_Family]) -> bool:
        """Add the points of *metric* to the families it feeds; return whether any view knows its name."""
        feeds = self._feeds.get(metric.name)
        if feeds is None:
            return False
        # Both generations from one scope are one measurement recorded twice: only the best is read.
        if not present.isdisjoint(self._better[metric.name]):
            return True
        for feed in feeds:
            family = families[feed.index]
            if family.failed:
                continue
            try:
                _add_points(family, feed, metric)
            except Exception as error:  # noqa: BLE001 - one metric that fails must not take the others along
                family.failed = True
                swallow(f"translation.{family.view.metric.name}", error)
        return True

    def _finish(self, family: _Family, from_start: list[LabelValues], now: int | None) -> list[OtelMetric]:
        if family.failed:
            return []
        try:
            if family.view.marked and now is not None:
                _fill_zeros(family, from_start, self._started, now)
            return [_build(family)] if family.points else []
        except Exception as error:  # noqa: BLE001 - as above
            swallow(f"translation.{family.view.metric.name}", error)
            return []


def marked(data: MetricsData) -> MetricsData:
    """Return *data*, translated, with the mark by which a Collector knows that it need not do so."""
    return MetricsData(
        [
            ResourceMetrics(
                Resource({**each.resource.attributes, TRANSLATED: True}, each.resource.schema_url),
                each.scope_metrics,
                each.schema_url,
            )
            for each in data.resource_metrics
        ]
    )


# ---- points into families --------------------------------------------------------------------------------------------


def _add_points(family: _Family, feed: _Feed, metric: OtelMetric) -> None:
    data = metric.data
    temporality = getattr(data, "aggregation_temporality", None)
    if family.temporality is None:
        family.temporality = temporality
    elif temporality is not None and temporality is not family.temporality:
        raise Inexact(f"{family.view.metric.name}: sources of different temporality")
    add = _adder(family, feed, metric)
    view, assume, accepts = family.view, feed.assume, feed.accepts
    for point in data.data_points:
        attributes: Attributes = point.attributes or {}
        if assume:
            attributes = {**assume, **attributes}
        if accepts is None or accepts(attributes):
            add(view.label_values(attributes), point)


def _adder(family: _Family, feed: _Feed, metric: OtelMetric) -> Callable[[LabelValues, Any], None]:
    """Return the function that adds one point, or raise if the take does not fit the data."""
    name, points = family.view.metric.name, family.points
    is_histogram = hasattr(metric.data, "data_points") and type(metric.data).__name__.endswith("Histogram")
    divisor = _divisor(metric.unit or feed.form.unit, family.view.metric.unit)
    if feed.take == "histogram":
        if not isinstance(metric.data, Histogram):
            raise Inexact(f"{name}: {metric.name} is not an explicit-bucket histogram")
        return _distribution_adder(points, family.view.metric.buckets, divisor)
    if feed.take == "count":
        if not is_histogram:
            raise Inexact(f"{name}: {metric.name} is not a histogram and has no count")
        return _number_adder(points, lambda point: point.count, "sum", lambda _: 1)
    if is_histogram:
        return _number_adder(
            points,
            lambda point: point.sum / divisor if divisor != 1 else point.sum,
            "sum",
            lambda value: value / divisor,
        )
    if (
        family.view.metric.type == "gauge"
        and getattr(metric.data, "aggregation_temporality", None) is AggregationTemporality.DELTA
    ):
        raise Inexact(f"{name}: {metric.name} has delta temporality, the present value is not in it")
    return _number_adder(
        points,
        lambda point: point.value / divisor if divisor != 1 else point.value,
        family.view.metric.merge,
        lambda value: value,
    )


def _divisor(source_unit: str, target_unit: str) -> int:
    """Return what a value is divided by; division keeps bounds exact where multiplication by 0.001 does not."""
    if source_unit in PER_SECOND and target_unit == "s":
        return PER_SECOND[source_unit]
    return 1


def _number_adder(
    points: dict[LabelValues, _Number],
    value_of: Callable[[Any], float],
    merge: str,
    exemplar_value: Callable[[float], float],
) -> Callable[[LabelValues, Any], None]:
    combine: dict[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "min": min, "max": max}

    def add(labels: LabelValues, point: Any) -> None:
        value, start = value_of(point), point.start_time_unix_nano or 0
        exemplars = [_plain(exemplar, exemplar_value(exemplar.value)) for exemplar in point.exemplars]
        held = points.get(labels)
        if held is None:
            points[labels] = _Number(value, start, point.time_unix_nano, exemplars)
            return
        if merge == "last":
            held.value = max((held.time, held.value), (point.time_unix_nano, value))[1]
        else:
            held.value = combine[merge](held.value, value)
        held.start = min(held.start, start)
        held.time = max(held.time, point.time_unix_nano)
        held.exemplars += exemplars

    return add


def _distribution_adder(
    points: dict[LabelValues, _Distribution], buckets: Sequence[float], divisor: int
) -> Callable[[LabelValues, Any], None]:
    folds: dict[tuple[float, ...], list[int]] = {}

    def add(labels: LabelValues, point: HistogramDataPoint) -> None:
        bounds = tuple(point.explicit_bounds)
        fold = folds.get(bounds)
        if fold is None:
            fold = folds[bounds] = _fold(bounds, buckets, divisor)
        held = points.get(labels)
        if held is None:
            held = points[labels] = _Distribution(
                [0] * (len(buckets) + 1),
                0,
                0,
                float("inf"),
                float("-inf"),
                point.start_time_unix_nano,
                point.time_unix_nano,
                [],
            )
        for target, count in zip(fold, point.bucket_counts, strict=True):
            held.counts[target] += count
        held.count += point.count
        held.sum += point.sum / divisor if divisor != 1 else point.sum
        held.min = min(held.min, point.min / divisor)
        held.max = max(held.max, point.max / divisor)
        held.start = min(held.start, point.start_time_unix_nano)
        held.time = max(held.time, point.time_unix_nano)
        held.exemplars += [_plain(exemplar, exemplar.value / divisor) for exemplar in point.exemplars]

    return add


def _fold(bounds: Sequence[float], buckets: Sequence[float], divisor: int) -> list[int]:
    """Return, for each source bucket, the promised bucket that it falls into.

    Raises:
        Inexact: A promised bound is not among the source's, so a source bucket would have to be split.
    """
    scaled = [bound / divisor for bound in bounds]
    missing = set(buckets) - set(scaled)
    if missing:
        raise Inexact(f"bounds {sorted(missing)} are not among the source's {scaled}")
    fold, target = [], 0
    for upper in [*scaled, float("inf")]:
        while target < len(buckets) and buckets[target] < upper:
            target += 1
        fold.append(target)
    return fold


def _plain(exemplar: Exemplar, value: float) -> Exemplar:
    # Attributes that a view dropped may hold anything, user text included: they do not leave with the exemplar.
    return Exemplar({}, value, exemplar.time_unix_nano, exemplar.span_id, exemplar.trace_id)


# ---- families into metrics -------------------------------------------------------------------------------------------


def _time_of_totals(resource: ResourceMetrics, started: int) -> int | None:
    """Return when *resource* was collected, or None if it holds deltas, beside which a zero would be a total."""
    collected = [metric.data for scope in resource.scope_metrics for metric in scope.metrics]
    if any(getattr(data, "aggregation_temporality", None) is AggregationTemporality.DELTA for data in collected):
        return None
    return max((point.time_unix_nano for data in collected for point in data.data_points), default=started)


def _fill_zeros(family: _Family, from_start: list[LabelValues], started: int, now: int) -> None:
    """Give every value of the marked labels a series as soon as one combination of the other labels exists."""
    view = family.view
    groups: dict[LabelValues, int] = dict.fromkeys(from_start, started)
    for labels, point in family.points.items():
        others = tuple(labels[i] for i in view.open_positions)
        groups[others] = min(groups.get(others, point.start), point.start)
    for others, start in groups.items():
        choices: list[Iterable[str]] = list(view.start_values)
        for position, value in zip(view.open_positions, others, strict=True):
            choices[position] = (value,)
        for labels in product(*choices):
            # The zero was there since the first of its siblings, so counting began then for all of them.
            point = family.points.get(labels)
            if point is None:
                family.points[labels] = _Number(0, start, now, [])
            else:
                point.start = start


def _build(family: _Family) -> OtelMetric:
    metric = family.view.metric
    names = metric.label_names
    ordered = sorted(family.points.items())
    temporality = family.temporality or AggregationTemporality.CUMULATIVE
    data: Sum | Gauge | Histogram
    if metric.type == "histogram":
        data = Histogram(
            [_distribution_point(names, labels, point, metric.buckets) for labels, point in ordered], temporality
        )
    else:
        numbers = [
            NumberDataPoint(
                dict(zip(names, labels, strict=True)), point.start, point.time, point.value, point.exemplars
            )
            for labels, point in ordered
        ]
        data = Gauge(numbers) if metric.type == "gauge" else Sum(numbers, temporality, is_monotonic=True)
    return OtelMetric(metric.name, metric.help, metric.unit, data)


def _distribution_point(
    names: Sequence[str], labels: LabelValues, point: _Distribution, buckets: Sequence[float]
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=dict(zip(names, labels, strict=True)),
        start_time_unix_nano=point.start,
        time_unix_nano=point.time,
        count=point.count,
        sum=point.sum,
        bucket_counts=tuple(point.counts),
        explicit_bounds=tuple(buckets),
        min=point.min,
        max=point.max,
        exemplars=point.exemplars,
    )
