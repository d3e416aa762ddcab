# SPDX-License-Identifier: Apache-2.0
"""snapshots: what is kept of a collection as bytes, and how collections of several processes become one."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
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

from jeeves_otel import failsafe
from jeeves_otel.exposition import render
from jeeves_otel.registry import load
from jeeves_otel.snapshots import (
    FORMAT,
    MOST_SERIES,
    Unreadable,
    bounded,
    dated,
    decode,
    encode,
    limits_of,
    merged,
    merges_of,
    retired,
)

CUMULATIVE = AggregationTemporality.CUMULATIVE


def collection(*metrics: Metric, scope: str = "s", version: str = "1") -> MetricsData:
    """Return a collection of one scope."""
    scopes = [ScopeMetrics(InstrumentationScope(scope, version), list(metrics), "")]
    return MetricsData([ResourceMetrics(Resource({}), scopes, "")])


def number(value: Any, start: int = 5, time: int = 9, exemplars: Any = (), **labels: Any) -> NumberDataPoint:
    """Return a point."""
    return NumberDataPoint(labels, start, time, value, list(exemplars))


def counter(*points: NumberDataPoint, name: str = "c", unit: str = "") -> Metric:
    """Return a monotonic sum."""
    return Metric(name, "help", unit, Sum(list(points), CUMULATIVE, True))


def level(*points: NumberDataPoint, name: str = "l") -> Metric:
    """Return a sum that may fall."""
    return Metric(name, "help", "", Sum(list(points), CUMULATIVE, False))


def gauge(*points: NumberDataPoint, name: str = "g") -> Metric:
    """Return a gauge."""
    return Metric(name, "help", "", Gauge(list(points)))


def histogram(*series: tuple[tuple[float, ...], list[int], dict[str, str]], exemplars: Any = ()) -> Metric:
    """Return a histogram of ``(bounds, counts, labels)``; every sum is 1.5."""
    points = [
        HistogramDataPoint(labels, 5, 9, sum(counts), 1.5, counts, bounds, 0, 9, list(exemplars))
        for bounds, counts, labels in series
    ]
    return Metric("h", "help", "", Histogram(points, CUMULATIVE))


def points(data: MetricsData, name: str) -> list[Any]:
    """Return the points of the metric *name*."""
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return [point for scope in scopes for each in scope.metrics if each.name == name for point in each.data.data_points]


def values(data: MetricsData, name: str) -> list[Any]:
    """Return the values of the metric *name*."""
    return [point.value for point in points(data, name)]


@pytest.fixture
def lenient() -> None:
    """Let failures be swallowed, as in production."""
    failsafe.set_strict(False)


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_numbers_come_back_exactly() -> None:
    """No digit of a float or an integer is lost, and neither becomes the other."""
    given = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2**80, -0.0, math.inf, 1]
    back = values(decode(encode(collection(*(counter(number(value), name=str(value)) for value in given)))), "5e-324")
    everything = [values(decode(encode(collection(counter(number(value))))), "c")[0] for value in given]

    assert [5e-324] == back
    assert [repr(value) for value in given] == [repr(value) for value in everything]


def test_numbers_of_other_types_are_kept() -> None:
    """A measurement of Decimal or Fraction makes points of that type, which a page shows as numbers."""
    data = collection(counter(number(Decimal("1.5")), name="a"), counter(number(Fraction(1, 4)), name="b"))
    back = decode(encode(data))

    assert [[1.5], [0.25]] == [values(back, "a"), values(back, "b")]


def test_labels_come_back_as_the_page_shows_them() -> None:
    """Values that are not text become the text that they are on the page."""
    back = decode(encode(collection(counter(number(1, flag=True, many=("a", "b"), half=0.5, odd="\ud800ü")))))

    assert {"flag": "true", "many": '["a","b"]', "half": "0.5", "odd": "?ü"} == points(back, "c")[0].attributes


def test_start_scope_and_exemplars_come_back_without_filtered_attributes() -> None:
    """What OpenMetrics shows is kept; what a view has filtered out of an exemplar does not reach a disk."""
    data = collection(counter(number(1, start=3, exemplars=[Exemplar({"user": "secret"}, 1.0, 7, 2**63, 2**127)])))
    scope = decode(encode(data)).resource_metrics[0].scope_metrics[0]
    point = scope.metrics[0].data.data_points[0]

    assert ("s", "1", 3) == (scope.scope.name, scope.scope.version, point.start_time_unix_nano)
    assert [Exemplar({}, 1.0, 7, 2**63, 2**127)] == point.exemplars
    assert b"secret" not in encode(data)


@pytest.mark.usefixtures("lenient")
def test_what_no_page_shows_is_left_out_and_counted() -> None:
    """A delta and a value that is no number stay behind; what stands beside them does not."""
    delta = Metric("d", "", "", Sum([number(1)], AggregationTemporality.DELTA, True))
    back = decode(encode(collection(delta, counter(number(object()), name="t"), counter(number(1)))))

    assert ["c"] == [metric.name for metric in back.resource_metrics[0].scope_metrics[0].metrics]
    assert {"snapshots.d": 1, "snapshots.t": 1} == failsafe.counts()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1",
        b"null",
        b"[]",
        b"[1,2]",
        b"[1,[[1]]]",
        b'[1,[[["a"],[]]]]',
        b'[1,[[["a","1"],[[1]]]]]',
        b"\xff",
    ],
)
def test_what_is_no_snapshot_is_unreadable(text: bytes) -> None:
    """Anything else than what was written is refused by one error, also half of it."""
    with pytest.raises(Unreadable):
        decode(text)


def test_no_part_of_a_snapshot_is_a_snapshot() -> None:
    """A file that was cut off anywhere is unreadable, not smaller."""
    whole = encode(collection(counter(number(1, a="b")), histogram(((1.0,), [1, 2], {}))))
    for end in range(len(whole)):
        with pytest.raises(Unreadable):
            decode(whole[:end])


def test_snapshot_of_another_version_is_unreadable() -> None:
    """The bytes say which version wrote them."""
    version, scopes = json.loads(encode(collection()))

    assert version == FORMAT
    with pytest.raises(Unreadable):
        decode(json.dumps([version + 1, scopes]).encode())


# ---- sums ------------------------------------------------------------------------------------------------------------


def test_counters_of_the_living_and_the_dead_are_added() -> None:
    """Series with the same labels become one, the others stay."""
    live = collection(counter(number(1, a="x"), number(2, a="y")))
    dead = collection(counter(number(10, a="x"), number(30, a="z")))

    assert {"x": 11, "y": 2, "z": 30} == {
        point.attributes["a"]: point.value for point in points(merged([live], [dead], {}), "c")
    }


def test_order_and_type_of_labels_do_not_matter() -> None:
    """A process that names its labels in another order, or has a number where another has read text, means the same."""
    one = collection(counter(NumberDataPoint({"a": "x", "n": 1}, 5, 9, 1)))
    other = collection(counter(NumberDataPoint({"n": "1", "a": "x"}, 5, 9, 2)))

    assert [3] == values(merged([one, other], [], {}), "c")


def test_sum_began_with_the_first_and_ends_with_the_last() -> None:
    """The start is the earliest, the time the latest."""
    total = points(merged([collection(counter(number(1, 5, 9)))], [collection(counter(number(1, 2, 11)))], {}), "c")[0]

    assert (2, 11) == (total.start_time_unix_nano, total.time_unix_nano)


def test_histograms_are_added_bucket_by_bucket() -> None:
    """Counts, sum, minimum and maximum are those of all observations."""
    one, other = (collection(histogram(((1.0, 2.0), counts, {}))) for counts in ([1, 2, 3], [10, 20, 30]))
    total = points(merged([one], [other], {}), "h")[0]

    assert ([11, 22, 33], 66, 3.0, 0, 9) == (total.bucket_counts, total.count, total.sum, total.min, total.max)


def test_newest_exemplar_of_each_bucket_is_kept() -> None:
    """One exemplar per bucket, whichever process it comes from."""
    early, late, high = Exemplar({}, 0.5, 1, 1, 1), Exemplar({}, 0.6, 2, 2, 2), Exemplar({}, 7.0, 1, 3, 3)
    one = collection(histogram(((1.0,), [1, 1], {}), exemplars=[early, high]))
    other = collection(histogram(((1.0,), [1, 0], {}), exemplars=[late]))

    assert [high, late] == sorted(points(merged([one], [other], {}), "h")[0].exemplars, key=lambda each: -each.value)


def test_newest_exemplar_of_a_counter_is_kept() -> None:
    """A counter has one."""
    early, late = Exemplar({}, 1, 1, 1, 1), Exemplar({}, 1, 2, 2, 2)
    one, other = (collection(counter(number(1, exemplars=[each]))) for each in (late, early))

    assert [late] == points(merged([one, other], [], {}), "c")[0].exemplars


@pytest.mark.usefixtures("lenient")
def test_of_different_buckets_the_common_ones_remain_for_the_whole_family() -> None:
    """Between bounds that a process does not have nothing would be exact; counts and sums are, and it is counted."""
    one = collection(
        histogram(((1.0, 2.0, 5.0), [1, 2, 4, 8], {"a": "x"}), ((1.0, 2.0, 5.0), [1, 0, 0, 0], {"a": "y"}))
    )
    other = collection(histogram(((1.0, 5.0, 10.0), [10, 20, 40, 80], {"a": "x"})))
    found = points(merged([one], [other], {}), "h")

    assert [((1.0, 5.0), [11, 26, 128], 165), ((1.0, 5.0), [1, 0, 0], 1)] == [
        (point.explicit_bounds, point.bucket_counts, point.count) for point in found
    ]
    assert {"snapshots.h.buckets": 1} == failsafe.counts()


@pytest.mark.parametrize(("how", "expected"), [("sum", 7.0), ("min", 3.0), ("max", 4.0), ("last", 3.0)])
def test_gauges_of_the_living_are_merged_as_the_registry_says(how: str, expected: float) -> None:
    """The newer value is 3."""
    one, other = collection(gauge(number(3.0, time=9))), collection(gauge(number(4.0, time=8)))

    assert [expected] == values(merged([other, one], [], {"g": how}), "g")


def test_unknown_gauge_has_its_newest_value_because_gauges_do_not_add_up() -> None:
    """Two temperatures of 20 degrees are not one of 40."""
    one, other = collection(gauge(number(20.0, time=9))), collection(gauge(number(21.0, time=8)))

    assert [20.0] == values(merged([other, one], [], {}), "g")


def test_sums_that_may_fall_are_added_over_the_living_alone() -> None:
    """A request in flight has ended with its process; so has what a gauge has shown."""
    live = collection(level(number(2)), gauge(number(1.0)))
    dead = collection(level(number(5)), gauge(number(9.0, time=99), number(1.0, a="gone")))
    whole = merged([live, live], [dead], {"g": "sum"})

    assert ([4], [2.0]) == (values(whole, "l"), values(whole, "g"))


def test_scopes_units_and_kinds_stay_apart() -> None:
    """What a page would write as different series is not added up."""
    one = MetricsData([*collection(counter(number(1))).resource_metrics])
    others = [
        collection(counter(number(2)), scope="t"),
        collection(counter(number(3)), version="2"),
        collection(counter(number(4), unit="s")),
    ]

    assert [1, 2, 3, 4] == sorted(values(merged([one, *others], [], {}), "c"))


@pytest.mark.usefixtures("lenient")
def test_one_name_of_two_kinds_is_shown_as_the_first_of_them() -> None:
    """A gauge in one process and a counter in another: the page has the answering process's, and counts the other."""
    one, other = collection(gauge(number(2.0), name="x_total")), collection(counter(number(1), name="x"))
    page = render(merged([one, other], [], {}), openmetrics=False)

    assert ["x_total 2.0"] == [line for line in page.splitlines() if not line.startswith("#")]
    assert {"exposition.x": 1} == failsafe.counts()


def test_fractions_do_not_depend_on_the_order() -> None:
    """A total is rounded once: a counter must not fall by its last bit because a process has died."""
    parts = [collection(counter(number(value))) for value in (0.1, 0.2, 0.3, 1e16, 1.0, -0.0)]
    totals = {values(merged(parts[:split], parts[split:], {}), "c")[0] for split in range(len(parts) + 1)}
    totals |= {values(merged(reversed(parts), [], {}), "c")[0]}

    assert {math.fsum([0.1, 0.2, 0.3, 1e16, 1.0])} == totals


def test_infinite_and_undefined_sums_are_what_they_are() -> None:
    """Nothing raises where floating-point numbers end."""
    for parts, expected in (((math.inf, 1.0), "inf"), ((math.inf, -math.inf), "nan"), ((1e308, 1e308), "inf")):
        total = merged([collection(counter(number(value))) for value in parts], [], {})

        assert expected == repr(values(total, "c")[0])


def test_retired_counts_take_the_place_of_the_dead() -> None:
    """Counters and histograms of many dead become one collection with the same totals; gauges are gone."""
    dead = [collection(counter(number(n)), histogram(((1.0,), [n, 1], {})), gauge(number(1.0))) for n in (1, 2, 3)]
    live = collection(counter(number(5)))

    assert render(merged([live], dead, {}), openmetrics=True) == render(
        merged([live], [retired(dead)], {}), openmetrics=True
    )
    assert [] == points(retired(dead), "g")


# ---- bounds ----------------------------------------------------------------------------------------------------------

LIMITS = limits_of(load(("jeeves",)))
FEATURES = "jeeves_feature_usage_total"  # up to 200 features
CALLS, SECONDS = "jeeves_llm_calls_total", "jeeves_llm_duration_seconds"  # of the same models


def used(*features: str) -> MetricsData:
    """Return what a process has in which each feature was used once."""
    return collection(counter(*(number(1, feature=each) for each in features), name=FEATURES))


def of_features(data: MetricsData) -> dict[str, int]:
    """Return ``{feature: uses}``."""
    return {point.attributes["feature"]: point.value for point in points(data, FEATURES)}


def no_living() -> list[MetricsData]:
    """Be called only where a limit is reached."""
    raise AssertionError


def test_values_of_generations_of_dead_become_other_at_the_limit() -> None:
    """Recycled for months, workers leave as many values as one process may have; no count is lost."""
    kept: MetricsData | None = None
    for generation in range(10):
        dead = [used(*(f"{generation}-{n}" for n in range(50)), "always")]
        kept = retired([*([kept] if kept else []), *bounded(dead, kept, list, LIMITS)])
    assert kept is not None
    found = of_features(kept)

    assert (201, 510, 10) == (len(found), sum(found.values()), found["always"])


def test_values_keep_their_names_while_there_is_room() -> None:
    """Below the limit nothing changes, and nobody has to ask what the living have."""
    dead = [used(*(str(n) for n in range(199))), collection(gauge(number(1.0, feature="g"), name=FEATURES))]

    assert dead == bounded(dead, used("before"), no_living, LIMITS)


def test_value_that_a_living_process_has_keeps_its_name() -> None:
    """Or its series would fall to what the living have; at twice the limit that is the smaller harm."""
    full = used(*(f"old-{n}" for n in range(200)))
    features = [f"live-{n}" for n in range(250)]
    (fitting,) = bounded([used("gone", *features)], full, lambda: [used(*features)], LIMITS)
    found = of_features(retired([fitting]))

    assert {"live-0", "live-199", "other"} <= found.keys()
    assert (201, 51) == (len(found), found["other"])


def test_values_that_mean_something_always_keep_their_names() -> None:
    """What the registry knows, and what stands for absence, is not among those that are counted."""
    names = ("openai", "unknown", "other")
    full = collection(counter(*(number(1, provider=f"p{n}", model="m") for n in range(500)), name=CALLS))
    dead = collection(counter(*(number(1, provider=name, model="m") for name in names), name=CALLS))
    (fitting,) = bounded([dead], full, list, LIMITS)

    assert list(names) == [point.attributes["provider"] for point in points(fitting, CALLS)]


def test_labels_of_one_source_keep_the_same_values_in_all_families() -> None:
    """So that families can be joined on them."""
    full = collection(counter(*(number(1, provider="openai", model=f"m{n}") for n in range(1_000)), name=CALLS))
    dead = collection(
        counter(number(1, provider="openai", model="new"), number(1, provider="openai", model="m7"), name=CALLS),
        counter(number(1, provider="openai", model="m7"), number(1, provider="openai", model="new"), name=SECONDS),
    )
    (fitting,) = bounded([dead], full, list, LIMITS)

    assert [["other", "m7"], ["m7", "other"]] == [
        [point.attributes["model"] for point in points(fitting, name)] for name in (CALLS, SECONDS)
    ]


def test_series_that_no_view_maps_become_the_overflow_series() -> None:
    """As the SDK does it in one process."""
    full = collection(counter(*(number(1, a=str(n)) for n in range(MOST_SERIES))))
    (fitting,) = bounded([collection(counter(number(2, a="0"), number(3, a="new")))], full, list, LIMITS)

    assert [{"a": "0"}, {"otel.metric.overflow": "true"}] == [point.attributes for point in points(fitting, "c")]


def test_merges_are_those_of_the_promised_gauges() -> None:
    """A check is as bad as its worst report."""
    merges = merges_of(load(("jeeves",)))

    assert ("min", "sum", None) == (
        merges["jeeves_health_status"], merges["jeeves_event_queue_depth"], merges.get("jeeves_llm_calls_total")
    )  # fmt: skip


# ---- gauges ----------------------------------------------------------------------------------------------------------


def test_gauge_is_dated_by_its_last_change() -> None:
    """The SDK dates it by the collection; of two processes the one that has changed it last is the newest."""
    held: Any = {}
    times = []
    for now, value in ((1, 5.0), (2, 5.0), (3, 6.0), (4, 6.0), (5, 5.0)):
        data, held = dated(collection(gauge(number(value, time=now))), held, {})
        times.append(points(data, "g")[0].time_unix_nano)

    assert [1, 1, 3, 3, 5] == times


def test_what_is_not_dated_stays_as_it_was() -> None:
    """Only gauges that have the newest value are; nothing is held for others, or for series that are gone."""
    given = collection(counter(number(1)), gauge(number(1.0)), level(number(1)))
    data, held = dated(given, {("s", "g", frozenset({("a", "gone")})): (1.0, 1)}, {"g": "sum"})

    assert given == data
    assert {} == held
