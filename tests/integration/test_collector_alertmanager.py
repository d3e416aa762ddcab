# SPDX-License-Identifier: Apache-2.0
"""Exceptions on their way through the real Collector to a real Alertmanager: what is an alert, how often, and what is none."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from jeeves_otel.demo import arrivals, parts
from tests.helpers import poll_until
from tests.integration.collectors import resource, send, span, spans, text
from tests.integration.launching import launched
from tests.integration.prometheus_server import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIGURATION = parts.BUNDLE / "alertmanager.yaml"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[parts.Ports]:
    """Yield where all parts of the bundle listen; tests have services of their own."""
    programs = {part: parts.cached(part) or pytest.skip(f"make {part}") for part in parts.PARTS}
    made = parts.Ports.free()
    with ExitStack() as stack:
        parts.start(stack, programs, made, tmp_path_factory.mktemp("bundle"))
        yield made


def _alerts(ports: parts.Ports, service: str) -> list[dict[str, Any]]:
    found = arrivals.alerts(f"http://127.0.0.1:{ports.alertmanager}")
    return [each for each in found if each["labels"]["service"] == service]


def _send_exception(
    ports: parts.Ports, service: str, code: Any = Status.STATUS_CODE_ERROR, kind: str = "TimeoutError"
) -> None:
    event = Span.Event(name="exception", attributes=[text("exception.type", kind)])
    made = span(1, events=[event], status=Status(code=code))
    assert send(SimpleNamespace(http=ports.otlp_http), spans(resource(service_name=service), made))  # type: ignore[arg-type]  # its port is enough


def _run_raising(ports: parts.Ports, service: str, sampler: str) -> None:
    """Run the application until it has ended, and so delivered everything."""
    with launched(
        "raising.py",
        OTEL_SERVICE_NAME=service,
        OTEL_TRACES_SAMPLER=sampler,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{ports.otlp_http}",
        METRICS_PORT="0",
    ) as app:
        app.wait_ready()
        assert 0 == app.finish()


def test_an_exception_in_sampled_traces_is_one_alert_with_name_service_and_severity(ports: parts.Ports) -> None:
    """Six spans of two traces have recorded it: tool, agent and pipeline of both; all say the same, so it is one."""
    _run_raising(ports, "sampled", "always_on")
    (alert,) = poll_until(lambda: _alerts(ports, "sampled"), "the alert")
    _send_exception(ports, "after-sampled")
    poll_until(lambda: _alerts(ports, "after-sampled"), "an alert that was sent later")
    traces = poll_until(lambda: arrivals.traces(f"http://127.0.0.1:{ports.jaeger}", "sampled", 10), "the traces")
    recorded = [
        (each["operationName"], log["fields"])
        for trace in traces
        for each in trace["spans"]
        for log in each["logs"]
        if {"key": "event", "type": "string", "value": "exception"} in log["fields"]
    ]

    assert {
        "alertname": "ServiceException",
        "service": "sampled",
        "exception_type": "LookupError",
        "severity": "critical",
        "event_name": "exception",
    } == alert["labels"]
    assert [alert["fingerprint"]] == [each["fingerprint"] for each in _alerts(ports, "sampled")]
    assert sorted(["execute_tool search", "agent.process", "pipeline.execute"] * 2) == sorted(n for n, _ in recorded)
    assert alert["annotations"]["TraceID"] in {trace["traceID"] for trace in traces}
    assert "private" not in str(alert)


def test_an_exception_in_unsampled_traces_is_counted_and_no_alert(ports: parts.Ports) -> None:
    """Which is why what must not be missed is a rule on the counter, and not one of these alerts."""
    prometheus = Prometheus(ports.prometheus)
    _run_raising(ports, "unsampled", "always_off")
    errors = poll_until(lambda: prometheus.query('jeeves_errors_total{job="unsampled"} > 0'), "the counter")
    failed = prometheus.query('sum by (status) (jeeves_pipeline_executions_total{job="unsampled"} > 0)')
    _send_exception(ports, "after-unsampled")
    poll_until(lambda: _alerts(ports, "after-unsampled"), "an alert that was sent later")

    assert [("LookupError", "engine", 2.0)] == [
        (dict(labels)["error_type"], dict(labels)["layer"], value) for labels, value in errors.items()
    ]
    assert {(("status", "error"),): 2.0} == failed
    assert [] == _alerts(ports, "unsampled")


def test_an_exception_that_one_span_survives_and_another_does_not_is_told_once(ports: parts.Ports) -> None:
    """Two severities are two alerts, of which the milder one is silent."""
    _send_exception(ports, "twice", Status.STATUS_CODE_UNSET)
    _send_exception(ports, "twice", Status.STATUS_CODE_ERROR)

    def told() -> dict[str, str] | None:
        states = {each["labels"]["severity"]: each["status"]["state"] for each in _alerts(ports, "twice")}
        return states if len(states) == 2 and "unprocessed" not in states.values() else None

    assert {"critical": "active", "warning": "suppressed"} == poll_until(told, "both alerts")


def test_a_secret_is_no_label(ports: parts.Ports) -> None:
    """Some languages have no class of an exception, and write what they like."""
    _send_exception(ports, "secret", kind="the key sk-proj-abcdefghijklmnop1234 is wrong")
    (alert,) = poll_until(lambda: _alerts(ports, "secret"), "the alert")

    assert "the key **** is wrong" == alert["labels"]["exception_type"]
    assert "sk-proj" not in str(alert)


def test_the_configuration_of_alertmanager_is_valid_and_tells_nobody() -> None:
    """Of exceptions, whoever else is connected."""
    amtool = Path(parts.cached("alertmanager") or pytest.skip("make alertmanager")).with_name("amtool")
    checked = subprocess.run([amtool, "check-config", CONFIGURATION], capture_output=True, text=True, check=True)
    labels = ["alertname=ServiceException", "severity=critical", "service=any"]
    routed = subprocess.run(
        [amtool, "config", "routes", "test", f"--config.file={CONFIGURATION}", *labels],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "SUCCESS" in checked.stdout
    assert "nobody\n" == routed.stdout
