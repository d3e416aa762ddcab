# SPDX-License-Identifier: Apache-2.0
"""The demo, seen by two real Prometheus servers with the shipped rules: one scrapes, one is written to by the Collector.

First all is well, then models fail, the database is gone, models are slow, and a backend refuses spans. Intervals are a
fifteenth of those that are shipped: one second.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import yaml
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA
from rich.console import Console

from jeeves_otel.demo import incidents, processes, stage
from jeeves_otel.demo.parts import BUNDLE, clean_environment
from jeeves_otel.demo.traffic import USERS_AT_ONCE, Step, scripts
from jeeves_otel.generators import rules
from tests import examples
from tests.helpers import poll_until
from tests.integration.backends import INVALID, Spans
from tests.integration.collectors import Sidecar, counter, resource, send, span, spans
from tests.integration.launching import free_port, launched
from tests.integration.prometheus_server import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

HEALTHY, INCIDENT = "healthy", "incident"
FEEDS = ("scraped", "written")
REQUESTS = 60  # of a round, of which there are as many as the time of a phase has room for
WELL_S, UNWELL_S = 8.0, 6.0  # longer than a window of a rate and the way of a sample
INTERVAL_S = 1  # of scraping, exporting and evaluating; 15 s in the files that are shipped
OLD_MS = 3 * 86_400_000  # older than any Prometheus takes
SMALL_QUEUE = 262_144  # bytes; with batches there is no smaller one
RATE_INTERVAL = f"{4 * INTERVAL_S}s"  # Grafana: max(4 * timeInterval, step + timeInterval), the step no less than that


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time, Unix seconds."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Run:
    """Two servers, and when what was the case."""

    feeds: Mapping[str, Prometheus]
    phases: Mapping[str, Phase]

    def series(self, feed: str, phase: str, target: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what a query of a panel answers, as Grafana would ask it: ``[{metric: labels, values: numbers}]``.

        What is asked over time has ``times`` too, Unix seconds.
        """
        at = self.phases[phase]
        expression = substituted(target["expr"], at)
        if target["instant"]:
            # While there is traffic, as far as the last second of it goes.
            found = self.feeds[feed].get("query", query=expression, time=f"{at.ended:.3f}")["result"]
            return [{"metric": each["metric"], "values": [float(each["value"][1])]} for each in found]
        found = self.feeds[feed].get(
            "query_range",
            query=expression,
            start=f"{at.began:.3f}",
            end=f"{at.ended:.3f}",
            step=str(INTERVAL_S),
        )["result"]
        return [
            {
                "metric": each["metric"],
                "times": [at for at, _ in each["values"]],
                "values": [float(value) for _, value in each["values"]],
            }
            for each in found
        ]


def substituted(expression: str, phase: Phase) -> str:
    """Return *expression* with the numbers that Grafana puts in."""
    seconds = max(round(phase.ended - phase.began), 4 * INTERVAL_S)
    filled = expression.replace("$__rate_interval", RATE_INTERVAL).replace("$__range", f"{seconds}s")
    assert "$" not in filled, filled
    return filled


def quick_rules(folder: Path) -> Path:
    """Copy the shipped rules, and those of the howto, to *folder*, and return a pattern of the copies, which all keep step.

    How much of a window was seen is asked every second instead of every five minutes, of which a test has none.
    """
    folder.mkdir()
    shipped = {path.name: path.read_text(encoding="utf-8") for path in (BUNDLE / "rules").glob("*.yaml")}
    own = {f"own-{path.rpartition('/')[2]}": text for path, text in rules.files(examples.PROMISED).items()}
    for name, text in {**shipped, **own}.items():
        document = yaml.safe_load(re.sub(r"\[\w+:5m\]", "[5m:1s]", text))
        for group in document["groups"]:
            group.pop("interval", None)
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder / "*.yaml"


@contextmanager
def _prometheus(program: str, folder: Path, jobs: Mapping[str, Sequence[int]], rules: Path) -> Iterator[Prometheus]:
    """Run *program*, which scrapes ports of *jobs* as the bundle says, evaluates *rules*, and may be written to."""
    folder.mkdir()
    configuration, port = folder / "prometheus.yaml", free_port()
    shipped = yaml.safe_load((BUNDLE / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    how = {job.pop("job_name"): {key: job[key] for key in job if not key.endswith("sd_configs")} for job in shipped}
    ports = {**jobs, **({"prometheus": [port]} if "prometheus" in how else {})}
    assert set(how) <= set(ports), "a job of the bundle has no target here"
    scraped = [
        {
            **how.get(job, {}),
            "job_name": job,
            "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}],
        }
        for job, targets in ports.items()
    ]
    settings = {
        "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
        "rule_files": [str(rules)],
        "storage": {"tsdb": {"out_of_order_time_window": "2h"}},
        "scrape_configs": scraped,
    }
    configuration.write_text(json.dumps(settings), encoding="utf-8")
    command = [
        program,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
        "--storage.tsdb.retention.time=35d",  # as in the bundle: rules ask for 30
    ]
    with processes.running("Prometheus", command, clean_environment(), folder / "prometheus.log") as child:
        child.wait_until_answering(f"http://127.0.0.1:{port}/-/ready")
        yield Prometheus(port)


@contextmanager
def run(programs: Mapping[str, str], folder: Path) -> Iterator[Run]:
    """Play it, and yield both servers while they still answer; their files stay in *folder*."""
    backend = Spans()
    own, unwell = free_port(), free_port()
    pages = stage.Ports(metrics=free_port(), kernel_metrics=free_port())
    jobs = {
        "jeeves-gateway": [pages.metrics],
        "jeeves-kernel": [pages.kernel_metrics],
        "jeeves-unwell": [unwell],
    }
    full = _full(programs["collector"], folder / "full")
    with ExitStack() as stack:
        stack.callback(backend.stop)
        stack.enter_context(full.running())
        alertmanager = stack.enter_context(_failing_alertmanager(programs["alertmanager"], folder / "alertmanager"))
        quick = quick_rules(folder / "rules")
        servers = {
            feed: stack.enter_context(
                _prometheus(
                    programs["prometheus"],
                    folder / feed,
                    {
                        "otelcol": [own, full.own],
                        "alertmanager": [alertmanager],
                        **(jobs if feed == "scraped" else {}),
                    },
                    quick,
                )
            )
            for feed in FEEDS
        }
        sidecar = Sidecar(
            programs["collector"],
            folder,
            COLLECTOR_SELF_PORT=str(own),
            COLLECTOR_TRACES_ENDPOINT=f"127.0.0.1:{backend.port}",
            COLLECTOR_REMOTE_WRITE_URL=f"{servers['written'].url}/api/v1/write",
        )
        stack.enter_context(sidecar.running())
        endpoint = sidecar.endpoints["http/protobuf"]
        demo = stage.set_up(Console(file=StringIO()), stack, endpoint, ports=pages)
        began = time.time()
        _send(demo, WELL_S)
        healthy = Phase(began, time.time())
        backend.behave(INVALID)
        _lose(sidecar, full)
        stack.enter_context(_something_is_wrong(demo, endpoint, unwell, alertmanager))
        incident = Phase(healthy.ended, time.time())
        found = Run(servers, {HEALTHY: healthy, INCIDENT: incident})
        for server in servers.values():
            poll_until(lambda server=server: _has_seen(server, incident.ended), "the last second to arrive")
        yield found


def _full(program: str, folder: Path) -> Sidecar:
    """Return a Collector whose queues have next to no room, and whose backends are away."""
    folder.mkdir()
    nobody = f"127.0.0.1:{free_port()}"
    return Sidecar(
        program,
        folder,
        COLLECTOR_TRACES_QUEUE_BYTES=str(SMALL_QUEUE),
        COLLECTOR_METRICS_QUEUE_BYTES="1",
        COLLECTOR_TRACES_ENDPOINT=nobody,
        COLLECTOR_REMOTE_WRITE_URL=f"http://{nobody}/api/v1/write",
    )


@contextmanager
def _failing_alertmanager(program: str, folder: Path) -> Iterator[int]:
    """Run *program* with the routes of the bundle and receivers that refuse; yield its port."""
    folder.mkdir()
    port = free_port()
    configuration = yaml.safe_load((BUNDLE / "alertmanager.yaml").read_text(encoding="utf-8"))
    nobody = {"webhook_configs": [{"url": f"http://127.0.0.1:{port}/nowhere"}]}  # 404, which is not tried again
    configuration["receivers"] = [{**receiver, **nobody} for receiver in configuration["receivers"]]
    configuration["route"]["group_wait"] = "0s"
    (folder / "alertmanager.yaml").write_text(json.dumps(configuration), encoding="utf-8")
    command = [
        program,
        f"--config.file={folder / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with processes.running("Alertmanager", command, clean_environment(), folder / "log") as child:
        child.wait_until_answering(f"http://127.0.0.1:{port}/-/ready")
        yield port


def _tell(alertmanager: int) -> None:
    """Send an alert of which nobody can be told."""
    body = json.dumps([{"labels": {"alertname": "Rehearsal", "severity": "warning"}}]).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{alertmanager}/api/v2/alerts", body, headers)
    urllib.request.urlopen(request, timeout=10).close()


def _lose(sidecar: Sidecar, full: Sidecar) -> None:
    """Have points dropped as too old and as untranslatable by one Collector, and everything refused by the full one."""
    of, now_ms = resource(service_name="lost"), time.time_ns() // 1_000_000
    send(sidecar, counter(of, "old", 1, now_ms - OLD_MS, now_ms - OLD_MS - 1))
    untranslatable = counter(of, "delta", 1, now_ms, now_ms - 1)
    data = untranslatable.resource_metrics[0].scope_metrics[0].metrics[0].sum
    data.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
    send(sidecar, untranslatable)
    send(full, spans(of, span(1, name="x" * 2 * SMALL_QUEUE)))
    send(full, counter(of, "lost", 1, now_ms, now_ms - 1))


def _has_seen(server: Prometheus, moment: float) -> bool:
    """Return whether samples and records of *moment* are there."""
    newest = {
        job: server.query(f'max(timestamp({{job="{job}", __name__=~"process_cpu_seconds_total"}}))').get((), 0.0)
        for job in ("jeeves-gateway", "jeeves-kernel", "jeeves-unwell")
    }
    recorded = server.query("max(timestamp(slo:error_ratio:rate5m))").get((), 0.0)
    return min(*newest.values(), recorded) > moment


@contextmanager
def _something_is_wrong(demo: stage.Stage, endpoint: str, port: int, alertmanager: int) -> Iterator[None]:
    """Have one incident after the other, and leave an application running whose telemetry is unwell, and its spans lost."""
    with launched(
        "unwell.py",
        OTEL_SERVICE_NAME="jeeves-unwell",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="1000",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{endpoint}/nowhere",  # refused for good, so lost
        OTEL_BSP_SCHEDULE_DELAY="500",
        OTEL_TRACES_SAMPLER_ARG="1",
        METRICS_PORT=str(port),
    ) as unwell:
        with incidents.incident(incidents.SLOW, demo):
            # One question of each; all of them would take a minute.
            _ask(demo, [steps[:2] for steps in scripts(0, REQUESTS)[1:USERS_AT_ONCE]])
        _tell(alertmanager)
        with incidents.incident(incidents.DATABASE, demo):
            _send(demo, UNWELL_S)
        with incidents.incident(incidents.LLM, demo):
            _send(demo, UNWELL_S)
        unwell.wait_ready()
        yield


def _send(demo: stage.Stage, seconds: float) -> None:
    """Send rounds of requests for at least so many *seconds*."""
    ends = time.monotonic() + seconds
    for seed in itertools.count():
        _ask(demo, scripts(seed, REQUESTS))
        if time.monotonic() > ends:
            return


def _ask(demo: stage.Stage, users: list[list[Step]]) -> None:
    outcome = stage.send_all(Console(file=StringIO()), demo, users)
    assert not outcome.broken
