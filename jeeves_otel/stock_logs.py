# SPDX-License-Identifier: Apache-2.0
"""Keep what the SDK and the exporters log short, true and free of secrets.

In: the loggers of opentelemetry 1.45. Out: the same loggers without a line per failed attempt (`exporters` says it
once), without header values, and without two warnings that help nobody; and a count of what full queues dropped.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

from jeeves_otel.failsafe import count, failsafe, is_failing, swallow

_SIGNALS = ("traces", "metrics", "logs")
# One logger per signal over HTTP; one for all over gRPC, whose lines name the signal.
_EXPORTERS = {
    "opentelemetry.exporter.otlp.proto.http.trace_exporter": "traces",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter": "metrics",
    "opentelemetry.exporter.otlp.proto.http._log_exporter": "logs",
    "opentelemetry.exporter.otlp.proto.grpc.exporter": "",
    "opentelemetry.exporter.http": "",
}


class _NoFalseConflicts(logging.Filter):
    """Drop the warning about one view that shapes the same instrument in two scopes, which translation merges.

    The SDK compares names without scopes. Remove when it compares scopes too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        conflict = "conflicting metrics identities" in str(record.msg)
        return not (conflict and isinstance(record.args, tuple) and record.args[0] is record.args[1])


class _NoLateMeters(logging.Filter):
    """Drop the line per meter that is asked for after the end, by what runs later still: it can deliver nothing anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("A shutdown `MeterProvider`")


class _NoHeaderValues(logging.Filter):
    """Name the variable, once, instead of quoting a malformed header, which may be a token, for every exporter."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Header format invalid"):
            if self.said:
                return False
            self.said = True
            record.msg = (
                "OTEL_EXPORTER_OTLP_HEADERS: a header is not of the form name=value, URL-encoded; it is left out"
            )
            record.args = ()
        return True


class _Cause(logging.Filter):
    """Swallow the exporters' lines, one per attempt, and keep the reason of the last: a status code or a class."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        with failsafe("stock_logs.cause"):
            args = record.args if isinstance(record.args, tuple) else ()
            named = _EXPORTERS.get(record.name) or next((each for each in args if each in _SIGNALS), "")
            if found := _cause(record, args):
                self.last.update(dict.fromkeys([named] if named else _SIGNALS, found))
        return False


def _cause(record: logging.LogRecord, args: tuple[object, ...]) -> str:
    """Return the reason that a line gives, and nothing else of it: it may quote what the endpoint answered."""
    text = " ".join([record.getMessage(), *([type(record.exc_info[1]).__name__] if record.exc_info else [])])
    if found := _CODE.search(text):
        return f"answered {found[1]}"
    for phrase in args:
        if isinstance(phrase, str) and phrase in _PHRASES:
            return f"answered {_PHRASES[phrase]}"
    if found := _STATUS.search(text):
        return found[1] if found[1] in _UNREACHED else f"answered {found[1]}"
    if found := _CLASS.search(text):
        return found[1]
    return next((type(each).__name__ for each in args if isinstance(each, BaseException)), "")


_CODE = re.compile(r"\b(?:code|status)\D{0,12}([1-5]\d\d)\b", re.IGNORECASE)
_STATUS = re.compile(r"\bStatusCode\.([A-Z_]+)\b")
_UNREACHED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")  # what gRPC itself says, too
_CLASS = re.compile(r"\b(\w+(?:Error|Timeout|Exception)|[A-Z]{6,}(?:_[A-Z]+)*)\b")
_PHRASES = {status.phrase: status.value for status in HTTPStatus}
_CAUSE = _Cause()


def last_cause(signal: str) -> str:
    """Return why the export of *signal* failed, as far as the stock exporters have said; empty if they have not."""
    return _CAUSE.last.get(signal, "")


def forget_cause(signal: str) -> None:
    """Forget why an earlier export of *signal* failed."""
    _CAUSE.last.pop(signal, None)


class QueueFull(Exception):
    """Something was dropped because more was waiting than is kept."""


class _Drops(logging.Filter):
    """Count each span and log record that a full queue drops, and say it once; the SDK says it, at most, every 20 s.

    As long as `exporters` has said that the endpoint takes nothing, a full queue is no news.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Queue full"):
            return True
        what, signal = ("log records", "logs") if "Log" in str(record.args) else ("spans", "traces")
        if is_failing(f"export.{signal}"):
            count(f"lost.{signal}")
        else:
            swallow(
                f"lost.{signal}",
                QueueFull(),
                f"{what} come faster than they are delivered, or the endpoint does not answer: the oldest that wait are dropped",
            )
        return False


_DROPS = _Drops()
# One of each: adding a filter that is there already does nothing.
_FILTERS: tuple[tuple[str, logging.Filter], ...] = (
    ("opentelemetry.sdk.metrics._internal.metric_reader_storage", _NoFalseConflicts()),
    ("opentelemetry.sdk.metrics._internal", _NoLateMeters()),
    ("opentelemetry.util.re", _NoHeaderValues()),
)


def tame() -> None:
    """Make the stock loggers behave."""
    for name, each in _FILTERS:
        logging.getLogger(name).addFilter(each)
    for name in _EXPORTERS:
        logging.getLogger(name).addFilter(_CAUSE)
    queues = logging.getLogger("opentelemetry.sdk._shared_internal")
    if _DROPS not in queues.filters:
        queues.filters.insert(0, _DROPS)  # before the SDK's own filter, which hides repetitions
