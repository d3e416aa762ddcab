# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: what was answered before it is delivered, and the process ends as it would without us."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import poll_until
from tests.integration.launching import APPS, LAUNCHER, environment, free_port
from tests.otlp import HttpReceiver, Receiver, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

REQUESTS = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return an OTLP endpoint."""
    yield from running(HttpReceiver)


@contextmanager
def process(arguments: list[str], *, measured: bool = True, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of Python, under the launcher if *measured*, and end it afterwards."""
    quiet = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "60000", "METRICS_PORT": "0"}
    child = subprocess.Popen(
        [*([LAUNCHER] if measured else []), sys.executable, *arguments],
        env={**environment(OTEL_TRACES_SAMPLER="always_on", **quiet, **settings), "PYTHONPATH": str(APPS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _served(arguments: list[str], **options: Any) -> tuple[int, str]:
    """Start a server, send requests, send SIGTERM after the last answer; return exit status and what was said."""
    port = free_port()
    with process([*arguments, "--port", str(port)], **options) as server:
        poll_until(lambda: _answers(f"http://127.0.0.1:{port}/docs"), "the server")
        for item in range(REQUESTS):
            assert _answers(f"http://127.0.0.1:{port}/{item}")
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=30)
        return server.returncode, said


UVICORN = ["-m", "uvicorn", "serve:app", "--log-level", "warning"]


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_answered_is_delivered_by_uvicorn_before_it_ends(workers: int, receiver: Receiver) -> None:
    """Acknowledged means delivered: spans and counts of every request, from every worker; status as without us."""
    arguments = [*UVICORN, "--workers", str(workers)]
    status, said = _served(arguments, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    plain, _ = _served(arguments, measured=False)
    served = [span for span in receiver.spans() if span.name == "GET /{item}"]

    assert REQUESTS == len(served)
    assert plain == status
    assert "Traceback" not in said


SCRIPT = """
import signal, sys, time
from jeeves_otel import record_error
{handler}
for _ in range(7):
    record_error("Test", "engine")
print("ready", flush=True)
{wait}
"""
WAITS = {
    "sleeps": "time.sleep(60)",
    "waits": "import threading; threading.Event().wait()",
    "works": "while True: record_error('Test', 'busy')",
    "logs": "import logging; logging.basicConfig()\nwhile True: logging.getLogger('x').debug('y')",
}


def _terminated(script: str, *, measured: bool, **settings: str) -> tuple[int, str]:
    with process(["-c", script], measured=measured, **settings) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=30)
        return child.returncode, said


@pytest.mark.parametrize("wait", WAITS)
def test_a_plain_script_is_delivered_and_ends_by_the_signal(wait: str, receiver: Receiver) -> None:
    """Whatever it was doing: nothing waits for a lock that the interrupted code holds."""
    script = SCRIPT.format(handler="", wait=WAITS[wait])
    status, said = _terminated(script, measured=True, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    errors = {labels: value for (name, labels), value in receiver.points().items() if name == "jeeves_errors_total"}

    assert -signal.SIGTERM == status
    assert errors[("error_type", "Test"), ("layer", "engine")] == 7
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "handler",
    [
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); import threading; threading.Timer(0.5, lambda: __import__('os')._exit(4)).start()",
    ],
    ids=["exits", "ignores"],
)
def test_a_handler_of_the_application_is_its_own(handler: str, receiver: Receiver) -> None:
    """What it does with the signal stays as it was."""
    script = SCRIPT.format(handler=handler, wait="time.sleep(60)")
    with_us, _ = _terminated(script, measured=True, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    without, _ = _terminated(script, measured=False)

    assert without == with_us


def test_an_application_that_asks_for_the_handler_before_it_gets_one_that_ends_the_process(receiver: Receiver) -> None:
    """Handlers are chained: who calls the previous one, as is the custom, is delivered and ends."""
    chain = (
        "before = signal.getsignal(signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, lambda *given: before(*given) if callable(before) else sys.exit(9))"
    )
    script = SCRIPT.format(handler=chain, wait="time.sleep(60)")
    status, _ = _terminated(script, measured=True, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)

    assert -signal.SIGTERM == status
    assert "jeeves_errors_total" in receiver.metrics()


def test_an_endpoint_that_never_answers_delays_the_end_by_the_time_that_was_set() -> None:
    """Bounded, and said in one line."""
    script = SCRIPT.format(handler="", wait="time.sleep(60)")
    with HangingEndpoint() as endpoint:
        status, said = _terminated(
            script, measured=True, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, JEEVES_OTEL_EXIT_TIMEOUT="300"
        )

    assert -signal.SIGTERM == status
    assert said.count("were not delivered within 0.3 s") == 1


def test_a_forked_child_ends_at_once() -> None:
    """The threads that would deliver are its parent's."""
    script = (
        "import os, signal, time\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    done = subprocess.run(
        [LAUNCHER, sys.executable, "-c", script],
        env=environment(METRICS_PORT="0", OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert f"{-signal.SIGTERM}\n" == done.stdout


def test_it_can_be_switched_off(receiver: Receiver) -> None:
    """The signal then ends the process at once, as it does without us."""
    status, _ = _terminated(
        SCRIPT.format(handler="", wait="time.sleep(60)"),
        measured=True,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        JEEVES_OTEL_FLUSH_ON_SIGTERM="false",
    )

    assert -signal.SIGTERM == status
    assert receiver.requests == []


class HangingEndpoint:
    """Accepts connections and never answers."""

    def __enter__(self) -> str:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()
