# SPDX-License-Identifier: Apache-2.0
"""Where metrics go: Prometheus by remote write and by OTLP, VictoriaMetrics, and stores that ask for a tenant."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Exemplar,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from jeeves_otel.registry import TRANSLATED
from tests.helpers import poll_until
from tests.integration.backends import HANGS, OK, REFUSES, UNAVAILABLE, Door
from tests.integration.certificates import Certificates
from tests.integration.collectors import BUNDLE, Sidecar, counter, resource, send, text
from tests.integration.prometheus_server import (
    NOT_IN_2_42,
    Prometheus,
    configuration,
    prometheus_of_the_bundle,
    promtool,
    victoria_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HOUR_MS = 3_600_000
OTLP = "[otlp_http/prometheus]"
Stored = dict[frozenset[tuple[str, str]], list[tuple[float, float]]]


# ---- files -------------------------------------------------------------------------------------------------------------


def _checked(*arguments: str, old: bool) -> str:
    ended = subprocess.run([promtool(old=old), *arguments], capture_output=True, text=True, timeout=60, check=False)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.parametrize("old", [False, True], ids=["3", "2.42"])
def test_prometheus_takes_its_configuration(tmp_path: Path, *, old: bool) -> None:
    """With rules and addresses; 2.42 takes it without the two keys that docs/howto/prometheus.md names."""
    assert "" == _checked("check", "config", str(configuration(tmp_path, old=old)), old=old)


def test_what_2_42_does_not_know_is_what_the_docs_say() -> None:
    """Neither more nor less has to be taken out for it."""
    said = _checked("check", "config", str(BUNDLE / "prometheus.yaml"), old=True)

    assert NOT_IN_2_42 == {words.split()[0] for words in said.split("field ")[1:]}


@pytest.mark.parametrize("name", sorted(path.stem for path in (BUNDLE / "scrape").glob("*.yaml")))
def test_the_jobs_of_the_seeds_are_valid_beside_the_configuration(tmp_path: Path, name: str) -> None:
    """Each file may be put in scrape-enabled as it is."""
    path = configuration(tmp_path)
    (tmp_path / "scrape-enabled").mkdir()
    (tmp_path / "scrape-enabled" / "jobs.yaml").write_bytes((BUNDLE / "scrape" / f"{name}.yaml").read_bytes())

    assert "" == _checked("check", "config", str(path), old=False)


@pytest.mark.parametrize("about", ["collector", "prometheus", "telemetry"])
def test_rules_about_telemetry_fire_under_the_older_release_too(about: str) -> None:
    """On 2.42; all suites run on the shipped release in test_rules.py."""
    suites = sorted((BUNDLE.parent / "tests/rules").glob(f"{about}*.yaml"))

    assert suites
    assert [""] * len(suites) == [_checked("test", "rules", str(suite), old=True) for suite in suites]


def test_prometheus_knows_the_collector_its_rules_and_alertmanager(collector: str, tmp_path: Path) -> None:
    """By the files of targets; and alerts carry the labels of the seeds."""
    sidecar = Sidecar(collector, tmp_path, COLLECTOR_METRICS_EXPORTERS="[debug]")
    addresses = {"otelcol": f"127.0.0.1:{sidecar.own}", "alertmanager": "127.0.0.1:9"}
    with sidecar.running(), prometheus_of_the_bundle(tmp_path / "store", targets=addresses) as prometheus:
        poll_until(lambda: len(prometheus.get("targets")["activeTargets"]) > 1, "both targets")
        scraped = {each["labels"]["job"]: each["scrapeUrl"] for each in prometheus.get("targets")["activeTargets"]}
        poll_until(lambda: prometheus.get("alertmanagers")["activeAlertmanagers"], "Alertmanager")
        (alertmanager,) = prometheus.get("alertmanagers")["activeAlertmanagers"]
        rules = {rule["name"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
        known = yaml.safe_load(prometheus.get("status/config")["yaml"])

    assert {job: f"http://{address}/metrics" for job, address in addresses.items()} == scraped
    assert "http://127.0.0.1:9/api/v2/alerts" == alertmanager["url"]
    assert {"CollectorDown", "CollectorDrops", "PipelineErrorBudgetBurn", "LLMProviderDown"} <= rules
    assert {"cluster": "jeeves-core", "environment": "development"} == known["global"]["external_labels"]


# ---- what is sent --------------------------------------------------------------------------------------------------------


def _times(at_ms: int) -> dict[str, int]:
    return {"time_unix_nano": at_ms * 1_000_000, "start_time_unix_nano": (at_ms - 60_000) * 1_000_000}


def _exemplar(at_ms: int, value: float) -> Exemplar:
    ids = {"trace_id": at_ms.to_bytes(16, "big"), "span_id": at_ms.to_bytes(8, "big")}
    return Exemplar(as_double=value, time_unix_nano=at_ms * 1_000_000, **ids)


def _metrics(at_ms: int, number: int) -> list[Metric]:
    """Return one metric of each kind and of each trap of names: a unit, a suffix, dots, a collision, a gauge of 1."""
    pairs = [text("provider", "openai"), text("http.route", "/a/{b}")]
    cumulative = AGGREGATION_TEMPORALITY_CUMULATIVE
    points = [NumberDataPoint(as_int=number, attributes=pairs, exemplars=[_exemplar(at_ms, 1.0)], **_times(at_ms))]
    calls = Sum(data_points=points, aggregation_temporality=cumulative, is_monotonic=True)
    active = NumberDataPoint(as_double=number / 4, attributes=[text("a.b", "1"), text("a_b", "2")], **_times(at_ms))
    bucket = HistogramDataPoint(
        count=2 * number,
        sum=0.5 * number,
        bucket_counts=[number, number, 0],
        explicit_bounds=[0.1, 5],
        attributes=pairs,
        exemplars=[_exemplar(at_ms, 0.3)],
        **_times(at_ms),
    )
    durations = Histogram(data_points=[bucket], aggregation_temporality=cumulative)
    up_down = Sum(data_points=[active], aggregation_temporality=cumulative)
    return [
        Metric(name="jeeves_llm_calls_total", unit="1", sum=calls),
        Metric(name="http.client.requests", unit="{request}", sum=calls),
        Metric(name="jeeves_llm_duration_seconds", unit="s", histogram=durations),
        Metric(name="http.server.request.duration", unit="s", histogram=durations),
        Metric(name="jeeves_active", unit="1", gauge=Gauge(data_points=[active])),
        Metric(name="db.client.connection.count", unit="{connection}", sum=up_down),
    ]


def _request(at_ms: int, number: int) -> ExportMetricsServiceRequest:
    of = resource(service_name="a-service", service_namespace="a-team", service_instance_id="one", service_version="7")
    of.attributes.append(KeyValue(key=TRANSLATED, value=AnyValue(bool_value=True)))  # as from the SDK
    scope = ScopeMetrics(metrics=_metrics(at_ms, number))
    scope.scope.name, scope.scope.version = "a.library", "1.0"
    return ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(resource=of, scope_metrics=[scope])])


def _stored(store: Prometheus) -> Stored:
    """Return every sample that the service has sent, by the labels of its series."""
    return {frozenset(labels.items()): samples for labels, samples in store.samples('{job="a-team/a-service"}')}


def _labels_of_the_target(store: Prometheus) -> set[str]:
    return {label for labels, _ in store.samples("target_info") for label in labels}


def _sent_late(sidecar: Sidecar, count: int) -> int:
    """Send the metrics *count* times, an hour ago last; return how many samples each series has then."""
    now_ms = time.time_ns() // 1_000_000
    for number in range(1, count):
        assert send(sidecar, _request(now_ms - (count - number) * 1_000, number))
    assert send(sidecar, _request(now_ms - HOUR_MS, 0))
    return count


def _have(store: Prometheus, samples: int) -> bool:
    stored = _stored(store)
    return bool(stored) and all(len(each) == samples for each in stored.values())


# ---- two ways to Prometheus ----------------------------------------------------------------------------------------------


def test_remote_write_and_otlp_make_the_same_series(collector: str, tmp_path: Path) -> None:
    """The same stream by both ways into two servers: every name, label, sample and exemplar, target_info included."""
    with ExitStack() as stack:
        written = stack.enter_context(prometheus_of_the_bundle(tmp_path / "written"))
        received = stack.enter_context(prometheus_of_the_bundle(tmp_path / "received", otlp=True))
        sidecar = Sidecar(
            collector,
            tmp_path,
            COLLECTOR_METRICS_EXPORTERS="[otlp_grpc/rw_hop, otlp_http/prometheus]",
            COLLECTOR_REMOTE_WRITE_URL=f"{written.url}/api/v1/write",
            COLLECTOR_PROMETHEUS_OTLP_URL=f"{received.url}/api/v1/otlp/v1/metrics",
        )
        stack.enter_context(sidecar.running())
        count = _sent_late(sidecar, 4)
        for store in (written, received):
            poll_until(lambda store=store: _have(store, count), "every sample")
        selector = '{job="a-team/a-service"}'
        by_write, by_otlp = (sorted(each.exemplars(selector), key=str) for each in (written, received))

        assert len(_stored(written)) > 10
        assert _stored(written) == _stored(received)
        assert {"job", "instance", "service_version", "__name__"} == _labels_of_the_target(written)
        assert by_write
        assert by_write == by_otlp


@pytest.fixture
def by_otlp(collector: str, tmp_path: Path) -> Iterator[tuple[Sidecar, Door, Prometheus]]:
    """Yield a sidecar whose metrics go to the OTLP receiver of Prometheus, through a door."""
    with ExitStack() as stack:
        prometheus = stack.enter_context(prometheus_of_the_bundle(tmp_path / "store", otlp=True))
        door = Door(prometheus.url)
        stack.callback(door.stop)
        sidecar = Sidecar(
            collector,
            tmp_path,
            COLLECTOR_METRICS_EXPORTERS=OTLP,
            COLLECTOR_PROMETHEUS_OTLP_URL=f"http://127.0.0.1:{door.port}/api/v1/otlp/v1/metrics",
            COLLECTOR_HOP_TIMEOUT="2s",
        )
        stack.enter_context(sidecar.running())
        yield sidecar, door, prometheus


def _count(sidecar: Sidecar, values: range) -> dict[float, float]:
    """Send the values of one counter, all acknowledged; return ``{time in s: value}``."""
    sent = {}
    now_ms = time.time_ns() // 1_000_000
    for value in values:
        at_ms = now_ms - 1_000 + value  # no two of one time
        assert send(sidecar, counter(resource(service_name="otlp"), "of_otlp_total", value, at_ms, at_ms - 60_000))
        sent[at_ms / 1_000] = float(value)
    return sent


def _failed(sidecar: Sidecar) -> dict[str, float]:
    """Return how many points each exporter has dropped."""
    failed = "otelcol_exporter_send_failed_metric_points_total"
    return {
        dict(labels)["exporter"]: value for (name, labels), value in sidecar.own_metrics().items() if name == failed
    }


def _kept(prometheus: Prometheus) -> dict[float, float]:
    return {at: value for _, samples in prometheus.samples("of_otlp_total") for at, value in samples}


@pytest.mark.parametrize("behaviour", [UNAVAILABLE, REFUSES, HANGS])
def test_an_outage_loses_nothing_that_otlp_had_acknowledged(
    by_otlp: tuple[Sidecar, Door, Prometheus], behaviour: str
) -> None:
    """Nor does a kill -9 in the middle of it."""
    sidecar, door, prometheus = by_otlp
    sent = _count(sidecar, range(5))
    poll_until(lambda: _kept(prometheus) == sent, "the first samples")
    door.behave(behaviour)
    sent |= _count(sidecar, range(5, 30))
    poll_until(lambda: "Exporting failed. Will retry" in sidecar.log.read_text(encoding="utf-8"), "a failed attempt")
    sidecar.kill()
    sidecar.start()
    sent |= _count(sidecar, range(30, 40))
    door.behave(OK)
    poll_until(lambda: _kept(prometheus) == sent, "every sample")

    assert sent == _kept(prometheus)


def test_a_500_drops_what_otlp_had_acknowledged_and_is_counted(by_otlp: tuple[Sidecar, Door, Prometheus]) -> None:
    """Unlike remote write, which tries again; the rule CollectorDrops fires on the counter."""
    sidecar, door, prometheus = by_otlp
    door.behave("500")
    _count(sidecar, range(3))
    poll_until(lambda: door.refused == 3, "three answers")
    door.behave(OK)
    sent = _count(sidecar, range(3, 5))
    poll_until(lambda: _kept(prometheus) == sent, "what came afterwards")

    assert {"otlp_http/prometheus": 3.0} == _failed(sidecar)
    assert 3 == door.refused


@pytest.mark.parametrize("what", ["too old", "delta"])
def test_a_point_that_prometheus_refuses_takes_its_request_along_by_otlp(
    by_otlp: tuple[Sidecar, Door, Prometheus], what: str
) -> None:
    """For good, so it holds up nothing; remote write loses only the point, see test_collector_edges.py."""
    sidecar, door, prometheus = by_otlp
    now_ms = time.time_ns() // 1_000_000
    of = resource(service_name="otlp")
    refused = counter(of, "of_refused_total", 2, now_ms - 3 * HOUR_MS, now_ms - 3 * HOUR_MS)
    if what == "delta":
        refused = counter(of, "of_refused_total", 2, now_ms, now_ms)
        refused.resource_metrics[0].scope_metrics[0].metrics[
            0
        ].sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
    assert send(sidecar, counter(of, "of_refused_total", 1, now_ms, now_ms))
    refused.MergeFrom(counter(of, "beside_refused_total", 1, now_ms, now_ms))
    assert send(sidecar, refused)
    assert send(sidecar, counter(of, "of_later_total", 1, now_ms, now_ms))
    poll_until(lambda: prometheus.query("of_later_total"), "what came afterwards")

    assert {} == prometheus.query("beside_refused_total")
    assert 3 == len(door.bodies)
    assert {"otlp_http/prometheus": 2.0} == _failed(sidecar)


@pytest.mark.parametrize("way", ["bearer", "basic"])
def test_the_overlays_for_tls_and_credentials_are_for_otlp_too(collector: str, tmp_path: Path, way: str) -> None:
    """A sample arrives over mutual TLS with what the overlay says."""
    certificates = Certificates(tmp_path)
    (tmp_path / "token").write_text("token-of-a-file\n", encoding="utf-8")
    store = Door(certificates=certificates, status=200)
    sidecar = Sidecar(
        collector,
        tmp_path,
        COLLECTOR_METRICS_EXPORTERS=OTLP,
        COLLECTOR_PROMETHEUS_OTLP_URL=f"https://localhost:{store.port}/api/v1/otlp/v1/metrics",
        COLLECTOR_METRICS_CA_FILE=certificates.path("ca.pem"),
        COLLECTOR_METRICS_CERT_FILE=certificates.path("client.pem"),
        COLLECTOR_METRICS_KEY_FILE=certificates.path("client.key"),
        COLLECTOR_METRICS_TOKEN_FILE=certificates.path("token"),
        COLLECTOR_METRICS_USERNAME="somebody",
        COLLECTOR_METRICS_PASSWORD="0123",
    )
    try:
        with sidecar.running("metrics-tls.yaml", f"metrics-{way}.yaml"):
            assert send(sidecar, _request(time.time_ns() // 1_000_000, 1))
            poll_until(lambda: store.headers, "a request")
    finally:
        store.stop()
    expected = {"bearer": "Bearer token-of-a-file", "basic": "Basic c29tZWJvZHk6MDEyMw=="}

    assert expected[way] == store.headers[0]["authorization"]


# ---- other stores --------------------------------------------------------------------------------------------------------


def test_victoria_metrics_has_the_samples_that_prometheus_has(collector: str, tmp_path: Path) -> None:
    """And the labels of its environment; whatever the age of a sample. It has no exemplars."""
    with ExitStack() as stack:
        prometheus = stack.enter_context(prometheus_of_the_bundle(tmp_path / "prometheus", otlp=True))
        victoria = stack.enter_context(victoria_metrics(tmp_path / "victoria"))
        sidecar = Sidecar(
            collector,
            tmp_path,
            COLLECTOR_METRICS_EXPORTERS="[otlp_grpc/rw_hop, otlp_http/prometheus]",
            COLLECTOR_REMOTE_WRITE_URL=f"{victoria.url}/api/v1/write",
            COLLECTOR_PROMETHEUS_OTLP_URL=f"{prometheus.url}/api/v1/otlp/v1/metrics",
            COLLECTOR_ENVIRONMENT="production",
        )
        stack.enter_context(sidecar.running("metrics-victoriametrics.yaml"))
        count = _sent_late(sidecar, 4)
        for store in (prometheus, victoria):
            poll_until(lambda store=store: _have(store, count), "every sample")
        of = {("cluster", "jeeves-core"), ("environment", "production")}
        now_ms = time.time_ns() // 1_000_000
        old = counter(resource(service_name="old"), "of_old_total", 1, now_ms - 24 * HOUR_MS, now_ms - 24 * HOUR_MS)
        assert send(sidecar, old)

        assert {labels | of: samples for labels, samples in _stored(prometheus).items()} == _stored(victoria)
        assert not {label for label in _labels_of_the_target(victoria) if "translated" in label}
        poll_until(lambda: victoria.get("query", query="of_old_total[25h]")["result"], "the sample of yesterday")


def test_a_store_of_several_tenants_is_told_whose_samples_these_are(collector: str, tmp_path: Path) -> None:
    """By the header of Mimir and of Thanos; a stand-in for them looks at it."""
    store = Door()
    sidecar = Sidecar(
        collector,
        tmp_path,
        COLLECTOR_REMOTE_WRITE_URL=f"http://127.0.0.1:{store.port}/api/v1/push",
        COLLECTOR_TENANT="a-team",
    )
    try:
        with sidecar.running("metrics-tenant.yaml"):
            assert send(sidecar, _request(time.time_ns() // 1_000_000, 1))
            poll_until(lambda: store.headers, "a request")
    finally:
        store.stop()
    expected: dict[str, Any] = {"x-scope-orgid": "a-team", "thanos-tenant": "a-team"}

    assert expected == {key: store.headers[0].get(key) for key in expected}
