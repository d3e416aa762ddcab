# SPDX-License-Identifier: Apache-2.0
"""Stand in front of the SDK's meter provider: bound attribute values, add the layer, swallow and count failures.

In: measurements of any library, through opentelemetry-api. Out: the same measurements to the SDK, with open attribute
values bounded and ``jeeves.llm.layer`` where only the context knows it. This is the one seam behind which another
record path can replace the SDK's, and behind which a forked child gets a provider of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from opentelemetry import metrics as api

from jeeves_otel.content import Content
from jeeves_otel.failsafe import count, swallow
from jeeves_otel.inbound import inbound_request
from jeeves_otel.instruments import finite
from jeeves_otel.labels import text_of
from jeeves_otel.layers import LAYER, PROVIDER, OpenOperation, opened
from jeeves_otel.llm_providers import PROVIDER_NAME
from jeeves_otel.registry import OTHER
from jeeves_otel.views import needed_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.util.types import Attributes

    from jeeves_otel.cardinality import Bound, Bounds
    from jeeves_otel.llm_providers import LlmProviders
    from jeeves_otel.registry import Registry

    # (attributes, context, amount) → attributes to record
    Prepare = Callable[[Any, "Context | None", float], Any]
    W = TypeVar("W", bound="_Wrapped")

_LONGEST_WAIT_S = 2.0  # opening takes some milliseconds, and a second where others keep the folder of the page
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
        inner: The SDK's provider, with views and readers; None: there is none until `attach` is called.
        registry: Which instruments and attributes are known.
        bounds: The shared bounds of open attribute values.
        content: Which attributes never become labels; default all that hold content.
        llm_providers: Providers of LLM calls by server.
        on_first: Called by the thread that takes the first measurement, before it is taken, and again after each
            `detach`; attaches a provider if there is none.
    """

    def __init__(
        self,
        inner: SdkMeterProvider | None,
        registry: Registry,
        bounds: Bounds,
        content: Content | None = None,
        llm_providers: LlmProviders | None = None,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._registry = registry
        self._content = content or Content()
        self._llm_providers = llm_providers
        self._on_first = on_first
        self._measured = on_first is None
        self._meters: dict[object, _Meter] = {}
        self._lock = RLock()  # reentrant: the SDK logs while it creates, and a handler of the application may measure
        self._others = _bounder((), self._content)
        self._use(inner, bounds)
        _ATTRIBUTE_LOG.addFilter(_COUNT_COMPLAINTS)

    def _use(self, inner: SdkMeterProvider | None, bounds: Bounds) -> None:
        self._inner = inner
        self._preparers = _preparers(self._registry, bounds, self._content, self._llm_providers)

    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> api.Meter:
        """Return a meter whose instruments bound, mark and never fail."""
        try:
            key: object = (name, version, schema_url, frozenset((attributes or {}).items()))
        except TypeError:  # a value that cannot be looked up: a meter of its own
            key = object()
        with self._lock:
            meter = self._meters.get(key)
            if meter is None:
                meter = self._meters[key] = _Meter(self, name, version, schema_url, attributes)
                meter.attach()
        return meter

    def attach(self, inner: SdkMeterProvider, bounds: Bounds) -> None:
        """Give what measures, now and later, to *inner*: every instrument is made again there.

        Args:
            inner: As for the class.
            bounds: As for the class.
        """
        with self._lock:
            self._use(inner, bounds)
            for meter in list(self._meters.values()):
                meter.attach()

    def detach(self) -> None:
        """Let go of the SDK's provider without a word to it, and of every lock that another thread may have held.

        For the child of a fork, where the provider and its counts are the parent's, and for a process that turns out to
        measure nothing. The next measurement calls ``on_first`` again.
        """
        self._lock = RLock()
        self._inner, self._measured = None, self._on_first is None
        for meter in list(self._meters.values()):
            meter.attach()

    @property
    def measured(self) -> bool:
        """Whether anything was measured since the start or the last `detach`; observed values do not count."""
        return self._measured

    def measure_first(self) -> None:
        """Call ``on_first``, and bind all instruments to the SDK's, so that no later measurement comes here."""
        with self.unless_blocked() as free:
            if self._measured or not free:
                return
            self._measured = True  # before the call, which may measure something itself
            before = self._inner
            try:
                if self._on_first is not None:
                    self._on_first()
            finally:
                if self._inner is before:  # else `attach` has bound them
                    for meter in list(self._meters.values()):
                        meter.attach()

    @contextmanager
    def unless_blocked(self) -> Iterator[bool]:
        """Hold `lock`, or yield False and count it if another thread has held it for longer than anything takes.

        That thread may wait for this one: it logs, and this one measures in a handler of the application, whose lock it has.
        """
        lock = self._lock
        free = lock.acquire(timeout=_LONGEST_WAIT_S)
        try:
            if not free:
                count("outputs.open")
            yield free
        finally:
            if free:
                lock.release()

    def add_metric_reader(self, reader: MetricReader) -> None:
        """Add a reader to the SDK's provider, if there is one; it sees what is recorded from now on."""
        if self._inner is not None:
            self._inner.add_metric_reader(reader)

    def remove_metric_reader(self, reader: MetricReader) -> None:
        """Remove a reader from the SDK's provider."""
        if self._inner is not None:
            self._inner.remove_metric_reader(reader)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and export now; see the SDK's provider."""
        return self._inner is None or self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Collect and export for the last time; see the SDK's provider."""
        if self._inner is not None:
            self._inner.shutdown(timeout_millis)

    # ---- for the meters ----

    def sdk_meter(self, meter: _Meter) -> api.Meter | None:
        """Return the SDK's meter of the same scope as *meter*, if there is one."""
        if self._inner is None:
            return None
        return self._inner.get_meter(meter.name, meter.version, meter.schema_url, meter.attributes)

    def preparer(self, name: str, scope: str) -> Prepare:
        """Return what prepares the attributes of the instrument *name* of the meter *scope*."""
        name = name.lower()
        found = self._preparers.get(name, self._others)
        if name.startswith(_HTTP_SERVER) and scope not in _OWN_METERS:
            return _inbound(found, name)
        return found

    @property
    def lock(self) -> RLock:
        """The lock under which instruments are made and attached."""
        return self._lock


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
    """A meter that wraps what the SDK's creates, and creates it again in whatever provider comes later."""

    def __init__(
        self, provider: MeterProvider, name: str, version: str | None, schema_url: str | None, attributes: Attributes
    ) -> None:
        super().__init__(name, version, schema_url)
        self.attributes = attributes
        self._provider = provider
        self._sdk: api.Meter | None = None
        self._wrapped: WeakSet[_Wrapped] = WeakSet()
        # As in the SDK, an instrument that is asked for again is the first one.
        self._observed: dict[tuple[str, str, str, str], Callable[[api.Meter], Any]] = {}

    def attach(self) -> None:
        """Make all instruments again in the provider's present SDK provider; call it under the provider's lock."""
        self._sdk = self._provider.sdk_meter(self)
        for wrapped in list(self._wrapped):
            self._bind(wrapped)
        if self._sdk is not None:
            for create in self._observed.values():
                create(self._sdk)

    def _bind(self, wrapped: _Wrapped) -> None:
        prepare = self._provider.preparer(wrapped.name, self.name)
        if self._provider.measured:
            wrapped.bind(wrapped.create(self._sdk) if self._sdk is not None else _NOWHERE, prepare)
        else:
            if self._sdk is not None:
                wrapped.create(
                    self._sdk
                )  # the SDK says at creation, not at the first measurement, what it thinks of it
            wrapped.bind(_First(self._provider, wrapped), _as_given)

    def _wrap(self, wrapped: W) -> W:
        with self._provider.lock:
            self._wrapped.add(wrapped)
            self._bind(wrapped)
        return wrapped

    def create_counter(self, name: str, unit: str = "", description: str = "") -> api.Counter:
        return self._wrap(_Counter(name, lambda meter: meter.create_counter(name, unit, description)))

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> api.UpDownCounter:
        return self._wrap(_UpDownCounter(name, lambda meter: meter.create_up_down_counter(name, unit, description)))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> api.Histogram:
        def create(meter: api.Meter) -> api.Histogram:
            bounds = explicit_bucket_boundaries_advisory
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        return self._wrap(_Histogram(name, create))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> api._Gauge:
        return self._wrap(_Gauge(name, lambda meter: meter.create_gauge(name, unit, description)))

    def create_observable_counter(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableCounter:
        self._observe("create_observable_counter", name, callbacks, unit, description)
        return api.NoOpObservableCounter(name, None, unit, description)

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableGauge:
        self._observe("create_observable_gauge", name, callbacks, unit, description)
        return api.NoOpObservableGauge(name, None, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[api.CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> api.ObservableUpDownCounter:
        self._observe("create_observable_up_down_counter", name, callbacks, unit, description)
        return api.NoOpObservableUpDownCounter(name, None, unit, description)

    def _observe(
        self, kind: str, name: str, callbacks: Sequence[api.CallbackT] | None, unit: str, description: str
    ) -> None:
        resumed = [_resumable(callback) for callback in callbacks] if callbacks is not None else None

        def create(meter: api.Meter) -> None:
            prepare = self._provider.preparer(name, self.name)
            guarded = [_guarded_callback(name, each, prepare) for each in resumed] if resumed is not None else None
            getattr(meter, kind)(name, guarded, unit, description)

        with self._provider.lock:
            if self._observed.setdefault((kind, name, unit, description), create) is create and self._sdk is not None:
                create(self._sdk)


def _resumable(callback: api.CallbackT) -> Callable[[api.CallbackOptions], Iterable[api.Observation]]:
    """Return *callback* as a function; a generator is primed here and resumed with the options of each collection."""
    if callable(callback):
        return callback
    next(callback, None)
    return callback.send


class _AsGiven:
    """Attributes that no preparer has seen."""

    def __init__(self, attributes: Any) -> None:
        self.attributes = attributes


def _as_given(attributes: Any, context: Context | None, amount: float) -> Any:  # noqa: ARG001 - a `Prepare`
    """Leave attributes to what measures them for good."""
    return _AsGiven(attributes)


class _First:
    """Stands in for every instrument until the first measurement of the process, which then goes its way."""

    def __init__(self, provider: MeterProvider, wrapped: _Wrapped) -> None:
        self._provider = provider
        self._wrapped = wrapped

    def add(self, amount: float, attributes: Any = None, context: Context | None = None) -> None:
        self._provider.measure_first()
        if self._wrapped.gives_to(self):  # what the first measurement itself measures on its way is dropped
            return
        if isinstance(attributes, _AsGiven):
            self._wrapped.measure(amount, attributes.attributes, context)
        else:  # another thread has bound the instrument between two steps of this one
            self._wrapped.give(amount, attributes, context)

    record = set = add


class _Nowhere:
    """Takes measurements where there is no SDK to give them to."""

    def add(self, *_: object) -> None:
        """Drop it."""

    record = set = add


_NOWHERE = _Nowhere()


def _guarded_callback(
    name: str, observe: Callable[[api.CallbackOptions], Iterable[api.Observation]], prepare: Prepare
) -> api.CallbackT:
    """Return *observe* with bounded attributes; what it observed before it failed is kept."""
    site = f"callback.{name}"

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
    """What the synchronous instruments share: the SDK's instrument, its site, what prepares the attributes.

    Args:
        name: As the application gave it.
        create: Makes the SDK's instrument with a meter of the SDK.
    """

    verb = "add"
    _inner: Any
    _prepare: Prepare

    def __init__(self, name: str, create: Callable[[api.Meter], Any]) -> None:
        self.name = name
        self.create = create
        self._site = f"record.{name}"

    def bind(self, inner: Any, prepare: Prepare) -> None:
        """Give measurements, prepared by *prepare*, to *inner* from now on."""
        self._prepare = prepare
        self._inner = inner

    def give(self, amount: float, attributes: Attributes, context: Context | None) -> None:
        """Give one measurement, whose attributes are prepared, to the SDK's instrument."""
        getattr(self._inner, self.verb)(amount, attributes, context)

    def gives_to(self, inner: Any) -> bool:
        """Return whether measurements go to *inner*."""
        return self._inner is inner

    def measure(self, amount: float, attributes: Attributes, context: Context | None) -> None:
        """Take one measurement, whatever the instrument calls that."""
        raise NotImplementedError

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

    measure = add


class _UpDownCounter(_Wrapped, api.UpDownCounter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.add, _LOWEST, amount, attributes, context)

    measure = add


class _Histogram(_Wrapped, api.Histogram):
    verb = "record"

    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.record, 0, amount, attributes, context)

    measure = record


class _Gauge(_Wrapped, api._Gauge):  # noqa: SLF001 - the API exports its gauge under no other name
    verb = "set"

    def set(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        self._measure(self._inner.set, _LOWEST, amount, attributes, context)

    measure = set  # noqa: A003 - the method above
