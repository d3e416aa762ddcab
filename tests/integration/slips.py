# SPDX-License-Identifier: Apache-2.0
"""Make the slips that a rule could have: one at a time, in its expression, its durations, its labels and its texts.

In: a rule as it stands in a rule file. Out: ``(what is wrong, the rule with that)``, in a fixed order, each slip once.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

import promql_parser as promql

from jeeves_otel.objectives import SEVERITIES
from jeeves_otel.specification import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

Rule = dict[str, Any]
Slip = tuple[str, str]  # (what is wrong, the expression with that)

_FACTOR = 3
_TURNED = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "==": "!=", "!=": "=="}
_SETS = ("and", "or", "unless")
_SIGNS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
_LENGTHS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def slips(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """Yield every slip of *rule*; two that would be described alike are numbered."""
    seen: dict[str, int] = {}
    made = ((what, {**rule, "expr": text}) for what, text in _in_expression(promql.parse(rule["expr"])))
    for what, wrong in chain(made, _in_lengths(rule), _in_labels(rule), _in_texts(rule)):
        seen[what] = seen.get(what, 0) + 1
        yield (what if seen[what] == 1 else f"{what}, number {seen[what]}"), wrong


# ---- the expression ----------------------------------------------------------------------------------------------------


def _in_expression(node: Any) -> Iterator[Slip]:
    """Yield every slip in *node* and what it is made of."""
    if isinstance(node, promql.NumberLiteral):
        yield from _in_number(node.val)
    elif isinstance(node, promql.VectorSelector):
        yield from _in_selector(node, None)
    elif isinstance(node, promql.MatrixSelector):
        yield from _in_selector(node.vector_selector, node.range)
    elif isinstance(node, promql.ParenExpr):
        yield from ((what, f"({text})") for what, text in _in_expression(node.expr))
    elif isinstance(node, promql.SubqueryExpr):
        yield from _in_subquery(node)
    elif isinstance(node, promql.Call):
        yield from _in_call(node)
    elif isinstance(node, promql.AggregateExpr):
        yield from _in_aggregate(node)
    elif isinstance(node, promql.BinaryExpr):
        yield from _in_binary(node)
    else:
        raise TypeError(f"nobody knows what could be wrong in {type(node).__name__}: {node}")


def _text(node: Any) -> str:
    """Return *node* as PromQL; ``str`` forgets to escape what is in a pattern (promql-parser 0.12)."""
    return str(node.prettify())


def _in_number(value: float) -> Iterator[Slip]:
    for wrong in (value * _FACTOR, value / _FACTOR) if value else (1.0,):
        yield f"{value:.6g} is {wrong:.6g}", f"{wrong:.12g}"


def _in_selector(node: Any, window: timedelta | None) -> Iterator[Slip]:
    """Yield the slips of ``name{matchers}[window] offset …``."""
    matchers = [f"{each.name}{_SIGNS[str(each.op)]}{json.dumps(each.value)}" for each in node.matchers.matchers]
    window_s, offset_s = (each.total_seconds() if each else 0.0 for each in (window, node.offset))
    for index, matcher in enumerate(matchers):
        rest = matchers[:index] + matchers[index + 1 :]
        yield f"{node.name} without {{{matcher}}}", _selector(node.name, rest, window_s, offset_s)
    for wrong in _around(window_s):
        what = f"{node.name}[{_length(window_s)}] is [{_length(wrong)}]"
        yield what, _selector(node.name, matchers, wrong, offset_s)
    for wrong in _around(offset_s):
        what = f"{node.name} offset {_length(offset_s)} is {_length(wrong)}"
        yield what, _selector(node.name, matchers, window_s, wrong)


def _selector(name: str, matchers: list[str], window_s: float, offset_s: float) -> str:
    window = f"[{_length(window_s)}]" if window_s else ""
    offset = f" offset {_length(offset_s)}" if offset_s else ""
    return f"{name}{{{', '.join(matchers)}}}{window}{offset}"


def _around(seconds: float) -> tuple[float, ...]:
    return (seconds * 2, seconds / 2) if seconds else ()


def _length(seconds: float) -> str:
    """Return *seconds* in the largest unit that divides them."""
    unit = max((each for each in _LENGTHS if seconds % _LENGTHS[each] == 0), key=_LENGTHS.__getitem__)
    return f"{seconds / _LENGTHS[unit]:g}{unit}"


def _in_subquery(node: Any) -> Iterator[Slip]:
    window_s, step_s = node.range.total_seconds(), node.step.total_seconds()
    for what, text in _in_expression(node.expr):
        yield what, f"{text}[{_length(window_s)}:{_length(step_s)}]"
    written = f"[{_length(window_s)}:{_length(step_s)}]"
    for wrong, step in [
        *((each, step_s) for each in _around(window_s)),
        *((window_s, each) for each in _around(step_s)),
    ]:
        text = f"[{_length(wrong)}:{_length(step)}]"
        yield f"{written} is {text}", f"({_text(node.expr)}){text}"


def _in_call(node: Any) -> Iterator[Slip]:
    arguments = [_text(each) for each in node.args]
    for index, argument in enumerate(node.args):
        for what, text in _in_expression(argument):
            yield what, f"{node.func.name}({', '.join([*arguments[:index], text, *arguments[index + 1 :]])})"


def _in_aggregate(node: Any) -> Iterator[Slip]:
    labels = list(node.modifier.labels) if node.modifier is not None else []
    by = f" by ({', '.join(labels)})" if labels else ""
    for index, label in enumerate(labels):
        rest = ", ".join(labels[:index] + labels[index + 1 :])
        yield f"{node.op}{by} without {label}", f"{node.op} by ({rest}) ({_text(node.expr)})"
    for what, text in _in_expression(node.expr):
        yield what, f"{node.op}{by} ({text})"


def _in_binary(node: Any) -> Iterator[Slip]:
    sign = str(node.op)
    modifier = f" {node.modifier}" if node.modifier is not None and str(node.modifier) else ""
    if sign in _SETS:
        yield f"`{sign}` without its left side", f"({_text(node.rhs)})"
        yield f"`{sign}` without its right side", f"({_text(node.lhs)})"
    if sign in _TURNED:
        yield f"{sign} is {_TURNED[sign]}", f"({_text(node.lhs)}) {_TURNED[sign]}{modifier} ({_text(node.rhs)})"
    for what, text in _in_expression(node.lhs):
        yield what, f"({text}) {sign}{modifier} ({_text(node.rhs)})"
    for what, text in _in_expression(node.rhs):
        yield what, f"({_text(node.lhs)}) {sign}{modifier} ({text})"


# ---- the rest of a rule ------------------------------------------------------------------------------------------------


def _in_lengths(rule: Rule) -> Iterator[tuple[str, Rule]]:
    for key in ("for", "keep_firing_for"):
        if key in rule:
            number, unit = rule[key][:-1], rule[key][-1]
            yield f"no {key}", {name: value for name, value in rule.items() if name != key}
            yield f"{key} is three times as long", {**rule, key: f"{int(number) * _FACTOR}{unit}"}


def _in_labels(rule: Rule) -> Iterator[tuple[str, Rule]]:
    for name, value in rule["labels"].items():
        wrong = SEVERITIES[SEVERITIES.index(value) - 1] if name == "severity" else "another"
        yield f"{name} is {wrong}", {**rule, "labels": {**rule["labels"], name: wrong}}


def _in_texts(rule: Rule) -> Iterator[tuple[str, Rule]]:
    for name, text in rule.get("annotations", {}).items():
        for place in re.finditer(r"\$labels\.(\w+)|\$value \| (\w+)", text):
            wrong = "$labels.alertname" if place[1] else f"$value | {_other(place[2])}"
            mutated = text[: place.start()] + wrong + text[place.end() :]
            yield f"{name}: {place[0]} is {wrong}", {**rule, "annotations": {**rule["annotations"], name: mutated}}


def _other(function: str) -> str:
    return FUNCTIONS[FUNCTIONS.index(function) - 1]
