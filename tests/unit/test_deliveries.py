# SPDX-License-Identifier: Apache-2.0
"""deliveries: what does not arrive is counted, and said at the end in one line."""

from __future__ import annotations

import logging
import os
from enum import Enum
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jeeves_otel import deliveries, exporters, failsafe, stock_logs

if TYPE_CHECKING:
    from collections.abc import Iterator


class Result(Enum):
    """What an exporter may return."""

    SUCCESS = 0
    FAILURE = 1


class Exporter:
    """Ends as it is told to."""

    result: Any = Result.SUCCESS
    reason = ""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def shutdown(self) -> None:
        """Do nothing."""

    def export(self, batch: Any, **_: Any) -> Any:
        """End."""
        if self.result is Result.SUCCESS:
            self.got += batch if isinstance(batch, list) else []
        if self.reason:
            logging.getLogger(GRPC).error("Failed to export %s, error code: %s", "traces", self.reason)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture(autouse=True)
def _alone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    failsafe.set_strict(False)
    caplog.set_level(logging.WARNING)
    deliveries._forget_parent()
    yield
    deliveries._forget_parent()
    for signal in ("traces", "metrics", "logs"):
        stock_logs.forget_cause(signal)


def _made(signal: str, target: str = "there", result: Any = Result.SUCCESS) -> Any:
    exporter = exporters.reporting(Exporter, signal, target)()
    exporter.result = result
    return exporter


def _data(points: int, temporality: AggregationTemporality = AggregationTemporality.CUMULATIVE) -> Any:
    reader = InMemoryMetricReader({Counter: temporality})
    provider = MeterProvider([reader], shutdown_on_exit=False)
    counter = provider.get_meter("t").create_counter("c")
    for number in range(points):
        counter.add(1, {"number": number})
    data = reader.get_metrics_data()
    provider.shutdown()
    return data


@pytest.mark.parametrize("result", [Result.FAILURE, ValueError("canary")], ids=str)
@pytest.mark.parametrize("signal", ["traces", "logs"])
def test_what_a_failed_export_held_is_counted_item_by_item(signal: str, result: Any) -> None:
    """Exports are counted too, as before; nothing is owed, because nothing will be tried again."""
    exporter = _made(signal, result=result)
    exporter.export([1, 2, 3])
    exporter.export([4])

    assert failsafe.counts() == {f"export.{signal}": 2, f"lost.{signal}": 4}
    assert deliveries.undelivered() == ""


def _unavailable() -> Any:
    stock_logs.tame()
    exporter = _made("traces", result=Result.FAILURE)
    exporter.reason = "StatusCode.UNAVAILABLE"
    return exporter


def _well(exporter: Any) -> Any:
    exporter.result, exporter.reason = Result.SUCCESS, ""
    return exporter


def test_what_an_endpoint_that_is_down_did_not_take_goes_with_the_next_export_in_order() -> None:
    """Nothing is lost, and nothing is sent twice."""
    exporter = _unavailable()
    exporter.export([1, 2])
    exporter.export([3])
    owed = deliveries.undelivered()
    _well(exporter).export([4])
    exporter.export([5])

    assert [1, 2, 3, 4, 5] == exporter.got
    assert failsafe.counts() == {"export.traces": 2}
    assert owed == "3 spans were not delivered to there (UNAVAILABLE: does a Collector listen there?)"
    assert deliveries.undelivered() == ""


def test_what_waited_is_sent_in_requests_of_the_size_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint may take no more at once."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    exporter = _unavailable()
    for number in range(5):
        exporter.export([number])
    sizes: list[int] = []
    exporter.delivery.send([], lambda part: sizes.append(len(part)))

    assert [2, 2, 1] == sizes


def test_what_waits_goes_at_the_shutdown_if_nothing_else_comes() -> None:
    """A service that is idle after an outage delivers when it ends."""
    exporter = _unavailable()
    exporter.export([1, 2])
    _well(exporter).shutdown()

    assert [1, 2] == exporter.got


def test_no_more_is_kept_than_a_queue_holds_and_the_oldest_is_lost() -> None:
    """An outage of an hour costs no more memory than one of a minute."""
    exporter = _unavailable()
    for first in range(0, 5_000, 500):
        exporter.export(list(range(first, first + 500)))
    kept = list(exporter.delivery.waiting)
    _well(exporter).export([])

    assert list(range(5_000 - 2_048, 5_000)) == kept == exporter.got
    assert failsafe.counts()["lost.traces"] == 5_000 - 2_048


def test_what_an_endpoint_may_have_taken_is_not_sent_twice() -> None:
    """It may have been too late with its answer only."""
    exporter = _unavailable()
    exporter.reason = "StatusCode.DEADLINE_EXCEEDED"
    exporter.export([1])
    _well(exporter).export([2])

    assert [2] == exporter.got
    assert failsafe.counts()["lost.traces"] == 1


def test_a_grpc_exporter_connects_again_within_five_seconds_unless_it_is_told_otherwise() -> None:
    """As it comes, gRPC may wait for two minutes."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    cls = exporters.reporting(OTLPSpanExporter, "traces", "there")
    ours, theirs = cls(), cls(channel_options=(("grpc.max_reconnect_backoff_ms", 7),))
    ours.shutdown()
    theirs.shutdown()

    assert ("grpc.max_reconnect_backoff_ms", 5_000) in ours._channel_options
    assert ("grpc.max_reconnect_backoff_ms", 7) in theirs._channel_options


def test_points_of_totals_are_not_lost_while_the_process_runs_and_owed_until_an_export_succeeds() -> None:
    """The next export brings them."""
    exporter = _made("metrics", result=Result.FAILURE)
    exporter.export(_data(3))
    owed = deliveries.undelivered()
    exporter.result = Result.SUCCESS
    exporter.export(_data(3))

    assert failsafe.counts() == {"export.metrics": 1}
    assert owed == "3 metric points were not delivered to there (no reason given: does a Collector listen there?)"
    assert deliveries.undelivered() == ""


def test_points_of_deltas_are_lost() -> None:
    """No later export brings them."""
    _made("metrics", result=Result.FAILURE).export(_data(2, AggregationTemporality.DELTA))

    assert failsafe.counts() == {"export.metrics": 1, "lost.metrics": 2}


def test_at_the_end_failures_are_said_in_one_line_for_all_signals(caplog: pytest.LogCaptureFixture) -> None:
    """Not one by one; with what was lost before, and by place."""
    spans, points, logs = (_made(signal, result=Result.FAILURE) for signal in ("traces", "metrics", "logs"))
    elsewhere = _made("traces", "elsewhere", Result.FAILURE)
    spans.export([1, 2])
    caplog.clear()
    deliveries.begin_ending()
    points.export(_data(2))
    logs.export([1])
    spans.export([3, 4, 5])
    elsewhere.export([6])

    assert caplog.messages == []
    assert deliveries.undelivered(" within 2 s") == (
        "3 spans, 2 metric points and 1 log record were not delivered within 2 s to there (no reason given: does a Collector listen there?); "
        "1 span was not delivered within 2 s to elsewhere (no reason given: does a Collector listen there?); 2 spans were lost before the end"
    )


def test_what_is_on_its_way_and_what_waits_is_owed() -> None:
    """An export that hangs at the end does not hide what is behind it."""
    entered, release = Event(), Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            entered.set()
            release.wait(10)
            return super().export(spans)

    exporter = exporters.reporting(Hanging, "traces", "there")()
    processor = deliveries.batching(BatchSpanProcessor(exporter, max_queue_size=8, max_export_batch_size=2), exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("t")
    for _ in range(2):
        tracer.start_span("s").end()
    assert entered.wait(10)
    for _ in range(5):
        tracer.start_span("s").end()
    owed = deliveries.undelivered()
    release.set()
    provider.shutdown()

    assert owed == "7 spans were not delivered to there (no answer)"
    assert deliveries.undelivered() == ""


def test_the_queue_of_log_records_is_found_too() -> None:
    """It has no public name: another SDK may have renamed it."""
    exporter = exporters.reporting(InMemoryLogRecordExporter, "logs", "there")()
    processor = deliveries.batching(BatchLogRecordProcessor(exporter), exporter)
    processor.shutdown()

    assert exporter.delivery.queue is processor._batch_processor._queue


def test_a_processor_without_a_queue_is_left_as_it_is() -> None:
    """What waits there is not in the account; everything else is."""
    exporter = _made("traces")
    processor = object()

    assert deliveries.batching(processor, exporter) is processor
    assert deliveries.undelivered() == ""


def test_a_recovery_says_what_the_failure_has_cost(caplog: pytest.LogCaptureFixture) -> None:
    """Once; a second success says nothing."""
    exporter = _made("traces", result=Result.FAILURE)
    exporter.export([1, 2])
    exporter.result = Result.SUCCESS
    exporter.export([3])
    exporter.export([4])

    assert caplog.messages[1:] == ["export.traces works again; 2 spans were lost since the process started."]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_owes_nothing_of_its_parent() -> None:
    """The parent delivers it, or says that it has not."""
    _made("metrics", result=Result.FAILURE).export(_data(2))
    child = os.fork()
    if child == 0:
        os._exit(len(deliveries.undelivered()))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert deliveries.undelivered() != ""


# ---- reasons, as the stock exporters of 1.45 give them ---------------------------------------------------------------

HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
GRPC = "opentelemetry.exporter.otlp.proto.grpc.exporter"


@pytest.mark.parametrize(
    ("logger", "line", "expected"),
    [
        (HTTP, ("Failed to export %s batch code: %s, reason: %s", "spans", 400, "Bad Request"), "answered 400"),
        (HTTP, ("Transient error %s encountered", "Service Unavailable"), "answered 503"),
        (HTTP, ("Transient error %s encountered", OSError("Caused by NewConnectionError(x)")), "NewConnectionError"),
        (HTTP, ("Transient error %s encountered", EOFError("secret")), "EOFError"),
        (HTTP, ("Failed to export %s batch due to timeout, max retries or shutdown.", "spans"), ""),
        (GRPC, ("Failed to export %s to %s, error code: %s", "traces", "x", "StatusCode.UNAVAILABLE"), "UNAVAILABLE"),
        (GRPC, ("Failed %s, error code: %s", "traces", "StatusCode.NOT_FOUND"), "answered NOT_FOUND"),
        (GRPC, ("Failed %s, error code: %s", "metrics", "StatusCode.NOT_FOUND"), ""),
    ],
)
def test_the_reason_is_kept_and_nothing_else_of_the_line(logger: str, line: tuple[Any, ...], expected: str) -> None:
    """The rest may quote what the endpoint answered; a reason belongs to its signal."""
    stock_logs.tame()
    logging.getLogger(logger).error(*line)

    assert expected == stock_logs.last_cause("traces")


def test_drops_of_a_full_queue_are_counted_in_silence_while_exports_fail(caplog: pytest.LogCaptureFixture) -> None:
    """It was said that the endpoint takes nothing. Otherwise it is said once."""
    stock_logs.tame()
    queues = logging.getLogger("opentelemetry.sdk._shared_internal")
    _made("traces", result=Result.FAILURE).export([1])
    for what in ("Span", "Span", "Log", "Log"):
        queues.warning("Queue full, dropping %s.", what)

    assert failsafe.counts() == {"export.traces": 1, "lost.traces": 3, "lost.logs": 2}
    assert [line.partition(";")[0] for line in caplog.messages] == [
        "export.traces failed (ExportFailed)",
        "lost.logs failed (QueueFull)",
    ]


def test_concurrent_drops_are_all_counted() -> None:
    """Every application thread may meet the full queue."""
    stock_logs.tame()
    queues = logging.getLogger("opentelemetry.sdk._shared_internal")
    threads = [
        Thread(target=lambda: [queues.warning("Queue full, dropping %s.", "Span") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failsafe.counts() == {"lost.traces": 2_000}
