# SPDX-License-Identifier: Apache-2.0
"""Turn alerts about a share, a quantile or a rate into tests: when each fires and ends, and what is no reason to.

In: an `Alert`, its query and its family. Out: tests for promtool, whose moments are computed from what the alert promises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool
from jeeves_otel.generators.incidents import PER_STEP, Phase, bounds_around, played, some
from jeeves_otel.generators.promtool import SPARE, STEP_S
from jeeves_otel.generators.told import told_of
from jeeves_otel.queries import Quantile, Rate
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.generators.incidents import Shaped
    from jeeves_otel.generators.promtool import Series, Test
    from jeeves_otel.objectives import Alert
    from jeeves_otel.promql import Family

_ABOVE = 1.25  # times the threshold: most of the window must be bad
_BELOW = 0.6  # times the threshold: not well, and no reason to tell anybody
_MOST = 4.0  # times what is allowed, of what has no share


def shaped_tests(alert: Alert, query: Shaped, family: Family) -> Iterator[Test]:
    """Yield the tests of an alert that fires *above* what a share, a quantile or a rate may be."""
    yield _Reason(alert, query, family).incident()
    yield from _Reason(alert, query, family).quiet()
    if alert.floor > 1:
        yield _Reason(alert, query, family).floor()


@dataclass(frozen=True, slots=True)
class _Reason:
    """What an alert is about, played as multiples of what it allows."""

    alert: Alert
    query: Shaped
    family: Family

    @property
    def _allowed(self) -> float:
        """The share of events that may be bad; of a rate, all of them are events of which one asks how many there are."""
        if isinstance(self.query, Rate):
            return 1.0
        return 1 - self.query.q if isinstance(self.query, Quantile) else float(self.alert.threshold)

    @property
    def _window(self) -> int:
        return math.ceil(self.alert.window.seconds / STEP_S)

    @property
    def _most(self) -> float:
        """How many times what is allowed there can be."""
        return _MOST if isinstance(self.query, Rate) else 1 / self._allowed

    @property
    def _events(self) -> float:
        """Events per step, so many that the floor has no part in it."""
        return max(PER_STEP, 2 * self.alert.floor / self._allowed / self._window)

    @property
    def _labels(self) -> dict[str, str]:
        own = {label: some(self.family, label) for label in self.query.by}
        return {"severity": self.alert.severity, **self.alert.labels, **own}

    def _phase(self, steps: int, times: float, *, reset: bool = False) -> Phase:
        """Return a phase with so many times what is allowed."""
        if isinstance(self.query, Rate):
            return Phase(steps, times * float(self.alert.threshold) * STEP_S, bad=1.0, reset=reset)
        return Phase(steps, self._events, bad=min(1.0, times * self._allowed), reset=reset)

    def _series(self, *phases: Phase) -> Series:
        above = float(self.alert.threshold)
        return played(self.query, self.family, phases, above=above, besides=_MOST * self._besides)

    @property
    def _besides(self) -> float:
        return float(self.alert.threshold) * STEP_S if isinstance(self.query, Rate) else self._events

    def _worst(self) -> float:
        """Return what the query answers while everything is bad."""
        if isinstance(self.query, Quantile):
            good, bad = bounds_around(self.family, float(self.alert.threshold))
            lower = max((bound for bound in self.family.buckets if bound < bad), default=good)
            return self.family.buckets[-1] if math.isinf(bad) else lower + (bad - lower) * self.query.q
        return _MOST * float(self.alert.threshold) if isinstance(self.query, Rate) else 1.0

    def incident(self) -> Test:
        """Return a test in which somewhat more is bad than allowed, then everything, and then somewhat less."""
        alert, window = self.alert, self._window
        above = min(_ABOVE, self._most)
        due = window / above + alert.for_.seconds / STEP_S
        over = window * (self._most - 1) / (self._most - _BELOW) + alert.keep_firing_for.seconds / STEP_S
        health, burning, worst = window + SPARE, math.ceil(due) + 2 * SPARE, window + SPARE
        ended = health - 1 + burning + worst
        phases = [
            self._phase(health, 0),
            self._phase(burning, above),
            self._phase(worst, self._most, reset=True),
            self._phase(math.ceil(over) + 2 * SPARE, _BELOW),
        ]
        return promtool.unit_test(
            f"{alert.name}: {above:.3g} times as much as allowed is seen after {due * STEP_S / 60:.3g} minutes; then all is",
            STEP_S,
            self._series(*phases),
            [
                promtool.was_silent(alert.name, {}, (health - 1 + math.floor(due) - SPARE) * STEP_S),
                promtool.is_firing(alert.name, {}, (health - 1 + math.ceil(due) + SPARE) * STEP_S, self._labels),
                promtool.is_firing(alert.name, {}, (ended + math.floor(over) - SPARE) * STEP_S, self._labels),
                promtool.is_silent(alert.name, {}, (ended + math.ceil(over) + SPARE) * STEP_S),
            ],
            [told_of(alert, self._labels, self._worst(), ended * STEP_S)],
        )

    def quiet(self) -> Iterator[Test]:
        """Yield what is no reason."""
        due = self._window + math.ceil(self.alert.for_.seconds / STEP_S) + 2 * SPARE
        for name, made in {
            "nothing is bad": promtool.without_still(self._series(self._phase(due, 0))),
            "nothing happens": self._series(Phase(due, events=0)),
            "there is nothing at all": {},
            "less and less happens, and it is somewhat less than allowed": self._series(*self._fading(due)),
            "processes restart, and it is somewhat less than allowed": self._series(
                self._phase(due, _BELOW), self._phase(due, _BELOW, reset=True), self._phase(due, _BELOW, reset=True)
            ),
        }.items():
            until_s = (max(map(len, map(samples, made.values())), default=due) - 1) * STEP_S
            expected = [promtool.was_silent(self.alert.name, {}, until_s)]
            yield promtool.unit_test(f"{self.alert.name} is silent: {name}", STEP_S, made, expected)

    def _fading(self, steps: int) -> list[Phase]:
        """Return phases of half a window, in each of which a quarter as much happens as in the one before."""
        half = math.ceil(self._window / 2)
        count = math.ceil(steps / half) + 1
        mild = self._phase(half, _BELOW)
        return (
            [replace(mild, events=mild.events / 4**number) for number in range(1 - count, 1)]
            if self._shares
            else [mild]
        )

    @property
    def _shares(self) -> bool:
        return not isinstance(self.query, Rate)

    def floor(self) -> Test:
        """Return a test in which half of all is bad, or more: in each window half an event fewer than the floor, then more."""
        alert, floor, window = self.alert, self.alert.floor, self._window
        due = window + math.ceil(alert.for_.seconds / STEP_S) + 2 * SPARE
        share = (1 + self._allowed) / 2
        counted = 1.0 if isinstance(self.query, Quantile) else share
        few = Phase(2 * due, (floor - 0.5) / counted / window, bad=share)
        enough = Phase(due, (floor + 0.5) / counted / window, bad=share)
        return promtool.unit_test(
            f"{alert.name}: {floor - 0.5:g} in a window are too few, {floor + 0.5:g} are enough",
            STEP_S,
            self._series(few, enough),
            [
                promtool.was_silent(alert.name, {}, (2 * due - 1) * STEP_S),
                promtool.is_firing(alert.name, {}, (3 * due - 1) * STEP_S, self._labels),
            ],
        )
