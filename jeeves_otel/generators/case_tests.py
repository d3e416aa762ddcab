# SPDX-License-Identifier: Apache-2.0
"""Turn the cases of alerts that are written out into tests: each as it says, without anything, and with a restart.

In: an `Alert` with cases, and the families that there are. Out: tests for promtool. Nobody can make up what such an alert
should fire at; what may be added to what its author says is a process that restarts, and that there is nothing at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool
from jeeves_otel.generators.promtool import SPARE, STEP_S
from jeeves_otel.generators.told import told_of
from jeeves_otel.promql import family_of, metrics_in
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.generators.promtool import Series, Test
    from jeeves_otel.objectives import Alert, Case
    from jeeves_otel.promql import Families

_HOUR = 240  # steps, for which a bare number stays
_FEW = 20  # steps


def case_tests(alert: Alert, families: Families) -> Iterator[Test]:
    """Yield the tests of *alert* that its cases stand for."""
    asked = {name for name, kind in _asked(alert, families) if kind in {"counter", "histogram"}}
    for case in alert.fires:
        yield _firing(alert, case, _written(case), case.when or "as its case says")
        if restarted := _restarted(case, asked):
            yield _firing(alert, case, restarted, f"{case.when or 'as its case says'}, and processes restart")
    for case in alert.silent:
        yield _silent(alert, case, _written(case), case.when)
        if restarted := _restarted(case, asked):
            yield _silent(alert, case, restarted, f"{case.when}, and processes restart")
    if not alert.always:
        step_s = int(alert.fires[0].every.seconds) if alert.fires else STEP_S
        expected = [promtool.was_silent(alert.name, {}, _FEW * step_s + 2 * alert.for_.seconds)]
        yield promtool.unit_test(f"{alert.name} is silent: there is nothing at all", step_s, {}, expected)


def _firing(alert: Alert, case: Case, made: Series, when: str) -> Test:
    step_s = int(case.every.seconds)
    labels = {"severity": alert.severity, **alert.labels, **case.labels}
    begins_s = case.begins * step_s
    due_s = begins_s + (case.after.seconds or alert.for_.seconds)
    told_s = due_s + SPARE * step_s
    expected = [promtool.is_firing(alert.name, {}, told_s, labels)]
    if due_s > SPARE * step_s and not alert.always:
        expected.insert(0, promtool.was_silent(alert.name, {}, due_s - SPARE * step_s))
    if case.over.text:
        over_s = begins_s + case.over.seconds
        expected += [
            promtool.is_firing(alert.name, {}, over_s - SPARE * step_s, labels),
            promtool.is_silent(alert.name, {}, over_s + SPARE * step_s),
        ]
    told = [told_of(alert, labels, case.value, told_s)]
    return promtool.unit_test(f"{alert.name}: {when}", step_s, made, expected, told)


def _silent(alert: Alert, case: Case, made: Series, when: str) -> Test:
    step_s = int(case.every.seconds)
    expected = [promtool.was_silent(alert.name, {}, _steps(made) * step_s)]
    return promtool.unit_test(f"{alert.name} is silent: {when}", step_s, made, expected)


def _steps(made: Series) -> int:
    return max((len(samples(values)) for values in made.values()), default=_HOUR)


def _written(case: Case) -> Series:
    """Return the series of *case*; a bare number stays what it is for an hour of scrapes."""
    return {
        name: f"{values}x{_HOUR}" if re.fullmatch(r"-?[\d.]+", values) else values
        for name, values in case.series.items()
    }


def _restarted(case: Case, asked: set[str]) -> Series:
    """Return the series of *case* if its counters that are *asked* begin again in the midst of it; nothing if none is."""
    made = _written(case)
    at = case.begins or _steps(made) // 2
    counters = [name for name in made if name.partition("{")[0] in asked]
    restarted = {name: promtool.restarted(made[name], at) for name in counters}
    return {**made, **restarted} if any(restarted[name] != made[name] for name in counters) else {}


def _asked(alert: Alert, families: Families) -> Iterator[tuple[str, str]]:
    """Yield ``(metric, type)`` of what *alert* asks itself; that what it asks of objectives restarts is tested with them."""
    for name in metrics_in(alert.query.promql(alert.window.text)):
        family = family_of(name, families)
        if family is not None:
            yield name, family.type
