# SPDX-License-Identifier: Apache-2.0
"""Translation in the Collector gives what translation in the SDK gives, sample by sample in a real Prometheus; the rest is a list."""

from __future__ import annotations

import itertools
import math
import time
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from jeeves_otel.registry import load
from jeeves_otel.translation import Translator, marked
from jeeves_otel.views import sdk_views
from tests.helpers import poll_until
from tests.integration.collectors import Sidecar, resource, send
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.metrics.export import MetricsData

    from jeeves_otel.registry import Form, Instrument

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Stored = dict[tuple[str, tuple[tuple[str, str], ...]], float]
REGISTRY = load()
SEEDS = range(8)
ODD: list[Any] = ["", "ünïcode 日本", 'with "quotes" and \\', "two\nlines", "$dollar ${env:HOME}", " ", 7, 0, True, False]
_numbers = itertools.count()


class Way:
    """A sidecar that translates, with a Prometheus behind it."""

    def __init__(self, sidecar: Sidecar, prometheus: Prometheus) -> None:
        self.sidecar, self.prometheus = sidecar, prometheus

    def send(self, message: ExportMetricsServiceRequest) -> None:
        """Send *message*, and return when a metric that was sent after it has arrived."""
        mark = f"mark_{next(_numbers)}"
        point = NumberDataPoint(as_int=1, time_unix_nano=time.time_ns())
        scope = ScopeMetrics(metrics=[Metric(name=mark, gauge=Gauge(data_points=[point]))])
        last = ResourceMetrics(resource=resource(service_name="mark"), scope_metrics=[scope])
        assert send(self.sidecar, message)
        assert send(self.sidecar, ExportMetricsServiceRequest(resource_metrics=[last]))
        poll_until(lambda: self.prometheus.query(mark), "what was sent last")

    def stored(self, instance: str) -> Stored:
        """Return ``{(name, sorted labels): value}`` of all series of an instance."""
        found = {}
        for pairs, value in self.prometheus.query(f'{{instance="{instance}"}}').items():
            labels = {key: text for key, text in pairs if key not in {"__name__", "instance", "job"}}
            found[dict(pairs)["__name__"], tuple(sorted(labels.items()))] = value
        return found


@pytest.fixture(scope="module")
def way(collector: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Yield the way from OTLP to Prometheus with the overlay."""
    folder = tmp_path_factory.mktemp("translation")
    with ExitStack() as stack:
        prometheus = stack.enter_context(prometheus_of_the_bundle(folder))
        sidecar = Sidecar(collector, folder, COLLECTOR_REMOTE_WRITE_URL=f"{prometheus.url}/api/v1/write")
        stack.enter_context(sidecar.running("translation.yaml"))
        yield Way(sidecar, prometheus)


# ---- what is measured ------------------------------------------------------------------------------------------------


class Service:
    """A service that records standard metrics, with the bounds that the documentation asks for."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.seed = seed
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider(
            metric_readers=[self._reader],
            resource=Resource.create({"service.name": "a-service", "service.version": "1"}),
            views=sdk_views(REGISTRY, keep_semconv=seed % 2 == 0),
            shutdown_on_exit=False,
        )
        self.meter = self.provider.get_meter("only")

    def measure_everything(self) -> None:
        """Record into one generation of every instrument that is mapped, and into some that are not."""
        for metric in REGISTRY.metrics.values():
            for number, source in enumerate(metric.sources):
                instrument = REGISTRY.instruments[source.instrument]
                generation = instrument.generations[self.seed % len(instrument.generations)]
                for form in generation:
                    self._measure(instrument, form, f"{number}-" if number else "")
        self.meter.create_up_down_counter("http.server.active_requests", "{request}").add(3, {"a.b": "c"})
        self.meter.create_histogram("of.nobody", "s").record(1)

    def _measure(self, instrument: Instrument, form: Form, prefix: str) -> None:
        record = self._recorder(form)
        for _ in range(30):
            record(self._value(form), self._attributes(instrument, form, prefix))

    def _recorder(self, form: Form) -> Callable[[Any, dict[str, Any]], None]:
        if form.kind == "histogram":
            return self.meter.create_histogram(form.name, form.unit).record
        if form.kind == "gauge":
            return self.meter.create_gauge(form.name, form.unit).set
        made = self.meter.create_counter if form.kind == "counter" else self.meter.create_up_down_counter
        return made(form.name, form.unit).add

    def _value(self, form: Form) -> float:
        if form.kind == "histogram":
            factor = 1_000 if form.unit == "ms" else 1
            return self.rng.choice([0.0, 0.1, 1.0, self.rng.random(), self.rng.uniform(0, 100)]) * factor
        return self.rng.choice([1, 0, 2.5, self.rng.randrange(10_000), self.rng.random()])

    def _attributes(self, instrument: Instrument, form: Form, prefix: str) -> dict[str, Any]:
        """Return attributes in any spelling; each may be missing, odd, or what maps and conditions know."""
        found = {}
        for key in (key for key in instrument.attributes if key not in form.assume):
            for spelling in REGISTRY.spelled(key):
                if self.rng.random() < 0.5:
                    value = self.rng.choice([*_asked(key) * 8, *_known(key) * 2, *ODD])
                    found[spelling] = f"{prefix}{value}" if prefix else value
            if prefix:
                found[key] = f"{prefix}{self.rng.random()}"
        return found

    def collected(self) -> MetricsData:
        """Return what has been measured."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return data


def _known(key: str) -> list[str]:
    """Return values of an attribute that some view knows, and some that none does."""
    known = {"a value", "SELECT", "select", "engine.v1.Engine", "engine.v1.Engine/Execute"}
    for metric in REGISTRY.metrics.values():
        for label in metric.labels:
            if any(key in template.keys for template in label.templates):
                known |= {*label.value_map, *label.values, *label.known}
    return sorted(known)


def _asked(key: str) -> list[str]:
    """Return values of an attribute that some view asks for."""
    sources = [source for metric in REGISTRY.metrics.values() for source in metric.sources]
    return sorted({value for source in sources for value in source.conditions.get(key, ()) if value is not None})


def _as(instance: str, message: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    """Return *message* with another instance."""
    for each in message.resource_metrics:
        kept = [pair for pair in each.resource.attributes if pair.key != "service.instance.id"]
        del each.resource.attributes[:]
        each.resource.attributes.extend([*kept, *resource(service_instance_id=instance).attributes])
    return message


def _family(name: str) -> str:
    for end in ("_bucket", "_count", "_sum"):
        if name.removesuffix(end) in REGISTRY.metrics:
            return name.removesuffix(end)
    return name


def _zeros(samples: Stored) -> set[Any]:
    """Return the samples that may be there only in the SDK: zeros of counters with a marked label."""
    marked_names = {
        metric.name
        for metric in REGISTRY.metrics.values()
        if metric.type == "counter" and any(label.zero for label in metric.labels)
    }
    return {key for key, value in samples.items() if key[0] in marked_names and value == 0}


def _differences(expected: Stored, actual: Stored) -> list[Any]:
    """Return what differs: sums by more than 1e-9 of them, all else at all."""
    missing = expected.keys() - actual.keys() - _zeros(expected)
    extra = actual.keys() - expected.keys()
    other = [
        (key, expected[key], actual[key])
        for key in expected.keys() & actual.keys()
        if not math.isclose(expected[key], actual[key], rel_tol=1e-9, abs_tol=1e-9 if key[0].endswith("_sum") else 0)
    ]
    return [("missing", key) for key in sorted(missing)] + [("extra", key) for key in sorted(extra)] + other


# ---- both ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_both_translations_give_the_same_samples(way: Way, seed: int) -> None:
    """Every sample of every promised family, what nobody maps and target_info; nothing under a standard name is left over."""
    service = Service(seed)
    service.measure_everything()
    data = service.collected()
    way.send(_as(f"sdk-{seed}", encode_metrics(marked(Translator(REGISTRY)(data)))))
    way.send(_as(f"collector-{seed}", encode_metrics(data)))
    expected, actual = way.stored(f"sdk-{seed}"), way.stored(f"collector-{seed}")

    assert [] == _differences(expected, actual)
    assert set(REGISTRY.metrics) - {_family(name) for name, _ in actual} == set()
    assert {"http_server_active_requests", "of_nobody_seconds_bucket", "target_info"} <= {name for name, _ in actual}
