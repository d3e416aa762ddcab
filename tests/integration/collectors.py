# SPDX-License-Identifier: Apache-2.0
"""The real Collector with the files of the bundle, on free ports of the loopback interface."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from jeeves_otel.demo import processes
from jeeves_otel.demo.parts import BUNDLE, clean_environment
from jeeves_otel.demo.processes import ChildError
from tests.helpers import Samples, samples_of
from tests.integration.launching import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_S = 30.0
_READY = "Everything is ready"
_IN_A_NAME_SPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c")


def may_mount() -> bool:
    """Return whether `Sidecar.disk_of` can be had on this machine."""
    mount = (*_IN_A_NAME_SPACE, "mount -t tmpfs tmpfs /mnt")
    return (
        shutil.which("unshare") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )


class Sidecar:
    """A Collector that can be started, killed and started again on the same ports and the same queue.

    Args:
        program: Of the Collector.
        folder: Where its queue and its log are.
        variables: What of the environment is not the default.
    """

    files: tuple[str, ...] = ("sidecar.yaml",)

    def __init__(self, program: str, folder: Path, **variables: str) -> None:
        self.log = folder / "collector.log"
        self._program = program
        self._before: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc, self.http, self.health, self.own, self.hop = (free_port() for _ in range(5))
        self.endpoints = {"grpc": f"http://127.0.0.1:{self.grpc}", "http/protobuf": f"http://127.0.0.1:{self.http}"}
        self.environment = clean_environment(
            **{
                "COLLECTOR_OTLP_GRPC": f"127.0.0.1:{self.grpc}",
                "COLLECTOR_OTLP_HTTP": f"127.0.0.1:{self.http}",
                "COLLECTOR_HOP": f"127.0.0.1:{self.hop}",
                "COLLECTOR_HEALTH": f"127.0.0.1:{self.health}",
                "COLLECTOR_SELF_PORT": str(self.own),
                "COLLECTOR_QUEUE_DIRECTORY": str(folder / "queue"),
                "COLLECTOR_INSTANCE_ID": "of-the-collector",
                **variables,
            }
        )

    def disk_of(self, size: str) -> None:
        """Give its queue a file system of *size* that ends with the process."""
        queue = self.environment["COLLECTOR_QUEUE_DIRECTORY"]
        Path(queue).mkdir()
        self._before = [*_IN_A_NAME_SPACE, f'mount -t tmpfs -o size={size} tmpfs "{queue}" && exec "$@"', "sh"]

    def start(self, *overlays: Path | str, gates: str = "") -> None:
        """Start it with its files and *overlays*, and return when it is healthy."""
        files = [BUNDLE / name if isinstance(name, str) else name for name in (*self.files, *overlays)]
        command = [*self._before, self._program, *(part for file in files for part in ("--config", str(file)))]
        if gates:
            command.append(f"--feature-gates={gates}")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ChildError(f"the Collector does not start:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.02)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/", timeout=2):
                return True
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> float:
        """Send SIGTERM and return how long it took, in seconds; kill it after a minute."""
        began = time.monotonic()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return time.monotonic() - began

    def kill(self) -> None:
        """End it with SIGKILL, which it cannot notice."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def running(self, *overlays: Path | str, gates: str = "") -> Iterator[None]:
        """Run it for the length of a ``with`` block, whatever happens inside."""
        self.start(*overlays, gates=gates)
        try:
            yield
        finally:
            if self._process is not None and self._process.poll() is None:
                self.stop()

    def reload(self) -> None:
        """Have it read its files again, and return when it is healthy with them."""
        assert self._process is not None
        before = self._log().count(_READY)
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + START_S
        while self._log().count(_READY) == before:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ChildError(f"the Collector does not start again:\n{self._log()[-3000:]}")
            time.sleep(0.02)

    def _log(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def own_metrics(self) -> Samples:
        """Return what it says about itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.own}/metrics", timeout=10) as response:
            return samples_of(response.read().decode())


class Gateway(Sidecar):
    """A Collector that samples whole traces; the same to its tests as a sidecar, without metrics."""

    files = ("gateway.yaml",)


class LoadBalancer(Sidecar):
    """A Collector that hands each trace to one of several gateways."""

    files = ("gateway-loadbalancing.yaml",)


def at_ports(*ports: int) -> str:
    """Return how a load balancer is told of gateways at *ports*."""
    return f"static: {{hostnames: [{', '.join(f'localhost:{port}' for port in ports)}]}}"


class Jaeger:
    """A real Jaeger with the file of the bundle, its traces in memory.

    Args:
        program: Of Jaeger.
    """

    def __init__(self, program: str) -> None:
        self.port, self._query, query_grpc, self._health = (free_port() for _ in range(4))
        self.command = [program, "--config", str(BUNDLE / "jaeger.yaml")]
        self.environment = clean_environment(
            JAEGER_OTLP_GRPC=f"127.0.0.1:{self.port}",
            JAEGER_QUERY=f"127.0.0.1:{self._query}",
            JAEGER_QUERY_GRPC=f"127.0.0.1:{query_grpc}",
            JAEGER_HEALTH=f"127.0.0.1:{self._health}",
        )

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Run it for the length of a ``with`` block, with its log in *folder*."""
        with processes.running("Jaeger", self.command, self.environment, folder / "jaeger.log") as child:
            child.wait_until_answering(f"http://127.0.0.1:{self._health}/status")
            yield

    def spans(self, trace: str) -> dict[str, str]:
        """Return ``{span id: id of its parent, or nothing}`` of a trace."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._query}/api/traces/{trace}", timeout=10) as response:
                found = json.load(response)["data"][0]["spans"]
        except urllib.error.HTTPError:  # not found, so far
            return {}
        return {each["spanID"]: "".join(parent["spanID"] for parent in each["references"]) for each in found}


def send(sidecar: Sidecar, message: ExportTraceServiceRequest | ExportMetricsServiceRequest) -> bool:
    """Send *message* over OTLP/HTTP, and return whether it was acknowledged."""
    kind = "traces" if isinstance(message, ExportTraceServiceRequest) else "metrics"
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.http, timeout=10)
    try:
        headers = {"Content-Type": "application/x-protobuf"}
        connection.request("POST", f"/v1/{kind}", message.SerializeToString(), headers)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def resource(**attributes: str) -> Resource:
    """Return a resource with *attributes*, ``_`` for every dot."""
    return Resource(attributes=[text(key.replace("_", "."), value) for key, value in attributes.items()])


def text(key: str, value: str) -> KeyValue:
    """Return one attribute."""
    return KeyValue(key=key, value=AnyValue(string_value=value))


def spans(of: Resource, *made: Span) -> ExportTraceServiceRequest:
    """Return a request with the spans *made*."""
    scope = ScopeSpans(spans=made)
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=of, scope_spans=[scope])])


def span(number: int, name: str = "work", attributes: Mapping[str, str] | None = None, **fields: Any) -> Span:
    """Return the span with the id *number*, in a trace of its own."""
    now = time.time_ns()
    pairs = [text(key, value) for key, value in (attributes or {}).items()]
    ids = {"trace_id": (number + 1).to_bytes(16, "big"), "span_id": (number + 1).to_bytes(8, "big")}
    return Span(**ids, name=name, start_time_unix_nano=now, end_time_unix_nano=now, attributes=pairs, **fields)


def counter(of: Resource, name: str, value: int, at_ms: int, began_ms: int) -> ExportMetricsServiceRequest:
    """Return a request with one point of a cumulative counter."""
    point = NumberDataPoint(as_int=value, time_unix_nano=at_ms * 1_000_000, start_time_unix_nano=began_ms * 1_000_000)
    data = Sum(data_points=[point], aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE, is_monotonic=True)
    scope = ScopeMetrics(metrics=[Metric(name=name, unit="1", sum=data)])
    return ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(resource=of, scope_metrics=[scope])])
