# SPDX-License-Identifier: Apache-2.0
"""Play what happens to a service: phases of events of which some are bad, as series that a query asks.

In: a query with a shape, its family, and phases. Out: ``{series: values in promtool's notation}``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool
from jeeves_otel.queries import Quantile, Rate, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jeeves_otel.generators.promtool import Series
    from jeeves_otel.objectives import Slo
    from jeeves_otel.promql import Families, Family
    from jeeves_otel.queries import Conditions

PER_STEP = 20  # events
RECORDED_S = 300  # between samples where windows of days are played: what is recorded over five minutes is then given

Shaped = Share | Slower | Quantile | Rate
Rates = list[tuple[int, float, bool]]  # (steps, growth per step, whether the process restarts)


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps in which so many events happen per step, and a share of them is bad."""

    steps: int
    events: float = PER_STEP
    bad: float = 0.0  # share, 0..1
    reset: bool = False  # the process restarts as it begins


def played(
    query: Shaped,
    family: Family,
    phases: Iterable[Phase],
    whole: str = "",
    *,
    above: float = math.inf,
    besides: float = 0.0,
) -> Series:
    """Return the series of *family* that *phases* make.

    Args:
        query: What asks them.
        family: The metric that it asks.
        phases: What happens, in order.
        whole: How whole numbers end in ``le``: nothing where telemetry is pushed, ``.0`` where it is scraped.
        above: What a quantile is compared with.
        besides: Events per step that are none of the query's business: what it excludes, or has no condition for.
    """
    phases = tuple(phases)
    labels = {label: some(family, label) for label in query.by}
    aside: Rates = [(phase.steps, besides, phase.reset) for phase in phases]
    if isinstance(query, Share):
        return _share(query, family, phases, labels, aside if besides else [])
    others = _others(family, query.where) if besides else []
    labels |= {label: values[0] for label, values in query.where}
    if isinstance(query, Rate):
        made = {promtool.series(family.name, labels): promtool.counter(_rates(phases, bad=True))}
        return made | {promtool.series(family.name, {**labels, **other}): promtool.counter(aside) for other in others}
    bounds = bounds_around(family, query.than if isinstance(query, Slower) else above)
    made = _histogram(family, bounds, phases, labels, whole)
    for other in others:
        slow = [Phase(steps, per_step, bad=1.0, reset=reset) for steps, per_step, reset in aside]
        made |= _histogram(family, bounds, slow, {**labels, **other}, whole)
    return made


def happened(slo: Slo, families: Families, phases: Sequence[Phase], *, days: bool = False, whole: str = "") -> Series:
    """Return what *phases* make for one objective, beside as many events that count neither way.

    Args:
        slo: The objective.
        families: What its query may ask.
        phases: What happens, in order.
        days: Whether to give what is recorded of it over five minutes too, which at this pace no rule can record.
        whole: As of `played`.
    """
    found = played(slo.sli, families[slo.sli.family], phases, whole, besides=PER_STEP)
    return found | (recorded(slo, phases, RECORDED_S) if days else {})


def recorded(slo: Slo, phases: Sequence[Phase], step_s: int) -> Series:
    """Return what is recorded over five minutes while *phases* happen, a sample every *step_s* seconds."""
    total = [f"{phase.events / step_s:.12g}x{phase.steps - 1}" for phase in phases]
    bad = [f"{phase.events * phase.bad / step_s:.12g}x{phase.steps - 1}" for phase in phases]
    return {
        promtool.series(f"slo:{what}:rate5m", {"slo": slo.name}): " ".join(values)
        for what, values in (("total", total), ("bad", bad))
    }


def some(family: Family, label: str) -> str:
    """Return a value that *label* of *family* may have."""
    return (family.labels.get(label) or ("some",))[0]


def bounds_around(family: Family, limit: float) -> tuple[float, float]:
    """Return the bounds of the buckets that good and bad observations are in: as close to the limit as can be."""
    good = max((bound for bound in family.buckets if bound <= limit), default=family.buckets[0])
    lower = min((bound for bound in family.buckets if bound >= limit), default=family.buckets[-1])
    return good, min((bound for bound in family.buckets if bound > lower), default=math.inf)


def _rates(phases: Iterable[Phase], *, bad: bool) -> Rates:
    return [(phase.steps, phase.events * (phase.bad if bad else 1 - phase.bad), phase.reset) for phase in phases]


def _split(rates: Rates, parts: int) -> str:
    return promtool.counter([(steps, per_step / parts, reset) for steps, per_step, reset in rates])


def _share(query: Share, family: Family, phases: Iterable[Phase], labels: Mapping[str, str], aside: Rates) -> Series:
    """Return good events, which lack one of the conditions each, bad ones of every kind, and those that are excluded."""
    asked = dict(query.bad)
    kinds = [dict(zip(asked, values, strict=True)) for values in product(*asked.values())]
    # What counts neither way is as bad as can be, unless its label says that it is not.
    excluded = [{**kinds[0], label: value} for label, values in query.excluded for value in values]
    fine = [{**kinds[0], **other} for other in _others(family, query.bad, query.excluded)]
    good, bad = (_rates(phases, bad=which) for which in (False, True))
    return {
        **{promtool.series(family.name, {**labels, **kind}): _split(good, len(fine)) for kind in fine},
        **{promtool.series(family.name, {**labels, **kind}): _split(bad, len(kinds)) for kind in kinds},
        **{promtool.series(family.name, {**labels, **kind}): promtool.counter(aside) for kind in excluded if aside},
    }


def _others(family: Family, asked: Conditions, excluded: Conditions = ()) -> list[dict[str, str]]:
    """Return for each label that is *asked* a value that is neither asked nor *excluded*."""
    found = []
    for label, values in asked:
        known = {*values, *(value for name, others in excluded if name == label for value in others)}
        found.append({label: next((value for value in family.labels.get(label, ()) if value not in known), "another")})
    return found


def _histogram(
    family: Family, bounds: tuple[float, float], phases: Iterable[Phase], labels: Mapping[str, str], whole: str
) -> Series:
    """Return the histogram whose good observations are all in the bucket of one bound, and the bad ones in another."""
    good, bad = (_rates(phases, bad=which) for which in (False, True))
    every = [(steps, fine + wrong, reset) for (steps, fine, reset), (_, wrong, _) in zip(good, bad, strict=True)]
    none = [(steps, 0.0, reset) for steps, _, reset in good]
    in_it = {bound: every if bound >= bounds[1] else good if bound >= bounds[0] else none for bound in family.buckets}
    return {
        **{
            promtool.series(f"{family.name}_bucket", {**labels, "le": _bound(bound, whole)}): promtool.counter(rates)
            for bound, rates in in_it.items()
        },
        promtool.series(f"{family.name}_bucket", {**labels, "le": "+Inf"}): promtool.counter(every),
        promtool.series(f"{family.name}_count", labels): promtool.counter(every),
    }


def _bound(bound: float, whole: str) -> str:
    return f"{int(bound)}{whole}" if bound == int(bound) else repr(bound)
