# SPDX-License-Identifier: Apache-2.0
"""prometheus: pages, exemplars that outlive a scrape, and the route of an application."""

from __future__ import annotations

import asyncio
import copy
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from jeeves_otel import agent, failsafe, prometheus, record_agent, record_feature_usage
from jeeves_otel.exposition import OPENMETRICS, TEXT
from jeeves_otel.prometheus import MetricsMiddleware, PrometheusCollector, wants_openmetrics
from jeeves_otel.snapshots import merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


# ---- which format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7,text/plain;q=0.3", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;Q=0", False),
        ("application/openmetrics-text;q=0.0,text/plain;q=0.0", False),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", True),
        ("text/plain,application/openmetrics-text", True),
        ("application/openmetrics-text;q=high", False),
        ("application/openmetrics-text;q=", False),
        (";;,,;q=1,", False),
    ],
)
def test_format_is_the_one_that_the_scraper_prefers(accept: str, *, openmetrics: bool) -> None:
    """OpenMetrics where it is named and not liked less than text; quality 0 and nonsense refuse; the default is text."""
    assert openmetrics is wants_openmetrics(accept)


@pytest.mark.parametrize(
    ("accept", "content_type", "end"), [("", TEXT, "\n"), ("application/openmetrics-text", OPENMETRICS, "# EOF\n")]
)
def test_page_is_in_the_format_that_its_content_type_names(
    pipeline: Pipeline, accept: str, content_type: str, end: str
) -> None:
    """What is announced is what is sent."""
    page, announced = pipeline.collector.page(accept)

    assert content_type == announced
    assert page.endswith(end)


def test_page_after_shutdown_shows_the_last_counts(pipeline: Pipeline) -> None:
    """The last scrape of a process that stops does not show zeros."""
    record_feature_usage("export")
    before = pipeline.samples()
    pipeline.sdk_provider.shutdown()

    assert before == pipeline.samples()


def test_page_shows_the_whole_of_which_the_process_is_a_part(pipeline: Pipeline) -> None:
    """Where processes share a page, what they have measured together is shown, and not what this one has collected."""
    record_feature_usage("export")
    collector = pipeline.collector
    collector.whole = lambda: merged([collector.collect(), collector.collect()], [], {})

    assert 'jeeves_feature_usage_total{feature="export"} 2.0' in collector.page()[0].splitlines()


def test_page_of_a_reader_that_has_nothing_any_more_repeats_the_last() -> None:
    """A reader that gives no collection is no reason to show an empty page."""
    pages = [MetricsData([]), None]

    class Reader(InMemoryMetricReader):
        def get_metrics_data(self) -> MetricsData | None:
            return pages.pop(0)

    seen: list[MetricsData] = []
    collector = PrometheusCollector(Reader(), lambda data: seen.append(data) or data)

    assert collector.page() == collector.page()
    assert len(seen) == 1


# ---- exemplars -------------------------------------------------------------------------------------------------------


def _exemplars(page: str) -> dict[tuple[str, str], tuple[str, str, float]]:
    """Return ``{(sample name, le): (trace id, span id, value)}``."""
    return {
        (sample.name, sample.labels.get("le", "")): (
            sample.exemplar.labels["trace_id"],
            sample.exemplar.labels["span_id"],
            sample.exemplar.value,
        )
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.exemplar is not None
    }


def _record_in_span(pipeline: Pipeline, duration_s: float) -> tuple[str, str]:
    """Record an agent run inside a sampled span and return the span's ids."""
    with pipeline.tracer_provider.get_tracer("test").start_as_current_span("s") as span:
        record_agent("planner", duration_s)
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def test_exemplars_of_the_sampled_span_are_on_counters_and_buckets(pipeline: Pipeline) -> None:
    """A counter's exemplar counts one, a bucket's is the value that fell into it; both lead to the span."""
    ids = _record_in_span(pipeline, 0.3)

    assert {
        ("jeeves_agent_executions_total", ""): (*ids, 1.0),
        ("jeeves_agent_duration_seconds_bucket", "0.5"): (*ids, 0.3),
    } == _exemplars(pipeline.page(openmetrics=True))


def test_exemplars_survive_scrapes_until_newer_ones_come(pipeline: Pipeline) -> None:
    """The last exemplar of a series and of a bucket is there in every scrape, with and without new measurements."""
    old = _record_in_span(pipeline, 0.3)
    for _ in range(3):
        assert old == _exemplars(pipeline.page(openmetrics=True))["jeeves_agent_executions_total", ""][:2]
    new = _record_in_span(pipeline, 1.5)
    pipeline.page()
    record_agent("planner", 4.0)
    for _ in range(2):
        assert {
            ("jeeves_agent_executions_total", ""): (*new, 1.0),
            ("jeeves_agent_duration_seconds_bucket", "0.5"): (*old, 0.3),
            ("jeeves_agent_duration_seconds_bucket", "2.0"): (*new, 1.5),
        } == _exemplars(pipeline.page(openmetrics=True))


def test_operation_gives_its_own_span_as_exemplar(pipeline: Pipeline) -> None:
    """What an agent run records leads to the span of that run."""
    with agent("planner") as run:
        pass
    context = run.span.get_span_context()

    assert {(f"{context.trace_id:032x}", f"{context.span_id:016x}")} == {
        each[:2] for each in _exemplars(pipeline.page(openmetrics=True)).values()
    }


def test_span_that_is_not_sampled_leaves_no_exemplar(pipeline: Pipeline) -> None:
    """An exemplar must lead somewhere."""
    pipeline.tracer_provider.sampler = ALWAYS_OFF
    _record_in_span(pipeline, 0.3)

    assert {} == _exemplars(pipeline.page(openmetrics=True))


def test_plain_text_has_no_exemplars(pipeline: Pipeline) -> None:
    """The format does not know them, and a scraper would refuse the page."""
    _record_in_span(pipeline, 0.3)

    assert "trace_id" not in pipeline.page()


def test_exemplars_of_two_scopes_stay_with_their_scope(make_pipeline: Callable[..., Pipeline]) -> None:
    """Series of an unmapped metric that only the scope tells apart do not lend each other their exemplars."""
    pipeline = make_pipeline()
    counters = [pipeline.meter_provider.get_meter(scope).create_counter("theirs") for scope in ("a", "b")]
    for counter in counters:
        counter.add(1)
    with pipeline.tracer_provider.get_tracer("test").start_as_current_span("s"):
        counters[0].add(1)
    found = [
        sample.labels["otel_scope_name"]
        for family in text_string_to_metric_families(pipeline.page(openmetrics=True))
        for sample in family.samples
        if sample.exemplar is not None
    ]

    assert ["a"] == found


def test_attribute_values_that_cannot_be_hashed_do_not_disturb_a_scrape(pipeline: Pipeline) -> None:
    """Lists are attribute values, too; the metric is shown, and no failure is counted."""
    pipeline.meter_provider.get_meter("a").create_counter("theirs").add(1, {"x": ["a", "b"]})
    for _ in range(2):
        assert pipeline.samples()["theirs_total", (("x", '["a","b"]'),)] == 1

    assert {} == failsafe.counts()


# ---- the route of an application -------------------------------------------------------------------------------------


class App:
    """An application that answers 404 to whatever reaches it, and remembers that."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.state = "the application's own"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        self.reached.append(scope.get("path", scope["type"]))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"from the app"})


async def _ask(app: Any, path: str, method: str = "GET", **scope: Any) -> tuple[int, dict[str, str], bytes]:
    """Send one request, and return status, headers and body."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app({"type": "http", "method": method, "path": path, "headers": [], **scope}, receive, send)
    headers = {key.decode(): value.decode() for key, value in sent[0].get("headers", ())}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def _answer(app: Any, path: str, method: str = "GET", **scope: Any) -> tuple[int, dict[str, str], bytes]:
    return asyncio.run(_ask(app, path, method, **scope))


@pytest.fixture
def app() -> App:
    """Return an application."""
    return App()


@pytest.fixture
def wrapped(pipeline: Pipeline, app: App) -> MetricsMiddleware:
    """Return the application inside the middleware, with something to show."""
    record_feature_usage("export")
    return MetricsMiddleware(app, pipeline.collector)


@pytest.fixture
def _nothing_served() -> Iterator[None]:
    """No collector is the process's own; restored afterwards."""
    before = prometheus._current
    prometheus.serve_current(None)
    yield
    prometheus.serve_current(before)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_metrics_are_answered_without_redirect(wrapped: MetricsMiddleware, app: App, path: str) -> None:
    """Both spellings are 200, with type and length, and the application never hears of it."""
    status, headers, body = _answer(wrapped, path)

    assert (200, TEXT, str(len(body))) == (status, headers["content-type"], headers["content-length"])
    assert b'jeeves_feature_usage_total{feature="export"} 1.0' in body
    assert [] == app.reached


def test_head_has_the_headers_of_get_and_no_body(wrapped: MetricsMiddleware) -> None:
    """As HTTP asks."""
    got, head = _answer(wrapped, "/metrics"), _answer(wrapped, "/metrics", "HEAD")

    assert (got[0], got[1], b"") == head


@pytest.mark.parametrize("accept", [[b"application/openmetrics-text"], [b"text/html", b"application/openmetrics-text"]])
def test_accept_headers_choose_the_format(wrapped: MetricsMiddleware, accept: list[bytes]) -> None:
    """One header or several."""
    _, headers, body = _answer(wrapped, "/metrics", headers=[(b"accept", value) for value in accept])

    assert OPENMETRICS == headers["content-type"]
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/metrics", "POST"),
        ("/metrics/", "OPTIONS"),
        ("/", "GET"),
        ("/metricsx", "GET"),
        ("/metrics/x", "GET"),
        ("/x/metrics", "GET"),
    ],
)
def test_everything_else_passes_to_the_application(
    wrapped: MetricsMiddleware, app: App, path: str, method: str
) -> None:
    """Other methods and other paths are the application's."""
    assert 404 == _answer(wrapped, path, method)[0]
    assert [path] == app.reached


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_not_http_passes_to_the_application(wrapped: MetricsMiddleware, app: App, kind: str) -> None:
    """Start-up, shut-down and sockets, even one at the same path."""
    asyncio.run(wrapped({"type": kind}, None, None))  # type: ignore[arg-type]  # the application does not look

    assert [kind] == app.reached


@pytest.mark.parametrize(
    ("root", "path", "status"),
    [
        ("/api", "/api/metrics", 200),
        ("/api", "/api/metrics/", 200),
        ("/api/", "/api/metrics", 200),
        ("/api", "/metrics", 200),
        ("/met", "/metrics", 200),
        ("/api", "/apimetrics", 404),
        ("/api", "/api/x/metrics", 404),
        ("/metrics", "/metrics/metrics", 200),
    ],
)
def test_root_of_a_mounted_application_does_not_count(
    wrapped: MetricsMiddleware, root: str, path: str, status: int
) -> None:
    """Behind a proxy or a mount, with servers that keep the root in the path and servers that do not."""
    assert status == _answer(wrapped, path, root_path=root)[0]


@pytest.mark.usefixtures("_nothing_served")
def test_without_telemetry_the_answer_says_what_to_do(app: App) -> None:
    """503 with a sentence, not an empty page that looks like a healthy service."""
    status, headers, body = _answer(MetricsMiddleware(app), "/metrics")

    assert (503, "text/plain; charset=utf-8") == (status, headers["content-type"])
    assert b"opentelemetry-instrument" in body


@pytest.mark.usefixtures("_nothing_served")
def test_collector_of_the_launcher_is_found_whenever_it_comes(pipeline: Pipeline, app: App) -> None:
    """The middleware may be made before telemetry is."""
    wrapped = MetricsMiddleware(app)
    prometheus.serve_current(lambda: pipeline.collector)

    assert 200 == _answer(wrapped, "/metrics")[0]


def test_collection_that_fails_is_answered_and_counted(app: App) -> None:
    """500 and one count; the application goes on."""
    failsafe.set_strict(False)

    def fail(_: MetricsData) -> MetricsData:
        raise ValueError

    wrapped = MetricsMiddleware(app, PrometheusCollector(InMemoryMetricReader(), fail))
    failsafe.reset()

    assert 500 == _answer(wrapped, "/metrics")[0]
    assert {"prometheus.scrape": 1} == failsafe.counts()
    assert 404 == _answer(wrapped, "/")[0]


def test_collection_does_not_block_the_event_loop(pipeline: Pipeline, app: App) -> None:
    """While a page is collected the loop goes on: here only the loop can let the collection finish."""
    released = Event()
    waited: list[bool] = []

    def translate(data: MetricsData) -> MetricsData:
        waited.append(released.wait(30))
        return pipeline.translate(data)

    wrapped = MetricsMiddleware(app, PrometheusCollector(pipeline.reader, translate))

    async def scrape_and_release() -> int:
        scrape = asyncio.create_task(_ask(wrapped, "/metrics"))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(released.set)
        return (await scrape)[0]

    assert 200 == asyncio.run(scrape_and_release())
    assert [True] == waited


def test_another_event_loop_than_asyncios_is_answered_too(wrapped: MetricsMiddleware) -> None:
    """Where there is no asyncio loop, the page is collected in place."""
    request = _ask(wrapped, "/metrics")
    with pytest.raises(StopIteration) as answered:
        request.send(None)

    assert 200 == answered.value.value[0]


def test_wrapped_application_looks_like_itself(wrapped: MetricsMiddleware, app: App) -> None:
    """Servers and frameworks that look at attributes find those of the application; copies do too."""
    assert app.state == wrapped.state == copy.copy(wrapped).state
    with pytest.raises(AttributeError):
        _ = wrapped.nothing_like_that


def test_fastapi_application_answers_metrics_and_its_own_routes(pipeline: Pipeline) -> None:
    """Inside a real framework, around it and as one of its middlewares, and for an application that is mounted."""
    from fastapi import FastAPI

    record_feature_usage("export")
    inner, outer = FastAPI(), FastAPI()
    inner.add_middleware(MetricsMiddleware, collector=pipeline.collector)
    outer.mount("/sub", inner)

    assert 200 == _answer(inner, "/metrics")[0]
    assert 200 == _answer(outer, "/sub/metrics")[0]
    assert 404 == _answer(outer, "/metrics")[0]
    assert 200 == _answer(MetricsMiddleware(outer, pipeline.collector), "/metrics")[0]
    assert 200 == _answer(MetricsMiddleware(outer, pipeline.collector), "/openapi.json")[0]
