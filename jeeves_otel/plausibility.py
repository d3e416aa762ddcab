# SPDX-License-Identifier: Apache-2.0
"""Judge objectives and alerts: what could never fire, or always would, what is untested, silences nothing, leads nowhere.

In: `Objectives` as they were read, and the families that they speak of. Out: every finding at once, each
with place and way out. One function per rule, so that a rule can be read, tested and named on its own.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING

from jeeves_otel import dashboards, routing, specification
from jeeves_otel.documents import Finding, Level, Place, did_you_mean
from jeeves_otel.objectives import SEVERITIES, has_shape
from jeeves_otel.promql import families_of
from jeeves_otel.queries import Duration, Level as LevelQuery, Mean, Promql, Quantile, Rate, Rises, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from jeeves_otel.objectives import Alert, Links, Objectives, Slo, Tier
    from jeeves_otel.promql import Families
    from jeeves_otel.queries import Query
    from jeeves_otel.registry import Registry

_SHORTEST_S = 60  # of a window of a rate: four of the intervals in which services send, 15 s
_SHORTEST_PERIOD = Duration("1d", 86_400)  # what is recorded over an hour has a name of its own
_LONGEST_S = 35 * 86_400  # of a period: what the Prometheus of the bundle keeps


def examine_all(
    registry: Registry, files: Iterable[Path] = (), links: Links | None = None
) -> tuple[Objectives, list[Finding]]:
    """Return what could be read of the packaged objectives, or of *files*, and every finding about shape and content.

    Args:
        registry: The profiles that the queries speak of.
        files: Objectives of a user, or some of the packaged ones, instead of all that are packaged.
        links: Where runbooks and dashboards are to be found; in this project, unless it is said.
    """
    objectives, shape = specification.examine(registry, files, links)
    # What could not be read is not judged too: one mistake gives one finding.
    misread = {(finding.where.file, _owner(finding.where)) for finding in shape}
    content = [
        finding
        for finding in judge(objectives, families_of(registry))
        if (finding.where.file, _owner(finding.where)) not in misread
    ]
    return objectives, [*shape, *content]


def _owner(place: Place) -> str:
    """Return the objective or alert in which *place* is: ``alerts.NAME``."""
    return ".".join(place.key.split(".")[:2])


def judge(objectives: Objectives, families: Families) -> list[Finding]:
    """Return every finding about *objectives*, rule by rule."""
    found: list[Finding] = []
    for slo in objectives.slos:
        found += chain.from_iterable(rule(slo) for rule in _OF_AN_OBJECTIVE)
        found += _all_or_nothing_is_bad(slo.sli, slo.where, "sli", families)
        found += _unknown_dashboard(slo.dashboard, slo.where)
    for alert in objectives.alerts:
        found += chain.from_iterable(rule(alert) for rule in _OF_AN_ALERT)
        found += _all_or_nothing_is_bad(alert.query, alert.where, "query", families)
        found += [*_threshold_out_of_reach(alert, families)] or [*_silent_when_gone(alert), *_untested(alert)]
        found += _silenced_by(alert, objectives)
        found += _unknown_dashboard(alert.dashboard, alert.where)
    return [*found, *_one_name_twice(objectives), *_names_of_others(objectives)]


def _finding(id_: str, where: Place, key: str, message: str, hint: str, level: Level = Level.VIOLATION) -> Finding:
    return Finding(id_, Place(where.file, where.line, f"{where.key}.{key}" if key else where.key), message, hint, level)


# ---- objectives ------------------------------------------------------------------------------------------------------


def _no_tiers(slo: Slo) -> Iterator[Finding]:
    if not slo.tiers:
        hint = "name some, or leave `tiers` out to have all of them"
        yield _finding("no-tiers", slo.where, "tiers", f"nobody is ever told of {slo.name}", hint)


def _unfirable_tier(slo: Slo) -> Iterator[Finding]:
    for tier in slo.tiers:
        if slo.threshold(tier) >= 1:
            message = f"tier {tier.name} would fire above {slo.threshold(tier):.0%} bad events, which is never"
            rest = ", ".join(each.name for each in slo.tiers if slo.threshold(each) < 1)
            hint = f"leave it out: `tiers: [{rest}]`" if rest else f"promise more than {_least(tier)} %, or name others"
            yield _finding("unfirable-tier", slo.where, "tiers", message, hint)


def _least(tier: Tier) -> str:
    """Return what must be exceeded by a promise of which *tier* can speak, in percent."""
    return f"{100 - 100 / tier.burn:.2f}"


def _tier_twice(slo: Slo) -> Iterator[Finding]:
    names = [tier.name for tier in slo.tiers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        hint = "name it once; Prometheus takes no rule twice"
        yield _finding("duplicate-tier", slo.where, "tiers", f"tier {name} is named twice", hint)


def _period(slo: Slo) -> Iterator[Finding]:
    longest = max((tier.long for tier in slo.tiers), key=lambda window: window.seconds, default=Duration("", 0))
    if slo.period.seconds < _SHORTEST_PERIOD.seconds > longest.seconds:
        message = f"a period of {slo.period.text} is less than a day"
        yield _finding("short-period", slo.where, "period", message, f"promise something for {_SHORTEST_PERIOD.text}")
    elif slo.period.seconds < longest.seconds:
        message = f"a period of {slo.period.text} is shorter than the {longest.text} over which a tier looks"
        hint = f"promise something for at least {longest.text}, or name the tiers that look less far: `tiers: […]`"
        yield _finding("short-period", slo.where, "period", message, hint)
    if slo.period.seconds > _LONGEST_S:
        message = f"a period of {slo.period.text} is longer than the 35 days that Prometheus keeps in the bundle"
        hint = "let it keep more: --storage.tsdb.retention.time"
        yield _finding("long-period", slo.where, "period", message, hint, Level.ADVICE)


def _template(slo: Slo) -> Iterator[Finding]:
    for key, text in (("title", slo.title), ("meaning", slo.meaning)):
        if "{{" in text or "}}" in text:
            hint = "write what is always true; the alert has the labels severity, tier and slo beside it"
            yield _finding("unknown-template", slo.where, key, "an objective speaks of no series, so of no label", hint)


_OF_AN_OBJECTIVE: tuple[Callable[[Slo], Iterator[Finding]], ...] = (
    *(_no_tiers, _unfirable_tier, _tier_twice, _period, _template),
)


def _all_or_nothing_is_bad(query: Query, where: Place, key: str, families: Families) -> Iterator[Finding]:
    """Yield what makes a share of bad events 0, or 1, whatever happens."""
    if not isinstance(query, Share) or query.family not in families:
        return
    excluded = dict(query.excluded)
    for label, values in query.bad:
        if both := sorted(set(values) & set(excluded.get(label, ()))):
            message = f"{label} {', '.join(both)} is bad, and counts neither way"
            yield _finding("bad-and-excluded", where, f"{key}.bad", message, "take it out of `bad` or of `excluded`")
        closed = set(families[query.family].labels.get(label, ())) - set(excluded.get(label, ()))
        if len(query.bad) == 1 and closed and closed <= set(values):
            message = f"every {label} of {query.family} that counts is bad"
            yield _finding("all-bad", where, f"{key}.bad", message, "name those that are not as they should be")


# ---- alerts ----------------------------------------------------------------------------------------------------------


def _no_threshold(alert: Alert) -> Iterator[Finding]:
    if not alert.comparison and not isinstance(alert.query, Promql | Rises):
        message = f"{alert.name} would fire whatever the query answers"
        yield _finding("no-threshold", alert.where, "", message, "add `above: …` or `below: …`")


def _short_window(alert: Alert) -> Iterator[Finding]:
    if not isinstance(alert.query, LevelQuery) and alert.window.seconds < _SHORTEST_S:
        message = f"a rate over {alert.window.text} has too few samples where services send every 15 s"
        yield _finding("short-window", alert.where, "window", message, "write 1m or more")


def _floor_of_nothing(alert: Alert) -> Iterator[Finding]:
    if alert.floor and not isinstance(alert.query, Share | Slower | Quantile):
        message = "a floor is a number of events, which only `share`, `slower` and `quantile` count"
        yield _finding("no-floor", alert.where, "floor", message, "ask one of them, or leave it out")


def _several_compared(alert: Alert) -> Iterator[Finding]:
    """Yield that a threshold sees one of several counters: PromQL's ``or`` drops the others where labels agree."""
    if alert.comparison and isinstance(alert.query, Rises) and len(alert.query.families) > 1:
        message = f"of {', '.join(alert.query.families)} only the first is compared where their labels agree"
        hint = "leave the threshold out: any rise fires; or write an alert for each"
        yield _finding("several-compared", alert.where, _key(alert), message, hint)


def _silent_when_gone(alert: Alert) -> Iterator[Finding]:
    if alert.comparison == "<" and isinstance(alert.query, Rate | Share | Slower | Mean | Quantile):
        message = "it is silent when the service is gone: of no series, nothing is below anything"
        hint = "TelemetryAbsent says that, of the packaged telemetry"
        yield _finding("silent-when-gone", alert.where, "below", message, hint, Level.ADVICE)


def _key(alert: Alert) -> str:
    return {">": "above", "<": "below"}.get(alert.comparison, "")


_OF_AN_ALERT: tuple[Callable[[Alert], Iterator[Finding]], ...] = (
    *(_no_threshold, _short_window, _floor_of_nothing, _several_compared),
)


def _threshold_out_of_reach(alert: Alert, families: Families) -> Iterator[Finding]:
    low, high, unit = _range(alert.query, families)
    threshold = float(alert.threshold)
    above = alert.comparison == ">"
    if not alert.comparison or (low <= threshold < high if above else low < threshold <= high):
        return
    how_often = "never" if (threshold >= high if above else threshold <= low) else "always"
    message = f"{unit} of {threshold:g} is {how_often} {'exceeded' if above else 'undercut'}"
    reach = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
    hint = f"it is {reach}" + (": write 0.05 for 5 %" if isinstance(alert.query, Share | Slower) else "")
    yield _finding("threshold-out-of-reach", alert.where, _key(alert), message, hint)


def _untested(alert: Alert) -> Iterator[Finding]:
    """Yield what says that nobody knows what *alert* should fire at: neither its query does, nor cases do."""
    speaks = has_shape(alert.query, alert.comparison, alert.threshold)
    waits = not alert.comparison and not isinstance(alert.query, Promql | LevelQuery | Mean)  # for a threshold
    if not speaks and not waits and not (alert.fires and (alert.silent or alert.always)):
        hint = "add `cases:` with `fires` and `silent`"
        yield _finding("untested-alert", alert.where, "cases", f"{alert.name} has no cases", hint)


def _range(query: Query, families: Families) -> tuple[float, float, str]:
    """Return the least and the most that *query* can answer with, and what that is in words."""
    if isinstance(query, Share | Slower):
        return 0.0, 1.0, "a share"
    if isinstance(query, Quantile):
        family = families.get(query.family)
        # Above its last bound a histogram knows nothing, and Prometheus answers with that bound.
        top = family.buckets[-1] if family is not None and family.buckets else math.inf
        return 0.0, top, f"a quantile of {query.family}"
    if isinstance(query, Rate | Mean | Rises):
        return 0.0, math.inf, f"a {type(query).__name__.lower().rstrip('s')}"
    return -math.inf, math.inf, ""


def _silenced_by(alert: Alert, objectives: Objectives) -> Iterator[Finding]:
    """Yield what is wrong with the alerts that silence *alert*: they must exist, be worse, and have the labels, as it has."""
    severities = _severities(objectives)
    of_others = _labels_of(objectives)
    labels = (*alert.query.by, *alert.labels)
    for name, equal in alert.inhibited_by.items():
        key = f"inhibited_by.{name}"
        if name not in severities:
            yield _finding(
                "unknown-alert", alert.where, key, f"there is no alert `{name}`", did_you_mean(name, severities)
            )
        elif alert.severity and not severities[name] & set(SEVERITIES[: SEVERITIES.index(alert.severity)]):
            message = f"{name} is not worse than {alert.name}, which is {alert.severity}"
            hint = f"only a higher severity silences: {', '.join(SEVERITIES)}"
            yield _finding("not-worse", alert.where, key, message, hint)
        for label in equal:
            if label not in labels:
                message = f"the alert has no label `{label}`"
                yield _finding("unknown-label", alert.where, key, message, did_you_mean(label, labels))
            elif label not in of_others.get(name, labels):
                message = f"{name} has no label `{label}`, so both never agree in it"
                both = [each for each in labels if each in of_others[name]]
                yield _finding("unknown-label", alert.where, key, message, did_you_mean(label, both))


def _severities(objectives: Objectives) -> dict[str, set[str]]:
    return {
        **{slo.alert: {tier.severity for tier in slo.tiers} for slo in objectives.slos},
        **{alert.name: {alert.severity} for alert in objectives.alerts},
    }


def _labels_of(objectives: Objectives) -> dict[str, set[str]]:
    """Return the labels by which alerts may agree with others, by name; those of all who share one."""
    found: dict[str, set[str]] = {}
    for slo in objectives.slos:
        found.setdefault(slo.alert, set()).update(("slo", "tier", *slo.labels))
    for alert in objectives.alerts:
        found.setdefault(alert.name, set()).update((*alert.query.by, *alert.labels))
    return found


# ---- both ------------------------------------------------------------------------------------------------------------


def _unknown_dashboard(name: str, where: Place) -> Iterator[Finding]:
    known = {*dashboards.names(), specification.own_page(where.file)}
    if name and name not in known:
        hint = f"{did_you_mean(name, known)}; without the line it is that of this file"
        yield _finding("unknown-dashboard", where, "dashboard", f"there is no dashboard `{name}`", hint)


def _named(objectives: Objectives) -> Iterator[tuple[str, Place, str]]:
    """Yield the name of each alert, the objective or alert that gives it, and by which key."""
    yield from ((slo.alert, slo.where, "alert") for slo in objectives.slos)
    yield from ((alert.name, alert.where, "") for alert in objectives.alerts)


def _one_name_twice(objectives: Objectives) -> Iterator[Finding]:
    first: dict[str, Place] = {}
    for name, where, _ in _named(objectives):
        if name in first:
            message = f"alert {name} is there already ({first[name]})"
            yield _finding("duplicate-alert", where, "", message, "give it another name: each has a runbook of its own")
        elif name:
            first[name] = where


def _names_of_others(objectives: Objectives) -> Iterator[Finding]:
    """Yield the names in files of a user that are taken: by a route or a silence, or by what is packaged and not named."""
    slos, alerts = specification.names_of_packaged()
    places = {where.file for _, where, _ in _named(objectives) if specification.is_of_the_package(where.file)}
    loaded = {PurePath(place).stem for place in places}
    routed = _routed()
    for name, where, key in _named(objectives):
        if name in routed and where.file not in places:
            message = f"alerts that are called {name} have a route or a silence of their own"
            yield _finding("routed-name", where, key, message, "give it another name")
        elif name in alerts and alerts[name] not in loaded:
            yield _packaged_name(f"alert {name}", alerts[name], where, key)
    for slo in objectives.slos:
        if slo.name in slos and slos[slo.name] not in loaded:
            yield _packaged_name(f"objective {slo.name}", slos[slo.name], slo.where, "")


def _packaged_name(what: str, file: str, where: Place, key: str) -> Finding:
    message = f"there is a packaged {what}, too"
    hint = f"give it another name, or do not load both: this file and the rules of `{file}`"
    return _finding("packaged-name", where, key, message, hint, Level.ADVICE)


def _routed() -> frozenset[str]:
    """Return the names of alerts of which routing itself speaks."""
    read = routing.load()
    labels = [route.where for route in read.routes] + [part for each in read.silenced for part in (each.by, each.what)]
    return frozenset(name for each in labels if "alertname" in each for name in each["alertname"].split("|"))
