# SPDX-License-Identifier: Apache-2.0
"""Turn the views into statements of the Collector's transform processor: `jeeves_otel.translation`, for other languages.

In: a registry. Out: groups of statements as YAML, in the order in which they run, the bounds that histograms must have, and
what statements cannot do. Functions of metrics and of data points stand in groups of their own, because one group cannot
mix them. For the transform processor 0.144.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from jeeves_otel.labels import OVERFLOW_KEY
from jeeves_otel.registry import OTHER, PER_SECOND, TRANSLATED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jeeves_otel.registry import Form, Instrument, Label, Metric, Registry, Source, Template

# Ours while the statements run; none of them leaves.
DROP = "jeeves.otel.drop"
_TAKEN, _UNFIT = "taken", "unfit"  # because something is made of it, or because it must not be what it would be
_SOURCE = "jeeves.otel.source"
_HAS = "jeeves.otel.has."

_NUMBERS_OF_HISTOGRAMS = {"count": "extract_count_metric", "sum": "extract_sum_metric"}
# Points collected at one time have one time, so the last of them is the largest to the SDK, too.
_MERGES = {"sum": "sum", "min": "min", "max": "max", "last": "max"}
_HISTOGRAM = "metric.type == METRIC_DATA_TYPE_HISTOGRAM"
_DISTRIBUTION = f"({_HISTOGRAM} or metric.type == METRIC_DATA_TYPE_EXPONENTIAL_HISTOGRAM)"
_CUMULATIVE = "metric.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE"
_NUMBER = f"(metric.type == METRIC_DATA_TYPE_GAUGE or (metric.type == METRIC_DATA_TYPE_SUM and {_CUMULATIVE}))"
_PARTS_OF_SECONDS = ("ms", "us", "ns")


class Limit(NamedTuple):
    """One thing that the SDK does and these statements cannot; ``name`` is that of the test that shows it."""

    name: str
    sdk: str
    collector: str


# fmt: off
LIMITS = (
    Limit("zeros", "A label marked `zero` exists with 0 for all its values as soon as one combination of the others does, a declared one from the start.", "A series begins with its first value, so `increase()` misses the first error."),
    Limit("limits", "An open label has `limit` values, then `other`.", "Every value keeps its name: bound what the service records."),
    Limit("scopes", "Points of several scopes that get the same labels add up.", "They are two samples of one series at one time, of which one is stored, not always the same, without a word: let one library record an instrument."),
    Limit("times", "Points that get the same labels add up, whenever they were taken.", "Those of one time do; of two times they are two samples of one series, each a part. SDKs take all points of a collection at one time."),
    Limit("sources", "Points of several instruments that feed one metric with the same labels add up.", "As with scopes: let them differ in a label, as `outcome` of `orchestrator_requests_total`."),
    Limit("bounds", "A histogram is merged into the promised bounds if they are among its own, or left out and counted.", "It keeps its standard name unless its bounds are the needed ones, and the convention's beside them; where Prometheus would call it by a promised name (`jeeves.pipeline.duration`) it is dropped. What is made of its count and its sum is there."),
    Limit("exponential", "Exponential histograms are left out and counted.", "They keep their name, or are dropped, in the same way; what is made of count and sum is there."),
    Limit("temporality", "Deltas stay deltas under the promised name.", "Nothing is made of them; remote write drops and counts them."),
    Limit("exemplars", "Counters that are made of histograms have exemplars.", "They have none; histograms keep theirs."),
    Limit("values", "A fraction as a label value is written `1.0`, a list with escapes.", "`1`, and without; text, whole numbers and truth are the same."),
    Limit("names", "A metric that nobody maps and that would be called like a promised one is left out and counted.", "It passes."),
)
# fmt: on


class _Feed(NamedTuple):
    """One source of a metric: ``copies`` are the forms of its instrument by the name of the copy that is made of each."""

    metric: Metric
    source: Source
    instrument: Instrument
    copies: Mapping[str, Form]


class _Group(NamedTuple):
    """Statements that run over all metrics before the next group does; any of the conditions lets them run."""

    comment: str
    context: str
    conditions: list[str]
    statements: list[str]


def statements(registry: Registry) -> str:
    """Return what stands below ``metric_statements``, YAML with the indentation that it has there."""
    return "\n".join(line for group in _groups(registry) if group.statements for line in _lines(group))


def bounds(registry: Registry) -> dict[str, tuple[float, ...]]:
    """Return ``{instrument: upper bounds that all histograms made of it need}``, in the unit of the instrument."""
    return {name: found for name in registry.instruments if (found := registry.bounds_needed(name))}


def written(numbers: Iterable[float]) -> str:
    """Return *numbers* for a reader, without exponents."""
    return ", ".join(map(_json_number, numbers))


def page(registry: Registry) -> str:
    """Return the reference of what histograms need and of what the Collector cannot do."""
    lines = [
        "<!-- Generated from jeeves_otel/generators/translation.py and the registry by `jeeves-otel render`.",
        "     Change the source and run that command; edits here are overwritten and fail CI. -->",
        "",
        "# Translation in the Collector",
        "",
        "What `collector/translation.yaml` needs of a service, and what it cannot do; [how to set up a service](../howto/other-languages.md).",
        "",
        "## Bounds of histograms",
        "",
        "A histogram becomes the promised one if it has at least these upper bounds, and none beside them but the convention's.",
        "A view of the service's SDK sets them where the convention's own are not enough.",
        "In a metric in milliseconds they are a thousand times as large.",
        "",
        "| instrument, and other spellings | upper bounds | the convention's are enough |",
        "|---|---|---|",
    ]
    for name, needed in bounds(registry).items():
        instrument = registry.instruments[name]
        spellings = ", ".join(
            f"`{each}`" for each in dict.fromkeys([name, *(form.name for form in _forms_of(instrument))])
        )
        enough = "yes" if set(needed) <= set(instrument.bounds) else "no"
        lines.append(f"| {spellings} | {written(needed)} | {enough} |")
    lines += [
        "",
        "## What is different",
        "",
        "| the SDK | the Collector |",
        "|---|---|",
        *(f"| {limit.sdk} | {limit.collector} |" for limit in LIMITS),
        "",
        "Each line has a test in `tests/integration/test_collector_translation.py`; all other samples are the same.",
    ]
    return "\n".join(lines) + "\n"


def _groups(registry: Registry) -> Iterator[_Group]:
    feeds = list(_feeds(registry))
    better = _better(feeds)
    yield _flags(better)
    yield _sources(feeds, better)
    yield _drops(feeds, registry)
    yield _copies(feeds)
    yield _seconds(feeds)
    for feed in feeds:
        yield _labels(feed, registry)
    for metric in registry.metrics.values():
        yield _finish(metric, [name for feed in feeds if feed.metric is metric for name in feed.copies])
    source = f"metric.metadata[{_text(_SOURCE)}]"
    yield _Group(
        "Nothing of ours is left but the mark.",
        "metric",
        [],
        [f"delete_key(metric.metadata, {_text(_SOURCE)}) where {source} != nil"],
    )
    yield _Group("", "scope", [], [f"delete_matching_keys(scope.attributes, {_text('^' + re.escape(_HAS))})"])
    yield _Group("", "resource", [], [f"set(resource.attributes[{_text(TRANSLATED)}], true)"])


# ---- which metrics feed which ----------------------------------------------------------------------------------------


def _feeds(registry: Registry) -> Iterator[_Feed]:
    for metric in registry.metrics.values():
        for number, source in enumerate(metric.sources):
            instrument = registry.instruments[source.instrument]
            forms = [form for generation in instrument.generations for form in generation if _takes(source.take, form)]
            # No name of an instrument has a # in it.
            end = f"#{metric.name}" + (f"#{number}" if number else "")
            yield _Feed(metric, source, instrument, {form.name + end: form for form in forms})


def _takes(take: str, form: Form) -> bool:
    return form.kind == "histogram" or take in {"sum", "value"}


def _forms(feeds: Iterable[_Feed]) -> dict[str, Form]:
    return {form.name: form for feed in feeds for form in feed.copies.values()}


def _better(feeds: Iterable[_Feed]) -> dict[str, list[str]]:
    """Return ``{spelling: spellings of better generations}``; of one scope only the best is read."""
    better: dict[str, list[str]] = {}
    for feed in feeds:
        before: list[str] = []
        for generation in feed.instrument.generations:
            better |= {form.name: list(before) for form in generation if before}
            before += [form.name for form in generation]
    return better


def _flags(better: Mapping[str, list[str]]) -> _Group:
    names = dict.fromkeys(name for names in better.values() for name in names)
    return _Group(
        "Which of several spellings of one measurement a scope has.",
        "metric",
        [_UNMARKED],
        [
            f"set({_flag(name)}, true) where metric.name == {_text(name)} and Len(metric.data_points) > 0"
            for name in names
        ],
    )


def _sources(feeds: list[_Feed], better: Mapping[str, list[str]]) -> _Group:
    """Say of every metric whether something is made of it: of all of it, or of points with the right bounds."""
    forms = _forms(feeds)
    bounded = {form.name for feed in feeds if feed.source.take == "histogram" for form in feed.copies.values()}
    histograms = {name for name, form in forms.items() if form.kind == "histogram"}
    source = f"metric.metadata[{_text(_SOURCE)}]"
    return _Group(
        "What is translated: totals and levels, by the name and the type that the registry knows.",
        "metric",
        [_UNMARKED],
        [
            *_set_if(source, "points", sorted(histograms & bounded), f"{_DISTRIBUTION} and {_CUMULATIVE}"),
            *_set_if(source, "all", sorted(histograms - bounded), f"{_DISTRIBUTION} and {_CUMULATIVE}"),
            *_set_if(source, "all", sorted(forms.keys() - histograms), _NUMBER),
            *(
                f'set({source}, "superseded") where metric.name == {_text(name)} and ({" or ".join(f"{_flag(each)} != nil" for each in names)})'
                for name, names in better.items()
            ),
        ],
    )


def _set_if(target: str, value: str, names: list[str], condition: str) -> Iterator[str]:
    if names:
        yield f"set({target}, {_text(value)}) where {condition} and {_named(names)}"


def _drops(feeds: list[_Feed], registry: Registry) -> _Group:
    """Mark the points that do not leave under their own name, because something is made of them."""
    source, drop = f"metric.metadata[{_text(_SOURCE)}]", f"set({_attribute(DROP)}, {_text(_TAKEN)})"
    made = []
    for instrument in dict.fromkeys(feed.instrument.name for feed in feeds if feed.source.take == "histogram"):
        forms = [form for form in _forms(feeds).values() if form in _forms_of(registry.instruments[instrument])]
        made += [f"{drop} where {each}" for each in _fitting(forms, registry.instruments[instrument], registry)]
    return _Group(
        "What leaves under its own name no more. Points whose bounds cannot become the promised ones stay what they are.",
        "datapoint",
        [f"{source} != nil"],
        [
            f'{drop} where {source} != "points"',
            *made,
            # What Prometheus would call by a promised name does not leave with other buckets.
            *(
                f"set({_attribute(DROP)}, {_text(_UNFIT)}) where {_attribute(DROP)} == nil and metric.name == {_text(name)}"
                for name in _forms(feed for feed in feeds if feed.source.take == "histogram")
                if not _called(name).isdisjoint(registry.metrics)
            ),
            # Added to a whole number, a fraction counts as 0, and scaling cuts whole numbers off.
            "set(datapoint.value_double, Double(datapoint.value_int)) where datapoint.value_int != 0",
            "set(datapoint.value_double, 0.0) where datapoint.value_int == 0 and datapoint.value_double == 0",
        ],
    )


def _called(name: str) -> set[str]:
    """Return what Prometheus may call a metric with *name*, by its unit."""
    stem = re.sub(r"[^a-zA-Z0-9:]+", "_", name)
    return {stem, f"{stem}_seconds", f"{stem}_bytes", f"{stem}_total"}


def _forms_of(instrument: Instrument) -> list[Form]:
    return [form for generation in instrument.generations for form in generation]


def _fitting(forms: list[Form], instrument: Instrument, registry: Registry) -> Iterator[str]:
    """Yield conditions under which a point has the needed bounds and none beside them but the convention's."""
    needed, own = set(registry.bounds_needed(instrument.name)), PER_SECOND.get(instrument.unit)
    if own is None:
        yield f"{_named(form.name for form in forms)} and {_bounded(needed, set(instrument.bounds), 1)}"
        return
    for unit in ("s", "ms"):
        factor = PER_SECOND[unit] / own
        if any(bound * factor * _multiplier(unit) != bound / own for bound in needed):
            continue  # in this unit it cannot be written so that it becomes the promised number
        of_unit = _in_unit(unit, {form.name: form for form in forms})
        yield f"({of_unit}) and {_bounded(needed, set(instrument.bounds), factor)}"


def _in_unit(unit: str, forms: Mapping[str, Form]) -> str:
    """Return the condition that a metric with one of the names is in *unit*, by itself or, if it says none, by its form."""
    named = f"metric.unit == {_text(unit)} and {_named(forms)}"
    silent = [name for name, form in forms.items() if form.unit == unit]
    return named + (f' or metric.unit == "" and {_named(silent)}' if silent else "")


def _bounded(needed: set[float], optional: set[float], factor: float) -> str:
    pattern = r"^\["
    for bound in sorted(needed | optional):
        number = re.escape(_json_number(bound * factor)) + r"[,\]]"
        pattern += number if bound in needed else f"({number})?"
    return f"IsMatch(datapoint.explicit_bounds, {_text(pattern + chr(92) + 'z')})"


# ---- copies ----------------------------------------------------------------------------------------------------------


def _copies(feeds: list[_Feed]) -> _Group:
    """Make one copy per feed and form. The loop also visits copies, which no condition matches."""
    source, made = f"metric.metadata[{_text(_SOURCE)}]", []
    for feed in feeds:
        for copy, form in feed.copies.items():
            where = f"where metric.name == {_text(form.name)}"
            take = "sum" if feed.source.take == "value" and form.kind == "histogram" else feed.source.take
            if form.kind == "histogram" and take in _NUMBERS_OF_HISTOGRAMS:
                end = copy.removeprefix(form.name)
                made.append(f"{_NUMBERS_OF_HISTOGRAMS[take]}(true, {_text(end)}) {where}")
            elif take == "histogram":
                made.append(f"copy_metric(name={_text(copy)}) {where} and {_HISTOGRAM}")
            else:
                made.append(f"copy_metric(name={_text(copy)}) {where}")
    conditions = [f'{source} == "points"', f'{source} == "all"']
    return _Group("One copy for each metric that is made.", "metric", conditions, made)


def _seconds(feeds: list[_Feed]) -> _Group:
    copies = {
        copy: form
        for feed in feeds
        for copy, form in feed.copies.items()
        if feed.metric.unit == "s" and feed.source.take != "count"
    }
    made = [
        f'scale_metric({_decimal(_multiplier(unit))}, "s") where {_in_unit(unit, copies)}' for unit in _PARTS_OF_SECONDS
    ]
    return _Group("Milliseconds become seconds.", "metric", [], made if copies else [])


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labels(feed: _Feed, registry: Registry) -> _Group:
    """Compute the labels beside the attributes, in the cache of the point, and put them in their place at the end."""
    made = [
        f"set({_attribute(key)}, {_text(value)}) where metric.name == {_text(copy)} and {_attribute(key)} == nil"
        for copy, form in feed.copies.items()
        for key, value in form.assume.items()
    ]
    made += _conditions(feed, registry)
    if feed.source.take == "histogram":
        made += _buckets(feed, registry)
    for label in feed.metric.labels:
        made += _label(label, registry)
    made.append("set(datapoint.attributes, datapoint.cache)")
    return _Group(feed.metric.name, "datapoint", [f"metric.name == {_text(copy)}" for copy in feed.copies], made)


def _conditions(feed: _Feed, registry: Registry) -> Iterator[str]:
    for number, (key, accepted) in enumerate(feed.source.conditions.items()):
        value = _cache(f"where {number}")
        yield from _read(value, key, registry)
        refused = " and ".join(f"{value} != {'nil' if each is None else _text(each)}" for each in accepted)
        overflow = f"{_attribute(OVERFLOW_KEY)}"
        # The overflow point has lost what is asked for: what adds up must not be lost, a level must not stand twice.
        when = (
            f"{refused} and {overflow} == nil" if feed.metric.type != "gauge" else f"({refused}) or {overflow} != nil"
        )
        yield f"set({_cache(DROP)}, {_text(_UNFIT)}) where {when}"


def _buckets(feed: _Feed, registry: Registry) -> Iterator[str]:
    yield f"set({_cache(DROP)}, {_text(_UNFIT)}) where {_attribute(DROP)} != {_text(_TAKEN)}"
    promised = set(feed.metric.buckets)
    own = PER_SECOND.get(feed.instrument.unit, 1) if feed.metric.unit == "s" else 1
    beside = {
        bound / own for bound in (*feed.instrument.bounds, *registry.bounds_needed(feed.instrument.name))
    } - promised
    if beside:
        yield f"set({_cache('bounds')}, String(datapoint.explicit_bounds))"
        written = "[" + ",".join(_json_number(float(bound)) for bound in sorted(promised)) + "]"
        for bound in sorted(beside):
            yield f"merge_histogram_buckets({_decimal(bound)}) where {_cache('bounds')} != {_text(written)}"


def _label(label: Label, registry: Registry) -> Iterator[str]:
    """Yield what `jeeves_otel.labels.label_function` does; of several ``set`` the last one counts."""
    value = _cache(label.name)
    plain = label.present is None and not label.value_map and label.is_open
    raw = value if plain else _cache(f"{label.name} raw")
    yield from _read_templates(label, raw, registry)
    if label.present is not None:
        yield f"set({value}, {_text(label.present)})"
    elif not plain:
        yield from _map(label, raw, value)
    yield f'set({value}, {_text(label.absent or "")}) where {raw} == nil or {raw} == ""'
    yield f"set({value}, {_text(OTHER)}) where {_attribute(OVERFLOW_KEY)} != nil"


def _map(label: Label, raw: str, value: str) -> Iterator[str]:
    keeps = label.is_open and (label.unmapped == "keep" or not label.value_map)
    yield f"set({value}, {raw if keeps else _text(label.unmapped)})"
    if label.values:
        yield f"set({value}, {raw}) where {_any_of(raw, label.values)}"
    asked = raw
    if label.fold and label.value_map:
        asked = _cache(f"{label.name} folded")
        yield f"set({asked}, To{label.fold.title()}Case({raw})) where {raw} != nil"
    by_target: dict[str, list[str]] = {}
    for given, target in label.value_map.items():
        by_target.setdefault(target, []).append(given)
    for target, given_values in by_target.items():
        yield f"set({value}, {_text(target)}) where {_any_of(asked, given_values)}"


def _read(target: str, key: str, registry: Registry) -> Iterator[str]:
    """Yield what puts the first spelling that is there into *target*; what is absent sets nothing."""
    for spelling in reversed(registry.spelled(key)):
        yield f"set({target}, String({_attribute(spelling)}))"


def _read_templates(label: Label, raw: str, registry: Registry) -> Iterator[str]:
    if len(label.templates) == 1 and _is_bare(label.templates[0]):
        yield from _read(raw, label.templates[0].keys[0], registry)
        return
    for template in reversed(label.templates):
        yield from _read_template(template, label.name, raw, registry)


def _is_bare(template: Template) -> bool:
    return len(template.parts) == 1 and template.parts[0][0] == template.tail == ""


def _read_template(template: Template, name: str, raw: str, registry: Registry) -> Iterator[str]:
    values = [_cache(f"{name} {number}") for number in range(len(template.parts))]
    before = _cache(f"{name} before")
    for value, key in zip(values, template.keys, strict=True):
        yield f'set({value}, "")'
        yield from _read(value, key, registry)
    yield f"set({before}, {_text(template.parts[0][0])})"
    for number, (literal, _) in enumerate(template.parts[1:], start=1):
        # A library between two conventions says the service twice: by itself, and within the full method.
        first, second = f"{values[number - 1]}, {_text(literal)}", values[number]
        yield f'set({before}, Concat([{before}, {first}], "")) where not HasPrefix({second}, Concat([{first}], ""))'
    present = " and ".join(f'{value} != ""' for value in values)
    yield f'set({raw}, Concat([{before}, {values[-1]}, {_text(template.tail)}], "")) where {present}'


# ---- promised metrics ------------------------------------------------------------------------------------------------


def _finish(metric: Metric, copies: list[str]) -> _Group:
    kept = ", ".join(_text(name) for name in (*metric.label_names, DROP))
    merge = _MERGES[metric.merge] if metric.type == "gauge" else "sum"
    made = [f"aggregate_on_attributes({_text(merge)}, [{kept}])"]
    if metric.type == "gauge":
        made.append("convert_sum_to_gauge()")
    if metric.type == "counter":
        made.append('convert_gauge_to_sum("cumulative", true)')
        made.append("set(metric.is_monotonic, true)")
    made.append(f"set(metric.unit, {_text(metric.unit)})")
    made.append(f"set(metric.description, {_text(metric.help)})")
    made.append(f"set(metric.name, {_text(metric.name)})")
    return _Group("", "metric", [f"metric.name == {_text(copy)}" for copy in copies], made)


# ---- how it is written -----------------------------------------------------------------------------------------------

_UNMARKED = f'resource.attributes["{TRANSLATED}"] == nil'


def _lines(group: _Group) -> Iterator[str]:
    if group.comment:
        yield f"      # {group.comment}"
    yield f"      - context: {group.context}"
    if group.conditions:
        yield "        conditions:"
        yield from (f"          - {_quoted(condition)}" for condition in group.conditions)
    yield "        statements:"
    yield from (f"          - {_quoted(statement)}" for statement in group.statements)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''").replace("$", "$$") + "'"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # Go reads what JSON writes


def _attribute(key: str) -> str:
    return f"datapoint.attributes[{_text(key)}]"


def _cache(key: str) -> str:
    return f"datapoint.cache[{_text(key)}]"


def _flag(name: str) -> str:
    return f"scope.attributes[{_text(_HAS + name)}]"


def _named(names: Iterable[str]) -> str:
    return _any_of("metric.name", names)


def _any_of(value: str, choices: Iterable[str]) -> str:
    tests = [f"{value} == {_text(choice)}" for choice in choices]
    return tests[0] if len(tests) == 1 else f"({' or '.join(tests)})"


def _multiplier(unit: str) -> float:
    return 1 / PER_SECOND[unit]


def _decimal(number: float) -> str:
    """Return a literal of a statement, which is a fraction if there is a point in it."""
    text = format(Decimal(repr(float(number))), "f")
    return text if "." in text else f"{text}.0"


def _json_number(number: float) -> str:
    """Return *number* as Go writes it in JSON, between a millionth and 1e21."""
    return str(int(number)) if number == int(number) else format(Decimal(repr(number)), "f")
