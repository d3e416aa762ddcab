# SPDX-License-Identifier: Apache-2.0
"""What the sidecar costs beside a bare Collector with the same queue on disk: processor time and memory under load.

In: the number of turns, and how long one is. Out: for each load and competitor the share of a core (user and system, of
the Collector alone), and the memory that it holds (anonymous, without the file of the queue, which the kernel may drop).
Competitors run side by side and are loaded in turns. A turn ends when everything that was acknowledged has reached the
sink, which is a process of its own and not counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles
from threading import Thread
from typing import TYPE_CHECKING

from bench.telemetry import Load, poster, send
from bench.timing import Result
from jeeves_otel.demo.parts import cached
from tests.integration.collectors import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TURN_S = 10.0
WARM_UP_S = 2.0
DRAIN_S = 30.0
LOADS = (
    Load("1,000 spans/s, OTLP/HTTP", "traces", 1_000, 100),
    Load("10,000 spans/s, OTLP/HTTP", "traces", 10_000, 100),
    Load("10,000 spans/s, OTLP/gRPC", "traces", 10_000, 100, "grpc"),
    Load("10,000 points/s, OTLP/HTTP", "metrics", 10_000, 500),
)
# The same exporters and queues, and nothing else on the way.
_BARE = """
exporters:
  otlp_grpc/metrics:
    endpoint: ${env:COLLECTOR_TRACES_ENDPOINT}
    tls: {insecure: true}
    retry_on_failure: {max_elapsed_time: 0s}
    sending_queue: {storage: file_storage/queue, sizer: bytes, queue_size: 134217728, num_consumers: 1}
service:
  pipelines:
    traces: {processors: [memory_limiter]}
    metrics: {processors: [memory_limiter], exporters: [otlp_grpc/metrics]}
"""
_FROM_MEMORY = """
service:
  pipelines:
    traces: {processors: [memory_limiter]}
    metrics: {processors: [memory_limiter], exporters: [prometheusremotewrite]}
"""
# Takes everything, and counts it.
_SINK = """
exporters: {debug: {verbosity: basic}}
service:
  pipelines:
    traces: {processors: [], exporters: [debug]}
    metrics: {processors: [], exporters: [debug]}
"""


@dataclass(frozen=True)
class Cost(Result):
    """The seconds are of processor time, for a second under load; besides, the memory held [MiB]."""

    memory_mib: float


@dataclass
class Competitor:
    """A Collector under test: *arrived* says how many items of its load have reached the sink so far."""

    name: str
    collector: Sidecar
    arrived: Callable[[], float]


def sidecar_results(turns: int, turn_s: float = TURN_S) -> Iterator[list[Cost]]:
    """Load each Collector *turns* times (>= 2), for *turn_s* seconds each; yield the costs of one load after the other."""
    program = cached()
    if program is None:
        raise SystemExit("there is no Collector in the cache; build it with: make collector")
    for load in LOADS:
        yield _results(load, program, turns, turn_s)


def print_costs(results: list[Cost]) -> None:
    """Print the table of one load."""
    print(f"\n{results[0].group:<62} {'median':>10} {'p25-p75':>19} {'ratio':>6} {'memory':>8}")
    for result in results:
        middle, low, high = (f"{share * 100:.1f}" for share in (result.median_s, result.p25_s, result.p75_s))
        print(
            f"  {result.name:<60} {middle:>7} %  {low + ' - ' + high:>19} {result.ratio:>6.2f} "
            f"{result.memory_mib:>4.0f} MiB",
            flush=True,
        )


def _results(load: Load, program: str, turns: int, turn_s: float) -> list[Cost]:
    with ExitStack() as stack:
        competitors = _competitors(load, program, stack)
        requests = load.requests()
        posts = [stack.enter_context(poster(load, each.collector.http, each.collector.grpc)) for each in competitors]
        shares: list[list[float]] = [[] for _ in competitors]
        for each, post in zip(competitors, posts, strict=True):
            _turn(load, requests, each, post, min(WARM_UP_S, turn_s))
        for turn in range(turns):
            for position in range(len(competitors)):
                index = (position + turn) % len(competitors)
                shares[index].append(_turn(load, requests, competitors[index], posts[index], turn_s))
        first = median(shares[0])
        return [
            Cost(
                load.title,
                each.name,
                median(taken),
                quantiles(taken)[0],
                quantiles(taken)[2],
                median(taken) / first,
                _memory_mib(each),
            )
            for each, taken in zip(competitors, shares, strict=True)
        ]


def _turn(
    load: Load, requests: list[bytes], competitor: Competitor, post: Callable[[bytes], None], turn_s: float
) -> float:
    """Send the load to *competitor*, wait until it has arrived, and return the share of a core that it took."""
    before, began = competitor.arrived(), _processor_s(competitor)
    sent = send(load, requests, turn_s, post)
    deadline = time.monotonic() + DRAIN_S
    while (arrived := competitor.arrived() - before) < sent:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{competitor.name}: {sent} items were acknowledged, {arrived:.0f} have arrived")
        time.sleep(0.1)
    if arrived != sent:
        raise RuntimeError(f"{competitor.name}: {sent} items were acknowledged, {arrived:.0f} have arrived")
    return (_processor_s(competitor) - began) / turn_s


def _processor_s(competitor: Competitor) -> float:
    fields = Path(f"/proc/{competitor.collector.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(competitor: Competitor) -> float:
    status = Path(f"/proc/{competitor.collector.pid}/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1_024


# ---- who is compared -----------------------------------------------------------------------------------------------------


def _competitors(load: Load, program: str, stack: ExitStack) -> list[Competitor]:
    """Start the sink and whatever is loaded with *load*; *stack* ends them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sidecar-")))
    kept = _folder(folder, "sink")
    sink = Sidecar(program, kept, HOSTNAME="sink", COLLECTOR_LOG_LEVEL="error")
    stack.enter_context(sink.running(_overlay(kept, _SINK)))

    def started(
        name: str, overlay: str, counter: Callable[[Sidecar], Callable[[], float]], **variables: str
    ) -> Competitor:
        own = _folder(folder, name)
        collector = Sidecar(program, own, COLLECTOR_TRACES_ENDPOINT=f"127.0.0.1:{sink.grpc}", **variables)
        stack.enter_context(collector.running(*([_overlay(own, overlay)] if overlay else [])))
        return Competitor(name, collector, counter(collector))

    def at_sink(_: Sidecar) -> Callable[[], float]:
        items = "spans" if load.signal == "traces" else "metric_points"
        return lambda: _own(sink, f"otelcol_receiver_accepted_{items}_total", "receiver", "otlp")

    bare = started("a Collector with memory limiter and the same queue, OTLP out", _BARE, at_sink)
    if load.signal == "traces":
        return [bare, started("the sidecar", "", at_sink)]
    url = stack.enter_context(_Samples())

    def written(collector: Sidecar) -> Callable[[], float]:
        sent = "otelcol_exporter_sent_metric_points_total"
        return lambda: _own(collector, sent, "exporter", "prometheusremotewrite")

    otlp = {
        "COLLECTOR_METRICS_EXPORTERS": "[otlp_http/prometheus]",
        "COLLECTOR_PROMETHEUS_OTLP_URL": f"http://127.0.0.1:{sink.http}/v1/metrics",
    }
    return [
        bare,
        started("the sidecar, OTLP to Prometheus", "", at_sink, **otlp),
        started("no queue at all, remote write", _FROM_MEMORY, written, COLLECTOR_REMOTE_WRITE_URL=url),
        started("the sidecar, remote write", "", written, COLLECTOR_REMOTE_WRITE_URL=url),
    ]


def _folder(folder: Path, name: str) -> Path:
    own = folder / name.replace(" ", "-").replace(",", "").replace("/", "-")
    own.mkdir()
    return own


def _overlay(folder: Path, text: str) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _own(collector: Sidecar, name: str, label: str, value: str) -> float:
    """Return what *collector* counts under *name* where *label* is *value*."""
    found = collector.own_metrics().items()
    return sum(count for (metric, labels), count in found if metric == name and dict(labels).get(label) == value)


class _Samples:
    """Answers every remote write with success."""

    def __enter__(self) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
