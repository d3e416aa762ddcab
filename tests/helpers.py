# SPDX-License-Identifier: Apache-2.0
"""The real pipeline in memory, and ways to ask what came out of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import (
    AlwaysOnExemplarFilter,
    MeterProvider as SdkMeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client.parser import text_string_to_metric_families

from jeeves_otel.cardinality import Bounds
from jeeves_otel.metering import MeterProvider
from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.registry import load
from jeeves_otel.sampling import WithoutExcluded
from jeeves_otel.translation import Translator
from jeeves_otel.views import sdk_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from jeeves_otel.llm_providers import LlmProviders
    from jeeves_otel.registry import Registry

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Pipeline:
    """The distribution's own pipeline around an in-memory reader: recording, provider, views, translation, page.

    Args:
        profiles: Names or paths; default ``jeeves``.
        temporality: For the reader, ``{instrument class: temporality}``; default cumulative.
        declared: Label sets that exist from the start.
        registry: Used instead of loading *profiles*.
        sampler: Of the spans; default all.
        llm_providers: Providers of LLM calls by server.
        options: Further arguments of `Translator`.
    """

    def __init__(
        self,
        *profiles: str,
        temporality: dict[type, Any] | None = None,
        declared: Iterable[Mapping[str, str]] = (),
        registry: Registry | None = None,
        always_exemplars: bool = False,
        sampler: Sampler | None = None,
        llm_providers: LlmProviders | None = None,
        **options: Any,
    ) -> None:
        self.registry = registry if registry is not None else load(profiles or ("jeeves",))
        self.reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.sdk_provider = SdkMeterProvider(
            metric_readers=[self.reader],
            views=sdk_views(self.registry, keep_semconv=bool(options.get("keep_mapped"))),
            resource=Resource({"service.name": "test"}),
            shutdown_on_exit=False,
            exemplar_filter=AlwaysOnExemplarFilter() if always_exemplars else TraceBasedExemplarFilter(),
        )
        declared = list(declared)
        self.bounds = Bounds(self.registry, declared)
        self.meter_provider = MeterProvider(self.sdk_provider, self.registry, self.bounds, llm_providers=llm_providers)
        self.translate = Translator(
            self.registry, declared=declared, **{"started_unix_nano": time.time_ns(), **options}
        )
        self.collector = PrometheusCollector(self.reader, self.translate)
        self.spans_exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(sampler=WithoutExcluded(sampler or ALWAYS_ON), shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans_exporter))

    def translated(self) -> MetricsData:
        """Collect and translate."""
        data = self.reader.get_metrics_data()
        return self.translate(data if data is not None else MetricsData([]))

    def page(self, *, openmetrics: bool = False) -> str:
        """Return the page that a scraper would get."""
        return self.collector.page("application/openmetrics-text" if openmetrics else "")[0]

    def samples(self) -> Samples:
        """Scrape, and return ``{(sample name, sorted labels): value}`` as prometheus_client parses it."""
        return samples_of(self.page())

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the finished spans, in the order in which they ended."""
        return self.spans_exporter.get_finished_spans()

    def counts_by(self, name: str, label: str) -> dict[str, float]:
        """Return ``{label value: sum of the samples}`` of one metric, without zeros."""
        return counts_by(self.samples(), name, label)

    def shutdown(self) -> None:
        """Stop the providers."""
        self.sdk_provider.shutdown()
        self.tracer_provider.shutdown()


def samples_of(page: str) -> Samples:
    """Parse a page of Prometheus text; a sample that stands twice is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


def counts_by(samples: Samples, name: str, label: str) -> dict[str, float]:
    """Return ``{label value: sum of the samples}`` of one metric, without zeros."""
    counts: dict[str, float] = {}
    for (sample, labels), value in samples.items():
        if sample == name and value:
            text = dict(labels)[label]
            counts[text] = counts.get(text, 0) + value
    return counts


def poll_until(check: Callable[[], Any], what: str, *, timeout_s: float = 30.0) -> Any:
    """Call *check* until it returns something true, and return that; fail naming *what* was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = check()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")
