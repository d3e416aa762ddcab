# SPDX-License-Identifier: Apache-2.0
"""The demo, the sidecar and a real Prometheus and Jaeger: what arrives is what is on the pages, and traces are whole and redacted."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from jeeves_otel.content import kinds
from jeeves_otel.demo import receiver, report, stage
from jeeves_otel.demo.traffic import scripts
from jeeves_otel.registry import load
from tests.helpers import poll_until
from tests.integration.backends import Spans
from tests.integration.collectors import Jaeger, Sidecar
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.demo.receiver import Span
    from jeeves_otel.demo.samples import Series

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 60
# What the services have sent, beside what the sidecar makes of it; and a second trace backend, which is Jaeger.
_OVERLAY = """
exporters:
  file: {path: %s}
  otlp_grpc/jaeger: {endpoint: "127.0.0.1:%d", tls: {insecure: true}}
service: {pipelines: {traces/unredacted: {receivers: [otlp], exporters: [file]}}}
"""


@dataclass
class Run:
    """What one run of the demo has left behind."""

    page: dict[Series, float]
    stored: dict[Series, float]
    traces: list[list[Span]]
    sampled: set[str]
    spans: list[Any]
    exemplars: set[str]
    unredacted: str
    jaeger: dict[str, dict[str, str]]


def _stored(prometheus: Prometheus) -> dict[Series, float]:
    """Return the newest values of the service's series, instances added up as on the pages."""
    sums: dict[Series, float] = {}
    for pairs, value in prometheus.query('{job=~"jeeves-.*"}').items():
        labels = {key: text for key, text in pairs if key not in {"__name__", "job", "instance"}}
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


@pytest.fixture(scope="module")
def run(collector: str, jaeger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Yield what a run of the demo, whose SDK lets all content pass, leaves behind the sidecar."""
    folder = tmp_path_factory.mktemp("end-to-end")
    backend, store = Spans(), Jaeger(jaeger)
    with ExitStack() as stack:
        stack.callback(backend.stop)
        stack.enter_context(store.running(folder))
        prometheus = stack.enter_context(prometheus_of_the_bundle(folder))
        sidecar = Sidecar(
            collector,
            folder,
            COLLECTOR_TRACES_ENDPOINT=f"127.0.0.1:{backend.port}",
            COLLECTOR_TRACES_EXPORTERS="[otlp_grpc/traces, otlp_grpc/jaeger]",
            COLLECTOR_REMOTE_WRITE_URL=f"{prometheus.url}/api/v1/write",
        )
        unredacted, overlay = folder / "unredacted.jsonl", folder / "overlay.yaml"
        overlay.write_text(_OVERLAY % (unredacted, store.port), encoding="utf-8")
        stack.enter_context(sidecar.running(overlay))
        console = Console(file=StringIO())
        set_up = stage.set_up(
            console, stack, sidecar.endpoints["http/protobuf"], settings={"JEEVES_OTEL_CONTENT": "all"}
        )
        outcome = stage.send_all(console, set_up, scripts(1, REQUESTS))
        page = _promised(stage.settled_page(set_up, outcome.sent - outcome.probes))
        sampled = stage.sampled_of(outcome.traces, 1.0)

        def arrived() -> bool:
            whole = {spans[0].trace for spans in _traces(backend) if report.is_whole(spans)}
            if _promised(_stored(prometheus)) != page or not sampled <= whole:
                return False
            counts = {spans[0].trace: len(spans) for spans in _traces(backend)}
            return all(len(store.spans(trace)) == counts[trace] for trace in sampled)

        with suppress(AssertionError):  # the tests say what differs
            poll_until(arrived, "everything to arrive", timeout_s=20)
        found = prometheus.get(
            "query_exemplars", query="jeeves_llm_duration_seconds_bucket", start="0", end="9999999999"
        )
        exemplars = {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}
        stored = _promised(_stored(prometheus))
        kept = {trace: store.spans(trace) for trace in sampled}
        before = unredacted.read_text(encoding="utf-8")
        yield Run(page, stored, _traces(backend), sampled, list(backend.spans), exemplars, before, kept)


def test_counts_in_prometheus_are_those_on_the_pages(run: Run) -> None:
    """Every sample of every promised counter and histogram, buckets and sums included."""
    assert len(run.page) > 200
    assert run.page == run.stored


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


def test_exemplars_lead_from_a_metric_to_a_trace(run: Run) -> None:
    """Every exemplar of the duration of calls names a trace that has arrived."""
    assert run.exemplars
    assert set() == run.exemplars - {spans[0].trace for spans in run.traces}
