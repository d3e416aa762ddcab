# SPDX-License-Identifier: Apache-2.0
"""The ids of a workflow and its run: what is taken from a request, and what an onward call sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.context import Context, attach, detach, get_current

from jeeves_otel import pipeline as pipeline_run
from jeeves_otel.propagation import attributes, incoming, outgoing

BOTH = [("x-workflow-id", "w-1"), ("x-run-id", "r-1")]


@pytest.mark.parametrize(
    "metadata",
    [
        BOTH,
        [("X-Workflow-ID", "w-1"), ("X-Run-ID", "r-1"), ("accept", "*/*")],
        [(b"x-workflow-id", b"w-1"), (b"x-run-id", b"r-1")],
        [*BOTH, ("x-run-id", "second"), ("x-blob-bin", b"\xff")],
    ],
    ids=["grpc", "http", "asgi", "twice"],
)
def test_ids_that_come_in_go_on_and_stand_on_the_span(metadata: Any) -> None:
    """Whatever carried them, an onward call sends the same, and the span says them."""
    context = incoming(metadata, Context())

    assert BOTH == outgoing(context)
    assert {"jeeves.workflow.id": "w-1", "jeeves.run.id": "r-1"} == attributes(context)


@pytest.mark.parametrize("value", ["", "a b", "a\n", "tab\t", "é", "x" * 129, b"\xff", b"a\x00", "\x7f"])
def test_what_is_no_id_is_dropped(value: Any) -> None:
    """Too long, not ASCII, with spaces or control characters: as if it had not come."""
    context = Context()

    assert context is incoming([("x-workflow-id", value)], context)
    assert [("x-run-id", "r")] == outgoing(incoming([("x-workflow-id", value), ("x-run-id", "r")], context))


@pytest.mark.parametrize("value", ["x" * 128, "!~", "a/b:c=1"])
def test_printable_ascii_up_to_128_characters_is_an_id(value: str) -> None:
    """The bounds themselves are inside."""
    assert [("x-run-id", value)] == outgoing(incoming([("x-run-id", value)], Context()))


@pytest.mark.parametrize("metadata", [None, (), [("traceparent", "00-1")]])
def test_a_request_without_ids_leaves_the_context_as_it_is(metadata: Any) -> None:
    """Nothing in, nothing kept, nothing out."""
    context = Context()

    assert context is incoming(metadata, context)
    assert [] == outgoing(context)
    assert {} == attributes(context)


def test_a_call_in_a_pipeline_sends_its_name_and_request_id() -> None:
    """Without ids from outside the pipeline is the workflow, and its request the run; after its end nothing is sent."""
    with pipeline_run("answer", request_id="req-1"):
        inside = get_current()

        assert [("x-workflow-id", "answer"), ("x-run-id", "req-1")] == outgoing()
    assert [] == outgoing(inside)
    assert [] == outgoing()


@pytest.mark.parametrize(
    ("name", "request_id", "sent"),
    [("answer", None, [("x-workflow-id", "answer")]), ("two words", "r", [("x-run-id", "r")]), ("é", None, [])],
)
def test_a_pipeline_sends_only_what_is_an_id(name: str, request_id: str | None, sent: list[tuple[str, str]]) -> None:
    """A name with spaces and a request that was not named are not sent."""
    with pipeline_run(name, request_id=request_id):
        assert sent == outgoing()


def test_ids_from_outside_hold_against_a_pipeline_inside() -> None:
    """They name the whole from end to end; what did not come in is the pipeline's."""
    for metadata, sent in ((BOTH, BOTH), (BOTH[:1], [BOTH[0], ("x-run-id", "req-1")])):
        token = attach(incoming(metadata, Context()))
        with pipeline_run("answer", request_id="req-1"):
            assert sent == outgoing()
        detach(token)


def test_the_innermost_running_pipeline_is_the_one_that_calls() -> None:
    """Nested, and in tasks of their own, each call says its own pipeline."""

    async def run(name: str) -> Any:
        async with pipeline_run(name, request_id=name):
            await asyncio.sleep(0)
            return outgoing()

    async def both() -> Any:
        with pipeline_run("outer", request_id="o"):
            return await asyncio.gather(run("a"), run("b")), outgoing()

    (first, second), outer = asyncio.run(both())

    assert [[("x-workflow-id", name), ("x-run-id", name)] for name in "ab"] == [first, second]
    assert [("x-workflow-id", "outer"), ("x-run-id", "o")] == outer
