# SPDX-License-Identifier: Apache-2.0
"""Time one gRPC call and record it once, with the status that its other side sees.

In: how a call ended, from an interceptor or from a callback of grpc, whichever comes first. Out: one measurement of
``rpc.server.call.duration`` or ``rpc.client.call.duration`` [s], and the right status on the span of a served call.
"""

from __future__ import annotations

from asyncio import CancelledError
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import context as otel_context, metrics, trace
from opentelemetry.trace import Status, StatusCode

from jeeves_otel.failsafe import failsafe
from jeeves_otel.instruments import Instruments

if TYPE_CHECKING:
    from opentelemetry.context import Context

OTHER = "_OTHER"  # semconv 1.44 rpc: a method that the server does not know
_OTLP = "opentelemetry.proto.collector."
_NUMBERS = {code.name: code.value[0] for code in grpc.StatusCode}
_NAMES = {number: name for name, number in _NUMBERS.items()}
# semconv 1.44 rpc, gRPC: only these are errors of a server; the others are the client's business.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
# The client's clock ends a call, and grpc rounds the time-out that it tells the server up by as much as 1 %.
_LATE_S, _LATE_RATIO = 0.02, 0.01


def status_name(code: object) -> str | None:
    """Return the name of *code*, a ``grpc.StatusCode`` or its number; None if there is none."""
    if isinstance(code, int):
        return _NAMES.get(code)
    name = getattr(code, "name", None)
    return name if name in _NUMBERS else None


def method_name(method: str | bytes) -> str:
    """Return the full method without its leading slash, ``package.Service/Method``."""
    text = method.decode(errors="replace") if isinstance(method, bytes) else method
    return text.removeprefix("/")


def suppressed(method: str | bytes) -> bool:
    """Return whether a call of *method* is telemetry on its way out, which is not measured."""
    return bool(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY)) or method_name(method).startswith(  # noqa: SLF001 - the API's own key for this, which has no public name yet
        _OTLP
    )


class Recorder:
    """Where measurements go.

    Args:
        side: ``server`` or ``client``.
        meter_provider: None means the global one.
    """

    def __init__(self, side: str, meter_provider: metrics.MeterProvider | None) -> None:
        try:
            number = version("jeeves-otel")
        except PackageNotFoundError:  # run from a source tree that is not installed
            number = ""
        self.site = f"grpc.{side}"
        self.guard = failsafe(self.site)
        self._name = f"rpc.{side}.call.duration"
        self._instruments = Instruments(metrics.get_meter("jeeves_otel.integrations.grpc", number, meter_provider))

    def record(self, method: str, code: str, duration_s: float, context: Context | None) -> None:
        """Record one call.

        Args:
            method: As of `method_name`, or ``_OTHER``.
            code: Name of the status, ``OK``, ``NOT_FOUND``…
            duration_s: Seconds, >= 0.
            context: In which the call ran, for exemplars.
        """
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
        if code != "OK":
            attributes["error.type"] = code
        self._instruments.histogram(self._name).record(duration_s, attributes, context=context)


class Call:
    """One call that is running. Safe from several threads; only the first end counts.

    Args:
        recorder: Where it is recorded.
        method: As of `method_name`.
        started_at: When it began, on the clock of ``perf_counter``; default now.
    """

    def __init__(self, recorder: Recorder, method: str, started_at: float | None = None) -> None:
        self._recorder = recorder
        self._method = method
        self._once = Lock()
        self.code: str | None = None
        self.context = otel_context.get_current()
        self.started_at = perf_counter() if started_at is None else started_at

    def end(self, code: str) -> None:
        """End the call with the status *code*; a second end does nothing."""
        if self._once.acquire(blocking=False):  # never released: the lock is the memory of the first end
            self.code = code
            with self._recorder.guard:
                self._recorder.record(self._method, code, perf_counter() - self.started_at, self.context)


class ServedCall(Call):
    """One call that is being served. No method raises.

    Args:
        recorder: Where it is recorded.
        method: As of `method_name`.
        servicer: The context that grpc gives to the handler, or what another interceptor has made of it.
    """

    def __init__(self, recorder: Recorder, method: str, servicer: Any) -> None:
        super().__init__(recorder, method)
        self._servicer = servicer
        self._cancelled = self._blocking = False
        self._span = trace.get_current_span()

    def watch(self, add_callback: Any, *, cancellable: bool = False) -> None:
        """Let grpc say when the call is over, and note what the handler does to it.

        Args:
            add_callback: The servicer's way to register a callback.
            cancellable: Whether it is the context of a blocking server, which can be cancelled and asked whether it is.
        """
        with self._recorder.guard:
            add_callback(self._over)
            self._blocking = cancellable
            if cancellable:
                cancel = self._servicer.cancel

                def noted() -> Any:
                    self._cancelled = True
                    return cancel()

                # On the object, so that the handler gets the very context that it would get without us.
                self._servicer.cancel = noted

    def returned(self) -> None:
        """End the call as its handler returned, or gave its last message."""
        with self._recorder.guard:
            gone = self._cancelled or not self._active()
            self._finish(self._gone() if gone else self._code() or "OK")

    def failed(self, error: BaseException) -> None:
        """End the call as its handler raised *error*, which may be how it was aborted or cancelled."""
        with self._recorder.guard:
            if self._cancelled or isinstance(error, CancelledError | GeneratorExit) or not self._active():
                self._finish(self._gone())
            else:
                code = self._code()
                self._finish("UNKNOWN" if code in {None, "OK"} else str(code))

    def _over(self, *_: Any) -> None:
        # The handler still runs, or nobody asks it for more: the other side has ended the call.
        with self._recorder.guard:
            if self.code is None:
                self.end(self._gone())

    def _finish(self, code: str) -> None:
        self.end(code)
        self._correct(self.code or code)

    def _active(self) -> bool:
        # An asyncio context cannot be asked; there, cancellation arrives as an exception or through the callback.
        return not self._blocking or bool(self._servicer.is_active())

    def _code(self) -> str | None:
        return status_name(self._servicer.code())

    def _gone(self) -> str:
        remaining_s = self._servicer.time_remaining()
        if remaining_s is None or self._cancelled:
            return "CANCELLED"
        total_s = perf_counter() - self.started_at + remaining_s
        return "DEADLINE_EXCEEDED" if remaining_s <= _LATE_S + _LATE_RATIO * total_s else "CANCELLED"

    def _correct(self, code: str) -> None:
        span = self._span
        attributes = getattr(span, "attributes", None) or {}
        if not span.is_recording() or "grpc" not in {attributes.get("rpc.system"), attributes.get("rpc.system.name")}:
            return
        if getattr(span, "kind", None) is not trace.SpanKind.SERVER:
            return
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("rpc.grpc.status_code", _NUMBERS[code])
        if code != "OK":
            span.set_attribute("error.type", code)
        if code in _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR))  # no description: the text of an exception may hold user data
