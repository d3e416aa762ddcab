# SPDX-License-Identifier: Apache-2.0
"""Compute label values from attributes, as the registry says.

In: a `Label` or the conditions of a `Source`. Out: plain functions of an attribute mapping, compiled once. They are
pure, take any spelling of an attribute, and always answer with text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jeeves_otel.registry import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jeeves_otel.registry import Label, Registry, Source, Template

    Attributes = Mapping[str, Any]

OVERFLOW_KEY = "otel.metric.overflow"


def text_of(value: object) -> str:
    """Return an attribute value as a label value.

    Source: OpenTelemetry specification 1.50, Prometheus compatibility, metric attributes: values that are not text are
    written as JSON.
    """
    if isinstance(value, str):
        # Half a surrogate pair is text to Python, but has no bytes: it would cost the page and the batch it stands in.
        return str.__str__(value) if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str, separators=(",", ":"))


def label_function(label: Label, registry: Registry) -> Callable[[Attributes], str]:
    """Return the function that computes *label* from attributes."""
    read = _reader(label.templates, registry)
    absent = label.absent if label.absent is not None else ""
    folds: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "": str}
    fold = folds[label.fold]
    value_map, present, unmapped, closed = label.value_map, label.present, label.unmapped, frozenset(label.values)

    def compute(attributes: Attributes) -> str:
        value = read(attributes)
        if not value:  # an empty label value means "no such label" to Prometheus, so it counts as absent
            return absent
        if present is not None:
            return present
        folded = fold(value)
        if folded in value_map:
            return value_map[folded]
        if closed and value not in closed:
            return unmapped
        return value if unmapped == "keep" or closed else (value if not value_map else unmapped)

    return compute


def condition_function(
    source: Source, registry: Registry, *, overflow_feeds: bool
) -> Callable[[Attributes], bool] | None:
    """Return the function that says whether a point's attributes feed *source*, or None if every point does.

    Args:
        source: Whose conditions are asked.
        registry: Knows the spellings of attributes.
        overflow_feeds: Whether the SDK's overflow point does, which has lost what the conditions ask for.
    """
    if not source.conditions:
        return None
    tests = [(registry.spelled(key), frozenset(accepted)) for key, accepted in source.conditions.items()]

    def accepts(attributes: Attributes) -> bool:
        if OVERFLOW_KEY in attributes:
            return overflow_feeds
        return all(_first(attributes, keys) in accepted for keys, accepted in tests)

    return accepts


def overflow_labels(labels: tuple[Label, ...]) -> tuple[str, ...]:
    """Return the label values of the SDK's overflow point, which has lost its attributes."""
    return (OTHER,) * len(labels)


def _reader(templates: tuple[Template, ...], registry: Registry) -> Callable[[Attributes], str]:
    compiled = [
        (template, [(literal, registry.spelled(key)) for literal, key in template.parts]) for template in templates
    ]
    if len(compiled) == 1 and compiled[0][0].parts[0][0] == compiled[0][0].tail == "" and len(compiled[0][1]) == 1:
        keys = compiled[0][1][0][1]
        return lambda attributes: _first(attributes, keys) or ""

    def read(attributes: Attributes) -> str:
        for template, parts in compiled:
            values = [_first(attributes, keys) for _, keys in parts]
            if all(values):
                return _joined([literal for literal, _ in parts], [value or "" for value in values]) + template.tail
        return ""

    return read


def _joined(literals: list[str], values: list[str]) -> str:
    text = previous = ""
    for literal, value in zip(literals, values, strict=True):
        if previous and value.startswith(previous + literal):
            # A library between two conventions says the service twice: by itself, and within the full method.
            text, previous = text.removesuffix(previous) + value, value
        else:
            text, previous = text + literal + value, value
    return text


def _first(attributes: Attributes, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = attributes.get(key)
        if value is not None:
            return value if type(value) is str and value.isascii() else text_of(value)
    return None
