# SPDX-License-Identifier: Apache-2.0
"""Assemble tracer, meter and logger providers, and open their outputs in every process that measures.

In: `Settings` and the registry. Out: a `Telemetry` that holds the three providers for the life of the process and of its
forked children; the outputs behind them belong to one process.
"""

from __future__ import annotations

import atexit
import os
import threading
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from jeeves_otel import failsafe, stock_logs
from jeeves_otel.cardinality import Bounds
from jeeves_otel.closing import Closer
from jeeves_otel.content import Content, Rules, read_rules
from jeeves_otel.deliveries import begin_ending, undelivered
from jeeves_otel.llm_providers import LlmProviders
from jeeves_otel.metering import MeterProvider
from jeeves_otel.metrics_page import holder
from jeeves_otel.outlets import LogRecordOutlet, SpanOutlet
from jeeves_otel.outputs import Outputs
from jeeves_otel.recording import package_version
from jeeves_otel.redaction import Redactor
from jeeves_otel.sampling import SamplerUnknown, WithoutExcluded, default_sampler, describe_sampler, sampler_from
from jeeves_otel.termination import ENDING, flush_before_termination, leave_termination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.trace.sampling import Sampler

    from jeeves_otel.registry import Registry
    from jeeves_otel.settings import Settings
    from jeeves_otel.shared_page import Holder


_LONGEST_HOLD_S = 0.5


class Telemetry:
    """The providers, and the outputs that are open in this process. Safe from several threads.

    A forked child has none of its parent's outputs, counts or spans. It opens outputs of its own when it measures for the
    first time, so that a child that measures nothing has no thread, no connection and no port.

    ``problems`` says what was left out and why; ``ending_signals`` are those before whose default everything is delivered.

    Args:
        settings: What leaves, where to, and how.
        registry: What is promised and recorded.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        stock_logs.tame()
        self.problems: list[str] = []
        self.ending_signals: tuple[int, ...] = ENDING
        self.settings = settings
        self._registry = registry
        self._redactor = Redactor(content := _content(settings, self.problems))
        self._spans = SpanOutlet(self.open)
        self._records = LogRecordOutlet(self.open)
        self.tracer_provider, self._sampler = _tracer_provider(settings, self._spans, self.problems)
        self.logger_provider = _logger_provider(settings, self.resource, self._records)
        bounds = Bounds(registry, settings.declared_labels)
        providers = LlmProviders(settings.llm_providers)
        self.meter_provider = MeterProvider(None, registry, bounds, content, providers, on_first=self.open)
        self.outputs: Outputs | None = None
        self._closer: Closer | None = None
        self._holder: Holder | None = None
        self._has_page = False
        self._forking = threading.local()
        # Kept for good: at their end they would speak in the parent's name.
        self._of_parents: list[Outputs] = []
        _observe_ourselves(self.meter_provider, self._overflowed)
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._leave_parent
            )

    @property
    def resource(self) -> Resource:
        """What this process is; a forked child is another instance."""
        return self.tracer_provider.resource

    def summary(self) -> str:
        """Return the line at start: what is exported where."""
        service = str(self.resource.attributes.get("service.name", ""))
        if service.startswith("unknown_service"):
            service = "a service without a name (set OTEL_SERVICE_NAME)"
        said = self.outputs.said if self.outputs is not None else []
        return f"jeeves-otel {package_version()} for {service}: " + "; ".join(said or ["nothing is exported"])

    def page(self) -> PresentPage:
        """Return the page of whatever process asks for it. It counts from the first call, where no server needs it."""
        self._has_page = True  # and so do children have one, from their start
        if self.outputs is not None:
            self.outputs.page()
        return PresentPage(self)

    def open(self) -> None:
        """Open the outputs of this process, once."""
        if self.outputs is not None:
            return
        # One lock for everything, or a first measurement and a first span could wait for each other.
        with self.meter_provider.unless_blocked() as free:
            if free and self.outputs is None:
                self._open()

    def _open(self) -> None:
        outputs = Outputs(
            self.settings,
            self._registry,
            self.resource,
            self._redactor,
            sampler=describe_sampler(self._sampler),
            page=self._has_page,
        )
        self.problems += outputs.problems
        self.meter_provider.attach(outputs.meter_provider, outputs.bounds)
        self._spans.attach(outputs.span_processors)
        self._records.attach(outputs.log_record_processors)
        self._closer = Closer(outputs.stops(), self.settings.exit_timeout_s, begin_ending, undelivered)
        if self.settings.flush_on_sigterm:
            flush_before_termination(self._closer, self.ending_signals)
        self.outputs = outputs
        self._hold_no_longer()

    def stand_down(self) -> None:
        """Close the outputs of a process that only looks after others; what it measures nevertheless opens them again."""
        with self.meter_provider.lock:
            outputs, closer = self.outputs, self._closer
            if self._holder is not None or self.meter_provider.measured or self._spans.used:
                return
            self._forget()
        # First, or the last one out would take the folder away; also where outputs are a parent's, or workers have pages.
        self._holder = holder(self.settings, self.resource)
        atexit.register(self._hold_no_longer)
        if outputs is not None and closer is not None:
            leave_termination()
            closer.dismiss()
            outputs.discard()  # without the lock, for which its threads may wait

    def _hold_no_longer(self) -> None:
        held, self._holder = self._holder, None
        if held is not None:
            held.leave()

    def close(self) -> None:
        """Deliver what is left, within the time allowed, of a process that ends without its exit handlers."""
        if self._closer is not None:
            self._closer.close()

    def _before_fork(self) -> None:
        # What another thread is opening would be half there in the child, which could then not let go of it.
        lock = self.meter_provider.lock  # kept, because `stand_down` in another thread puts another in its place
        self._forking.held = lock if lock.acquire(timeout=_LONGEST_HOLD_S) else None

    def _after_fork(self) -> None:
        if self._forking.held is not None:
            self._forking.held.release()

    def _leave_parent(self) -> None:
        """Be nobody's process yet, in the child of a fork: counts, spans, threads and connections are the parent's."""
        with failsafe.failsafe("fork"):
            outputs, held, self._holder = self.outputs, self._holder, None
            self._forget()
            if held is not None:
                held.forget()
            failsafe.reset()
            if outputs is not None:
                outputs.abandon()
                self._of_parents.append(outputs)

    def _forget(self) -> None:
        self.outputs = self._closer = None
        self.meter_provider.detach()
        self._spans.detach(self.resource)
        self._records.detach()

    def _overflowed(self) -> dict[str, int]:
        return self.outputs.bounds.overflowed() if self.outputs is not None else {}


class PresentPage:
    """The metrics page of the process that asks for it, whichever that is: applications keep it over a fork.

    Args:
        telemetry: Whose page.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def page(self, accept: str = "") -> tuple[str, str]:
        """Return ``(body, content type)``; see `PrometheusCollector`.

        Raises:
            RuntimeError: The outputs of this process could not be opened.
        """
        self._telemetry.open()
        outputs = self._telemetry.outputs
        if outputs is None:
            raise RuntimeError("the outputs of this process could not be opened")
        return outputs.page().page(accept)


def _observe_ourselves(provider: MeterProvider, overflows: Callable[[], dict[str, int]]) -> None:
    meter = provider.get_meter("jeeves_otel", package_version())

    def errors(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"jeeves_otel.site": site}) for site, count in failsafe.counts().items()]

    def overflowed(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"jeeves_otel.attribute": key}) for key, count in overflows().items()]

    meter.create_observable_counter("jeeves_otel.internal.errors", [errors], "{error}")
    meter.create_observable_counter("jeeves_otel.overflowed_measurements", [overflowed], "{measurement}")


def _content(settings: Settings, problems: list[str]) -> Content:
    rules, findings = read_rules(settings.redaction) if settings.redaction else (Rules(), [])
    problems += [f"JEEVES_OTEL_REDACTION: {finding}" for finding in findings]
    return Content(frozenset(settings.content), rules)


def _tracer_provider(settings: Settings, outlet: SpanOutlet, problems: list[str]) -> tuple[TracerProvider, Sampler]:
    sampler = _sampler(settings, problems)
    resource = {"telemetry.distro.name": "jeeves-otel", "telemetry.distro.version": package_version()}
    provider = TracerProvider(
        sampler=WithoutExcluded(sampler),
        resource=Resource.create(resource),
        id_generator=_id_generator(settings, problems),
        shutdown_on_exit=False,  # closing does it, within a bounded time
    )
    provider.add_span_processor(outlet)
    return provider, sampler


def _logger_provider(settings: Settings, resource: Resource, outlet: LogRecordOutlet) -> Any:
    if not settings.logs_exporters:
        return None
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415 - only where log records leave

    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(outlet)  # type: ignore[arg-type]  # it has all that the SDK asks of one
    return provider


def _id_generator(settings: Settings, problems: list[str]) -> IdGenerator:
    if settings.id_generator != "random":
        for entry in entry_points(group="opentelemetry_id_generator", name=settings.id_generator):
            generator: IdGenerator = entry.load()()
            return generator
        problems.append(
            f"there is no id generator `{settings.id_generator}` (OTEL_PYTHON_ID_GENERATOR); going on with random"
        )
    return RandomIdGenerator()


def _sampler(settings: Settings, problems: list[str]) -> Sampler:
    try:
        return sampler_from(settings.sampler, settings.sampler_arg)
    except SamplerUnknown as error:
        problems.append(f"{error}; going on with parentbased_traceidratio, 0.1")
        return default_sampler()
