# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: what was answered before it is delivered, and the process ends as it would without us."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.launching import LAUNCHER, environment, free_port
from tests.integration.servers import process
from tests.otlp import HttpReceiver, Receiver, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return an OTLP endpoint."""
    yield from running(HttpReceiver)


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
    "has closed all descriptors": "import os, threading; os.closerange(3, 256); threading.Event().wait()",
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


def test_a_child_whose_handler_calls_its_parents_is_delivered_and_ends_and_its_parent_does_not(
    receiver: Receiver,
) -> None:
    """Handlers are inherited with all that they call; the child waits where a lock may be held."""
    script = (
        "import os, signal, threading\n"
        "from jeeves_otel import record_error\n"
        "before, ready = signal.getsignal(signal.SIGTERM), os.pipe()\n"
        "signal.signal(signal.SIGTERM, lambda *given: before(*given))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    if {measures}: record_error('Test', 'child')\n"
        "    os.write(ready[1], b'.')\n"
        "    threading.Event().wait()\n"
        "os.read(ready[0], 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "threading.Event().wait(0.1)\n"  # the parent's thread would have sent it a signal by then
    )
    for measures in (False, True):
        done = subprocess.run(
            [LAUNCHER, sys.executable, "-c", script.format(measures=measures)],
            env=environment(METRICS_PORT="0", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

        assert (0, f"{-signal.SIGTERM}\n") == (done.returncode, done.stdout)
    errors = {
        dict(labels)["layer"]: value
        for (name, labels), value in receiver.points().items()
        if name == "jeeves_errors_total"
    }
    assert errors == {"child": 1}


def test_an_application_that_closes_all_descriptors_has_no_thread_that_works_in_vain() -> None:
    """It closes those of the page, too, which is gone then; nobody tries to accept there without end."""
    script = (
        "import os, threading, time\n"
        "os.closerange(3, 256)\n"
        "began = time.process_time()\n"
        "threading.Event().wait(1)\n"
        "print(time.process_time() - began, flush=True)\n"
    )
    settings = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"}
    with process(["-c", script], METRICS_PORT=str(free_port()), **settings) as child:
        used_s, said = child.communicate(timeout=30)

    assert float(used_s) < 0.2
    assert "Traceback" not in said


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
