# SPDX-License-Identifier: Apache-2.0
"""Read a scraped page into series, and condense histograms into numbers that a person can read.

In: a page of Prometheus text. Out: ``{(sample name, labels): value}`` and, per histogram series, count, mean and an
estimate of the 95th percentile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]  # name of the sample, labels


@dataclass(frozen=True, slots=True)
class Summary:
    """One histogram series in three numbers, in the unit of the metric; ``beyond`` says that p95 is a lower bound."""

    count: int
    mean: float
    p95: float
    beyond: bool


def parse(page: str) -> dict[Series, float]:
    """Return ``{(sample name, labels): value}``."""
    families = text_string_to_metric_families(page)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(pages: Iterable[Mapping[Series, float]]) -> dict[Series, float]:
    """Return the sums of the series of several processes."""
    sums: dict[Series, float] = {}
    for page in pages:
        for series, value in page.items():
            sums[series] = sums.get(series, 0.0) + value
    return sums


def series_of(samples: dict[Series, float], name: str) -> dict[Labels, float]:
    """Return ``{labels: value}`` of the samples called *name*, in the order of the page."""
    return {labels: value for (sample, labels), value in samples.items() if sample == name}


def summaries(samples: dict[Series, float], name: str) -> dict[Labels, Summary]:
    """Return ``{labels: summary}`` of the histogram *name*."""
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in series_of(samples, f"{name}_bucket").items():
        bound = float(dict(labels)["le"])
        buckets.setdefault(frozenset(pair for pair in labels if pair[0] != "le"), []).append((bound, value))
    found = {}
    for labels, count in series_of(samples, f"{name}_count").items():
        mean = samples[f"{name}_sum", labels] / count if count else 0.0
        p95, beyond = quantile(0.95, sorted(buckets[labels]))
        found[labels] = Summary(int(count), mean, p95, beyond)
    return found


def quantile(share: float, buckets: list[tuple[float, float]]) -> tuple[float, bool]:
    """Estimate a quantile from cumulative buckets, linear within the bucket, as PromQL does.

    Args:
        share: Ratio, 0..1.
        buckets: ``(upper bound, cumulative count)``, ascending, the last bound infinite.

    Returns:
        The estimate, and whether it lies beyond the last finite bound, which then stands for it.

    Source: ``histogram_quantile`` in the Prometheus documentation.
    """
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower, True
            return lower + (bound - lower) * (rank - below) / (count - below), False
        lower, below = bound, count
    return 0.0, False
