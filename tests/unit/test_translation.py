# SPDX-License-Identifier: Apache-2.0
"""translation: what must hold for single cases; the laws are in tests/property, the oracle in tests/conformance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
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

from jeeves_otel import failsafe, record_feature_usage
from jeeves_otel.registry import load
from jeeves_otel.translation import Inexact, Translator
from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers import Pipeline

CUMULATIVE = AggregationTemporality.CUMULATIVE
DELTA = AggregationTemporality.DELTA
REGISTRY = load(("jeeves",))
STARTED, NOW = 1_000, 5_000


def _data(*metrics: Metric, scope: str = "a") -> MetricsData:
    scopes = [ScopeMetrics(InstrumentationScope(scope), list(metrics), "")]
    return MetricsData([ResourceMetrics(Resource({}), scopes, "")])


def _counter(
    name: str, value: float = 1, temporality: AggregationTemporality = CUMULATIVE, **attributes: Any
) -> Metric:
    dotted = {key.replace("__", "."): each for key, each in attributes.items()}
    return Metric(name, "", "", Sum([NumberDataPoint(dotted, STARTED, NOW, value, [])], temporality, is_monotonic=True))


def _found(data: MetricsData) -> dict[str, Metric]:
    return {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}


def _values(metric: Metric) -> dict[tuple[str, ...], float]:
    return {tuple((point.attributes or {}).values()): point.value for point in metric.data.data_points}  # type: ignore[union-attr]


# ---- zeros -----------------------------------------------------------------------------------------------------------


def test_declared_series_exist_before_anything_was_measured(make_pipeline: Callable[..., Pipeline]) -> None:
    """A declared agent has its zero before its first run, and the first error of it is visible to `increase()`."""
    pipeline = make_pipeline(declared=({"agent": name} for name in ("planner", "writer")))
    samples = pipeline.samples()

    assert {
        ("jeeves_agent_executions_total", (("agent", agent), ("status", status))): 0
        for agent in ("planner", "writer")
        for status in ("success", "error")
    } == {key: value for key, value in samples.items() if key[0].startswith("jeeves_agent")}


def test_counters_without_open_labels_exist_before_anything_was_measured(pipeline: Pipeline) -> None:
    """Where every label is marked there is nothing to wait for."""
    every = {name for name, fact in facts().items() if fact.zero and set(fact.zero) == set(fact.labels)}

    assert every == {name for name, _ in pipeline.samples()}


def test_declared_provider_without_a_model_exists_under_the_default_model(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    """A declaration may leave out a label that has a default, and never invents another family's labels."""
    pipeline = make_pipeline(declared=[{"provider": "openai"}, {"provider": "openai", "model": "gpt-4o"}])
    series = {labels for name, labels in pipeline.samples() if name == "jeeves_llm_calls_total"}

    assert {
        (("model", model), ("provider", "openai"), ("status", status))
        for model in ("unknown", "gpt-4o")
        for status in ("success", "error")
    } == series


def test_zeros_carry_the_time_of_the_collection() -> None:
    """A zero that keeps its first timestamp is stale for a backend after five minutes, so it moves with the others."""
    translate = Translator(REGISTRY, declared=[{"agent": "planner"}], started_unix_nano=STARTED)
    found = _found(translate(_data(_counter("jeeves.feature.usage"))))

    assert {(STARTED, NOW)} == {
        (point.start_time_unix_nano, point.time_unix_nano)
        for point in found["jeeves_agent_executions_total"].data.data_points
    }


def test_collection_of_deltas_has_no_zeros() -> None:
    """A zero from the start is a total; a backend that adds up deltas would get both for one family."""
    translate = Translator(REGISTRY, declared=[{"agent": "planner"}], started_unix_nano=STARTED)

    assert ["jeeves_feature_usage_total"] == list(
        _found(translate(_data(_counter("jeeves.feature.usage", temporality=DELTA))))
    )


def test_series_that_was_zero_before_counts_from_the_start_of_its_siblings() -> None:
    """The first error belongs to a series that has been there as long as the first success."""
    points = [
        NumberDataPoint({"jeeves.interrupt.kind": "timeout", "jeeves.interrupt.status": status}, start, NOW, 1, [])
        for status, start in (("pending", 3_000), ("expired", 4_000))
    ]
    data = _data(Metric("jeeves.interrupts", "", "", Sum(points, CUMULATIVE, is_monotonic=True)))
    found = _found(Translator(REGISTRY, started_unix_nano=STARTED)(data))["jeeves_interrupts_total"]

    assert {STARTED} == {point.start_time_unix_nano for point in found.data.data_points}
    assert sum(_values(found).values()) == 2


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (_counter("jeeves.pipeline.duration"), "not an explicit-bucket histogram|has no count"),
        (
            Metric(
                "jeeves.pipeline.duration",
                "",
                "s",
                Histogram([HistogramDataPoint({}, 1, 2, 1, 1.0, (1, 0), (0.1,), 1, 1, [])], CUMULATIVE),
            ),
            "are not among the source's",
        ),
        (
            Metric(
                "db.client.connection.max",
                "",
                "",
                Sum([NumberDataPoint({}, 1, 2, 1, [])], DELTA, is_monotonic=False),
            ),
            "delta temporality",
        ),
    ],
)
def test_what_does_not_fit_is_refused(metric: Metric, why: str) -> None:
    """A promised metric that could only be guessed is not exported, and the failure says why."""
    with pytest.raises(Inexact, match=why):
        Translator(REGISTRY)(_data(metric))


def test_sources_of_different_temporality_are_refused() -> None:
    """Totals and deltas cannot be added up; the family is left out, and both failures of it count once."""
    failsafe.set_strict(False)
    bounds = facts()["orchestrator_request_latency_seconds"].buckets
    counts = (1, *[0] * len(bounds))
    duration = Histogram([HistogramDataPoint({}, 1, 2, 1, 0.1, counts, bounds, 0, 0, [])], CUMULATIVE)
    found = _found(
        Translator(REGISTRY)(
            _data(
                Metric("jeeves.orchestrator.duration", "", "s", duration),
                _counter("jeeves.orchestrator.rejections", temporality=DELTA),
            )
        )
    )

    assert "orchestrator_requests_total" not in found
    assert "orchestrator_request_latency_seconds" in found
    assert {"translation.orchestrator_requests_total": 1} == failsafe.counts()


# ---- what stays ------------------------------------------------------------------------------------------------------


def test_mapped_metrics_stay_beside_their_translation_on_request() -> None:
    """With both names leaving, the conventions' own metric is there as it was, and what we say of ourselves is not."""
    ours = _counter("jeeves_otel.internal.errors", jeeves_otel__site="x")
    metric = _counter("jeeves.validation.reports", 3, jeeves__validation__status="approved")
    found = _found(Translator(REGISTRY, keep_mapped=True)(_data(metric, ours)))

    assert found["jeeves.validation.reports"] is metric
    assert {("approved",): 3, ("rejected",): 0} == _values(found["meta_validator_reports_total"])
    assert {("x",): 1} == _values(found["jeeves_otel_internal_errors_total"])
    assert "jeeves_otel.internal.errors" not in found


def test_mapped_metric_does_not_stay_if_backends_would_give_it_the_promised_name() -> None:
    """jeeves.feature.usage becomes jeeves_feature_usage_total in Prometheus: beside the promised one, sums double."""
    found = _found(Translator(REGISTRY, keep_mapped=True)(_data(_counter("jeeves.feature.usage", 3))))

    assert "jeeves.feature.usage" not in found
    assert {("unknown",): 3} == _values(found["jeeves_feature_usage_total"])


def test_promised_metrics_stand_first_in_a_scope_of_their_own() -> None:
    """What is promised does not depend on who recorded it."""
    translated = Translator(REGISTRY)(_data(_counter("jeeves.feature.usage"), _counter("my.own"), scope="theirs"))
    scopes = [(s.scope.name, [m.name for m in s.metrics]) for s in translated.resource_metrics[0].scope_metrics]

    assert ["jeeves_otel", "theirs"] == [name for name, _ in scopes]
    assert "jeeves_feature_usage_total" in scopes[0][1]
    assert ["my.own"] == scopes[1][1]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("jeeves_feature_usage_total", ""),
        ("jeeves_feature_usage", "{use}"),
        ("jeeves.feature_usage", ""),
        ("process.cpu", "s"),
    ],
)
def test_foreign_metric_under_a_promised_name_is_left_out_and_counted(name: str, unit: str) -> None:
    """Views own the promised names: what would become one on a page or in a backend does not leave beside it."""
    failsafe.set_strict(False)
    foreign = Metric(name, "", unit, _counter(name).data)
    found = _found(Translator(REGISTRY)(_data(_counter("jeeves.feature.usage", 3), foreign)))

    assert name not in found or found[name] is not foreign
    assert {("unknown",): 3} == _values(found["jeeves_feature_usage_total"])
    assert {f"translation.{name}": 1} == failsafe.counts()


def test_promised_series_get_no_scope_label_from_a_foreign_metric_of_their_name(pipeline: Pipeline) -> None:
    """A counter that somebody else calls like a promised one changes neither labels nor sums of the promised one."""
    failsafe.set_strict(False)
    pipeline.meter_provider.get_meter("theirs").create_counter("jeeves_feature_usage").add(5, {"feature": "export"})
    record_feature_usage("export")
    samples = pipeline.samples()

    assert {(("feature", "export"),): 1} == {
        labels: value for (name, labels), value in samples.items() if name == "jeeves_feature_usage_total"
    }


def test_text_that_has_no_bytes_is_replaced() -> None:
    """Half a surrogate pair would cost the whole page and every batch, so it becomes a question mark."""
    metric = _counter("jeeves.feature.usage", jeeves__feature__name="half \ud800")
    found = _found(Translator(REGISTRY)(_data(metric)))

    assert {("half ?",): 1} == _values(found["jeeves_feature_usage_total"])


def test_two_resources_are_translated_apart() -> None:
    """What one resource has counted is not added to another."""
    one, two = _data(_counter("jeeves.feature.usage", 1)), _data(_counter("jeeves.feature.usage", 2))
    both = MetricsData([*one.resource_metrics, *two.resource_metrics])
    translated = [_found(MetricsData([r])) for r in Translator(REGISTRY)(both).resource_metrics]

    assert [{("unknown",): 1}, {("unknown",): 2}] == [
        _values(each["jeeves_feature_usage_total"]) for each in translated
    ]


# ---- merging gauges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("merge", "expected"), [("sum", 11), ("min", 1), ("max", 6), ("last", 4)])
def test_colliding_gauges_are_merged_as_the_view_says(tmp_path: Path, merge: str, expected: float) -> None:
    """The sum, the least, the most, or the newest (of two as new the greater), in whatever order they come."""
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "profile: mine\n"
        "instruments:\n"
        "  my.level: {kind: gauge, unit: '{thing}', attributes: [a]}\n"
        "metrics:\n"
        "  my_level:\n"
        "    type: gauge\n"
        "    help: Level.\n"
        f"    merge: {merge}\n"
        "    source: {instrument: my.level, take: value}\n",
        encoding="utf-8",
    )
    points = [NumberDataPoint({"a": str(v)}, None, time, v, []) for v, time in ((6, 10), (4, 30), (1, 30))]  # type: ignore[arg-type]  # gauges have no start
    for ordered in (points, points[::-1]):
        found = _found(Translator(load((str(profile),)))(_data(Metric("my.level", "", "", Gauge(ordered)))))

        assert {(): expected} == _values(found["my_level"])
