# SPDX-License-Identifier: Apache-2.0
"""operations: every operation, in every shape, ends once and as promised, whatever leaves it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import logging
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context, trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from jeeves_otel import (
    agent,
    current_llm_call,
    failsafe,
    interrupt,
    llm_call,
    orchestration,
    pipeline as run_pipeline,
    record_llm_call,
    session,
    tool,
)
from jeeves_otel.operations import Operation, error_type, outcome_of
from tests.helpers import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.helpers import Pipeline

    Body = Callable[[], Any]
    Factory = Callable[[], Operation[Any]]


@pytest.fixture(autouse=True)
def _nothing_is_logged_and_nothing_left_open(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No operation logs a failed detach (or anything else), and none leaves its context behind."""
    before = otel_context.get_current()
    with caplog.at_level(logging.WARNING):
        yield

        assert [record.getMessage() for record in caplog.records] == []
        assert otel_context.get_current() == before


# ---- the shapes ------------------------------------------------------------------------------------------------------


def in_with(operation: Operation[Any], body: Body) -> Any:
    """Run *body* in ``with``."""
    with operation:
        return body()


def in_async_with(operation: Operation[Any], body: Body) -> Any:
    """Run *body* in ``async with``."""

    async def main() -> Any:
        async with operation:
            return body()

    return _drive(main())


def in_function(operation: Operation[Any], body: Body) -> Any:
    """Run *body* as a decorated function."""
    return operation(lambda: body())()  # noqa: PLW0108 - a function of its own is decorated


def in_coroutine(operation: Operation[Any], body: Body) -> Any:
    """Run *body* in a decorated coroutine function."""

    @operation
    async def decorated() -> Any:
        return body()

    return _drive(decorated())


def in_generator(operation: Operation[Any], body: Body) -> Any:
    """Run *body* after the first value of a decorated generator."""

    @operation
    def decorated() -> Generator[int, None, Any]:
        yield 1
        return body()

    def consume() -> Generator[int, None, Any]:
        return (yield from decorated())

    consumer = consume()
    try:
        while True:
            next(consumer)
    except StopIteration as stop:
        return stop.value


def in_async_generator(operation: Operation[Any], body: Body) -> Any:
    """Run *body* after the first value of a decorated async generator."""
    results = []

    @operation
    async def decorated() -> AsyncIterator[int]:
        yield 1
        results.append(body())

    async def main() -> Any:
        async for _ in decorated():
            pass
        return results[0]

    return _drive(main())


def _drive(coroutine: Any) -> Any:
    # By hand: an event loop would turn SystemExit and KeyboardInterrupt into an end of its own.
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


SHAPES = [in_with, in_async_with, in_function, in_coroutine, in_generator, in_async_generator]
shapes = pytest.mark.parametrize("shape", SHAPES)


# ---- the operations, and what each promises of each ending -----------------------------------------------------------


class Refused(TimeoutError):
    """A timeout of a library."""


ENDINGS: dict[str, BaseException | None] = {
    "return": None,
    "exception": ValueError("canary"),
    "timeout": TimeoutError("canary"),
    "library timeout": Refused("canary"),
    "stop iteration": LookupError("canary"),
    "cancellation": asyncio.CancelledError("canary"),
    "early close": GeneratorExit("canary"),
    "keyboard": KeyboardInterrupt("canary"),
    "exit": SystemExit("canary"),
}
CANCELLED = {"cancellation", "keyboard", "exit"}
endings = pytest.mark.parametrize("ending", ENDINGS)


@dataclass(frozen=True)
class Promise:
    """What one operation promises."""

    make: Factory
    count: Callable[[Pipeline], Any]
    ended: Callable[[str], Any]  # ending → expected count
    span: tuple[str, SpanKind] | None
    fails: Callable[[str], bool]


def _pipeline_status(ending: str) -> str:
    if ending == "return":
        return "success"
    return "terminated" if ending in CANCELLED | {"early close"} else "error"


def _status(ending: str) -> str:
    return "success" if ending in {"return", "early close"} else "error"


def _interrupt_status(ending: str) -> str:
    if ending == "return":
        return "resolved"
    return "expired" if "timeout" in ending else "cancelled"


def _in_flight(pipeline: Pipeline, name: str) -> float:
    return pipeline.samples()[name, ()]


PROMISES = {
    "pipeline": Promise(
        lambda: run_pipeline("chat"),
        lambda p: p.counts_by("jeeves_pipeline_executions_total", "status"),
        lambda ending: {_pipeline_status(ending): 1},
        ("pipeline.execute", SpanKind.INTERNAL),
        lambda ending: _pipeline_status(ending) == "error",
    ),
    "agent": Promise(
        lambda: agent("planner"),
        lambda p: p.counts_by("jeeves_agent_executions_total", "status"),
        lambda ending: {_status(ending): 1},
        ("agent.process", SpanKind.INTERNAL),
        lambda ending: _status(ending) == "error",
    ),
    "tool": Promise(
        lambda: tool("search"),
        lambda p: p.counts_by("jeeves_tool_calls_total", "status"),
        lambda ending: {_status(ending): 1},
        ("execute_tool search", SpanKind.INTERNAL),
        lambda ending: _status(ending) == "error",
    ),
    "llm_call": Promise(
        lambda: llm_call("openai", "gpt"),
        lambda p: [
            p.counts_by(name, "status") for name in ("jeeves_llm_calls_total", "jeeves_llm_provider_calls_total")
        ],
        lambda ending: [{_status(ending): 1}] * 2,
        ("llm.provider.call", SpanKind.CLIENT),
        lambda ending: _status(ending) == "error",
    ),
    "interrupt": Promise(
        lambda: interrupt("confirmation"),
        lambda p: p.counts_by("jeeves_interrupts_total", "status"),
        lambda ending: {"pending": 1, _interrupt_status(ending): 1},
        None,
        lambda _: False,
    ),
    "orchestration": Promise(
        orchestration,
        lambda p: (
            p.counts_by("orchestrator_requests_total", "outcome"),
            _in_flight(p, "orchestrator_inflight_requests"),
        ),
        lambda ending: ({"success" if _status(ending) == "success" else "failed": 1}, 0),
        None,
        lambda _: False,
    ),
    "session": Promise(
        session, lambda p: _in_flight(p, "jeeves_user_sessions_active"), lambda _: 0, None, lambda _: False
    ),
}
operations = pytest.mark.parametrize("operation", PROMISES)
spanned = pytest.mark.parametrize("operation", [name for name, promise in PROMISES.items() if promise.span])


def _body(error: BaseException | None) -> Body:
    def body() -> str:
        if error is not None:
            raise error
        return "reply"

    return body


@shapes
@endings
@operations
def test_every_ending_counts_once_and_reaches_the_caller_untouched(
    operation: str, ending: str, shape: Callable[..., Any], pipeline: Pipeline
) -> None:
    """Whatever ends an operation, in whatever shape: one count as promised, one span, the same result or exception."""
    promise, error = PROMISES[operation], ENDINGS[ending]

    if error is None:
        assert shape(promise.make(), _body(None)) == "reply"
    else:
        with pytest.raises(type(error)) as caught:
            shape(promise.make(), _body(error))
        assert caught.value is error
        assert (error.__cause__, error.__context__) == (None, None)
        assert traceback.extract_tb(error.__traceback__)[-1].name == "body"
        error.__traceback__ = None

    assert promise.count(pipeline) == promise.ended(ending)
    assert "canary" not in pipeline.page() + "".join(span.to_json() for span in pipeline.spans())
    _assert_span(promise, ending, error, pipeline.spans())


def _assert_span(promise: Promise, ending: str, error: BaseException | None, spans: tuple[ReadableSpan, ...]) -> None:
    assert [(span.name, span.kind) for span in spans] == ([promise.span] if promise.span else [])
    for span in spans:
        if promise.fails(ending):
            assert error is not None
            expected: tuple[Any, ...] = (StatusCode.ERROR, error_type(error), error_type(error))
        else:
            expected = (StatusCode.OK, None, None)
        exceptions = [event.attributes for event in span.events if event.name == "exception"]
        assert (span.status.status_code, span.status.description, (span.attributes or {}).get("error.type")) == expected
        assert exceptions == ([{"exception.type": error_type(error)}] if error and promise.fails(ending) else [])


@pytest.mark.parametrize("error", [error for error in ENDINGS.values() if error is not None], ids=repr)
@shapes
@pytest.mark.usefixtures("pipeline")
def test_decorating_changes_the_traceback_by_its_own_frames_only(
    shape: Callable[..., Any], error: BaseException
) -> None:
    """The frames of the application stand in the traceback as without telemetry."""

    def frames(operation: Any) -> list[str]:
        with pytest.raises(type(error)) as caught:
            shape(operation, _body(error))
        found = [
            frame.name
            for frame in traceback.extract_tb(caught.value.__traceback__)
            if "jeeves_otel" not in frame.filename.replace("\\", "/").rsplit("/", 2)[-2]
        ]
        error.__traceback__ = None
        return found

    assert frames(agent("a")) == frames(_Undecorated())


class _Undecorated:
    """What stands where an operation would, and does nothing."""

    def __call__(self, function: Any) -> Any:
        return function

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


# ---- what the application says while it runs --------------------------------------------------------------------------


@spanned
def test_a_second_finish_does_nothing(operation: str, pipeline: Pipeline) -> None:
    """Finished inside the block, left by it, finished again: one count and one span."""
    promise = PROMISES[operation]
    with promise.make() as run:
        run.finish()
    run.finish(ValueError())

    assert promise.count(pipeline) == promise.ended("return")
    assert len(pipeline.spans()) == 1


@pytest.mark.parametrize("said", ["quota", "module.Quota"])
@spanned
def test_fail_makes_an_error_of_an_operation_that_returns(operation: str, said: str, pipeline: Pipeline) -> None:
    """The class that was said is the error type; there is no exception event, because there was none."""
    promise = PROMISES[operation]
    with promise.make() as run:
        run.fail(said)
    (span,) = pipeline.spans()

    assert promise.count(pipeline) == promise.ended("exception")
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, said)
    assert "exception" not in [event.name for event in span.events]


@pytest.mark.parametrize("said", [ValueError("canary"), ValueError])
@spanned
def test_fail_with_an_exception_tells_its_class_and_never_its_text(
    operation: str, said: Any, pipeline: Pipeline
) -> None:
    """An exception handed to fail() leaves its class behind, not what it says."""
    with PROMISES[operation].make() as run:
        run.fail(said)
    (span,) = pipeline.spans()

    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "canary" not in pipeline.page() + span.to_json()


@spanned
def test_what_was_said_to_have_failed_has_failed_though_its_consumer_left(operation: str, pipeline: Pipeline) -> None:
    """fail() is stronger than an early close and than a cancellation that would be no error."""
    promise = PROMISES[operation]
    with pytest.raises(GeneratorExit), promise.make() as run:  # noqa: PT012 - as the application would
        run.fail("Quota")
        raise GeneratorExit

    assert promise.count(pipeline) == promise.ended("exception")
    assert [span.status.status_code for span in pipeline.spans()] == [StatusCode.ERROR]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "terminated"), (ValueError(), "error"), (asyncio.CancelledError(), "terminated")],
    ids=["return", "exception", "cancellation"],
)
def test_a_terminated_pipeline_is_terminated_unless_an_error_leaves_it(
    error: BaseException | None, expected: str, pipeline: Pipeline
) -> None:
    """terminate() is no error, and an error is stronger."""
    with pytest.raises(type(error)) if error else nullcontext(), run_pipeline("chat") as run:
        run.terminate("clarification_required")
        if error:
            raise error
    (span,) = pipeline.spans()

    assert pipeline.counts_by("jeeves_pipeline_executions_total", "status") == {expected: 1}
    assert (span.attributes or {})["pipeline.status"] == expected
    reason = (span.attributes or {}).get("termination.reason")
    assert reason == ("clarification_required" if expected == "terminated" else None)


def test_settle_is_stronger_than_how_the_block_ends(pipeline: Pipeline) -> None:
    """An interrupt that says how it ends, ends so."""
    with pytest.raises(TimeoutError), interrupt("timeout") as raised:  # noqa: PT012 - as above
        raised.settle("resolved")
        raise TimeoutError

    assert pipeline.counts_by("jeeves_interrupts_total", "status") == {"pending": 1, "resolved": 1}


def test_outcomes_are_told_apart_by_what_leaves() -> None:
    """Errors, cancellations of any library, and consumers that stop reading."""

    class CancelledError(Exception):
        pass

    errors = [None, ValueError(), CancelledError(), asyncio.CancelledError(), SystemExit(), GeneratorExit()]

    assert [outcome_of(error) for error in errors] == [
        "ok",
        "error",
        "cancelled",
        "cancelled",
        "cancelled",
        "interrupted",
    ]


# ---- spans as the contract says ---------------------------------------------------------------------------------------


def test_spans_carry_the_attributes_and_events_of_the_contract(pipeline: Pipeline) -> None:
    """Names, kinds, attributes with their types, events; everything in one trace, each inside the one before."""
    with (
        run_pipeline("chat", request_id="r1", user_id="u1", mode="sequential"),
        agent("planner", agent_type="llm"),
        llm_call("openai", "gpt-4o") as call,
        tool("search"),
    ):
        call.set_tokens(prompt=3, completion=4)
        call.set_cost_usd(0.25)
        call.set_response_model("gpt-4o-2024")
    spans = {span.name: span for span in pipeline.spans()}
    attributes = {
        name: {k: "…" if k.endswith(("_ms", "_time_ms")) else v for k, v in (span.attributes or {}).items()}
        for name, span in spans.items()
    }

    assert attributes == {
        "pipeline.execute": {
            "pipeline.name": "chat",
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": "chat",
            "request.id": "r1",
            "user.id": "u1",
            "pipeline.mode": "sequential",
            "pipeline.status": "success",
            "pipeline.duration_ms": "…",
        },
        "agent.process": {
            "jeeves.agent.name": "planner",
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "planner",
            "jeeves.request.id": "r1",
            "jeeves.agent.type": "llm",
            "jeeves.llm.calls": 1,
            "duration_ms": "…",
        },
        "llm.provider.call": {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.response.model": "gpt-4o-2024",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 4,
            "jeeves.llm.provider": "openai",
            "jeeves.llm.model": "gpt-4o",
            "jeeves.agent.name": "planner",
            "jeeves.request.id": "r1",
            "jeeves.llm.tokens.prompt": 3,
            "jeeves.llm.tokens.completion": 4,
            "jeeves.llm.tokens.total": 7,
            "jeeves.llm.cost_usd": 0.25,
            "jeeves.llm.latency_ms": "…",
        },
        "execute_tool search": {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "search",
            "tool.name": "search",
            "jeeves.agent.name": "planner",
            "tool.status": "success",
            "tool.execution_time_ms": "…",
        },
    }
    assert [event.name for event in spans["pipeline.execute"].events] == ["pipeline.started", "pipeline.completed"]
    assert [_parent_name(spans, name) for name in attributes] == [
        "llm.provider.call",
        "agent.process",
        "pipeline.execute",
        None,
    ]


def _parent_name(spans: dict[str, ReadableSpan], name: str) -> str | None:
    parent = spans[name].parent
    if parent is None:
        return None
    return next(other for other, span in spans.items() if span.context.span_id == parent.span_id)


def test_a_call_without_a_model_says_default_on_its_span_only(pipeline: Pipeline) -> None:
    """The contract wants ``default`` on the span; the metric says that the model is unknown."""
    with llm_call("llamaserver"):
        pass
    (span,) = pipeline.spans()

    assert (span.attributes or {})["jeeves.llm.model"] == "default"
    assert pipeline.counts_by("jeeves_llm_calls_total", "model") == {"unknown": 1}


def test_a_fallback_is_counted_for_who_answered(pipeline: Pipeline) -> None:
    """set_answered_by() moves the call, its tokens and its span to the provider and model that answered."""
    with llm_call("openai", "gpt-4o") as call:
        call.set_answered_by(provider="anthropic", model="sonnet")
        call.set_tokens(prompt=5)
    (span,) = pipeline.spans()

    assert pipeline.counts_by("jeeves_llm_calls_total", "provider") == {"anthropic": 1}
    assert pipeline.counts_by("jeeves_llm_tokens_total", "model") == {"sonnet": 5}
    assert (span.attributes or {})["jeeves.llm.provider"] == "anthropic"


def test_an_agent_counts_the_calls_that_it_makes_and_not_their_layers(pipeline: Pipeline) -> None:
    """A call within a call is the same call to the agent."""
    with agent("a"):
        with llm_call("router"), llm_call("openai"):
            pass
        with llm_call("openai"):
            pass

    assert (pipeline.spans()[-1].attributes or {})["jeeves.llm.calls"] == 2


# ---- decorated functions ----------------------------------------------------------------------------------------------


def test_decorated_functions_keep_kind_name_text_and_signature() -> None:
    """A decorated function is still what frameworks look for."""

    def plain(a: int, *, b: str = "x") -> str:
        """Say it."""
        return f"{a}{b}"

    async def coroutine(a: int, *, b: str = "x") -> str:
        """Say it."""
        return f"{a}{b}"

    def generator(a: int, *, b: str = "x") -> Iterator[str]:
        """Say it."""
        yield f"{a}{b}"

    async def async_generator(a: int, *, b: str = "x") -> AsyncIterator[str]:
        """Say it."""
        yield f"{a}{b}"

    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    for function in (plain, coroutine, generator, async_generator):
        decorated = agent("a")(function)

        assert [kind(decorated) for kind in kinds] == [kind(function) for kind in kinds]
        assert inspect.signature(decorated) == inspect.signature(function)
        assert (decorated.__name__, decorated.__doc__) == (function.__name__, "Say it.")
        assert decorated.__wrapped__ is function  # type: ignore[attr-defined]  # functools.wraps


def test_methods_of_all_kinds_can_be_decorated_above_and_below(pipeline: Pipeline) -> None:
    """self, cls and nothing arrive as without decoration, wherever the decorator stands."""

    class Worker:
        @agent("a")
        def method(self) -> Any:
            return self

        @agent("a")
        @staticmethod
        def above_static(value: int) -> int:
            return value

        @staticmethod
        @agent("a")
        def below_static(value: int) -> int:
            return value

        @agent("a")
        @classmethod
        def above_class(cls) -> Any:
            return cls

        @agent("a")
        @staticmethod
        async def async_static() -> str:
            return "awaited"

    worker = Worker()

    assert worker.method() is worker
    assert (worker.above_static(1), Worker.above_static(2), worker.below_static(3)) == (1, 2, 3)
    assert worker.above_class() is Worker
    assert _drive(worker.async_static()) == "awaited"
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 6}


def test_a_partial_of_a_coroutine_function_is_awaited_inside(pipeline: Pipeline) -> None:
    """The operation lasts until the coroutine has ended, not until it was made."""

    async def ask(question: str) -> str:
        assert current_llm_call() is not None
        return question

    assert _drive(llm_call("openai")(functools.partial(ask, "why"))()) == "why"
    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"success": 1}


def test_recursion_counts_every_level_and_nests_it(pipeline: Pipeline) -> None:
    """One decorated function that calls itself opens one operation per call, each inside the one before."""

    @agent("recursive")
    def descend(depth: int) -> int:
        return 1 if depth == 1 else 1 + descend(depth - 1)

    assert descend(5) == 5
    spans = pipeline.spans()
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 5}
    assert [span.parent.span_id for span in spans[:-1] if span.parent] == [span.context.span_id for span in spans[1:]]


def test_one_object_can_be_entered_inside_itself(pipeline: Pipeline) -> None:
    """The innermost entry ends first, also when it was finished by hand before."""
    operation = agent("a")
    with operation as outer:
        with operation as inner:
            inner.finish()
        assert not outer._finished
        with pytest.raises(ValueError, match="x"), operation:
            raise ValueError("x")

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 2, "error": 1}


@pytest.mark.usefixtures("pipeline")
def test_a_block_that_is_left_more_often_than_entered_is_only_counted() -> None:
    """An unbalanced exit is a mistake of the program that telemetry does not make worse."""
    failsafe.set_strict(False)
    logging.getLogger("jeeves_otel").disabled = True
    try:
        agent("a").__exit__(None, None, None)
    finally:
        logging.getLogger("jeeves_otel").disabled = False

    assert failsafe.counts() == {"agent.context": 1}


# ---- tasks, threads, contexts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: agent("a"), orchestration], ids=["with span", "without span"])
def test_one_object_in_many_concurrent_tasks_ends_each_run_with_its_own_outcome(
    make: Factory, pipeline: Pipeline
) -> None:
    """Tasks that leave in another order than they entered get their own exceptions counted, not each other's."""
    operation = make()

    async def run(number: int, everyone_in: asyncio.Barrier, turns: list[asyncio.Event]) -> bool:
        try:
            async with operation as handle:
                await everyone_in.wait()
                await turns[number].wait()
                if number % 4 == 0:
                    raise ValueError  # noqa: TRY301 - what the test is about
        except ValueError:
            pass
        ended_here = bool(handle._finished)
        turns[(number + 7) % 20].set()
        return ended_here

    async def main() -> list[Any]:
        turns = [asyncio.Event() for _ in range(20)]
        turns[3].set()
        barrier = asyncio.Barrier(20)
        return await asyncio.gather(*(run(n, barrier, turns) for n in range(20)))

    assert asyncio.run(main()) == [True] * 20
    if pipeline.spans():
        assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 15, "error": 5}
    else:
        assert pipeline.counts_by("orchestrator_requests_total", "outcome") == {"success": 15, "failed": 5}


def test_one_object_in_concurrent_threads_ends_each_run_with_its_own_outcome(pipeline: Pipeline) -> None:
    """Threads that share an operation never end each other's runs."""
    operation = agent("shared")

    def work(number: int) -> None:
        for _ in range(500):
            try:
                with operation:
                    if number % 2:
                        raise ValueError  # noqa: TRY301 - what the test is about
            except ValueError:
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1000, "error": 1000}
    assert [span.status.is_ok for span in pipeline.spans()].count(True) == 1000


@pytest.mark.parametrize("shape", ["async with", "coroutine", "async generator"])
def test_a_cancelled_task_ends_its_operation_as_an_error(shape: str, pipeline: Pipeline) -> None:
    """A timeout around a provider that hangs arrives as a cancellation and must not look like success."""

    async def hang() -> None:
        await asyncio.Event().wait()

    @llm_call("openai")
    async def decorated() -> None:
        await hang()

    @llm_call("openai")
    async def generating() -> AsyncIterator[int]:
        yield 1
        await hang()

    async def work() -> None:
        if shape == "async with":
            async with llm_call("openai"):
                await hang()
        elif shape == "coroutine":
            await decorated()
        else:
            async for _ in generating():
                pass

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await work()

    asyncio.run(main())

    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"error": 1}
    assert [(span.attributes or {})["error.type"] for span in pipeline.spans()] == ["asyncio.exceptions.CancelledError"]


def test_a_copied_context_carries_the_operation_into_a_thread(pipeline: Pipeline) -> None:
    """What runs in a copy of the context is a child; what runs in a bare thread is not."""

    def work(name: str) -> None:
        with tool(name):
            pass

    with agent("a"):
        context = contextvars.copy_context()
        for target in (lambda: context.run(work, "inside"), lambda: work("outside")):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    inside, outside, around = pipeline.spans()

    assert inside.parent is not None
    assert (inside.parent.span_id, outside.parent) == (around.context.span_id, None)
    assert (inside.attributes or {})["jeeves.agent.name"] == "a"


def test_an_operation_that_ends_in_another_thread_leaves_no_context_behind(pipeline: Pipeline) -> None:
    """finish() from elsewhere counts once; the block still stops being current where it was entered."""
    with agent("a") as run:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run.finish,))
        thread.start()
        thread.join()

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.usefixtures("pipeline")
def test_a_context_that_the_block_left_attached_goes_with_it() -> None:
    """What code inside attached and never detached does not outlive the operation."""
    with agent("a"):
        otel_context.attach(otel_context.set_value("left", True))

    assert otel_context.get_value("left") is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_background_task_that_outlives_its_llm_call_makes_calls_of_its_own(pipeline: Pipeline) -> None:
    """A context keeps an operation that has ended; what begins afterwards is not inside it."""
    with llm_call("openai"):
        context = contextvars.copy_context()

    def later() -> None:
        assert current_llm_call() is None
        with llm_call("openai"):
            record_llm_call("openai", None, 0.0)  # as an instrumented client would

    context.run(later)

    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"success": 2}
    assert pipeline.counts_by("jeeves_llm_provider_calls_total", "status") == {"success": 2}


# ---- generators -------------------------------------------------------------------------------------------------------


def test_send_throw_and_the_returned_value_pass_through_a_decorated_generator(pipeline: Pipeline) -> None:
    """The protocol of generators is the application's."""

    @agent("a")
    def conversation() -> Generator[Any, Any, str]:
        heard = []
        for _ in range(2):
            try:
                heard.append((yield len(heard)))
            except KeyError as error:
                heard.append(error)
        return repr(heard)

    error = KeyError("k")
    generator = conversation()

    assert (next(generator), generator.send("hello")) == (0, 1)
    with pytest.raises(StopIteration) as stop:
        generator.throw(error)
    assert stop.value.value == "['hello', KeyError('k')]"
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}


def test_asend_and_athrow_pass_through_a_decorated_async_generator(pipeline: Pipeline) -> None:
    """The protocol of asynchronous generators, too."""
    heard: list[Any] = []

    @agent("a")
    async def conversation() -> Any:
        for _ in range(2):
            try:
                heard.append((yield len(heard)))
            except KeyError as error:
                heard.append(error)

    async def main() -> list[Any]:
        generator = conversation()
        steps = [await anext(generator), await generator.asend("hello")]
        with pytest.raises(StopAsyncIteration):
            await generator.athrow(KeyError("k"))
        return steps

    assert _drive(main()) == [0, 1]
    assert repr(heard) == "['hello', KeyError('k')]"
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}


@pytest.mark.parametrize("decorate", [lambda f: f, agent("a")], ids=["plain", "decorated"])
@pytest.mark.usefixtures("pipeline")
def test_what_a_generator_raises_after_handling_a_thrown_error_has_no_foreign_context(decorate: Any) -> None:
    """An error that the generator has dealt with is not the context of a later one."""

    @decorate
    def steps() -> Iterator[int]:
        try:
            yield 1
        except KeyError:
            pass
        raise ValueError

    generator: Any = steps()
    next(generator)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the test's own
        generator.throw(KeyError())

    assert caught.value.__context__ is None


@pytest.mark.parametrize("decorate", [lambda f: f, run_pipeline("p")], ids=["plain", "decorated"])
def test_a_generator_may_answer_its_close(decorate: Any, pipeline: Pipeline) -> None:
    """Closing behaves as without decoration when the generator cleans up, returns or refuses."""

    @decorate
    def returns() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            return

    @decorate
    def refuses() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    closing: Any = returns()
    next(closing)
    closing.close()
    refusing: Any = refuses()
    next(refusing)

    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        refusing.close()
    del refusing
    gc.collect()
    expected = {} if not pipeline.spans() else {"terminated": 2}
    assert pipeline.counts_by("jeeves_pipeline_executions_total", "status") == expected


def test_a_generator_is_current_only_while_it_runs(pipeline: Pipeline) -> None:
    """Between two steps the consumer is where it was, and what the body opened is open again in the next step."""
    seen: list[Any] = []

    @agent("a")
    def steps() -> Iterator[int]:
        with llm_call("openai") as call:
            yield 1
            seen.append(current_llm_call() is call)
            yield 2
        seen.append(current_llm_call())

    with tool("consumer"):
        inside = otel_context.get_current()
        for _ in steps():
            seen.append(otel_context.get_current() is inside)  # noqa: PERF401 - between the steps
    spans = {span.name: span for span in pipeline.spans()}

    assert seen == [True, True, True, None]
    assert [_parent_name(spans, name) for name in ("llm.provider.call", "agent.process", "execute_tool consumer")] == [
        "agent.process",
        "execute_tool consumer",
        None,
    ]


def test_an_async_generator_is_current_only_while_it_runs_even_if_each_step_is_another_task(
    pipeline: Pipeline,
) -> None:
    """`wait_for` makes a task of each step; the generator keeps its own context through all of them."""
    seen: list[Any] = []

    @agent("a")
    async def steps() -> AsyncIterator[int]:
        async with llm_call("openai") as call:
            for number in range(3):
                yield number
                seen.append(current_llm_call() is call)

    async def main() -> None:
        before = otel_context.get_current()
        generator = steps()
        for _ in range(3):
            await asyncio.create_task(anext(generator))  # type: ignore[arg-type]  # a coroutine in fact
            seen.append(otel_context.get_current() is before)
        with pytest.raises(StopAsyncIteration):
            await anext(generator)

    asyncio.run(main())

    assert seen == [True] * 6
    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"success": 1}


@spanned
@pytest.mark.parametrize("how", ["close", "break", "collected", "thread", "context"])
def test_a_generator_that_is_abandoned_ends_once_however_that_happens(
    how: str, operation: str, pipeline: Pipeline
) -> None:
    """Closed here, left, collected, closed by another thread or in another context: one count, no log line."""
    promise = PROMISES[operation]

    @promise.make()
    def steps() -> Iterator[int]:
        yield 1
        yield 2

    generator: Any = steps()
    next(generator)
    if how == "thread":
        thread = threading.Thread(target=generator.close)
        thread.start()
        thread.join()
    elif how == "context":
        contextvars.Context().run(generator.close)
    elif how == "close":
        generator.close()
    elif how == "break":
        for _ in generator:
            break
    del generator
    gc.collect()

    assert promise.count(pipeline) == promise.ended("early close")
    assert len(pipeline.spans()) == 1


@spanned
@pytest.mark.parametrize("how", ["aclose", "break", "other task", "loop shutdown"])
def test_an_async_generator_that_is_abandoned_ends_once_however_that_happens(
    how: str, operation: str, pipeline: Pipeline
) -> None:
    """Closed here or by another task, left to the garbage collector or to the end of the loop: one count, no log line."""
    promise = PROMISES[operation]

    @promise.make()
    async def steps() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)

    held = []

    async def main() -> None:
        generator: Any = steps()
        async for _ in generator:
            break
        if how == "aclose":
            await generator.aclose()
        elif how == "other task":
            await asyncio.create_task(generator.aclose())
        elif how == "loop shutdown":
            held.append(generator)
        del generator
        gc.collect()

    asyncio.run(main())

    assert promise.count(pipeline) == promise.ended("early close")
    assert len(pipeline.spans()) == 1


def test_a_generator_that_never_runs_counts_nothing(pipeline: Pipeline) -> None:
    """An operation begins with the first step."""
    agent("a")(lambda: iter(()))
    agent("a")(_numbers)()

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {}


def _numbers() -> Iterator[int]:
    yield 1


@pytest.mark.usefixtures("pipeline")
def test_finished_operations_are_freed_without_the_garbage_collector() -> None:
    """No handle is part of a cycle once its operation is over."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with agent("a"), llm_call("openai", "m") as call:
                call.set_tokens(prompt=1)
            agent("a")(lambda: None)()
            list(agent("a")(_numbers)())
        del call
        left = [found for found in gc.get_objects() if type(found).__name__ in {"AgentRun", "LlmCall"}]
    finally:
        gc.enable()

    assert left == []


def test_objects_that_are_called_asynchronously_are_measured_to_their_end(pipeline: Pipeline) -> None:
    """A callable object with an async __call__ is a coroutine function by another name."""

    class Writer:
        async def __call__(self) -> str:
            raise LookupError

    decorated = agent("writer")(Writer())

    assert inspect.iscoroutinefunction(decorated)
    with pytest.raises(LookupError):
        asyncio.run(decorated())
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"error": 1}


def test_a_generator_that_a_scrape_collects_does_not_end_in_the_scrape(pipeline: Pipeline) -> None:
    """A scrape holds the SDK's locks: an operation that ended there would wait for itself, and everybody for it."""
    kept: list[Any] = []
    ended_in: list[int] = []

    class Ends(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended_in.append(threading.get_ident())

    def chunks() -> Iterator[int]:
        with llm_call("openai", "gpt-4o"):
            yield 1
            yield 2

    def collect_garbage(_: Any) -> list[Any]:
        kept.clear()
        gc.collect()
        return []

    pipeline.tracer_provider.add_span_processor(Ends())
    pipeline.meter_provider.get_meter("test").create_observable_gauge("test.gauge", [collect_garbage])
    for count, scraped in ((1, True), (2, False)):
        kept.append(chunks())
        next(kept[0])
        if scraped:
            pipeline.page()
        kept.clear()
        poll_until(lambda count=count: len(ended_in) == count, "the operation to end")

    assert [ident == threading.get_ident() for ident in ended_in] == [False, True]
    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"success": 2}
