# SPDX-License-Identifier: Apache-2.0
"""The smallest kernel: an asyncio gRPC server and its client in one process, without a word about telemetry."""

import asyncio
import sys
from typing import Any

import grpc


async def run(request: bytes, context: Any) -> bytes:
    """Answer, unless there is nothing to answer."""
    if not request:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing")
    return request


async def main() -> None:
    """Serve four calls, and then wait until stdin is closed."""
    server = grpc.aio.server()
    handlers = {"Run": grpc.unary_unary_rpc_method_handler(run)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kernel.v1.Kernel", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/kernel.v1.Kernel/Run")
        for _ in range(3):
            await call(b"work")
        try:
            await call(b"")
        except grpc.aio.AioRpcError as error:
            print(error.code().name)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


asyncio.run(main())
