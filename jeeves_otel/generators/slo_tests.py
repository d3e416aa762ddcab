# SPDX-License-Identifier: Apache-2.0
"""Turn objectives into tests: when each tier fires and ends, and what it may not mistake for an incident.

In: objectives and families. Out: suites by name. The moments are computed from what a tier promises, not from what the
rule says: a share *e* of bad events reaches a threshold over a window of *w* seconds after ``threshold / e * w`` seconds.
Each tier is a suite, evaluated as often as its short window needs, because days at the pace of minutes take minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool, rules
from jeeves_otel.generators.incidents import PER_STEP, RECORDED_S, Phase, happened
from jeeves_otel.generators.promtool import SPARE, STEP_S
from jeeves_otel.generators.record_tests import EVALUATED_S, is_recorded_as, record_tests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jeeves_otel.generators.promtool import Series, Suite, Test
    from jeeves_otel.objectives import Slo, Tier
    from jeeves_otel.promql import Families

_EVALUATIONS = 6  # at least, in a short window: with less, half of one and twice of one could not be told apart
# In seconds. At five minutes, one group would no longer see what the other has recorded.
_PACES_S = (15, 30, 60, 150, 600, 900, 1_200, 1_800, 3_600)
_RAW_S = 6 * 3_600  # the longest window of raw counters

_ABOVE = 1.25  # times the threshold: most of a window must be bad
_BELOW = 0.6  # times the threshold: not well, and no incident
_AMPLE = 1.25  # times a floor, where another one is asked


def suites(slos: tuple[Slo, ...], families: Families) -> dict[str, Suite]:
    """Return the suites by name, those of each rule file by its name."""
    return {
        name: suite
        for file in dict.fromkeys(slo.file for slo in slos)
        for name, suite in _of_file(file, tuple(slo for slo in slos if slo.file == file), families).items()
    }


def _of_file(file: str, slos: tuple[Slo, ...], families: Families) -> dict[str, Suite]:
    found = {file: (STEP_S, [test for part in _apart(slos) for test in _quiet_tests(part, families)])}
    for tier in dict.fromkeys(tier for slo in slos for tier in slo.tiers):
        pace = _pace(tier)
        tests = [test for part in _apart(_burning(slos, tier)) for test in _tier_tests(part, tier, families, pace)]
        # Objectives may have floors of their own, and so several tiers of one name, at one pace.
        found.setdefault(f"{file}-{tier.name}", (pace.evaluated_s, []))[1].extend(tests)
    found[f"{file}-records"] = (EVALUATED_S, [test for part in _apart(slos) for test in record_tests(part, families)])
    # Of two groups in one instant, which Prometheus does not promise.
    order = (f"jeeves-{file}", f"jeeves-{file}-long")
    return {name: promtool.suite([file], step_s, tests, order) for name, (step_s, tests) in found.items() if tests}


def _apart(slos: Iterable[Slo]) -> list[tuple[Slo, ...]]:
    """Return *slos* in parts that can be played together: none asks the metric of another."""
    parts: list[list[Slo]] = []
    for slo in slos:
        free = next((part for part in parts if slo.sli.family not in {each.sli.family for each in part}), None)
        if free is None:
            parts.append([slo])
        else:
            free.append(slo)
    return [tuple(part) for part in parts]


def _burning(slos: tuple[Slo, ...], tier: Tier) -> list[Slo]:
    return [slo for slo in slos if tier in slo.tiers and slo.threshold(tier) < 1]


# ---- pace --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pace:
    """How often a tier is evaluated, and between samples of what is played; seconds."""

    evaluated_s: int
    step_s: int

    @property
    def spare_s(self) -> int:
        """How much later or earlier than computed something may be seen."""
        return SPARE * self.evaluated_s

    def steps(self, seconds: float) -> int:
        """Return how many samples *seconds* are, at least."""
        return math.ceil(seconds / self.step_s)

    def before(self, seconds: float) -> int:
        """Return the last evaluation that is surely before that moment."""
        return int((seconds - self.spare_s) // self.evaluated_s * self.evaluated_s)

    def after(self, seconds: float) -> int:
        """Return the first evaluation that is surely after that moment."""
        return math.ceil((seconds + self.spare_s) / self.evaluated_s) * self.evaluated_s


def _pace(tier: Tier) -> _Pace:
    """Return the slowest pace at which the short window of *tier* still has enough evaluations."""
    evaluated_s = max((each for each in _PACES_S if each * _EVALUATIONS <= tier.short.seconds), default=STEP_S)
    return _Pace(evaluated_s, RECORDED_S) if _is_recorded(tier) else _Pace(evaluated_s, evaluated_s)


def _is_recorded(tier: Tier) -> bool:
    return tier.long.seconds > _RAW_S


# ---- tiers -------------------------------------------------------------------------------------------------------------


def _tier_tests(slos: tuple[Slo, ...], tier: Tier, families: Families, pace: _Pace) -> Iterator[Test]:
    yield _incident_test(slos, tier, families, pace)
    yield from _floor_tests(slos, tier, families, pace)
    if tier.seen:
        yield _young_test(slos, tier, families, pace)


def _incident_test(slos: tuple[Slo, ...], tier: Tier, families: Families, pace: _Pace) -> Test:
    """Return a test of one tier for several objectives at once, which do not touch each other.

    After a long window of health, somewhat more is bad than the threshold, then everything is while processes restart,
    and then somewhat less than the threshold: each alert is silent until its moment, fires, fires until its end is due,
    and is silent then, although not everything is well.
    """
    made: Series = {}
    expected: list[Test] = []
    for slo in slos:
        phases, asserted = _incident(slo, tier, pace)
        made |= happened(slo, families, phases, days=_is_recorded(tier))
        expected += asserted
    minutes = tier.long.seconds / _ABOVE / 60
    more = f"{_ABOVE:g} times as much is bad as it allows, seen after {minutes:.3g} minutes"
    return promtool.unit_test(f"tier {tier.name}: {more}; then all is", pace.step_s, made, expected)


def _incident(slo: Slo, tier: Tier, pace: _Pace) -> tuple[list[Phase], list[Test]]:
    """Return what happens to one objective, and what is expected of the alert."""
    threshold = float(slo.threshold(tier))
    share = min(1.0, _ABOVE * threshold)
    needed_s = threshold / share * tier.long.seconds
    over_s = tier.short.seconds * (1 - threshold) / (1 - _BELOW * threshold) + tier.keep_firing_for.seconds
    events = _enough(tier, share, pace)
    health = pace.steps(tier.long.seconds) + SPARE
    burning = pace.steps(needed_s + 2 * pace.spare_s)
    worst = pace.steps(tier.short.seconds + pace.spare_s)
    phases = [
        Phase(health, events),
        Phase(burning, events, bad=share),
        Phase(worst, events, bad=1.0, reset=True),
        Phase(pace.steps(over_s + 2 * pace.spare_s), events, bad=_BELOW * threshold),
    ]
    due_s = (health - 1) * pace.step_s + needed_s
    end_s = (health - 1 + burning + worst) * pace.step_s + over_s
    matchers, fires = _matchers(slo, tier), _fires(slo, tier)
    return phases, [
        promtool.was_silent(slo.alert, matchers, pace.before(due_s)),
        promtool.is_firing(slo.alert, matchers, pace.after(due_s), fires),
        promtool.is_firing(slo.alert, matchers, pace.before(end_s), fires),
        promtool.is_silent(slo.alert, matchers, pace.after(end_s)),
    ]


def _matchers(slo: Slo, tier: Tier) -> dict[str, str]:
    return {"slo": slo.name, "tier": tier.name}


def _fires(slo: Slo, tier: Tier) -> dict[str, str]:
    """Return the labels of the alert."""
    return {"severity": tier.severity, **_matchers(slo, tier), **slo.labels}


def _enough(tier: Tier, share: float, pace: _Pace) -> float:
    """Return so many events per step that no floor has a part in it."""
    steps = tier.long.seconds / pace.step_s
    return max(PER_STEP, 2 * tier.bad / share / steps, 2 * tier.events / steps)


def _floor_tests(slos: tuple[Slo, ...], tier: Tier, families: Families, pace: _Pace) -> Iterator[Test]:
    """Yield how each floor of *tier* silences it, just below, while everything else holds; two bad events later it fires."""
    few = tier.events - 1
    if few >= tier.bad:
        name = f"tier {tier.name}: {few} events, all of them bad, are too few; two more are enough"
        yield _floor_test(name, [(slo, few, few) for slo in slos], tier, families, pace)
    # What is recorded is an average that falls until the next evaluation, and with it what there was in all.
    many = math.ceil(tier.events * _AMPLE) if _is_recorded(tier) else tier.events + 1
    mild = [slo for slo in slos if (tier.bad - 1) / many > slo.threshold(tier)]
    if mild:
        name = f"tier {tier.name}: {tier.bad - 1} bad events of {many} are too few; two more are enough"
        yield _floor_test(name, [(slo, many, tier.bad - 1) for slo in mild], tier, families, pace)


def _floor_test(name: str, counted: list[tuple[Slo, int, int]], tier: Tier, families: Families, pace: _Pace) -> Test:
    """Return a test in which ``(objective, events, of which bad)`` happen at once, and later two more bad ones."""
    quiet = pace.steps(_seen_s(tier)) + SPARE
    pause = pace.steps(2 * pace.spare_s)
    missing = quiet + pause  # the step in which the two happen
    told_s = pace.after(missing * pace.step_s)
    # What is recorded is averaged: while a window is not full, what there was counts for the whole of it.
    window = pace.steps(tier.long.seconds)
    first, last = ((quiet + 1) / window, (told_s // pace.step_s + 1) / window) if _is_recorded(tier) else (1, 1)
    made: Series = {}
    expected: list[Test] = []
    for slo, events, bad in counted:
        phases = [
            Phase(quiet, 0),
            Phase(1, events * first, bad=bad / events),
            Phase(pause - 1, 0),
            Phase(1, (events + 2) * last - events * first, bad=1.0),
            Phase(pause, 0),
        ]
        made |= happened(slo, families, phases, days=_is_recorded(tier))
        matchers, fires = _matchers(slo, tier), _fires(slo, tier)
        silent_s = (missing - 1) * pace.step_s // pace.evaluated_s * pace.evaluated_s
        expected += [
            promtool.was_silent(slo.alert, matchers, silent_s),
            promtool.is_firing(slo.alert, matchers, told_s, fires),
        ]
    return promtool.unit_test(name, pace.step_s, made, expected)


def _seen_s(tier: Tier) -> float:
    return tier.long.seconds * float(tier.seen)


def _young_test(slos: tuple[Slo, ...], tier: Tier, families: Families, pace: _Pace) -> Test:
    """Return a test of a server that has just begun: a tier over days judges no minutes, and then says everything."""
    seen_s = _seen_s(tier)
    told_s = pace.after(seen_s)
    made: Series = {}
    expected: list[Test] = []
    for slo in slos:
        phases = [Phase(pace.steps(told_s) + 1, bad=1.0)]
        made |= happened(slo, families, phases, days=_is_recorded(tier))
        matchers, fires = _matchers(slo, tier), _fires(slo, tier)
        expected += [
            promtool.was_silent(slo.alert, matchers, pace.before(seen_s)),
            promtool.is_firing(slo.alert, matchers, told_s, fires),
        ]
    told = [_told(slo, [each for each in slo.tiers if _fires_beside(each, tier)], told_s) for slo in slos]
    name = (
        f"tier {tier.name}: everything fails from the start of a server, which is judged after {seen_s / 3_600:g} hours"
    )
    return promtool.unit_test(name, pace.step_s, made, expected, told)


def _fires_beside(other: Tier, tier: Tier) -> bool:
    """Return whether *other* fires too when everything has failed for as long as *tier* must have seen, at its pace.

    A rate needs two samples; and at the pace of days, no alert of the first group sees what the second has recorded.
    """
    if other.short.seconds < RECORDED_S or _seen_s(other) > _seen_s(tier):
        return False
    return not other.seen or _is_recorded(other) == _is_recorded(tier)


def _told(slo: Slo, tiers: Iterable[Tier], at_s: int) -> Test:
    """Return the assertion that exactly *tiers* of *slo* fire, with every label and annotation."""
    by_tier = {rule["labels"]["tier"]: rule for long in (False, True) for rule in rules.burn_alerts(slo, long=long)}
    expected = [by_tier[tier.name] for tier in tiers]
    return promtool.is_told(slo.alert, at_s, [(rule["labels"], rule["annotations"]) for rule in expected])


# ---- no incidents ------------------------------------------------------------------------------------------------------


def _quiet_tests(slos: tuple[Slo, ...], families: Families) -> Iterator[Test]:
    """Yield what no tier may mistake for an incident, and what is told in one, in either spelling of bounds."""
    mild = {slo.name: _BELOW * min(float(slo.threshold(tier)) for tier in slo.tiers) for slo in slos}
    steps = 40
    happens = {
        "nothing fails": {slo.name: [Phase(steps)] for slo in slos},
        "nothing happens": {slo.name: [Phase(steps, events=0)] for slo in slos},
        "processes restart, and as little fails as ever": {
            slo.name: [
                Phase(16, bad=mild[slo.name]),
                Phase(16, bad=mild[slo.name], reset=True),
                Phase(8, bad=mild[slo.name], reset=True),
            ]
            for slo in slos
        },
    }
    for name, phases in happens.items():
        made: Series = {}
        for slo in slos:
            made |= happened(slo, families, phases[slo.name])
        if name == "nothing fails":
            made = promtool.without_still(made)
        yield promtool.unit_test(f"nobody is told: {name}", STEP_S, made, _never(slos, (steps - 1) * STEP_S))
    yield promtool.unit_test("nobody is told: there is nothing at all", STEP_S, {}, _never(slos, (steps - 1) * STEP_S))
    for spelling, whole in (("pushed", ""), ("scraped", ".0")):
        made = {}
        for slo in slos:
            made |= happened(slo, families, [Phase(steps, bad=1.0)], whole=whole)
        at_s = (steps - 1) * STEP_S
        told = [_told(slo, [tier for tier in slo.tiers if not tier.seen], at_s) for slo in slos]
        burns = [is_recorded_as(slo, "slo:burn_rate:ratio1h", 1 / float(slo.budget), at_s) for slo in slos]
        yield promtool.unit_test(
            f"everything fails from the start, {spelling}: who is told, and what", STEP_S, made, burns, told
        )


def _never(slos: Iterable[Slo], until_s: int) -> list[Test]:
    return [promtool.was_silent(slo.alert, _matchers(slo, tier), until_s) for slo in slos for tier in slo.tiers]
