# SPDX-License-Identifier: Apache-2.0
"""Write translated metrics as Prometheus text or OpenMetrics.

In: the `MetricsData` of one translated collection. Out: one page. Promised metrics are written as they are; what passed
through unmapped gets the name that the Prometheus compatibility of OpenTelemetry gives it. Pure: nothing is remembered.

Source: Prometheus text format 0.0.4; OpenMetrics 1.0; OpenTelemetry specification 1.50, Prometheus compatibility.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Sum

from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.labels import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics.export import Metric, MetricsData
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9:]+")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")
_UNIT_WORDS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "m": "meters", "V": "volts", "A": "amperes",
    "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius", "Hz": "hertz", "%": "percent",
}  # fmt: skip
_NANO = 1_000_000_000


class Unwritable(Exception):
    """A metric has no form in the text formats."""


@dataclass(slots=True)
class _Family:
    """All points of one name, from however many scopes."""

    name: str
    type: str
    help: str
    points: list[tuple[InstrumentationScope, Mapping[str, Any], Any]] = field(default_factory=list)

    @property
    def scope_labels(self) -> tuple[str, ...]:
        """The labels that tell points of several scopes apart."""
        versions = {(scope.name, scope.version) for scope, _, _ in self.points}
        names = {name for name, _ in versions}
        by_name = ("otel_scope_name",) if len(names) > 1 else ()
        return (*by_name, "otel_scope_version") if len(versions) > len(names) else by_name


def render(data: MetricsData, *, openmetrics: bool) -> str:
    """Return the page, families sorted by name, promised labels in promised order."""
    families = _families(data)
    write = _openmetrics_family if openmetrics else _text_family
    lines: list[str] = []
    for name, family in sorted(families.items()):
        with failsafe(f"exposition.{name}"):
            lines += list(write(family))  # the whole family or nothing of it
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def prometheus_name(metric: Metric) -> str:
    """Return the name of a metric in Prometheus: unit word and ``_total`` appended unless they are there."""
    name = metric.name if _NAME.fullmatch(metric.name) else _NOT_IN_NAME.sub("_", metric.name)
    if name[:1].isdigit():
        name = f"_{name}"
    monotonic = isinstance(metric.data, Sum) and metric.data.is_monotonic
    if monotonic:
        name = name.removesuffix("_total")
    word = _unit_word(metric)
    if word and not name.endswith(f"_{word}") and name != word:
        name = f"{name}_{word}"
    return f"{name}_total" if monotonic else name


def _unit_word(metric: Metric) -> str:
    unit = _ANNOTATION.sub("", metric.unit or "").strip()
    if unit == "1":
        return "ratio" if isinstance(metric.data, Gauge) else ""
    per, slash, each = unit.partition("/")
    if slash and each:
        word = f"{_UNIT_WORDS.get(per, per)}_per_{_UNIT_WORDS.get(each, each).removesuffix('s')}"
        return _NOT_IN_NAME.sub("_", word).strip("_")
    return _NOT_IN_NAME.sub("_", _UNIT_WORDS.get(unit, unit)).strip("_")


def _families(data: MetricsData) -> dict[str, _Family]:
    families: dict[str, _Family] = {}
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                try:
                    _add_metric(families, metric, scope.scope)
                except Unwritable as error:
                    swallow(f"exposition.{metric.name}", error)
    return families


def _add_metric(families: dict[str, _Family], metric: Metric, scope: InstrumentationScope) -> None:
    name, kind = prometheus_name(metric), _type_of(metric)
    family = families.setdefault(name, _Family(name, kind, metric.description or ""))
    if family.type != kind:
        raise Unwritable(f"{metric.name} is a {kind}, but {name} is a {family.type} already")
    family.points += [(scope, point.attributes or {}, point) for point in metric.data.data_points]


def _type_of(metric: Metric) -> str:
    data = metric.data
    if getattr(data, "aggregation_temporality", None) is AggregationTemporality.DELTA:
        raise Unwritable(f"{metric.name} has delta temporality, and a scrape needs totals")
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "gauge"
    if isinstance(data, Gauge):
        return "gauge"
    if isinstance(data, Histogram):
        return "histogram"
    raise Unwritable(f"{metric.name} is an exponential histogram")


# ---- families into lines ---------------------------------------------------------------------------------------------


def _text_family(family: _Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escape_help(family.help)}"
    yield f"# TYPE {family.name} {family.type}"
    for labels, point in _labelled(family):
        if family.type == "histogram":
            for line, _ in _histogram_lines(family.name, labels, point):
                yield line
        else:
            yield f"{family.name}{_braces(labels)} {_number(point.value)}"


def _openmetrics_family(family: _Family) -> Iterator[str]:
    # OpenMetrics names the family of a counter without the suffix of its sample.
    name = family.name.removesuffix("_total") if family.type == "counter" else family.name
    yield f"# HELP {name} {_escape_help(family.help)}"
    yield f"# TYPE {name} {family.type}"
    for labels, point in _labelled(family):
        if family.type == "histogram":
            for line, exemplar in _histogram_lines(family.name, labels, point):
                yield line + _exemplar_text(exemplar)
        else:
            newest = _newest(point.exemplars) if family.type == "counter" else None
            yield f"{family.name}{_braces(labels)} {_number(point.value)}{_exemplar_text(newest)}"
        if family.type != "gauge":
            yield f"{name}_created{_braces(labels)} {_number(point.start_time_unix_nano / _NANO)}"


def _histogram_lines(name: str, labels: str, point: Any) -> Iterator[tuple[str, Exemplar | None]]:
    """Yield the lines of one histogram series, each with the newest exemplar that falls into its bucket."""
    exemplars = _by_bucket(point.exemplars, point.explicit_bounds)
    prefix = f'{name}_bucket{{{labels}{"," if labels else ""}le="'
    cumulative = 0
    for index, count in enumerate(point.bucket_counts):
        cumulative += count
        bound = _number(point.explicit_bounds[index]) if index < len(point.explicit_bounds) else "+Inf"
        yield f'{prefix}{bound}"}} {_number(cumulative)}', exemplars.get(index)
    yield f"{name}_count{_braces(labels)} {_number(point.count)}", None
    yield f"{name}_sum{_braces(labels)} {_number(point.sum)}", None


def _by_bucket(exemplars: Sequence[Exemplar], bounds: Sequence[float]) -> dict[int, Exemplar]:
    found: dict[int, Exemplar] = {}
    for exemplar in sorted(exemplars, key=lambda each: each.time_unix_nano):
        found[bucket_index(exemplar.value, bounds)] = exemplar
    return found


def bucket_index(value: float, bounds: Sequence[float]) -> int:
    """Return the index of the bucket that *value* falls into; upper bounds are inclusive."""
    return next((index for index, bound in enumerate(bounds) if value <= bound), len(bounds))


def _newest(exemplars: Iterable[Exemplar]) -> Exemplar | None:
    return max(exemplars, key=lambda exemplar: exemplar.time_unix_nano, default=None)


def _labelled(family: _Family) -> Iterator[tuple[str, Any]]:
    """Yield ``(label text, point)``; the scope tells points of several scopes apart, and no series stands twice."""
    scope_labels = family.scope_labels
    seen: set[str] = set()
    for scope, attributes, point in family.points:
        pairs = _label_pairs(attributes, family.type)
        of_scope = {"otel_scope_name": scope.name, "otel_scope_version": scope.version or ""}
        pairs.update((label, text_of(of_scope[label])) for label in scope_labels)
        labels = ",".join(f'{key}="{_escape(value)}"' for key, value in pairs.items())
        if labels in seen:
            swallow(f"exposition.{family.name}", Unwritable("two points have the same labels"))
            continue
        seen.add(labels)
        yield labels, point


def _label_pairs(attributes: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return label names and values; values of attributes that get the same name stand together, ``a;b``.

    Source: OpenTelemetry specification 1.50, Prometheus compatibility, metric attributes.
    """
    if all(_LABEL.fullmatch(key) for key in attributes) and not (kind == "histogram" and "le" in attributes):
        return {key: text_of(value) for key, value in attributes.items()}
    pairs: dict[str, str] = {}
    for key, value in sorted(attributes.items()):
        name = _label_name(key, kind)
        pairs[name] = f"{pairs[name]};{text_of(value)}" if name in pairs else text_of(value)
    return pairs


def _label_name(key: str, kind: str) -> str:
    name = key if _LABEL.fullmatch(key) else _NOT_IN_LABEL.sub("_", key)
    # A bucket has the label le already, and a second one would make the whole page unreadable.
    return f"key_{name}" if name[:1].isdigit() or (kind == "histogram" and name == "le") else name


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    """Return a number as Prometheus's Python client writes it: always as a float."""
    value = float(value)
    if value == float("inf"):
        return "+Inf"
    if value == float("-inf"):
        return "-Inf"
    return "NaN" if value != value else repr(value)  # noqa: PLR0124 - the definition of NaN


def _exemplar_text(exemplar: Exemplar | None) -> str:
    if exemplar is None or exemplar.trace_id is None or exemplar.span_id is None:
        return ""
    ids = f'trace_id="{exemplar.trace_id:032x}",span_id="{exemplar.span_id:016x}"'
    return f" # {{{ids}}} {_number(exemplar.value)} {exemplar.time_unix_nano / _NANO:.3f}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text_of(text).replace("\\", "\\\\").replace("\n", "\\n")
