# SPDX-License-Identifier: Apache-2.0
"""Bound an attribute value to the first *n* values seen plus ``other``.

In: attribute values as they are recorded. Out: the same values, or ``other`` once the limit is reached. A value that
was admitted keeps its name for the life of the process, whichever instrument it comes through, so that families can be
joined on it.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from jeeves_otel.registry import DEFAULT_LIMIT, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jeeves_otel.registry import Label, Registry


class Bound:
    """The values of one attribute: at most *limit* by name, all others are ``other``.

    ``admitted`` may be asked without a lock; `admit` decides, once per new value, under one.
    Safe from several threads.

    Args:
        attribute: Key of the attribute, for the overflow count.
        limit: How many values keep their name, >= 0; declared ones come on top.
        declared: Values that keep their name whatever comes.
    """

    __slots__ = ("_lock", "_room", "admitted", "attribute", "overflowed")

    def __init__(self, attribute: str, limit: int, declared: Iterable[object] = ()) -> None:
        self.attribute = attribute
        self.admitted: set[object] = {OTHER, *declared}
        self.overflowed = 0
        self._room = limit
        self._lock = Lock()

    def admit(self, value: object) -> object:
        """Return *value* if it may keep its name, else ``other``, and count that.

        Raises:
            TypeError: *value* cannot be hashed, so it could not be an attribute value either.
        """
        if value in self.admitted:
            return value
        with self._lock:
            if value in self.admitted:
                return value
            if self._room > 0:
                self._room -= 1
                self.admitted.add(value)
                return value
            self.overflowed += 1
        return OTHER


class Bounds:
    """The bounds of all attributes that the registry reads, shared by all instruments.

    Args:
        registry: Its labels and conditions say which attributes are bounded, to how many values, and which always keep
            their names.
        declared: Label sets that the user declared; their values are admitted from the start.
    """

    def __init__(self, registry: Registry, declared: Iterable[Mapping[str, str]] = ()) -> None:
        self._limits: dict[str, int] = {}
        self._values: dict[str, set[object]] = {}
        self._joint: dict[tuple[str, ...], Bound] = {}
        declared = list(declared)
        for metric in registry.metrics.values():
            for label in metric.labels:
                known = {labels[label.name] for labels in declared if label.name in labels}
                limit = label.limit if label.is_open else DEFAULT_LIMIT
                for template in label.templates:
                    # Only a bare key has the label's values for its own.
                    values = _meaningful(label, known) if len(template.parts) == 1 else set()
                    self._extend(registry, template.keys, limit, values)
                    if len(template.keys) > 1:
                        self._joint[template.keys] = Bound(template.keys[-1], limit, [(OTHER,) * len(template.keys)])
            for source in metric.sources:
                for key, accepted in source.conditions.items():
                    self._extend(registry, [key], DEFAULT_LIMIT, {text for text in accepted if text is not None})
        for instrument in registry.instruments.values():
            # Kept where the conventions' names leave too, and then as many as values come.
            unread = [key for key in instrument.attributes if key not in self._limits]
            self._extend(registry, unread, DEFAULT_LIMIT, set())
        self._bounds = {key: Bound(key, limit, self._values[key]) for key, limit in self._limits.items()}

    def _extend(self, registry: Registry, keys: Iterable[str], limit: int, values: set[str]) -> None:
        """Bound *keys*, in all their spellings, to *limit* values or more, and admit *values*, numbers as such too."""
        numbers = {int(text) for text in values if text.isdecimal()}
        for key in (spelling for name in keys for spelling in registry.spelled(name)):
            self._limits[key] = max(self._limits.get(key, 0), limit)
            self._values.setdefault(key, set()).update(values, numbers)

    def of(self, attributes: Iterable[str]) -> tuple[tuple[str, Bound], ...]:
        """Return ``(key, bound)`` for those of *attributes* that are bounded."""
        return tuple((key, self._bounds[key]) for key in attributes if key in self._bounds)

    def joint(self, attributes: Iterable[str]) -> tuple[tuple[tuple[str, ...], Bound], ...]:
        """Return ``(keys, bound)`` for those keys that make one label together, if all are among *attributes*.

        Their bound is on the tuple of their values, because *n* services with *n* methods each are *n*² methods.
        """
        known = set(attributes)
        return tuple((keys, bound) for keys, bound in self._joint.items() if known.issuperset(keys))

    def overflowed(self) -> dict[str, int]:
        """Return ``{attribute: measurements that lost its value}``, without zeros."""
        counts: dict[str, int] = {}
        for bound in (*self._bounds.values(), *self._joint.values()):
            if bound.overflowed:
                counts[bound.attribute] = counts.get(bound.attribute, 0) + bound.overflowed
        return counts


def _meaningful(label: Label, declared: Iterable[str]) -> set[str]:
    """Return the attribute values that *label* tells apart; a flood of others must not take their places."""
    values = {*label.known, *label.values, *label.value_map, *declared}
    if label.fold:
        values |= {folded for value in values for folded in (value.lower(), value.upper(), value.capitalize())}
    return values
