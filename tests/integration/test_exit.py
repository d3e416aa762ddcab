# SPDX-License-Identifier: Apache-2.0
"""However a program ends, what it recorded is delivered, and its status and stderr are what they are without us."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.faults import GRPC, HTTP, endpoint_that
from tests.helpers import poll_until
from tests.integration.launching import APPS, LAUNCHER, environment, free_port
from tests.otlp import GrpcReceiver, HttpReceiver, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

# Nothing leaves before the end; nothing of ours is said; the page is another test's.
QUIET = {
    "JEEVES_OTEL_LOG_LEVEL": "warning",
    "METRICS_PORT": "0",
    "OTEL_BSP_SCHEDULE_DELAY": "60000",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "10",
    "OTEL_METRIC_EXPORT_INTERVAL": "60000",
    "OTEL_TRACES_SAMPLER": "always_on",
}
# Works without telemetry too: the API is there, and does nothing.
RECORD = """
import asyncio, atexit, multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from opentelemetry import metrics, trace
def record(times=1):
    for _ in range(times):
        metrics.get_meter("test").create_counter("test.count").add(1)
        metrics.get_meter("test").create_histogram("test.time").record(0.5)
        with trace.get_tracer("test").start_as_current_span("test"):
            pass
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
"""
# {how it ends: (program, how often it has recorded)}
ENDINGS = {
    "by itself, in its first moment": ("record()", 1),
    "sys.exit": ("record(); sys.exit(3)", 1),
    "sys.exit with a text": ("record(); sys.exit('no')", 1),
    "unhandled exception": ("record()\ndef fail(): raise ValueError('x')\nfail()", 1),
    "SIGINT": ("record(); interrupt(); time.sleep(60)", 1),
    "SIGINT that is handled": (
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(5)); record(); interrupt(); time.sleep(60)",
        1,
    ),
    "asyncio.run, cancelled by SIGINT": (
        """
async def main():
    record()
    asyncio.get_running_loop().call_soon(interrupt)
    try:
        await asyncio.sleep(60)
    finally:
        record()
asyncio.run(main())""",
        2,
    ),
    "asyncio.run, with a task left over": (
        """
async def forgotten():
    try:
        await asyncio.sleep(60)
    finally:
        record()
async def main():
    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0)
    record()
asyncio.run(main())""",
        2,
    ),
    "a thread records after main has ended": (
        "threading.Thread(target=lambda: (threading.main_thread().join(), record(5))).start(); record()",
        6,
    ),
    "a pool of threads records until it has nothing to do": (
        "pool = ThreadPoolExecutor(4)\nfor _ in range(20): pool.submit(record)",
        20,
    ),
    "atexit handler raises": ("record(); atexit.register(lambda: 1 / 0)", 1),
    "atexit handler records": ("record(); atexit.register(record)", 2),
    "atexit handler of before the first measurement records": ("atexit.register(record); record()", 2),
    "atexit handler records, and nothing did before": ("atexit.register(record)", 1),
    "atexit handler exits": ("record(); atexit.register(sys.exit, 7)", 1),
    "multiprocessing.Pool, used and left": (
        "with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))\nrecord()",
        1,
    ),
    "multiprocessing.Pool, after the first measurement": (
        "record()\nwith multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))\nrecord()",
        2,
    ),
    "multiprocessing.Pool, spawned": (
        "record()\nwith multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-1, 2]))\nrecord()",
        2,
    ),
    "multiprocessing.Pool, closed and joined": (
        "record()\npool = multiprocessing.Pool(2); print(pool.map(abs, [-1, 2])); pool.close(); pool.join()",
        1,
    ),
}


@dataclass
class Ended:
    """How a program ended: its status, and what it said."""

    status: int
    out: str
    err: str


def ended(program: str, *, measured: bool = True, **settings: str) -> Ended:
    """Run *program*, under the launcher if *measured*, until it ends."""
    done = subprocess.run(
        [*([LAUNCHER] if measured else []), sys.executable, "-c", RECORD + program],
        env=environment(**{**QUIET, **settings}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, re.sub(r"0x[0-9a-f]+", "0x…", done.stderr))  # addresses differ


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    """Return an OTLP endpoint."""
    made = HttpReceiver()
    yield made
    made.stop()


def _recorded(receiver: Receiver) -> dict[str, float]:
    """Return how often each kind of thing was recorded, over all processes."""
    points = receiver.points()
    return {
        "spans": len([span for span in receiver.spans() if span.name == "test"]),
        "counts": sum(value for (name, _), value in points.items() if name == "test.count"),
        "times": sum(value[0] for (name, _), value in points.items() if name == "test.time"),
    }


def _times(number: int) -> dict[str, float]:
    return {"spans": number, "counts": number, "times": number}


@pytest.mark.parametrize("ending", ENDINGS)
def test_everything_is_delivered_and_the_program_ends_as_without_us(ending: str, receiver: HttpReceiver) -> None:
    """Counter, histogram and span of every call are there; status, stdout and stderr are the same."""
    program, times = ENDINGS[ending]
    with_us = ended(program, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    without = ended(program, measured=False)

    assert without == with_us
    assert _times(times) == _recorded(receiver)


@pytest.mark.parametrize(
    "ending",
    ["by itself, in its first moment", "unhandled exception", "SIGINT", "a thread records after main has ended"],
)
def test_everything_is_delivered_over_grpc_too(ending: str) -> None:
    """Its client has threads of its own, which the end must not trip over."""
    receiver = GrpcReceiver()
    program, times = ENDINGS[ending]
    with_us = ended(program, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=GRPC)
    receiver.stop()
    without = ended(program, measured=False)

    assert without == with_us
    assert _times(times) == _recorded(receiver)


def test_os_exit_delivers_nothing_and_says_nothing(receiver: HttpReceiver) -> None:
    """It leaves without anything that could deliver, as its documentation says; so does SIGKILL."""
    program = "record(); sys.stdout.flush(); os._exit(4)"
    with_us = ended(program, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)

    assert Ended(4, "", "") == with_us
    assert receiver.requests == []


def test_what_an_atexit_handler_records_that_was_there_before_us_is_lost(receiver: HttpReceiver) -> None:
    """Handlers run in reverse order: it runs when everything was delivered. Under the launcher none is there before."""
    program = "atexit.register(record)\nfrom jeeves_otel.distro import JeevesConfigurator\nJeevesConfigurator().configure()\nrecord()"
    with_us = ended(program, measured=False, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)

    assert Ended(0, "", "") == with_us
    assert _times(1) == _recorded(receiver)


def test_a_daemon_thread_that_records_on_and_on_holds_up_nothing(receiver: HttpReceiver) -> None:
    """What it records while the last export is on its way is lost; what was there before main ended is not."""
    program = (
        "record(50)\n"
        "def on_and_on():\n"
        "    while True: metrics.get_meter('test').create_counter('test.daemon').add(1)\n"
        "threading.Thread(target=on_and_on, daemon=True).start()"
    )
    with_us = ended(program, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)

    assert Ended(0, "", "") == with_us
    assert _times(50) == _recorded(receiver)


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_ctrl_c_while_it_is_being_delivered_ends_the_wait_without_a_traceback(protocol: str) -> None:
    """Who asks twice is not kept waiting, and learns what is lost in one line."""
    with endpoint_that("hangs", protocol) as receiver:
        child = subprocess.Popen(
            [LAUNCHER, sys.executable, "-c", RECORD + "record(); print('ready', flush=True)"],
            env=environment(
                **QUIET,
                JEEVES_OTEL_EXIT_TIMEOUT="20000",
                OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
                OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        poll_until(lambda: receiver.asked, "the last export to be on its way")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=15)

    assert "Traceback" not in said
    assert "1 span and " in said and len(said.splitlines()) == 1
    assert child.returncode == 0


# ---- servers ---------------------------------------------------------------------------------------------------------

REQUESTS = 20
UVICORN = ["-m", "uvicorn", "serve:app", "--log-level", "warning"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _interrupted(arguments: list[str], *, measured: bool = True, **settings: str) -> Ended:
    """Start a server, send requests, send SIGINT after the last answer to it and its workers, as a terminal does."""
    port = free_port()
    server = subprocess.Popen(
        [*([LAUNCHER] if measured else []), sys.executable, *arguments, "--port", str(port)],
        env={**environment(**{**QUIET, **settings}), "PYTHONPATH": str(APPS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        poll_until(lambda: _answers(f"http://127.0.0.1:{port}/docs"), "the server")
        for item in range(REQUESTS):
            assert _answers(f"http://127.0.0.1:{port}/{item}")
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
    finally:
        server.kill()
    return Ended(server.returncode, out, err)


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_delivers_everything_after_sigint(workers: int, receiver: HttpReceiver) -> None:
    """Spans of every answered request; it ends as it does without us."""
    arguments = [*UVICORN, "--workers", str(workers)]
    with_us = _interrupted(arguments, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    without = _interrupted(arguments, measured=False)

    assert without.status == with_us.status
    assert without.err.count("Traceback") == with_us.err.count("Traceback")
    assert REQUESTS == len([span for span in receiver.spans() if span.name == "GET /{item}"])
    assert REQUESTS <= receiver.total("jeeves_http_requests_total")
