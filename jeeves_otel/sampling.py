# SPDX-License-Identifier: Apache-2.0
"""Choose the head sampler from settings.

In: the name and argument of ``OTEL_TRACES_SAMPLER``. Out: a sampler of the SDK, or one that an installed package brings.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)

from jeeves_otel.documents import did_you_mean
from jeeves_otel.inbound import is_excluded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

DEFAULT_RATIO = 0.1

_SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda _: ParentBased(ALWAYS_ON),
    "parentbased_always_off": lambda _: ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: ParentBased(TraceIdRatioBased(ratio)),
}


class SamplerUnknown(ValueError):
    """The sampler or its argument does not exist; the message says what does."""


def default_sampler() -> Sampler:
    """Return the sampler where nothing is set: a tenth of the traces that begin here, and what the caller sampled."""
    return ParentBased(TraceIdRatioBased(DEFAULT_RATIO))


def sampler_from(name: str, argument: str | None) -> Sampler:
    """Return the sampler *name* with *argument* (a ratio, 0..1, for the ratio samplers; default 0.1).

    Raises:
        SamplerUnknown: There is no such sampler, or the argument is not a ratio.
    """
    standard = name.lower()
    if standard in _SAMPLERS:
        return _SAMPLERS[standard](_ratio(argument) if standard.endswith("traceidratio") else 0.0)
    for entry in entry_points(group="opentelemetry_traces_sampler", name=name):
        sampler: Sampler = entry.load()(argument)
        return sampler
    raise SamplerUnknown(f"OTEL_TRACES_SAMPLER={name} is not a sampler ({did_you_mean(name, _SAMPLERS)})")


class WithoutExcluded(Sampler):
    """Keep no span of a request that is excluded, whatever its caller has sampled; ask *inner* about all others."""

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler`."""
        sampler = ALWAYS_OFF if is_excluded(parent_context) else self._inner
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """See `Sampler`."""
        return self._inner.get_description()


def describe_sampler(sampler: Sampler) -> str:
    """Return what the sampler keeps, in a few words."""
    root = getattr(sampler, "_root", sampler)
    if isinstance(root, TraceIdRatioBased):
        return f"{root.rate * 100:g} % sampled"
    if root in {ALWAYS_ON, ALWAYS_OFF}:
        return "all sampled" if root is ALWAYS_ON else "none sampled"
    return sampler.get_description()


def _ratio(argument: str | None) -> float:
    if argument is None:
        return DEFAULT_RATIO
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise SamplerUnknown(f"OTEL_TRACES_SAMPLER_ARG={argument} is not a ratio from 0 to 1")
    return ratio
