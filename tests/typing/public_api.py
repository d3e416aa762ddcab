# SPDX-License-Identifier: Apache-2.0
"""The public API as a type checker sees it. Never executed, only checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from jeeves_otel import agent, current_llm_call, interrupt, llm_call, pipeline, record_health, record_queue_depth, tool
from jeeves_otel.operations import Operation
from jeeves_otel.recording import AgentRun, InterruptRun, LlmCall, PipelineRun


def operations_give_their_own_handle() -> None:
    """What ``with`` binds knows what can be said about that operation, and nothing else."""
    with pipeline("chat", request_id="r") as run:
        assert_type(run, PipelineRun)
        run.terminate("clarification_required")
    with llm_call("openai", "gpt-4o") as call:
        assert_type(call, LlmCall)
        call.set_tokens(prompt=1, completion=2)
    with interrupt("confirmation") as question:
        assert_type(question, InterruptRun)
        question.settle("resolved")
    with interrupt("lunch"):  # type: ignore[arg-type]  # not one of the kinds
        pass
    assert_type(agent("planner"), Operation[AgentRun])


async def async_with_gives_the_same_handle() -> None:
    """One shape for sync and async."""
    async with agent("planner") as run:
        assert_type(run, AgentRun)


@agent("planner")
def plan(goal: str, *, steps: int = 1) -> list[str]:
    """Return a plan."""
    return [goal] * steps


@tool("search")
async def search(query: str) -> int:
    """Return how many were found."""
    return len(query)


@pipeline("stream")
def stream(prompt: str) -> Iterator[str]:
    """Yield words."""
    yield from prompt.split()


@llm_call("openai")
async def tokens(prompt: str) -> AsyncIterator[str]:
    """Yield words."""
    for word in prompt.split():
        yield word


async def decorated_functions_keep_their_types() -> None:
    """Parameters and results are those of the function."""
    assert_type(plan("tea", steps=2), list[str])
    assert_type(await search("tea"), int)
    assert_type(stream("a b"), Iterator[str])
    assert_type(tokens("a b"), AsyncIterator[str])
    plan(1)  # type: ignore[arg-type]  # the parameter is a text


def levels_are_numbers_or_functions() -> None:
    """What is observed at each collection may be asked for then."""
    record_queue_depth("events", 3)
    record_queue_depth("events", lambda: 3)
    record_health("store", "healthy")
    record_health("store", "fine")  # type: ignore[arg-type]  # not one of the results
    assert_type(current_llm_call(), LlmCall | None)
