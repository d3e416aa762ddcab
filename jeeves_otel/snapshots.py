# SPDX-License-Identifier: Apache-2.0
"""Write what one process has measured as bytes, and add up what several have.

In: translated collections of several processes of one service, dead ones included. Out: one collection, as if one process
had measured it all; and the bytes in which collections are kept until then. Pure: nothing is remembered or mutated.
"""

from __future__ import annotations

import json
import math
import operator
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

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

from jeeves_otel.exposition import bucket_index
from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.labels import OVERFLOW_KEY, text_of
from jeeves_otel.registry import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from jeeves_otel.registry import Label, Registry

    Labels = frozenset[tuple[str, str]]

FORMAT = 1  # of the bytes; a process of another version counts as unreadable
COUNTER, LEVEL, GAUGE, HISTOGRAM = "counter", "level", "gauge", "histogram"
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class Unreadable(ValueError):
    """Bytes are no snapshot that this version can read."""


class Unsharable(Exception):
    """A metric cannot be added up with those of other processes, nor would a page show it."""


class OtherBuckets(Exception):
    """Processes have given one histogram different buckets."""


# ---- bytes -----------------------------------------------------------------------------------------------------------


def encode(data: MetricsData) -> bytes:
    """Return *data* as JSON. What a page would not show stays behind and is counted: deltas, exponential histograms.

    Numbers are kept exactly; label values become the text that the page shows; exemplars keep value, time and ids.
    """
    scopes = []
    for resource in data.resource_metrics:
        for each in resource.scope_metrics:
            metrics = []
            for metric in each.metrics:
                with failsafe(f"snapshots.{metric.name}"):
                    metrics.append(_json(_metric_row(metric)))
            scopes.append(f"[{_json([each.scope.name, each.scope.version])},[{','.join(metrics)}]]")
    return f"[{FORMAT},[{','.join(scopes)}]]".encode()


def decode(data: bytes) -> MetricsData:
    """Return what `encode` has written.

    Raises:
        Unreadable: *data* is something else, or of another version.
    """
    try:
        version, scopes = json.loads(data)
        if version != FORMAT:
            raise Unreadable(f"format {version}, and this process reads {FORMAT}")
        return _collection(
            [
                ScopeMetrics(InstrumentationScope(name, version), [_metric(*row) for row in rows], "")
                for (name, version), rows in scopes
            ]
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from error


def _plain_number(value: Any) -> float:
    # Measurements of other number types (numpy, Decimal) make points of these types.
    return operator.index(value) if hasattr(value, "__index__") else float(value)


_json = json.JSONEncoder(separators=(",", ":"), default=_plain_number).encode


def _metric_row(metric: Metric) -> list[Any]:
    kind = _kind_of(metric)
    points: Any = metric.data.data_points
    if kind != HISTOGRAM:
        rows: list[Any] = [
            [
                _labels(point.attributes),
                point.start_time_unix_nano,
                point.time_unix_nano,
                point.value,
                _exemplar_rows(point.exemplars),
            ]
            for point in points
        ]
        return [metric.name, metric.description, metric.unit, kind, [], rows]
    bounds: dict[tuple[float, ...], int] = {}
    rows = [
        [
            _labels(point.attributes),
            point.start_time_unix_nano,
            point.time_unix_nano,
            point.count,
            point.sum,
            point.min,
            point.max,
            list(point.bucket_counts),
            bounds.setdefault(tuple(point.explicit_bounds), len(bounds)),
            _exemplar_rows(point.exemplars),
        ]
        for point in points
    ]
    return [metric.name, metric.description, metric.unit, kind, list(bounds), rows]


def _metric(name: str, description: str, unit: str, kind: str, bounds: list[list[float]], rows: list[Any]) -> Metric:
    data: Any
    if kind == HISTOGRAM:
        shared = [tuple(each) for each in bounds]
        data = Histogram(
            [
                HistogramDataPoint(
                    labels, start, time, count, total, counts, shared[at], low, high, _exemplars(exemplars)
                )
                for labels, start, time, count, total, low, high, counts, at, exemplars in rows
            ],
            _CUMULATIVE,
        )
    else:
        points = [
            NumberDataPoint(labels, start, time, value, _exemplars(exemplars))
            for labels, start, time, value, exemplars in rows
        ]
        data = Gauge(points) if kind == GAUGE else Sum(points, _CUMULATIVE, kind == COUNTER)
    return Metric(name, description, unit, data)


def _exemplar_rows(exemplars: Sequence[Exemplar]) -> list[Any]:
    # Without the attributes that a view has filtered out, which no page shows.
    return [[each.value, each.time_unix_nano, each.span_id, each.trace_id] for each in exemplars]


def _exemplars(rows: list[Any]) -> list[Exemplar]:
    return [Exemplar({}, *row) for row in rows]


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        key: value if type(value) is str and value.isascii() else text_of(value)
        for key, value in (attributes or {}).items()
    }


def _collection(scopes: list[ScopeMetrics], resource: Resource | None = None) -> MetricsData:
    return MetricsData([ResourceMetrics(resource or Resource({}), scopes, "")])


def _kind_of(metric: Metric) -> str:
    data = metric.data
    if isinstance(data, Gauge):
        return GAUGE
    if isinstance(data, Sum | Histogram) and data.aggregation_temporality is _CUMULATIVE:
        if isinstance(data, Histogram):
            return HISTOGRAM
        return COUNTER if data.is_monotonic else LEVEL
    raise Unsharable(f"{metric.name} is a delta or an exponential histogram")


# ---- sums ------------------------------------------------------------------------------------------------------------


def merged(live: Iterable[MetricsData], dead: Iterable[MetricsData], merges: Mapping[str, str]) -> MetricsData:
    """Return the collections of several processes as one.

    Counters and histograms of all are added, bucket by bucket, with the earliest start and the newest exemplars. Of
    gauges and of sums that may fall, only those of the living count: such sums are added, gauges merged by *merges*. A
    gauge that it does not name has the value that is newest, because gauges are not additive. Where processes have given
    a histogram different buckets, those bounds remain that all of them have, because between them nothing would be exact.

    Args:
        live: What living processes have measured; the first gives the resource.
        dead: What is left of others.
        merges: ``{name of a gauge: "sum", "min", "max" or "last"}``.

    Source: OpenTelemetry specification 1.50, metrics API, Gauge ("non-additive value(s)").
    """
    return _merge(live, dead, merges, round_up=False)


def retired(dead: Iterable[MetricsData]) -> MetricsData:
    """Return the counters and histograms of *dead* as one collection, which takes their place in `merged`.

    Sums of fractions are rounded up where they must be rounded, so that no total is smaller than it was before: to
    Prometheus a counter that falls by its last bit has begun anew.
    """
    return _merge((), dead, {}, round_up=True)


@dataclass(slots=True)
class _Family:
    """One metric of all processes, by series."""

    first: Metric
    kind: str
    series: dict[Labels, list[Any]] = field(default_factory=dict)

    def add(self, metric: Metric) -> None:
        series = self.series
        for point in metric.data.data_points:
            series.setdefault(frozenset(_labels(point.attributes).items()), []).append(point)


def _merge(
    live: Iterable[MetricsData], dead: Iterable[MetricsData], merges: Mapping[str, str], *, round_up: bool
) -> MetricsData:
    # One name with two units or of two kinds is two metrics here too; the page shows the one and counts the other.
    scopes: dict[tuple[str, str], dict[tuple[str, str | None, str], _Family]] = {}
    resource: Resource | None = None
    for is_live, collections in ((True, live), (False, dead)):
        for data in collections:
            for each in data.resource_metrics:
                resource = resource or each.resource
                for scope in each.scope_metrics:
                    families = scopes.setdefault((scope.scope.name, scope.scope.version or ""), {})
                    for metric in scope.metrics:
                        with failsafe(f"snapshots.{metric.name}"):
                            _sort_in(families, metric, is_live=is_live)
    return _collection(
        [
            ScopeMetrics(InstrumentationScope(name, version), _finished(families, merges, round_up=round_up), "")
            for (name, version), families in scopes.items()
        ],
        resource,
    )


def _sort_in(families: dict[tuple[str, str | None, str], _Family], metric: Metric, *, is_live: bool) -> None:
    kind = _kind_of(metric)
    if is_live or kind in {COUNTER, HISTOGRAM}:
        family = families.setdefault((metric.name, metric.unit, kind), _Family(metric, kind))
        family.add(metric)


def _finished(families: Mapping[Any, _Family], merges: Mapping[str, str], *, round_up: bool) -> list[Metric]:
    metrics = []
    for family in families.values():
        first = family.first
        with failsafe(f"snapshots.{first.name}"):
            metrics.append(
                Metric(first.name, first.description, first.unit, _data_of(family, merges, round_up=round_up))
            )
    return metrics


def _data_of(family: _Family, merges: Mapping[str, str], *, round_up: bool) -> Gauge | Sum | Histogram:
    groups = family.series.values()
    if family.kind == GAUGE:
        how = merges.get(family.first.name, "last")
        return Gauge([_gauge_of(group, how) for group in groups])
    if family.kind == HISTOGRAM:
        bounds = _common_bounds(family)
        return Histogram([_distribution_of(group, bounds, round_up=round_up) for group in groups], _CUMULATIVE)
    return Sum([_number_of(group, round_up=round_up) for group in groups], _CUMULATIVE, family.kind == COUNTER)


def _gauge_of(group: list[NumberDataPoint], how: str) -> NumberDataPoint:
    newest = max(group, key=lambda point: point.time_unix_nano)
    if how == "last" or len(group) == 1:
        return newest
    value = {"sum": sum, "min": min, "max": max}[how](point.value for point in group)  # type: ignore[operator]
    return NumberDataPoint(group[0].attributes, newest.start_time_unix_nano, newest.time_unix_nano, value)


def _number_of(group: list[NumberDataPoint], *, round_up: bool) -> NumberDataPoint:
    if len(group) == 1:
        return group[0]
    newest = max((exemplar for point in group for exemplar in point.exemplars), key=_age, default=None)
    return NumberDataPoint(
        group[0].attributes,
        min(point.start_time_unix_nano for point in group),
        max(point.time_unix_nano for point in group),
        _total([point.value for point in group], round_up=round_up),
        [] if newest is None else [newest],
    )


def _distribution_of(
    group: list[HistogramDataPoint], bounds: tuple[float, ...] | None, *, round_up: bool
) -> HistogramDataPoint:
    if len(group) == 1 and bounds is None:
        return group[0]
    common = tuple(group[0].explicit_bounds) if bounds is None else bounds
    counts = [point.bucket_counts if bounds is None else _folded(point, common) for point in group]
    newest: dict[int, Exemplar] = {}
    for exemplar in sorted((each for point in group for each in point.exemplars), key=_age):
        newest[bucket_index(exemplar.value, common)] = exemplar
    return HistogramDataPoint(
        attributes=group[0].attributes,
        start_time_unix_nano=min(point.start_time_unix_nano for point in group),
        time_unix_nano=max(point.time_unix_nano for point in group),
        count=sum(point.count for point in group),
        sum=_total([point.sum for point in group], round_up=round_up),
        bucket_counts=[sum(column) for column in zip(*counts, strict=True)],
        explicit_bounds=common,
        min=min(point.min for point in group),
        max=max(point.max for point in group),
        exemplars=list(newest.values()),
    )


def _age(exemplar: Exemplar) -> int:
    return exemplar.time_unix_nano


def _common_bounds(family: _Family) -> tuple[float, ...] | None:
    """Return the bounds that all points of *family* have, or None if no point has others; count it."""
    different = {tuple(point.explicit_bounds) for group in family.series.values() for point in group}
    if len(different) <= 1:
        return None
    # For the whole family: quantiles over series with different buckets would be wrong.
    common = tuple(sorted(set.intersection(*map(set, different))))
    hint = "processes of this service have given it different buckets, and the page has those that all of them have"
    swallow(f"snapshots.{family.first.name}.buckets", OtherBuckets(family.first.name), hint)
    return common


def _folded(point: HistogramDataPoint, bounds: tuple[float, ...]) -> list[int]:
    """Return the counts of *point* for *bounds*, which are among its own."""
    counts = [0] * (len(bounds) + 1)
    for upper, count in zip((*point.explicit_bounds, math.inf), point.bucket_counts, strict=True):
        counts[bisect_left(bounds, upper)] += count
    return counts


def _total(values: list[float], *, round_up: bool) -> float:
    """Return the sum, rounded once: it does not depend on the order, and never falls while no value does."""
    plain = sum(values)
    if isinstance(plain, int) or not math.isfinite(plain):
        return plain
    total = math.fsum(values)
    if round_up and math.fsum([*values, -total]) > 0:
        total = math.nextafter(total, math.inf)
    return total


def merges_of(registry: Registry) -> dict[str, str]:
    """Return how `merged` is to merge the gauges that *registry* promises."""
    return {metric.name: metric.merge for metric in registry.metrics.values() if metric.type == "gauge"}


# ---- bounds ----------------------------------------------------------------------------------------------------------

MOST_SERIES = 2_000  # of a metric that no view maps; OpenTelemetry specification 1.50, metrics SDK, cardinality limits
Limits = dict[str, dict[str, "_Limit"]]


@dataclass(frozen=True, slots=True)
class _Limit:
    """How many values one open label may have, and which it has always."""

    key: Any  # labels of one source have the same values, so that families can be joined on them
    count: int
    always: frozenset[str]


def limits_of(registry: Registry) -> Limits:
    """Return the bounds of all open labels that *registry* promises, as `bounded` wants them."""
    return {
        metric.name: {
            label.name: _Limit(label.templates, label.limit, _always(label)) for label in metric.labels if label.is_open
        }
        for metric in registry.metrics.values()
    }


def _always(label: Label) -> frozenset[str]:
    return frozenset({OTHER, "", label.absent or "", label.present or "", *label.known, *label.value_map.values()})


class _Values:
    """The values of open labels and the series of unmapped metrics that some collections have."""

    def __init__(self, collections: Iterable[MetricsData], limits: Limits) -> None:
        self.labels: dict[Any, set[str]] = {}
        self.series: dict[tuple[str, str], set[Labels]] = {}
        for data in collections:
            for scope, metric in _metrics_of(data):
                for point in metric.data.data_points:
                    labels = _labels(point.attributes)
                    if metric.name not in limits:
                        self.series.setdefault((scope, metric.name), set()).add(frozenset(labels.items()))
                    for name, limit in limits.get(metric.name, {}).items():
                        if labels.get(name, "") not in limit.always:
                            self.labels.setdefault(limit.key, set()).add(labels[name])


def bounded(
    dead: Iterable[MetricsData],
    before: MetricsData | None,
    living: Callable[[], Iterable[MetricsData]],
    limits: Limits,
) -> list[MetricsData]:
    """Return *dead* with ``other`` for label values that would be too many beside those of *before*.

    Each process bounds its own values; over months of recycled processes their union would grow without end. A value that
    a living process has keeps its name, or its series would fall; but twice the limit is the end of that too. A metric
    that no view maps gets the SDK's overflow series in the place of those beyond `MOST_SERIES`.

    Args:
        dead: What is to be retired.
        before: What is retired already.
        living: Returns what others have; called only if a limit is reached.
        limits: See `limits_of`.
    """
    kept = _Values([before] if before is not None else [], limits)
    alive = cache(lambda: _Values(living(), limits))

    def keeps(held: set[Any], value: Any, most: int, of_living: Callable[[], Collection[Any]]) -> bool:
        if value not in held and (len(held) < most or (len(held) < 2 * most and value in of_living())):
            held.add(value)
        return value in held

    def relabelled(scope: str, metric: Metric, labels: dict[str, str]) -> dict[str, str]:
        if metric.name not in limits:
            where, series = (scope, metric.name), frozenset(labels.items())
            held = kept.series.setdefault(where, set())
            fits = keeps(held, series, MOST_SERIES, lambda: alive().series.get(where, ()))
            return labels if fits else {OVERFLOW_KEY: "true"}
        for name, limit in limits[metric.name].items():
            value = labels.get(name, "")
            held_values = kept.labels.setdefault(limit.key, set())
            if value not in limit.always and not keeps(
                held_values,
                value,
                limit.count,
                lambda key=limit.key: alive().labels.get(key, ()),  # type: ignore[misc]
            ):
                labels[name] = OTHER
        return labels

    def relabel(scope: str, metric: Metric) -> Metric:
        if _kind_of(metric) not in {COUNTER, HISTOGRAM}:
            return metric
        points: list[Any] = [
            replace(point, attributes=relabelled(scope, metric, _labels(point.attributes)))
            for point in metric.data.data_points
        ]
        return replace(metric, data=replace(metric.data, data_points=points))  # type: ignore[arg-type]  # of the same type

    return [_mapped(data, relabel) for data in dead]


def _metrics_of(data: MetricsData) -> Iterator[tuple[str, Metric]]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            yield from ((scope.scope.name, metric) for metric in scope.metrics)


def _mapped(data: MetricsData, change: Callable[[str, Metric], Metric]) -> MetricsData:
    return MetricsData(
        [
            ResourceMetrics(
                resource.resource,
                [
                    ScopeMetrics(
                        each.scope, [change(each.scope.name, metric) for metric in each.metrics], each.schema_url
                    )
                    for each in resource.scope_metrics
                ],
                resource.schema_url,
            )
            for resource in data.resource_metrics
        ]
    )


# ---- gauges ----------------------------------------------------------------------------------------------------------

Held = dict[tuple[str, str, "Labels"], tuple[float, int]]


def dated(data: MetricsData, held: Held, merges: Mapping[str, str]) -> tuple[MetricsData, Held]:
    """Return *data* with the time at which each gauge was first seen to have its value, and what to hold for the next.

    The SDK gives a gauge the time of the collection, so that the newest of several processes would be the one that was
    asked last.

    Args:
        data: A collection.
        held: What the last call has returned; ``{series: (value, time)}``.
        merges: As for `merged`; only gauges that have the newest value are dated.
    """
    now: Held = {}

    def date(scope: str, metric: Metric) -> Metric:
        if not isinstance(metric.data, Gauge) or merges.get(metric.name, "last") != "last":
            return metric
        points = []
        for point in metric.data.data_points:
            key = (scope, metric.name, frozenset(_labels(point.attributes).items()))
            value, time = held.get(key, (None, 0))
            now[key] = (point.value, time if value == point.value else point.time_unix_nano)
            points.append(NumberDataPoint(point.attributes, point.start_time_unix_nano, now[key][1], point.value))
        return Metric(metric.name, metric.description, metric.unit, Gauge(points))

    return _mapped(data, date), now
