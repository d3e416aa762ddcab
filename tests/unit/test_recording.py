# SPDX-License-Identifier: Apache-2.0
"""recording: operations end exactly once, whatever leaves them."""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING

import pytest

from jeeves_otel import agent, llm_call, pipeline as run_pipeline, tool

if TYPE_CHECKING:
    from tests.helpers import Pipeline


def test_cancelled_agent_run_counts_once_as_error_and_ends_its_span(pipeline: Pipeline) -> None:
    """Cancellation is an outcome: it is counted once, its span ends, and the error reaches the caller."""
    with pytest.raises(CancelledError), agent("planner"):
        raise CancelledError

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"error": 1}
    assert [span.name for span in pipeline.spans()] == ["agent.process"]


def test_second_finish_does_nothing(pipeline: Pipeline) -> None:
    """An operation that has ended cannot end again."""
    with agent("planner") as run:
        pass
    run.finish()
    run.finish(ValueError())

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}
    assert len(pipeline.spans()) == 1


def test_exception_text_is_absent_from_spans_by_default(pipeline: Pipeline) -> None:
    """What an exception says may quote a prompt, so only its class leaves."""
    with pytest.raises(ValueError, match="canary"), run_pipeline("chat"), agent("a"), tool("t"), llm_call("openai", "m"):
        raise ValueError("canary")

    assert "canary" not in "".join(span.to_json() for span in pipeline.spans())
    assert len(pipeline.spans()) == 4
