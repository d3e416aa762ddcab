# SPDX-License-Identifier: Apache-2.0
"""The kernel of the demo: a gRPC server in a process of its own, in which the agents work.

Start it with the launcher in front, as the gateway::

    opentelemetry-instrument python -m jeeves_otel.demo.kernel --port 50051

Messages are JSON, so that nothing has to be generated. Nothing here measures gRPC: under the launcher, the integration
does, and carries the trace of the gateway in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from jeeves_otel import record_error, record_health
from jeeves_otel.demo.agents import Assistant
from jeeves_otel.demo.language_model import LanguageModel, ModelUnavailableError
from jeeves_otel.demo.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

SERVICE = "jeeves.demo.v1.Kernel"
GRACE_S = 2.0  # for calls that are under way when the server stops

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Return *message* as it goes over the wire."""
    return json.dumps(message).encode()


def decode(data: bytes) -> Message:
    """Return the message in *data*."""
    message: Message = json.loads(data)
    return message


class Kernel:
    """The methods of the service. A model that does not answer is UNAVAILABLE to the caller."""

    def __init__(self, model: LanguageModel, assistant: Assistant) -> None:
        self._model = model
        self._assistant = assistant

    async def answer(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        """Answer a question with the whole pipeline."""
        try:
            reply = await self._assistant.answer(request["question"], request["request_id"])
        except ModelUnavailableError as error:
            await _unavailable(error, context)
        return {"text": reply.text, "needs_clarification": reply.needs_clarification}

    async def stream(self, request: Message, context: grpc.aio.ServicerContext) -> AsyncGenerator[Message]:
        """Answer a question as it is written."""
        try:
            async with aclosing(self._assistant.stream(request["question"])) as pieces:
                async for piece in pieces:
                    yield {"piece": piece}
        except ModelUnavailableError as error:
            await _unavailable(error, context)

    async def title(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        """Return a title for a conversation: one plain call in a thread, recorded by the client's instrumentation."""
        try:
            text = await asyncio.to_thread(self._model.ask_blocking, "You write titles.", request["conversation"])
        except ModelUnavailableError as error:
            await _unavailable(error, context)
        return {"title": text}

    async def check(self, _: Message, __: grpc.aio.ServicerContext) -> Message:
        """Say whether the model answers."""
        try:
            await asyncio.to_thread(self._model.ping)
        except ModelUnavailableError:
            record_health("model", "failed")
            return {"healthy": False}
        record_health("model", "healthy")
        return {"healthy": True}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what the server serves."""
        coding = {"request_deserializer": decode, "response_serializer": encode}
        unary = {"Answer": self.answer, "Title": self.title, "Check": self.check}
        methods = {name: grpc.unary_unary_rpc_method_handler(method, **coding) for name, method in unary.items()}
        methods["Stream"] = grpc.unary_stream_rpc_method_handler(self.stream, **coding)
        return grpc.method_handlers_generic_handler(SERVICE, methods)


async def _unavailable(error: ModelUnavailableError, context: grpc.aio.ServicerContext) -> NoReturn:
    record_error(type(error.__cause__ or error).__name__, "provider")
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the model does not answer")
    raise error  # never reached: abort ends the call


async def serve(port: int) -> None:
    """Serve on *port* of the loopback interface until cancelled, or asked to stop by SIGTERM."""
    model, store = LanguageModel(), Store(os.environ.get("DATABASE_URL", "sqlite:///jeeves-demo.db"))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Kernel(model, Assistant(model, store)).handlers(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        await stopped.wait()
    finally:
        await server.stop(GRACE_S)
        store.close()
        await model.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read *arguments* (default: those of the process), and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m jeeves_otel.demo.kernel", description="Serve the demo's agents.")
    parser.add_argument("--port", type=int, default=50_051, help="TCP port (default: %(default)s)")
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main()
