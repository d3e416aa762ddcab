# SPDX-License-Identifier: Apache-2.0
"""One gRPC call from begin to end, on either side: its span, its measurement, the ids that travel with it.

In: how a call began and ended, from interceptors, channels and callbacks. Out: one span and one measurement of
``rpc.server.call.duration`` or ``rpc.client.call.duration`` [s], made in the span's context, with the status that the
other side sees. Does not import grpc.

Source: semantic conventions 1.44, RPC spans and metrics, gRPC.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context, propagate
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from jeeves_otel import propagation, recording
from jeeves_otel.failsafe import failsafe
from jeeves_otel.operations import error_type

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context

OTHER = "_OTHER"  # a method that the server does not know

_CODES = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]
_NAMES = frozenset(_CODES)
_MOST_METHODS = 1_000
_MOST_LETTERS = 128  # of a method that nobody knows


class Switch:
    """Whether what belongs together measures; `on` may change at any time."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = True


class Side:
    """What all calls of one side share.

    Args:
        name: ``server`` or ``client``.
        kind: Of the spans.
        errors: Statuses that are a failure of this side.
    """

    def __init__(self, name: str, kind: SpanKind, errors: frozenset[str]) -> None:
        self.instrument = f"rpc.{name}.call.duration"
        self.kind = kind
        self.errors = errors
        self.guard = failsafe(f"grpc.{name}")


CLIENT = Side("client", SpanKind.CLIENT, _NAMES - {"OK"})
# The other statuses that a server answers with are its client's business.
SERVER = Side(
    "server",
    SpanKind.SERVER,
    frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}),
)


class Method:
    """What is the same in every call of one method: its name and what spans and measurements say about it."""

    __slots__ = ("_endings", "attributes", "name")

    def __init__(self, name: str, server: dict[str, Any]) -> None:
        self.name = name
        self.attributes: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": name, **server}
        self._endings: dict[tuple[str | None, str | None], dict[str, Any]] = {}

    def ended(self, code: str | None, error: str | None) -> dict[str, Any]:
        """Return the attributes of a measurement; the same dictionary each time, which nobody changes."""
        found = self._endings.get((code, error))
        if found is None:
            found = dict(self.attributes)
            if code is not None:
                found["rpc.response.status_code"] = code
            if error is not None:
                found["error.type"] = error
            self._endings[code, error] = found
        return found


@lru_cache(maxsize=_MOST_METHODS)
def method_of(full: str | bytes, target: str = "") -> Method:
    """Return the method *full*, ``/package.Service/Method``, of the server that a channel to *target* calls."""
    name = full.decode(errors="replace") if isinstance(full, bytes) else full
    return Method(name.removeprefix("/"), _server_of(target))


_UNKNOWN_METHOD = Method(OTHER, {})


def _server_of(target: str) -> dict[str, Any]:
    """Return ``server.address`` and ``server.port`` as far as *target* says them.

    Source: gRPC, name resolution: ``scheme://authority/host:port``, ``unix:path``, ``ipv6:[::1]:80`` or ``host:port``.
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in {"unix", "unix-abstract"}:
        return {"server.address": rest.removeprefix("//")}
    plain = rest if colon and scheme in {"dns", "ipv4", "ipv6", "xds", "passthrough"} else target
    if plain.startswith("//"):
        plain = plain[2:].partition("/")[2]
    host, _, port = plain.rpartition(":")
    if not host or not port.isdecimal() or (":" in host and not host.endswith("]")):
        host, port = plain, ""
    address = host.strip("[]")
    if not address or "," in address:  # several addresses are not one server
        return {}
    return {"server.address": address, **({"server.port": int(port)} if port else {})}


def status_name(code: object) -> str | None:
    """Return the name of *code*, a ``grpc.StatusCode``; UNKNOWN for anything else, as grpc has it, and None for None."""
    if code is None:
        return None
    name = getattr(code, "name", None)
    return name if name in _NAMES else "UNKNOWN"


def status_of_number(number: int) -> str:
    """Return the name of the status *number*."""
    return _CODES[number] if 0 <= number < len(_CODES) else "UNKNOWN"


class Call:
    """One call that is running. Safe from several threads; only the first end counts, and none of its methods raises.

    Args:
        side: `SERVER` or `CLIENT`.
        method: What is called.
        context: In which its span begins.
    """

    def __init__(self, side: Side, method: Method, context: Context) -> None:
        self.started_at = perf_counter()
        self.ended = False
        self._side = side
        self._method = method
        self._once = Lock()
        self._closed = Lock()
        ids = propagation.attributes(context) if side is SERVER else None
        attributes = {**method.attributes, **ids} if ids else method.attributes
        self.span: Span = recording.tracer().start_span(method.name, context, side.kind, attributes)
        self.context = set_span_in_context(self.span, context)

    def end(self, code: str | None, error: BaseException | None = None) -> None:
        """End the call, once; its span stays open until `close`.

        Args:
            code: Name of the status, ``OK``, ``NOT_FOUND``…; None if there was none.
            error: What was raised, where that says more than the status; its class is noted.
        """
        if not self._once.acquire(blocking=False):  # never released: the lock is the memory of the first end
            return
        with self._side.guard:
            kind = code if code in self._side.errors else None
            if code is None and error is not None:
                kind = error_type(error)
            duration_s = perf_counter() - self.started_at
            try:
                attributes = self._method.ended(code, kind)
                recording.instruments().histogram(self._side.instrument).record(duration_s, attributes, self.context)
            finally:
                if self.span.is_recording():
                    self._describe(code, kind, error)
        self.ended = True  # and not before: another thread may wait for this to close the span

    def _describe(self, code: str | None, kind: str | None, error: BaseException | None) -> None:
        span = self.span
        if code is not None:
            span.set_attribute("rpc.response.status_code", code)
        if kind is not None:
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR))  # no text: that of an exception may quote a user
        if error is not None:
            span.add_event("exception", {"exception.type": error_type(error)})

    def close(self) -> None:
        """End the span, once."""
        if self._closed.acquire(blocking=False):  # as above
            with self._side.guard:
                self.span.end()

    def finish(self, code: str | None, error: BaseException | None = None) -> None:
        """End the call and its span."""
        self.end(code, error)
        self.close()

    def rename(self) -> None:
        """Note that the server does not know the method; what the client has asked for is on the span only."""
        with self._side.guard:
            original, self._method = self._method.name, _UNKNOWN_METHOD
            if self.span.is_recording():
                self.span.update_name("grpc")
                self.span.set_attributes({"rpc.method": OTHER, "rpc.method_original": original[:_MOST_LETTERS]})


def received(metadata: Iterable[tuple[str, Any]] | None) -> Context:
    """Return the context that a served call begins in: what its metadata has brought along, W3C and our ids."""
    pairs = tuple(metadata or ())
    current = otel_context.get_current()
    # None is what opentelemetry-api 1.45 extracts with OTEL_PROPAGATORS=none.
    context = propagate.extract(dict(pairs), current) or current
    return propagation.incoming(pairs, context)


def sent(metadata: Iterable[tuple[str, Any]] | None, context: Context) -> tuple[tuple[str, Any], ...]:
    """Return *metadata* with what a call made in *context* carries; what the application has set itself holds."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    given = tuple(metadata or ())
    taken = {key for key, _ in given}
    ours = ((name.lower(), value) for name, value in (*carrier.items(), *propagation.outgoing(context)))
    # grpc refuses a call with any other text; whatever a propagator brings must not end one.
    return given + tuple(
        (name, value) for name, value in ours if name not in taken and value.isascii() and value.isprintable()
    )
