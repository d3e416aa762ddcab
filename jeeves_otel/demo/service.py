# SPDX-License-Identifier: Apache-2.0
"""The gateway of a small agent service, instrumented with jeeves-otel.

Start it as any ASGI application, with the launcher in front::

    opentelemetry-instrument python -m uvicorn jeeves_otel.demo.service:app

Settings are the environment's: ``KERNEL_ADDRESS`` says where the agents are, ``DATABASE_URL`` where the store is, and
those of jeeves-otel are for the telemetry. Nothing here says where telemetry goes.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from jeeves_otel import (
    orchestration,
    record_error,
    record_feature_usage,
    record_health,
    record_interrupt,
    record_queue_depth,
    record_rejection,
    record_session_closed,
    record_session_opened,
)
from jeeves_otel.demo.kernel_client import KernelClient
from jeeves_otel.demo.language_model import ModelUnavailableError
from jeeves_otel.demo.store import Conversation, Store, Turn
from jeeves_otel.prometheus import MetricsMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

MAX_TURNS = 6
MAX_CHARACTERS = 500
RETRY_S = 1.0


class Services:
    """What the routes work with: store, kernel, and the queue of usage events. Lives as long as the application."""

    def __init__(self, database_url: str, kernel_address: str) -> None:
        self.store = Store(database_url)
        self.kernel = KernelClient(kernel_address)
        self._events: asyncio.Queue[str] = asyncio.Queue()
        record_queue_depth("events", self._events.qsize)

    def note_use(self, feature: str) -> None:
        """Count a use of *feature*, and queue it for the store."""
        record_feature_usage(feature)
        self._events.put_nowait(feature)

    async def write_events(self) -> None:
        """Write queued events to the store until cancelled; what is left then is written by `close`."""
        while True:
            events = [await self._events.get(), *self._waiting()]
            try:
                await asyncio.to_thread(self.store.add_events, events)
            except SQLAlchemyError as error:
                record_error(type(error).__name__, "storage")
                for event in events:
                    self._events.put_nowait(event)
                await asyncio.sleep(RETRY_S)

    def _waiting(self) -> list[str]:
        return [self._events.get_nowait() for _ in range(self._events.qsize())]

    async def close(self) -> None:
        """Write what is queued and close all connections."""
        self.store.add_events(self._waiting())
        self.store.close()
        await self.kernel.close()


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    services = Services(
        os.environ.get("DATABASE_URL", "sqlite:///jeeves-demo.db"), os.environ.get("KERNEL_ADDRESS", "127.0.0.1:50051")
    )
    application.state.services = services
    writer = asyncio.create_task(services.write_events())
    yield
    writer.cancel()
    with suppress(asyncio.CancelledError):
        await writer
    await services.close()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Use = Annotated[Services, Depends(_services)]
api = FastAPI(title="jeeves-otel demo", lifespan=_lifespan)


class NewSession(BaseModel):
    """A session that a client asks for; without a name it gets one."""

    name: str = Field(default_factory=lambda: uuid4().hex, min_length=1, max_length=64)


class Question(BaseModel):
    """A question in a session."""

    session: str
    text: str = Field(min_length=1)


class Answer(BaseModel):
    """An answer, or a question back."""

    text: str
    needs_clarification: bool


class PastTurn(BaseModel):
    """A question with its answer."""

    question: str
    answer: str


@api.post("/chat")
async def chat(question: Question, services: Use) -> Answer:
    """Answer a question with the whole pipeline."""
    turns = await _admit(question, services)
    services.note_use("chat")
    async with orchestration():
        reply = await services.kernel.answer(question.text, request_id=f"{question.session}-{len(turns)}")
    await asyncio.to_thread(services.store.add_turn, question.session, question.text, reply.text)
    if reply.needs_clarification:
        await asyncio.to_thread(services.store.expect, question.session, "clarification")
        record_interrupt("clarification", "pending")
    return Answer(text=reply.text, needs_clarification=reply.needs_clarification)


@api.post("/chat/stream")
async def chat_stream(question: Question, services: Use) -> StreamingResponse:
    """Answer a question as it is written, as server-sent events."""
    await _admit(question, services)
    services.note_use("stream")
    return StreamingResponse(_events(question, services), media_type="text/event-stream")


async def _events(question: Question, services: Services) -> AsyncGenerator[str]:
    try:
        async with aclosing(_written(question, services)) as pieces:
            async for piece in pieces:
                yield f"data: {json.dumps(piece)}\n\n"
    except ModelUnavailableError:
        # The answer has begun, so its status is sent: the client learns from the event.
        yield 'event: error\ndata: "the model does not answer"\n\n'
        return
    yield "event: done\ndata: {}\n\n"


@orchestration()
async def _written(question: Question, services: Services) -> AsyncGenerator[str]:
    written = []
    async with aclosing(services.kernel.stream(question.text)) as pieces:
        async for piece in pieces:
            written.append(piece)
            yield piece
    await asyncio.to_thread(services.store.add_turn, question.session, question.text, "".join(written))


async def _admit(question: Question, services: Services) -> list[Turn]:
    """Return the turns before this one, or turn the request away."""
    if len(question.text) > MAX_CHARACTERS:
        record_rejection("too_long")
        raise HTTPException(413, f"a question may have {MAX_CHARACTERS} characters")
    conversation, turns = await asyncio.to_thread(services.store.conversation, question.session)
    if conversation is None:
        raise HTTPException(404, "there is no such session")
    if len(turns) >= MAX_TURNS:
        record_rejection("quota_exceeded")
        raise HTTPException(429, f"a session may have {MAX_TURNS} questions")
    if conversation.awaits:
        # At once, whatever becomes of the answer: an interrupt ends once.
        await asyncio.to_thread(services.store.expect, question.session, None)
        record_interrupt(conversation.awaits, "resolved")
    return turns


# These routes are not async: the server runs them in threads, so that they may block.


@api.post("/sessions", status_code=201)
def open_session(wanted: NewSession, services: Use) -> NewSession:
    """Open a session."""
    try:
        services.store.open_conversation(wanted.name)
    except IntegrityError:
        record_error("IntegrityError", "storage")
        raise HTTPException(409, "there is a session of that name") from None
    record_session_opened()
    return wanted


@api.get("/sessions/{name}")
def history(name: str, services: Use) -> list[PastTurn]:
    """Return what was said in a session."""
    return [PastTurn(question=turn.question, answer=turn.answer) for turn in _known(name, services)[1]]


@api.get("/sessions/{name}/title")
def title(name: str, services: Use) -> dict[str, str]:
    """Return a title for a session, from the model."""
    turns = _known(name, services)[1]
    services.note_use("title")
    return {"title": services.kernel.title("\n".join(turn.question for turn in turns))}


@api.delete("/sessions/{name}", status_code=204)
def close_session(name: str, services: Use) -> Response:
    """Close a session and forget what was said."""
    conversation, _ = _known(name, services)
    services.store.close_conversation(name)
    if conversation.awaits:
        record_interrupt(conversation.awaits, "cancelled")
    record_session_closed()
    return Response(status_code=204)


def _known(name: str, services: Services) -> tuple[Conversation, list[Turn]]:
    conversation, turns = services.store.conversation(name)
    if conversation is None:
        raise HTTPException(404, "there is no such session")
    return conversation, turns


@api.get("/health")
def health(services: Use) -> JSONResponse:
    """Say whether the store and the kernel answer."""
    works = {"store": _store_works(services.store), "kernel": services.kernel.is_healthy()}
    record_health("kernel", "healthy" if works["kernel"] else "failed")
    return JSONResponse(works, status_code=200 if all(works.values()) else 503)


def _store_works(store: Store) -> bool:
    try:
        store.ping()
    except SQLAlchemyError:
        record_health("store", "failed")
        return False
    record_health("store", "healthy")
    return True


@api.exception_handler(ModelUnavailableError)
async def _model_unavailable(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the model does not answer"}, status_code=502)


@api.exception_handler(SQLAlchemyError)
async def _store_unavailable(_: Request, error: Exception) -> JSONResponse:
    record_error(type(error).__name__, "storage")
    return JSONResponse({"detail": "the store does not answer"}, status_code=503)


# Outside everything else, so that scrapes are not counted as requests.
app = MetricsMiddleware(api)
