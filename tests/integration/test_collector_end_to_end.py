# SPDX-License-Identifier: Apache-2.0
"""The demo, the sidecar and real Prometheus and Jaeger: what arrives is what is on the pages, traces are whole and redacted."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml
from rich.console import Console

from jeeves_otel.content import kinds
from jeeves_otel.demo import receiver, report, stage
from jeeves_otel.demo.traffic import scripts
from jeeves_otel.registry import load
from tests.helpers import poll_until
from tests.integration.backends import Spans
from tests.integration.collectors import BUNDLE, Jaeger, Sidecar
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jeeves_otel.demo.receiver import Span
    from jeeves_otel.demo.samples import Series

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 60
PAGES = ("jeeves-http-gateway", "jeeves-grpc")  # jobs of the seeds whose targets the demo has, gateway and kernel
# What the services have sent, beside what the sidecar makes of it; a second trace backend, which is Jaeger; and further
# stores behind the same hop.
_OVERLAY = """
exporters:
  file: {path: %s}
  otlp_grpc/jaeger: {endpoint: "127.0.0.1:%d", tls: {insecure: true}}
  prometheusremotewrite/old: &write {endpoint: %s/api/v1/write, timeout: 0s, remote_write_queue: {enabled: false}}
  prometheusremotewrite/both: {<<: *write, endpoint: %s/api/v1/write}
service:
  pipelines:
    traces/unredacted: {receivers: [otlp], exporters: [file]}
    metrics/rw: {exporters: [prometheusremotewrite, prometheusremotewrite/old, prometheusremotewrite/both]}
"""


@dataclass
class Run:
    """What one run of the demo has left behind."""

    page: dict[Series, float]
    stored: dict[str, dict[Series, float]]
    counted_twice: dict[str, set[str]]
    traces: list[list[Span]]
    sampled: set[str]
    spans: list[Any]
    exemplars: dict[str, set[str]]
    unredacted: str
    jaeger: dict[str, dict[str, str]]


def _stored(prometheus: Prometheus) -> dict[Series, float]:
    """Return the newest values of the services' series, instances added up as on the pages."""
    of_target = {"__name__", "job", "instance", "service", "component"}
    sums: dict[Series, float] = {}
    for pairs, value in prometheus.query('{job=~"jeeves-.*"}').items():
        labels = {key: text for key, text in pairs if key not in of_target}
        series = dict(pairs)["__name__"], _labels(labels)
        sums[series] = sums.get(series, 0.0) + value
    return sums


def _labels(labels: dict[str, str]) -> frozenset[tuple[str, str]]:
    """Return labels, with bounds of buckets written in one way."""
    bounds = {"le": str(float(labels["le"]))} if "le" in labels else {}
    return frozenset({**labels, **bounds}.items())


def _promised(samples: dict[Series, float]) -> dict[Series, float]:
    """Return the samples of promised counters and histograms that stand still when nobody asks anything."""
    names = set()
    for metric in load().metrics.values():
        if metric.profile not in {"process", "internal"} and metric.type != "gauge":
            parts = ("",) if metric.type == "counter" else ("_count", "_sum", "_bucket")
            names |= {metric.name + part for part in parts}
    return {(name, _labels(dict(labels))): value for (name, labels), value in samples.items() if name in names}


def _traces(backend: Spans) -> list[list[Span]]:
    """Return what the backend has got as the demo reads it, by trace."""
    traces: dict[str, list[Span]] = {}
    for request in list(backend.requests):
        for span in receiver._spans(request):
            traces.setdefault(span.trace, []).append(span)
    return list(traces.values())


def _jobs(folder: Path) -> str:
    """Return the seeds' jobs of what the demo has, with their addresses in files of *folder*, and no time to wait."""
    jobs = yaml.safe_load((BUNDLE / "scrape" / "jeeves.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    kept = [job for job in jobs if job["job_name"] in PAGES]
    for job in kept:
        file = folder / f"{job['job_name']}.yaml"
        file.write_text(json.dumps(job.pop("static_configs")), encoding="utf-8")
        job |= {"scrape_interval": "1s", "file_sd_configs": [{"files": [str(file)], "refresh_interval": "1s"}]}
    return yaml.safe_dump({"scrape_configs": kept})


def _are_at(pages: tuple[str, ...], folder: Path) -> None:
    """Tell the jobs where the demo's *pages* are."""
    for job, page in zip(PAGES, pages, strict=True):
        file = folder / f"{job}.yaml"
        (target,) = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps([{**target, "targets": [urlsplit(page).netloc]}]), encoding="utf-8")


def _query_of_the_docs() -> str:
    """Return the query that finds metrics which come both ways."""
    text = (BUNDLE.parent / "docs" / "howto" / "prometheus.md").read_text(encoding="utf-8")
    return text.split("```promql\n")[1].split("```")[0]


@dataclass
class Stores:
    """Servers that get the same by different ways; ``old`` is 2.42, ``both`` is filled by push and by scrapes."""

    pushed: Prometheus
    old: Prometheus
    scraped: Prometheus
    both: Prometheus

    def values(self) -> dict[str, dict[Series, float]]:
        """Return what each has of what is promised."""
        return {name: _promised(_stored(store)) for name, store in vars(self).items()}

    def counted_twice(self) -> dict[str, set[str]]:
        """Return which metrics the query of the docs finds in each."""
        query, of = _query_of_the_docs(), ("pushed", "scraped", "both")
        return {name: {dict(labels)["__name__"] for labels in vars(self)[name].query(query)} for name in of}

    def exemplars(self) -> dict[str, set[str]]:
        """Return the traces to which exemplars of the duration of calls lead, in the servers of the bundle's version."""
        selector, of = "jeeves_llm_duration_seconds_bucket", ("pushed", "scraped")
        found = {name: vars(self)[name].exemplars(selector) for name in of}
        return {
            name: {one[0]["trace_id"] for _, exemplars in each for one in exemplars} for name, each in found.items()
        }

    def have(self, page: dict[Series, float]) -> bool:
        """Return whether everything on *page* has arrived everywhere."""
        values = self.values()
        doubled = {series: 2 * value for series, value in page.items()}
        return all(values[name] == page for name in ("pushed", "old", "scraped")) and values["both"] == doubled


@pytest.fixture(scope="module")
def run(collector: str, jaeger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Yield what a run of the demo, whose SDK lets all content pass, leaves behind the sidecar."""
    folder = tmp_path_factory.mktemp("end-to-end")
    backend, store = Spans(), Jaeger(jaeger)
    with ExitStack() as stack:
        stack.callback(backend.stop)
        stack.enter_context(store.running(folder))
        jobs = _jobs(folder)
        stores = Stores(
            stack.enter_context(prometheus_of_the_bundle(folder / "pushed")),
            stack.enter_context(prometheus_of_the_bundle(folder / "old", old=True)),
            stack.enter_context(prometheus_of_the_bundle(folder / "scraped", jobs=jobs)),
            stack.enter_context(prometheus_of_the_bundle(folder / "both", jobs=jobs)),
        )
        sidecar = Sidecar(
            collector,
            folder,
            COLLECTOR_TRACES_ENDPOINT=f"127.0.0.1:{backend.port}",
            COLLECTOR_TRACES_EXPORTERS="[otlp_grpc/traces, otlp_grpc/jaeger]",
            COLLECTOR_REMOTE_WRITE_URL=f"{stores.pushed.url}/api/v1/write",
        )
        unredacted, overlay = folder / "unredacted.jsonl", folder / "overlay.yaml"
        overlay.write_text(_OVERLAY % (unredacted, store.port, stores.old.url, stores.both.url), encoding="utf-8")
        stack.enter_context(sidecar.running(overlay))
        console = Console(file=StringIO())
        set_up = stage.set_up(
            console, stack, sidecar.endpoints["http/protobuf"], settings={"JEEVES_OTEL_CONTENT": "all"}
        )
        _are_at(set_up.metrics_urls, folder)
        outcome = stage.send_all(console, set_up, scripts(1, REQUESTS))
        page = _promised(stage.settled_page(set_up, outcome.sent - outcome.probes))
        sampled = stage.sampled_of(outcome.traces, 1.0)

        def arrived() -> bool:
            whole = {spans[0].trace for spans in _traces(backend) if report.is_whole(spans)}
            if not stores.have(page) or not sampled <= whole:
                return False
            counts = {spans[0].trace: len(spans) for spans in _traces(backend)}
            return all(len(store.spans(trace)) == counts[trace] for trace in sampled)

        with suppress(AssertionError):  # the tests say what differs
            poll_until(arrived, "everything to arrive", timeout_s=20)
        yield Run(
            page,
            stores.values(),
            stores.counted_twice(),
            _traces(backend),
            sampled,
            list(backend.spans),
            stores.exemplars(),
            unredacted.read_text(encoding="utf-8"),
            {trace: store.spans(trace) for trace in sampled},
        )


def test_counts_in_prometheus_are_those_on_the_pages(run: Run) -> None:
    """Every sample of every promised counter and histogram, buckets and sums included."""
    assert len(run.page) > 200
    assert run.page == run.stored["pushed"]


def test_counts_in_prometheus_2_42_are_those_on_the_pages(run: Run) -> None:
    """Debian's, with the configuration of the bundle as far as it knows it."""
    assert run.page == run.stored["old"]


def test_counts_of_the_seeds_scrape_jobs_are_those_on_the_pages(run: Run) -> None:
    """In the place of remote write they make the same sums."""
    assert run.page == run.stored["scraped"]


def test_remote_write_and_scrape_jobs_together_double_every_sum(run: Run) -> None:
    """The mistake that docs/howto/prometheus.md warns of."""
    assert {series: 2 * value for series, value in run.page.items()} == run.stored["both"]


def test_the_query_of_the_docs_finds_what_is_counted_twice(run: Run) -> None:
    """Every promised counter of its prefix there, and none where metrics come one way."""
    counters = {name for name, _ in run.page if name.startswith("jeeves_") and name.endswith("_total")}

    assert {"pushed": set(), "scraped": set(), "both": counters} == {
        name: found & counters if name == "both" else found for name, found in run.counted_twice.items()
    }


def test_every_trace_arrives_whole(run: Run) -> None:
    """One root, the parent of all others, and both sides of every call between the processes."""
    arrived = {spans[0].trace: spans for spans in run.traces}

    assert run.sampled
    assert [] == [trace for trace in run.sampled if trace not in arrived or not report.is_whole(arrived[trace])]


def test_jaeger_has_every_span_of_every_trace(run: Run) -> None:
    """With its parent, as the same Collector has sent them to the other backend."""
    arrived = {spans[0].trace: {span.id: span.parent for span in spans} for spans in run.traces}

    assert {trace: arrived[trace] for trace in run.sampled} == run.jaeger


def test_content_that_the_services_let_pass_ends_at_the_sidecar(run: Run) -> None:
    """Their SDK was told to keep nothing back."""
    private = [name.partition("*")[0] for kind in kinds().values() for name in kind.attributes]
    keys = {pair.key for span in run.spans for holder in (span, *span.events) for pair in holder.attributes}

    assert "gen_ai.input.messages" in run.unredacted
    assert "db.query.text" in run.unredacted
    assert set() == {key for key in keys if key.startswith(tuple(private))}
    assert {"gen_ai.request.model", "http.route"} <= keys


@pytest.mark.parametrize("way", ["pushed", "scraped"])
def test_exemplars_lead_from_a_metric_to_a_trace(run: Run, way: str) -> None:
    """Every exemplar of the duration of calls names a trace that has arrived."""
    assert run.exemplars[way]
    assert set() == run.exemplars[way] - {spans[0].trace for spans in run.traces}
