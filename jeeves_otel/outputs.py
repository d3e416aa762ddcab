# SPDX-License-Identifier: Apache-2.0
"""Open what takes telemetry out of one process: readers, exporters, processors, the metrics page.

In: settings, registry and resource. Out: `Outputs`, which belong to the process that opened them; what could not be made is
left out and named. Made from public constructors, because the SDK's own start-up path takes no views.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from threading import Thread, get_ident
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    ExemplarFilter,
    MeterProvider as SdkMeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from jeeves_otel.cardinality import Bounds
from jeeves_otel.deliveries import batching
from jeeves_otel.exporters import ExporterMissing, endpoint, exporter_class, reporting
from jeeves_otel.failsafe import failsafe
from jeeves_otel.llm_providers import LlmProviders, naming
from jeeves_otel.metrics_page import MetricsPage, places
from jeeves_otel.settings import mask
from jeeves_otel.translation import Translator, marked
from jeeves_otel.views import sdk_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

    from jeeves_otel.prometheus import PrometheusCollector
    from jeeves_otel.redaction import Redactor
    from jeeves_otel.registry import Registry
    from jeeves_otel.settings import Settings


_DISCARD_S = 1.0
_EXEMPLAR_FILTERS: dict[str, Callable[[], ExemplarFilter]] = {
    "trace_based": TraceBasedExemplarFilter,
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
}


class Outputs:
    """What takes telemetry out of this process.

    ``said`` has one phrase per output, what leaves and where to; ``problems`` what was left out and why.

    Args:
        settings: Where to.
        registry: What is promised.
        resource: Of this process.
        redactor: What spans and log records go through before they leave.
        sampler: What is said of the sampling of traces.
        page: Whether there is a page although no server needs one.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        resource: Resource,
        redactor: Redactor,
        *,
        sampler: str,
        page: bool,
    ) -> None:
        self.said: list[str] = []
        self.problems: list[str] = []
        self.bounds = Bounds(registry, settings.declared_labels)
        self.metrics_page: MetricsPage | None = None
        self._settings, self._registry, self._resource = settings, registry, resource
        self._started = time_ns()
        self._translate_page = self._translator(registry, keep_mapped=False)
        page_reader = InMemoryMetricReader() if page or places(settings) else None
        with _without_fork_handlers():
            self._pushers = self._push_readers(registry)
            self.meter_provider = SdkMeterProvider(
                metric_readers=[*([page_reader] if page_reader else []), *self._pushers],
                resource=resource,
                views=sdk_views(registry, keep_semconv=settings.names != "views"),
                exemplar_filter=_EXEMPLAR_FILTERS[settings.exemplar_filter](),
                shutdown_on_exit=False,  # closing does it, within a bounded time
            )
            self.span_processors = self._span_processors(redactor, sampler)
            self.log_record_processors = self._log_record_processors(redactor)
        if page_reader is not None:
            self.metrics_page = self._page_of(page_reader)
            self.said[:0] = self.metrics_page.said

    def page(self) -> PrometheusCollector:
        """Return the page of this process. Where no server needs it, it is made at the first call and counts from then."""
        if self.metrics_page is None:
            reader = InMemoryMetricReader()
            self.meter_provider.add_metric_reader(reader)
            self.metrics_page = self._page_of(reader)
        return self.metrics_page.collector

    def _page_of(self, reader: InMemoryMetricReader) -> MetricsPage:
        page = MetricsPage(reader, self._translate_page, self._settings, self._registry, self._resource)
        self.problems += page.problems
        return page

    def stops(self) -> dict[str, Callable[[], None]]:
        """Return ``{what: function that flushes and stops it}``; each may take as long as its exporters do."""
        stops: dict[str, Callable[[], None]] = {
            "traces": lambda: _shut_down(self.span_processors),
            "metrics": self._stop_metrics,
        }
        if self.log_record_processors:
            stops["logs"] = lambda: _shut_down(self.log_record_processors)
        return stops  # the servers' threads are daemons and end by themselves

    def _stop_metrics(self) -> None:
        if self.metrics_page is not None:
            self.metrics_page.leave()  # which collects, as long as that is possible
        self.meter_provider.shutdown()

    def discard(self) -> None:
        """Stop everything and send no metrics: of a process that has measured nothing and will not.

        An export that is under way may take as long as its exporter does; it is left alone after a second.
        """
        if self.metrics_page is not None:
            self.metrics_page.discard()
        for reader in self._pushers:
            if isinstance(reader, _PushReader):
                reader.discarded = True
        stopping = Thread(target=self._stop_all, name="jeeves-otel-discard", daemon=True)
        stopping.start()
        stopping.join(_DISCARD_S)

    def _stop_all(self) -> None:
        for stop in self.stops().values():
            with failsafe("outputs.discard"):
                stop()

    def abandon(self) -> None:
        """Close what a forked child has inherited; nothing is said to anybody, for all of it is the parent's."""
        if self.metrics_page is not None:
            self.metrics_page.abandon()

    # ---- metrics ----

    def _translator(self, registry: Registry, *, keep_mapped: bool) -> Translator:
        return Translator(
            registry,
            keep_unmapped=self._settings.unmapped == "pass",
            keep_mapped=keep_mapped,
            declared=self._settings.declared_labels,
            started_unix_nano=self._started,
        )

    def _push_readers(self, registry: Registry) -> list[MetricReader]:
        settings, readers = self._settings, []
        names = settings.names
        translate = None if names == "semconv" else self._translator(registry, keep_mapped=names == "both")
        for name in settings.metrics_exporters:
            if name == "prometheus":
                continue
            with self._left_out_if_it_fails("metrics", name):
                readers.append(self._push_reader(name, translate))
        return readers

    def _push_reader(self, name: str, translate: Callable[[MetricsData], MetricsData] | None) -> MetricReader:
        settings, target = self._settings, _target("metrics", name, self._settings)
        cls = exporter_class("metrics", name, settings)
        if not issubclass(cls, MetricExporter):
            reader: MetricReader = cls()
            self.said.append(f"metrics → {name}, untranslated: it is a reader of its own")
            return reader
        if translate is not None and name.startswith("otlp"):
            translate = _then_marked(translate)
        reader = _PushReader(
            reporting(cls, "metrics", target, translate)(),
            export_interval_millis=settings.metric_export_interval_s * 1_000,
            export_timeout_millis=settings.metric_export_timeout_s * 1_000,
        )
        self.said.append(f"metrics ({settings.names}) → {target} every {settings.metric_export_interval_s:g} s")
        return reader

    # ---- traces and logs ----

    def _span_processors(self, redactor: Redactor, sampler: str) -> list[BatchSpanProcessor]:
        processors = []
        prepare = _span_preparer(self._settings, redactor)
        for name in self._settings.traces_exporters:
            with self._left_out_if_it_fails("traces", name):
                exporter = self._exporter("traces", name, prepare)
                processors.append(batching(BatchSpanProcessor(exporter), exporter))
                self.said.append(f"traces ({sampler}) → {_target('traces', name, self._settings)}")
        return processors

    def _log_record_processors(self, redactor: Redactor) -> list[Any]:
        if not self._settings.logs_exporters:
            return []
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415 - only where log records leave

        processors = []
        for name in self._settings.logs_exporters:
            with self._left_out_if_it_fails("logs", name):
                exporter = self._exporter("logs", name, redactor.logs)
                processors.append(batching(BatchLogRecordProcessor(exporter), exporter))
                self.said.append(f"logs → {_target('logs', name, self._settings)}")
        return processors

    def _exporter(self, signal: str, name: str, prepare: Callable[[Any], Any]) -> Any:
        target = _target(signal, name, self._settings)
        return reporting(exporter_class(signal, name, self._settings), signal, target, prepare)()

    @contextmanager
    def _left_out_if_it_fails(self, signal: str, name: str) -> Iterator[None]:
        """One exporter that cannot be made does not take the others along."""
        try:
            yield
        except ExporterMissing as error:
            self.problems.append(f"{signal} are not sent to {name}: {error}")
        except Exception as error:  # noqa: BLE001 - as said
            self.problems.append(f"{signal} are not sent to {name}: {type(error).__name__}: {error}")


class _PushReader(PeriodicExportingMetricReader):
    """The SDK's reader, which sends a last time when it is stopped, unless it was discarded."""

    discarded = False

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        if not self.discarded:
            super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


_SDK = "opentelemetry.sdk."


@contextmanager
def _without_fork_handlers() -> Iterator[None]:
    """Keep what the SDK makes in this thread from starting again in forked children.

    There it would send the parent's counts under the child's name, and wait for locks that nobody releases
    (opentelemetry-sdk 1.45: aggregations and readers keep theirs). A child opens outputs of its own.
    """
    if not hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        yield
        return
    register, thread = os.register_at_fork, get_ident()

    def register_others(**handlers: Any) -> None:
        caller = str(sys._getframe(1).f_globals.get("__name__"))  # noqa: SLF001 - what inspect.currentframe is
        if get_ident() != thread or not caller.startswith(_SDK):
            register(**handlers)

    os.register_at_fork = register_others
    try:
        yield
    finally:
        os.register_at_fork = register


def _shut_down(processors: Iterable[Any]) -> None:
    for processor in processors:
        processor.shutdown()


def _span_preparer(settings: Settings, redactor: Redactor) -> Callable[[Any], Any]:
    """Return what finished spans go through before they leave."""
    if not settings.llm_providers:
        return redactor.spans
    name = naming(LlmProviders(settings.llm_providers))
    return lambda spans: redactor.spans(name(spans))


def _then_marked(translate: Callable[[MetricsData], MetricsData]) -> Callable[[MetricsData], MetricsData]:
    """Return *translate*, so that a Collector does not translate again what keeps its standard name beside (`both`)."""
    return lambda data: marked(translate(data))


def _target(signal: str, name: str, settings: Settings) -> str:
    if name.startswith("otlp"):
        return f"OTLP {settings.protocol_for(signal)} {mask('', endpoint(signal, settings))}"
    return name
