# SPDX-License-Identifier: Apache-2.0
"""instruments: each is made once, as the registry says; levels are read when they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from threading import Thread
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from jeeves_otel.instruments import Instruments, Levels, finite, recorded


def _make(instruments: Instruments, name: str) -> Any:
    kind = recorded().instruments[name].kind
    if kind == "histogram":
        return instruments.histogram(name)
    if kind == "counter":
        return instruments.counter(name)
    return instruments.updowncounter(name) if kind == "updowncounter" else instruments.levels(name)


def test_every_instrument_is_exported_with_the_name_unit_text_and_bounds_of_the_registry() -> None:
    """The registry says it once; nothing is spelled out again where it is recorded."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("test"))
    expected = {}
    for name, entry in recorded().instruments.items():
        made = _make(instruments, name)
        if entry.kind == "histogram":
            made.record(1)
        elif isinstance(made, Levels):
            made.set(1, {})
        else:
            made.add(1)
        expected[name] = (entry.unit, entry.brief, tuple(entry.bounds) if entry.kind == "histogram" else None)
    data: Any = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    found = {
        metric.name: (metric.unit, metric.description, getattr(metric.data.data_points[0], "explicit_bounds", None))
        for metric in metrics
    }
    provider.shutdown()

    assert {name: (u, b, e and tuple(e)) for name, (u, b, e) in found.items()} == expected


def test_concurrent_first_uses_make_one_instrument() -> None:
    """The SDK warns about twins, and their points would be two streams."""
    made: list[str] = []

    class Meter:
        def create_histogram(self, name: str, *_: Any, **__: Any) -> object:
            made.append(name)
            return object()

    instruments = Instruments(Meter())  # type: ignore[arg-type]  # what is used of a meter
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: id(instruments.histogram("jeeves.agent.duration")), range(100)))

    assert (len(found), made) == (1, ["jeeves.agent.duration"])


def test_an_instrument_is_made_while_another_is_being_made() -> None:
    """A signal handler of the application records, in the thread whose first measurement it has interrupted."""
    made: list[str] = []

    class Meter:
        def create_counter(self, name: str, *_: str) -> str:
            if not made:
                made.append(name)
                made.append(str(instruments.histogram("http.server.request.duration")))
            return name

        def create_histogram(self, name: str, *_: str, **__: Any) -> str:
            return name

    instruments = Instruments(Meter())  # type: ignore[arg-type]  # what is used of a meter
    thread = Thread(target=instruments.counter, args=("jeeves.errors",), daemon=True)
    thread.start()
    thread.join(10)

    assert made == ["jeeves.errors", "http.server.request.duration"]


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), (True, 1.0), (0.5, 0.5), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5), (2**70, float(2**70))],
    ids=repr,
)
def test_any_number_is_a_measurement(value: Any, number: float) -> None:
    """What has a finite number in it is recorded; whole numbers too large for OTLP leave as floats."""
    assert (finite(value), type(finite(value))) == (number, type(number))


@pytest.mark.parametrize(
    "value", ["1", b"1", None, [], 1j, float("nan"), float("inf"), 10**400], ids=lambda v: str(v)[:9]
)
def test_what_is_no_finite_number_is_no_measurement(value: object) -> None:
    """Text is not read as a number: it would hide a mistake."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        finite(value)


def test_levels_hold_the_last_value_of_each_attribute_set_up_to_a_limit() -> None:
    """Values replace each other, functions are asked each time, and what is too much is refused."""
    levels = Levels("here")
    numbers = iter([3.0, 4.0])
    levels.set(1, {"a": "x"})
    levels.set(2, {"a": "x"})
    levels.set(lambda: next(numbers), {"a": "y"})
    seen = [[(o.value, o.attributes) for o in levels.observe(CallbackOptions())] for _ in range(2)]

    assert seen == [[(2, {"a": "x"}), (3.0, {"a": "y"})], [(2, {"a": "x"}), (4.0, {"a": "y"})]]
    for number in range(998):
        levels.set(1, {"a": str(number)})
    with pytest.raises(ValueError, match="more than 1000"):
        levels.set(1, {"a": "one more"})
    levels.set(5, {"a": "x"})
