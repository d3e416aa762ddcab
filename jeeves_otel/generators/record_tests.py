# SPDX-License-Identifier: Apache-2.0
"""Turn objectives into tests of what is recorded about them: windows, shares, and what is left of a budget.

In: objectives and families. Out: tests for promtool. More and more happens in them, so that a window sees something else
than half and twice of it. They are evaluated once a day: what is asked is what a rule says of a past, not how it got there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool, rules
from jeeves_otel.generators.incidents import RECORDED_S, Phase, happened, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.generators.promtool import Series, Test
    from jeeves_otel.objectives import Slo
    from jeeves_otel.promql import Families

EVALUATED_S = 86_400
_RAW_STEP_S = 30  # where a day is played for windows of minutes and hours
_SPARSE_S = 1_200  # where months are: promtool reads no more than 10,000 samples in a query
_PER_BAND = 24  # events: in the shortest window fewer than one a second
_BAD = 0.1  # share
_PRECISION = 1e-6
_SPARE_S = 600
_ANOTHER = "of another"


def record_tests(slos: tuple[Slo, ...], families: Families) -> Iterator[Test]:
    """Yield what every recording rule has recorded, where each window has seen something else than half and twice of it."""
    yield _recorded_test("of raw counters", slos, families, _RAW_STEP_S, EVALUATED_S)
    yield _recorded_test("of windows of days", slos, families, _SPARSE_S, 2 * max(slo.period.seconds for slo in slos))
    yield _recorded_test("in the first day of a server", slos, families, RECORDED_S, EVALUATED_S)
    never = promtool.without_still(_all_series(slos, families, [Phase(EVALUATED_S // _RAW_STEP_S + 1)]))
    quiet = _all_series(slos, families, [Phase(EVALUATED_S // _RAW_STEP_S + 1, events=0)])
    made = [(slo, rule["record"]) for slo in slos for rule in rules.records(slo)]
    shares = [(slo, record) for slo, record in made if ":total:" not in record and ":traffic:" not in record]
    yield promtool.unit_test(
        "nothing has ever failed: a share of 0, instead of none",
        _RAW_STEP_S,
        never,
        [is_recorded_as(slo, record, 0.0, EVALUATED_S) for slo, record in shares],
    )
    yield promtool.unit_test(
        "nothing happens: no traffic, and no share, instead of a division by zero",
        _RAW_STEP_S,
        quiet,
        [
            _is_not_recorded(slo, record, EVALUATED_S)
            for slo, record in made
            if ":traffic:" in record or "ratio" in record
        ],
    )
    yield promtool.unit_test(
        "nothing happens, and nothing has ever failed: no events, and no bad ones",
        _RAW_STEP_S,
        {name: values for name, values in quiet.items() if name in never},
        [is_recorded_as(slo, record, 0.0, EVALUATED_S) for slo, record in made if _counts(record)],
    )
    yield from _silence_tests(slos)


def _counts(record: str) -> bool:
    return ":total:" in record or ":bad:" in record


def _silence_tests(slos: tuple[Slo, ...]) -> Iterator[Test]:
    """Yield what is recorded where no process counts anything: no events if there were some within a day, else nothing."""
    made = [(slo, rule["record"]) for slo in slos for rule in rules.records(slo)]
    seen_s, end_s = EVALUATED_S, 2 * EVALUATED_S
    yield promtool.unit_test(
        "nobody counts, but less than a day ago somebody did: no events, no bad ones, and no share",
        RECORDED_S,
        {name: values for slo in slos for name, values in _once("slo:traffic:rate5m", slo.name, seen_s + _SPARE_S)},
        [
            *(is_recorded_as(slo, record, 0.0, end_s) for slo, record in made if _counts(record)),
            *(_is_not_recorded(slo, record, end_s) for slo, record in made if "ratio" in record),
        ],
    )
    others = [*_once("slo:traffic:rate5m", _ANOTHER, end_s), *_once("slo:traffic:max1d", _ANOTHER, end_s)]
    yield promtool.unit_test(
        "nobody counts, and for more than a day nobody did, but for what is of another one: nothing is recorded",
        RECORDED_S,
        {
            name: values
            for slo in slos
            for name, values in [*_once("slo:traffic:rate5m", slo.name, seen_s - _SPARE_S), *others]
        },
        [_is_not_recorded(slo, record, end_s) for slo, record in made],
    )


def _once(record: str, slo: str, at_s: int) -> Iterator[tuple[str, str]]:
    """Yield the series of *record* that has one sample, at that moment."""
    yield promtool.series(record, {"slo": slo}), f"_x{at_s // RECORDED_S} 1 _x{_SPARE_S // RECORDED_S}"


def _all_series(slos: tuple[Slo, ...], families: Families, phases: list[Phase]) -> Series:
    return {name: values for slo in slos for name, values in happened(slo, families, phases).items()}


def _recorded_test(what: str, slos: tuple[Slo, ...], families: Families, step_s: int, seconds: float) -> Test:
    """Return a test of every record of raw counters, or of windows of days, after so many seconds, in whole days."""
    days = math.ceil(seconds / EVALUATED_S)
    long = step_s > _RAW_STEP_S
    phases = _halving(days * EVALUATED_S, step_s)
    past = _Past([phase.events for phase in phases for _ in range(phase.steps)], step_s, recorded=long)
    made: Series = {}
    expected: list[Test] = []
    for slo in slos:
        made |= recorded(slo, phases, step_s) if long else happened(slo, families, phases)
        records = [rule["record"] for rule in rules.records(slo, long=long)]
        expected += [is_recorded_as(slo, record, past.of(slo, record), days * EVALUATED_S) for record in records]
    return promtool.unit_test(
        f"more and more happens, a tenth of it bad: what is recorded {what}", step_s, made, expected
    )


def _halving(seconds: int, step_s: int) -> list[Phase]:
    """Return phases, each half as long as the one before, in each of which as much happens: averages tell windows apart."""
    left, length, phases = seconds // step_s + 1, 1, []
    while left:
        phases.append(Phase(min(length, left), _PER_BAND / length, bad=_BAD))
        left -= phases[-1].steps
        length *= 2
    return phases[::-1]


@dataclass(frozen=True, slots=True)
class _Past:
    """The events of each step, oldest first, of which a part was bad: counted, or as *recorded* over five minutes."""

    events: list[float]
    step_s: int
    recorded: bool

    def of(self, slo: Slo, record: str) -> float:
        """Return what the rule *record* of *slo* makes of it."""
        _, what, how = record.split(":")
        budget = float(slo.budget)
        lengths = {window.text: window.seconds for window in slo.windows}
        window_s = lengths.get(how.removeprefix("rate").removeprefix("ratio"), slo.period.seconds)
        spent = _BAD / budget
        values = {
            "total": self._rate(window_s),
            "traffic": self._rate(300),
            "bad": self._rate(window_s) * _BAD,
            "seen": self._seen(window_s),
            "error_ratio": _BAD,
            "objective": 1 - budget,
            "burn_rate": spent,
            "period_seen": self._seen(slo.period.seconds),
            "budget_remaining": 1 - spent * self._seen(slo.period.seconds),
        }
        return values[what]

    def _rate(self, window_s: float) -> float:
        # Of counters, a rate is that between the samples of a window, of which the first has none before it.
        samples = int(window_s // self.step_s) - (0 if self.recorded else 1)
        inside = self.events[-samples:]
        return sum(inside) / len(inside) / self.step_s

    def _seen(self, window_s: float) -> float:
        return min(window_s / self.step_s, len(self.events)) * RECORDED_S / window_s


def is_recorded_as(slo: Slo, record: str, value: float, at_s: int) -> Test:
    """Return the assertion that *record* of *slo* is *value*, but for what floating point makes of it."""
    asked = promtool.series(record, {"slo": slo.name})
    expr = f"abs({asked} / {value:.12g} - 1) < bool {_PRECISION:g}" if value else f"{asked} == bool 0"
    expected = [{"labels": promtool.series("", {"slo": slo.name}), "value": 1}]
    return {"expr": expr, "eval_time": f"{at_s}s", "exp_samples": expected}


def _is_not_recorded(slo: Slo, record: str, at_s: int) -> Test:
    """Return the assertion that there is no *record* of *slo*."""
    return {"expr": promtool.series(record, {"slo": slo.name}), "eval_time": f"{at_s}s", "exp_samples": []}
