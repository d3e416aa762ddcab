# SPDX-License-Identifier: Apache-2.0
"""Know which families may be asked, and judge PromQL by them.

In: a registry, the metrics of others (``data/foreign.yaml``), and an expression. Out: a finding for every name, label and
value that nobody promises, and the expression as Prometheus formats it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.documents import Finding, did_you_mean, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import promql_parser

    from jeeves_otel.documents import Place
    from jeeves_otel.registry import Registry

_FOREIGN = Path(__file__).parent / "data" / "foreign.yaml"
# What a scrape, remote write and Prometheus itself put on every series.
_TARGET_LABELS = ("job", "instance", "le", "alertname", "alertstate")
_PARTS = ("_bucket", "_count", "_sum")
_OF_COUNTERS = ("rate", "irate", "increase", "resets")
_OF_SOME = ("topk", "bottomk", "limitk", "limit_ratio")  # answer with some of the series, as they are
# What Prometheus has only where it is started with --enable-feature. Source: prometheus/prometheus v3.15.0,
# promql/parser/functions.go (Experimental) and lex.go (IsExperimentalAggregator).
_EXPERIMENTAL = frozenset(
    {
        *("end", "range", "start", "start_timestamp", "step", "info", "max_of", "min_of", "mad_over_time", "limitk"),
        *("limit_ratio", "double_exponential_smoothing", "histogram_quantiles", "sort_by_label", "sort_by_label_desc"),
        *("ts_of_first_over_time", "ts_of_last_over_time", "ts_of_max_over_time", "ts_of_min_over_time"),
    }
)
# From the largest unit to the smallest, each once. Source: prometheus/common v0.71.0, model/time.go (ParseDuration).
_UNITS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile("".join(f"(?:(?P<{unit}>[0-9]+){unit})?" for unit in _UNITS))
_MOST_MS = (2**63 - 1) // 1_000_000  # what fits into Go's nanoseconds: 292 years
_LITERAL = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`""")
_LENGTH = re.compile(r"(?<![\w:.])(?:[0-9]+(?:ms|[smhdwy]))+")
_VARIABLE = re.compile(r"[\w${}]*\$[\w${}]*")


@dataclass(frozen=True, slots=True)
class Family:
    """What a query may ask: one family with its labels, ``{label: closed values, or ()}``, and bounds of a histogram."""

    name: str
    type: str
    labels: Mapping[str, tuple[str, ...]]
    buckets: tuple[float, ...] = ()


Families = dict[str, Family]


def families_of(registry: Registry) -> Families:
    """Return every family that *registry* promises, and those of others, by name."""
    return foreign_families() | {
        metric.name: Family(
            metric.name,
            metric.type,
            MappingProxyType({label.name: label.values for label in metric.labels}),
            metric.buckets,
        )
        for metric in registry.metrics.values()
    }


@cache
def foreign_families() -> Families:
    """Return the families of others that may be asked; see ``data/foreign.yaml``."""
    root, document = read(_FOREIGN.read_text(encoding="utf-8"), _FOREIGN.name)
    families = {}
    for name, node in root.fields(("metrics",))["metrics"].fields().items():
        entry = node.fields(("type", "labels"), required=("type", "labels"))
        labels = dict.fromkeys(entry["labels"].texts(), ())
        families[name] = Family(name, entry["type"].choice(("counter", "gauge")), MappingProxyType(labels))
    if document.findings:  # a mistake of ours, which a test would have seen
        raise ValueError("\n".join(map(str, document.findings)))
    return families


def pretty(expression: str) -> str:
    """Return *expression* over several lines where it is long, as Prometheus would format it.

    Raises:
        ValueError: It is not PromQL.
    """
    import promql_parser  # noqa: PLC0415 - only `check` and `render` need it

    return "\n".join(line.rstrip() for line in promql_parser.parse(expression).prettify().splitlines())


def metrics_in(expression: str) -> tuple[str, ...]:
    """Return the names of the series that *expression* asks, in its order.

    Raises:
        ValueError: It is not PromQL.
    """
    import promql_parser  # noqa: PLC0415 - as above

    parsed = promql_parser.parse(expression)
    return tuple(dict.fromkeys(selector.name or "" for selector, _ in _selectors(parsed)))


def seconds_of(text: str) -> float:
    """Return the length of time that *text* writes as Prometheus reads it; 0 for none, and for what it refuses."""
    match = _DURATION.fullmatch(text)
    parts = match.groupdict(default="0") if match is not None else {}
    milliseconds = sum(int(number) * _UNITS[unit] for unit, number in parts.items())
    return milliseconds / 1_000 if milliseconds <= _MOST_MS else 0


def unknown_variables(text: str, known: Iterable[str]) -> list[str]:
    """Return the variables in *text*, outside its literals, that are none of *known*, with whatever they are joined to."""
    return [found for found in _VARIABLE.findall(_LITERAL.sub('""', text)) if found not in known]


def is_binary(expression: str) -> bool:
    """Return whether *expression* is one of an operator, which a comparison behind it would take apart."""
    import promql_parser  # noqa: PLC0415 - as above

    return isinstance(promql_parser.parse(expression), promql_parser.BinaryExpr)


def findings(text: str, families: Families, records: Iterable[str], where: Place) -> list[Finding]:
    """Return what is wrong with *text*: no PromQL, names and labels that nobody promises, an exact ``le``, a misused type."""
    import promql_parser  # noqa: PLC0415 - as above

    expression = _without_variables(text)
    try:
        parsed = promql_parser.parse(expression)
        promql_parser.parse(f"({expression}) > 0")  # which a number, a text or a range cannot be asked
    except ValueError as error:
        return [Finding("promql-syntax", where, f"this is not PromQL: {error}", "mend the expression")]
    found = [*_too_long(expression, where), *_experimental(parsed, where)]
    for selector, function in _selectors(parsed):
        found += _judge_selector(selector, function, families, frozenset(records), where)
    return found


def _without_variables(text: str) -> str:
    """Return *text* with a length of time for each variable, of which a parser knows nothing."""
    return re.sub(r"\$\w+|\$\{\w+\}", "5m", text)


def _too_long(expression: str, where: Place) -> Iterator[Finding]:
    for length in _LENGTH.findall(_LITERAL.sub('""', expression)):
        if not seconds_of(length) and int(re.sub(r"\D", "", length)):
            message = f"Prometheus refuses `{length}`, which is longer than 292 years"
            yield Finding("promql-syntax", where, message, "write a shorter one")


def _experimental(parsed: object, where: Place) -> Iterator[Finding]:
    """Yield what a Prometheus that is started as usual refuses, with all other rules of the file."""
    used = {name for each in _walk(parsed) if (name := _name_of(each)) in _EXPERIMENTAL}
    if any(_fills(each) for each in _walk(parsed)):
        used.add("fill")
    for name in sorted(used):
        message = f"Prometheus has `{name}` only with --enable-feature"
        yield Finding("experimental-promql", where, message, "ask without it; a file with it is refused as a whole")


def _walk(parsed: object) -> Iterator[object]:
    """Yield *parsed* and every part of it that is an expression."""
    yield parsed
    for key in ("args", "lhs", "rhs", "expr", "param"):
        part = getattr(parsed, key, None)
        for each in part if isinstance(part, list) else [part]:
            if each is not None:
                yield from _walk(each)


def _name_of(parsed: object) -> str:
    """Return the name of the function or aggregation that *parsed* is; empty if it is none."""
    import promql_parser as parser  # noqa: PLC0415 - as above

    if isinstance(parsed, parser.Call):
        return parsed.func.name
    return str(parsed.op) if isinstance(parsed, parser.AggregateExpr) else ""


def _fills(parsed: object) -> bool:
    """Return whether *parsed* gives values to series that only one of its sides has."""
    values = getattr(getattr(parsed, "modifier", None), "fill_values", None)
    return values is not None and (values.lhs, values.rhs) != (None, None)


def answered_by(text: str) -> frozenset[str] | None:
    """Return the labels that *text*, which is PromQL, answers with, if its outermost aggregation says so; else None."""
    import promql_parser as parser  # noqa: PLC0415 - as above

    parsed = _aggregation(parser.parse(_without_variables(text)))
    if not isinstance(parsed, parser.AggregateExpr) or str(parsed.op) in _OF_SOME:
        return None
    if parsed.modifier is not None and parsed.modifier.type != parser.AggModifierType.By:
        return None
    added = [parsed.param.val] if isinstance(parsed.param, parser.StringLiteral) else []  # by count_values
    return frozenset([*(parsed.modifier.labels if parsed.modifier is not None else ()), *added])


def _aggregation(parsed: object) -> object:
    """Return what *parsed* is within parentheses and comparisons with numbers, which leave labels as they are."""
    import promql_parser as parser  # noqa: PLC0415 - as above

    while True:
        if isinstance(parsed, parser.ParenExpr):
            parsed = parsed.expr
        elif isinstance(parsed, parser.BinaryExpr) and isinstance(parsed.rhs, parser.NumberLiteral):
            parsed = parsed.lhs
        elif isinstance(parsed, parser.BinaryExpr) and isinstance(parsed.lhs, parser.NumberLiteral):
            parsed = parsed.rhs
        else:
            return parsed


def _selectors(parsed: object, function: str = "") -> Iterator[tuple[promql_parser.VectorSelector, str]]:
    """Yield every selector of *parsed* with the function that it is the argument of."""
    import promql_parser as parser  # noqa: PLC0415 - as above

    if isinstance(parsed, parser.VectorSelector):
        yield parsed, function
    elif isinstance(parsed, parser.MatrixSelector):
        yield parsed.vector_selector, function
    elif isinstance(parsed, parser.Call):
        for argument in parsed.args:
            yield from _selectors(argument, parsed.func.name)
    elif isinstance(parsed, parser.BinaryExpr):
        yield from chain(_selectors(parsed.lhs), _selectors(parsed.rhs))
    elif hasattr(parsed, "expr"):  # parentheses, aggregations, minus, subqueries
        yield from _selectors(parsed.expr, function if isinstance(parsed, parser.ParenExpr) else "")


def _judge_selector(
    selector: promql_parser.VectorSelector, function: str, families: Families, records: frozenset[str], where: Place
) -> Iterator[Finding]:
    name = selector.name or ""
    if name in records or name in {"ALERTS", "up"}:
        return
    family = family_of(name, families)
    if family is None:
        hint = did_you_mean(name, [*families, *records])
        yield Finding("unknown-metric", where, f"nobody promises `{name}`", hint)
        return
    is_counter = family.type == "counter" or (family.type == "histogram" and name != family.name)
    if function in _OF_COUNTERS and not is_counter:
        yield Finding(
            "wrong-type", where, f"{name} is a {family.type}, of which {function} says nothing", "ask it as it is"
        )
    for matcher in selector.matchers.matchers:
        yield from _judge_matcher(matcher, family, where)


def _judge_matcher(matcher: promql_parser.Matcher, family: Family, where: Place) -> Iterator[Finding]:
    label, value = matcher.name, matcher.value
    exact = str(matcher.op) in {"MatchOp.Equal", "MatchOp.NotEqual"}
    if label == "le" and exact and value != "+Inf":
        hint = r'write le=~"5(\\.0)?": scraped it is 5.0, pushed 5'
        yield Finding("exact-le", where, f'le="{value}" finds one of two spellings', hint)
    elif label not in (*family.labels, *_TARGET_LABELS):
        yield Finding(
            "unknown-label", where, f"{family.name} has no label `{label}`", did_you_mean(label, family.labels)
        )
    elif exact and family.labels.get(label) and value not in family.labels[label]:
        hint = did_you_mean(value, family.labels[label])
        yield Finding("unknown-value", where, f"{label} of {family.name} is never `{value}`", hint)


def family_of(name: str, families: Families) -> Family | None:
    """Return the family whose series are called *name*, which may be a part of a histogram; None where nobody promises it."""
    if name in families:
        return families[name]
    for part in _PARTS:
        family = families.get(name.removesuffix(part)) if name.endswith(part) else None
        if family is not None and family.type == "histogram":
            return family
    return None
