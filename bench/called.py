# SPDX-License-Identifier: Apache-2.0
"""The competitors that serve: one unary call through an asyncio gRPC server and channel on loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from bench.recorded import binding, jeeves_provider, tracer_provider
from bench.timing import Case, Group
from jeeves_otel.integrations import grpc as integration

if TYPE_CHECKING:
    from collections.abc import Callable


def grpc_group() -> Group:
    """Return: one unary call, client and server in one process and one event loop."""
    loop = asyncio.new_event_loop()
    bind = binding(jeeves_provider()[0], tracer_provider())
    bare = _calls(loop, [], [])
    served = _calls(loop, [integration.aio_server_interceptor()], [])
    by_hand = _calls(loop, [integration.aio_server_interceptor()], integration.aio_client_interceptors())
    integration.instrument()
    wired = _calls(loop, [], [])
    integration._wiring.disconnect()
    integration._wiring._switch.on = True  # what has been made measures on
    return Group(
        "one unary call through grpc.aio, server and client in one process",
        (
            Case("no telemetry", bare),
            Case("jeeves_otel, server: metric and span at 10 %", served, bind),
            Case("jeeves_otel, both sides: metrics and spans at 10 %", wired, bind),
            Case("the same with interceptors by hand", by_hand, bind),
            *_stock(loop),
        ),
    )


def _stock(loop: asyncio.AbstractEventLoop) -> list[Case]:
    try:
        from opentelemetry.instrumentation.grpc import (  # noqa: PLC0415 - a competitor that need not be installed
            aio_client_interceptors,
            aio_server_interceptor,
        )
    except ImportError:
        return []
    spans = tracer_provider()
    server, client = [aio_server_interceptor(spans)], aio_client_interceptors(spans)  # type: ignore[no-untyped-call]
    return [
        Case("contrib, server: span at 10 %", _calls(loop, server, [])),
        Case("contrib, both sides: spans at 10 %", _calls(loop, server, client)),
    ]


def _calls(loop: asyncio.AbstractEventLoop, server: list[Any], client: list[Any]) -> Callable[[int], None]:
    call = loop.run_until_complete(_started(server, client))

    async def run(events: int) -> None:
        for _ in range(events):
            await call(b"x")

    return lambda events: loop.run_until_complete(run(events))


async def _started(interceptors: list[Any], client: list[Any]) -> Any:
    async def echo(request: bytes, _: Any) -> bytes:
        return request

    server = grpc.aio.server(interceptors=interceptors)
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=client)
    _kept.append((server, channel))  # a server that nobody holds stops
    return channel.unary_unary("/bench.Bench/Echo")


_kept: list[Any] = []
