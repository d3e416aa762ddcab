# SPDX-License-Identifier: Apache-2.0
"""Stand in front of the SDK's meter provider: bound attribute values, add the layer, swallow and count failures.

In: measurements of any library, through opentelemetry-api. Out: the same measurements to the SDK, with open attribute
values bounded and ``jeeves.llm.layer`` where only the context knows it. This is the one seam behind which another
record path can replace the SDK's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api

from jeeves_otel.content import Content
from jeeves_otel.failsafe import swallow
from jeeves_otel.inbound import inbound_request
from jeeves_otel.instruments import finite
from jeeves_otel.labels import text_of
from jeeves_otel.layers import LAYER, PROVIDER, OpenOperation, opened
from jeeves_otel.llm_providers import PROVIDER_NAME
from jeeves_otel.registry import OTHER
from jeeves_otel.views import needed_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.util.types import Attributes

    from jeeves_otel.cardinality import Bound, Bounds
    from jeeves_otel.llm_providers import LlmProviders
    from jeeves_otel.registry import Registry

    # (attributes, context, amount) → attributes to record
    Prepare = Callable[[Any, "Context | None", float], Any]

_DROP = object()
_INF = float("inf")
_LOWEST = -sys.float_info.max
_OPERATION_NAME = "gen_ai.operation.name"
_INFERENCE = frozenset({"chat", "text_completion", "generate_content"})
_HTTP_SERVER = "http.server."
_OWN_METERS = frozenset({"jeeves_otel"})
_NAME_OF_OPERATION = {"agent": "gen_ai.agent.name", "tool": "gen_ai.tool.name"}


class MeterProvider(api.MeterProvider):
    """A meter provider of opentelemetry-api in front of the SDK's; safe from several threads.

    After `shutdown` it goes on accepting measurements, which the SDK drops.

    Args:
        inner: The SDK's provider, with views and readers.
        registry: Which instruments and attributes are known.
        bounds: The shared bounds of open attribute values.
        content: Which attributes never become labels; default all that hold content.
        llm_providers: Providers of LLM calls by server.
    """

    def __init__(
        self,
        inner: SdkMeterProvider,
        registry: Registry,
        bounds: Bounds,
        content: Content | None = None,
        llm_providers: LlmProviders | None = None,
    ) -> None:
        self._inner = inner
        content = content or Content()
        self._preparers = _preparers(registry, bounds, content, llm_providers)
        self._others = _bounder((), content)
        _ATTRIBUTE_LOG.addFilter(_COUNT_COMPLAINTS)

    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> api.Meter:
        """Return a meter whose instruments bound, mark and never fail."""
        return _Meter(self._inner.get_meter(name, version, schema_url, attributes), self._preparers, self._others)

    def add_metric_reader(self, reader: MetricReader) -> None:
        """Add a reader to the SDK's provider; it sees what is recorded from now on."""
        self._inner.add_metric_reader(reader)

    def remove_metric_reader(self, reader: MetricReader) -> None:
        """Remove a reader from the SDK's provider."""
        self._inner.remove_metric_reader(reader)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and export now; see the SDK's provider."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Collect and export for the last time; see the SDK's provider."""
        self._inner.shutdown(timeout_millis)


class _CountComplaints(logging.Filter):
    """Count what the SDK would write one line about each time: an attribute of a type that it cannot send.

    It replaces the value by its text, or by nothing; the measurement or span is kept either way.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not record.msg.startswith(("Invalid", "invalid")):
            return True
        # The line names a key or a type of the application; neither is formatted, because that may fail in turn.
        swallow("attributes", TypeError(), "a span or a measurement lost an attribute that is no text and no number")
        return False


_ATTRIBUTE_LOG = logging.getLogger("opentelemetry.attributes")
_COUNT_COMPLAINTS = _CountComplaints()


# ---- what happens to the attributes of one measurement ---------------------------------------------------------------


def _preparers(
    registry: Registry, bounds: Bounds, content: Content, llm_providers: LlmProviders | None
) -> dict[str, Prepare]:
    """Return ``{instrument name: function of (attributes, context, amount) that returns the attributes to record}``.

    The function returns ``_DROP`` for a measurement that its operation has recorded already.
    """
    needed = needed_attributes(registry)
    preparers: dict[str, Prepare] = {}
    for instrument in registry.instruments.values():
        keys = {*needed.get(instrument.name, ()), *instrument.attributes}
        keys |= {spelling for key in instrument.attributes for spelling in registry.spelled(key)}
        bounded = _bounder(bounds.of(sorted(keys)), content)
        if joint := bounds.joint(keys):
            bounded = _joint_bounder(bounded, joint)
        if llm_providers and instrument.name.startswith("gen_ai."):
            bounded = _provider_namer(bounded, llm_providers)
        for form in (form for generation in instrument.generations for form in generation):
            if instrument.operation == "llm_call":
                preparers[form.name] = _layered(bounded, instrument.name, timed=instrument.unit == "s")
            elif instrument.operation and form.name != instrument.name:
                preparers[form.name] = _reporting(bounded, instrument.operation)
            else:
                preparers[form.name] = bounded
    return preparers


def _bounder(bounds: tuple[tuple[str, Bound], ...], content: Content) -> Prepare:
    """Bound the attributes that *bounds* names; of the others, leave out or cut what *content* keeps back."""
    bounded = {key: (bound.admitted, bound.admit) for key, bound in bounds}

    def prepare(attributes: Any, context: Context | None, amount: float) -> Any:  # noqa: ARG001 - one shape for all
        if not attributes:
            return attributes
        changed: dict[str, Any] = {}
        for key, value in attributes.items():
            if key not in bounded:
                kept = content.kept(key, value)
                if kept is not value:
                    changed[key] = kept
                continue
            if value is None:
                continue
            known, admit = bounded[key]
            try:
                if value not in known:
                    kept = admit(value)
                    if kept is not value:
                        changed[key] = kept
            except TypeError:  # a collection cannot be looked up; its label is its text
                changed[key] = admit(text_of(value))
        return _merged(attributes, changed) if changed else attributes

    return prepare


def _merged(attributes: Mapping[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return *attributes* with the values that *changed* has for them, and without those that it has None for."""
    return {key: value for key, value in {**attributes, **changed}.items() if value is not None}


def _joint_bounder(bounded: Prepare, joint: tuple[tuple[tuple[str, ...], Bound], ...]) -> Prepare:
    """Bound, after each attribute by itself, those that make one label together."""

    def prepare(attributes: Any, context: Context | None, amount: float) -> Any:
        attributes = bounded(attributes, context, amount)
        for keys, bound in joint:
            if attributes and all(attributes.get(key) is not None for key in keys):
                values = tuple(attributes[key] for key in keys)
                if values not in bound.admitted and bound.admit(values) is OTHER:
                    attributes = {**attributes, **dict.fromkeys(keys, OTHER)}
        return attributes

    return prepare


def _provider_namer(bounded: Prepare, llm_providers: LlmProviders) -> Prepare:
    """Name the provider by the server, where a rule is about it, and bound it then."""

    def prepare(attributes: Any, context: Context | None, amount: float) -> Any:
        provider = llm_providers.of(attributes) if attributes else None
        if provider is not None:
            attributes = {**attributes, PROVIDER_NAME: provider}
        return bounded(attributes, context, amount)

    return prepare


def _layered(bounded: Prepare, instrument: str, *, timed: bool) -> Prepare:
    """Mark a point that a client records inside an ``llm_call`` as the provider's."""

    def prepare(attributes: Any, context: Context | None, amount: float) -> Any:
        attributes = bounded(attributes, context, amount)
        call = opened("llm_call", context)
        if call is None or (attributes and LAYER in attributes):
            return attributes
        if timed:
            call = _measured_call(call, amount)
        if call is None or not _is_of(call, attributes):
            return attributes
        if instrument in call.settled:
            return _DROP  # a stream outlived its llm_call, which has answered for both layers
        call.reported.add(instrument)
        return {**(attributes or {}), LAYER: PROVIDER}

    return prepare


def _measured_call(call: OpenOperation, duration_s: float) -> OpenOperation | None:
    """Return the innermost call that was running when what took *duration_s* seconds began, *call* or one around it.

    A background task keeps the context in which it was started; what it begins after the call is none of the call.
    """
    found: OpenOperation | None = call
    if call.ended_at is not None:
        began = perf_counter() - duration_s
        while found is not None and found.ended_at is not None and found.ended_at <= began:
            found = found.outer
    return found


def _is_of(call: OpenOperation, attributes: Any) -> bool:
    """Return whether a client's point measures what *call* measures, and not the embeddings that it needed on its way."""
    operation = attributes.get(_OPERATION_NAME) if attributes else None
    return operation is None or operation == call.name or (operation in _INFERENCE and call.name in _INFERENCE)


def _reporting(bounded: Prepare, operation: str) -> Prepare:
    """Note that a client has measured the open operation of the same name, so that it is not counted again."""
    name_key = _NAME_OF_OPERATION[operation]

    def prepare(attributes: Any, context: Context | None, amount: float) -> Any:
        entry = opened(operation, context)
        if entry is not None and attributes and attributes.get(name_key) == entry.name:
            entry.reported.add(operation)
        return bounded(attributes, context, amount)

    return prepare


def _inbound(prepare: Prepare, instrument: str) -> Prepare:
    """Count a request that is being served once, by how it ended, and not at all if it is excluded."""
    once = instrument.endswith("duration")

    def prepare_inbound(attributes: Any, context: Context | None, amount: float) -> Any:
        request = inbound_request()
        if request is not None:
            if not request.admits(instrument, once=once):
                return _DROP
            if once:
                attributes = request.corrected(attributes)
        return prepare(attributes, context, amount)

    return prepare_inbound


# ---- meter and instruments -------------------------------------------------------------------------------------------


class _Meter(api.Meter):
    """A meter that wraps what the SDK's creates."""

    def __init__(self, inner: api.Meter, preparers: Mapping[str, Prepare], others: Prepare) -> None:
        super().__init__(inner.name, inner.version, inner.schema_url)
        self._sdk = inner
        self._preparers = preparers
        self._others = others

    def _preparer(self, name: str) -> Prepare:
        name = name.lower()
        found = self._preparers.get(name, self._others)
        if name.startswith(_HTTP_SERVER) and self.name not in _OWN_METERS:
            return _inbound(found, name)
        return found

    def create_counter(self, name: str, unit: str = "", description: str = "") -> api.Counter:
        return _Counter(self._sdk.create_counter(name, unit, description), name, self._preparer(name))

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> api.UpDownCounter:
        return _UpDownCounter(self._sdk.create_up_down_counter(name, unit, description), name, self._preparer(name))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> api.Histogram:
        inner = self._sdk.create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=explicit_bucket_boundaries_advisory
        )
        return _Histogram(inner, name, self._preparer(name))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> api._Gauge:
        return _Gauge(self._sdk.create_gauge(name, unit, description), name, self._preparer(name))

    def create_observable_counter(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableCounter:
        return self._sdk.create_observable_counter(name, self._guarded(name, callbacks), unit, description)

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableGauge:
        return self._sdk.create_observable_gauge(name, self._guarded(name, callbacks), unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableUpDownCounter:
        return self._sdk.create_observable_up_down_counter(name, self._guarded(name, callbacks), unit, description)

    def _guarded(self, name: str, callbacks: Sequence[api.CallbackT] | None) -> list[api.CallbackT] | None:
        if callbacks is None:
            return None
        prepare = self._preparer(name)
        return [_guarded_callback(name, callback, prepare) for callback in callbacks]


def _guarded_callback(name: str, callback: api.CallbackT, prepare: Prepare) -> api.CallbackT:
    """Return *callback* with bounded attributes; what it observed before it failed is kept."""
    site = f"callback.{name}"
    if not callable(callback):  # a generator, primed here and resumed with the options of each collection
        next(callback, None)
        observe: Callable[[api.CallbackOptions], Iterable[api.Observation]] = callback.send
    else:
        observe = callback

    def guarded(options: api.CallbackOptions) -> Iterable[api.Observation]:
        try:
            for observation in observe(options):
                checked = _checked(observation, prepare, site)
                if checked is not None:
                    yield checked
        except StopIteration:  # an exhausted generator has nothing more to say
            return
        except Exception as error:  # noqa: BLE001 - the application's callback must not end the collection
            swallow(site, error)

    return guarded


def _checked(observation: api.Observation, prepare: Prepare, site: str) -> api.Observation | None:
    try:
        value = finite(observation.value)
        attributes = prepare(observation.attributes, observation.context, value)
        return None if attributes is _DROP else api.Observation(value, attributes, observation.context)
    except Exception as error:  # noqa: BLE001 - one bad observation must not take the others along
        swallow(site, error)
        return None


class _Wrapped:
    """What the synchronous instruments share: the SDK's instrument, its site, what prepares the attributes."""

    _inner: Any

    def __init__(self, inner: Any, name: str, prepare: Prepare) -> None:
        self._inner = inner
        self._site = f"record.{name}"
        self._prepare = prepare

    def _measure(
        self,
        measure: Callable[..., None],
        lowest: float,
        amount: float,
        attributes: Attributes,
        context: Context | None,
    ) -> None:
        try:
            if type(amount) is not float:
                amount = finite(amount)
            # Checked here because the SDK writes one log line for each, however many there are.
            if not lowest <= amount < _INF:
                raise ValueError("a measurement is finite, and a counter's or histogram's not negative")  # noqa: TRY301 - swallowed and counted below, like what the SDK raises
            if type(attributes) is not dict:
                attributes = self._mapping(attributes)
            prepared = self._prepare(attributes, context, amount)
            if prepared is not _DROP:
                measure(amount, prepared, context)
        except Exception as error:  # noqa: BLE001 - a measurement never breaks the code that makes it
            swallow(self._site, error)

    def _mapping(self, attributes: Any) -> Attributes:
        if attributes is None or isinstance(attributes, Mapping):
            return attributes
        swallow(self._site, TypeError(), "it was taken without its attributes, which are no mapping")
        return None


class _Counter(_Wrapped, api.Counter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.add, 0, amount, attributes, context)


class _UpDownCounter(_Wrapped, api.UpDownCounter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.add, _LOWEST, amount, attributes, context)


class _Histogram(_Wrapped, api.Histogram):
    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.record, 0, amount, attributes, context)


class _Gauge(_Wrapped, api._Gauge):  # noqa: SLF001 - the API exports its gauge under no other name
    def set(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.set, _LOWEST, amount, attributes, context)
