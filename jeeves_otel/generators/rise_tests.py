# SPDX-License-Identifier: Apache-2.0
"""Turn alerts about counters that should stand still into tests: when each rise is told of, and what is none.

In: an `Alert`, its query and the families that there are. Out: tests for promtool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool
from jeeves_otel.generators.incidents import some
from jeeves_otel.generators.promtool import SPARE, STEP_S
from jeeves_otel.generators.told import told_of
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jeeves_otel.generators.promtool import Series, Test
    from jeeves_otel.objectives import Alert
    from jeeves_otel.promql import Families, Family
    from jeeves_otel.queries import Rises

_REMEMBERED_S = 900  # how long a counter that is not seen is no new one, beside the window
_STEPS = 10  # at least, in a window
_ASIDE = "aside"  # a label that nobody asks


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
    def _shift(self) -> int:
        """How many steps after one counter the next one does the same: just before what it did is forgotten."""
        return max(1, self._window - SPARE)

    @property
    def _further(self) -> int:
        """How many more counters do the same, so that what is seen of one for a window is told of at all."""
        missing = math.ceil(self.alert.for_.seconds / self._step_s) + 4 * SPARE - self._window
        return max(0, math.ceil(missing / self._shift)) if self._must_go_on else 0

    @property
    def _lasting(self) -> int:
        """How many steps after the first counter the last one does the same."""
        return self._further * self._shift

    def _one_after_another(self, labels: Mapping[str, str], values: str, *, before: str = "_") -> Series:
        """Return counters that are one for the alert, each with *values*, and *before* until it is its turn."""
        made = {promtool.series(self.family.name, labels): values}
        for number in range(1, self._further + 1):
            name = promtool.series(self.family.name, {**labels, _ASIDE: str(number)})
            # `_x3` are three steps, and `7x2` are.
            steps = number * self._shift
            made[name] = f"{before}x{steps if before == '_' else steps - 1} {values}"
        return made

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
            + self._lasting
        )

    def tests(self) -> Iterator[Test]:
        """Yield when it is told of, and when it is not."""
        yield self._rising()
        if self._must_go_on:
            yield self._going_on()
        yield self._still()
        if others := self._others():
            apart = self._apart
            made = {
                name: values
                for other in others
                for name, values in self._one_after_another(other, f"_x{apart} 1+1x{2 * apart}").items()
            }
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
        several = f"{self._further + 1} of " if self._further else ""
        values = f"_x{born} 1x{apart - 1} 0x{apart - 1} 1 0x{apart - 2} _x{missing} 7x{apart}"
        expected, told = [], []
        for begins, since in ((born, 0), (risen, 2 * apart), (back, 4 * apart)):
            expected += self._told_of(begins, since)
            told_s = (begins + math.ceil(self.alert.for_.seconds / self._step_s) + SPARE) * self._step_s
            told.append(told_of(self.alert, self._alert_labels, 7 if begins == back else 1, told_s))
        return promtool.unit_test(
            f"{self.alert.name}: {several}{self._who} rises from nothing, then from 0, and comes back after a long time, as good as new",
            self._step_s,
            self._one_after_another(self.labels, values),
            expected,
            () if self._must_go_on else told,  # how many of them a window still sees is no business of this test
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
        over = begins + self._lasting + self._window + math.ceil(alert.keep_firing_for.seconds / self._step_s)
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
            self._one_after_another(self.labels, values, before="7"),
            [promtool.was_silent(self.alert.name, {}, until_s, apart * self._step_s)],
        )
