# SPDX-License-Identifier: Apache-2.0
"""Keep what the SDK and the exporters log short, true and free of secrets.

In: the loggers of opentelemetry 1.45. Out: the same loggers without a line per failed attempt (`exporters` says it
once), without header values, and without one warning that is false.
"""

from __future__ import annotations

import logging
import re

from jeeves_otel.failsafe import failsafe

_EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.http",
)


class _NoFalseConflicts(logging.Filter):
    """Drop the warning about one view that shapes the same instrument in two scopes, which translation merges.

    The SDK compares names without scopes. Remove when it compares scopes too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        conflict = "conflicting metrics identities" in str(record.msg)
        return not (conflict and isinstance(record.args, tuple) and record.args[0] is record.args[1])


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
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        with failsafe("stock_logs.cause"):
            text = " ".join([record.getMessage(), *([type(record.exc_info[1]).__name__] if record.exc_info else [])])
            found = _CODE.search(text) or _CLASS.search(text)
            # The rest of the line may quote what the endpoint answered.
            self.last = (f"answered {found[1]}" if found[1].isdigit() else found[1]) if found else self.last
        return False


_CODE = re.compile(r"\b(?:code|status)\D{0,12}([1-5]\d\d)\b", re.IGNORECASE)
_CLASS = re.compile(r"\b(\w+(?:Error|Timeout|Exception)|StatusCode\.\w+|[A-Z]{6,}(?:_[A-Z]+)*)\b")
_CAUSE = _Cause()


def last_cause() -> str:
    """Return why an export last failed, as far as the stock exporters have said; empty if they have not."""
    return _CAUSE.last


# One of each: adding a filter that is there already does nothing.
_FILTERS: tuple[tuple[str, logging.Filter], ...] = (
    ("opentelemetry.sdk.metrics._internal.metric_reader_storage", _NoFalseConflicts()),
    ("opentelemetry.util.re", _NoHeaderValues()),
)


def tame() -> None:
    """Make the stock loggers behave."""
    for name, each in _FILTERS:
        logging.getLogger(name).addFilter(each)
    for name in _EXPORTERS:
        logging.getLogger(name).addFilter(_CAUSE)
