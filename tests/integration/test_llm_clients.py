# SPDX-License-Identifier: Apache-2.0
"""The real clients of OpenAI and Anthropic against a local server: every ending, seen on the page and on the spans.

The oracle is the server: what arrived there, and the tokens that it reported.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import anthropic
import openai
import pytest
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor as StockInstrumentor
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from opentelemetry.util.genai import stream as stock_streams

from jeeves_otel import failsafe, llm_call
from jeeves_otel.content import Content
from jeeves_otel.integrations import genai
from jeeves_otel.llm_providers import LlmProviders, naming
from jeeves_otel.redaction import Redactor
from jeeves_otel.registry import load
from jeeves_otel.settings import Settings
from tests.helpers import counts_by, poll_until
from tests.integration.launching import free_port, launched, scrape
from tests.integration.llm_clients import LEAVES, TURNS, WAYS, Way, asked, entered, read, run, settled, to_the_end
from tests.integration.llm_servers import CANARY, COMPLETION, PROMPT, SLOW_S, Server, llm_servers
from tests.otlp import HttpReceiver, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jeeves_otel.registry import Registry
    from tests.helpers import Pipeline
    from tests.otlp import Receiver

pytestmark = pytest.mark.integration

STREAMS = {name: way for name, way in WAYS.items() if way.streams}
# One way per shape of a call; what ends before a way differs from these is the same for all.
SHAPES = ["chat", "chat stream", "responses", "responses stream", "embeddings", "messages", "messages stream"]
TOKENS = {"prompt": PROMPT, "completion": COMPLETION}
# What Anthropic's server has reported with its first event.
STARTED = {"prompt": PROMPT, "completion": 1}

sync_or_async = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
alone_or_wrapped = pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in an llm_call"])


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    """Serve both protocols."""
    with llm_servers() as server:
        yield server


@pytest.fixture
def server(serving: Server) -> Server:
    """Return the server, which has not been asked anything."""
    serving.reset()
    return serving


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Return the registry, read once for all rows."""
    return load()


@pytest.fixture
def measured(registry: Registry, make_pipeline: Callable[..., Pipeline]) -> Iterator[Pipeline]:
    """Return the pipeline into which both clients are measured."""
    pipeline = make_pipeline(registry=registry)
    with instrumented(pipeline):
        yield pipeline


class instrumented:  # noqa: N801 - reads as the statement it is
    """Measure both clients into *pipeline* inside the block."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._instrumentors = (genai.OpenAIInstrumentor(), genai.AnthropicInstrumentor())
        self._into = {"tracer_provider": pipeline.tracer_provider, "meter_provider": pipeline.meter_provider}

    def __enter__(self) -> None:
        for instrumentor in self._instrumentors:
            instrumentor.instrument(**self._into)

    def __exit__(self, *_: object) -> None:
        for instrumentor in self._instrumentors:
            instrumentor.uninstrument()


@pytest.fixture
def http_receiver() -> Iterator[Receiver]:
    """Return a running OTLP receiver over HTTP."""
    yield from running(HttpReceiver)


@pytest.fixture(autouse=True)
def _log_is_clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No row of any table says that a context cannot be detached, or anything that a user has typed."""
    yield
    assert "detach" not in caplog.text
    assert CANARY not in "".join(record.getMessage() for record in caplog.records if record.name != "asyncio")


class Span(NamedTuple):
    """What a row says about one span of a client."""

    name: str
    parent: str | None
    failed: bool
    error_type: str | None
    tokens: dict[str, int]


class Seen(NamedTuple):
    """What came out: calls by status in both layers, tokens, first tokens timed, and the spans of the clients."""

    engine: dict[str, float]
    provider: dict[str, float]
    tokens: dict[str, float]
    first_tokens: float
    spans: list[Span]


def seen(pipeline: Pipeline) -> Seen:
    """Return what the page and the exported spans say; nothing in them is content, and each call has one duration."""
    samples = pipeline.samples()

    def total(name: str) -> float:
        return sum(value for (sample, _), value in samples.items() if sample == name)

    found = Seen(
        pipeline.counts_by("jeeves_llm_calls_total", "status"),
        pipeline.counts_by("jeeves_llm_provider_calls_total", "status"),
        pipeline.counts_by("jeeves_llm_tokens_total", "type"),
        total("gen_ai_client_operation_time_to_first_chunk_seconds_count"),
        _spans(pipeline),
    )
    assert sum(found.engine.values()) == total("jeeves_llm_duration_seconds_count")
    assert sum(found.provider.values()) == total("jeeves_llm_provider_duration_seconds_count")
    assert CANARY not in pipeline.page(openmetrics=True)
    return found


def _spans(pipeline: Pipeline) -> list[Span]:
    exported = Redactor(Content()).spans(pipeline.spans())
    assert CANARY not in "".join(span.to_json() for span in exported)
    names = {span.context.span_id: span.name for span in exported if span.context}
    found = []
    for span in exported:
        attributes: Any = span.attributes or {}
        scope = span.instrumentation_scope.name if span.instrumentation_scope else ""
        if not scope.startswith("opentelemetry.instrumentation.genai"):
            assert scope in {"jeeves_otel", "test"}, "nobody else makes spans"
            continue
        assert span.kind is SpanKind.CLIENT
        failed = span.status.status_code is StatusCode.ERROR
        assert span.status.description in {None, attributes.get("error.type")}
        tokens = {
            kind: attributes[f"gen_ai.usage.{key}_tokens"]
            for kind, key in (("prompt", "input"), ("completion", "output"))
            if f"gen_ai.usage.{key}_tokens" in attributes
        }
        parent = names.get(span.parent.span_id, "unknown") if span.parent else None
        found.append(Span(span.name, parent, failed, attributes.get("error.type"), tokens))
    return found


def expected(
    way: Way,
    model: str,
    *,
    error: str | None = None,
    tokens: Any = (),
    wrapped: bool = False,
    first_token: bool = False,
) -> Seen:
    """Return what one call must look like."""
    counts: dict[str, float] = {"success" if error is None else "error": 1}
    wanted = dict(tokens)
    parent = "llm.provider.call" if wrapped else "application"
    if way.api != "embeddings":
        span = Span(f"chat {model}", parent, error is not None, error, wanted)
        return Seen(counts, counts, wanted, float(first_token), [span])
    span = Span(f"embeddings {model}", parent, error is not None, error, wanted)
    # Embeddings are no LLM calls; an llm_call around them has a client that is not measured.
    alone = counts if wrapped else {}
    return Seen(alone, alone, {}, 0.0, [span])


def ask(
    pipeline: Pipeline,
    way: Way,
    url: str,
    model: str,
    reading: Any = to_the_end,
    *,
    sync: bool,
    wrapped: bool = False,
    **options: Any,
) -> BaseException | None:
    """Ask inside a span of the application, and return what was raised."""
    tracer = pipeline.tracer_provider.get_tracer("test")
    raised: BaseException | None = None
    with tracer.start_as_current_span("application"):
        before = get_current_span()
        try:
            with llm_call("openai", "the-model") if wrapped else nullcontext():
                run(asked(way, url, model, reading, sync=sync, **options), sync=sync)
        except Exception as error:
            raised = error
        assert before is get_current_span(), "the application has its context back"
    return raised


def type_of(error: BaseException | None) -> str | None:
    """Return the ``error.type`` of *error*."""
    return None if error is None else f"{type(error).__module__}.{type(error).__qualname__}"


# ---- success ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@sync_or_async
@alone_or_wrapped
def test_every_way_to_ask_is_one_call_of_each_layer_with_its_tokens_once(
    way: str, sync: bool, wrapped: bool, server: Server, measured: Pipeline
) -> None:
    """One request at the server is one call, one duration and one span, with the tokens that the server reported."""
    error = ask(measured, WAYS[way], server.url, "ok", sync=sync, wrapped=wrapped)
    tokens = dict(server.tokens)
    if WAYS[way].api == "embeddings":
        tokens = {"prompt": PROMPT}
    elif way == "chat streaming response" and not sync:
        tokens = {}  # the stock instrumentation does not wait for this answer to be parsed
    found = seen(measured)

    assert error is None
    assert server.calls.total() == 1
    assert expected(WAYS[way], "ok", tokens=tokens, wrapped=wrapped, first_token=WAYS[way].streams) == found


@pytest.mark.parametrize("way", [name for name in SHAPES if name != "embeddings"])
@sync_or_async
def test_a_call_of_a_tool_is_a_success_like_a_text(way: str, sync: bool, server: Server, measured: Pipeline) -> None:
    """Arguments and definitions of tools are content; the first part of an argument is the first token."""
    error = ask(measured, WAYS[way], server.url, "tools", sync=sync)

    assert error is None
    assert expected(WAYS[way], "tools", tokens=TOKENS, first_token=WAYS[way].streams) == seen(measured)
    assert dict(server.tokens) == TOKENS


@pytest.mark.parametrize("way", STREAMS)
@sync_or_async
def test_a_stream_is_timed_to_its_end_and_its_first_token_not_its_first_event(
    way: str, sync: bool, server: Server, measured: Pipeline
) -> None:
    """The server opens the stream at once and thinks before it says anything."""
    ask(measured, WAYS[way], server.url, "slow", sync=sync)
    sums = {name: value for (name, _), value in measured.samples().items() if name.endswith("_seconds_sum")}
    first = sums["gen_ai_client_operation_time_to_first_chunk_seconds_sum"]

    assert first >= SLOW_S
    assert sums["jeeves_llm_duration_seconds_sum"] >= first
    assert sums["jeeves_llm_provider_duration_seconds_sum"] == sums["jeeves_llm_duration_seconds_sum"]


@pytest.mark.parametrize("way", SHAPES)
@sync_or_async
@alone_or_wrapped
def test_retries_are_one_call(way: str, sync: bool, wrapped: bool, server: Server, measured: Pipeline) -> None:
    """A 429 and a 503 that the client gets over are part of one successful call, whose tokens count once."""
    error = ask(measured, WAYS[way], server.url, "flaky", sync=sync, wrapped=wrapped, max_retries=2)
    tokens = {"prompt": PROMPT} if way == "embeddings" else TOKENS

    assert error is None
    assert server.calls.total() == 3
    assert seen(measured) == expected(WAYS[way], "flaky", tokens=tokens, wrapped=wrapped, first_token=WAYS[way].streams)


# ---- failure ---------------------------------------------------------------------------------------------------------


def _failures() -> Iterator[tuple[str, str]]:
    for name, way in WAYS.items():
        yield from ((name, model) for model in ("429", "dropped", "refused"))
        if way.streams:
            yield from ((name, model) for model in ("error", "garbage"))
        if name in SHAPES:
            yield from ((name, model) for model in ("400", "401", "500", "503", "hang"))
        if way.api == "messages":
            yield name, "529"


@pytest.mark.parametrize(("way", "model"), list(_failures()))
@sync_or_async
def test_every_failure_is_one_error_with_the_class_that_the_application_got(
    way: str, model: str, sync: bool, server: Server, measured: Pipeline
) -> None:
    """Statuses, refused and broken connections, time-outs, streams that fail midway: one error, none of its text."""
    _check_failure(WAYS[way], model, server, measured, sync=sync, wrapped=False)


@pytest.mark.parametrize("way", SHAPES)
@pytest.mark.parametrize("model", ["429", "dropped", "hang", "refused"])
@sync_or_async
def test_a_failure_inside_an_llm_call_is_one_error_of_each_layer(
    way: str, model: str, sync: bool, server: Server, measured: Pipeline
) -> None:
    """Engine 1, provider 1, and the tokens that were reported until then."""
    _check_failure(WAYS[way], model, server, measured, sync=sync, wrapped=True)


def _check_failure(way: Way, model: str, server: Server, measured: Pipeline, *, sync: bool, wrapped: bool) -> None:
    options = {"timeout": 0.2} if model == "hang" else {}
    url = _refusing() if model == "refused" else server.url
    error = ask(measured, way, url, model, sync=sync, wrapped=wrapped, **options)
    kind = type_of(error)
    if way.api == "responses" and model == "error":  # an event of the stream like any other: nothing is raised
        kind = "server_error"
    found = seen(measured)
    begun = way.streams and model in {"error", "dropped", "garbage"}
    tokens = STARTED if begun and way.api == "messages" else {}

    assert server.calls.total() == (0 if model == "refused" else 1)
    assert kind is not None
    assert (
        expected(way, model, error=kind, tokens=tokens, wrapped=wrapped, first_token=bool(found.first_tokens)) == found
    )
    assert found.first_tokens in ((0, 1) if begun else (0,))


def _refusing() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


# ---- streams that are left -------------------------------------------------------------------------------------------


def _opened(client: Any, model: str) -> Any:
    """Return a stream of *client*, or what must be awaited for it."""
    if hasattr(client, "messages"):
        return client.messages.create(model=model, max_tokens=9, messages=TURNS, stream=True)
    return client.chat.completions.create(model=model, messages=TURNS, stream=True)


def _client(library: str, server: Server, *, sync: bool = True) -> Any:
    if library == "anthropic":
        return (anthropic.Anthropic if sync else anthropic.AsyncAnthropic)(
            api_key="k", base_url=server.url, max_retries=0
        )
    return (openai.OpenAI if sync else openai.AsyncOpenAI)(api_key="k", base_url=f"{server.url}/v1", max_retries=0)


both_libraries = pytest.mark.parametrize("library", ["openai", "anthropic"])


def _collected(pipeline: Pipeline) -> None:
    """Collect what was forgotten, and wait until the call has ended."""

    def ended() -> bool:
        return any(span.kind is SpanKind.CLIENT for span in pipeline.spans())

    if not ended():
        gc.collect()
        poll_until(ended, "the forgotten stream to end")


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("leave", LEAVES)
@sync_or_async
def test_a_consumer_that_leaves_a_stream_has_had_its_call(
    way: str, leave: str, sync: bool, server: Server, measured: Pipeline
) -> None:
    """Closed, left, forgotten: one success, never an error and never nothing; what the consumer raises is an error."""
    error = ask(measured, WAYS[way], server.url, "ok", LEAVES[leave], sync=sync)
    _collected(measured)
    # The helper for chat completions closes its stream without a word about why.
    failed = leave == "consumer_failed" and way != "chat stream helper"
    kind = "tests.integration.llm_clients.ConsumerError" if failed else None
    tokens = STARTED if WAYS[way].api == "messages" else {}

    assert error is None
    assert expected(WAYS[way], "ok", error=kind, tokens=tokens) == seen(measured)


@both_libraries
@pytest.mark.parametrize("mend", [None, "_StreamTelemetry.__del__"], ids=["mended", "stock"])
def test_a_stream_that_a_scrape_collects_does_not_end_in_the_scrape(
    library: str, mend: str | None, server: Server, measured: Pipeline
) -> None:
    """A scrape holds the SDK's locks: it would wait for itself, and everybody else for it. The mend is still needed."""
    ended_in: list[int] = []
    kept: list[Any] = []

    class Ends(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended_in.append(get_ident())

    def collect_garbage(_: Any) -> list[Any]:
        kept.clear()
        gc.collect()
        return []

    measured.tracer_provider.add_span_processor(Ends())
    measured.meter_provider.get_meter("test").create_observable_gauge("test.gauge", [collect_garbage])
    with _client(library, server) as client, without_mend(mend):
        for forgotten_by in ("the scrape", "the application"):
            kept.append(_opened(client, forgotten_by))
            next(kept[0])
            if forgotten_by == "the scrape":
                measured.page()
            kept.clear()
            _collected(measured)
            measured.spans_exporter.clear()

    assert [ident == get_ident() for ident in ended_in] == [mend is not None, True]
    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"success": 2}


# ---- what else goes on while a stream is open -------------------------------------------------------------------------


@both_libraries
@pytest.mark.parametrize("other", ["openai", "anthropic"])
@sync_or_async
def test_calls_made_while_a_stream_is_open_count_for_themselves(
    library: str, other: str, sync: bool, server: Server, measured: Pipeline
) -> None:
    """A stream is no part of what the application does between two chunks: no call is lost, no span is its child."""
    tracer = measured.tracer_provider.get_tracer("test")

    async def work() -> None:
        async with (
            entered(_client(library, server, sync=sync)) as client,
            entered(_client(other, server, sync=sync)) as second,
        ):
            stream = await settled(_opened(client, "outer"))
            await read(stream, 1)
            with tracer.start_as_current_span("application"):
                await read(await settled(_opened(second, "inner")))
            await read(stream)

    run(work(), sync=sync)
    parents = {span.name: span.parent for span in seen(measured).spans}

    assert server.calls.total() == 2
    assert measured.counts_by("jeeves_llm_calls_total", "model") == {"outer": 1, "inner": 1}
    assert parents == {"chat outer": None, "chat inner": "application"}


@both_libraries
def test_a_stream_may_end_in_another_task_than_it_began(library: str, server: Server, measured: Pipeline) -> None:
    """Opened here, read there, closed elsewhere: one call each, and every task keeps the context that it had."""
    contexts: list[Any] = []

    async def work() -> None:
        async with _client(library, server, sync=False) as client:
            for way in ("read", "close", "generator"):
                stream = await _opened(client, way)
                contexts.append(get_current_span())
                if way == "generator":
                    generator = _chunks(stream)
                    await asyncio.create_task(anext(generator))
                    await asyncio.create_task(generator.aclose())
                else:
                    await asyncio.create_task(read(stream, 1))
                    await asyncio.create_task(read(stream) if way == "read" else stream.close())
                contexts.append(get_current_span())

    asyncio.run(work())

    assert not any(span.get_span_context().is_valid for span in contexts)
    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"success": 3}


async def _chunks(stream: Any) -> Any:
    async with stream:
        async for chunk in stream:
            yield chunk


@both_libraries
def test_a_stream_may_end_in_another_thread_than_it_began(library: str, server: Server, measured: Pipeline) -> None:
    """A web server that streams an answer reads it where it likes."""
    with _client(library, server) as client:
        stream = _opened(client, "ok")
        thread = Thread(target=lambda: list(stream))
        thread.start()
        thread.join()

    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"success": 1}
    assert not get_current_span().get_span_context().is_valid


@both_libraries
def test_a_task_that_is_cancelled_while_it_reads_is_one_error(library: str, server: Server, measured: Pipeline) -> None:
    """A time-out around a provider that hangs arrives as a cancellation (docs/decisions/0003-how-operations-end.md)."""

    async def work() -> None:
        async with _client(library, server, sync=False) as client:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(SLOW_S / 3):
                    await read(await _opened(client, "slow"))

    asyncio.run(work())
    (span,) = seen(measured).spans

    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"error": 1}
    assert span.error_type in {"asyncio.exceptions.CancelledError", "CancelledError"}


# ---- who instruments, and when ----------------------------------------------------------------------------------------


def test_an_application_that_imports_neither_library_pays_for_neither() -> None:
    """Activation waits for the import; then the clients are measured."""
    script = """
import sys
from jeeves_otel.integrations.genai import AnthropicInstrumentor, OpenAIInstrumentor
for each in (OpenAIInstrumentor(), AnthropicInstrumentor()):
    each.instrument(skip_dep_check=True)
def loaded():
    return sorted({name for name in sys.modules if name in ("openai", "anthropic", "opentelemetry.util.genai")})
print(loaded())
import openai
print(loaded(), hasattr(openai.OpenAI(api_key="k").chat.completions.create, "__wrapped__"))
import anthropic
print(loaded(), hasattr(anthropic.Anthropic(api_key="k").messages.create, "__wrapped__"))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()

    assert lines == [
        "[]",
        "['openai', 'opentelemetry.util.genai'] True",
        "['anthropic', 'openai', 'opentelemetry.util.genai'] True",
    ]


def test_nothing_is_left_behind_when_nothing_is_measured_any_more(pipeline: Pipeline) -> None:
    """Every function that was replaced is its own again, and so is the environment."""
    from opentelemetry.instrumentation.genai.anthropic import wrappers

    def functions() -> list[Any]:
        return [
            *vars(stock_streams.SyncStreamWrapper).values(),
            *vars(stock_streams.AsyncStreamWrapper).values(),
            *vars(stock_streams._StreamTelemetry).values(),
            *vars(wrappers.MessagesStreamWrapper).values(),
            openai.resources.chat.completions.Completions.create,
            anthropic.resources.messages.Messages.create,
            os.environ.get("ANTHROPIC_OPEN_TELEMETRY"),
        ]

    before = functions()
    with instrumented(pipeline):
        during = functions()
        with instrumented(pipeline):  # twice is once
            pass
    after = functions()

    assert during != before
    assert after == before


def test_a_twin_that_was_there_first_is_not_doubled(server: Server, pipeline: Pipeline) -> None:
    """The stock instrumentation, activated by somebody else, is mended and not activated again."""
    stock = StockInstrumentor()
    stock.instrument(tracer_provider=pipeline.tracer_provider, meter_provider=pipeline.meter_provider)
    with instrumented(pipeline):
        ask(pipeline, WAYS["chat stream"], server.url, "ok", LEAVES["dropped_on_the_floor"], sync=True)
        _collected(pipeline)
    stock.uninstrument()

    assert expected(WAYS["chat stream"], "ok") == seen(pipeline)


def test_the_span_of_anthropics_own_client_is_off_unless_asked_for(
    server: Server, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client makes a span of its own, beside the one that is measured; a user's value wins."""
    monkeypatch.delenv("ANTHROPIC_OPEN_TELEMETRY", raising=False)
    with instrumented(pipeline):
        with _client("anthropic", server) as client:
            assert client.open_telemetry["traces"]["enabled"] is False
        monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "true")
        with _client("anthropic", server) as client:
            assert client.open_telemetry["traces"]["enabled"] is True


STOCK_TROUBLE: dict[str, tuple[str, str, str, bool]] = {
    "SyncStreamWrapper._advance": ("chat raw stream", "error", "to_the_end", True),
    "AsyncStreamWrapper._advance": ("chat raw stream", "error", "to_the_end", False),
    "_StreamTelemetry._finalize_success": ("chat raw stream", "error", "to_the_end", True),
    "_StreamTelemetry._finalize_failure": ("chat stream", "ok", "generator_closed", True),
    "InferenceInvocation._on_stream_chunk": ("chat stream", "ok", "closed_early", True),
    "_set_response_properties": ("chat streaming response", "ok", "to_the_end", False),
    "MessagesStreamWrapper.__init__": ("messages stream", "ok", "while it is open", True),
    "AsyncMessagesStreamWrapper.__init__": ("messages stream", "ok", "while it is open", False),
    "MessagesStreamWrapper.text_stream": ("messages text stream", "ok", "to_the_end", True),
    "AsyncMessagesStreamWrapper.text_stream": ("messages text stream", "ok", "to_the_end", False),
}


@pytest.mark.parametrize("mend", STOCK_TROUBLE)
def test_every_mend_is_still_needed(
    mend: str, server: Server, registry: Registry, make_pipeline: Callable[..., Pipeline]
) -> None:
    """Without it the same call looks otherwise; when this fails, upstream has mended it and ours can go."""
    way, model, leave, sync = STOCK_TROUBLE[mend]
    found = []
    for without in (None, mend):
        pipeline = make_pipeline(registry=registry)
        with instrumented(pipeline), without_mend(without), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            tracer = pipeline.tracer_provider.get_tracer("test")
            current: list[str] = []

            async def while_it_is_open(stream: Any, current: list[str] = current) -> None:
                current.append(getattr(get_current_span(), "name", ""))
                await read(stream)

            reading = while_it_is_open if leave == "while it is open" else LEAVES.get(leave, to_the_end)
            with tracer.start_as_current_span("application"), suppress(openai.APIError):
                run(asked(WAYS[way], server.url, model, reading, sync=sync), sync=sync)
            _collected(pipeline)
        named = [str(warning.message) for warning in warned if "never awaited" in str(warning.message)]
        found.append((seen(pipeline), current, named))

    assert found[0] != found[1]


def test_a_raw_response_leaves_the_application_its_context(server: Server, measured: Pipeline) -> None:
    """Between asking and parsing too; the mend that sees to it is still needed."""
    current = []
    for mend in (None, "RawResponseProxy.__init__"):
        with without_mend(mend), _client("anthropic", server) as client:
            raw = client.messages.with_raw_response.create(model="ok", max_tokens=9, messages=TURNS, stream=True)
            current.append(get_current_span().is_recording())
            list(raw.parse())

    assert current == [False, True]
    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"success": 2}


@contextmanager
def without_mend(path: str | None) -> Iterator[None]:
    """Put the stock function back inside the block."""
    patches = [
        patch for library in genai._LIBRARIES.values() for patch in library.patches if path and patch.path == path
    ]
    for patch in patches:
        patch.undo()
    yield
    for patch in patches:
        patch.apply()


@pytest.mark.parametrize(
    ("module", "path", "mend"),
    [
        ("opentelemetry.util.genai.gone", "SyncStreamWrapper._advance", genai._watched),
        ("opentelemetry.util.genai.stream", "Gone._advance", genai._watched),
        ("opentelemetry.util.genai.stream", "SyncStreamWrapper._gone", genai._watched),
        ("opentelemetry.util.genai.stream", "SyncStreamWrapper.close", genai._watched),
        ("opentelemetry.util.genai.stream", "SyncStreamWrapper.close", genai._text_stream),
    ],
    ids=["no module", "no class", "no function", "other arguments", "there already"],
)
def test_an_instrumentation_that_is_built_otherwise_keeps_its_own_ways(module: str, path: str, mend: Any) -> None:
    """What another version does not have, or has otherwise, is counted, and neither replaced nor added."""
    failsafe.set_strict(False)
    before = dict(vars(stock_streams.SyncStreamWrapper))

    assert genai._Patch(module, path, mend).apply() is False
    assert failsafe.counts() == {"genai.mend": 1}
    assert before == dict(vars(stock_streams.SyncStreamWrapper))


def test_a_stream_whose_chunks_cannot_be_read_reaches_the_application(
    server: Server, measured: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of ours is counted; the application gets every chunk, and the call counts."""
    failsafe.set_strict(False)
    monkeypatch.setattr(genai, "carries_output", lambda _: 1 / 0)
    with _client("openai", server) as client:
        chunks = len(list(_opened(client, "ok")))

    assert failsafe.counts() == {"genai.chunk": chunks}
    assert measured.counts_by("jeeves_llm_calls_total", "status") == {"success": 1}


# ---- who the provider is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "provider"),
    [
        ("", "openai"),
        ("llamaserver=http://127.0.0.1:{port}", "llamaserver"),
        ("llamaserver=http://127.0.0.1:{port}/v1", "llamaserver"),
        ("llamaserver=127.0.0.1", "llamaserver"),
        ("llamaserver=localhost:{port}", "openai"),
        ("llamaserver=127.0.0.1:1", "openai"),
        ("other=127.0.0.1; llamaserver=127.0.0.1:{port}", "llamaserver"),
    ],
)
@alone_or_wrapped
def test_the_server_names_the_provider_on_the_page_and_on_the_span(
    rules: str, provider: str, wrapped: bool, server: Server, registry: Registry, make_pipeline: Callable[..., Pipeline]
) -> None:
    """By one setting; without a rule about the server it is what the library speaks."""
    settings, findings = Settings.from_env({"JEEVES_OTEL_LLM_PROVIDERS": rules.format(port=server.port)})
    llm_providers = LlmProviders(settings.llm_providers)
    pipeline = make_pipeline(registry=registry, llm_providers=llm_providers)
    with instrumented(pipeline), llm_call(provider, "the-model") if wrapped else nullcontext():
        run(asked(WAYS["chat stream"], server.url, "slow", sync=True), sync=True)
        run(asked(WAYS["embeddings"], server.url, "ok", sync=True), sync=True)
    named = {
        (span.attributes or {}).get("gen_ai.provider.name")
        for span in naming(llm_providers)(pipeline.spans())
        if span.name.startswith(("chat", "embeddings"))
    }
    families = ("jeeves_llm_calls_total", "jeeves_llm_provider_calls_total", "jeeves_llm_tokens_total")
    labels = {label for family in families for label in pipeline.counts_by(family, "provider")}
    first = pipeline.counts_by("gen_ai_client_operation_time_to_first_chunk_seconds_count", "gen_ai_provider_name")

    assert findings == []
    assert {provider} == labels == set(first) == named


# ---- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", SHAPES)
@sync_or_async
def test_content_stands_in_known_attributes_only_and_only_if_asked_for(
    way: str, sync: bool, server: Server, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT keeps its meaning; these are the attributes that it fills."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    with instrumented(pipeline):
        run(asked(WAYS[way], server.url, "tools", sync=sync), sync=sync)
    (span,) = pipeline.spans()
    holding = {key for key, value in (span.attributes or {}).items() if CANARY in str(value)}
    messages = {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"}
    asked_for = {
        "embeddings": set(),
        "chat": messages,
        "responses": messages | {"gen_ai.system_instructions"},
        "messages": messages | {"gen_ai.system_instructions"},
    }[WAYS[way].api]
    if way == "responses stream":
        asked_for -= {"gen_ai.system_instructions"}  # not sent in this way

    assert asked_for == holding
    assert CANARY not in pipeline.page()


# ---- under the launcher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["none", "all"])
def test_a_launched_application_has_one_span_and_one_count_per_call(
    content: str, server: Server, http_receiver: Receiver
) -> None:
    """Nothing is imported for it, nothing doubled; the server names the provider; no content leaves unless asked for."""
    port = free_port()
    settings = {
        "JEEVES_OTEL_LLM_PROVIDERS": f"llamaserver={server.url}",
        "JEEVES_OTEL_CONTENT": content,
        "LLM_URL": server.url,
        "LLM_CANARY": CANARY,
        "METRICS_PORT": str(port),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_ENDPOINT": http_receiver.endpoint,
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    with launched("llm.py", **settings) as app:
        app.wait_ready()
        poll_until(lambda: len(http_receiver.spans()) >= 6, "six spans")
        samples = scrape(port)
        app.finish()
    spans = http_receiver.spans()
    providers = {value.value.string_value for span in spans for value in span.attributes if "provider" in value.key}

    assert app.out[0] == "imported at start: []\n"
    assert server.calls.total() == len(spans) == 6
    assert providers == {"llamaserver"}
    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 4, "error": 2}
    assert counts_by(samples, "jeeves_llm_provider_calls_total", "provider") == {"llamaserver": 6}
    assert counts_by(samples, "jeeves_llm_tokens_total", "type") == {"prompt": 400, "completion": 61}
    assert (CANARY in str(http_receiver.requests)) == (content == "all")
    assert CANARY not in app.log
    assert "detach" not in app.log
