# SPDX-License-Identifier: Apache-2.0
"""A language model that costs nothing: an OpenAI-compatible server whose answers come from a seed.

In: chat completions, plain or streamed. Out: answers, delays and failures that depend on nothing but the seed, the
request, how often that same request has come before, and the incident that somebody has asked for. It has no telemetry:
it stands for somebody else's service.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DELAYS_S = (0.005, 0.12)
HANG_S = 3.0  # longer than any client waits
SIGN_OF_LIFE_S = 0.25  # shorter
RATE_LIMITED, BROKEN, HANGING = 0.03, 0.02, 0.01  # shares of calls, ratio

_WORDS = [
    "so",
    "it",
    "is",
    "that",
    "with",
    "every",
    "season",
    "the",
    "numbers",
    "change",
    "a",
    "little",
    "and",
    "those",
    "who",
    "measure",
    "them",
    "with",
    "care",
    "can",
    "tell",
    "which",
    "part",
    "is",
    "weather",
    "and",
    "which",
    "is",
    "trend",
    "although",
    "neither",
    "is",
    "ever",
    "the",
    "whole",
    "story",
]


class Message(BaseModel):
    """One message of a chat."""

    role: str
    content: str


class Completion(BaseModel):
    """What is asked of the model; fields that this server does not know are ignored."""

    model: str
    messages: list[Message]
    stream: bool = False
    stream_options: dict[str, bool] = {}

    @property
    def last(self) -> str:
        """What the user said last."""
        return self.messages[-1].content


class Incident(BaseModel):
    """What is wrong with the server just now, as shares of its calls."""

    failing: float = Field(default=0.0, ge=0, le=1)
    delayed: float = Field(default=1.0, ge=0, le=1)
    delay_s: float = Field(default=0.0, ge=0)
    babbling: float = Field(default=0.0, ge=0, le=1)  # prose for those who asked for JSON
    usual: bool = True  # whether the few calls fail that always do


def create_app(seed: int) -> FastAPI:
    """Return the server for *seed*. Its memory of requests is its own; one event loop may use it."""
    app = FastAPI(title="language model", telemetry={"metrics": False, "tracing": False, "logs": False})
    seen: Counter[str] = Counter()
    now = Incident()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in ("gpt-4o", "gpt-4o-mini")]}

    @app.get("/calls")
    async def calls() -> dict[str, int]:
        return {"calls": seen.total()}

    @app.put("/incident")
    async def begin(wanted: Incident) -> Incident:
        """Let calls fail or take longer from now on; without a body's fields, all is well again."""
        for name, value in wanted:
            setattr(now, name, value)
        return now

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(asked: Completion) -> JSONResponse | StreamingResponse:
        request = asked.model_dump_json()
        seen[request] += 1
        digest = hashlib.sha256(f"{seed} {seen[request]} {request}".encode()).digest()
        chance = random.Random(digest)
        # Of its own chance, so that an incident does not change what is answered without it.
        bad_luck = random.Random(b"incident" + digest)
        if bad_luck.random() < now.failing:
            return _error(503, "overloaded")
        failure = await _fail(chance) if now.usual else None
        if failure is not None:
            return failure
        await asyncio.sleep(chance.uniform(*DELAYS_S))
        text = _prose(chance) if bad_luck.random() < now.babbling else answer(asked, chance)
        delay_s = now.delay_s if bad_luck.random() < now.delayed else 0.0
        if asked.stream:
            return StreamingResponse(_slowly(delay_s, ":\n\n", _chunks(asked, text)), media_type="text/event-stream")
        body = _slowly(delay_s, " ", _once(json.dumps(_reply(asked, text))))
        return StreamingResponse(body, media_type="application/json")

    return app


async def _fail(chance: random.Random) -> JSONResponse | None:
    """Return a failure for some requests, at once or after a delay longer than the client's patience."""
    draw = chance.random()
    if draw < RATE_LIMITED:
        return _error(429, "rate_limit_exceeded")
    if draw < RATE_LIMITED + BROKEN:
        return _error(500, "server_error")
    if draw < RATE_LIMITED + BROKEN + HANGING:
        await asyncio.sleep(HANG_S)
        return _error(503, "overloaded")
    return None


def _error(status: int, kind: str) -> JSONResponse:
    return JSONResponse({"error": {"message": kind, "type": kind, "code": kind}}, status_code=status)


# ---- answers ---------------------------------------------------------------------------------------------------------


def answer(asked: Completion, chance: random.Random) -> str:
    """Return what the model says, by the role that the system prompt gives it."""
    role = asked.messages[0].content
    if "planner" in role:
        return json.dumps(_plan(asked.last))
    if "critic" in role:
        return json.dumps(_criticism(chance))
    if "reviewer" in role:
        return json.dumps({"approved": chance.random() < 0.7})  # noqa: PLR2004 - most drafts pass
    facts = asked.last.partition("Facts: ")[2].partition("\n")[0]
    # A model forgets the facts at times; asked to mend that, it does not.
    forgets = bool(facts) and "Mend this" not in asked.last and chance.random() < 0.1  # noqa: PLR2004 - at times
    return f"{'' if forgets else facts} {_prose(chance)}".strip()


def _plan(question: str) -> dict[str, str]:
    if "answer without it" in question:
        return {"action": "answer", "argument": ""}
    formula = re.search(r"\d+ [-+*/] \d+", question)
    if formula:
        return {"action": "calculate", "argument": formula.group()}
    topic = re.search(r"about ([\w ]+)", question)
    if topic is None:
        return {"action": "answer", "argument": ""}
    if topic.group(1) == "it":
        return {"action": "clarify", "argument": "What is `it`?"}
    return {"action": "search", "argument": topic.group(1)}


def _criticism(chance: random.Random) -> dict[str, Any]:
    confidence = round(chance.betavariate(5, 2), 2)
    if chance.random() < 0.08:  # noqa: PLR2004 - some answers are refused
        return {"action": "retry_planner", "confidence": confidence, "reason": "tool_count_mismatch"}
    return {"action": "accept", "confidence": confidence, "reason": ""}


def _prose(chance: random.Random) -> str:
    start = chance.randrange(len(_WORDS))
    return " ".join((_WORDS * 3)[start : start + chance.randint(10, 40)])


# ---- the shape of the API --------------------------------------------------------------------------------------------


def _usage(asked: Completion, text: str) -> dict[str, int]:
    prompt = sum(len(message.content.split()) for message in asked.messages)
    completion = len(text.split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reply(asked: Completion, text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    head = {"id": "chatcmpl-demo", "object": "chat.completion", "created": 0, "model": f"{asked.model}-2024-08-06"}
    return {**head, "choices": [choice], "usage": _usage(asked, text)}


async def _slowly(delay_s: float, sign_of_life: str, body: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield *body* after a delay, through which signs of life keep a client from giving up, as providers do."""
    for _ in range(round(delay_s / SIGN_OF_LIFE_S)):
        yield sign_of_life
        await asyncio.sleep(SIGN_OF_LIFE_S)
    async for piece in body:
        yield piece


async def _once(text: str) -> AsyncIterator[str]:
    yield text


async def _chunks(asked: Completion, text: str) -> AsyncIterator[str]:
    head = {
        "id": "chatcmpl-demo",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": f"{asked.model}-2024-08-06",
    }
    for word in text.split():
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
        yield _event({**head, "choices": [choice]})
        await asyncio.sleep(0.002)
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if asked.stream_options.get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(asked, text)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def main() -> None:
    """Serve until stopped; ``JEEVES_DEMO_SEED`` is the seed."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server whose answers come from a seed.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    given = parser.parse_args()
    seed = int(os.environ.get("JEEVES_DEMO_SEED", "0"))
    uvicorn.run(create_app(seed), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
