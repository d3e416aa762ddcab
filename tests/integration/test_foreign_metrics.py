# SPDX-License-Identifier: Apache-2.0
"""What rules and dashboards ask of metrics of others is what Collector, Prometheus and Alertmanager have, as they run."""

from __future__ import annotations

import time
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import yaml
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

from jeeves_otel.demo import parts
from jeeves_otel.demo.processes import running
from jeeves_otel.promql import foreign_families
from tests.helpers import Samples, poll_until, samples_of
from tests.integration.collectors import Sidecar, counter, resource, send, span, spans
from tests.integration.launching import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

_SCRAPED = {"up"}  # which Prometheus makes at each scrape
_LEAST = 1_048_576  # bytes that a queue must hold: one batch


def _of_the_stack(folder: Path, wanted: set[str]) -> Samples:
    """Return what Collector and Alertmanager say after spans, and points in time and as deltas, as soon as *wanted* is there."""
    programs = {part: parts.cached(part) or pytest.skip(f"make {part}") for part in parts.PARTS}
    ports = parts.Ports.free()
    now = int(time.time() * 1_000)
    of = resource(service_name="a")
    delta = counter(of, "delta", 1, now, now - 1_000)
    delta.resource_metrics[0].scope_metrics[0].metrics[0].sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
    with ExitStack() as stack:
        parts.start(stack, programs, ports, folder)
        for message in (spans(of, span(1)), counter(of, "fine", 1, now, now - 1_000), delta):
            send(SimpleNamespace(http=ports.otlp_http), message)  # type: ignore[arg-type]  # its port is enough
        poll_until(lambda: wanted <= {name for name, _ in _page(ports.own_metrics)}, "all that it has to say")
        return {**_page(ports.own_metrics), **_page(ports.alertmanager)}


def _of_full_queues(folder: Path, wanted: set[str]) -> Samples:
    """Return what a Collector says that has no room for what it is sent, as soon as *wanted* is there."""
    program = parts.cached() or pytest.skip("make collector")
    dead = f"127.0.0.1:{free_port()}"
    sidecar = Sidecar(
        program,
        folder,
        COLLECTOR_TRACES_ENDPOINT=dead,
        COLLECTOR_REMOTE_WRITE_URL=f"http://{dead}/api/v1/write",
        COLLECTOR_TRACES_QUEUE_BYTES=str(_LEAST),
        COLLECTOR_METRICS_QUEUE_BYTES=str(_LEAST),
    )
    now = int(time.time() * 1_000)
    of = resource(service_name="a" * _LEAST)  # larger than the queue
    with sidecar.running():
        send(sidecar, spans(of, span(1)))
        send(sidecar, counter(of, "fine", 1, now, now - 1_000))
        poll_until(lambda: wanted <= {name for name, _ in sidecar.own_metrics()}, "what was not queued")
        return sidecar.own_metrics()


def _of_prometheus(folder: Path) -> Samples:
    """Return what Prometheus says with the rules of the bundle."""
    program = parts.cached("prometheus") or pytest.skip("make prometheus")
    (folder / "p.yaml").write_text(yaml.safe_dump({"rule_files": [f"{parts.BUNDLE}/rules/*.yaml"]}), "utf-8")
    port = free_port()
    listen = f"--web.listen-address=127.0.0.1:{port}"
    command = [program, f"--config.file={folder}/p.yaml", f"--storage.tsdb.path={folder / 'samples'}", listen]
    with running("Prometheus", command, {}, folder / "log") as child:
        child.wait_until_answering(f"http://127.0.0.1:{port}/-/ready")
        return _page(port)


def _page(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return samples_of(page.read().decode())


def test_families_of_others_are_there_with_their_labels(tmp_path: Path) -> None:
    """Also those that a Collector has only in trouble: nobody takes anything, or its queues are full."""
    asked = {name for name in foreign_families() if name.startswith("otelcol_")}
    of_full_queues = {name for name in asked if "_enqueue_failed_" in name}
    folders = {name: tmp_path / name for name in ("stack", "full", "prometheus")}
    for folder in folders.values():
        folder.mkdir()
    found = {
        **_of_the_stack(folders["stack"], asked - of_full_queues),
        **_of_full_queues(folders["full"], of_full_queues),
        **_of_prometheus(folders["prometheus"]),
    }
    labels: dict[str, set[str]] = {}
    for name, pairs in found:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    families = {name: set(family.labels) for name, family in foreign_families().items() if name not in _SCRAPED}

    assert families == {name: labels.get(name, set()) & wanted for name, wanted in families.items()}
    assert [] == [name for name in families if name not in labels]
