# SPDX-License-Identifier: Apache-2.0
"""A gRPC service whose calls end as their request says, and clients that tell everything they see of an ending."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SECRET = "secret-text"  # what must not be recorded, wherever it stands
SHORT_S = 0.3
LONG_S = 30.0
TRAILING = (("kernel-version", "7"),)


@dataclass(frozen=True)
class Seen:
    """What the application sees of a call: the same with and without us.

    Attributes:
        details: None where grpc itself words them now so, now so.
    """

    values: tuple[bytes, ...]
    code: str
    details: str | None
    trailing: tuple[tuple[str, Any], ...]
    error: str | None


class Status(grpc.Status):  # type: ignore[misc]  # grpc carries no types
    """A rich status."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    details = SECRET
    trailing_metadata = (("quota", "0"),)


def read(data: bytes) -> bytes:
    """Deserialize a request."""
    if data == b"unreadable":
        raise ValueError(SECRET)
    return data


def write(message: bytes) -> bytes:
    """Serialize a response."""
    if message == b"unwritable":
        raise ValueError(SECRET)
    return message


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # as above
    """Ends calls as their request says, in threads; methods are ``/t.T/unary_unary`` and so on.

    Args:
        bare: Whether messages are bytes, without a serializer.
        during: Called with the context of each handler when it runs.
    """

    def __init__(self, *, bare: bool = False, during: Callable[[Any], object] = lambda _: None) -> None:
        self.begun = Event()
        self.released = Event()
        self.during = during
        self.bare = bare

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method."""
        shape = handler_call_details.method.removeprefix("/t.T/")
        if shape not in SHAPES:
            return None
        behavior = self.stream if shape.endswith("stream") else self.unary
        if self.bare:
            return getattr(grpc, f"{shape}_rpc_method_handler")(behavior)
        return getattr(grpc, f"{shape}_rpc_method_handler")(
            behavior, request_deserializer=read, response_serializer=write
        )

    def settle(self, ending: str, context: Any) -> None:
        """Do what needs no waiting."""
        self.during(context)
        context.set_trailing_metadata(TRAILING)
        if ending.startswith("set_code"):
            code = grpc.StatusCode.DATA_LOSS if ending.endswith("raise") else grpc.StatusCode.INVALID_ARGUMENT
            context.set_code(code)
            context.set_details(SECRET)
        if ending.endswith("raise"):
            raise ValueError(SECRET)

    def unary(self, request: Any, context: Any) -> bytes:
        """Answer once."""
        ending = (request if isinstance(request, bytes) else b"".join(request)).decode()
        self.settle(ending, context)
        if ending == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, SECRET)
        if ending == "abort_with_status":
            context.abort_with_status(Status())
        if ending == "context.cancel":
            context.cancel()
        if ending == "hang":
            context.add_callback(self.released.set)
            self.begun.set()
            self.released.wait(LONG_S)
        return b"unwritable" if ending == "unwritable" else b"answer"

    def stream(self, request: Any, context: Any) -> Iterator[bytes]:
        """Answer twice."""
        yield b"first"
        yield self.unary(request, context)


class Coroutines(Service):
    """The same in the event loop: coroutines and async generators."""

    async def unary(self, request: Any, context: Any) -> bytes:  # type: ignore[override]  # as grpc has it
        """Answer once."""
        whole = request if isinstance(request, bytes) else b"".join([part async for part in request])
        ending = whole.decode()
        self.settle(ending, context)
        if ending == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, SECRET)
        if ending == "abort_with_status":
            await context.abort_with_status(Status())
        if ending == "hang":
            self.begun.set()
            await asyncio.Event().wait()
        return b"unwritable" if ending == "unwritable" else b"answer"

    async def stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:  # type: ignore[override]  # as above
        """Answer twice."""
        yield b"first"
        yield await self.unary(request, context)


class Writing(Coroutines):
    """The same, answering with ``context.write``."""

    async def stream(self, request: Any, context: Any) -> None:  # type: ignore[override]  # as above
        """Answer twice."""
        await context.write(b"first")
        await context.write(await self.unary(request, context))


# ---- blocking --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(service: Service, interceptors: Sequence[Any] | None = None) -> Iterator[tuple[Any, str]]:
    """Serve *service* in threads; yield the server and its address."""
    server = grpc.server(ThreadPoolExecutor(4), None, interceptors)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        service.released.set()
        server.stop(None).wait(LONG_S)


def play(service: Service, shape: str, ending: str) -> Seen:
    """Let one call end as *ending* says, and return what its client sees."""
    with serving(service) as (server, address), grpc.insecure_channel(address) as channel:
        seen = call_once(channel, shape, ending, service, server)
        if ending in {"deadline", "client cancel"}:
            assert service.released.wait(LONG_S)  # by grpc: the client knows before the server does
        return seen


def call_once(channel: Any, shape: str, ending: str, service: Service, server: Any) -> Seen:
    """Make one call that ends as *ending* says."""
    make = getattr(channel, shape)("/t.T/unknown" if ending == "unknown" else f"/t.T/{shape}")
    behavior = "hang" if ending in {"deadline", "client cancel", "server.stop"} else ending
    message = behavior.encode()
    # A server that does not know the method resets the stream; a client that still writes then sees INTERNAL at times.
    messages = [] if ending == "unknown" else [message]
    request = iter(messages) if shape.startswith("stream") else message
    call = (make if shape.endswith("stream") else make.future)(
        request, timeout=SHORT_S if ending == "deadline" else LONG_S
    )
    values: list[bytes] = []
    error = None
    try:
        if ending in {"client cancel", "server.stop"}:
            if shape.endswith("stream"):
                values.append(next(call))
            assert service.begun.wait(LONG_S)
            call.cancel() if ending == "client cancel" else server.stop(None)
        values += list(call) if shape.endswith("stream") else [call.result()]
    except (grpc.RpcError, grpc.FutureCancelledError) as raised:
        error = type(raised).__name__
    code = call.code().name
    details = None if ending in {"deadline", "server.stop"} else call.details()
    return Seen(tuple(values), code, details, tuple(call.trailing_metadata() or ()), error)


# ---- asyncio ---------------------------------------------------------------------------------------------------------


async def aio_serving(service: Service, interceptors: Sequence[Any] | None = None) -> tuple[Any, str]:
    """Serve *service* in the event loop; return the server, which must be stopped, and its address."""
    server = grpc.aio.server(ThreadPoolExecutor(4), interceptors=interceptors)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def aio_play(service: Service, shape: str, ending: str) -> Seen:
    """Let one call end as *ending* says, and return what its client sees."""

    async def run() -> Seen:
        server, address = await aio_serving(service)
        async with grpc.aio.insecure_channel(address) as channel:
            seen = await aio_call_once(channel, shape, ending, service, server)
        service.released.set()
        await server.stop(LONG_S)
        return seen

    return asyncio.run(run())


async def aio_call_once(channel: Any, shape: str, ending: str, service: Service, server: Any) -> Seen:
    """Make one call that ends as *ending* says."""
    make = getattr(channel, shape)("/t.T/unknown" if ending == "unknown" else f"/t.T/{shape}")
    behavior = "hang" if ending in {"deadline", "client cancel", "server.stop"} else ending
    message = behavior.encode()
    # A server that does not know the method resets the stream; a client that still writes then sees INTERNAL at times.
    messages = [] if ending == "unknown" else [message]
    request = iter(messages) if shape.startswith("stream") else message
    call = make(request, timeout=SHORT_S if ending == "deadline" else LONG_S)
    values: list[bytes] = []
    error = None
    stopped: Any = None
    try:
        if ending in {"client cancel", "server.stop"}:
            if shape.endswith("stream"):
                values.append(await anext(aiter(call)))
            elif shape == "stream_unary":
                await call.wait_for_connection()
            assert await asyncio.to_thread(service.begun.wait, LONG_S)
            if ending == "client cancel":
                call.cancel()
            else:
                stopped = asyncio.ensure_future(server.stop(None))
        if shape.endswith("stream"):
            async for value in call:
                values.append(value)  # noqa: PERF401 - what came before an error counts
        else:
            values.append(await call)
    except (grpc.RpcError, asyncio.CancelledError) as raised:
        error = type(raised).__name__
    code = (await call.code()).name
    details = None if ending in {"deadline", "server.stop"} else await call.details()
    trailing = tuple(await call.trailing_metadata() or ())
    if stopped is not None:
        await stopped
    return Seen(tuple(values), code, details, trailing, error)
