# SPDX-License-Identifier: Apache-2.0
"""What becomes of odd metrics between the sidecar and a real Prometheus: each has one answer, and docs/reliability.md says it."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from jeeves_otel.registry import load
from tests.helpers import poll_until
from tests.integration.collectors import Sidecar, resource, send, text
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HOUR_MS = 3_600_000
_numbers = itertools.count()


@dataclass
class Way:
    """A sidecar with a Prometheus behind it."""

    sidecar: Sidecar
    prometheus: Prometheus

    def send(self, *metrics: Metric, instance: str = "one") -> None:
        """Send *metrics* in one request, and return when a metric that was sent after them has arrived."""
        mark = f"mark_{next(_numbers)}"
        now = Metric(name=mark, gauge=Gauge(data_points=[NumberDataPoint(as_int=1, time_unix_nano=time.time_ns())]))
        for made in (metrics, (now,)):
            of = resource(service_name="odd", service_instance_id=instance)
            scope = ScopeMetrics(metrics=made)
            message = ExportMetricsServiceRequest(
                resource_metrics=[ResourceMetrics(resource=of, scope_metrics=[scope])]
            )
            assert send(self.sidecar, message)
        poll_until(lambda: self.prometheus.query(mark), "what was sent last")

    def stored(self, name: str) -> list[tuple[dict[str, str], list[float]]]:
        """Return labels and values of every series called *name*, without ``__name__`` and ``job``."""
        return [
            ({key: value for key, value in labels.items() if key not in {"__name__", "job"}}, [v for _, v in samples])
            for labels, samples in self.prometheus.samples(name)
        ]


@pytest.fixture(scope="module")
def way(collector: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Yield one sidecar and one Prometheus for all tests, which use different names."""
    with _way(collector, tmp_path_factory.mktemp("edges")) as found:
        yield found


@contextmanager
def _way(collector: str, folder: Path, *overlays: Path, old: bool = False) -> Iterator[Way]:
    """Run a sidecar, and Prometheus or its *old* release, with files in *folder*."""
    with ExitStack() as stack:
        prometheus = stack.enter_context(prometheus_of_the_bundle(folder / "store", old=old))
        sidecar = Sidecar(
            collector,
            folder,
            COLLECTOR_REMOTE_WRITE_URL=f"{prometheus.url}/api/v1/write",
            COLLECTOR_HOP_TIMEOUT="2s",
        )
        stack.enter_context(sidecar.running(*overlays))
        yield Way(sidecar, prometheus)


def _counter(name: str, value: int, *, age_ms: int = 0, delta: bool = False, **labels: str) -> Metric:
    now = time.time_ns() - age_ms * 1_000_000
    pairs = [text(key, text_) for key, text_ in labels.items()]
    point = NumberDataPoint(as_int=value, time_unix_nano=now, start_time_unix_nano=now - 10**9, attributes=pairs)
    temporality = AGGREGATION_TEMPORALITY_DELTA if delta else AGGREGATION_TEMPORALITY_CUMULATIVE
    return Metric(
        name=name, unit="1", sum=Sum(data_points=[point], aggregation_temporality=temporality, is_monotonic=True)
    )


def _promised(name: str, kind: str, unit: str) -> Metric:
    """Return a metric as the SDK sends it under its promised name."""
    now = time.time_ns()
    fields: dict[str, Any] = {"time_unix_nano": now, "start_time_unix_nano": now - 10**9}
    if kind == "counter":
        return Metric(name=name, unit=unit, sum=_counter(name, 1).sum)
    if kind == "gauge":
        return Metric(name=name, unit=unit, gauge=Gauge(data_points=[NumberDataPoint(as_int=1, **fields)]))
    point = HistogramDataPoint(count=1, sum=1.0, bucket_counts=[1, 0], explicit_bounds=[5.0], **fields)
    data = Histogram(data_points=[point], aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
    return Metric(name=name, unit=unit, histogram=data)


def test_promised_names_are_not_changed_on_the_way(way: Way) -> None:
    """Whatever its type and unit: remote write would add suffixes to others."""
    metrics = load().metrics.values()
    way.send(*[_promised(metric.name, metric.type, metric.unit) for metric in metrics], instance="names")
    expected = {f"{each.name}_count" if each.type == "histogram" else each.name for each in metrics}
    stored = {dict(labels)["__name__"] for labels in way.prometheus.query('{instance="names"}')}

    assert set() == expected - stored
    assert set() == {
        name
        for name in stored
        if not name.startswith("mark_")
        and name.removesuffix("_sum").removesuffix("_bucket") not in {each.name for each in metrics} | expected
    }


def test_a_metric_with_delta_temporality_is_dropped_and_counted(way: Way) -> None:
    """Acknowledged, and gone: the SDK sends cumulative, whoever sends anything else sees it here."""
    way.send(_counter("of_delta_total", 1, delta=True))
    failed = {name: value for (name, _), value in way.sidecar.own_metrics().items() if "failed_translations" in name}

    assert [] == way.stored("of_delta_total")
    assert any(failed.values())


def test_processes_with_different_ids_have_different_series(way: Way) -> None:
    """Which is why each process of the SDK has an id of its own."""
    way.send(_counter("of_two_total", 5), instance="first")
    way.send(_counter("of_two_total", 3), instance="second")

    assert [({"instance": "first"}, [5.0]), ({"instance": "second"}, [3.0])] == sorted(
        way.stored("of_two_total"), key=lambda each: each[0]["instance"]
    )


def test_processes_with_one_id_have_one_series_that_goes_up_and_down(way: Way) -> None:
    """Nobody can tell them apart afterwards: every fall looks like a restart."""
    for value in (5, 3, 6, 4):
        way.send(_counter("of_one_total", value), instance="shared")

    assert [({"instance": "shared"}, [5.0, 3.0, 6.0, 4.0])] == way.stored("of_one_total")


def test_a_sample_within_the_window_arrives_late(way: Way) -> None:
    """As after an outage of an hour."""
    way.send(_counter("of_late_total", 2))
    way.send(_counter("of_late_total", 1, age_ms=HOUR_MS))

    assert [({"instance": "one"}, [1.0, 2.0])] == way.stored("of_late_total")


def _send_a_stale_sample(way: Way) -> None:
    """Send a counter, then its value of three hours ago together with another counter, then the first again."""
    way.send(_counter("of_stale_total", 2))
    way.send(_counter("of_stale_total", 1, age_ms=3 * HOUR_MS), _counter("beside_stale_total", 7))
    way.send(_counter("of_stale_total", 3))


def test_a_sample_beyond_the_window_is_dropped_alone_and_counted(way: Way) -> None:
    """What came with it is stored, and what comes after it; see the counter of filter/stale."""
    _send_a_stale_sample(way)
    dropped = "otelcol_processor_filter_datapoints_filtered_total"

    assert [({"instance": "one"}, [2.0, 3.0])] == way.stored("of_stale_total")
    assert [({"instance": "one"}, [7.0])] == way.stored("beside_stale_total")
    assert [1.0] == [value for (name, _), value in way.sidecar.own_metrics().items() if name == dropped]


def test_so_it_is_with_prometheus_2_42(collector: str, tmp_path: Path) -> None:
    """Which would answer 500 for ever."""
    with _way(collector, tmp_path, old=True) as way:
        _send_a_stale_sample(way)

        assert [({"instance": "one"}, [2.0, 3.0])] == way.stored("of_stale_total")
        assert [({"instance": "one"}, [7.0])] == way.stored("beside_stale_total")


def test_without_the_filter_prometheus_3_refuses_the_whole_request(collector: str, tmp_path: Path) -> None:
    """What the filter is for: 400 for one sample, and what came with it is lost."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("service: {pipelines: {metrics/rw: {processors: [memory_limiter]}}}\n", encoding="utf-8")
    with _way(collector, tmp_path, overlay) as way:
        _send_a_stale_sample(way)

        assert [({"instance": "one"}, [2.0, 3.0])] == way.stored("of_stale_total")
        assert [] == way.stored("beside_stale_total")


def test_attributes_that_become_one_label_are_joined(way: Way) -> None:
    """Rather than one of them winning by chance."""
    way.send(_counter("of_collision_total", 1, **{"a.b": "1", "a_b": "2"}))

    assert [({"instance": "one", "a_b": "1;2"}, [1.0])] == way.stored("of_collision_total")


def test_an_attribute_called_instance_loses_to_the_instance(way: Way) -> None:
    """As one called job does to the service."""
    way.send(_counter("of_instance_total", 1, instance="of-somebody", job="of-somebody"))

    assert [({"instance": "one"}, [1.0])] == way.stored("of_instance_total")
    assert ["odd"] == [labels["job"] for labels, _ in way.prometheus.samples("of_instance_total")]
