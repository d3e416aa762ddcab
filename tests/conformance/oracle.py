# SPDX-License-Identifier: Apache-2.0
"""The oracle: hand-written prometheus_client metrics, made from the tests' own facts and fed by hand."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import Histogram
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram as ClientHistogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.sdk.metrics.export import MetricsData

    from tests.contract import Fact
    from tests.helpers import Samples

_MAKERS = {"counter": Counter, "gauge": Gauge}


class Oracle:
    """What a service with hand-written metrics would expose. A family appears when it is first recorded.

    A counter whose labels are marked shows 0 for all their values as soon as one combination of the others is seen,
    which is from the start where there are no others.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._facts = facts()
        self._made: dict[str, Any] = {}
        for fact in self._facts.values():
            if fact.zero and set(fact.zero) == set(fact.labels):
                self._fill_zeros(fact, {})

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        fact = self._facts[name]
        if fact.zero:
            self._fill_zeros(fact, labels)
        self._series(fact, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Observe a value in a histogram."""
        self._series(self._facts[name], labels).observe(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._series(self._facts[name], labels).set(value)

    def shift(self, name: str, amount: float) -> None:
        """Move a gauge without labels."""
        self._series(self._facts[name], {}).inc(amount)

    def samples(self) -> Samples:
        """Return ``{(sample name, sorted labels): value}`` as a scraper would parse it, without ``_created``."""
        return promised_samples(generate_latest(self.registry).decode())

    def _fill_zeros(self, fact: Fact, labels: dict[str, str]) -> None:
        choices = [fact.start_values(label) or (labels[label],) for label in fact.labels]
        for values in product(*choices):
            self._series(fact, dict(zip(fact.labels, values, strict=True))).inc(0)

    def _series(self, fact: Fact, labels: dict[str, str]) -> Any:
        made = self._made.get(fact.name)
        if made is None:
            made = self._made[fact.name] = self._make(fact)
        return made.labels(**labels) if labels else made

    def _make(self, fact: Fact) -> Any:
        if fact.type == "histogram":
            return ClientHistogram(
                fact.name, "By hand.", list(fact.labels), buckets=fact.buckets, registry=self.registry
            )
        return _MAKERS[fact.type](fact.name, "By hand.", list(fact.labels), registry=self.registry)


def promised_samples(page: str) -> Samples:
    """Parse a page of Prometheus text and keep the promised families; a sample that stands twice is an error."""
    promised = facts()
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        if (f"{family.name}_total" if family.type == "counter" else family.name) in promised:
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found, f"{key} stands twice"
                found[key] = sample.value
    return found


def samples_of_data(collections: Iterable[MetricsData]) -> Samples:
    """Return the samples that Prometheus would have after receiving *collections*; what is delta adds up."""
    promised = facts()
    found: Samples = {}
    for data in collections:
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name in promised:
                        _add_metric(found, metric)
    return found


def _add_metric(found: Samples, metric: Any) -> None:
    delta = getattr(metric.data, "aggregation_temporality", None)
    adding = delta is not None and delta.name == "DELTA"

    def put(name: str, labels: dict[str, str], value: float) -> None:
        key = (name, tuple(sorted(labels.items())))
        found[key] = found.get(key, 0) + value if adding else value

    for point in metric.data.data_points:
        labels = dict(point.attributes)
        if not isinstance(metric.data, Histogram):
            put(metric.name, labels, point.value)
            continue
        cumulative = 0
        for bound, count in zip((*point.explicit_bounds, math.inf), point.bucket_counts, strict=True):
            cumulative += count
            le = "+Inf" if bound == math.inf else repr(float(bound))
            put(f"{metric.name}_bucket", {**labels, "le": le}, cumulative)
        put(f"{metric.name}_count", labels, point.count)
        put(f"{metric.name}_sum", labels, point.sum)


def assert_same_samples(expected: Samples, actual: Samples) -> None:
    """Fail unless both hold the same samples: sums to 1e-9 relative, all else exactly."""
    missing = sorted(expected.keys() - actual.keys())
    extra = sorted(actual.keys() - expected.keys())
    different = {
        key: (value, actual[key])
        for key, value in expected.items()
        if key in actual and not _same(key[0], value, actual[key])
    }

    assert not (missing or extra or different), (
        f"missing {missing[:10]}, extra {extra[:10]}, (expected, actual) {list(different.items())[:10]}"
    )


def _same(name: str, expected: float, actual: float) -> bool:
    if name.endswith("_sum") or name == "process_cpu_seconds_total":
        return math.isclose(expected, actual, rel_tol=1e-9, abs_tol=1e-12)
    return expected == actual
