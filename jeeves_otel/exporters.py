# SPDX-License-Identifier: Apache-2.0
"""Make the exporters that settings name, with translation in front of the metric ones.

In: exporter names (``otlp``, ``console``, or any installed entry point) and settings. Out: exporters whose failures are
said once and counted, in place of the log line per attempt of the stock ones, and an account of what did not arrive.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from jeeves_otel import failsafe
from jeeves_otel.stock_logs import forget_cause, last_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sized

    from jeeves_otel.settings import Settings

_HTTP = "opentelemetry.exporter.otlp.proto.http"
_GRPC = "opentelemetry.exporter.otlp.proto.grpc"
_OTLP = {
    ("traces", "http/protobuf"): (f"{_HTTP}.trace_exporter", "OTLPSpanExporter"),
    ("metrics", "http/protobuf"): (f"{_HTTP}.metric_exporter", "OTLPMetricExporter"),
    ("logs", "http/protobuf"): (f"{_HTTP}._log_exporter", "OTLPLogExporter"),
    ("traces", "grpc"): (f"{_GRPC}.trace_exporter", "OTLPSpanExporter"),
    ("metrics", "grpc"): (f"{_GRPC}.metric_exporter", "OTLPMetricExporter"),
    ("logs", "grpc"): (f"{_GRPC}._log_exporter", "OTLPLogExporter"),
}
_CONSOLE = {
    "traces": ("opentelemetry.sdk.trace.export", "ConsoleSpanExporter"),
    "metrics": ("opentelemetry.sdk.metrics.export", "ConsoleMetricExporter"),
    "logs": ("opentelemetry.sdk._logs.export", "ConsoleLogRecordExporter"),
}


class ExporterMissing(LookupError):
    """An exporter cannot be had; the message says how to get it."""


class ExportFailed(Exception):
    """A batch did not arrive."""


def exporter_class(signal: str, name: str, settings: Settings) -> type[Any]:
    """Return the exporter class *name* for ``traces``, ``metrics`` or ``logs``.

    Raises:
        ExporterMissing: It is not installed, or its endpoint cannot be one.
    """
    _refuse_without_scheme(signal, name, settings)
    protocol = {"otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}.get(name, settings.protocol_for(signal))
    if name in {"otlp", "otlp_proto_http", "otlp_proto_grpc"}:
        return _imported(_OTLP[signal, protocol], f"OTLP over {protocol}", "pip install 'jeeves-otel[grpc]'")
    if name == "console":
        return _imported(_CONSOLE[signal], "console", "pip install opentelemetry-sdk")
    for entry in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        loaded: type[Any] = entry.load()
        return loaded
    raise ExporterMissing(
        f"there is no {signal} exporter `{name}`; use otlp, console or none, or install the package that brings it"
    )


def _refuse_without_scheme(signal: str, name: str, settings: Settings) -> None:
    if name.startswith("otlp") and settings.protocol_for(signal) != "grpc":
        target = endpoint(signal, settings)
        if not target.startswith(("http://", "https://")):
            place = target.rpartition("@")[2]  # without a scheme, mask cannot see where user information ends
            raise ExporterMissing(f"the endpoint {place} has no scheme; write http://{place}")


def reporting(cls: type[Any], signal: str, target: str, change: Callable[[Any], Any] | None = None) -> type[Any]:
    """Return a subclass of exporter *cls* that changes what it gets (translation, redaction), and reports what it cannot deliver to *target*."""
    delivery = Delivery(signal, target)
    _deliveries.append(delivery)

    class Reporting(cls):  # type: ignore[misc]  # the base is chosen at run time
        def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            delivery.begin(batch)
            try:
                if change is not None:
                    batch = change(batch)
                    delivery.begin(batch)
                result = super().export(batch, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the SDK's export threads end on an exception
                delivery.end(error)
                return _failure(signal)
            delivery.end(None if result is None or result.name == "SUCCESS" else ExportFailed())
            return result

    Reporting.delivery = delivery
    Reporting.__name__ = Reporting.__qualname__ = cls.__name__
    return Reporting


# ---- what did not arrive ---------------------------------------------------------------------------------------------

_ITEMS = {"traces": "span", "metrics": "metric point", "logs": "log record"}


class Delivery:
    """The account of one exporter. Written by the thread that exports, read by the one that ends the process.

    A span or log record of an export that fails is lost. A point of a metric is not, as long as its counts are
    cumulative: the next export brings it, and only at the end nothing does.

    Args:
        signal: ``traces``, ``metrics`` or ``logs``.
        target: Where it goes, for people.
    """

    def __init__(self, signal: str, target: str) -> None:
        self.signal = signal
        self.target = target
        self.queue: Sized = ()
        self._under_way = self._missing = self._lost_by_failure = 0

    def begin(self, batch: Any) -> None:
        """Note that *batch* is being sent."""
        forget_cause(self.signal)
        self._under_way = _points(batch) if self.signal == "metrics" else len(batch)
        self._lost_by_failure = self._under_way if self.signal != "metrics" or _is_delta(batch) else 0

    def end(self, error: Exception | None) -> None:
        """Note how it ended: *error* is None if the endpoint has confirmed it."""
        site, number, self._under_way = f"export.{self.signal}", self._under_way, 0
        if self.signal == "metrics":
            self._missing = 0
        if error is None:
            lost = failsafe.counts().get(f"lost.{self.signal}", 0) if failsafe.is_failing(site) else 0
            failsafe.note_recovery(
                site, f"{_number(lost, self.signal)} were lost since the process started" if lost else ""
            )
            return
        if self._lost_by_failure:
            failsafe.count(f"lost.{self.signal}", self._lost_by_failure)
        if self.signal == "metrics" or _ending.begun:
            self._missing += number
        if _ending.begun:
            failsafe.count(site)  # `undelivered` says it
        else:
            failsafe.swallow(site, error, f"{self.signal} do not reach {self.place()}; the application is not affected")

    def owed(self) -> int:
        """Return how many items wait or are under way, or have failed at the end of the process."""
        return len(self.queue) + self._under_way + self._missing

    def place(self) -> str:
        """Return where it goes, and why nothing arrives there, as far as that is known."""
        cause = last_cause(self.signal) or ("no answer" if self._under_way else "no reason given")
        return f"{self.target} ({cause}{': does a Collector listen there?' if _UNREACHED.search(cause) else ''})"


_UNREACHED = re.compile("Connect|Resolution|UNAVAILABLE")


class _Ending:
    """Whether the last exports of the process have begun, and what was lost before."""

    begun = False
    lost_before: dict[str, int]

    def __init__(self) -> None:
        self.lost_before = {}


_deliveries: list[Delivery] = []
_ending = _Ending()


def batching(processor: Any, exporter: Any) -> Any:
    """Return *processor*, one of the SDK's that batch, whose queue is accounted to *exporter*, one of `reporting`."""
    # What waits has no public name in opentelemetry-sdk 1.45; without it, it is not in the account.
    queue = getattr(getattr(processor, "_batch_processor", None), "_queue", None)
    if queue is not None:
        exporter.delivery.queue = queue
    return processor


def begin_ending() -> None:
    """Note that the last exports of this process begin: what fails from now on is said by `undelivered`, at once."""
    _ending.begun = True
    lost = ((signal, failsafe.counts().get(f"lost.{signal}", 0)) for signal in _ITEMS)
    _ending.lost_before = {signal: number for signal, number in lost if number}


def undelivered(within: str = "") -> str:
    """Return one line about what this process has recorded and not delivered; empty if there is nothing.

    Args:
        within: The time that was allowed, if it is over, as in `` within 2 s``.
    """
    places: dict[str, list[str]] = {}
    for delivery in sorted(_deliveries, key=lambda each: list(_ITEMS).index(each.signal)):
        if owed := delivery.owed():
            places.setdefault(delivery.place(), []).append(_number(owed, delivery.signal))
    said = [f"{_listed(owed)} were not delivered{within} to {place}" for place, owed in places.items()]
    if before := [_number(number, signal) for signal, number in _ending.lost_before.items()]:
        said.append(f"{_listed(before)} were lost before the end")
    return "; ".join(said)


def _number(number: int, signal: str) -> str:
    return f"{number} {_ITEMS[signal]}{'' if number == 1 else 's'}"


def _listed(phrases: Iterable[str]) -> str:
    return " and ".join(phrases)


def _points(data: Any) -> int:
    return sum(len(metric.data.data_points) for metric in _metrics(data))


def _is_delta(data: Any) -> bool:
    temporalities = (getattr(metric.data, "aggregation_temporality", None) for metric in _metrics(data))
    return any(each is not None and each.name == "DELTA" for each in temporalities)


def _metrics(data: Any) -> Iterable[Any]:
    return (
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    )


def _forget_parent() -> None:
    # What the parent owes, the parent delivers.
    global _ending  # noqa: PLW0603 - one end per process
    _deliveries.clear()
    _ending = _Ending()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_parent)


# ---- where it goes ---------------------------------------------------------------------------------------------------


def endpoint(signal: str, settings: Settings) -> str:
    """Return where OTLP goes, as the exporters read it; may hold user information."""
    # Read where the exporters read it, so that the line at start cannot disagree with them.
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    general = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "http://localhost:4317" if settings.protocol_for(signal) == "grpc" else "http://localhost:4318"
    return own or general or default


def _failure(signal: str) -> Any:
    module, name = {
        "traces": ("opentelemetry.sdk.trace.export", "SpanExportResult"),
        "metrics": ("opentelemetry.sdk.metrics.export", "MetricExportResult"),
        "logs": ("opentelemetry.sdk._logs.export", "LogRecordExportResult"),
    }[signal]
    return getattr(import_module(module), name).FAILURE


def _imported(place: tuple[str, str], what: str, remedy: str) -> type[Any]:
    module, name = place
    try:
        found: type[Any] = getattr(import_module(module), name)
    except ImportError as error:
        raise ExporterMissing(f"{what} is not installed; {remedy}") from error
    return found
