# SPDX-License-Identifier: Apache-2.0
"""Turn alerts whose query has a shape into tests: when each fires and ends, and what it may not take for its reason.

In: an `Alert` about a share, a quantile, a rate, or counters that should stand still, and its family. Out: tests for
promtool, whose moments are computed from what the alert promises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool, rules
from jeeves_otel.generators.incidents import PER_STEP, Phase, bounds_around, played, some
from jeeves_otel.generators.promtool import SPARE, STEP_S
from jeeves_otel.queries import Quantile, Rate
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jeeves_otel.generators.incidents import Shaped
    from jeeves_otel.generators.promtool import Series, Test
    from jeeves_otel.objectives import Alert
    from jeeves_otel.promql import Families, Family
    from jeeves_otel.queries import Rises

_ABOVE = 1.25  # times the threshold: most of the window must be bad
_BELOW = 0.6  # times the threshold: not well, and no reason to tell anybody
_REMEMBERED_S = 900  # how long a counter that is not seen is no new one, beside the window
_STEPS = 10  # at least, in a window of a counter that should stand still
_MOST = 4.0  # times what is allowed, of what has no share


def told_of(alert: Alert, labels: Mapping[str, str], value: float, at_s: float) -> Test:
    """Return the assertion that *alert* fires once with *labels*, and says what it should with *value*."""
    annotations = rules.symptom_alert(alert)["annotations"]
    shown = {name: promtool.rendered(text, labels, value) for name, text in annotations.items()}
    return promtool.is_told(alert.name, at_s, [(labels, shown)])


# ---- shares, quantiles and rates ---------------------------------------------------------------------------------------


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


# ---- counters that should stand still ----------------------------------------------------------------------------------


def rising_tests(alert: Alert, query: Rises, families: Families) -> Iterator[Test]:
    """Yield what *alert* says when each of its counters is born, rises, stands still, restarts, or is none of its business."""
    asked = [dict(zip(dict(query.where), values, strict=True)) for values in product(*dict(query.where).values())]
    for family, own in product((families[name] for name in query.families), asked):
        of_it = {"job": "some", "instance": "some", **{label: some(family, label) for label in family.labels}, **own}
        yield from _Counter(alert, query, family, of_it, own).tests()
    yield promtool.unit_test(
        f"{alert.name} is silent: there is nothing at all",
        STEP_S,
        {},
        [promtool.was_silent(alert.name, {}, 2 * alert.window.seconds)],
    )


@dataclass(frozen=True, slots=True)
class _Counter:
    """One series of a counter that should stand still."""

    alert: Alert
    query: Rises
    family: Family
    labels: Mapping[str, str]
    own: Mapping[str, str]  # the labels by which the alert chooses it

    @property
    def _step_s(self) -> int:
        """The longest step of which a window still has enough."""
        return max((each for each in (15, 30, 60) if each * _STEPS <= self.alert.window.seconds), default=STEP_S)

    @property
    def _window(self) -> int:
        return math.ceil(self.alert.window.seconds / self._step_s)

    @property
    def _series(self) -> str:
        return promtool.series(self.family.name, self.labels)

    @property
    def _who(self) -> str:
        return self.family.name + "".join(f", {label} {value}," for label, value in self.own.items())

    @property
    def _apart(self) -> int:
        """So many steps after something was seen, it is forgotten, and whoever was told of it is told that it is over."""
        return (
            self._window
            + math.ceil((self.alert.for_.seconds + self.alert.keep_firing_for.seconds) / self._step_s)
            + 4 * SPARE
        )

    def tests(self) -> Iterator[Test]:
        """Yield when it is told of, and when it is not."""
        yield self._going_on() if self._must_go_on else self._rising()
        yield self._still()
        if others := self._others():
            apart = self._apart
            made = {promtool.series(self.family.name, other): f"_x{apart} 1+1x{2 * apart}" for other in others}
            until_s = 3 * apart * self._step_s
            expected = [promtool.was_silent(self.alert.name, {}, until_s)]
            yield promtool.unit_test(
                f"{self.alert.name} is silent: {self._who} is born and rises elsewhere", self._step_s, made, expected
            )

    def _others(self) -> list[dict[str, str]]:
        """Return the labels of counters whose rise is no business of the query."""
        excluded = [(label, value) for label, values in self.query.excluded for value in values]
        excluded += [(label, "another") for label, _ in self.query.where]
        return [{**self.labels, label: value} for label, value in excluded]

    def _rising(self) -> Test:
        """Return a test of every way to rise: from nothing, from 0 and with a restart, from nothing again after a long time."""
        apart = self._apart
        born, risen = apart, 3 * apart
        back = 4 * apart + self._window + math.ceil(1.5 * _REMEMBERED_S / self._step_s)
        missing = back - 4 * apart
        values = f"_x{born} 1x{apart - 1} 0x{apart - 1} 1 0x{apart - 2} _x{missing} 7x{apart}"
        expected, told = [], []
        for begins, since in ((born, 0), (risen, 2 * apart), (back, 4 * apart)):
            expected += self._told_of(begins, since)
            told_s = (begins + math.ceil(self.alert.for_.seconds / self._step_s) + SPARE) * self._step_s
            told.append(told_of(self.alert, self._alert_labels, 7 if begins == back else 1, told_s))
        return promtool.unit_test(
            f"{self.alert.name}: {self._who} rises from nothing, then from 0, and comes back after a long time, as good as new",
            self._step_s,
            {self._series: values},
            expected,
            told,
        )

    @property
    def _must_go_on(self) -> bool:
        """Whether one rise is not enough: it is seen for one window, and `for` is longer."""
        return self.alert.for_.seconds >= self.alert.window.seconds

    def _going_on(self) -> Test:
        """Return a test in which a birth alone is not told of, and what rises again and again is, until it stands still."""
        alert, apart, window = self.alert, self._apart, self._window
        for_ = math.ceil(alert.for_.seconds / self._step_s)
        lasting = for_ + window + 2 * SPARE
        values = f"_x{apart} 1x{apart - 1} 2+1x{lasting - 1} {lasting + 1}x{2 * apart - 1}"
        begins, ended = 2 * apart, 2 * apart + lasting - 1
        told_s = (begins + for_ + SPARE) * self._step_s
        over = ended + window + math.ceil(alert.keep_firing_for.seconds / self._step_s)
        return promtool.unit_test(
            f"{alert.name}: {self._who} is born, which is not enough, and then goes on rising",
            self._step_s,
            {self._series: values},
            [
                promtool.was_silent(alert.name, {}, (begins + for_ - SPARE) * self._step_s),
                promtool.is_firing(alert.name, {}, told_s, self._alert_labels),
                promtool.is_firing(alert.name, {}, (over - SPARE) * self._step_s, self._alert_labels),
                promtool.is_silent(alert.name, {}, (over + SPARE) * self._step_s),
            ],
            [told_of(alert, self._alert_labels, window, told_s)],
        )

    @property
    def _alert_labels(self) -> dict[str, str]:
        own = {label: self.labels[label] for label in self.query.by}
        return {"severity": self.alert.severity, **self.alert.labels, **own}

    def _told_of(self, begins: int, since: int) -> list[Test]:
        """Return that a rise in step *begins* is told of for as long as the window sees it, and nothing before."""
        alert = self.alert
        for_ = math.ceil(alert.for_.seconds / self._step_s)
        over = begins + self._window + math.ceil(alert.keep_firing_for.seconds / self._step_s)
        return [
            promtool.was_silent(
                alert.name, {}, (begins + max(0, for_ - SPARE)) * self._step_s - 1, since * self._step_s
            ),
            promtool.is_firing(alert.name, {}, (begins + for_ + SPARE) * self._step_s, self._alert_labels),
            promtool.is_firing(alert.name, {}, (over - SPARE) * self._step_s, self._alert_labels),
            promtool.is_silent(alert.name, {}, (over + SPARE) * self._step_s),
        ]

    def _still(self) -> Test:
        """Return a test of a counter that stands still, whatever happens to it: none of it is told of, then or later."""
        apart = self._apart
        gaps = (1, 8, math.ceil(_REMEMBERED_S / self._step_s) - 2 * SPARE)
        away = " ".join(f"stale{f' _x{gap - 1}' if gap > 1 else ''} 7x{apart}" for gap in gaps)
        values = f"7x{apart} {away} 0x{apart} stale _x{apart} 0x{apart}"
        until_s = (len(samples(values)) - 1) * self._step_s
        return promtool.unit_test(
            f"{self.alert.name} is silent: {self._who} stands still, is away for {gaps[0]}, {gaps[1]} and {gaps[2]} scrapes,"
            " restarts, and is born as 0",
            self._step_s,
            {self._series: values},
            [promtool.was_silent(self.alert.name, {}, until_s, apart * self._step_s)],
        )
