# SPDX-License-Identifier: Apache-2.0
"""Measure the garbage collector of CPython, in this process alone.

In: ``gc.get_stats``, whose totals a forked child inherits. Out: three observed counters that begin at zero in every
process, so that the sum over a parent and its children counts nothing twice.
"""

from __future__ import annotations

import gc
import os
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from jeeves_otel.failsafe import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable

# {instrument: (key of gc.get_stats, unit, description)}; semantic conventions 1.44, CPython runtime
_COUNTERS = {
    "cpython.gc.collections": ("collections", "{collection}", "Runs of the garbage collector."),
    "cpython.gc.collected_objects": ("collected", "{object}", "Objects freed by the garbage collector."),
    "cpython.gc.uncollectable_objects": ("uncollectable", "{object}", "Objects found uncollectable."),
}
_inherited: list[dict[str, int]] = []


def observe_garbage(meter: Meter) -> None:
    """Have *meter* observe collections, collected and uncollectable objects by generation; call it once."""
    for name, (key, unit, description) in _COUNTERS.items():
        meter.create_observable_counter(name, [partial(_observed, key)], unit, description)
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=guarded("fork.garbage", _begin_again))


def _observed(key: str, _: CallbackOptions) -> Iterable[Observation]:
    for generation, stat in enumerate(gc.get_stats()):
        before = _inherited[generation][key] if _inherited else 0
        yield Observation(stat[key] - before, {"cpython.gc.generation": generation})


def _begin_again() -> None:
    _inherited[:] = gc.get_stats()
