# SPDX-License-Identifier: Apache-2.0
"""A service to which users say something secret, and which quotes it wherever a service may: see test_privacy.

The secret comes in with the request, as ``q``; nothing here is written down that would hold it otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anthropic
import grpc
import openai
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from jeeves_otel import agent, llm_call, pipeline, tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("app")
engine = create_engine(os.environ["DATABASE_URL"])
URL = os.environ["LLM_URL"]


async def _kernel(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    if request.startswith(b"abort"):
        await context.abort(grpc.StatusCode.NOT_FOUND, request.decode())
    raise ValueError(request.decode())


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    handler = grpc.unary_unary_rpc_method_handler(_kernel)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("canary.v1.Kernel", {"Say": handler})])
    application.state.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x TEXT UNIQUE)"))
    yield
    await server.stop(0)
    engine.dispose()


app = FastAPI(lifespan=_lifespan)


@app.get("/ask")
async def ask(q: str, request: Request) -> str:
    """Do everything with *q*, failures included."""
    _store(q)
    for model in ("gpt-4o", "tools", "400"):
        await _openai(q, model)
        await _anthropic(q, model)
    for prefix in ("abort ", "raise "):
        await _call(f"{prefix}{q}", request.app.state.port)
    await _agents(q)
    lost = asyncio.create_task(_fail(q))
    await asyncio.wait([lost])
    del lost  # nobody asks what became of it: asyncio logs that, and quotes the exception
    log.warning("asked")
    return q


def _store(q: str) -> None:
    for _ in range(2):
        with suppress(IntegrityError), engine.begin() as connection:
            connection.execute(text("INSERT INTO t (x) VALUES (:q)"), {"q": q})
    with engine.connect() as connection:
        connection.execute(text(f"SELECT x FROM t WHERE x = '{q}'"))  # noqa: S608 - on purpose


async def _openai(q: str, model: str) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "description": q, "parameters": {}}}]
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=q, max_retries=0) as client:
        for stream in (False, True):
            with suppress(openai.APIError):
                answer = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": q}], tools=tools, stream=stream
                )
                if stream:
                    async for _ in answer:
                        pass


async def _anthropic(q: str, model: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=q, max_retries=0) as client:
        with suppress(anthropic.APIError):
            await client.messages.create(model=model, max_tokens=9, system=q, messages=[{"role": "user", "content": q}])


async def _call(message: str, port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with suppress(grpc.aio.AioRpcError):
            await channel.unary_unary("/canary.v1.Kernel/Say")(message.encode(), metadata=[("x-secret", message)])


async def _agents(q: str) -> None:
    @tool("look_up")
    async def look_up(what: str) -> str:
        raise LookupError(what)

    @agent("planner")
    async def plan(what: str) -> None:
        async with llm_call("openai", "gpt-4o"):
            pass
        await look_up(what)

    try:
        async with pipeline("chat"):
            await plan(q)
    except LookupError:
        log.exception("the pipeline has failed")


async def _fail(q: str) -> None:
    raise RuntimeError(q)


@app.websocket("/talk")
async def talk(socket: WebSocket, q: str) -> None:
    """Say what was said."""
    await socket.accept()
    await socket.send_text(q)
    await socket.close()


@app.get("/crash")
async def crash(q: str) -> None:
    """Fail with *q* in the exception."""
    raise RuntimeError(q)


@app.get("/break")
async def break_off(q: str) -> StreamingResponse:
    """Fail midway."""

    async def pieces() -> AsyncIterator[str]:
        yield "begun"
        raise RuntimeError(q)

    return StreamingResponse(pieces())


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    uvicorn.run(app, port=int(os.environ["PORT"]))
