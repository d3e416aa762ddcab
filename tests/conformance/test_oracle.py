# SPDX-License-Identifier: Apache-2.0
"""Every promised sample equals what hand-written prometheus_client metrics give for the same events."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality
from prometheus_client import CollectorRegistry, generate_latest

from tests.conformance.events import STATUS_OF_GRPC, Clock, Twin
from tests.conformance.oracle import Oracle, assert_same_samples, promised_samples, samples_of_data
from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import Pipeline

DELTA = dict.fromkeys((Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA)


@pytest.fixture
def twin_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pipeline, int], Twin]:
    """Return a factory of twins around a pipeline, by seed."""
    return lambda pipeline, seed: Twin(pipeline, Oracle(), Random(seed), Clock.installed(monkeypatch))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_page_equals_hand_written_metrics_for_random_events(
    pipeline: Pipeline, twin_of: Callable[[Pipeline, int], Twin], seed: int
) -> None:
    """No sample of a promised family is missing, extra or different, scrape after scrape."""
    twin = twin_of(pipeline, seed)
    for _ in range(4):
        twin.play(800)

        assert_same_samples(twin.oracle.samples(), promised_samples(pipeline.page()))


def test_random_events_reach_every_promised_family(
    pipeline: Pipeline, twin_of: Callable[[Pipeline, int], Twin]
) -> None:
    """The events above are no test of families that they never touch."""
    twin = twin_of(pipeline, 1)
    twin.play(800)
    touched = {name for name, _ in promised_samples(pipeline.page())}
    ours = {"jeeves_otel_internal_errors_total", "jeeves_otel_overflowed_measurements_total"}

    assert {
        name if fact.type != "histogram" else f"{name}_count" for name, fact in facts().items() if name not in ours
    } <= touched


def test_accumulated_deltas_equal_hand_written_metrics(
    make_pipeline: Callable[..., Pipeline], twin_of: Callable[[Pipeline, int], Twin]
) -> None:
    """With delta temporality, what a backend adds up is what a scrape would have shown, zeros aside."""
    pipeline = make_pipeline(temporality=DELTA)
    twin = twin_of(pipeline, 4)
    collections = []
    for _ in range(6):
        twin.play(300)
        collections.append(pipeline.translated())
    expected = {key: value for key, value in twin.oracle.samples().items() if value}
    actual = {key: value for key, value in samples_of_data(collections).items() if value}

    assert_same_samples(expected, actual)


def test_delta_intervals_of_a_series_do_not_overlap(
    make_pipeline: Callable[..., Pipeline], twin_of: Callable[[Pipeline, int], Twin]
) -> None:
    """An interval of a series begins where the one before has ended, or later."""
    pipeline = make_pipeline(temporality=DELTA)
    twin = twin_of(pipeline, 5)
    ends: dict[Any, int] = {}
    overlapping, compared = [], 0
    for _ in range(5):
        twin.play(300)
        for metric in _promised(pipeline):
            if getattr(metric.data, "aggregation_temporality", None) is not AggregationTemporality.DELTA:
                continue
            for point in metric.data.data_points:
                key = (metric.name, tuple(point.attributes.items()))
                compared += key in ends
                if point.start_time_unix_nano < ends.get(key, 0) or point.start_time_unix_nano > point.time_unix_nano:
                    overlapping.append(key)
                ends[key] = point.time_unix_nano

    assert [] == overlapping
    assert compared > 100


def test_cumulative_series_never_fall_and_keep_their_start(
    pipeline: Pipeline, twin_of: Callable[[Pipeline, int], Twin]
) -> None:
    """Counters and histogram counts only grow, and a series that has begun does not begin again."""
    twin = twin_of(pipeline, 6)
    held: dict[Any, tuple[float, int]] = {}
    broken = []
    for _ in range(5):
        twin.play(200)
        for metric in _promised(pipeline):
            if facts()[metric.name].type == "gauge":
                continue
            for point in metric.data.data_points:
                key = (metric.name, tuple(point.attributes.items()))
                value = getattr(point, "count", None)
                now = (point.value if value is None else value, point.start_time_unix_nano)
                before = held.get(key, (0, now[1]))
                if now[0] < before[0] or now[1] != before[1]:
                    broken.append((key, before, now))
                held[key] = now

    assert [] == broken


def test_stock_prometheus_reader_exposes_translated_data_under_the_same_names(
    pipeline: Pipeline, twin_of: Callable[[Pipeline, int], Twin]
) -> None:
    """Exported names are fixed points: the stock reader changes no name, label, value or bucket of them."""
    twin = twin_of(pipeline, 7)
    twin.play(1_000)
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    reader._collector._callback = None
    reader._collector.add_metrics_data(pipeline.translated())

    assert_same_samples(twin.oracle.samples(), promised_samples(generate_latest(registry).decode()))


# ---- measurements of third parties -----------------------------------------------------------------------------------


class Sdk:
    """Instruments of third parties in some scope."""

    def __init__(self, pipeline: Pipeline, scope: str) -> None:
        self._meter = pipeline.meter_provider.get_meter(scope)
        self._made: dict[str, Any] = {}

    def record(self, name: str, unit: str, value: float, /, **attributes: object) -> None:
        """Record into a histogram; ``__`` in a keyword is a dot."""
        histogram = self._made.setdefault(name, None) or self._meter.create_histogram(name, unit)
        self._made[name] = histogram
        histogram.record(value, _dotted(attributes))

    def add(self, name: str, unit: str, value: float, /, **attributes: object) -> None:
        """Add to a counter."""
        counter = self._made.setdefault(name, None) or self._meter.create_counter(name, unit)
        self._made[name] = counter
        counter.add(value, _dotted(attributes))


def _dotted(attributes: dict[str, object]) -> dict[str, object]:
    return {key.replace("__", "."): value for key, value in attributes.items()}


def _promised(pipeline: Pipeline) -> list[Any]:
    promised = facts()
    data = pipeline.translated()
    return [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name in promised]


@pytest.fixture
def twin(pipeline: Pipeline, twin_of: Callable[[Pipeline, int], Twin]) -> Twin:
    """Return a twin around the default pipeline."""
    return twin_of(pipeline, 8)


def _check(twin: Twin) -> None:
    assert_same_samples(twin.oracle.samples(), promised_samples(twin.pipeline.page()))


def test_two_scopes_and_colliding_providers_add_up(pipeline: Pipeline, twin: Twin) -> None:
    """Points of two scopes whose labels are equal after mapping become one series, bucket by bucket."""
    for scope in ("a", "b"):
        sdk = Sdk(pipeline, scope)
        for provider in ("azure.ai.openai", "azure.ai.inference"):
            for duration_s in (0.1, 0.7, 31.0):
                sdk.record(
                    "gen_ai.client.operation.duration",
                    "s",
                    duration_s,
                    gen_ai__operation__name="chat",
                    gen_ai__provider__name=provider,
                    gen_ai__request__model="gpt-4o",
                )
                twin.expect_llm("both", provider, "gpt-4o", duration_s, error=None)

    _check(twin)


def test_missing_attributes_get_the_promised_defaults(pipeline: Pipeline, twin: Twin) -> None:
    """A point without attributes is counted under the value that the contract names for their absence."""
    sdk = Sdk(pipeline, "bare")
    sdk.record("gen_ai.client.operation.duration", "s", 1.5, gen_ai__operation__name="chat")
    twin.expect_llm("both", None, None, 1.5, error=None)
    sdk.record("http.server.request.duration", "s", 0.2)
    twin.expect_http("_OTHER", "unmatched", "0", 0.2)
    sdk.record("rpc.server.call.duration", "s", 0.2)
    twin.expect_rpc("/_OTHER", "Unknown", 0.2)
    sdk.record("db.client.operation.duration", "s", 0.2)
    twin.oracle.add("jeeves_db_queries_total", operation="other", status="success")
    twin.oracle.observe("jeeves_db_query_duration_seconds", 0.2, operation="other")
    sdk.record("jeeves.pipeline.duration", "s", 3)
    twin.oracle.add("jeeves_pipeline_executions_total", pipeline="unknown", status="success")
    twin.oracle.observe("jeeves_pipeline_duration_seconds", 3, pipeline="unknown")
    sdk.record("jeeves.agent.duration", "s", 3, error__type="")
    twin.oracle.add("jeeves_agent_executions_total", agent="unknown", status="success")
    twin.oracle.observe("jeeves_agent_duration_seconds", 3, agent="unknown")
    sdk.add("jeeves.errors", "{error}", 2)
    twin.oracle.add("jeeves_errors_total", 2, error_type="unknown", layer="unknown")

    _check(twin)


def test_what_is_no_llm_call_is_not_counted_as_one(pipeline: Pipeline, twin: Twin) -> None:
    """Embeddings, remote agents, cached tokens and points that do not say what they are stay out of the families."""
    sdk = Sdk(pipeline, "others")
    for operation in ("embeddings", "invoke_agent", "execute_tool", None):
        said = {} if operation is None else {"gen_ai__operation__name": operation}
        sdk.record("gen_ai.client.operation.duration", "s", 1.0, **said)
        sdk.record("gen_ai.client.token.usage", "{token}", 10, gen_ai__token__type="input", **said)
    for kind in ("cached", "reasoning", "total"):
        sdk.record("gen_ai.client.token.usage", "{token}", 10, gen_ai__token__type=kind, gen_ai__operation__name="chat")

    _check(twin)


def test_attribute_of_old_conventions_names_the_provider(pipeline: Pipeline, twin: Twin) -> None:
    """gen_ai.system is read where gen_ai.provider.name is absent, and not read where it is present."""
    sdk = Sdk(pipeline, "old")
    name = "gen_ai.client.operation.duration"
    sdk.record(name, "s", 1.0, gen_ai__operation__name="chat", gen_ai__system="anthropic")
    twin.expect_llm("both", "anthropic", None, 1.0, error=None)
    sdk.record(name, "s", 1.0, gen_ai__operation__name="chat", gen_ai__system="old", gen_ai__provider__name="openai")
    twin.expect_llm("both", "openai", None, 1.0, error=None)

    _check(twin)


def test_old_http_duration_in_milliseconds_is_counted_in_seconds(pipeline: Pipeline, twin: Twin) -> None:
    """http.server.duration with its old attributes gives the same samples as the stable metric."""
    sdk = Sdk(pipeline, "old-http")
    for milliseconds in (0, 1, 5, 6, 25, 100, 2_500, 2_501, 10_000, 60_000):
        sdk.record(
            "http.server.duration",
            "ms",
            milliseconds,
            http__method="GET",
            http__target="/users/{id}",
            http__status_code=200,
        )
        twin.expect_http("GET", "/users/{id}", "200", milliseconds / 1_000)

    _check(twin)


def test_old_rpc_duration_in_milliseconds_is_counted_in_seconds(pipeline: Pipeline, twin: Twin) -> None:
    """rpc.server.duration with service, short method and numeric status gives the full method and the status's name."""
    sdk = Sdk(pipeline, "old-rpc")
    for number, status in STATUS_OF_GRPC.values():
        for milliseconds in (1, 2, 5, 50, 2_000, 5_001):
            sdk.record(
                "rpc.server.duration",
                "ms",
                milliseconds,
                rpc__system="grpc",
                rpc__service="engine.v1.Engine",
                rpc__method="Execute",
                rpc__grpc__status_code=number,
            )
            twin.expect_rpc("/engine.v1.Engine/Execute", status, milliseconds / 1_000)

    _check(twin)


@pytest.mark.parametrize(
    ("name", "method", "status"),
    [
        ("rpc.server.call.duration", "rpc__method", "rpc__response__status_code"),
        ("rpc.server.call.duration", "rpc__method", "rpc__status_code"),
        ("grpc.server.call.duration", "grpc__method", "grpc__status"),
    ],
)
def test_every_spelling_of_an_rpc_gives_the_same_series(
    pipeline: Pipeline, twin: Twin, name: str, method: str, status: str
) -> None:
    """The conventions of three years and those of grpcio say the same in different words."""
    sdk = Sdk(pipeline, "rpc")
    for code, (_, promised) in STATUS_OF_GRPC.items():
        sdk.record(name, "s", 0.05, **{method: "engine.v1.Engine/Execute", status: code})
        twin.expect_rpc("/engine.v1.Engine/Execute", promised, 0.05)

    _check(twin)


def test_newer_genai_client_metrics_feed_the_same_families(pipeline: Pipeline, twin: Twin) -> None:
    """gen_ai.client.inference.duration and its token counters are the next spelling of calls and tokens."""
    sdk = Sdk(pipeline, "next")
    who = {"gen_ai__provider__name": "openai", "gen_ai__request__model": "gpt-5"}
    for duration_s in (0.1, 0.5, 45.0):
        sdk.record("gen_ai.client.inference.duration", "s", duration_s, **who)
        sdk.add("gen_ai.client.inference.usage.input_tokens", "{token}", 100, **who)
        sdk.add("gen_ai.client.inference.usage.output_tokens", "{token}", 7, **who)
        twin.expect_llm("both", "openai", "gpt-5", duration_s, error=None)
        twin.expect_tokens("openai", "gpt-5", 100, 7)

    _check(twin)


def test_what_was_recorded_wins_over_what_a_spelling_assumes(pipeline: Pipeline, twin: Twin) -> None:
    """The newer metric leaves the operation out for chats; where it names another one, that holds."""
    sdk = Sdk(pipeline, "next")
    sdk.record("gen_ai.client.inference.duration", "s", 0.1, gen_ai__operation__name="embeddings")
    sdk.record("gen_ai.client.inference.duration", "s", 0.2)
    twin.expect_llm("both", None, None, 0.2, error=None)

    _check(twin)


def test_agent_metric_of_the_genai_utilities_feeds_agent_runs(pipeline: Pipeline, twin: Twin) -> None:
    """gen_ai.invoke_agent.duration is the convention's name for what jeeves.agent.duration measures."""
    sdk = Sdk(pipeline, "util-genai")
    sdk.record("gen_ai.invoke_agent.duration", "s", 0.5, gen_ai__agent__name="planner", error__type="ValueError")
    twin.oracle.add("jeeves_agent_executions_total", agent="planner", status="error")
    twin.oracle.observe("jeeves_agent_duration_seconds", 0.5, agent="planner")

    _check(twin)


def test_two_generations_from_one_scope_count_once(pipeline: Pipeline, twin: Twin) -> None:
    """A library that records old and new at once (http/dup) has measured one request, not two."""
    sdk = Sdk(pipeline, "dup")
    for milliseconds in (5, 250, 9_999):
        sdk.record(
            "http.server.duration", "ms", milliseconds, http__method="GET", http__target="/x", http__status_code=200
        )
        sdk.record(
            "http.server.request.duration",
            "s",
            milliseconds / 1_000,
            http__request__method="GET",
            http__route="/x",
            http__response__status_code=200,
        )
        twin.expect_http("GET", "/x", "200", milliseconds / 1_000)
        who = {"gen_ai__provider__name": "openai", "gen_ai__request__model": "m", "gen_ai__operation__name": "chat"}
        sdk.record("gen_ai.client.operation.duration", "s", 1.0, **who)
        sdk.record("gen_ai.client.inference.duration", "s", 1.0, **who)
        twin.expect_llm("both", "openai", "m", 1.0, error=None)
        sdk.record("gen_ai.client.token.usage", "{token}", 3, gen_ai__token__type="input", **who)
        sdk.add("gen_ai.client.inference.usage.input_tokens", "{token}", 3, **who)
        twin.expect_tokens("openai", "m", 3, None)

    _check(twin)


def test_two_generations_from_two_scopes_count_both(pipeline: Pipeline, twin: Twin) -> None:
    """An old and a new library in one process serve different requests."""
    Sdk(pipeline, "old").record(
        "http.server.duration", "ms", 10, http__method="GET", http__target="/x", http__status_code=200
    )
    new = {"http__request__method": "GET", "http__route": "/x", "http__response__status_code": 200}
    Sdk(pipeline, "new").record("http.server.request.duration", "s", 0.01, **new)
    for _ in range(2):
        twin.expect_http("GET", "/x", "200", 0.01)

    _check(twin)


def test_health_of_two_scopes_is_the_worse_and_queues_add_up(pipeline: Pipeline, twin: Twin) -> None:
    """Gauges that collide are merged as their view says: a check is as bad as its worst report, depths add up."""
    for scope, health, depth in (("a", 1.0, 3), ("b", 0.5, 4)):
        meter = pipeline.meter_provider.get_meter(scope)
        meter.create_gauge("jeeves.health.status", "{status}").set(health, {"jeeves.health.check": "db"})
        meter.create_gauge("jeeves.event_queue.depth", "{event}").set(depth, {"jeeves.queue.name": "q"})
    twin.oracle.set("jeeves_health_status", 0.5, check="db")
    twin.oracle.set("jeeves_event_queue_depth", 7, queue="q")

    _check(twin)
