# SPDX-License-Identifier: Apache-2.0
"""The competitors that serve: one unary call through an asyncio gRPC server and channel on loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from bench.recorded import jeeves_provider
from bench.timing import Case, Group
from jeeves_otel.integrations.grpc import aio_client_interceptors, aio_server_interceptor

if TYPE_CHECKING:
    from collections.abc import Callable


def grpc_group() -> Group:
    """Return: one unary call, client and server in one process."""
    loop = asyncio.new_event_loop()
    meters, _ = jeeves_provider()
    server, client = [aio_server_interceptor(meters)], aio_client_interceptors(meters)
    return Group(
        "one unary call through grpc.aio",
        (
            Case("no telemetry", _calls(loop, [], [])),
            Case("jeeves_otel, server measured, no span", _calls(loop, server, [])),
            Case("jeeves_otel, server and client measured, no span", _calls(loop, server, client)),
        ),
    )


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
    call = channel.unary_unary("/bench.Bench/Echo")
    call.kept = server, channel  # a server that nobody holds stops
    return call
