# SPDX-License-Identifier: Apache-2.0
"""Ten thousand values in one label: series, memory and the other labels hold, and the loss is counted."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from jeeves_otel.providers import _observe_ourselves
from tests.contract import assert_page_keeps_contract, facts
from tests.helpers import counts_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import Pipeline

VALUES = 10_000
MOST_VALUES = 200 + 3 + 1  # the widest limit of the contract, known values, and `other`
MOST_BYTES = 64 * 1_024  # what may stay behind of 5,000 more values; one value kept by name would cost more than 300


class Flood(NamedTuple):
    """Where a value goes in: an instrument, the attribute that is flooded, attributes that stay, and one that alternates."""

    family: str
    label: str
    instrument: str
    attribute: str
    attributes: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, never changed
    kind: str = "histogram"
    unit: str = "s"


CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m"}
LLM = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
HTTP = {"http.request.method": "GET", "http.route": "/x", "http.response.status_code": 200}
STAGES = {"jeeves.pipeline.name": "p", "jeeves.routing.from": "a", "jeeves.routing.to": "b"}
FLOODS = [
    Flood("jeeves_pipeline_executions_total", "pipeline", "jeeves.pipeline.duration", "jeeves.pipeline.name"),
    Flood("jeeves_pipeline_duration_seconds", "pipeline", "jeeves.pipeline.duration", "jeeves.pipeline.name"),
    Flood("jeeves_agent_executions_total", "agent", "jeeves.agent.duration", "gen_ai.agent.name"),
    Flood("jeeves_agent_duration_seconds", "agent", "gen_ai.invoke_agent.duration", "gen_ai.agent.name"),
    *(
        Flood(f"jeeves_llm{layer}_{what}", label, LLM, attribute, CHAT)
        for layer in ("", "_provider")
        for what in ("calls_total", "duration_seconds")
        for label, attribute in (("provider", "gen_ai.provider.name"), ("model", "gen_ai.request.model"))
    ),
    *(
        Flood(
            "jeeves_llm_tokens_total", label, TOKENS, attribute, {**CHAT, "gen_ai.token.type": "input"}, unit="{token}"
        )
        for label, attribute in (("provider", "gen_ai.provider.name"), ("model", "gen_ai.request.model"))
    ),
    Flood("jeeves_grpc_requests_total", "method", "rpc.server.call.duration", "rpc.method"),
    Flood("jeeves_grpc_request_duration_seconds", "method", "rpc.server.call.duration", "rpc.method"),
    Flood("jeeves_http_requests_total", "path", "http.server.request.duration", "http.route", HTTP),
    Flood(
        "jeeves_http_requests_total", "status_code", "http.server.request.duration", "http.response.status_code", HTTP
    ),
    Flood("jeeves_http_request_duration_seconds", "path", "http.server.request.duration", "http.route", HTTP),
    Flood("orchestrator_requests_total", "outcome", "jeeves.orchestrator.duration", "jeeves.orchestrator.outcome"),
    Flood(
        "meta_validator_issue_detections_total",
        "issue_type",
        "jeeves.validation.issues",
        "jeeves.validation.issue.type",
        kind="counter",
    ),
    Flood(
        "workflow_retry_reasons_total",
        "issue_type",
        "jeeves.workflow.retries",
        "jeeves.retry.reason",
        {"jeeves.retry.type": "planner_retry"},
        kind="counter",
    ),
    *(
        Flood("jeeves_routing_decisions_total", label, "jeeves.routing.decisions", attribute, STAGES, kind="counter")
        for label, attribute in zip(("pipeline", "from_stage", "to_stage"), STAGES, strict=True)
    ),
    Flood("jeeves_feature_usage_total", "feature", "jeeves.feature.usage", "jeeves.feature.name", kind="counter"),
    Flood("jeeves_errors_total", "error_type", "jeeves.errors", "error.type", {"jeeves.layer": "x"}, kind="counter"),
    Flood("jeeves_errors_total", "layer", "jeeves.errors", "jeeves.layer", {"error.type": "X"}, kind="counter"),
    Flood("jeeves_event_queue_depth", "queue", "jeeves.event_queue.depth", "jeeves.queue.name", kind="gauge"),
    Flood("jeeves_health_status", "check", "jeeves.health.status", "jeeves.health.check", kind="gauge"),
]
ADDING = [flood for flood in FLOODS if flood.kind != "gauge"]


def _name(flood: Flood) -> str:
    return f"{flood.family}-{flood.label}"


def _recorder(pipeline: Pipeline, flood: Flood) -> Callable[[int], None]:
    """Return what records the n-th value; every third is an error where there is a status."""
    meter = pipeline.meter_provider.get_meter("flood")
    create, record = {
        "histogram": ("create_histogram", "record"),
        "counter": ("create_counter", "add"),
        "gauge": ("create_gauge", "set"),
    }[flood.kind]
    measure = getattr(getattr(meter, create)(flood.instrument, flood.unit), record)
    has_status = facts()[flood.family].labels.get("status") == ("success", "error")

    def one(number: int) -> None:
        failed = {"error.type": "X"} if has_status and number % 3 == 0 else {}
        measure(1, {**flood.attributes, **failed, flood.attribute: f"value-{number}"})

    return one


def test_every_open_label_of_the_contract_is_flooded() -> None:
    """A label that is missing from the table above would not be tested."""
    open_labels = {
        (name, label)
        for name, fact in facts("promised", "proposed").items()
        for label, values in fact.labels.items()
        if values is None
    }

    assert open_labels == {(flood.family, flood.label) for flood in FLOODS}


@pytest.mark.parametrize("flood", ADDING, ids=_name)
def test_flood_of_one_label_is_bounded_and_loses_nothing_else(pipeline: Pipeline, flood: Flood) -> None:
    """So many values by name, the rest under `other`; every count is there, with its other labels, and counted as lost."""
    _observe_ourselves(pipeline.meter_provider, pipeline.bounds.overflowed)
    record = _recorder(pipeline, flood)
    for number in range(VALUES):
        record(number)
    page = pipeline.page()
    found = assert_page_keeps_contract(page, complete=[flood.family])
    samples = pipeline.samples()
    sample = flood.family if facts()[flood.family].type == "counter" else f"{flood.family}_count"
    by_value = counts_by(samples, sample, flood.label)
    overflow = "/other" if flood.label == "method" else "other"
    lost = {"attribute": flood.attribute}

    assert len(by_value) <= MOST_VALUES
    assert sum(by_value.values()) == VALUES
    assert by_value[overflow] >= VALUES - MOST_VALUES
    assert by_value[overflow] == samples["jeeves_otel_overflowed_measurements_total", tuple(lost.items())]
    assert len(found[flood.family].samples) <= MOST_VALUES * 17 * 2
    if facts()[flood.family].labels.get("status") == ("success", "error"):
        assert {"error": 3_334, "success": 6_666} == counts_by(samples, sample, "status")


@pytest.mark.parametrize("flood", [flood for flood in FLOODS if flood.kind == "gauge"], ids=_name)
def test_flood_of_a_level_is_bounded(pipeline: Pipeline, flood: Flood) -> None:
    """Levels do not add up, but their series are bounded in the same way."""
    record = _recorder(pipeline, flood)
    for number in range(VALUES):
        record(number)
    values = counts_by(pipeline.samples(), flood.family, flood.label)

    assert len(values) <= MOST_VALUES
    assert {"value-0", "other"} <= set(values)


@pytest.mark.parametrize("attribute", ["http.route", "http.request.method", "http.response.status_code"])
def test_flood_in_old_spellings_is_bounded(pipeline: Pipeline, attribute: str) -> None:
    """The attributes of older conventions have bounds of their own."""
    old = {
        "http.route": "http.target",
        "http.request.method": "http.method",
        "http.response.status_code": "http.status_code",
    }
    histogram = pipeline.meter_provider.get_meter("old").create_histogram("http.server.duration", "ms")
    for number in range(VALUES):
        histogram.record(1, {old[attribute]: f"value-{number}"})
    data = pipeline.reader.get_metrics_data()
    assert data is not None

    assert len(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points) <= MOST_VALUES


def test_memory_is_flat_under_a_flood(pipeline: Pipeline) -> None:
    """After 5,000 values in every open label, 5,000 more leave next to nothing behind."""
    recorders = [
        _recorder(pipeline, flood) for flood in {each.instrument + each.attribute: each for each in FLOODS}.values()
    ]
    for record in recorders:
        for number in range(VALUES // 2):
            record(number)
    pipeline.page()
    tracemalloc.start()
    try:
        for record in recorders:
            for number in range(VALUES // 2, VALUES):
                record(number)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert grown < MOST_BYTES
