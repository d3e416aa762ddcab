# SPDX-License-Identifier: Apache-2.0
"""Send requests as users would: several at once, each one opening a session, asking, and leaving.

In: a seed and a number of requests. Out: exactly that many requests, and what became of them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

from jeeves_otel.demo.service import MAX_CHARACTERS, MAX_TURNS
from jeeves_otel.demo.store import DOCUMENTS
from jeeves_otel.settings import PROBES

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

USERS_AT_ONCE = 12
_NO_LIMITS = httpx2.Limits(max_connections=None)
PIECES_READ = 3  # of an answer whose reader leaves early


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a user."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    streamed: bool = False
    leaves_early: bool = False


@dataclass(slots=True)
class Outcome:
    """What was sent and what came back; ``broken`` names requests that got no answer.

    ``probes`` of those that were sent are not measured; ``traces`` are the ids in which the answers came.
    """

    sent: int = 0
    probes: int = 0
    traces: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, later: Outcome) -> None:
        """Count what *later* counts, too."""
        self.sent += later.sent
        self.probes += later.probes
        self.traces |= later.traces
        self.statuses += later.statuses
        self.broken += later.broken


def scripts(seed: int, requests: int) -> list[list[Step]]:
    """Return the steps of each user, *requests* in all; the same for the same seed."""
    chance = random.Random(seed)
    users: list[list[Step]] = [[Step("GET", "/health")]]
    missing = requests - 1
    while missing > 0:
        steps = _visit(f"user-{len(users)}", chance)[:missing]
        users.append(steps)
        missing -= len(steps)
    return users


def _visit(name: str, chance: random.Random) -> list[Step]:
    """Return what one user does: mostly ask, at times the wrong way."""
    steps = [Step("POST", "/sessions", {"name": name})]
    # Some ask more than a session allows.
    questions = MAX_TURNS + 1 if chance.random() < 0.05 else chance.randint(1, 4)  # noqa: PLR2004 - one in twenty
    steps += [_ask(name, number, chance) for number in range(questions)]
    seldom = [
        Step("GET", f"/sessions/{name}"),
        Step("GET", f"/sessions/{name}/title"),
        Step("POST", "/sessions", {"name": name}),  # taken
        Step("GET", "/sessions/nobody"),  # not there
        Step("GET", f"/{name}/profile"),  # no such route
        Step("POST", "/chat", {"session": name}),  # no question in it
        Step("POST", "/chat", {"session": name, "text": "why? " * MAX_CHARACTERS}),  # too long
    ]
    steps += chance.choices(seldom, weights=(8, 8, 1, 1, 1, 1, 1), k=chance.randint(0, 2))
    if chance.random() < 0.8:  # noqa: PLR2004 - the others leave their session open
        steps.append(Step("DELETE", f"/sessions/{name}"))
    return steps


def _ask(name: str, number: int, chance: random.Random) -> Step:
    subjects = [
        *(f"Tell me about {topic}" for topic in DOCUMENTS),
        "What is {} * {}",
        "What is {} / 0",
        "Tell me about it",
        "Tell me about dragons",
    ]
    weights = [*(4 for _ in DOCUMENTS), 4, 1, 2, 1]
    subject = chance.choices(subjects, weights=weights)[0].format(chance.randint(2, 99), chance.randint(2, 99))
    # The name makes every question different, so that the answers do not depend on the order in which they arrive.
    body = {"session": name, "text": f"{subject}, please. ({name}, question {number + 1})"}
    if chance.random() < 0.25:  # noqa: PLR2004 - one in four reads along
        return Step("POST", "/chat/stream", body, streamed=True, leaves_early=chance.random() < 0.15)  # noqa: PLR2004 - some leave
    return Step("POST", "/chat", body)


async def send(base_url: str, users: list[list[Step]], progress: Callable[[], None]) -> Outcome:
    """Let all *users* do what they do, some at once, and call *progress* after each request."""
    outcome = Outcome()
    room = asyncio.Semaphore(USERS_AT_ONCE)

    async def visit(steps: list[Step]) -> None:
        async with room:
            for step in steps:
                await _take(client, step, outcome)
                progress()

    async with httpx2.AsyncClient(base_url=base_url, timeout=30) as client:
        await asyncio.gather(*(visit(steps) for steps in users))
    return outcome


async def send_steadily(base_url: str, seed: int, per_second: float, ended: Event) -> Outcome:
    """Let new users come, however slowly they are answered, so that *per_second* requests are sent, until *ended*."""
    outcome, chance, number = Outcome(), random.Random(seed), 0

    async def visit(steps: list[Step]) -> None:
        for step in steps:
            await _take(client, step, outcome)

    async with (
        httpx2.AsyncClient(base_url=base_url, timeout=30, limits=_NO_LIMITS) as client,
        asyncio.TaskGroup() as users,
    ):
        while not ended.is_set():
            number += 1
            steps = _visit(f"user-{seed}-{number}", chance)
            users.create_task(visit(steps))
            await asyncio.sleep(len(steps) / per_second)
        for user in asyncio.all_tasks() - {asyncio.current_task()}:
            user.cancel()  # nobody waits for their answers
    return outcome


async def _take(client: httpx2.AsyncClient, step: Step, outcome: Outcome) -> None:
    outcome.sent += 1
    outcome.probes += step.path in PROBES
    try:
        async with client.stream(step.method, step.path, json=step.body) as response:
            outcome.statuses[response.status_code] += 1
            if trace := response.headers.get("X-Trace-ID"):
                outcome.traces.add(trace)
            pieces = 0
            async for _ in response.aiter_lines():
                pieces += 1
                if step.leaves_early and pieces == PIECES_READ:
                    break
    except httpx2.HTTPError as error:
        outcome.broken.append(f"{step.method} {step.path}: {type(error).__name__}")
