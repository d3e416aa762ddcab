# SPDX-License-Identifier: Apache-2.0
"""Make the exporters that settings name, with translation in front of the metric ones.

In: exporter names (``otlp``, ``console``, or any installed entry point) and settings. Out: exporters whose failures are
said once and counted, in place of the log line per attempt of the stock ones; `deliveries` keeps account of each.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from jeeves_otel.deliveries import delivery_to, failure

if TYPE_CHECKING:
    from collections.abc import Callable

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
# What these import at their first export, in a thread (requests 2.32, CPython 3.11). A child that is forked in that moment
# would wait for the end of that import for ever.
_AT_FIRST_EXPORT = ("encodings.idna", "netrc")
_CONSOLE = {
    "traces": ("opentelemetry.sdk.trace.export", "ConsoleSpanExporter"),
    "metrics": ("opentelemetry.sdk.metrics.export", "ConsoleMetricExporter"),
    "logs": ("opentelemetry.sdk._logs.export", "ConsoleLogRecordExporter"),
}


class ExporterMissing(LookupError):
    """An exporter cannot be had; the message says how to get it."""


def exporter_class(signal: str, name: str, settings: Settings) -> type[Any]:
    """Return the exporter class *name* for ``traces``, ``metrics`` or ``logs``.

    Raises:
        ExporterMissing: It is not installed, or its endpoint cannot be one.
    """
    _refuse_without_scheme(signal, name, settings)
    protocol = {"otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}.get(name, settings.protocol_for(signal))
    if name in {"otlp", "otlp_proto_http", "otlp_proto_grpc"}:
        for module in _AT_FIRST_EXPORT:
            import_module(module)
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
    delivery = delivery_to(signal, target)

    class Reporting(cls):  # type: ignore[misc]  # the base is chosen at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **({**_CONNECTING, **kwargs} if cls.__module__.startswith(_GRPC) else kwargs))

        def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            send = super().export
            try:
                changed = batch if change is None else change(batch)
            except Exception as error:  # noqa: BLE001 - the SDK's export threads end on an exception
                delivery.refuse(batch, error)
                return failure(signal)
            return delivery.send(changed, lambda part: send(part, *args, **kwargs))

        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            if delivery.waiting:
                self.export([])
            super().shutdown(*args, **kwargs)

    Reporting.delivery = delivery
    Reporting.__name__ = Reporting.__qualname__ = cls.__name__
    return Reporting


# As they come, gRPC waits up to two minutes before it connects again, longer than most Collectors are away.
_CONNECTING = {"channel_options": (("grpc.max_reconnect_backoff_ms", 5_000),)}


def endpoint(signal: str, settings: Settings) -> str:
    """Return where OTLP goes, as the exporters read it; may hold user information."""
    # Read where the exporters read it, so that the line at start cannot disagree with them.
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    general = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "http://localhost:4317" if settings.protocol_for(signal) == "grpc" else "http://localhost:4318"
    return own or general or default


def _imported(place: tuple[str, str], what: str, remedy: str) -> type[Any]:
    module, name = place
    try:
        found: type[Any] = getattr(import_module(module), name)
    except ImportError as error:
        raise ExporterMissing(f"{what} is not installed; {remedy}") from error
    return found
