# SPDX-License-Identifier: Apache-2.0
"""From the recording API of a launched program, over OTLP, through a real Collector: what arrives is what is promised."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jeeves_otel.registry import load
from tests.integration.collectors import Sidecar
from tests.integration.launching import LAUNCHER, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# What the program does; below is what has to arrive.
PROGRAM = """
from jeeves_otel import agent, llm_call, pipeline, record_error, record_http_request, record_interrupt

for number in range(3):
    with pipeline("chat", request_id=f"request-{number}") as run:
        with agent("planner"), llm_call("openai", "gpt-4o") as call:
            call.set_tokens(prompt=10, completion=number)
        if number == 1:
            run.terminate("clarification_required")
try:
    with pipeline("chat"), agent("writer"):
        raise TimeoutError
except TimeoutError:
    record_error("TimeoutError", "engine")
record_interrupt("clarification", "pending")
record_http_request("GET", "/users/{id}", 200, 0.03)
"""
MODEL = {"provider": "openai", "model": "gpt-4o"}
ARRIVES: list[tuple[str, dict[str, str], float]] = [
    ("jeeves_pipeline_executions_total", {"pipeline": "chat", "status": "success"}, 2),
    ("jeeves_pipeline_executions_total", {"pipeline": "chat", "status": "terminated"}, 1),
    ("jeeves_pipeline_executions_total", {"pipeline": "chat", "status": "error"}, 1),
    ("jeeves_pipeline_duration_seconds", {"pipeline": "chat"}, 4),
    ("jeeves_agent_executions_total", {"agent": "planner", "status": "success"}, 3),
    ("jeeves_agent_executions_total", {"agent": "writer", "status": "error"}, 1),
    ("jeeves_agent_duration_seconds", {"agent": "planner"}, 3),
    ("jeeves_agent_duration_seconds", {"agent": "writer"}, 1),
    ("jeeves_llm_calls_total", {**MODEL, "status": "success"}, 3),
    ("jeeves_llm_duration_seconds", MODEL, 3),
    ("jeeves_llm_provider_calls_total", {**MODEL, "status": "success"}, 3),
    ("jeeves_llm_provider_outcomes_total", {**MODEL, "outcome": "success"}, 3),
    ("jeeves_llm_provider_duration_seconds", MODEL, 3),
    ("jeeves_llm_tokens_total", {**MODEL, "type": "prompt"}, 30),
    ("jeeves_llm_tokens_total", {**MODEL, "type": "completion"}, 3),
    ("jeeves_errors_total", {"error_type": "TimeoutError", "layer": "engine"}, 1),
    ("jeeves_interrupts_total", {"kind": "clarification", "status": "pending"}, 1),
    ("jeeves_http_requests_total", {"method": "GET", "path": "/users/{id}", "status_code": "200"}, 1),
    ("jeeves_http_request_duration_seconds", {"method": "GET", "path": "/users/{id}"}, 1),
]


def _launch(settings: dict[str, str], folder: Path) -> None:
    """Run the program under the launcher; it has nothing to say."""
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    ended = subprocess.run(
        [LAUNCHER, sys.executable, str(program)],
        # An instrumentation of a library that the program does not use may still complain about its version.
        env=environment(**settings, JEEVES_OTEL_LOG_LEVEL="warning"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (ended.returncode, ended.stdout + ended.stderr)


@pytest.fixture(scope="module", params=["http/protobuf", "grpc"])
def exported(
    request: pytest.FixtureRequest, collector: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return the requests that a Collector has written after one run of the program, for each protocol."""
    folder = tmp_path_factory.mktemp("collector")
    arrived = folder / "arrived.jsonl"
    overlay = folder / "overlay.yaml"
    overlay.write_text(f"exporters: {{file: {{path: {arrived}}}}}\n", encoding="utf-8")
    sidecar = Sidecar(
        collector, folder, COLLECTOR_TRACES_EXPORTERS="[file]", COLLECTOR_METRICS_EXPORTERS="[file, debug]"
    )
    with sidecar.running(overlay):
        settings = {
            "OTEL_SERVICE_NAME": "under-test",
            "OTEL_EXPORTER_OTLP_ENDPOINT": sidecar.endpoints[request.param],
            "OTEL_EXPORTER_OTLP_PROTOCOL": request.param,
            "OTEL_TRACES_SAMPLER": "always_on",
            "METRICS_PORT": "0",
            "JEEVES_OTEL_UNMAPPED": "drop",
            "JEEVES_OTEL_RUNTIME_METRICS": "false",
        }
        _launch(settings, folder)
    # The Collector has ended, so what it has accepted is in the file.
    return [json.loads(line) for line in arrived.read_text(encoding="utf-8").splitlines()]


def _text(pairs: list[dict[str, Any]]) -> dict[str, str]:
    return {pair["key"]: str(next(iter(pair["value"].values()))) for pair in pairs}


def _metrics(exported: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for request in exported:
        for resource in request.get("resourceMetrics", []):
            for scope in resource["scopeMetrics"]:
                yield from scope["metrics"]


def _values(exported: list[dict[str, Any]]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the last value of every series that is not 0; of histograms their count."""
    found = {}
    for metric in _metrics(exported):
        data = next(metric[kind] for kind in ("sum", "gauge", "histogram") if kind in metric)
        for point in data["dataPoints"]:
            value = float(point.get("count", point.get("asInt", point.get("asDouble", 0))))
            found[metric["name"], frozenset(_text(point.get("attributes", [])).items())] = value
    return {series: value for series, value in found.items() if value}


def test_what_arrives_is_what_is_promised(exported: list[dict[str, Any]]) -> None:
    """Every promised series of what happened arrives with its count, and nothing else does."""
    expected = {(name, frozenset(labels.items())): float(value) for name, labels, value in ARRIVES}

    assert expected == _values(exported)


def test_only_promised_names_arrive(exported: list[dict[str, Any]]) -> None:
    """With unmapped metrics dropped, no name arrives that the registry does not promise."""
    assert set() == {metric["name"] for metric in _metrics(exported)} - set(load().metrics)


def test_histograms_arrive_with_the_promised_buckets(exported: list[dict[str, Any]]) -> None:
    """Boundaries survive the way through the Collector."""
    promised = load().metrics
    bounds = {
        metric["name"]: tuple(point["explicitBounds"])
        for metric in _metrics(exported)
        if "histogram" in metric
        for point in metric["histogram"]["dataPoints"]
    }

    assert bounds
    assert {name: promised[name].buckets for name in bounds} == bounds


def test_sums_arrive_cumulative(exported: list[dict[str, Any]]) -> None:
    """Remote write would drop anything else in silence."""
    kinds = {
        metric[kind]["aggregationTemporality"]
        for metric in _metrics(exported)
        for kind in ("sum", "histogram")
        if kind in metric
    }

    assert {2} == kinds


def test_spans_arrive_in_one_trace_each(exported: list[dict[str, Any]]) -> None:
    """Four pipelines are four traces, with agent and call below, and the service's name on the resource."""
    resources = [resource for request in exported for resource in request.get("resourceSpans", [])]
    spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
    names = sorted(span["name"] for span in spans)

    assert ["agent.process"] * 4 + ["llm.provider.call"] * 3 + ["pipeline.execute"] * 4 == names
    assert 4 == len({span["traceId"] for span in spans})
    assert {"under-test"} == {_text(resource["resource"]["attributes"])["service.name"] for resource in resources}
