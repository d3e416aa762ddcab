# SPDX-License-Identifier: Apache-2.0
"""threads: what a thread or a pool does belongs to the trace of whoever asked for it, and nothing else changes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context

from jeeves_otel import agent, pipeline as pipeline_run
from jeeves_otel.integrations import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline

KEY = otel_context.create_key("test")
OTHER: ContextVar[str] = ContextVar("other", default="unset")


@pytest.fixture(autouse=True)
def _carried() -> Iterator[None]:
    start, submit = Thread.start, ThreadPoolExecutor.submit
    threads.instrument()
    threads.instrument()  # a second time changes nothing
    yield
    threads.uninstrument()
    threads.uninstrument()
    assert (Thread.start, ThreadPoolExecutor.submit) == (start, submit)


class Own(Thread):
    """A thread with a `run` of its own."""

    def __init__(self, seen: list[object]) -> None:
        super().__init__()
        self.seen = seen

    def run(self) -> None:
        """Note the context."""
        self.seen.append(otel_context.get_value(KEY))


def _thread(note: Callable[[], None], _: list[object]) -> None:
    thread = Thread(target=note)
    thread.start()
    thread.join()


def _subclass(_: Callable[[], None], seen: list[object]) -> None:
    thread = Own(seen)
    thread.start()
    thread.join()


def _timer(note: Callable[[], None], _: list[object]) -> None:
    timer = Timer(0, note)
    timer.start()
    timer.join()


def _pool(note: Callable[[], None], _: list[object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(note).result()


def _map(note: Callable[[], None], _: list[object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(lambda _: note(), [1]))


def _executor_of_the_loop(note: Callable[[], None], _: list[object]) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, note)

    asyncio.run(main())


@pytest.mark.parametrize("start", [_thread, _subclass, _timer, _pool, _map, _executor_of_the_loop])
@pytest.mark.parametrize("value", ["here", None])
def test_the_context_goes_along_and_no_other_variable_does(
    start: Callable[[Callable[[], None], list[object]], None], value: str | None
) -> None:
    """Whatever starts it; without a context there is none inside."""
    seen: list[object] = []
    others: list[str] = []

    def note() -> None:
        seen.append(otel_context.get_value(KEY))
        others.append(OTHER.get())

    reset = OTHER.set("set")
    token = otel_context.attach(otel_context.set_value(KEY, value) if value else otel_context.Context())
    start(note, seen)
    otel_context.detach(token)
    OTHER.reset(reset)

    assert [value] == seen
    assert others in ([], ["unset"])


def test_a_worker_has_the_context_of_each_job_not_of_the_first() -> None:
    """It was started in one request and works for the next, and for none."""

    def value() -> object:
        return otel_context.get_value(KEY)

    with ThreadPoolExecutor(1) as pool:
        seen = []
        for each in ("first", "second", None):
            token = otel_context.attach(otel_context.set_value(KEY, each) if each else otel_context.Context())
            seen.append(pool.submit(value).result())
            otel_context.detach(token)

    assert ["first", "second", None] == seen


def test_results_arguments_and_exceptions_are_the_applications() -> None:
    """Also where an argument has the name of one of ours."""

    def job(*args: Any, **kwargs: Any) -> Any:
        if "fail" in kwargs:
            raise LookupError(kwargs["fail"])
        return args, kwargs

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job, 1, context=2, function=3, original=4).result() == (
            (1,),
            {"context": 2, "function": 3, "original": 4},
        )
        with pytest.raises(LookupError, match="no"):
            pool.submit(job, fail="no").result()


@pytest.mark.parametrize("value", ["here", None])
def test_a_run_that_the_application_has_set_on_a_thread_stays_there(value: str | None) -> None:
    """With a context and without."""
    seen: list[object] = []
    thread = Thread()
    thread.run = own = lambda: seen.append(thread.__dict__["run"])  # type: ignore[method-assign]  # as applications do
    token = otel_context.attach(otel_context.set_value(KEY, value) if value else otel_context.Context())
    thread.start()
    thread.join()
    otel_context.detach(token)

    assert [own] == seen


def test_a_thread_that_refuses_attributes_starts_all_the_same() -> None:
    """Its class allows no `run` on the instance: it runs without the context, and that is counted."""
    from jeeves_otel import failsafe

    class Closed(Own):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "run":
                raise AttributeError(name)
            super().__setattr__(name, value)

    failsafe.set_strict(False)
    seen: list[object] = []
    token = otel_context.attach(otel_context.set_value(KEY, "here"))
    thread = Closed(seen)
    thread.start()
    thread.join()
    otel_context.detach(token)

    assert ([None], {"threads.start": 1}) == (seen, failsafe.counts())


def test_an_agent_in_a_thread_is_a_child_of_the_pipeline_that_started_it(pipeline: Pipeline) -> None:
    """One request is one trace, across threads."""

    def work() -> None:
        with agent("writer"):
            pass

    with pipeline_run("answer"), ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    inner, outer = pipeline.spans()

    assert inner.parent is not None
    assert (inner.parent.span_id, inner.context.trace_id) == (outer.context.span_id, outer.context.trace_id)
