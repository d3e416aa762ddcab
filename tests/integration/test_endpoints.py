# SPDX-License-Identifier: Apache-2.0
"""Endpoints that misbehave: the application does not wait for them, and what they do not take is counted and said."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.faults import FAULTS, GRPC, HTTP, PROTOCOLS, endpoint_that
from tests.helpers import poll_until
from tests.integration.endpoints import SPANS, application, looping, outage, script

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


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("kind", "loses"), [("refused", False), ("busy", False), ("hangs", True), ("refuses data", True)]
)
def test_an_endpoint_that_comes_back_gets_every_count_and_every_span_that_it_has_certainly_not_taken(
    kind: str, loses: bool, protocol: str
) -> None:
    """Totals are cumulative; spans are kept if it was down, else they are lost, counted, and said when it works again."""
    with outage(protocol, kind) as well, looping(well.endpoint, protocol) as loop:
        poll_until(lambda: (loop.record(10), loop.failed)[1], "the first export to fail")
        receiver = well.back()
        began = time.monotonic()
        poll_until(lambda: (loop.record(1), receiver.spans())[1], "spans after the outage")
        took = time.monotonic() - began
        loop.record(20)
        said = loop.end()
        recorded = next(value for (name, _), value in receiver.points().items() if name == "test.count")
        arrived = len({span.span_id for span in receiver.spans()})

    assert took < 8  # an export that hangs is given up after two seconds here, and gRPC connects again after five
    assert recorded == loop.lost + arrived
    assert loses == bool(loop.lost)
    assert len([line for line in said if line.startswith("export.traces failed")]) == 1
    cost = f"; {loop.lost} spans were lost since the process started" if loses else ""
    again = [line for line in said if line.startswith("export.traces works again")]
    assert [f"export.traces works again{cost}."] == again


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_a_short_outage_loses_nothing(protocol: str) -> None:
    """An export is tried again for as long as OTEL_EXPORTER_OTLP_TIMEOUT: a Collector may restart meanwhile."""
    with (
        outage(protocol, "busy") as well,
        looping(well.endpoint, protocol, OTEL_EXPORTER_OTLP_TIMEOUT="10") as loop,
    ):
        loop.record(10)
        receiver = well.receiver
        poll_until(lambda: receiver.asked >= 2, "the first exports")
        well.back()
        loop.record(10)
        poll_until(lambda: len(receiver.spans()) == 20, "all spans")
        said = loop.end()

    assert loop.lost == 0
    assert [] == said
