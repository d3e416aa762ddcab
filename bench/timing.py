# SPDX-License-Identifier: Apache-2.0
"""Time competitors in turns, so that whatever else the machine does hits all of them alike.

In: groups of cases. Out: for each case the median and the quartiles of the seconds that one event takes, the empty loop
subtracted. Only ratios between cases of one run mean anything.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from statistics import median, quantiles
from time import perf_counter

ROUND_S = 0.02  # long enough for the clock, short enough for many turns

Run = Callable[[int], object]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One competitor.

    Args:
        name: What it is.
        run: Does the given number of events.
        prepare: Called before each turn.
    """

    name: str
    run: Run
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Group:
    """Competitors that do the same; the first one is what the others are compared with."""

    title: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Result:
    """Seconds per event of one case, and how often it takes the first case's median."""

    group: str
    name: str
    median_s: float
    p25_s: float
    p75_s: float
    ratio: float


def each(step: Callable[[], object]) -> Run:
    """Return a run that calls *step* for each event."""

    def run(events: int) -> None:
        for _ in repeat(None, events):
            step()

    return run


def measure(group: Group, rounds: int) -> list[Result]:
    """Time the cases of *group* in turns, *rounds* turns each (>= 2)."""
    empty = Case("empty loop", each(_nothing))
    cases = (*group.cases, empty)
    events = [_calibrated(case) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for turn in range(rounds):
        for position in range(len(cases)):
            index = (position + turn) % len(cases)  # nobody always comes after the same one
            times[index].append(_time(cases[index], events[index]) / events[index])
    loop_s = median(times.pop())
    first = median(times[0]) - loop_s
    return [
        _result(group, case, [time - loop_s for time in each_], first)
        for case, each_ in zip(group.cases, times, strict=True)
    ]


def _result(group: Group, case: Case, times: list[float], first: float) -> Result:
    low, middle, high = quantiles(times, n=4)
    return Result(group.title, case.name, middle, low, high, middle / first)


def _calibrated(case: Case) -> int:
    _time(case, 3)  # the first calls import and fill caches, and say nothing about the next
    events, elapsed = 1, _time(case, 1)
    while elapsed < ROUND_S / 2:
        events *= 2
        elapsed = _time(case, events)
    return max(1, round(events * ROUND_S / elapsed))


def _time(case: Case, events: int) -> float:
    case.prepare()
    gc.collect()  # garbage of the one before is not this one's
    start = perf_counter()
    case.run(events)
    return perf_counter() - start
