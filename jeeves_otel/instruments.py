# SPDX-License-Identifier: Apache-2.0
"""Create one OpenTelemetry instrument per registry entry, under its semantic-convention name, when it is first used.

In: a meter of opentelemetry-api. Out: instruments with the registry's name, unit, text and bounds. Without an SDK they
are the API's no-ops.
"""

from __future__ import annotations

import os
from functools import cache
from math import isfinite
from threading import RLock
from typing import TYPE_CHECKING, Any, SupportsFloat

from opentelemetry import metrics as api

from jeeves_otel.failsafe import failsafe
from jeeves_otel.registry import Registry, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    LevelSource = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]

_MOST_LEVELS = 1_000
_MOST_INT = 2**53  # what a float holds exactly; Prometheus knows no other numbers


# One for all, because instruments are made once. Reentrant: a signal handler of the application may record while this
# thread makes one.
_lock = RLock()


def _unlock_child() -> None:
    # Another thread of the parent may have held the lock when it forked; nobody would ever release it here.
    global _lock  # noqa: PLW0603 - the lock guards what this module makes
    _lock = RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_unlock_child)


@cache
def recorded() -> Registry:
    """Return the registry with the instruments of the package (read once per process)."""
    return load(())


def finite(value: object) -> float:
    """Return *value* as a number that every exporter can send.

    Raises:
        TypeError: *value* is not a number.
        ValueError: *value* is not finite.
    """
    if type(value) is int and -_MOST_INT <= value <= _MOST_INT:
        return value
    if not isinstance(value, SupportsFloat):  # not text, which float() would read
        raise TypeError("a measurement is a number")
    number = float(value)  # whole numbers that OTLP has no room for, too
    if not isfinite(number):
        raise ValueError("a measurement is a finite number")
    return number


class Levels:
    """The present values of one observed instrument, by attributes; read at each collection.

    Safe from several threads. Holds at most 1,000 attribute sets; what comes after raises and is counted.

    Args:
        site: Against which a function that fails is counted.
    """

    def __init__(self, site: str) -> None:
        self._guard = failsafe(site)
        self._values: dict[tuple[tuple[str, str], ...], float | Callable[[], float]] = {}
        self._sources: list[LevelSource] = []

    def set(self, value: float | Callable[[], float], attributes: Mapping[str, str]) -> None:
        """Set the value for *attributes*: a number, or a function that is asked at each collection.

        Raises:
            ValueError: *value* is not finite, or 1,000 attribute sets are held already.
            TypeError: *value* is neither a number nor a function.
        """
        key = tuple(attributes.items())
        if key not in self._values and len(self._values) >= _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} attribute sets")
        self._values[key] = value if callable(value) else finite(value)

    def watch(self, source: LevelSource) -> None:
        """Ask *source* at each collection for ``(value, attributes)`` of whatever exists then."""
        self._sources.append(source)

    def observe(self, _: api.CallbackOptions) -> Iterable[api.Observation]:
        """Yield one observation per attribute set; a function that fails takes only its own along."""
        for key, value in list(self._values.items()):
            present = None
            with self._guard:
                present = finite(value()) if callable(value) else value
            if present is not None:
                yield api.Observation(present, dict(key))
        for source in self._sources:
            with self._guard:
                for number, attributes in source():
                    yield api.Observation(finite(number), attributes)


class Instruments:
    """The instruments of one meter, made on first use. Safe from several threads.

    Args:
        meter: Where they are made.
    """

    def __init__(self, meter: api.Meter) -> None:
        self._meter = meter
        self._made: dict[str, Any] = {}

    def histogram(self, name: str) -> api.Histogram:
        """Return the histogram *name*."""
        made: api.Histogram = self._get(name, self._make_histogram)
        return made

    def counter(self, name: str) -> api.Counter:
        """Return the counter *name*."""
        made: api.Counter = self._get(name, self._meter.create_counter)
        return made

    def updowncounter(self, name: str) -> api.UpDownCounter:
        """Return the up-down counter *name*."""
        made: api.UpDownCounter = self._get(name, self._meter.create_up_down_counter)
        return made

    def levels(self, name: str) -> Levels:
        """Return the observed values behind the gauge or observed up-down counter *name*."""
        made: Levels = self._get(name, self._make_levels)
        return made

    def _get(self, name: str, make: Callable[[str, str, str], Any]) -> Any:
        made = self._made.get(name)
        if made is None:
            with _lock:
                made = self._made.get(name)
                if made is None:
                    entry = recorded().instruments[name]
                    made = self._made[name] = make(name, entry.unit, entry.brief)
        return made

    def _make_histogram(self, name: str, unit: str, brief: str) -> api.Histogram:
        bounds = recorded().instruments[name].bounds
        return self._meter.create_histogram(name, unit, brief, explicit_bucket_boundaries_advisory=bounds)

    def _make_levels(self, name: str, unit: str, brief: str) -> Levels:
        levels = Levels(f"callback.{name}")
        gauge = recorded().instruments[name].kind == "gauge"
        create = self._meter.create_observable_gauge if gauge else self._meter.create_observable_up_down_counter
        create(name, [levels.observe], unit, brief)
        return levels
