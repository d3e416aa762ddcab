# SPDX-License-Identifier: Apache-2.0
"""metering and outlets: instruments outlive the provider behind them, and the first measurement calls for one."""

from __future__ import annotations

import gc
from threading import Event, Lock, Thread
from time import time_ns
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jeeves_otel import failsafe, metering
from jeeves_otel.cardinality import Bounds
from jeeves_otel.metering import MeterProvider
from jeeves_otel.outlets import SpanOutlet
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS = {"counter": "add", "up_down_counter": "add", "histogram": "record", "gauge": "set"}


class Fork:
    """A meter provider in front of one SDK provider after another, as parent and children have them."""

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.firsts = 0
        self._then = on_first
        self.provider = MeterProvider(None, load(), Bounds(load()), on_first=self._first)
        self.reader = InMemoryMetricReader()

    def _first(self) -> None:
        self.firsts += 1
        if self._then is not None:
            self._then()
        self.attach()

    def attach(self) -> None:
        """Attach a provider that has counted nothing."""
        self.reader = InMemoryMetricReader()
        self.provider.attach(SdkMeterProvider([self.reader], shutdown_on_exit=False), Bounds(load()))

    def values(self) -> dict[str, Any]:
        """Return ``{metric: its one value}``."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return {m.name: getattr(m.data.data_points[0], "value", None) or m.data.data_points[0].sum for m in metrics}  # type: ignore[union-attr]


def _instrument(fork: Fork, kind: str) -> Callable[[float], None]:
    instrument = getattr(fork.provider.get_meter("library"), f"create_{kind}")("library.x")
    measure: Callable[[float], None] = getattr(instrument, KINDS[kind])
    return measure


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_measurement_calls_for_a_provider_and_is_counted_there(kind: str) -> None:
    """Whatever the instrument, although nobody holds the meter that made it."""
    fork = Fork()
    measure = _instrument(fork, kind)
    gc.collect()
    assert fork.firsts == 0
    measure(2)
    measure(2)

    assert fork.firsts == 1
    assert fork.values() == {"library.x": 2 if kind == "gauge" else 4}


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_detach_the_next_provider_gets_what_comes_then_and_nothing_from_before(kind: str) -> None:
    """As in a forked child."""
    fork = Fork()
    measure = _instrument(fork, kind)
    measure(5)
    fork.provider.detach()
    measure(1)

    assert fork.firsts == 2
    assert fork.values() == {"library.x": 1}


def test_an_instrument_made_between_two_providers_counts_in_the_second() -> None:
    """Nothing has to exist when it is made."""
    fork = Fork()
    fork.provider.detach()
    measure = _instrument(fork, "counter")
    measure(3)

    assert fork.values() == {"library.x": 3}


def test_callbacks_are_asked_by_every_provider_and_call_for_none() -> None:
    """Observed values exist for whoever collects; a process that observes only has measured nothing."""
    fork = Fork()

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(7)]

    fork.provider.get_meter("library").create_observable_gauge("library.level", [observe])
    gc.collect()
    fork.attach()
    first = fork.values()
    fork.provider.detach()
    fork.attach()

    assert first == fork.values() == {"library.level": 7}
    assert fork.firsts == 0
    assert not fork.provider.measured


def test_what_the_first_measurement_measures_on_its_way_is_dropped() -> None:
    """Opening outputs may run instrumented code, which must not wait for itself."""
    fork = Fork(lambda: nested(1))
    nested = _instrument(fork, "counter")
    outer = _instrument(fork, "histogram")
    outer(2)
    nested(5)

    assert fork.firsts == 1
    assert fork.values()["library.x"] in {2, 5}


def test_a_first_measurement_that_finds_no_provider_ends_in_nothing() -> None:
    """Outputs that cannot be opened are asked for once, and measuring goes on without them."""
    asked: list[int] = []
    provider = MeterProvider(None, load(), Bounds(load()), on_first=lambda: asked.append(1))
    counter = provider.get_meter("library").create_counter("library.x")
    counter.add(1)
    counter.add(1)

    assert [1] == asked


def test_a_measurement_that_is_overtaken_by_the_binding_is_prepared_once() -> None:
    """Its thread has the stand-in and the prepared attributes, while another thread has bound the instrument."""
    fork = Fork()
    counter = fork.provider.get_meter("library").create_counter("library.x")
    stand_in = counter._inner  # type: ignore[attr-defined]
    counter.add(1)
    prepared: list[Any] = []
    counter.bind(counter._inner, lambda *given: prepared.append(given))  # type: ignore[attr-defined]
    stand_in.add(5, {"prepared": "already"})

    assert [] == prepared
    data = fork.reader.get_metrics_data()
    assert data is not None
    points = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert {1: {}, 5: {"prepared": "already"}} == {point.value: dict(point.attributes or {}) for point in points}  # type: ignore[union-attr]


def test_a_meter_that_is_asked_for_again_is_the_first_one_and_takes_no_more_memory() -> None:
    """As in the SDK; what is observed through it twice is observed once, by the first that asked."""
    fork = Fork()
    asked: list[str] = []

    def observing(who: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: (asked.append(who), [Observation(1)])[1]

    for who in ("first", "second"):
        fork.provider.get_meter("library", "1").create_observable_gauge("library.level", [observing(who)])
    fork.attach()
    fork.values()

    assert fork.provider.get_meter("library", "1") is fork.provider.get_meter("library", "1")
    assert ["first"] == asked


def test_every_thread_waits_for_the_first_measurement_and_none_is_lost() -> None:
    """Eight threads measure at once; the provider is there for all of them."""
    fork = Fork()
    measure = _instrument(fork, "counter")
    threads = [Thread(target=lambda: [measure(1) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fork.firsts == 1
    assert fork.values() == {"library.x": 800}


def test_spans_that_began_before_a_detach_are_the_parents() -> None:
    """A child that leaves a block which its parent has entered ends a span that is not its own."""
    firsts: list[int] = []
    outlet = SpanOutlet(lambda: firsts.append(1))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(outlet)
    tracer, exporter = provider.get_tracer("test"), InMemorySpanExporter()
    parents = tracer.start_span("parents")
    outlet.detach(Resource({"service.instance.id": "the child's"}))
    outlet.attach([SimpleSpanProcessor(exporter)])
    parents.end()
    tracer.start_span("own").end()

    assert ["own"] == [span.name for span in exporter.get_finished_spans()]
    assert [1] == firsts


def test_spans_that_are_said_to_have_begun_before_a_detach_are_ones_own() -> None:
    """A job that was queued before the fork, and whose time in the queue is part of its span."""
    outlet = SpanOutlet(lambda: None)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(outlet)
    tracer, exporter, queued = provider.get_tracer("test"), InMemorySpanExporter(), time_ns()
    outlet.detach(provider.resource)
    outlet.attach([SimpleSpanProcessor(exporter)])
    tracer.start_span("job", start_time=queued).end()

    assert ["job"] == [span.name for span in exporter.get_finished_spans()]


def test_who_opens_and_who_measures_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What opens logs, and a handler of the application measures under its lock: its first measurement is counted as lost."""
    monkeypatch.setattr(metering, "_LONGEST_WAIT_S", 0.05)
    handlers, opening, in_handler = Lock(), Event(), Event()

    def log() -> None:
        opening.set()
        in_handler.wait(10)
        with handlers:
            pass

    fork = Fork(log)
    measure = _instrument(fork, "counter")
    first = Thread(target=measure, args=(2,), daemon=True)
    before = failsafe.counts().get("outputs.open", 0)
    with handlers:
        first.start()
        opening.wait(10)
        in_handler.set()
        measure(3)
    first.join(10)

    assert fork.values() == {"library.x": 2}
    assert failsafe.counts()["outputs.open"] == before + 1
