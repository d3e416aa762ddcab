# SPDX-License-Identifier: Apache-2.0
"""Ways in which an application asks a model, sync and async with one text, and ways in which it leaves a stream.

Every way is one call of the real client. The sync clients run through the same coroutines, which then never wait.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import openai
from pydantic import BaseModel

from tests.integration.llm_servers import CANARY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

MESSAGES: Any = [{"role": "system", "content": CANARY}, {"role": "user", "content": CANARY}]
TURNS: Any = [{"role": "user", "content": CANARY}]
_SCHEMA = {"type": "object", "properties": {"word": {"type": "string", "description": CANARY}}}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "description": CANARY, "parameters": _SCHEMA}}]
RESPONSE_TOOLS: Any = [
    {"type": "function", "name": "look_up", "description": CANARY, "parameters": _SCHEMA, "strict": False}
]
MESSAGE_TOOLS: Any = [{"name": "look_up", "description": CANARY, "input_schema": _SCHEMA}]


class Word(BaseModel):
    """What an answer is parsed into."""

    word: str


class ConsumerError(Exception):
    """The application's own, raised while it reads a stream."""


async def settled(value: Any) -> Any:
    """Return *value*, awaited where the async client gave something to await."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter *manager*, sync or async."""
    if hasattr(getattr(manager, "__wrapped__", manager), "__aenter__"):  # a proxy of wrapt's has it either way
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def read(stream: Any, most: int | None = None) -> int:
    """Read *stream*, sync or async, to its end or to *most* chunks; return how many there were."""
    count = 0
    is_async = hasattr(getattr(stream, "__wrapped__", stream), "__aiter__")
    iterator: Any = aiter(stream) if is_async else iter(stream)
    while most is None or count < most:
        try:
            await settled(anext(iterator) if is_async else next(iterator))
        except (StopIteration, StopAsyncIteration):
            break
        count += 1
    return count


def run(work: Coroutine[Any, Any, Any], *, sync: bool) -> Any:
    """Run *work*, without an event loop where the client is sync."""
    if not sync:
        return asyncio.run(work)
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a sync client waits for nothing")


# ---- how a stream is read --------------------------------------------------------------------------------------------


async def to_the_end(stream: Any) -> None:
    """Read everything."""
    await read(stream)


async def closed_early(stream: Any) -> None:
    """Read one chunk and close."""
    await read(stream, 1)
    await settled(stream.close())


async def left_in_with(stream: Any) -> None:
    """Read one chunk inside a with statement."""
    async with entered(stream):
        await read(stream, 1)


async def dropped_on_the_floor(stream: Any) -> None:
    """Read one chunk and forget the stream."""
    await read(stream, 1)


async def consumer_failed(stream: Any) -> None:
    """Fail between two chunks, inside a with statement."""
    try:
        async with entered(stream):
            await read(stream, 1)
            _fail()
    except ConsumerError:
        pass


def _fail() -> None:
    raise ConsumerError(CANARY)


async def generator_closed(stream: Any) -> None:
    """Read one chunk through an async generator, and close that."""

    async def chunks() -> Any:
        async with entered(stream):
            while await read(stream, 1):
                yield 1

    generator = chunks()
    await anext(generator)
    await generator.aclose()


LEAVES = {
    each.__name__: each
    for each in (closed_early, left_in_with, dropped_on_the_floor, consumer_failed, generator_closed)
}


# ---- ways to ask -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One method of one client.

    Attributes:
        ask: Takes the client, the model and how to read a stream.
        api: ``chat``, ``responses``, ``embeddings`` or ``messages``.
        streams: Whether the answer is a stream.
        usage: Whether the provider reports tokens.
    """

    ask: Callable[[Any, str, Any], Awaitable[Any]]
    api: str
    streams: bool = False
    usage: bool = True

    @property
    def library(self) -> Any:
        """The library of the client."""
        return anthropic if self.api == "messages" else openai


async def _chat(client: Any, model: str, _: Any) -> None:
    await settled(client.chat.completions.create(model=model, messages=MESSAGES, tools=CHAT_TOOLS))


async def _chat_parse(client: Any, model: str, _: Any) -> None:
    await settled(client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Word))


async def _chat_raw(client: Any, model: str, _: Any) -> None:
    raw = await settled(client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES))
    assert raw.headers["content-type"] == "application/json"
    await settled(raw.parse())


async def _chat_raw_unparsed(client: Any, model: str, _: Any) -> None:
    raw = await settled(client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES))
    assert CANARY in raw.text


async def _chat_streaming_response(client: Any, model: str, _: Any) -> None:
    manager = client.chat.completions.with_streaming_response.create(model=model, messages=MESSAGES)
    async with entered(manager) as raw:
        await settled(raw.parse())


async def _chat_stream(client: Any, model: str, reading: Any) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    stream = client.chat.completions.create(model=model, messages=MESSAGES, tools=CHAT_TOOLS, **options)
    await reading(await settled(stream))


async def _chat_stream_without_usage(client: Any, model: str, reading: Any) -> None:
    await reading(await settled(client.chat.completions.create(model=model, messages=MESSAGES, stream=True)))


async def _chat_stream_helper(client: Any, model: str, reading: Any) -> None:
    manager = client.chat.completions.stream(
        model=model, messages=MESSAGES, response_format=Word, stream_options={"include_usage": True}
    )
    async with entered(manager) as stream:
        await reading(stream)


async def _chat_raw_stream(client: Any, model: str, reading: Any) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    raw = await settled(client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **options))
    await reading(await settled(raw.parse()))


async def _chat_raw_streaming(client: Any, model: str, reading: Any) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    manager = client.chat.completions.with_streaming_response.create(model=model, messages=MESSAGES, **options)
    async with entered(manager) as raw:
        await reading(await settled(raw.parse()))


async def _responses(client: Any, model: str, _: Any) -> None:
    await settled(client.responses.create(model=model, input=CANARY, instructions=CANARY, tools=RESPONSE_TOOLS))


async def _responses_parse(client: Any, model: str, _: Any) -> None:
    await settled(client.responses.parse(model=model, input=CANARY, text_format=Word))


async def _responses_raw(client: Any, model: str, _: Any) -> None:
    raw = await settled(client.responses.with_raw_response.create(model=model, input=CANARY))
    await settled(raw.parse())


async def _responses_stream(client: Any, model: str, reading: Any) -> None:
    stream = client.responses.create(model=model, input=CANARY, tools=RESPONSE_TOOLS, stream=True)
    await reading(await settled(stream))


async def _responses_stream_helper(client: Any, model: str, reading: Any) -> None:
    async with entered(client.responses.stream(model=model, input=CANARY, text_format=Word)) as stream:
        await reading(stream)


async def _responses_raw_stream(client: Any, model: str, reading: Any) -> None:
    raw = await settled(client.responses.with_raw_response.create(model=model, input=CANARY, stream=True))
    await reading(await settled(raw.parse()))


async def _embeddings(client: Any, model: str, _: Any) -> None:
    await settled(client.embeddings.create(model=model, input=CANARY, encoding_format="float"))


def _turn(model: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "system": CANARY, "messages": TURNS}


async def _messages(client: Any, model: str, _: Any) -> None:
    await settled(client.messages.create(**_turn(model), tools=MESSAGE_TOOLS))


async def _messages_beta(client: Any, model: str, _: Any) -> None:
    await settled(client.beta.messages.create(**_turn(model)))


async def _messages_parse(client: Any, model: str, _: Any) -> None:
    await settled(client.messages.parse(**_turn(model), output_format=Word))


async def _messages_raw(client: Any, model: str, _: Any) -> None:
    raw = await settled(client.messages.with_raw_response.create(**_turn(model)))
    await settled(raw.parse())


async def _messages_streaming_response(client: Any, model: str, _: Any) -> None:
    async with entered(client.messages.with_streaming_response.create(**_turn(model))) as raw:
        await settled(raw.parse())


async def _messages_stream(client: Any, model: str, reading: Any) -> None:
    await reading(await settled(client.messages.create(**_turn(model), tools=MESSAGE_TOOLS, stream=True)))


async def _messages_raw_stream(client: Any, model: str, reading: Any) -> None:
    raw = await settled(client.messages.with_raw_response.create(**_turn(model), stream=True))
    await reading(await settled(raw.parse()))


async def _messages_stream_helper(client: Any, model: str, reading: Any) -> None:
    async with entered(client.messages.stream(**_turn(model))) as stream:
        await reading(stream)


async def _messages_text_stream(client: Any, model: str, reading: Any) -> None:
    async with entered(client.messages.stream(**_turn(model))) as stream:
        if reading is to_the_end:
            await read(stream.text_stream)
        else:
            await reading(stream)


async def _messages_beta_stream(client: Any, model: str, reading: Any) -> None:
    await reading(await settled(client.beta.messages.create(**_turn(model), stream=True)))


WAYS = {
    "chat": Way(_chat, "chat"),
    "chat parse": Way(_chat_parse, "chat"),
    "chat raw": Way(_chat_raw, "chat"),
    "chat raw, unparsed": Way(_chat_raw_unparsed, "chat"),
    "chat streaming response": Way(_chat_streaming_response, "chat"),
    "chat stream": Way(_chat_stream, "chat", streams=True),
    "chat stream without usage": Way(_chat_stream_without_usage, "chat", streams=True, usage=False),
    "chat stream helper": Way(_chat_stream_helper, "chat", streams=True),
    "chat raw stream": Way(_chat_raw_stream, "chat", streams=True),
    "chat streaming response, stream": Way(_chat_raw_streaming, "chat", streams=True),
    "responses": Way(_responses, "responses"),
    "responses parse": Way(_responses_parse, "responses"),
    "responses raw": Way(_responses_raw, "responses"),
    "responses stream": Way(_responses_stream, "responses", streams=True),
    "responses stream helper": Way(_responses_stream_helper, "responses", streams=True),
    "responses raw stream": Way(_responses_raw_stream, "responses", streams=True),
    "embeddings": Way(_embeddings, "embeddings"),
    "messages": Way(_messages, "messages"),
    "messages beta": Way(_messages_beta, "messages"),
    "messages parse": Way(_messages_parse, "messages"),
    "messages raw": Way(_messages_raw, "messages"),
    "messages streaming response": Way(_messages_streaming_response, "messages"),
    "messages stream": Way(_messages_stream, "messages", streams=True),
    "messages raw stream": Way(_messages_raw_stream, "messages", streams=True),
    "messages stream helper": Way(_messages_stream_helper, "messages", streams=True),
    "messages text stream": Way(_messages_text_stream, "messages", streams=True),
    "messages beta stream": Way(_messages_beta_stream, "messages", streams=True),
}


async def asked(way: Way, url: str, model: str, reading: Any = to_the_end, *, sync: bool, **options: Any) -> None:
    """Ask once with a client of its own, and let go of everything."""
    names = {(openai, True): "OpenAI", (openai, False): "AsyncOpenAI"}
    names |= {(anthropic, True): "Anthropic", (anthropic, False): "AsyncAnthropic"}
    base = url if way.api == "messages" else f"{url}/v1"
    make = getattr(way.library, names[way.library, sync])
    async with entered(make(api_key="k", base_url=base, **{"max_retries": 0, **options})) as client:
        await way.ask(client, model, reading)
