# SPDX-License-Identifier: Apache-2.0
"""What users type does not leave: not with spans, metrics or log records, not on the page, unless it is asked for."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from http.client import IncompleteRead
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.sync.client import connect

from tests.helpers import samples_of
from tests.integration.launching import free_port, get, launched
from tests.integration.llm_servers import CANARY, llm_servers
from tests.otlp import HttpReceiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

HEADERS = {
    "X-Secret": CANARY,
    "Cookie": f"session={CANARY}",
    "Authorization": f"Bearer {CANARY}",
    "User-Agent": CANARY,
    "X-Forwarded-For": CANARY,
    "Referer": f"http://localhost/{CANARY}",
    "baggage": f"user={CANARY}",
    "tracestate": "vendor=1",
}


class Left:
    """What has left the process, as text, by kind."""

    def __init__(self, receiver: HttpReceiver, page: str) -> None:
        self.page = page
        self.traces = self._all(receiver, ExportTraceServiceRequest)
        self.metrics = self._all(receiver, ExportMetricsServiceRequest)
        self.logs = self._all(receiver, ExportLogsServiceRequest)
        self.span_names = {span.name for span in receiver.spans()}

    @staticmethod
    def _all(receiver: HttpReceiver, kind: type) -> str:
        return "\n".join(str(request) for request in receiver.requests if isinstance(request, kind))


def _ask(url: str) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=30) as response:
            response.read()
    except urllib.error.HTTPError as error:
        error.close()
    except IncompleteRead:
        pass  # the answer that breaks off


def _play(folder: Path, **settings: str) -> Left:
    """Run the service, tell it the secret in every way, and return what has left."""
    receiver, port, metrics_port = HttpReceiver(), free_port(), free_port()
    try:
        with llm_servers() as models:
            environment = {
                "PORT": str(port),
                "METRICS_PORT": str(metrics_port),
                "LLM_URL": models.url,
                "DATABASE_URL": f"sqlite:///{folder / 'canary.db'}",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_LOGS_EXPORTER": "otlp",
                "OTEL_TRACES_SAMPLER": "always_on",
                "JEEVES_OTEL_EXIT_TIMEOUT": "20000",
                **settings,
            }
            with launched("canary.py", **environment) as app:
                app.wait_for_page(f"http://127.0.0.1:{port}/docs")
                for path in ("ask", "crash", "break"):
                    _ask(f"http://127.0.0.1:{port}/{path}?q={CANARY}")
                with connect(f"ws://127.0.0.1:{port}/talk?q={CANARY}") as socket:
                    assert socket.recv() == CANARY
                page = get(f"http://127.0.0.1:{metrics_port}/metrics")
                app.process.send_signal(signal.SIGINT)
                app.process.wait(60)
        return Left(receiver, page)
    finally:
        receiver.stop()


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Return what leaves when nothing is set."""
    return _play(tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="module")
def with_everything(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Return what leaves when every kind of content is asked for."""
    return _play(tmp_path_factory.mktemp("all"), JEEVES_OTEL_CONTENT="all")


@pytest.mark.parametrize("kind", ["traces", "metrics", "logs", "page"])
def test_the_canary_is_nowhere_in_what_leaves(kind: str, by_default: Left) -> None:
    """Prompts, answers, tool arguments, SQL, headers, baggage, metadata, query strings, words of exceptions."""
    left = getattr(by_default, kind)

    assert len(left) > 1_000
    assert [] == [line for line in left.splitlines() if CANARY in line]


@pytest.mark.parametrize("kind", ["traces", "logs"])
def test_the_canary_leaves_when_it_is_asked_for(kind: str, with_everything: Left) -> None:
    """Or the test above would hold for a service that says nothing."""
    assert CANARY in getattr(with_everything, kind)


@pytest.mark.parametrize(
    "key", ["gen_ai.input.messages", "gen_ai.tool.definitions", "db.query.text", "url.query", "exception.message"]
)
def test_each_kind_that_is_made_here_leaves_when_it_is_asked_for(
    key: str, by_default: Left, with_everything: Left
) -> None:
    """By the name of its attribute: there with everything, absent by default."""
    there = [f'"{key}"' in left.traces + left.logs for left in (with_everything, by_default)]

    assert there == [True, False]


@pytest.mark.parametrize("kind", ["metrics", "page"])
def test_metrics_never_hold_content(kind: str, with_everything: Left) -> None:
    """Labels are names of bounded number, whatever is asked for."""
    assert CANARY not in getattr(with_everything, kind)


def test_everything_was_measured_nevertheless(by_default: Left) -> None:
    """Each edge has been through its endings."""
    names = {name for (name, _), value in samples_of(by_default.page).items() if value}

    assert [] == [
        name
        for name in (
            "jeeves_http_requests_total",
            "jeeves_grpc_requests_total",
            "jeeves_llm_calls_total",
            "jeeves_db_queries_total",
            "jeeves_agent_executions_total",
            "jeeves_tool_calls_total",
        )
        if name not in names
    ]
    assert {"GET /ask", "GET /crash", "GET /break", "pipeline.execute", "execute_tool look_up"} <= by_default.span_names
    assert "the pipeline has failed" in by_default.logs
