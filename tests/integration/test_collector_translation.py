# SPDX-License-Identifier: Apache-2.0
"""Translation in the Collector gives what translation in the SDK gives, sample by sample in a real Prometheus; the rest is a list."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

from jeeves_otel import failsafe
from jeeves_otel.cli import main
from jeeves_otel.generators.translation import LIMITS
from jeeves_otel.registry import TRANSLATED, load
from jeeves_otel.translation import Translator, marked
from jeeves_otel.views import sdk_views
from tests.conformance.events import Clock, Twin
from tests.conformance.oracle import Oracle
from tests.helpers import poll_until
from tests.integration.collectors import BUNDLE, Sidecar, clean_environment, resource, send
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.metrics.export import MetricsData

    from jeeves_otel.registry import Form, Instrument, Metric as Promised, Registry
    from tests.helpers import Pipeline

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Stored = dict[tuple[str, tuple[tuple[str, str], ...]], float]
REGISTRY = load()
SEEDS = range(12)
ODD: list[Any] = [
    "",
    "ünïcode 日本",
    'with "quotes" and \\',
    "two\nlines",
    "$dollar ${env:HOME}",
    " ",
    7,
    0,
    True,
    False,
]
_numbers = itertools.count()


class Way:
    """A sidecar that translates, with a Prometheus behind it."""

    def __init__(self, sidecar: Sidecar, prometheus: Prometheus) -> None:
        self.sidecar, self.prometheus = sidecar, prometheus

    def send(self, message: ExportMetricsServiceRequest) -> None:
        """Send *message*, and return when it has arrived."""
        assert send(self.sidecar, message)
        self.wait()

    def wait(self) -> None:
        """Return when a metric that is sent now has arrived."""
        mark = f"mark_{next(_numbers)}"
        point = NumberDataPoint(as_int=1, time_unix_nano=time.time_ns())
        scope = ScopeMetrics(metrics=[Metric(name=mark, gauge=Gauge(data_points=[point]))])
        last = ResourceMetrics(resource=resource(service_name="mark"), scope_metrics=[scope])
        assert send(self.sidecar, ExportMetricsServiceRequest(resource_metrics=[last]))
        poll_until(lambda: self.prometheus.query(mark), "what was sent last")

    def both(self, data: MetricsData, registry: Registry = REGISTRY) -> tuple[Stored, Stored]:
        """Return what is stored if the SDK has translated *data*, and if the Collector has."""
        number = next(_numbers)
        self.send(_as(f"sdk-{number}", encode_metrics(marked(Translator(registry)(data)))))
        self.send(_as(f"collector-{number}", encode_metrics(data)))
        return self.stored(f"sdk-{number}"), self.stored(f"collector-{number}")

    def stored(self, instance: str) -> Stored:
        """Return ``{(name, sorted labels): value}`` of all series of an instance."""
        found: Stored = {}
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
        stack.enter_context(sidecar.running("alerts.yaml", "translation.yaml"))
        yield Way(sidecar, prometheus)


# ---- what is measured ------------------------------------------------------------------------------------------------


class Service:
    """A service that records standard metrics, by default with the bounds that the documentation asks for."""

    def __init__(
        self, views: list[View] | None = None, temporality: dict[type, AggregationTemporality] | None = None
    ) -> None:
        self._reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.provider = MeterProvider(
            metric_readers=[self._reader],
            resource=Resource.create({"service.name": "a-service", "service.version": "1"}),
            views=sdk_views(REGISTRY, keep_semconv=False) if views is None else views,
            exemplar_filter=AlwaysOnExemplarFilter(),
            shutdown_on_exit=False,
        )
        self.meter = self.provider.get_meter("only")

    def collected(self) -> MetricsData:
        """Return what has been measured."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return data

    def http_request(self, seconds: float = 0.2, scope: str = "only", **attributes: Any) -> None:
        """Measure a request; ``_`` in a keyword is a dot."""
        histogram = self.provider.get_meter(scope).create_histogram("http.server.request.duration", "s")
        histogram.record(seconds, {key.replace("_", "."): value for key, value in attributes.items()})


class Everything(Service):
    """A service that records into every instrument that is mapped, with whatever attributes."""

    def __init__(self, seed: int, registry: Registry = REGISTRY) -> None:
        super().__init__(sdk_views(registry, keep_semconv=seed % 2 == 0))
        self.rng = Random(seed)
        self.seed = seed
        self.registry = registry

    def measure(self) -> None:
        """Record into one generation of each instrument, or all of them at once, and into some that are not mapped."""
        for metric in self.registry.metrics.values():
            for number, source in enumerate(metric.sources):
                instrument = self.registry.instruments[source.instrument]
                generations = instrument.generations
                if self.seed % 4 != 3:
                    generations = (generations[self.seed % len(generations)],)
                for form in (form for generation in generations for form in generation):
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
            for spelling in self.registry.spelled(key):
                if self.rng.random() < 0.5:
                    value = self.rng.choice([*_asked(key, self.registry) * 8, *_known(key, self.registry) * 2, *ODD])
                    found[spelling] = f"{prefix}{value}" if prefix else value
            if prefix:
                found[key] = f"{prefix}{self.rng.random()}"
        return found


def _known(key: str, registry: Registry) -> list[str]:
    """Return values of an attribute that some view knows, and some that none does."""
    known = {"a value", "SELECT", "select", "engine.v1.Engine", "engine.v1.Engine/Execute"}
    for metric in registry.metrics.values():
        for label in metric.labels:
            if any(key in template.keys for template in label.templates):
                known |= {*label.value_map, *label.values, *label.known}
    return sorted(known)


def _asked(key: str, registry: Registry) -> list[str]:
    """Return values of an attribute that some view asks for."""
    sources = [source for metric in registry.metrics.values() for source in metric.sources]
    return sorted({value for source in sources for value in source.conditions.get(key, ()) if value is not None})


def _as(instance: str, message: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    """Return *message* with another instance."""
    for each in message.resource_metrics:
        kept = [pair for pair in each.resource.attributes if pair.key != "service.instance.id"]
        del each.resource.attributes[:]
        each.resource.attributes.extend([*kept, *resource(service_instance_id=instance).attributes])
    return message


def _parts(metric: Promised) -> list[str]:
    """Return the names of the samples of a promised metric."""
    return [metric.name + end for end in (("_bucket", "_count", "_sum") if metric.type == "histogram" else ("",))]


def _zeros(samples: Stored) -> set[Any]:
    """Return the samples that may be there only in the SDK: zeros of counters with a marked label."""
    with_zeros = {metric.name for metric in REGISTRY.metrics.values() if any(label.zero for label in metric.labels)}
    return {key for key, value in samples.items() if key[0] in with_zeros and value == 0}


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


# ---- both ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_both_translations_give_the_same_samples(way: Way, seed: int) -> None:
    """Every sample of every promised family, what nobody maps and target_info; nothing under a standard name is left over."""
    service = Everything(seed)
    service.measure()
    expected, actual = way.both(service.collected())

    assert [] == _differences(expected, actual)
    assert "transform" not in way.sidecar.log.read_text(encoding="utf-8")  # which is where a statement fails
    assert set() == {part for metric in REGISTRY.metrics.values() for part in _parts(metric)} - {n for n, _ in actual}
    assert {"http_server_active_requests", "of_nobody_seconds_bucket", "target_info"} <= {name for name, _ in actual}


def test_both_translations_give_the_same_samples_for_what_the_recording_api_records(
    way: Way, make_pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random events of an agent service, in its own attributes, as if one library had recorded them all."""
    pipeline = make_pipeline(keep_mapped=True)
    Twin(pipeline, Oracle(), Random(1), Clock.installed(monkeypatch)).play(800)
    collected = pipeline.reader.get_metrics_data()
    assert collected is not None
    expected, actual = way.both(_in_one_scope(collected))

    assert [] == _differences(expected, actual)
    ours = {metric.name for metric in REGISTRY.metrics.values() if metric.profile == "internal"}
    promised = {part for name, metric in REGISTRY.metrics.items() if name not in ours for part in _parts(metric)}
    assert set() == promised - {name for name, _ in actual}


def _in_one_scope(data: MetricsData) -> MetricsData:
    """Return *data* with the points of all scopes in the metrics of the first scope that has them."""
    (only,) = data.resource_metrics
    found: dict[str, Any] = {}
    for metric in (metric for scope in only.scope_metrics for metric in scope.metrics):
        known = found.setdefault(metric.name, metric)
        if known is not metric:
            points = [*known.data.data_points, *metric.data.data_points]
            found[metric.name] = replace(known, data=replace(known.data, data_points=points))
    scope = replace(only.scope_metrics[0], metrics=list(found.values()))
    return replace(data, resource_metrics=[replace(only, scope_metrics=[scope])])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program of a service in Go, as the documentation sets it up."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    source, program = Path(__file__).parent / "apps" / "shop", tmp_path_factory.mktemp("shop") / "shop"
    subprocess.run(["go", "build", "-mod=readonly", "-o", program, "."], cwd=source, timeout=280, check=True)
    return program


def test_a_service_in_go_has_the_promised_metrics(way: Way, shop: Path) -> None:
    """Recorded by the SDK of its language in the convention's names, with two views for the bounds."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": way.sidecar.endpoints["http/protobuf"]}
    subprocess.run([shop], env=clean_environment(**endpoint), timeout=60, check=True)
    way.wait()
    stored = way.stored("go")
    llm, rpc, http = (
        (("model", "gpt-4o"), ("provider", "azure")),
        (("method", "/engine.v1.Engine/Execute"),),
        (("method", "GET"), ("path", "/")),
    )
    numbers = {
        ("jeeves_llm_calls_total", (*llm, ("status", "success"))): 1,
        ("jeeves_llm_calls_total", (*llm, ("status", "error"))): 1,
        ("jeeves_llm_provider_calls_total", (*llm, ("status", "success"))): 1,
        ("jeeves_llm_provider_calls_total", (*llm, ("status", "error"))): 1,
        ("jeeves_llm_provider_outcomes_total", (llm[0], ("outcome", "success"), llm[1])): 1,
        ("jeeves_llm_provider_outcomes_total", (llm[0], ("outcome", "error"), llm[1])): 1,
        ("jeeves_llm_tokens_total", (*llm, ("type", "prompt"))): 17,
        ("jeeves_grpc_requests_total", (*rpc, ("status", "success"))): 1,
        ("jeeves_http_requests_total", (*http, ("status_code", "200"))): 1,
    }
    for name, labels, values in (
        ("jeeves_llm_duration_seconds", llm, [0.75, 3]),
        ("jeeves_llm_provider_duration_seconds", llm, [0.75, 3]),
        ("jeeves_grpc_request_duration_seconds", rpc, [0.25]),
        ("jeeves_http_request_duration_seconds", http, [0.0625]),
    ):
        numbers |= {(f"{name}_count", labels): len(values), (f"{name}_sum", labels): sum(values)}
        for bound in (*REGISTRY.metrics[name].buckets, math.inf):
            le = "+Inf" if bound == math.inf else f"{bound:g}"
            numbers[f"{name}_bucket", (("le", le), *labels)] = len([each for each in values if each <= bound])

    assert {key: value for key, value in stored.items() if key[0] != "target_info"} == numbers


def test_the_service_in_go_is_set_up_as_documented() -> None:
    """What the page shows is what was run."""
    root = Path(__file__).parents[2]
    page = (root / "docs/howto/other-languages.md").read_text(encoding="utf-8")
    source = (root / "tests/integration/apps/shop/main.go").read_text(encoding="utf-8")

    assert page.split("```go\n")[1].split("```")[0] in source


# What the profiles of the package do not use.
OF_ONES_OWN = """
profile: features
instruments:
  own.work: {kind: histogram, unit: ms, brief: Work., attributes: [one, two, three, kind], bounds: [1, 10, 100, 1000]}
  own.time: {kind: counter, unit: us, brief: Time., attributes: [kind]}
  own.level: {kind: updowncounter, unit: '{thing}', brief: Level., attributes: [kind]}
metrics:
  own_work_seconds:
    {type: histogram, unit: s, help: Work., source: {instrument: own.work, take: histogram}, buckets: [0.01, 0.1],
     labels: {path: {from: ['/{one}/{two}:{three}!', '{one}-{two}', three], absent: "none of \\"them\\" for $5 ${env:HOME} {one}\\\\ 'é'\\n"}}}
  own_short_work_seconds:
    {type: histogram, unit: s, help: Work., buckets: [0.001, 0.1],
     source: {instrument: own.work, take: histogram, where: {two: null}},
     labels: {kind: {from: kind, fold: lower, map: {select: y, y: z}, unmapped: keep, absent: ''}}}
  own_work_seconds_total:
    {type: counter, unit: s, help: Work., source: {instrument: own.work, take: sum, where: {kind: [SELECT, null, '7', 'true']}},
     labels: {kind: {from: kind, map: {SELECT: select}, unmapped: rest, absent: absent}}}
  own_work_total:
    {type: counter, unit: '{work}', help: Work., source: {instrument: own.work, take: count},
     labels: {kind: {from: kind, values: [select, SELECT, none], unmapped: none, absent: none}, one: {from: one, present: there, absent: gone}}}
  own_time_seconds_total: {type: counter, unit: s, help: Time., source: {instrument: own.time, take: value}}
  own_level: {type: gauge, unit: '{thing}', help: Level., source: {instrument: own.level, take: value}}
  own_least: {type: gauge, unit: '{thing}', help: Level., source: {instrument: own.level, take: value}, merge: min}
  own_most: {type: gauge, unit: '{thing}', help: Level., source: {instrument: own.level, take: value}, merge: max}
  own_last: {type: gauge, unit: '{thing}', help: Level., source: {instrument: own.level, take: value}, merge: last}
"""


def test_views_of_ones_own_give_the_same_samples(way: Way, collector: str, tmp_path: Path) -> None:
    """Whatever a profile may say: templates, maps, folds, conditions, other units, every merge; by `jeeves-otel collector`."""
    profile, overlay = tmp_path / "own.yaml", tmp_path / "translation.yaml"
    profile.write_text(OF_ONES_OWN, encoding="utf-8")
    printed = CliRunner().invoke(main, ["collector", str(profile)])
    assert printed.exit_code == 0, printed.stderr
    overlay.write_text(printed.stdout, encoding="utf-8")
    registry = load((str(profile),))
    sidecar = Sidecar(collector, tmp_path, COLLECTOR_REMOTE_WRITE_URL=f"{way.prometheus.url}/api/v1/write")
    with sidecar.running(overlay):
        for seed in SEEDS[:4]:
            service = Everything(seed, registry)
            service.measure()
            expected, actual = Way(sidecar, way.prometheus).both(service.collected(), registry)

            assert [] == _differences(expected, actual)
            named = {
                part for name, metric in registry.metrics.items() if name.startswith("own") for part in _parts(metric)
            }
            assert set() == named - {name for name, _ in actual}


def test_what_the_sdk_has_translated_passes_as_it_is(way: Way) -> None:
    """Also if standard names leave beside: nothing is made of them a second time."""
    service = Everything(1)
    service.measure()
    translated = Translator(REGISTRY, keep_mapped=True)(service.collected())
    way.send(_as("both", encode_metrics(marked(translated))))
    samples = way.stored("both")

    assert samples["jeeves_user_sessions_active", ()] == samples["jeeves_sessions_active", ()]
    assert "http_server_duration_milliseconds_bucket" in {name for name, _ in samples}


@pytest.mark.parametrize("overlays", [(), ("translation.yaml",)], ids=["without", "with"])
def test_the_mark_is_a_label_of_nothing(way: Way, collector: str, tmp_path: Path, overlays: tuple[str, ...]) -> None:
    """With the overlay and without it target_info is what it has always been."""
    service = Service()
    service.http_request()
    sidecar = Sidecar(collector, tmp_path, COLLECTOR_REMOTE_WRITE_URL=f"{way.prometheus.url}/api/v1/write")
    with sidecar.running(*overlays):
        sdk, _ = Way(sidecar, way.prometheus).both(service.collected())
    labels = {label for _, pairs in sdk for label, _ in pairs}

    assert {"service_version", "telemetry_sdk_name", "telemetry_sdk_language", "telemetry_sdk_version"} <= labels
    assert [] == [label for label in labels if "translated" in label]


def test_the_merged_configuration_is_as_committed(collector: str) -> None:
    """Beside the statements, which are in collector/translation.yaml; JEEVES_WRITE_GOLDEN=1 writes it anew."""
    files = [
        part for name in (BUNDLE / "sidecar.yaml", BUNDLE / "translation.yaml") for part in ("--config", str(name))
    ]
    ended = subprocess.run(
        [collector, "print-config", *files, "--feature-gates=otelcol.printInitialConfig"],
        env=clean_environment(HOSTNAME="a-host"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    merged = yaml.safe_load(ended.stdout)
    merged["processors"]["transform/translation"]["metric_statements"] = "those of collector/translation.yaml"
    text = yaml.safe_dump(merged, width=1_000)
    golden = Path(__file__).parent / "golden" / "sidecar-with-translation.yaml"
    if os.environ.get("JEEVES_WRITE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8")

    assert golden.read_text(encoding="utf-8") == text


def _through(collector: str, folder: Path, message: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    """Send *message* through a sidecar that translates, and return it as it leaves before the queue."""
    folder = folder / str(next(_numbers))
    folder.mkdir()
    arrived, overlay = folder / "arrived.jsonl", folder / "overlay.yaml"
    # Without the last processor, which takes the mark away.
    processors = "[memory_limiter, resource/identity, transform/translation, filter/translation]"
    pipelines = f"service: {{pipelines: {{metrics: {{processors: {processors}}}}}}}\n"
    overlay.write_text(f"exporters: {{file: {{path: {arrived}}}}}\n{pipelines}", encoding="utf-8")
    sidecar = Sidecar(collector, folder, COLLECTOR_METRICS_EXPORTERS="[file]")
    with sidecar.running("translation.yaml", overlay):
        assert send(sidecar, message)
    parsed: ExportMetricsServiceRequest = json_format.Parse(
        arrived.read_text(encoding="utf-8"), ExportMetricsServiceRequest()
    )
    return parsed


def _metrics(message: ExportMetricsServiceRequest) -> dict[str, Metric]:
    return {
        metric.name: metric
        for each in message.resource_metrics
        for scope in each.scope_metrics
        for metric in scope.metrics
    }


def test_promised_metrics_leave_with_the_name_the_unit_and_the_type_that_the_sdk_gives_them(
    collector: str, tmp_path: Path
) -> None:
    """These are fixed points of remote write, as test_collector_edges shows; description and temporality are the same, too."""
    service = Everything(0)
    service.measure()
    data = service.collected()

    def shape(metric: Metric) -> tuple[Any, ...]:
        kind = str(metric.WhichOneof("data"))
        of_kind = getattr(metric, kind)
        temporality, monotonic = getattr(of_kind, "aggregation_temporality", 0), getattr(of_kind, "is_monotonic", False)
        return metric.unit, metric.description, kind, temporality, monotonic

    expected = _metrics(encode_metrics(Translator(REGISTRY)(data)))
    actual = _metrics(_through(collector, tmp_path, encode_metrics(data)))

    assert set(REGISTRY.metrics) <= set(actual)
    assert {name: shape(metric) for name, metric in expected.items()} == {
        name: shape(metric) for name, metric in actual.items()
    }


def test_translating_twice_is_translating_once(collector: str, tmp_path: Path) -> None:
    """What has been translated here is marked as by the SDK, and nothing else of ours is left in it."""
    service = Service([])
    service.http_request()
    once = _through(collector, tmp_path, encode_metrics(service.collected()))
    twice = _through(collector, tmp_path, once)
    (only,) = once.resource_metrics
    ours = [pair.key for pair in only.resource.attributes if pair.key.startswith("jeeves")]

    assert [TRANSLATED] == ours
    assert {"http.server.request.duration", "jeeves_http_requests_total"} == set(_metrics(once))
    assert "jeeves.otel." not in json_format.MessageToJson(once).replace(TRANSLATED, "")
    assert once == twice


# ---- what the Collector cannot do ------------------------------------------------------------------------------------


def test_each_limit_has_a_test() -> None:
    """The list in the documentation is the list below."""
    tests = [name for name in globals() if name.startswith("test_")]

    assert [] == [
        limit.name for limit in LIMITS if not [name for name in tests if name.startswith(f"test_{limit.name}_")]
    ]


def test_zeros_are_there_only_from_the_sdk(way: Way) -> None:
    """A success alone does not make a series of errors."""
    service = Service()
    service.meter.create_histogram("jeeves.agent.duration", "s").record(1, {"gen_ai.agent.name": "planner"})
    sdk, collector = way.both(service.collected())
    error = "jeeves_agent_executions_total", (("agent", "planner"), ("status", "error"))

    assert sdk[error] == 0
    assert error not in collector


def test_limits_of_open_labels_are_kept_only_by_the_sdk(way: Way, pipeline: Pipeline) -> None:
    """Seventy names of pipelines are seventy values, where the SDK has 64 and the rest."""
    service = Service()
    for provider in (service.provider, pipeline.meter_provider):
        decisions = provider.get_meter("only").create_counter("jeeves.routing.decisions", "{decision}")
        for number in range(70):
            decisions.add(1, {"jeeves.pipeline.name": f"pipeline-{number}"})
    _, collector = way.both(service.collected())
    name = "jeeves_routing_decisions_total"

    assert 65 == len(pipeline.counts_by(name, "pipeline"))
    assert 70 == len([key for key in collector if key[0] == name])


def test_scopes_are_not_added_up(way: Way) -> None:
    """Two scopes give two samples of one series at one time, of which one is stored, and nobody says so."""
    service = Service()
    for number, scope in enumerate(("first", "second", "second")):
        service.http_request(0.1 * number, scope, http_route="/")
    sdk, collector = way.both(service.collected())
    requests = "jeeves_http_requests_total", (("method", "_OTHER"), ("path", "/"), ("status_code", "0"))

    assert sdk[requests] == 3
    assert collector[requests] in {1, 2}


def test_times_that_differ_keep_points_apart(way: Way) -> None:
    """Two methods that nobody promises are one label; taken a second apart, the later one hides the other."""
    service = Service()
    for method in ("BREW", "WHEN", "WHEN"):
        service.http_request(0.1, http_route="/", http_request_method=method)
    data = service.collected()
    points = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert isinstance(points, list)
    points[0] = replace(points[0], time_unix_nano=points[0].time_unix_nano - 1_000_000_000)
    sdk, collector = way.both(data)
    requests = "jeeves_http_requests_total", (("method", "_OTHER"), ("path", "/"), ("status_code", "0"))

    assert sdk[requests] == 3
    assert collector[requests] == 2


def test_sources_with_the_same_labels_are_not_added_up(way: Way) -> None:
    """As with scopes: a rejection that is called like the outcome of a request hides one of the two."""
    service = Service()
    outcome = {"jeeves.orchestrator.outcome": "failed"}
    service.meter.create_histogram("jeeves.orchestrator.duration", "s").record(1, outcome)
    service.meter.create_counter("jeeves.orchestrator.rejections", "{request}").add(2, outcome)
    sdk, collector = way.both(service.collected())
    requests = "orchestrator_requests_total", (("outcome", "failed"),)

    assert sdk[requests] == 3
    assert collector[requests] in {1, 2}


PROMISED = REGISTRY.bounds_needed("http.server.request.duration")


@pytest.mark.parametrize(
    ("bounds", "families_of_the_sdk"),
    [([*PROMISED[:-1]], 0), ([*PROMISED, 11], 1), ([bound * 1_000 for bound in PROMISED], 0), ([], 0)],
    ids=["less", "more", "milliseconds", "none"],
)
def test_bounds_that_are_not_the_promised_ones_leave_the_histogram_its_name(
    way: Way, bounds: list[float], families_of_the_sdk: int
) -> None:
    """With its own attributes and buckets; requests are counted all the same. The SDK merges what is too much."""
    failsafe.set_strict(False)
    service = Service([View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation(bounds))])
    service.http_request(0.007, http_route="/")
    sdk, collector = way.both(service.collected())
    promised, standard = "jeeves_http_request_duration_seconds_count", "http_server_request_duration_seconds_count"

    assert families_of_the_sdk == len([name for name, _ in sdk if name == promised])
    assert promised not in {name for name, _ in collector}
    assert collector[standard, (("http_route", "/"),)] == 1
    assert {value for (name, _), value in collector.items() if name == "jeeves_http_requests_total"} == {1}


def test_bounds_that_are_not_the_promised_ones_are_never_under_a_promised_name(way: Way) -> None:
    """Prometheus would call this standard name like the promised one."""
    failsafe.set_strict(False)
    service = Service([View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation([1, 2]))])
    service.meter.create_histogram("jeeves.pipeline.duration", "s").record(1, {"jeeves.pipeline.name": "chat"})
    _, collector = way.both(service.collected())

    assert {"target_info", "jeeves_pipeline_executions_total"} == {name for name, _ in collector}


def test_exponential_histograms_keep_their_name(collector: str, tmp_path: Path) -> None:
    """Their bounds are not the promised ones; what is made of the count is there."""
    service = Service([View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())])
    service.http_request()
    left = _metrics(_through(collector, tmp_path, encode_metrics(service.collected())))

    assert {"jeeves_http_requests_total", "http.server.request.duration"} == set(left)
    assert "exponential_histogram" == left["http.server.request.duration"].WhichOneof("data")


def test_temporality_of_deltas_is_not_changed_and_remote_write_drops_them(way: Way) -> None:
    """Acknowledged and gone, as any delta; the counter of failures says so."""
    service = Service(temporality=dict.fromkeys((Counter, Histogram), AggregationTemporality.DELTA))
    service.http_request()
    service.meter.create_counter("jeeves.feature.usage").add(1)
    _, collector = way.both(service.collected())
    failed = {name: value for (name, _), value in way.sidecar.own_metrics().items() if "failed_translations" in name}

    assert {"target_info"} == {name for name, _ in collector}
    assert any(failed.values())


def test_exemplars_stay_with_histograms_and_are_lost_with_their_counts(collector: str, tmp_path: Path) -> None:
    """In the SDK both have them."""
    service = Service()
    service.http_request()
    data = service.collected()

    def exemplars(message: ExportMetricsServiceRequest) -> dict[str, int]:
        metrics = _metrics(message)
        return {
            "count": len(metrics["jeeves_http_requests_total"].sum.data_points[0].exemplars),
            "histogram": len(metrics["jeeves_http_request_duration_seconds"].histogram.data_points[0].exemplars),
        }

    assert {"count": 1, "histogram": 1} == exemplars(encode_metrics(Translator(REGISTRY)(data)))
    assert {"count": 0, "histogram": 1} == exemplars(_through(collector, tmp_path, encode_metrics(data)))


@pytest.mark.parametrize(
    ("value", "in_the_sdk", "in_the_collector"), [(1.0, "1.0", "1"), (["ü", "b"], '["\\u00fc","b"]', '["ü","b"]')]
)
def test_values_of_other_types_are_written_as_go_does(
    way: Way, value: Any, in_the_sdk: str, in_the_collector: str
) -> None:
    """Fractions and lists; text, whole numbers and truth are the same."""
    service = Service()
    service.meter.create_counter("jeeves.feature.usage").add(1, {"jeeves.feature.name": value})
    sdk, collector = way.both(service.collected())

    assert ("jeeves_feature_usage_total", (("feature", in_the_sdk),)) in sdk
    assert ("jeeves_feature_usage_total", (("feature", in_the_collector),)) in collector


def test_names_that_are_promised_are_not_kept_free(way: Way) -> None:
    """A metric that is called so already passes, where the SDK leaves it out."""
    failsafe.set_strict(False)
    service = Service()
    service.meter.create_counter("jeeves.llm.calls").add(7)
    sdk, collector = way.both(service.collected())

    assert "jeeves_llm_calls_total" not in {name for name, _ in sdk}
    assert collector["jeeves_llm_calls_total", ()] == 7
