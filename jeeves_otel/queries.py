# SPDX-License-Identifier: Apache-2.0
"""Turn a query of the specification (a rate, a share, a quantile, a level) into PromQL that a registry vouches for.

In: a YAML node such as ``{share: jeeves_llm_calls_total, bad: {status: error}}`` and the families that there are. Out: a
`Query`, which writes itself for any window, or a finding for every name, label, value or bound that nobody promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from jeeves_otel.documents import did_you_mean
from jeeves_otel.promql import Family, answered_by, findings, seconds_of, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jeeves_otel.documents import Node
    from jeeves_otel.promql import Families

Conditions = tuple[tuple[str, tuple[str, ...]], ...]  # (label, accepted values), in file order

AGGREGATES = ("sum", "max", "min", "avg", "count")
_SEEN = "15m"
VARIABLES = ("$window",)  # of what is written out
_LEAST_DECIMAL, _MOST_DECIMAL = 1e-4, 1e6  # between them Go writes no exponent


class Duration(NamedTuple):
    """A length of time as Prometheus writes it, such as ``5m`` or ``1h30m``; ``seconds`` > 0."""

    text: str
    seconds: float


class Query(Protocol):
    """One question, for any window."""

    @property
    def by(self) -> tuple[str, ...]:
        """The labels of the answer."""

    def promql(self, window: str) -> str:
        """Return the expression; *window* is a duration, or a variable of a dashboard."""


def duration(node: Node) -> Duration:
    """Return the length of time that is written at *node*; anything else is a finding, and one second."""
    text = node.text()
    seconds = seconds_of(text)
    if text and not seconds:
        hint = "write it as 15s, 5m, 1h30m or 30d: the largest unit first, each once, less than 292y"
        node.report("not-a-duration", f"`{text}` is not a length of time", hint)
    return Duration(text, seconds or 1.0)


def exactly(number: float) -> str:
    """Return *number* as a pattern that finds it in ``le``, whoever has written it there.

    Pushed it is a decimal, 5 or 1048576; Python scrapes 5.0 and 1e-05; Go, and with it Prometheus 3 for whatever it scrapes,
    writes 5 and, from a million on and below a ten-thousandth, 1.048576e+06.
    Source: prometheus/prometheus#12984; strconv.FormatFloat with format g.
    """
    decimal = format(Decimal(repr(number)), "f").removesuffix(".0")
    spellings = [re.escape(decimal) + ("" if "." in decimal else r"(\.0)?")]
    if number and not _LEAST_DECIMAL <= abs(number) < _MOST_DECIMAL:
        mantissa, exponent = f"{Decimal(repr(number)).normalize():e}".split("e")
        spellings.append(re.escape(f"{mantissa}e{int(exponent):+03d}"))
    return "|".join(spellings)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happens, in events per second."""

    family: str
    where: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return ``sum by (…) (rate(…))``."""
        return _rate(self.family, window, self.by, where=self.where)


@dataclass(frozen=True, slots=True)
class Share:
    """The share of events that are bad; those *excluded* count neither way. No events, no answer."""

    family: str
    bad: Conditions
    excluded: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return bad events over all; 0 where nothing bad has ever happened, nothing where nothing happens."""
        total = self.total_rate(window)
        return f"({self.bad_rate(window)} or 0 * {total}) / ({total} > 0)"

    def bad_rate(self, window: str) -> str:
        """Return bad events per second; nothing where none ever was."""
        return self._bad(window, "rate")

    def counted(self, window: str) -> str:
        """Return how many events were bad; nothing where none ever was."""
        return self._bad(window, "increase")

    def _bad(self, window: str, function: str) -> str:
        # A label that says what is bad has excluded the rest of its values already.
        without = tuple(each for each in self.excluded if each[0] not in dict(self.bad))
        return _rate(self.family, window, self.by, where=self.bad, without=without, function=function)

    def total_rate(self, window: str) -> str:
        """Return events per second, without those excluded."""
        return _rate(self.family, window, self.by, without=self.excluded)


@dataclass(frozen=True, slots=True)
class Slower:
    """The share of observations above a bound of the histogram. No observations, no answer."""

    family: str
    than: float
    where: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return the observations above the bound over all."""
        return f"({self.bad_rate(window)}) / ({self.total_rate(window)} > 0)"

    def bad_rate(self, window: str) -> str:
        """Return observations above the bound per second."""
        return self._above(window, "rate")

    def counted(self, window: str) -> str:
        """Return how many observations were above the bound."""
        return f"({self._above(window, 'increase')})"

    def _above(self, window: str, function: str) -> str:
        every = _rate(f"{self.family}_count", window, self.by, where=self.where, function=function)
        le = exactly(self.than)
        return (
            f"{every} - {_rate(f'{self.family}_bucket', window, self.by, where=self.where, le=le, function=function)}"
        )

    def total_rate(self, window: str) -> str:
        """Return observations per second."""
        return _rate(f"{self.family}_count", window, self.by, where=self.where)


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of a histogram, 0 < q < 1, in the unit of the histogram."""

    family: str
    q: float
    where: Conditions = ()
    by: tuple[str, ...] = ()

    def counted(self, window: str) -> str:
        """Return how many observations there were."""
        return _rate(f"{self.family}_count", window, self.by, where=self.where, function="increase")

    def promql(self, window: str) -> str:
        """Return ``histogram_quantile`` over the buckets of all instances."""
        buckets = _rate(f"{self.family}_bucket", window, ("le", *self.by), where=self.where)
        # In full: rounded, 0.9999999 is 1, and the answer infinite or the last bound.
        return f"histogram_quantile({Decimal(repr(self.q)):f}, {buckets})"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of what a histogram observed, in its unit."""

    family: str
    where: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return the sum over the count; nothing where nothing was observed."""
        total = _rate(f"{self.family}_sum", window, self.by, where=self.where)
        count = _rate(f"{self.family}_count", window, self.by, where=self.where)
        return f"{total} / ({count} > 0)"


@dataclass(frozen=True, slots=True)
class Level:
    """What a gauge shows now, over all instances."""

    family: str
    aggregate: str = "sum"
    where: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return the aggregated gauge; a window has no part in it."""
        return f"{self.aggregate}{_by(self.by)} ({self.family}{_braces(self.where)})"


@dataclass(frozen=True, slots=True)
class Rises:
    """Whether any of some counters has risen; for those that should stand still, and often do not exist before they rise."""

    families: tuple[str, ...]
    where: Conditions = ()
    excluded: Conditions = ()
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return by how much they have risen; nothing where none has.

        ``increase`` does not see the rise from nothing, so what was not there before the window counts whole. A scrape that
        has failed leaves a gap, and no counter is born after it: of a quarter of an hour, one sample is enough.
        Source: prometheus/prometheus#14600.
        """
        braces = _braces(self.where, self.excluded)
        risen = (
            f"increase({family}{braces}[{window}]) > 0"
            f" or ({family}{braces} > 0 unless last_over_time({family}[{_SEEN}] offset {window}))"
            for family in self.families
        )
        return f"sum{_by(self.by)} ({' or '.join(risen)})"


@dataclass(frozen=True, slots=True)
class Promql:
    """What no shape says, as it is written; ``$window`` stands for the window."""

    text: str
    by: tuple[str, ...] = ()

    def promql(self, window: str) -> str:
        """Return the text with its window."""
        return self.text.replace("$window", window)


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _rate(
    family: str,
    window: str,
    by: tuple[str, ...],
    *,
    where: Conditions = (),
    without: Conditions = (),
    le: str = "",
    function: str = "rate",
) -> str:
    return f"sum{_by(by)} ({function}({family}{_braces(where, without, le)}[{window}]))"


def _braces(where: Conditions, without: Conditions = (), le: str = "") -> str:
    matchers = [_matcher(label, values, "=") for label, values in where]
    matchers += [_matcher(label, values, "!") for label, values in without]
    matchers += ['le=~"' + le.replace("\\", "\\\\") + '"'] if le else []
    return "{" + ", ".join(matchers) + "}" if matchers else ""


def _matcher(label: str, values: tuple[str, ...], sign: str) -> str:
    if len(values) == 1:
        return f"{label}{'=' if sign == '=' else '!='}{quoted(values[0])}"
    return f"{label}{sign}~{quoted('|'.join(re.escape(value) for value in values))}"


def quoted(text: str) -> str:
    """Return *text* as a literal of PromQL, which goes over no end of a line."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """The fields of one query, read with the families that there are."""

    node: Node
    fields: Mapping[str, Node]
    families: Families
    shape: str
    types: tuple[str, ...]
    variables: tuple[str, ...] = VARIABLES
    unknown: Family = field(default=Family("", "", MappingProxyType({})))

    def family(self) -> Family:
        """Return the family that is asked; an unknown one, or one of another type, is a finding."""
        return self._family(self.fields[self.shape])

    def all_families(self) -> tuple[Family, ...]:
        """Return the families that are asked, one or several."""
        return tuple(self._family(node) for node in self.fields[self.shape].items())

    def _family(self, node: Node) -> Family:
        name = node.text()
        found = self.families.get(name)
        if found is None:
            if name:
                node.report("unknown-metric", f"nobody promises `{name}`", did_you_mean(name, self.families))
            return self.unknown
        if found.type not in self.types:
            hint = f"`{self.shape}` asks a {' or a '.join(self.types)}"
            node.report("wrong-type", f"{name} is a {found.type}", hint)
            return self.unknown
        return found

    def conditions(self, key: str, family: Family) -> Conditions:
        """Return the labels and values at *key*; what the family does not have is a finding."""
        if key not in self.fields:
            return ()
        read = []
        for label, node in self.fields[key].fields().items():
            values = node.texts()
            if not values:
                node.report("no-value", f"no value of `{label}` is named", f"write `{label}: value`, or a list")
            if family is not self.unknown:
                _judge_values(node, family, label, values)
            read.append((label, values))
        return tuple(read)

    def by(self, family: Family) -> tuple[str, ...]:
        """Return the labels of the answer; one that the family does not have is a finding."""
        if "by" not in self.fields:
            return ()
        read = []
        for node in self.fields["by"].items():
            label = node.text()
            if family is not self.unknown and label not in (*family.labels, "job", "instance"):
                node.report(
                    "unknown-label", f"{family.name} has no label `{label}`", did_you_mean(label, family.labels)
                )
            read.append(label)
        return tuple(read)


def _judge_values(node: Node, family: Family, label: str, values: tuple[str, ...]) -> None:
    if label not in family.labels:
        node.report("unknown-label", f"{family.name} has no label `{label}`", did_you_mean(label, family.labels))
        return
    closed = family.labels[label]
    for value in values:
        if closed and value not in closed:
            hint = did_you_mean(value, closed)
            node.report("unknown-value", f"{label} of {family.name} is never `{value}`", hint)


def read_query(
    node: Node, families: Families, records: Iterable[str] = (), variables: tuple[str, ...] = VARIABLES
) -> Query:
    """Return the query at *node*; everything that no family promises is a finding.

    Args:
        node: A mapping with one key of a shape: rate, share, slower, quantile, mean, level, rises, promql.
        families: What may be asked.
        records: Names of recording rules, which `promql` may ask too.
        variables: What `promql` may leave open.
    """
    fields = node.fields()
    shapes = [key for key in fields if key in _SHAPES]
    if len(shapes) != 1:
        node.report("no-query", "a query has one shape", f"write one of {', '.join(_SHAPES)}")
        return Promql("")
    shape = shapes[0]
    types, known, required, build = _SHAPES[shape]
    reader = _Reader(node, node.fields((shape, *known), required), families, shape, types, variables)
    if shape == "promql":
        return _read_promql(reader, families, records)
    if shape == "rises":
        return _read_rises(reader)
    return build(reader, reader.family())


def _read_share(reader: _Reader, family: Family) -> Query:
    bad, excluded = (reader.conditions(key, family) for key in ("bad", "excluded"))
    if not bad and "bad" in reader.fields:
        reader.fields["bad"].report("no-value", "nothing is bad", "write which label says so: `bad: {status: error}`")
    by = reader.by(family)
    if bad and {label for label, _ in bad} <= set(by):
        hint = "take it out of `by`, or ask a `rate` by it"
        message = f"by {', '.join(label for label, _ in bad)}, which says what is bad, every share is 0 or 1"
        reader.fields["by"].report("bad-in-by", message, hint)
    return Share(family.name, bad, excluded, by)


def _read_slower(reader: _Reader, family: Family) -> Query:
    than = reader.fields["than"].number() if "than" in reader.fields else 0.0
    if "than" in reader.fields and family.buckets and than not in family.buckets:
        hint = f"take one of {', '.join(f'{bound:g}' for bound in family.buckets)}: between bounds nothing is known"
        reader.fields["than"].report("not-a-bound", f"{than:g} is no bound of {family.name}", hint)
    return Slower(family.name, than, reader.conditions("where", family), reader.by(family))


def _read_quantile(reader: _Reader, family: Family) -> Query:
    q = reader.fields["q"].number() if "q" in reader.fields else 0.5
    if not 0 < q < 1:
        reader.fields["q"].report("not-a-quantile", f"{q:g} is no quantile", "write a number between 0 and 1")
    return Quantile(family.name, q, reader.conditions("where", family), reader.by(family))


def _read_level(reader: _Reader, family: Family) -> Query:
    aggregate = reader.fields["aggregate"].choice(AGGREGATES) if "aggregate" in reader.fields else "sum"
    return Level(family.name, aggregate, reader.conditions("where", family), reader.by(family))


def _read_rises(reader: _Reader) -> Query:
    """Return the query of one or several counters, all of which have the labels that it names."""
    found = reader.all_families()
    if not found:
        reader.fields[reader.shape].report("no-value", "no counter is named", "write `rises: NAME`, or a list")
    where: Conditions = ()
    excluded: Conditions = ()
    by: tuple[str, ...] = ()
    for family in found:
        where, excluded = (reader.conditions(key, family) for key in ("where", "excluded"))
        by = reader.by(family)
    return Rises(tuple(family.name for family in found), where, excluded, by)


def _read_promql(reader: _Reader, families: Families, records: Iterable[str]) -> Query:
    node = reader.fields["promql"]
    text = node.text().strip()
    by = reader.fields["by"].texts() if "by" in reader.fields else ()
    for name in unknown_variables(text, reader.variables):
        hint = f"write {' or '.join(reader.variables)}, alone, or a length of time"
        node.report("unknown-variable", f"nothing is put in the place of `{name}`", hint)
    found = findings(text, families, records, node.where)
    for finding in found:
        node.report(finding.id, finding.message, finding.hint)
    answered = answered_by(text) if not found else None
    if answered is not None and answered != set(by):
        says, answers = (", ".join(sorted(labels)) or "no label" for labels in (by, answered))
        hint = f"write `by: [{', '.join(sorted(answered))}]`, or ask by what it says"
        reader.fields.get("by", node).report(
            "other-labels", f"the expression answers by {answers}, and `by` says {says}", hint
        )
    return Promql(text, by)


_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], Callable[[_Reader, Family], Query]]] = {
    # shape: (types of family, further keys, required keys, how it is built)
    "rate": (
        ("counter",),
        ("where", "by"),
        (),
        lambda reader, family: Rate(family.name, reader.conditions("where", family), reader.by(family)),
    ),
    "share": (("counter",), ("bad", "excluded", "by"), ("bad",), _read_share),
    "slower": (("histogram",), ("than", "where", "by"), ("than",), _read_slower),
    "quantile": (("histogram",), ("q", "where", "by"), ("q",), _read_quantile),
    "mean": (
        ("histogram",),
        ("where", "by"),
        (),
        lambda reader, family: Mean(family.name, reader.conditions("where", family), reader.by(family)),
    ),
    "level": (("gauge",), ("aggregate", "where", "by"), (), _read_level),
    "rises": (("counter",), ("where", "excluded", "by"), (), lambda _reader, _family: Promql("")),
    "promql": ((), ("by",), (), lambda _reader, _family: Promql("")),
}
