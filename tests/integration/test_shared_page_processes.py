# SPDX-License-Identifier: Apache-2.0
"""Real processes with one page: stopped, killed at any moment, recycled and forked, while others are scraped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import Samples, poll_until, samples_of
from tests.integration.launching import APPS, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

USES = ("jeeves_feature_usage_total", (("feature", "x"),))
RUNS = ("jeeves_agent_duration_seconds_count", (("agent", "planner"),))
SECONDS = ("jeeves_agent_duration_seconds_sum", (("agent", "planner"),))
SESSIONS = ("jeeves_user_sessions_active", ())
INTERVAL_S = 0.2
SLACK_S = 1.5  # two cores for many processes: a thread may have to wait this long for its turn


class Counting:
    """A process that counts; remembers when each of its counts was acknowledged."""

    def __init__(self, folder: Path, interval_s: float = INTERVAL_S) -> None:
        self.process = subprocess.Popen(
            [sys.executable, APPS / "counting.py", str(folder), str(interval_s)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.acknowledged: list[float] = []

    def say(self, *words: object) -> None:
        """Send a command without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """Wait for the answer to the next command."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"process {self.process.pid} has ended"
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        """Send a command, and return its answer."""
        self.say(*words)
        return self.hear()

    def add(self, count: int) -> None:
        """Count, and note that it was acknowledged."""
        assert self.ask("add", count) == "ok"
        self.acknowledged += [time.monotonic()] * count

    def page(self) -> Samples:
        """Return the page that this process answers."""
        return samples_of(self.ask("page"))

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Close its pipes, and wait for its end."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(timeout=30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of a group; its path is short enough for sockets."""
    with TemporaryDirectory(prefix="jeeves-") as base:
        yield Path(base) / "u" / "g"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Counting]]:
    """Return a factory of processes that are ready; those that live are ended afterwards."""
    started: list[Counting] = []

    def make(count: int = 1, where: Path = folder, interval_s: float = INTERVAL_S) -> Any:
        new = [Counting(where, interval_s) for _ in range(count)]
        started.extend(new)
        for process in new:
            process.hear()
        return new if count > 1 else new[0]

    yield make
    for process in started:
        process.kill()


@contextmanager
def stopped(process: Counting) -> Iterator[None]:
    """Hold *process* with SIGSTOP."""
    os.kill(process.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.process.pid, signal.SIGCONT)


def test_page_is_the_sum_of_what_all_have_acknowledged(start: Callable[..., Any]) -> None:
    """Counts, buckets and sums of all processes, whichever answers, at once; levels of those who live."""
    processes = start(4)
    for n, process in enumerate(processes):
        process.add(10**n)
    pages = [process.page() for process in processes]

    assert [(1111, 1111, 555.5, 4)] * 4 == [
        tuple(page[key] for key in (USES, RUNS, SECONDS, SESSIONS)) for page in pages
    ]


def test_counts_of_those_who_leave_or_are_killed_stay_and_their_levels_go(start: Callable[..., Any]) -> None:
    """One leaves, one is killed after a page has shown its counts: nothing is missing."""
    survivor, leaving, killed = start(3)
    for process in (survivor, leaving, killed):
        process.add(10)
    before = survivor.page()
    assert leaving.ask("leave") == "left"
    leaving.end()
    killed.kill()
    after = survivor.page()

    assert [(30, 3), (30, 1)] == [(page[USES], page[SESSIONS]) for page in (before, after)]


def test_counters_never_fall_and_lose_at_most_an_interval_while_processes_are_killed(
    start: Callable[..., Any], folder: Path
) -> None:
    """20 processes are killed at random moments, while they count. Each scrape, of whichever process, is at least the one
    before; at the end the page has all that was acknowledged earlier than one interval before its process was killed.
    """
    rng, interval_s = Random(5), 0.05
    workers = start(4, interval_s=interval_s)
    falls, before = [], 0.0
    acknowledged = unheard = may_be_lost = 0
    for _ in range(20):
        for _ in range(rng.randrange(5, 40)):
            rng.choice(workers).add(rng.randrange(1, 4))
            if rng.random() < 0.3:
                now = rng.choice(workers).page()[USES]
                falls += [(before, now)] if now < before else []
                before = now
        victim = workers.pop(rng.randrange(len(workers)))
        victim.say("add", 200)  # takes a few milliseconds
        time.sleep(rng.random() * 0.01)  # the moment is what is tested
        victim.kill()
        died = time.monotonic()
        unheard += 200
        acknowledged += len(victim.acknowledged)
        may_be_lost += sum(1 for at in victim.acknowledged if at > died - interval_s - SLACK_S)
        workers.append(start(interval_s=interval_s))
    acknowledged += sum(len(process.acknowledged) for process in workers)
    at_the_end = workers[0].page()[USES]

    assert [] == falls
    assert acknowledged - may_be_lost <= at_the_end <= acknowledged + unheard
    poll_until(lambda: len(list(folder.glob("*.json"))) <= 5, "the dead to be retired")
    assert at_the_end == workers[1].page()[USES]


def test_process_that_does_not_run_delays_no_page(start: Callable[..., Any]) -> None:
    """It is waited for a quarter of a second, and its last snapshot counts."""
    one, other = start(2)
    other.add(10)
    one.page()
    with stopped(other):
        one.add(1)
        started = time.monotonic()
        page = one.page()
        took_s = time.monotonic() - started

    assert (11, 2) == (page[USES], page[SESSIONS])
    assert took_s < 1
    other.add(5)
    assert one.page()[USES] == 16


def test_two_groups_on_one_machine_do_not_mix(start: Callable[..., Any], folder: Path) -> None:
    """Each folder is a page of its own."""
    one, other = start(), start(where=folder.with_name("h"))
    one.add(1)
    other.add(20)

    assert (1, 20) == (one.page()[USES], other.page()[USES])


def test_run_begins_with_zero_after_all_processes_were_killed(start: Callable[..., Any]) -> None:
    """What the run before has left is no part of the new one."""
    for process in start(2):
        process.add(10)
        process.page()
        process.kill()
    fresh = start()
    fresh.add(1)

    assert fresh.page()[USES] == 1


def test_forked_child_leaves_the_membership_to_its_parent(start: Callable[..., Any], folder: Path) -> None:
    """The child closes what it inherited and leaves: the parent is still asked, and still lives."""
    one, other = start(2)
    other.add(10)
    answer = other.ask("fork")
    other.add(5)

    assert ("forgot", 15, 2) == (answer, one.page()[USES], one.page()[SESSIONS])
    assert 2 == len(list(folder.glob("*.sock")))


def test_child_that_never_forgot_keeps_no_dead_parent_alive(start: Callable[..., Any]) -> None:
    """Locks end with the process that took them, whatever its children have inherited; so do their levels."""
    one, other = start(2)
    other.add(10)
    child = other.ask("orphan")
    before = one.page()
    other.process.kill()
    other.process.wait(timeout=30)
    after = one.page()
    os.kill(child, signal.SIGKILL)

    assert [(10, 2), (10, 1)] == [(page[USES], page[SESSIONS]) for page in (before, after)]


def test_process_that_is_killed_before_anybody_has_asked_was_written_at_its_turns(
    start: Callable[..., Any], folder: Path
) -> None:
    """Snapshots do not depend on scrapes."""
    one, other = start(2)
    other.add(10)
    (snapshot,) = poll_until(
        lambda: [
            path for path in folder.glob(f"p{other.process.pid}-*.json") if b"jeeves_feature_usage" in path.read_bytes()
        ],
        "a turn",
    )
    other.kill()

    assert one.page()[USES] == 10
    poll_until(lambda: not snapshot.exists(), "the dead to be retired")
    assert one.page()[USES] == 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_process_that_has_changed_its_user_shows_itself_alone(start: Callable[..., Any]) -> None:
    """It may not read the folder any more; it goes on, and so do the others."""
    one, other = start(2)
    one.add(1)
    other.add(20)
    before = other.page()[USES]
    assert other.ask("change-user") == "ok"
    other.add(1)

    assert (21, 21, 21) == (before, other.page()[USES], one.page()[USES])
