# SPDX-License-Identifier: Apache-2.0
"""Answer questions with a pipeline of agents: planner, researcher with tools, writer, critic.

In: a question. Out: a `Reply`, or its pieces as they are written. The recording API stands where the work is, as
decorators on agents and tools, and as a context manager where the outcome is known only inside.
"""

from __future__ import annotations

import asyncio
import json
import operator
import re
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jeeves_otel import (
    agent,
    interrupt,
    pipeline,
    record_critic_decision,
    record_retry,
    record_routing_decision,
    record_validation_report,
    tool,
)
from jeeves_otel.demo.language_model import LARGE, SMALL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jeeves_otel.demo.language_model import LanguageModel
    from jeeves_otel.demo.store import Store

CHAT = "chat"
MAX_ATTEMPTS = 2
REVIEW_BELOW = 0.5  # confidence of the critic under which a reviewer is asked, ratio

PLANNER = "You are the planner. Answer with JSON: action (search, calculate, answer or clarify) and argument."
WRITER = "You are the writer. Answer the question from the facts, in two sentences."
CRITIC = "You are the critic. Answer with JSON: action, confidence from 0 to 1, reason."
REVIEWER = "You are the reviewer. Answer with JSON: approved, true or false."

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner wants done."""

    action: Literal["search", "calculate", "answer", "clarify"]
    argument: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the user gets: an answer, or a question back."""

    text: str
    needs_clarification: bool = False


class Assistant:
    """The agents. Keeps nothing between questions, so it is safe from several tasks.

    Args:
        model: Who thinks.
        store: Where the search tool looks.
    """

    def __init__(self, model: LanguageModel, store: Store) -> None:
        self._model = model
        self._store = store

    async def answer(self, question: str, request_id: str) -> Reply:
        """Return the answer to *question*, or a question back.

        Raises:
            ModelUnavailableError: A model that is needed does not answer.
        """
        async with pipeline(CHAT, request_id=request_id, mode="sequential") as run:
            hint = ""
            for _ in range(MAX_ATTEMPTS):
                plan = await self._plan(question + hint)
                if plan.action == "clarify":
                    record_routing_decision(CHAT, "planner", "user")
                    run.terminate("clarification_required")
                    return Reply(plan.argument, needs_clarification=True)
                facts = await self._gather(plan)
                if facts is None:
                    record_retry("planner_retry", reason="wrong_tool_choice")
                    hint = f"\nThe tool {plan.action} has failed, answer without it."
                    continue
                draft = await self._write_valid(question, facts)
                if await self._accepts(question, draft):
                    return Reply(draft)
                hint = "\nAn earlier plan led to an answer that was refused."
            run.terminate("attempts_exhausted")
            return Reply("I am not sure enough to answer this.")

    @pipeline("chat_stream")
    async def stream(self, question: str) -> AsyncGenerator[str]:
        """Yield the answer to *question* piece by piece, from the writer alone.

        Raises:
            ModelUnavailableError: The model does not answer.
        """
        async with aclosing(self._write_pieces(question)) as pieces:
            async for piece in pieces:
                yield piece

    # ---- agents ------------------------------------------------------------------------------------------------------

    @agent("planner", agent_type="llm")
    async def _plan(self, question: str) -> Plan:
        answer = json.loads(await self._model.ask(PLANNER, question))
        return Plan(answer["action"], answer["argument"])

    async def _gather(self, plan: Plan) -> str | None:
        """Return the facts for *plan*, empty if it needs none, or None if the tool has failed."""
        if plan.action == "answer":
            record_routing_decision(CHAT, "planner", "writer")
            return ""
        record_routing_decision(CHAT, "planner", "researcher")
        facts = await self._research(plan)
        record_routing_decision(CHAT, "researcher", "planner" if facts is None else "writer")
        return facts

    @agent("researcher", agent_type="tool")
    async def _research(self, plan: Plan) -> str | None:
        try:
            return await (self._calculate if plan.action == "calculate" else self._search)(plan.argument)
        except (ArithmeticError, LookupError):
            return None

    async def _write_valid(self, question: str, facts: str) -> str:
        """Return a draft, written again if the validation rejects it."""
        draft = await self._write(question, facts)
        issues = _issues(facts, draft)
        record_validation_report("rejected" if issues else "approved", issues=issues)
        if not issues:
            return draft
        record_retry("validator_retry", reason=issues[0])
        return await self._write(question, f"{facts}\nMend this: {', '.join(issues)}.")

    @agent("writer", agent_type="llm")
    async def _write(self, question: str, facts: str) -> str:
        return await self._model.ask(WRITER, f"{question}\nFacts: {facts}", model=LARGE, fallback=SMALL)

    @agent("writer", agent_type="llm")
    async def _write_pieces(self, question: str) -> AsyncGenerator[str]:
        async with aclosing(self._model.stream(WRITER, question)) as pieces:
            async for piece in pieces:
                yield piece

    async def _accepts(self, question: str, draft: str) -> bool:
        """Return whether critic and, where the critic is unsure, reviewer let *draft* pass."""
        record_routing_decision(CHAT, "writer", "critic")
        verdict = await self._criticise(question, draft)
        record_critic_decision(verdict["action"], verdict["confidence"])
        if verdict["action"] == "retry_planner":
            record_retry("planner_retry", reason=verdict["reason"])
            record_routing_decision(CHAT, "critic", "planner")
            return False
        if verdict["confidence"] < REVIEW_BELOW:
            record_routing_decision(CHAT, "critic", "reviewer")
            async with interrupt("agent_review") as review:
                approved = await self._review(draft)
                review.settle("resolved" if approved else "cancelled")
            return approved
        record_routing_decision(CHAT, "critic", "user")
        return True

    @agent("critic", agent_type="llm")
    async def _criticise(self, question: str, draft: str) -> dict[str, Any]:
        verdict: dict[str, Any] = json.loads(await self._model.ask(CRITIC, f"{question}\nDraft: {draft}"))
        return verdict

    @agent("reviewer", agent_type="llm")
    async def _review(self, draft: str) -> bool:
        return bool(json.loads(await self._model.ask(REVIEWER, draft))["approved"])

    # ---- tools -------------------------------------------------------------------------------------------------------

    @tool("search")
    async def _search(self, topic: str) -> str:
        text = await asyncio.to_thread(self._store.search, topic)
        if not text:
            raise LookupError(topic)
        return text

    @tool("calculate")
    async def _calculate(self, formula: str) -> str:
        parts = re.fullmatch(r"(\d+) ([-+*/]) (\d+)", formula)
        if parts is None:
            raise LookupError(formula)
        left, sign, right = parts.groups()
        return f"{formula} = {_OPERATORS[sign](int(left), int(right)):g}"


def _issues(facts: str, draft: str) -> list[str]:
    """Return what is wrong with *draft*, as short names: it must give the facts, and not be too short."""
    issues = []
    if facts and facts.split(maxsplit=1)[0] not in draft:
        issues.append("missing_facts")
    if len(draft.split()) < 8:  # noqa: PLR2004 - words of the shortest answer that says something
        issues.append("too_short")
    return issues
