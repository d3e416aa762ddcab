# SPDX-License-Identifier: Apache-2.0
"""Turn objectives and alerts into unit tests for promtool: when each fires, just before when it does not, and why not.

In: `Objectives`. Out: ``tests/rules/*.yaml``. The moments are computed from what an alert promises, not from what the
rule says: a share *e* of bad events reaches a threshold over a window of *w* seconds after ``threshold / e * w`` seconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from jeeves_otel.generators import rules
from jeeves_otel.queries import Quantile, Rate, Rises, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jeeves_otel.objectives import Alert, Case, Objectives, Slo, Tier
    from jeeves_otel.promql import Families, Family

Test = dict[str, Any]

_STEP_S = 15  # of what is recorded and evaluated, as in production
_MEDIUM_S = 60  # where hours are
_COARSE_S = 150  # where days are played; of windows of two minutes there is then no rate, whatever the release
_PER_STEP = 20  # events
_SPARE = 2  # steps: a sample may come up to one late, and so may an evaluation
_HOUR_S = 3_600
_THOUSAND = 1_000


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps in which so many events happen per step, and a share of them is bad."""

    steps: int
    events: float = _PER_STEP
    bad: float = 0.0  # share, 0..1
    reset: bool = False  # the process restarts as it begins


def files(objectives: Objectives, families: Families) -> dict[str, str]:
    """Return the tests, ``{path: text}``, paths relative to the project's root."""
    slos = objectives.slos
    suites: dict[str, tuple[int, list[Test]]] = {}
    if slos:  # a user may have alerts only
        suites = {
            "slos": (_STEP_S, [*_short_tests(slos, families), *_quiet_tests(slos, families)]),
            "slos-slow": (_MEDIUM_S, list(_tier_tests(slos, families, _MEDIUM_S))),
            "slos-long": (_COARSE_S, list(_long_tests(slos, families))),
        }
    for alert in objectives.alerts:
        for test in symptom_tests(alert, families):
            step_s = int(test["interval"].removesuffix("s"))
            # Objectives are recorded only where an alert asks for them: they are a hundred rules.
            name = f"{alert.file}{'-recorded' if asks_records(alert) else ''}{'-slow' if step_s > _STEP_S else ''}"
            suites.setdefault(name, (step_s, []))[1].append(test)
    return {
        f"tests/rules/{name}.yaml": rules.document(
            {
                "rule_files": [f"../../collector/rules/{each}.yaml" for each in _rule_files(name)],
                "evaluation_interval": f"{step}s",
                "tests": tests,
            }
        )
        for name, (step, tests) in suites.items()
        if tests
    }


def asks_records(alert: Alert) -> bool:
    """Return whether *alert* asks what is recorded about objectives."""
    return "slo:" in alert.query.promql(alert.window.text)


def _rule_files(suite: str) -> tuple[str, ...]:
    own, _, kind = suite.partition("-")
    return ("slos", own) if "recorded" in kind else (own,)


# ---- what is played ----------------------------------------------------------------------------------------------------


def played(
    query: Share | Slower | Quantile | Rate, family: Family, phases: Iterable[Phase], whole: str = ""
) -> dict[str, str]:
    """Return the series of *family* that *phases* make, ``{series: values in promtool's notation}``.

    *whole* is how whole numbers end in ``le``: nothing where telemetry is pushed, ``.0`` where it is scraped.
    """
    phases = tuple(phases)
    good, bad = (
        [(phase.steps, phase.events * share, phase.reset) for phase, share in parts] for parts in _parts(phases)
    )
    labels = {label: _some(family, label) for label in query.by}
    if isinstance(query, Share):
        (bad_label, bad_values), *_ = query.bad
        not_good = {*bad_values, *(value for _, values in query.excluded for value in values)}
        fine = next((value for value in family.labels[bad_label] if value not in not_good), "fine")
        return {
            _series(family.name, {**labels, bad_label: fine}): _values(good),
            _series(family.name, {**labels, bad_label: bad_values[0]}): _values(bad),
        }
    if isinstance(query, Rate):
        return {_series(family.name, {**labels, **{label: values[0] for label, values in query.where}}): _values(bad)}
    above = query.than if isinstance(query, Slower) else family.buckets[-1]
    every = [
        (steps, good_rate + bad_rate, reset)
        for (steps, good_rate, reset), (_, bad_rate, _) in zip(good, bad, strict=True)
    ]
    buckets = {bound: good if bound <= above else every for bound in family.buckets}
    return {
        **{
            _series(f"{family.name}_bucket", {**labels, "le": _bound(bound, whole)}): _values(rates)
            for bound, rates in buckets.items()
        },
        _series(f"{family.name}_bucket", {**labels, "le": "+Inf"}): _values(every),
        _series(f"{family.name}_count", labels): _values(every),
    }


def _parts(phases: tuple[Phase, ...]) -> tuple[list[tuple[Phase, float]], list[tuple[Phase, float]]]:
    return [(phase, 1 - phase.bad) for phase in phases], [(phase, phase.bad) for phase in phases]


def _some(family: Family, label: str) -> str:
    return (family.labels.get(label) or ("some",))[0]


def _series(name: str, labels: Mapping[str, str]) -> str:
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def _bound(bound: float, whole: str) -> str:
    return f"{int(bound)}{whole}" if bound == int(bound) else repr(bound)


def _values(parts: Iterable[tuple[int, float, bool]]) -> str:
    """Return a counter that grows by so much per step, part by part, in promtool's notation ``start+step x count``."""
    written: list[str] = []
    value = 0.0
    for steps, per_step, reset in parts:
        start = 0.0 if reset or not written else value + per_step
        written.append(f"{start:g}+{per_step:g}x{steps - 1}" if per_step else f"{start:g}x{steps - 1}")
        value = start + per_step * (steps - 1)
    return " ".join(written)


# ---- objectives ------------------------------------------------------------------------------------------------------


def _step_s(tier: Tier) -> int:
    """Return the step at which *tier* is played, so that its windows hold enough samples, and not too many."""
    return _COARSE_S if tier.seen else _MEDIUM_S if tier.long.seconds > _HOUR_S else _STEP_S


def _tier_tests(slos: tuple[Slo, ...], families: Families, step_s: int) -> Iterator[Test]:
    """Yield when the tiers that are played at *step_s* fire, and when not: after a long window of health, all or half fails."""
    for tier in dict.fromkeys(tier for slo in slos for tier in slo.tiers if _step_s(tier) == step_s):
        for share in (0.2,) if tier.seen else (1.0, 0.5):
            burning = [slo for slo in slos if tier in slo.tiers and share > float(slo.threshold(tier)) * 1.2]
            yield _firing_test(burning, tier, families, share, step_s)


def _short_tests(slos: tuple[Slo, ...], families: Families) -> Iterator[Test]:
    """Yield what the tiers over hours do, for every objective at once."""
    yield from _tier_tests(slos, families, _STEP_S)
    scraped = _played_all(slos, families, [Phase(80, bad=1.0)], whole=".0")
    pushed = _played_all(slos, families, [Phase(80, bad=1.0)])
    for spelling, series in (("pushed", pushed), ("scraped", scraped)):
        yield {
            "name": f"everything fails from the start, {spelling}: who is told, and what",
            "interval": f"{_STEP_S}s",
            "input_series": _inputs(series),
            "alert_rule_test": [
                _told(slo, [tier for tier in slo.tiers if not tier.seen], 79 * _STEP_S) for slo in slos
            ],
        }
    yield _records_test(slos, families, long=False)


def _quiet_tests(slos: tuple[Slo, ...], families: Families) -> Iterator[Test]:
    """Yield what no tier may mistake for an incident."""
    least = min(tier.bad for slo in slos for tier in slo.tiers) - 1
    for name, phases in {
        "nothing fails": [Phase(240)],
        "nothing happens": [Phase(240, events=0)],
        "fewer fail than any floor, and nothing else happens": [
            Phase(120, events=0),
            Phase(1, least, bad=1.0),
            Phase(119, 0),
        ],
        "processes restart": [Phase(100), Phase(100, reset=True), Phase(40, reset=True)],
    }.items():
        yield {
            "name": f"nobody is told: {name}",
            "interval": f"{_STEP_S}s",
            "input_series": _inputs(_played_all(slos, families, phases)),
            "promql_expr_test": [
                {"expr": "ALERTS", "eval_time": f"{step * _STEP_S}s", "exp_samples": []} for step in (0, 125, 239)
            ],
        }
    yield {
        "name": "nothing happens: no ratio, instead of a division by zero",
        "interval": f"{_STEP_S}s",
        "input_series": _inputs(_played_all(slos, families, [Phase(240, events=0)])),
        "promql_expr_test": [{"expr": "slo:error_ratio:rate5m", "eval_time": "1h", "exp_samples": []}],
    }


def _long_tests(slos: tuple[Slo, ...], families: Families) -> Iterator[Test]:
    """Yield what the tiers over days do, which need a history."""
    yield from _tier_tests(slos, families, _COARSE_S)
    young = 3 * _HOUR_S // _COARSE_S
    yield {
        "name": "everything fails in the first three hours of a server: windows of days are not judged yet",
        "interval": f"{_COARSE_S}s",
        "input_series": _inputs(_played_all(slos, families, [Phase(young, bad=1.0)])),
        "promql_expr_test": [
            _is_firing(slo.alert, {"slo": slo.name, "tier": tier.name}, (young - 1) * _COARSE_S, {})
            for slo in slos
            for tier in slo.tiers
            if tier.seen
        ],
    }
    days = math.ceil(max(tier.long.seconds * float(tier.seen) for slo in slos for tier in slo.tiers) * 1.05 / _COARSE_S)
    told = [[tier for tier in slo.tiers if tier.short.seconds > _COARSE_S] for slo in slos]
    yield {
        "name": "everything fails for days: who is told, and what",
        "interval": f"{_COARSE_S}s",
        "input_series": _inputs(_played_all(slos, families, [Phase(days, bad=1.0)])),
        "alert_rule_test": [_told(slo, tiers, (days - 1) * _COARSE_S) for slo, tiers in zip(slos, told, strict=True)],
    }
    yield _records_test(slos, families, long=True)


def _played_all(slos: tuple[Slo, ...], families: Families, phases: list[Phase], whole: str = "") -> dict[str, str]:
    return {
        name: values
        for slo in slos
        for name, values in played(slo.sli, families[slo.sli.family], phases, whole).items()
    }


def _firing_test(slos: list[Slo], tier: Tier, families: Families, share: float, step_s: int) -> Test:
    """Return a test of one tier for several objectives at once, which do not touch each other.

    Each is silent just before its moment, fires just after, and is silent again after recovery.
    """
    series: dict[str, str] = {}
    assertions = []
    before = math.ceil(tier.long.seconds / step_s) + _SPARE
    after = math.ceil((tier.short.seconds + tier.keep_firing_for.seconds) / step_s) + 2 * _SPARE
    for slo in slos:
        needed = _needed_s(slo, tier, share) / step_s
        lasting = math.ceil(needed) + 2 * _SPARE
        series |= played(slo.sli, families[slo.sli.family], [Phase(before), Phase(lasting, bad=share), Phase(after)])
        fires = {"severity": tier.severity, "tier": tier.name, "slo": slo.name, **slo.labels}
        moments = {math.floor(needed) - _SPARE: {}, math.ceil(needed) + _SPARE: fires, lasting + after: {}}
        assertions += [
            _is_firing(slo.alert, {"slo": slo.name, "tier": tier.name}, (before - 1 + step) * step_s, labels)
            for step, labels in moments.items()
        ]
    seen = ", ".join(f"{slo.name} after {_needed_s(slo, tier, share) / 60:.3g} minutes" for slo in slos)
    return {
        "name": f"tier {tier.name}, {share:.3g} of all events are bad: {seen}",
        "interval": f"{step_s}s",
        "input_series": _inputs(series),
        "promql_expr_test": assertions,
    }


def _needed_s(slo: Slo, tier: Tier, share: float) -> float:
    """Return how long a *share* of bad events takes to reach the threshold over both windows of *tier*."""
    return max(float(slo.threshold(tier)) / share * window.seconds for window in (tier.long, tier.short))


def _told(slo: Slo, tiers: Iterable[Tier], at_s: int) -> Test:
    """Return the assertion that exactly *tiers* of *slo* fire, with every label and annotation."""
    by_tier = {rule["labels"]["tier"]: rule for long in (False, True) for rule in rules.burn_alerts(slo, long=long)}
    expected = [by_tier[tier.name] for tier in tiers]
    return {
        "eval_time": f"{at_s}s",
        "alertname": slo.alert,
        "exp_alerts": [{"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]} for rule in expected],
    }


def _records_test(slos: tuple[Slo, ...], families: Families, *, long: bool) -> Test:
    """Return a test of every recording rule: a tenth of all events is bad, for ten minutes or for six hours."""
    step_s, share = (_COARSE_S, 0.1) if long else (_STEP_S, 0.1)
    steps = (21_600 if long else 600) // step_s + 1
    at_s = (steps - 1) * step_s
    return {
        "name": "a tenth of all events is bad: what is recorded",
        "interval": f"{step_s}s",
        "input_series": _inputs(_played_all(slos, families, [Phase(steps, bad=share)])),
        "promql_expr_test": [
            {
                "expr": f'round({rule["record"]}{{slo="{slo.name}"}}, {10**-places:g})',
                "eval_time": f"{at_s}s",
                "exp_samples": [{"labels": f'{{slo="{slo.name}"}}', "value": float(f"{value:.{places}f}")}],
            }
            for slo in slos
            for rule in rules.records(slo, long=long)
            for value in [_recorded(slo, rule["record"], share, step_s, at_s)]
            for places in [2 if "seen" in rule["record"] else 3]
        ],
    }


def _recorded(slo: Slo, name: str, share: float, step_s: int, seen_s: int) -> float:
    """Return what the rule *name* has recorded when a constant *share* was bad for *seen_s* seconds."""
    _, what, how = name.split(":")
    budget = float(slo.budget)
    lengths = {window.text: window.seconds for window in slo.windows}
    window_s = lengths.get(how.removeprefix("rate").removeprefix("ratio"), 0)
    if what == "seen":
        return min(1.0, seen_s / window_s)
    # A rate over more than there is divides what happened by the whole window; an average of rates does not.
    filled = 1.0 if window_s > seen_s and step_s == _COARSE_S else min(1.0, seen_s / (window_s or 1))
    values = {
        "total": _PER_STEP / step_s * filled,
        "bad": _PER_STEP / step_s * share * filled,
        "error_ratio": share,
        "objective": 1 - budget,
        "burn_rate": share / budget,
        "period_seen": min(1.0, seen_s / slo.period.seconds),
        "budget_remaining": 1 - share / budget * min(1.0, seen_s / slo.period.seconds),
    }
    return values[what]


def _is_firing(alert: str, matchers: Mapping[str, str], at_s: float, labels: Mapping[str, str]) -> Test:
    """Return the assertion that *alert* fires with *labels* at that moment, or does not fire if there are none."""
    asked = {"alertname": alert, "alertstate": "firing", **matchers}
    samples = [{"labels": _series("ALERTS", {**asked, **labels}), "value": 1}] if labels else []
    return {"expr": _series("ALERTS", asked), "eval_time": f"{max(0, int(at_s))}s", "exp_samples": samples}


def _inputs(series: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


# ---- symptoms --------------------------------------------------------------------------------------------------------


def symptom_tests(alert: Alert, families: Families) -> Iterator[Test]:
    """Yield the tests of one symptom: from its query where that has a shape, from its cases where it is written out."""
    if isinstance(alert.query, Share | Slower | Quantile | Rate):
        yield from _shaped_tests(alert, alert.query, families[alert.query.family])
    elif isinstance(alert.query, Rises):
        yield from _rising_tests(alert, alert.query, families)
    else:
        yield from _case_tests(alert)


def _shaped_tests(alert: Alert, query: Share | Slower | Quantile | Rate, family: Family) -> Iterator[Test]:
    window = alert.window.seconds
    reached_s = _share_needed(alert, query) * window
    before = math.ceil(window / _STEP_S) + _SPARE
    lasting = math.ceil((reached_s + alert.for_.seconds + window) / _STEP_S) + 2 * _SPARE
    after = math.ceil((window + alert.keep_firing_for.seconds) / _STEP_S) + 2 * _SPARE
    due = (reached_s + alert.for_.seconds) / _STEP_S
    events = _PER_STEP if not isinstance(query, Rate) else 4 * float(alert.threshold) * _STEP_S
    labels = {"severity": alert.severity, **alert.labels, **{label: _some(family, label) for label in query.by}}
    phases = (Phase(before, events), Phase(lasting, events, bad=1.0), Phase(after, events))
    yield {
        "name": f"{alert.name}: everything is bad, seen after {due * _STEP_S / 60:.3g} minutes",
        "interval": f"{_STEP_S}s",
        "input_series": _inputs(played(query, family, phases)),
        "promql_expr_test": [
            _is_firing(alert.name, {}, (before - 1 + math.floor(due) - _SPARE) * _STEP_S, {}),
            _is_firing(alert.name, {}, (before - 1 + math.ceil(due) + _SPARE) * _STEP_S, labels),
            _is_firing(alert.name, {}, (before - 1 + lasting + after) * _STEP_S, {}),
        ],
        "alert_rule_test": [_told_of(alert, labels, _worst(alert, query, family), (before + lasting - 2) * _STEP_S)],
    }
    few = alert.floor - 1
    for name, quiet in {
        "nothing is bad": [Phase(80, events)],
        "nothing happens": [Phase(80, events=0)],
        "the process restarts": [Phase(40, events), Phase(40, events, reset=True)],
        **(
            {f"{few} are bad, and nothing else happens": [Phase(40, 0), Phase(1, few, bad=1.0), Phase(39, 0)]}
            if few > 0
            else {}
        ),
    }.items():
        yield {
            "name": f"{alert.name} is silent: {name}",
            "interval": f"{_STEP_S}s",
            "input_series": _inputs(played(query, family, quiet)),
            "promql_expr_test": [_is_firing(alert.name, {}, step * _STEP_S, {}) for step in (0, 45, 79)],
        }


def _share_needed(alert: Alert, query: Share | Slower | Quantile | Rate) -> float:
    """Return the share of the window that must be bad until *alert* is due, if everything is."""
    if isinstance(query, Quantile):
        return 1 - query.q
    if isinstance(query, Rate):
        return 1 / 4  # four times as much happens as is allowed
    return float(alert.threshold)


def _worst(alert: Alert, query: Share | Slower | Quantile | Rate, family: Family) -> float:
    """Return what the query answers while everything is bad."""
    if isinstance(query, Quantile):
        return family.buckets[-1]
    return 4 * float(alert.threshold) if isinstance(query, Rate) else 1.0


def _rising_tests(alert: Alert, query: Rises, families: Families) -> Iterator[Test]:
    """Yield what *alert* says when each of its counters is born, rises, stands still, restarts, or is none of its business."""
    before = math.ceil(alert.window.seconds / _STEP_S) + 2 * _SPARE
    lasting = math.ceil((alert.window.seconds + alert.for_.seconds + alert.keep_firing_for.seconds) / _STEP_S)
    steps = before + lasting + 2 * _SPARE
    told_s = (before + _SPARE) * _STEP_S + alert.for_.seconds
    asked = [dict(zip(dict(query.where), values, strict=True)) for values in product(*dict(query.where).values())]
    for family, own in product((families[name] for name in query.families), asked):
        of_it = {"job": "some", "instance": "some", **{label: _some(family, label) for label in family.labels}, **own}
        labels = {"severity": alert.severity, **alert.labels, **{label: of_it[label] for label in query.by}}
        moments = {
            told_s - 2 * _SPARE * _STEP_S: {},
            told_s: labels,
            (before + lasting + _SPARE) * _STEP_S: {},
        }
        firing = [_is_firing(alert.name, {}, at_s, expected) for at_s, expected in moments.items()]
        where = "".join(f", {label} {value}," for label, value in own.items())
        yield {
            "name": f"{alert.name}: {family.name}{where} rises for the first time, from nothing",
            "interval": f"{_STEP_S}s",
            "input_series": _inputs({_series(family.name, of_it): f"_x{before} 3x{steps - before - 1}"}),
            "promql_expr_test": firing,
            "alert_rule_test": [_told_of(alert, labels, 3, told_s)],
        }
        yield {
            "name": f"{alert.name}: {family.name}{where} rises again",
            "interval": f"{_STEP_S}s",
            "input_series": _inputs({_series(family.name, of_it): f"7x{before - 1} 9x{steps - before - 1}"}),
            "promql_expr_test": firing,
        }
        for gap in (1, 8, 40):
            yield _gap_test(alert, family, of_it, gap)
        for name, series in _still(query, family, of_it, before, steps).items():
            yield {
                "name": f"{alert.name} is silent: {family.name}{where} {name}",
                "interval": f"{_STEP_S}s",
                "input_series": _inputs(series),
                "promql_expr_test": [
                    _is_firing(alert.name, {}, step * _STEP_S, {}) for step in (before - 1, before + 1, steps)
                ],
            }


def _gap_test(alert: Alert, family: Family, labels: Mapping[str, str], gap: int) -> Test:
    """Return a test in which a counter that stands still is not seen for *gap* scrapes; no alert follows, then or later."""
    window = int(alert.window.seconds / _STEP_S)
    begins = window + 2 * _SPARE  # before, it was born
    again = begins + gap
    missing = f" _x{gap - 1}" if gap > 1 else ""
    moments = [begins, again, begins + window, *(again + window + late for late in (-1, 0, 1)), again + 2 * window]
    return {
        "name": f"{alert.name} is silent: {family.name} stands still, and {gap} scrapes fail",
        "interval": f"{_STEP_S}s",
        "input_series": _inputs(
            {_series(family.name, labels): f"7x{begins - 1} stale{missing} 7x{2 * window + _SPARE}"}
        ),
        "promql_expr_test": [_is_firing(alert.name, {}, step * _STEP_S, {}) for step in moments],
    }


def _still(
    query: Rises, family: Family, labels: Mapping[str, str], before: int, steps: int
) -> dict[str, dict[str, str]]:
    """Return ``{what happens: series}`` of what is no rise, or is no business of *query*."""
    others = [(label, value) for label, values in query.excluded for value in values]
    others += [(label, "another") for label, _ in query.where]
    return {
        "stands still": {_series(family.name, labels): f"7x{steps}"},
        "goes back to nothing, in a restart": {_series(family.name, labels): f"7x{before - 1} 0x{steps}"},
        **{
            f"rises where {label} is {value}": {_series(family.name, {**labels, label: value}): f"0+1x{steps}"}
            for label, value in others
        },
    }


def _case_tests(alert: Alert) -> Iterator[Test]:
    for case in alert.fires:
        step_s = int(case.every.seconds)
        labels = {"severity": alert.severity, **alert.labels, **case.labels}
        due_s = case.begins * step_s + (case.after.seconds or alert.for_.seconds)
        before_s, after_s = due_s - _SPARE * step_s, due_s + _SPARE * step_s
        yield {
            "name": f"{alert.name}: {case.when or 'as its case says'}",
            "interval": f"{step_s}s",
            "input_series": _inputs(_written(case)),
            "promql_expr_test": [
                *([_is_firing(alert.name, {}, before_s, {})] if before_s > 0 and not alert.always else []),
                _is_firing(alert.name, {}, after_s, labels),
            ],
            "alert_rule_test": [_told_of(alert, labels, case.value, after_s)],
        }
    for case in alert.silent:
        step_s = int(case.every.seconds)
        yield {
            "name": f"{alert.name} is silent: {case.when}",
            "interval": f"{step_s}s",
            "input_series": _inputs(_written(case)),
            "promql_expr_test": [_is_firing(alert.name, {}, step * step_s, {}) for step in (0, 45, 239, case.begins)],
        }


def _written(case: Case) -> dict[str, str]:
    """Return the series of *case*; a bare number stays what it is for an hour."""
    return {
        name: f"{values}x240" if re.fullmatch(r"-?[\d.]+", values) else values for name, values in case.series.items()
    }


def _told_of(alert: Alert, labels: Mapping[str, str], value: float, at_s: float) -> Test:
    """Return the assertion that *alert* fires once with *labels*, and says what it should with *value*."""
    annotations = rules.symptom_alert(alert)["annotations"]
    shown = {name: rendered(text, labels, value) for name, text in annotations.items()}
    return {
        "eval_time": f"{int(at_s)}s",
        "alertname": alert.name,
        "exp_alerts": [{"exp_labels": dict(labels), "exp_annotations": shown}],
    }


def rendered(text: str, labels: Mapping[str, str], value: float) -> str:
    """Return *text* as Prometheus would show it: its labels, and its value by one of three functions."""
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels[match[1]], text)
    return re.sub(r"\{\{ \$value \| (\w+) \}\}", lambda match: _HUMANIZED[match[1]](value), text)


def _humanized(value: float) -> str:
    """Return *value* with four digits and a prefix of the SI, as Prometheus' function ``humanize`` does."""
    prefixes = "kMGTPEZY" if abs(value) >= 1 else "munpfazy"
    factor, prefix = (1 / _THOUSAND if abs(value) >= 1 else _THOUSAND), ""
    while value and not 1 <= abs(value) < _THOUSAND and prefix != prefixes[-1]:
        value, prefix = value * factor, prefixes[prefixes.find(prefix) + 1 if prefix else 0]
    return f"{value:.4g}{prefix}"


def _humanized_duration(value: float) -> str:
    """Return *value* seconds in days, hours, minutes and seconds, from the largest that is not 0 on."""
    if abs(value) < 1:
        return f"{_humanized(value)}s"
    whole, sign = int(abs(value)), "-" if value < 0 else ""
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts = parts[1:]
    return f"{value:.4g}s" if len(parts) == 1 else sign + " ".join(f"{count}{unit}" for count, unit in parts)


_HUMANIZED = {
    "humanizePercentage": lambda value: f"{value * 100:.4g}%",
    "humanizeDuration": _humanized_duration,
    "humanize": _humanized,
}
