# SPDX-License-Identifier: Apache-2.0
"""Judge a registry and return findings: names, units, buckets, labels, sources.

In: a `Registry` whose shape is right. Out: every finding at once, in file order, each with place and way out. One
function per rule, so that a rule can be read, tested and named on its own.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from jeeves_otel.documents import Finding, Level, Place, did_you_mean
from jeeves_otel.registry import OTHER, Registry, RegistryError, examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jeeves_otel.registry import Instrument, Label, Metric, Source

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_UNIT_SUFFIX = {"s": "_seconds", "By": "_bytes"}
_RESERVED_LABELS = {"le", "quantile"}
_TARGET_LABELS = {"job", "instance", "service", "component", "cluster", "environment"}
_TAKES_OF_TYPE = {"counter": ("count", "sum", "value"), "gauge": ("value",), "histogram": ("histogram",)}
_KINDS_OF_TAKE = {
    "count": ("histogram",),
    "sum": ("histogram",),
    "histogram": ("histogram",),
    "value": ("counter", "updowncounter", "gauge"),
}


def load_checked(profiles: Iterable[str]) -> Registry:
    """Return the registry with *profiles*, read and judged.

    Raises:
        RegistryError: With every finding, advice included, if there is a violation.
    """
    registry, findings = examine_all(profiles)
    if violations(findings):
        raise RegistryError(findings)
    return registry


def examine_all(profiles: Iterable[str]) -> tuple[Registry, list[Finding]]:
    """Return what could be read of *profiles*, and every finding about its shape and its content, in file order."""
    registry, shape = examine(profiles)
    misread = [finding.where for finding in shape]
    # What could not be read is not judged too: one mistake gives one finding.
    content = [finding for finding in judge(registry) if not any(_within(place, finding.where) for place in misread)]
    return registry, sorted([*shape, *content], key=lambda finding: (finding.where.file, finding.where.line))


def _within(misread: Place, judged: Place) -> bool:
    """Return whether *misread* is *judged* itself, or its type, without which no rule of a metric can be asked."""
    return misread.file == judged.file and misread.key in {judged.key, f"{judged.key}.type"}


def judge(registry: Registry) -> list[Finding]:
    """Return every finding about *registry*, violations and advice, in file order."""
    findings: list[Finding] = []
    for instrument in registry.instruments.values():
        findings += _instrument_bounds(instrument)
    for metric in registry.metrics.values():
        for rule in _METRIC_RULES:
            findings += rule(metric, registry)
        for label in metric.labels:
            for label_rule in _LABEL_RULES:
                findings += label_rule(label, metric)
    unique = dict.fromkeys(findings)  # a shared label definition is judged once per metric that uses it
    return sorted(unique, key=lambda finding: (finding.where.file, finding.where.line, finding.id))


def violations(findings: list[Finding]) -> list[Finding]:
    """Return those findings that fail a check."""
    return [finding for finding in findings if finding.level is Level.VIOLATION]


# ---- instruments -----------------------------------------------------------------------------------------------------


def _instrument_bounds(instrument: Instrument) -> Iterator[Finding]:
    if not _ascending(instrument.bounds):
        yield Finding(
            "bucket-order",
            instrument.where,
            f"the bounds of {instrument.name} are not ascending",
            "list each upper bound once, ascending",
        )


# ---- metrics ---------------------------------------------------------------------------------------------------------


def _metric_name(metric: Metric, registry: Registry) -> Iterator[Finding]:  # noqa: ARG001 - one shape for all rules
    if not _NAME.fullmatch(metric.name):
        yield Finding(
            "metric-name",
            metric.where,
            f"`{metric.name}` is not a metric name",
            "use letters, digits and underscores, no digit first",
        )
    if metric.type == "counter" and not metric.name.endswith("_total"):
        yield Finding(
            "counter-suffix",
            metric.where,
            f"the counter {metric.name} does not end in _total",
            f"call it {metric.name}_total: scrapers and remote write append it otherwise",
        )
    if metric.type != "counter" and metric.name.endswith(("_total", "_count", "_sum", "_bucket", "_created")):
        yield Finding(
            "reserved-suffix",
            metric.where,
            f"a {metric.type} cannot end like {metric.name}",
            "drop the suffix; it belongs to counters and to the parts of histograms",
        )


def _metric_unit(metric: Metric, registry: Registry) -> Iterator[Finding]:  # noqa: ARG001 - as above
    stem = metric.name.removesuffix("_total")
    suffix = _UNIT_SUFFIX.get(metric.unit)
    if suffix and not stem.endswith(suffix):
        yield Finding(
            "unit-suffix",
            metric.where,
            f"{metric.name} has unit {metric.unit}, but does not end in {suffix}",
            f"call it {stem}{suffix}…, or remote write will",
        )
    elif not suffix and metric.unit and not re.fullmatch(r"\{[^{}]*\}", metric.unit):
        yield Finding(
            "unit",
            metric.where,
            f"unit `{metric.unit}` would change the exported name",
            "use s, By, an annotation in braces such as '{request}', or ''",
        )


def _metric_help(metric: Metric, registry: Registry) -> Iterator[Finding]:  # noqa: ARG001 - as above
    if not metric.help.strip():
        yield Finding("help", metric.where, f"{metric.name} has no help text", "say in one sentence what is counted")


def _metric_buckets(metric: Metric, registry: Registry) -> Iterator[Finding]:  # noqa: ARG001 - as above
    if metric.type == "histogram" and not metric.buckets:
        yield Finding(
            "buckets-missing",
            metric.where,
            f"the histogram {metric.name} has no buckets",
            "list upper bounds, ascending, without +Inf",
        )
    if metric.type != "histogram" and metric.buckets:
        yield Finding(
            "buckets-unused",
            metric.where,
            f"{metric.name} is a {metric.type} and has no buckets",
            "drop `buckets`, or make it a histogram",
        )
    if not _ascending(metric.buckets):
        wrong = next(
            f"{after:g} comes after {before:g}" for before, after in pairwise(metric.buckets) if after <= before
        )
        yield Finding(
            "bucket-order",
            metric.where,
            f"the buckets of {metric.name} are not ascending: {wrong}",
            "list each upper bound once, ascending",
        )


def _metric_sources(metric: Metric, registry: Registry) -> Iterator[Finding]:
    if not metric.sources:
        yield Finding(
            "source-missing",
            metric.where,
            f"{metric.name} has no source",
            "name an instrument and what to take from it",
        )
    for source in metric.sources:
        instrument = registry.instruments.get(source.instrument)
        if instrument is None and not source.instrument:
            continue  # its absence is a finding already
        if instrument is None:
            hint = did_you_mean(source.instrument, registry.instruments)
            if not hint.startswith("did"):
                hint = "declare it under `instruments:` in this file, or see docs/reference/instruments.md"
            yield Finding("unknown-instrument", source.where, f"there is no instrument `{source.instrument}`", hint)
            continue
        yield from _source_take(metric, source, instrument)
        yield from _source_attributes(metric, source, instrument, registry)


def _source_take(metric: Metric, source: Source, instrument: Instrument) -> Iterator[Finding]:
    if metric.type and source.take and source.take not in _TAKES_OF_TYPE[metric.type]:
        yield Finding(
            "take",
            source.where,
            f"a {metric.type} cannot take the {source.take} of an instrument",
            f"take {' or '.join(_TAKES_OF_TYPE[metric.type])}",
        )
    elif source.take and instrument.kind and instrument.kind not in _KINDS_OF_TAKE[source.take]:
        fitting = [take for take, kinds in _KINDS_OF_TAKE.items() if instrument.kind in kinds]
        yield Finding(
            "take",
            source.where,
            f"{instrument.name} is a {instrument.kind} and has no {source.take}",
            f"take {' or '.join(fitting)}",
        )
    elif metric.type == "counter" and instrument.kind in {"updowncounter", "gauge"}:
        yield Finding(
            "take", source.where, f"{instrument.name} can fall, so {metric.name} cannot be a counter", "make it a gauge"
        )


def _source_attributes(metric: Metric, source: Source, instrument: Instrument, registry: Registry) -> Iterator[Finding]:
    known = {spelling for key in instrument.attributes for spelling in registry.spelled(key)}
    for key in source.conditions:
        if key not in known:
            yield Finding(
                "unknown-attribute",
                source.where,
                f"{instrument.name} is not recorded with `{key}`",
                did_you_mean(key, known),
            )
    for label in metric.labels:
        for key in (key for template in label.templates for key in template.keys if key not in known):
            yield Finding(
                "unknown-attribute",
                label.where,
                f"{instrument.name} is not recorded with `{key}`",
                did_you_mean(key, known),
            )


# ---- labels ----------------------------------------------------------------------------------------------------------


def _label_name(label: Label, metric: Metric) -> Iterator[Finding]:
    if not _LABEL.fullmatch(label.name) or label.name.startswith("__"):
        yield Finding(
            "label-name",
            label.where,
            f"`{label.name}` is not a label name",
            "use letters, digits and underscores, no digit and no __ first",
        )
    if label.name in _RESERVED_LABELS:
        yield Finding(
            "label-name", label.where, f"the label `{label.name}` belongs to Prometheus", "choose another name"
        )
    if label.name in _TARGET_LABELS:
        yield Finding(
            "target-label",
            label.where,
            f"`{label.name}` of {metric.name} is usually a label of the scrape target",
            "choose another name, or scrapes will call it exported_" + label.name,
            Level.ADVICE,
        )


def _label_values(label: Label, metric: Metric) -> Iterator[Finding]:
    if label.absent is None:
        yield Finding(
            "absent-missing",
            label.where,
            f"label {label.name} of {metric.name} has no value where the attribute is absent",
            "add `absent: VALUE`",
        )
    if not label.values:
        if label.limit <= 0:
            yield Finding(
                "label-limit",
                label.where,
                f"label {label.name} admits no values",
                "give `limit` a number from 1 up, or list `values`",
            )
        return
    produced = {"map": set(label.value_map.values()), "present": {label.present} if label.present else set()}
    for key, values in produced.items():
        if stray := sorted(values - set(label.values)):
            yield Finding(
                "label-values",
                label.where,
                f"`{key}` of label {label.name} gives {', '.join(stray)}, which `values` does not list",
                "add it to `values`, or change the mapping",
            )
    if label.unmapped == "keep":
        yield Finding(
            "label-values",
            label.where,
            f"label {label.name} is closed, so it cannot keep what `values` does not list",
            f"leave `unmapped` out (it is `{OTHER}` then) or name a value",
        )


def _label_zero(label: Label, metric: Metric) -> Iterator[Finding]:  # noqa: ARG001 - as above
    if label.zero and not (label.values or label.known):
        yield Finding(
            "zero-values",
            label.where,
            f"label {label.name} is marked zero, but its values are not known",
            "list `values` (closed) or `known` (open)",
        )


_METRIC_RULES: tuple[Callable[[Metric, Registry], Iterator[Finding]], ...] = (
    _metric_name,
    _metric_unit,
    _metric_help,
    _metric_buckets,
    _metric_sources,
)
_LABEL_RULES: tuple[Callable[[Label, Metric], Iterator[Finding]], ...] = (_label_name, _label_values, _label_zero)


def _ascending(bounds: tuple[float, ...]) -> bool:
    return all(before < after for before, after in pairwise(bounds))
