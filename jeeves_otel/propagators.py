# SPDX-License-Identifier: Apache-2.0
"""Make the global propagator: the one that ``OTEL_PROPAGATORS`` names, with only allow-listed baggage, and never broken.

Baggage goes to everybody whom the service calls, model providers included, and comes from anybody who calls it. So only
the keys of ``JEEVES_OTEL_BAGGAGE`` cross the process's border, in both directions.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, propagate
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import Iterable


def install(allowed: Iterable[str]) -> None:
    """Make the global propagator; *allowed* are keys of baggage, ``*`` stands for anything."""
    with failsafe("propagators.install"):
        stock = propagate.get_global_textmap()
        if isinstance(stock, AllowedBaggage):
            return
        # opentelemetry-api 1.45 answers OTEL_PROPAGATORS=none with a composite of nothing, whose extract returns no
        # context at all: every request of an instrumented server then fails. Remove when it returns what it was given.
        working = _NoPropagation() if stock.extract({}) is None else stock
        propagate.set_global_textmap(AllowedBaggage(working, allowed))


class AllowedBaggage(TextMapPropagator):
    """*inner*, without the entries of baggage whose keys are not *allowed*; ``*`` in them stands for anything."""

    def __init__(self, inner: TextMapPropagator, allowed: Iterable[str]) -> None:
        self._inner = inner
        self._allowed = tuple(allowed)

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = default_getter) -> Context:
        """Return *context* with what *carrier* brings; what is not allowed of it has never been there."""
        own = baggage.get_all(context)
        found = self._inner.extract(carrier, context, getter)
        # What was there before is the application's, whatever the inner propagator starts from.
        foreign = [key for key, value in baggage.get_all(found).items() if own.get(key) != value]
        return self._without(found, [key for key in foreign if not self._allows(key)])

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = default_setter) -> None:
        """Write into *carrier* what *context* holds; what is not allowed stays here."""
        held = get_current() if context is None else context
        refused = [key for key in baggage.get_all(held) if not self._allows(key)]
        self._inner.inject(carrier, self._without(held, refused) if refused else context, setter)

    @property
    def fields(self) -> set[str]:
        """The headers that *inner* writes."""
        return self._inner.fields

    def _allows(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self._allowed)

    @staticmethod
    def _without(context: Context, keys: list[str]) -> Context:
        for key in keys:
            context = baggage.remove_baggage(key, context)
        return context


class _NoPropagation(TextMapPropagator):
    """Carry nothing, and give back the context that came in."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return context if context is not None else get_current()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        """Write nothing."""

    @property
    def fields(self) -> set[str]:
        return set()
