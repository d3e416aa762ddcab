# SPDX-License-Identifier: Apache-2.0
"""Servers, with and without workers: everything is delivered, and who only supervises has nothing of ours."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import poll_until
from tests.integration.launching import free_port
from tests.integration.servers import SERVERS, SUPERVISED, answers, command, process
from tests.otlp import HttpReceiver, Receiver, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

REQUESTS = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return an OTLP endpoint."""
    yield from running(HttpReceiver)


def _served(server: str, number: int = signal.SIGTERM, **options: Any) -> tuple[int, str]:
    """Start *server*, send requests, end it after the last answer; return exit status and what was said."""
    port = free_port()
    with process(command(server, port), **options) as running_server:
        poll_until(lambda: answers(f"http://127.0.0.1:{port}/0"), "the server")
        for item in range(1, REQUESTS):
            assert answers(f"http://127.0.0.1:{port}/{item}")
        running_server.send_signal(number)
        _, said = running_server.communicate(timeout=30)
        return running_server.returncode, said


@pytest.mark.parametrize("server", SERVERS)
def test_everything_answered_is_delivered_before_a_server_ends(server: str, receiver: Receiver) -> None:
    """Spans and counts of every request, from every worker; the exit status is as without us."""
    status, said = _served(server, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    plain, _ = _served(server, measured=False)

    assert REQUESTS == sum(span.name == "GET /{item}" for span in receiver.spans()), said
    assert REQUESTS == receiver.total("jeeves_http_requests_total")
    assert plain == status
    assert "Traceback" not in said


@pytest.mark.parametrize("server", SUPERVISED)
def test_a_supervisor_has_no_thread_no_connection_and_no_port_of_ours(server: str, receiver: Receiver) -> None:
    """A worker has the page."""
    port, metrics_port = free_port(), free_port()
    settings = {"METRICS_PORT": str(metrics_port), "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    with process(command(server, port), measured=False) as plain:
        poll_until(lambda: answers(f"http://127.0.0.1:{port}/0"), "the server")
        without_us = _threads(plain.pid)
    with process(command(server, port), **settings) as supervisor:
        poll_until(lambda: answers(f"http://127.0.0.1:{metrics_port}/metrics"), "the page")
        poll_until(lambda: answers(f"http://127.0.0.1:{port}/0"), "the server")

        assert without_us == _threads(supervisor.pid)
        assert metrics_port not in _listening(supervisor.pid)
        supervisor.terminate()
        supervisor.communicate(timeout=30)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _listening(pid: int) -> set[int]:
    """Return the TCP ports of IPv4 on which the process *pid* listens."""
    sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
