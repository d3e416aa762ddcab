# SPDX-License-Identifier: Apache-2.0
"""Endpoints that misbehave: the application does not wait for them, and what they do not take is counted and said."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import FAULTS, GRPC, HTTP, PROTOCOLS, FaultyGrpc, FaultyHttp, endpoint_that
from tests.helpers import poll_until
from tests.integration.endpoints import SPANS, application, script, settings_for
from tests.integration.launching import LAUNCHER

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOLERANCE_S = 0.7  # for a machine that has much else to do
# Those that have not taken everything after half a second.
BAD = [fault for fault in FAULTS if fault != "good"]


@pytest.mark.parametrize("terminated", [False, True], ids=["exit", "SIGTERM"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_endpoint_delays_the_end_by_more_than_was_set(fault: str, protocol: str, terminated: bool) -> None:
    """The exit status stays, and nothing of it is a traceback."""
    seen = script(fault, protocol, terminated=terminated, JEEVES_OTEL_EXIT_TIMEOUT="500")

    assert seen.exit_s < 0.5 + TOLERANCE_S
    assert (-signal.SIGTERM if terminated else 0) == seen.status
    assert not any("Traceback" in line for line in seen.lines)
    if fault == "good":
        assert (SPANS, []) == (seen.delivered, seen.lines)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", BAD)
def test_what_is_lost_at_the_end_is_said_in_one_line_with_its_number(fault: str, protocol: str) -> None:
    """One line for all signals: how many spans and metric points, where to, and why, as far as it is known."""
    seen = script(fault, protocol, terminated=False, JEEVES_OTEL_EXIT_TIMEOUT="500")
    (line,) = seen.lines

    assert SPANS == seen.said()
    assert re.search(r"7 spans and \d+ metric points were not delivered", line)
    assert f"to OTLP {protocol} http" in line


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_application_whose_endpoint_hangs_answers_as_fast_and_loses_nothing_that_it_does_not_count(
    protocol: str,
) -> None:
    """Every span is either at the receiver or in what was said; no request waits for the endpoint."""
    seen = application("hangs", protocol, requests=900, JEEVES_OTEL_EXIT_TIMEOUT="500")

    assert seen.sent == seen.said()
    assert seen.p99_ms < 250
    assert seen.exit_s < 0.5 + TOLERANCE_S


# ---- while it runs ---------------------------------------------------------------------------------------------------

LOOP = """
import resource, sys
from opentelemetry import metrics, trace
from jeeves_otel import failsafe
count = metrics.get_meter("test").create_counter("test.count")
for line in sys.stdin:
    for _ in range(int(line)):
        count.add(1)
        with trace.get_tracer("test").start_as_current_span("test"):
            pass
    print(failsafe.counts().get("lost.traces", 0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


class Loop:
    """A program that records as often as it is told to."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.lost = self.memory_kib = 0

    def record(self, times: int) -> None:
        """Record; note how many spans were lost so far, and the most memory that the process has had."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(f"{times}\n")
        self.child.stdin.flush()
        self.lost, self.memory_kib = (int(word) for word in self.child.stdout.readline().split())

    def end(self) -> list[str]:
        """Let it end; return what it said."""
        _, said = self.child.communicate(timeout=60)
        return said.splitlines()


@contextmanager
def looping(endpoint: str, protocol: str, **settings: str) -> Iterator[Loop]:
    """Run a `Loop`, whose exports are quick to fail and to come."""
    quick = {
        "JEEVES_OTEL_EXIT_TIMEOUT": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
    }
    child = subprocess.Popen(
        [LAUNCHER, sys.executable, "-c", LOOP],
        env=settings_for(protocol, endpoint, **{**quick, **settings}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Loop(child)
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_full_queue_drops_is_counted_span_by_span_said_once_and_takes_no_memory(protocol: str) -> None:
    """2,048 wait and 512 are on their way; the others are lost, and the SDK's own line, every 20 s, is not written."""
    with (
        endpoint_that("hangs", protocol) as receiver,
        looping(receiver.endpoint, protocol, OTEL_EXPORTER_OTLP_TIMEOUT="30") as loop,
    ):
        loop.record(600)
        poll_until(lambda: receiver.asked >= 2, "the first exports")
        loop.record(4_400)
        lost, before = loop.lost, loop.memory_kib
        loop.record(45_000)
        grown = loop.memory_kib - before
        lost_later = loop.lost
        said = loop.end()

    assert 5_000 - 2_048 - 512 <= lost <= 5_000 - 2_048
    assert lost + 45_000 == lost_later
    assert grown < 8 * 1024
    assert len([line for line in said if line.startswith("lost.traces failed (QueueFull); spans come faster")]) == 1
    assert not [line for line in said if line.startswith("Queue full")]


@contextmanager
def _outage(protocol: str, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield an endpoint that is *kind* of bad, and a function that lets it get well and returns the receiver."""
    made: list[Any] = []
    if kind == "refused":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def back() -> Any:
            made.append((FaultyHttp if protocol == HTTP else FaultyGrpc)("good", port))
            return made[0]

        yield f"http://127.0.0.1:{port}", back
    else:
        made.append((FaultyHttp if protocol == HTTP else FaultyGrpc)(kind))

        def back() -> Any:
            made[0].fault = "good"
            return made[0]

        yield made[0].endpoint, back
    for receiver in made:
        receiver.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["refused", "hangs", "busy", "refuses data"])
def test_an_endpoint_that_comes_back_gets_every_count_and_what_it_did_not_get_is_said(kind: str, protocol: str) -> None:
    """Totals are cumulative; spans of failed exports are lost, counted, and said when it works again."""
    with _outage(protocol, kind) as (endpoint, back), looping(endpoint, protocol) as loop:
        loop.record(10)

        def lost() -> int:
            loop.record(1)
            return loop.lost

        poll_until(lost, "the first export to fail")
        receiver = back()
        began = time.monotonic()
        poll_until(lambda: (loop.record(1), receiver.spans())[1], "spans after the outage")
        took = time.monotonic() - began
        loop.record(20)
        said = loop.end()
        recorded = next(value for (name, _), value in receiver.points().items() if name == "test.count")

    assert took < 5  # an export that hangs is given up after a second here, and gRPC connects anew
    assert recorded == loop.lost + len(receiver.spans())
    assert len([line for line in said if line.startswith("export.traces failed")]) == 1
    again = [line for line in said if line.startswith("export.traces works again; ")]
    assert [f"export.traces works again; {loop.lost} spans were lost since the process started."] == again


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_a_short_outage_loses_nothing(protocol: str) -> None:
    """An export is tried again for as long as OTEL_EXPORTER_OTLP_TIMEOUT: a Collector may restart meanwhile."""
    with (
        _outage(protocol, "busy") as (endpoint, back),
        looping(endpoint, protocol, OTEL_EXPORTER_OTLP_TIMEOUT="10") as loop,
    ):
        loop.record(10)
        receiver = back.__closure__[0].cell_contents[0]
        poll_until(lambda: receiver.asked >= 2, "the first exports")
        back()
        loop.record(10)
        poll_until(lambda: len(receiver.spans()) == 20, "all spans")
        said = loop.end()

    assert loop.lost == 0
    assert [] == said
