# SPDX-License-Identifier: Apache-2.0
"""Two layers of an LLM call: every promised count is exact whether the client is instrumented, wrapped, or both."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.util.genai.handler import TelemetryHandler

from jeeves_otel import agent, llm_call, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import Pipeline

MESSAGES: Any = [{"role": "user", "content": "canary"}]


class _Provider(BaseHTTPRequestHandler):
    """A provider that answers as the model's name says: ``ok``, ``limited`` (429) or ``broken`` (500)."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = request["model"]
        if model in {"limited", "broken"}:
            self._answer(429 if model == "limited" else 500, {"error": {"message": "canary", "type": model}})
        elif self.path.endswith("/embeddings"):
            vector = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            usage = {"prompt_tokens": 7, "total_tokens": 7}
            self._answer(200, {"object": "list", "model": model, "data": vector, "usage": usage})
        elif request.get("stream"):
            self._stream(model, usage=bool((request.get("stream_options") or {}).get("include_usage")))
        else:
            self._answer(200, _completion(model))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, model: str, *, usage: bool) -> None:
        common = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model}
        chunks: list[dict[str, Any]] = [
            {
                **common,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}],
            },
            {**common, "choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]},
        ]
        if usage:
            chunks.append({**common, "choices": [], "usage": _completion(model)["usage"]})
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(lines)))
        self.end_headers()
        self.wfile.write(lines.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden name
        """Say nothing."""


def _completion(model: str) -> dict[str, Any]:
    message = {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [message], "usage": usage}


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    """Serve the provider in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Provider)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def instrumented(pipeline: Pipeline) -> Iterator[None]:
    """Instrument openai into the test's pipeline."""
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=pipeline.tracer_provider, meter_provider=pipeline.meter_provider)
    yield
    instrumentor.uninstrument()


class Chat(NamedTuple):
    """Ways to ask the provider, all with the shape of a plain function."""

    url: str
    sync: bool

    def __call__(self, model: str = "ok", **options: Any) -> None:
        """Ask, and read the answer to its end."""
        if self.sync:
            with openai.OpenAI(api_key="k", base_url=self.url, max_retries=0) as client:
                reply: Any = client.chat.completions.create(model=model, messages=MESSAGES, **options)
                if options.get("stream"):
                    list(reply)
        else:
            asyncio.run(self._ask(model, options))

    async def _ask(self, model: str, options: dict[str, Any]) -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=self.url, max_retries=0) as client:
            reply: Any = await client.chat.completions.create(model=model, messages=MESSAGES, **options)
            if options.get("stream"):
                async for _ in reply:
                    pass


@pytest.fixture(params=[True, False], ids=["sync", "async"])
def chat(request: pytest.FixtureRequest, provider_url: str) -> Chat:
    """Return the client's call."""
    return Chat(provider_url, request.param)


PLAIN: dict[str, Any] = {}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
STREAM_WITHOUT_USAGE = {"stream": True}
TOKENS = {"prompt": 3, "completion": 4}


def counts(pipeline: Pipeline) -> dict[str, dict[str, float]]:
    """Return what the page says about LLM calls: by status in both layers, by number of durations, and tokens."""
    samples = pipeline.samples()
    found = {}
    for layer, family in (("engine", "jeeves_llm"), ("provider", "jeeves_llm_provider")):
        found[layer] = pipeline.counts_by(f"{family}_calls_total", "status")
        durations = sum(value for (name, _), value in samples.items() if name == f"{family}_duration_seconds_count")
        assert durations == sum(found[layer].values()), "each call has one duration"
    found["tokens"] = pipeline.counts_by("jeeves_llm_tokens_total", "type")
    return found


def said(engine: Any, provider: Any, tokens: dict[str, int]) -> dict[str, Any]:
    """Return `counts` as expected; a number stands for that many successes."""
    numbers = {
        name: {"success": n} if isinstance(n, int) else n for name, n in (("engine", engine), ("provider", provider))
    }
    return {**numbers, "tokens": tokens}


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    ("options", "tokens"),
    [(PLAIN, TOKENS), (STREAM, TOKENS), (STREAM_WITHOUT_USAGE, {})],
    ids=["plain", "stream", "stream without usage"],
)
def test_an_instrumented_client_alone_is_both_layers(
    options: dict[str, Any], tokens: dict[str, int], chat: Chat, pipeline: Pipeline
) -> None:
    """One call counts once in both families, its tokens once."""
    chat(**options)

    assert counts(pipeline) == said(1, 1, tokens)


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("model", ["limited", "broken", "refused"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in an llm_call"])
def test_a_call_that_fails_counts_once_per_layer_as_an_error(
    model: str, wrapped: bool, chat: Chat, pipeline: Pipeline
) -> None:
    """429, 500 and a refused connection: one error in each family, the client's exception untouched, no text of it."""
    if model == "refused":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            chat = Chat(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", chat.sync)
    expected = {"limited": openai.RateLimitError, "broken": openai.InternalServerError}

    with (
        pytest.raises(expected.get(model, openai.APIConnectionError)),
        llm_call("openai", model) if wrapped else nullcontext(),
    ):
        chat(model)

    assert counts(pipeline) == said({"error": 1}, {"error": 1}, {})
    assert "canary" not in pipeline.page()


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    ("options", "expected"),
    [(PLAIN, TOKENS), (STREAM, TOKENS), (STREAM_WITHOUT_USAGE, {"prompt": 100, "completion": 200})],
    ids=["plain", "stream", "stream without usage"],
)
def test_an_instrumented_client_inside_an_llm_call_is_the_provider_layer(
    options: dict[str, Any], expected: dict[str, int], chat: Chat, pipeline: Pipeline
) -> None:
    """Engine 1, provider 1; the client's tokens win, and those of the llm_call stand in where it has none."""
    with llm_call("openai", "ok") as call:
        chat(**options)
        call.set_tokens(prompt=100, completion=200)

    assert counts(pipeline) == said(1, 1, expected)


def test_an_llm_call_around_a_client_that_is_not_instrumented_stands_for_both_layers(
    chat: Chat, pipeline: Pipeline
) -> None:
    """Engine 1, provider 1, tokens from set_tokens."""
    with llm_call("openai", "ok") as call:
        chat()
        call.set_tokens(prompt=100, completion=200)

    assert counts(pipeline) == said(1, 1, {"prompt": 100, "completion": 200})


@pytest.mark.usefixtures("instrumented")
def test_a_fallback_inside_one_llm_call_is_one_call_of_the_engine_and_two_of_the_provider(
    chat: Chat, pipeline: Pipeline
) -> None:
    """What failed at the first provider and succeeded at the second is one success to the agent."""
    with llm_call("openai", "limited") as call:
        with pytest.raises(openai.RateLimitError):
            chat("limited")
        chat("ok")
        call.set_answered_by(model="ok")

    assert counts(pipeline) == said(1, {"success": 1, "error": 1}, TOKENS)


@pytest.mark.parametrize("client", ["instrumented", "bare"])
def test_of_nested_llm_calls_the_outermost_is_the_engine_and_the_innermost_the_provider(
    client: str, chat: Chat, pipeline: Pipeline, request: pytest.FixtureRequest
) -> None:
    """A gateway inside an agent inside a router: nothing is doubled, with or without an instrumented client."""
    if client == "instrumented":
        request.getfixturevalue("instrumented")
    with llm_call("router", "any"), llm_call("gateway", "ok"), llm_call("openai", "ok") as call:
        chat()
        call.set_tokens(prompt=3, completion=4)

    assert counts(pipeline) == said(1, 1, TOKENS)
    assert pipeline.counts_by("jeeves_llm_calls_total", "provider") == {"router": 1}
    assert pipeline.counts_by("jeeves_llm_provider_calls_total", "provider") == {"openai": 1}


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("manual_tokens", [False, True])
def test_a_stream_that_is_read_after_its_llm_call_has_ended_is_not_counted_again(
    manual_tokens: bool, provider_url: str, pipeline: Pipeline
) -> None:
    """The call has answered for both layers at its end; the tokens come from whoever knew them."""
    with openai.OpenAI(api_key="k", base_url=provider_url, max_retries=0) as client:
        with llm_call("openai", "ok") as call:
            stream = client.chat.completions.create(
                model="ok", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            if manual_tokens:
                call.set_tokens(prompt=3, completion=4)
        list(stream)

    assert counts(pipeline) == said(1, 1, TOKENS)


@pytest.mark.usefixtures("instrumented")
def test_a_decorated_stream_is_one_call_of_each_layer_to_its_last_chunk(provider_url: str, pipeline: Pipeline) -> None:
    """An async generator that streams inside an llm_call, and a consumer that leaves early."""

    @agent("writer")
    async def write() -> Any:
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=provider_url, max_retries=0) as client,
            llm_call("openai", "ok"),
        ):
            stream: Any = await client.chat.completions.create(model="ok", messages=MESSAGES, **STREAM)
            async for chunk in stream:
                yield chunk

    async def main() -> int:
        read = len([chunk async for chunk in write()])
        leaving = write()
        async for _ in leaving:
            break
        await leaving.aclose()
        return read

    assert asyncio.run(main()) == 3
    # The stream that was left is closed by its client after the llm_call, which stands for both layers by then.
    assert counts(pipeline) == said(2, 2, TOKENS)
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 2}


@pytest.mark.usefixtures("instrumented")
def test_a_task_started_inside_an_llm_call_that_asks_after_its_end_asks_for_itself(
    provider_url: str, pipeline: Pipeline
) -> None:
    """What a background task begins after the call is both layers of its own call."""

    async def main() -> None:
        ended = asyncio.Event()

        async def later(client: openai.AsyncOpenAI) -> None:
            await ended.wait()
            await client.chat.completions.create(model="ok", messages=MESSAGES)

        async with openai.AsyncOpenAI(api_key="k", base_url=provider_url, max_retries=0) as client:
            with llm_call("openai", "ok"):
                task = asyncio.create_task(later(client))
                await client.chat.completions.create(model="ok", messages=MESSAGES)
            ended.set()
            await task

    asyncio.run(main())

    assert counts(pipeline) == said(2, 2, {"prompt": 6, "completion": 8})


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in an llm_call"])
def test_embeddings_are_no_llm_calls_and_speak_for_none(wrapped: bool, provider_url: str, pipeline: Pipeline) -> None:
    """Embeddings share the instrument; beside them an llm_call whose client is not instrumented keeps both its layers."""
    with openai.OpenAI(api_key="k", base_url=provider_url, max_retries=0) as client:
        if wrapped:
            with llm_call("llamaserver", "local") as call:
                client.embeddings.create(model="ok", input="canary")
                call.set_tokens(prompt=1, completion=2)
        else:
            client.embeddings.create(model="ok", input="canary")

    expected = said(1, 1, {"prompt": 1, "completion": 2}) if wrapped else said({}, {}, {})
    assert counts(pipeline) == expected


# ---- agents and tools that a library measures itself -------------------------------------------------------------------


def _library(pipeline: Pipeline) -> TelemetryHandler:
    return TelemetryHandler(tracer_provider=pipeline.tracer_provider, meter_provider=pipeline.meter_provider)


@pytest.mark.parametrize(
    ("inner", "expected"), [("planner", {"planner": 1}), ("critic", {"planner": 1, "critic": 1})], ids=["same", "other"]
)
def test_an_agent_that_its_library_measures_too_is_counted_once(
    inner: str, expected: dict[str, float], pipeline: Pipeline
) -> None:
    """The library's point of the same agent is this run; another agent's is a run of its own."""
    library = _library(pipeline)
    with agent("planner"):
        library.invoke_local_agent(agent_name=inner).stop()

    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == expected


def test_an_agent_handed_over_to_in_between_does_not_double_the_first(pipeline: Pipeline) -> None:
    """The library's point names its agent, not whatever runs inside it."""
    library = _library(pipeline)
    with agent("planner"):
        invocation = library.invoke_local_agent(agent_name="planner")
        with agent("critic"):
            pass
        invocation.stop()

    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == {"planner": 1, "critic": 1}


def test_a_tool_that_its_library_measures_too_is_recorded_once(pipeline: Pipeline) -> None:
    """As for agents, under whichever name the page shows."""
    library = _library(pipeline)
    with tool("search"):
        library.tool(name="search").stop()
    counted = {
        name: value for (name, _), value in pipeline.samples().items() if "tool" in name and name.endswith("_count")
    }

    assert list(counted.values()) == [1]
