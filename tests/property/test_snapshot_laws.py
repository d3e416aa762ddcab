# SPDX-License-Identifier: Apache-2.0
"""Laws of snapshots: nothing that a page shows is lost on the way, and adding up does not depend on how it is done."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, strategies as st
from opentelemetry.sdk.metrics.export import Metric, MetricsData, NumberDataPoint, ScopeMetrics, Sum
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from jeeves_otel.exposition import render
from jeeves_otel.registry import load
from jeeves_otel.snapshots import decode, encode, merged, retired
from jeeves_otel.translation import Translator
from tests.helpers import samples_of
from tests.property import LAWS
from tests.property.strategies import CUMULATIVE, REGISTRY, collection, collections

if TYPE_CHECKING:
    from tests.helpers import Samples

MERGES = {metric.name: metric.merge for metric in REGISTRY.metrics.values() if metric.type == "gauge"}
TRANSLATE = Translator(load(("jeeves",)), keep_unmapped=False, started_unix_nano=500)

_pages = collections().map(TRANSLATE)
_amounts = st.lists(st.floats(0, 1e300, allow_nan=False), min_size=1, max_size=3)


def _samples(data: MetricsData) -> Samples:
    return samples_of(render(data, openmetrics=False))


def _total(value: float) -> MetricsData:
    """Return what a process has that counted *value* of something."""
    metric = Metric("c", "", "", Sum([NumberDataPoint({}, 1, 2, value)], CUMULATIVE, is_monotonic=True))
    return collection([ScopeMetrics(InstrumentationScope("s"), [metric], "")])


def _shown(data: MetricsData) -> float:
    return _samples(data)["c_total", ()]


@LAWS
@given(_pages)
def test_page_of_what_was_read_back_is_the_page_of_what_was_written(data: MetricsData) -> None:
    """Bytes keep all that a page shows, in both formats, in the same order."""
    back = decode(encode(data))

    assert render(data, openmetrics=False) == render(back, openmetrics=False)
    assert render(data, openmetrics=True) == render(back, openmetrics=True)


@LAWS
@given(_pages)
def test_page_of_one_process_is_its_own(data: MetricsData) -> None:
    """Where there is nothing to merge, merging changes no sample."""
    assert _samples(data) == _samples(merged([data], [], MERGES))


@LAWS
@given(st.lists(_pages, max_size=4), st.lists(_pages, max_size=3), st.integers(0))
def test_order_of_processes_does_not_matter(live: list[MetricsData], dead: list[MetricsData], seed: int) -> None:
    """Whichever process answers, the samples are the same."""
    expected = _samples(merged(live, dead, MERGES))
    Random(seed).shuffle(live)
    Random(seed).shuffle(dead)

    assert expected == _samples(merged(live, dead, MERGES))


@LAWS
@given(st.lists(_pages, min_size=1, max_size=5), st.integers(0, 5))
def test_grouping_of_processes_does_not_matter(pages: list[MetricsData], split: int) -> None:
    """What is merged may be merged again: the sum of sums is the sum."""
    parts = [part for part in (pages[:split], pages[split:]) if part]

    assert _samples(merged(pages, [], MERGES)) == _samples(
        merged([merged(part, [], MERGES) for part in parts], [], MERGES)
    )


@LAWS
@given(_pages, st.lists(_pages, max_size=4), st.integers(0, 4))
def test_retiring_the_dead_changes_no_sample(live: MetricsData, dead: list[MetricsData], split: int) -> None:
    """In one go or in two, what the dead have counted stays what it was."""
    expected = _samples(merged([live], dead, MERGES))
    once = retired(dead)
    twice = retired([retired(dead[:split]), *dead[split:]])

    assert expected == _samples(merged([live], [decode(encode(once))], MERGES))
    assert expected == _samples(merged([live], [decode(encode(twice))], MERGES))


@LAWS
@given(_amounts, st.lists(_amounts, max_size=4))
def test_sum_of_fractions_never_falls_when_the_dead_are_retired(
    live: list[float], generations: list[list[float]]
) -> None:
    """Generation after generation dies and is retired: the total is never below what it was, and hardly above."""
    alive = [_total(value) for value in live]
    kept: list[MetricsData] = []
    before = _shown(merged(alive, kept, {}))
    everything = list(live)
    for generation in generations:
        everything += generation
        dead = [_total(value) for value in generation]
        with_dead = _shown(merged(alive, [*kept, *dead], {}))
        kept = [retired([*kept, *dead])]
        after = _shown(merged(alive, kept, {}))

        assert before <= with_dead <= after
        assert math.isclose(after, math.fsum(everything), rel_tol=1e-15 * len(everything))
        before = after
