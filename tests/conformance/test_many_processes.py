# SPDX-License-Identifier: Apache-2.0
"""The page of many processes equals what one process with hand-written metrics gives for the events of all."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from jeeves_otel import recording
from jeeves_otel.exposition import render
from jeeves_otel.snapshots import decode, encode, merged, retired
from tests.conformance.events import Clock, Twin
from tests.conformance.oracle import Oracle, assert_same_samples, promised_samples
from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.helpers import Pipeline, Samples

MERGED = {"jeeves_health_status": min}


class Shared(Oracle):
    """Hand-written metrics of one process, which tells another what adds up."""

    def __init__(self, everybody: Oracle) -> None:
        super().__init__()
        self._everybody = everybody

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter, here and there."""
        super().add(name, amount, **labels)
        self._everybody.add(name, amount, **labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Observe a value, here and there."""
        super().observe(name, value, **labels)
        self._everybody.observe(name, value, **labels)


def _gauges(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0] in facts() and facts()[key[0]].type == "gauge"}


def test_page_of_many_processes_equals_hand_written_metrics(
    make_pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five processes play 500 events each; three of them have died, two of those are retired."""
    clock, everybody = Clock.installed(monkeypatch), Oracle()
    snapshots, oracles = [], []
    for seed in range(5):
        pipeline = make_pipeline()
        oracles.append(Shared(everybody))
        Twin(pipeline, oracles[-1], Random(seed), clock).play(500)
        snapshots.append(decode(encode(pipeline.collector.collect())))
    recording.bind()
    merges = {metric.name: metric.merge for metric in pipeline.registry.metrics.values() if metric.type == "gauge"}
    expected = everybody.samples()
    for key in set(_gauges(oracles[0].samples())) | set(_gauges(oracles[1].samples())):
        of_living = [oracle.samples()[key] for oracle in oracles[:2] if key in oracle.samples()]
        expected[key] = MERGED.get(key[0], sum)(of_living)
    whole = merged(snapshots[:2], [snapshots[2], retired(snapshots[3:])], merges)

    assert_same_samples(expected, promised_samples(render(whole, openmetrics=False)))
