# SPDX-License-Identifier: Apache-2.0
"""Build the SDK views: buckets and attribute allow-list of every instrument that the registry knows.

In: the registry. Out: one `View` per spelling of an instrument. Its buckets are the union of what the promised metrics
need, so that translation only ever merges buckets, and its attributes are what the views read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from jeeves_otel.registry import PER_SECOND

if TYPE_CHECKING:
    from jeeves_otel.registry import Form, Instrument, Registry


def sdk_views(registry: Registry, *, keep_semconv: bool) -> list[View]:
    """Return the views for the SDK's meter provider.

    Args:
        registry: What is promised and recorded.
        keep_semconv: Whether the conventions' own attributes and bounds are kept too, because their names leave as well.
    """
    needed = needed_attributes(registry)
    views = []
    for instrument in registry.instruments.values():
        if instrument.name not in needed:
            continue
        bounds = _bounds(instrument, registry, keep_semconv=keep_semconv)
        for form in (form for generation in instrument.generations for form in generation):
            keys = set(needed[instrument.name])
            if keep_semconv:
                keys |= {spelling for name in instrument.attributes for spelling in registry.spelled(name)}
            views.append(_view(form, keys, bounds, instrument.unit))
    return views


def needed_attributes(registry: Registry) -> dict[str, set[str]]:
    """Return ``{instrument: attribute keys that some promised metric reads}``, all spellings included."""
    needed: dict[str, set[str]] = {}
    for metric in registry.metrics.values():
        for source in metric.sources:
            keys = [key for label in metric.labels for template in label.templates for key in template.keys]
            spelled = {spelling for key in (*keys, *source.conditions) for spelling in registry.spelled(key)}
            needed.setdefault(source.instrument, set()).update(spelled)
    return needed


def _bounds(instrument: Instrument, registry: Registry, *, keep_semconv: bool) -> list[float]:
    return sorted({*registry.bounds_needed(instrument.name), *(instrument.bounds if keep_semconv else ())})


def _view(form: Form, keys: set[str], bounds: list[float], unit: str) -> View:
    if form.kind != "histogram":
        return View(instrument_name=form.name, attribute_keys=keys)
    spelled = [bound * PER_SECOND.get(form.unit, 1) / PER_SECOND.get(unit, 1) for bound in bounds]
    aggregation = ExplicitBucketHistogramAggregation(boundaries=spelled)
    return View(instrument_name=form.name, attribute_keys=keys, aggregation=aggregation)
