# SPDX-License-Identifier: Apache-2.0
"""Create one OpenTelemetry instrument per registry entry, under its semantic-convention name, when it is first used.

In: a meter of opentelemetry-api. Out: instruments with the registry's name, unit, text and bounds. Without an SDK they
are the API's no-ops.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api

from jeeves_otel.registry import Registry, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST_LEVELS = 1_000


@cache
def recorded() -> Registry:
    """Return the registry with the instruments of the package (read once per process)."""
    return load(())


class Levels:
    """The present values of one observed instrument, by attributes; read at each collection.

    Safe from several threads. Holds at most 1,000 attribute sets; what comes after raises and is counted.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[tuple[str, str], ...], float | Callable[[], float]] = {}

    def set(self, value: float | Callable[[], float], **attributes: str) -> None:
        """Set the value for *attributes*: a number, or a function that is asked at each collection.

        Raises:
            ValueError: 1,000 attribute sets are held already.
        """
        key = tuple((name.replace("__", "."), text) for name, text in attributes.items())
        if key not in self._values and len(self._values) >= _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} attribute sets")
        self._values[key] = value

    def observe(self, _: api.CallbackOptions) -> Iterable[api.Observation]:
        """Yield one observation per attribute set."""
        for key, value in list(self._values.items()):
            yield api.Observation(value() if callable(value) else value, dict(key))


class Instruments:
    """The instruments of one meter, made on first use. Safe from several threads.

    Args:
        meter: Where they are made.
    """

    def __init__(self, meter: api.Meter) -> None:
        self._meter = meter
        self._made: dict[str, Any] = {}
        self._lock = Lock()

    def histogram(self, name: str) -> api.Histogram:
        """Return the histogram *name*."""
        return self._get(name, self._make_histogram)

    def counter(self, name: str) -> api.Counter:
        """Return the counter *name*."""
        return self._get(name, lambda name, unit, brief: self._meter.create_counter(name, unit, brief))

    def updowncounter(self, name: str) -> api.UpDownCounter:
        """Return the up-down counter *name*."""
        return self._get(name, lambda name, unit, brief: self._meter.create_up_down_counter(name, unit, brief))

    def levels(self, name: str) -> Levels:
        """Return the observed values behind the gauge or observed up-down counter *name*."""
        return self._get(name, self._make_levels)

    def _get(self, name: str, make: Callable[[str, str, str], Any]) -> Any:
        made = self._made.get(name)
        if made is None:
            with self._lock:
                made = self._made.get(name)
                if made is None:
                    entry = recorded().instruments[name]
                    made = self._made[name] = make(name, entry.unit, entry.brief)
        return made

    def _make_histogram(self, name: str, unit: str, brief: str) -> api.Histogram:
        bounds = recorded().instruments[name].bounds
        return self._meter.create_histogram(name, unit, brief, explicit_bucket_boundaries_advisory=bounds)

    def _make_levels(self, name: str, unit: str, brief: str) -> Levels:
        levels = Levels()
        gauge = recorded().instruments[name].kind == "gauge"
        create = self._meter.create_observable_gauge if gauge else self._meter.create_observable_up_down_counter
        create(name, [levels.observe], unit, brief)
        return levels
