# SPDX-License-Identifier: Apache-2.0
"""Turn objectives and alerts into unit tests for promtool, and put each into the suite that plays it.

In: `Objectives`. Out: ``tests/rules/*.yaml``: a suite loads only the rules that its tests ask, and is evaluated as often
as they need, because both are what promtool's time is spent on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool, rules, slo_tests
from jeeves_otel.generators.case_tests import case_tests
from jeeves_otel.generators.rise_tests import rising_tests
from jeeves_otel.generators.shape_tests import shaped_tests
from jeeves_otel.objectives import has_shape
from jeeves_otel.queries import Quantile, Rate, Rises, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.generators.promtool import Suite, Test
    from jeeves_otel.objectives import Alert, Objectives
    from jeeves_otel.promql import Families


def files(objectives: Objectives, families: Families) -> dict[str, str]:
    """Return the tests, ``{path: text}``, paths relative to the project's root."""
    return {f"tests/rules/{name}.yaml": rules.document(suite) for name, suite in suites(objectives, families).items()}


def suites(objectives: Objectives, families: Families) -> dict[str, Suite]:
    """Return the suites by name, each as it is written to its file."""
    found: dict[tuple[str, bool, str], list[Test]] = {}
    for alert in objectives.alerts:
        for test in alert_tests(alert, families):
            recorded = asks_records(alert) and not gives_records(test)
            found.setdefault((alert.file, recorded, test["interval"]), []).append(test)
    made = slo_tests.suites(objectives.slos, families)
    records = dict.fromkeys(slo.file for slo in objectives.slos)
    for (file, recorded, interval), tests in found.items():
        name = f"{file}{'-recorded' if recorded else ''}"
        name += "" if interval == f"{promtool.STEP_S}s" else f"-{interval}"
        rule_files = (*records, file) if recorded else (file,)
        made[name] = promtool.suite(rule_files, int(interval.removesuffix("s")), tests)
    return made


def alert_tests(alert: Alert, families: Families) -> Iterator[Test]:
    """Yield the tests of one alert: from its query where that has a shape, and from its cases where it has some."""
    if isinstance(alert.query, Rises):
        yield from rising_tests(alert, alert.query, families)
    elif isinstance(alert.query, Share | Slower | Quantile | Rate) and has_shape(
        alert.query, alert.comparison, alert.threshold
    ):
        yield from shaped_tests(alert, alert.query, families[alert.query.family])
    if alert.fires or alert.silent:
        yield from case_tests(alert, families)


def asks_records(alert: Alert) -> bool:
    """Return whether *alert* asks what is recorded about objectives, which are a hundred rules."""
    return "slo:" in alert.query.promql(alert.window.text)


def gives_records(test: Test) -> bool:
    """Return whether *test* says itself what is recorded, as it may where hours or days would have to be played for it."""
    return any(each["series"].startswith("slo:") for each in test["input_series"])
