# SPDX-License-Identifier: Apache-2.0
"""Assemble tracer, meter and logger providers from settings and registry.

In: `Settings` and the registry. Out: a `Telemetry` that holds the three providers, the metrics page and what was left
out and why. Made from public constructors, because the SDK's own start-up path takes no views.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Observation
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
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from jeeves_otel import failsafe, stock_logs
from jeeves_otel.cardinality import Bounds
from jeeves_otel.content import Content, Rules, read_rules
from jeeves_otel.exporters import ExporterMissing, batching, endpoint, exporter_class, reporting
from jeeves_otel.llm_providers import LlmProviders, naming
from jeeves_otel.metering import MeterProvider
from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.recording import package_version
from jeeves_otel.redaction import Redactor
from jeeves_otel.sampling import SamplerUnknown, WithoutExcluded, default_sampler, describe_sampler, sampler_from
from jeeves_otel.settings import mask
from jeeves_otel.translation import Translator
from jeeves_otel.views import sdk_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace.sampling import Sampler

    from jeeves_otel.metrics_server import MetricsServer
    from jeeves_otel.registry import Registry
    from jeeves_otel.settings import Settings


# Every Python child of a launched application is launched too. It finds here which ports its parent has.
_PAGES = "_JEEVES_OTEL_PAGES"
_EXEMPLAR_FILTERS: dict[str, Callable[[], ExemplarFilter]] = {
    "trace_based": TraceBasedExemplarFilter,
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
}


@dataclass(slots=True)
class Telemetry:
    """Everything that was built, and in ``problems`` what was left out and why.

    ``outputs`` says what leaves and where to, one phrase per output.
    """

    settings: Settings
    resource: Resource
    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    translate_page: Callable[[MetricsData], MetricsData]
    logger_provider: Any = None
    collector: PrometheusCollector | None = None
    servers: list[MetricsServer] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the line at start: what is exported where."""
        service = str(self.resource.attributes.get("service.name", ""))
        if service.startswith("unknown_service"):
            service = "a service without a name (set OTEL_SERVICE_NAME)"
        return f"jeeves-otel {package_version()} for {service}: " + "; ".join(self.outputs or ["nothing is exported"])

    def page(self) -> PrometheusCollector:
        """Return the page of this process. Where no server needs it, it is made at the first call and counts from then."""
        if self.collector is None:
            reader = InMemoryMetricReader()
            self.meter_provider.add_metric_reader(reader)
            self.collector = PrometheusCollector(reader, self.translate_page)
        return self.collector

    def stops(self) -> dict[str, Callable[[], None]]:
        """Return ``{what: function that flushes and stops it}``; each may take as long as its exporters do."""
        stops: dict[str, Callable[[], None]] = {
            "traces": self.tracer_provider.shutdown,
            "metrics": self.meter_provider.shutdown,
        }
        if self.logger_provider is not None:
            stops["logs"] = self.logger_provider.shutdown
        return stops  # the servers' threads are daemons and end by themselves


def build(settings: Settings, registry: Registry) -> Telemetry:
    """Return providers for *settings*; an output that cannot be made is left out and named in ``problems``."""
    problems: list[str] = []
    outputs: list[str] = []
    stock_logs.tame()
    resource = Resource.create({"telemetry.distro.name": "jeeves-otel", "telemetry.distro.version": package_version()})
    started = time_ns()
    bounds = Bounds(registry, settings.declared_labels)
    translate = _translation(settings, registry, started)
    page_reader = _page_reader(settings)
    readers = _push_readers(settings, translate, outputs, problems)
    inner = SdkMeterProvider(
        metric_readers=[*([page_reader] if page_reader else []), *readers],
        resource=resource,
        views=sdk_views(registry, keep_semconv=settings.names != "views"),
        exemplar_filter=_EXEMPLAR_FILTERS[settings.exemplar_filter](),
        shutdown_on_exit=False,  # closing does it, within a bounded time
    )
    content = _content(settings, problems)
    redactor = Redactor(content)
    meter_provider = MeterProvider(inner, registry, bounds, content, LlmProviders(settings.llm_providers))
    _observe_ourselves(meter_provider, bounds)
    telemetry = Telemetry(
        settings=settings,
        resource=resource,
        tracer_provider=_tracer_provider(settings, resource, redactor, outputs, problems),
        meter_provider=meter_provider,
        translate_page=Translator(
            registry,
            keep_unmapped=settings.unmapped == "pass",
            declared=settings.declared_labels,
            started_unix_nano=started,
        ),
        logger_provider=_logger_provider(settings, resource, redactor, outputs, problems),
        outputs=outputs,
        problems=problems,
    )
    if page_reader is not None:
        telemetry.collector = PrometheusCollector(page_reader, telemetry.translate_page)
        _serve(telemetry, telemetry.collector)
    return telemetry


# ---- metrics ---------------------------------------------------------------------------------------------------------


def _translation(settings: Settings, registry: Registry, started: int) -> Callable[[MetricsData], MetricsData] | None:
    """Return what stands in front of the push exporters; None leaves the conventions' names alone."""
    if settings.names == "semconv":
        return None
    return Translator(
        registry,
        keep_unmapped=settings.unmapped == "pass",
        keep_mapped=settings.names == "both",
        declared=settings.declared_labels,
        started_unix_nano=started,
    )


def _page_reader(settings: Settings) -> InMemoryMetricReader | None:
    standard = "prometheus" in settings.metrics_exporters and settings.prometheus_port
    wanted = settings.metrics_port is not None or standard
    return InMemoryMetricReader() if wanted else None


def _push_readers(
    settings: Settings, translate: Callable[[MetricsData], MetricsData] | None, outputs: list[str], problems: list[str]
) -> list[MetricReader]:
    readers: list[MetricReader] = []
    for name in settings.metrics_exporters:
        if name == "prometheus":
            continue
        try:
            cls = exporter_class("metrics", name, settings)
            if issubclass(cls, MetricExporter):
                readers.append(
                    PeriodicExportingMetricReader(
                        reporting(cls, "metrics", _target("metrics", name, settings), translate)(),
                        export_interval_millis=settings.metric_export_interval_s * 1_000,
                        export_timeout_millis=settings.metric_export_timeout_s * 1_000,
                    )
                )
                seconds = f"{settings.metric_export_interval_s:g} s"
                outputs.append(f"metrics ({settings.names}) → {_target('metrics', name, settings)} every {seconds}")
            else:
                readers.append(cls())
                outputs.append(f"metrics → {name}, untranslated: it is a reader of its own")
        except ExporterMissing as error:
            problems.append(f"metrics are not sent to {name}: {error}")
        except Exception as error:  # noqa: BLE001 - one exporter that cannot be made must not take the others along
            problems.append(f"metrics are not sent to {name}: {type(error).__name__}: {error}")
    return readers


def _observe_ourselves(provider: MeterProvider, bounds: Bounds) -> None:
    meter = provider.get_meter("jeeves_otel", package_version())

    def errors(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"jeeves_otel.site": site}) for site, count in failsafe.counts().items()]

    def overflowed(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"jeeves_otel.attribute": key}) for key, count in bounds.overflowed().items()]

    meter.create_observable_counter("jeeves_otel.internal.errors", [errors], "{error}")
    meter.create_observable_counter("jeeves_otel.overflowed_measurements", [overflowed], "{measurement}")


def _serve(telemetry: Telemetry, collector: PrometheusCollector) -> None:
    from jeeves_otel.metrics_server import MetricsServer  # noqa: PLC0415 - http.server only where it serves

    settings = telemetry.settings
    places = []
    if settings.metrics_port is not None:
        places.append(("METRICS_PORT", settings.metrics_host, settings.metrics_port))
    if "prometheus" in settings.metrics_exporters and settings.prometheus_port:
        places.append(("OTEL_EXPORTER_PROMETHEUS_PORT", settings.prometheus_host, settings.prometheus_port))
    of_parent = os.environ.get(_PAGES, "").split(",")
    served = []
    for variable, host, port in places:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            telemetry.servers.append(MetricsServer(collector, host, port))
        except OSError as error:
            telemetry.problems.append(_no_page(variable, place, error, parent_has_it=place in of_parent))
        else:
            served.append(place)
            telemetry.outputs.insert(0, f"metrics → http://{place}/metrics")
    if served:
        os.environ[_PAGES] = ",".join(served)


def _no_page(variable: str, place: str, error: OSError, *, parent_has_it: bool) -> str:
    if parent_has_it:
        return (
            f"process {os.getpid()}: {place} is the page of the process that started this one, and does not hold what "
            "this one measures; OTLP and jeeves_otel.prometheus.MetricsMiddleware do"
        )
    return (
        f"no /metrics server: {place} cannot be bound ({error.strerror or error}); choose another port with {variable}, "
        f"another address with {variable.replace('PORT', 'HOST')}, or turn it off with {variable}=0. "
        "The application runs on."
    )


# ---- traces and logs -------------------------------------------------------------------------------------------------


def _content(settings: Settings, problems: list[str]) -> Content:
    rules, findings = read_rules(settings.redaction) if settings.redaction else (Rules(), [])
    problems += [f"JEEVES_OTEL_REDACTION: {finding}" for finding in findings]
    return Content(frozenset(settings.content), rules)


def _tracer_provider(
    settings: Settings, resource: Resource, redactor: Redactor, outputs: list[str], problems: list[str]
) -> TracerProvider:
    sampler = _sampler(settings, problems)
    provider = TracerProvider(
        sampler=WithoutExcluded(sampler),
        resource=resource,
        id_generator=_id_generator(settings, problems),
        shutdown_on_exit=False,  # as above
    )
    prepare = _span_preparer(settings, redactor)
    for name in settings.traces_exporters:
        try:
            exporter = reporting(
                exporter_class("traces", name, settings), "traces", _target("traces", name, settings), prepare
            )()
            provider.add_span_processor(batching(BatchSpanProcessor(exporter), exporter))
            outputs.append(f"traces ({describe_sampler(sampler)}) → {_target('traces', name, settings)}")
        except ExporterMissing as error:
            problems.append(f"traces are not sent to {name}: {error}")
        except Exception as error:  # noqa: BLE001 - as for metrics
            problems.append(f"traces are not sent to {name}: {type(error).__name__}: {error}")
    return provider


def _span_preparer(settings: Settings, redactor: Redactor) -> Callable[[Any], Any]:
    """Return what finished spans go through before they leave."""
    if not settings.llm_providers:
        return redactor.spans
    name = naming(LlmProviders(settings.llm_providers))
    return lambda spans: redactor.spans(name(spans))


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


def _logger_provider(
    settings: Settings, resource: Resource, redactor: Redactor, outputs: list[str], problems: list[str]
) -> Any:
    if not settings.logs_exporters:
        return None
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415 - only where log records leave
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415 - as above

    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for name in settings.logs_exporters:
        try:
            exporter = reporting(
                exporter_class("logs", name, settings), "logs", _target("logs", name, settings), redactor.logs
            )()
            provider.add_log_record_processor(batching(BatchLogRecordProcessor(exporter), exporter))
            outputs.append(f"logs → {_target('logs', name, settings)}")
        except ExporterMissing as error:
            problems.append(f"logs are not sent to {name}: {error}")
        except Exception as error:  # noqa: BLE001 - as for metrics
            problems.append(f"logs are not sent to {name}: {type(error).__name__}: {error}")
    return provider


def _target(signal: str, name: str, settings: Settings) -> str:
    if name.startswith("otlp"):
        return f"OTLP {settings.protocol_for(signal)} {mask('', endpoint(signal, settings))}"
    return name
