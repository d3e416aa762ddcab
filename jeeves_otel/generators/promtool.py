# SPDX-License-Identifier: Apache-2.0
"""Write what promtool's unit tests are made of: series, what is expected of alerts, and texts as Prometheus shows them.

In: names, numbers and moments in seconds. Out: parts of ``tests/rules/*.yaml``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jeeves_otel.queries import quoted
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Suite = dict[str, Any]
Test = dict[str, Any]
Series = dict[str, str]  # {series: values in promtool's notation}

STEP_S = 15  # of what is recorded and evaluated, as in production
SPARE = 2  # steps: a sample may come up to one late, and so may an evaluation
_THOUSAND = 1_000


# ---- series ------------------------------------------------------------------------------------------------------------


def series(name: str, labels: Mapping[str, str]) -> str:
    """Return the name of a series: ``name{label="value"}``."""
    return name + "{" + ", ".join(f"{label}={quoted(value)}" for label, value in labels.items()) + "}"


def counter(parts: Iterable[tuple[int, float, bool]]) -> str:
    """Return a counter that grows by so much per step, part by part ``(steps, per step, whether it restarts)``."""
    written: list[str] = []
    value = 0.0
    for steps, per_step, reset in parts:
        start = 0.0 if reset or not written else value + per_step
        written.append(f"{start:.12g}{per_step:+.12g}x{steps - 1}" if per_step else f"{start:.12g}x{steps - 1}")
        value = start + per_step * (steps - 1)
    return " ".join(written)


def restarted(values: str, at: int) -> str:
    """Return the counter *values* as it is if its process restarts at step *at*: from 0 on, it grows as it would have."""
    read = samples(values)
    before = next((value for value in reversed(read[:at]) if value is not None), None)
    if before is None or not any(value is not None for value in read[at:]):
        return values
    begun = next(value for value in read[at:] if value is not None)
    after = [None if value is None else value - begun for value in read[at:]]
    return " ".join("_" if value is None else f"{value:.12g}" for value in [*read[:at], *after])


def without_still(played: Series) -> Series:
    """Return *played* without the counters that stay 0: in a service that has just begun, nobody has made them yet."""
    return {name: values for name, values in played.items() if not re.fullmatch(r"0x\d+( 0x\d+)*", values)}


# ---- tests -------------------------------------------------------------------------------------------------------------


def suite(rule_files: Iterable[str], step_s: int, tests: Sequence[Test], order: Iterable[str] = ()) -> Suite:
    """Return a suite of *tests*, which evaluates *rule_files* every *step_s* seconds, its groups in *order*."""
    return {
        "rule_files": [f"../../collector/rules/{name}.yaml" for name in rule_files],
        "evaluation_interval": f"{step_s}s",
        **({"group_eval_order": list(order)} if order else {}),
        "tests": list(tests),
    }


def unit_test(name: str, step_s: int, played: Series, expected: Sequence[Test], told: Sequence[Test] = ()) -> Test:
    """Return one test: *played* with a sample every *step_s* seconds, and what is *expected* of it, or *told*."""
    return {
        "name": name,
        "interval": f"{step_s}s",
        "input_series": [{"series": each, "values": values} for each, values in played.items()],
        **({"promql_expr_test": list(expected)} if expected else {}),
        **({"alert_rule_test": list(told)} if told else {}),
    }


def is_firing(alert: str, matchers: Mapping[str, str], at_s: float, labels: Mapping[str, str]) -> Test:
    """Return the assertion that *alert* fires at that moment, once, with *labels*."""
    asked = {"alertname": alert, "alertstate": "firing", **matchers}
    expected = [{"labels": series("ALERTS", {**asked, **labels}), "value": 1}]
    return {"expr": series("ALERTS", asked), "eval_time": f"{int(at_s)}s", "exp_samples": expected}


def is_silent(alert: str, matchers: Mapping[str, str], at_s: float) -> Test:
    """Return the assertion that *alert* does not fire at that moment."""
    asked = {"alertname": alert, "alertstate": "firing", **matchers}
    return {"expr": series("ALERTS", asked), "eval_time": f"{int(at_s)}s", "exp_samples": []}


def was_silent(alert: str, matchers: Mapping[str, str], until_s: float, since_s: float = 0) -> Test:
    """Return the assertion that *alert* has not fired at any evaluation between two moments, the first one excluded."""
    at_s = max(1, int(until_s))
    asked = {"alertname": alert, "alertstate": "firing", **matchers}
    expr = f"count_over_time({series('ALERTS', asked)}[{at_s - int(since_s)}s])"
    return {"expr": expr, "eval_time": f"{at_s}s", "exp_samples": []}


def is_told(alert: str, at_s: float, expected: Iterable[tuple[Mapping[str, str], Mapping[str, str]]]) -> Test:
    """Return the assertion that *alert* fires for exactly those ``(labels, annotations)``."""
    return {
        "eval_time": f"{int(at_s)}s",
        "alertname": alert,
        "exp_alerts": [
            {"exp_labels": dict(labels), "exp_annotations": dict(annotations)} for labels, annotations in expected
        ],
    }


# ---- texts -------------------------------------------------------------------------------------------------------------


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
