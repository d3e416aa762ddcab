# SPDX-License-Identifier: Apache-2.0
"""Answer scrapes with translated metrics: a collector over the public reader API, and a route for ASGI applications.

In: an in-memory reader and the translation. Out: pages in the format that the scraper asks for. Collection runs in the
thread that serves, never in the application's event loop.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, MetricsData, ResourceMetrics
from opentelemetry.sdk.resources import Resource

from jeeves_otel.exposition import OPENMETRICS, TEXT, bucket_index, render
from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.labels import text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PATHS = ("/metrics", "/metrics/")
_NOTHING_YET = MetricsData([ResourceMetrics(Resource({}), [], "")])


class PrometheusCollector:
    """Turn one collection into one page. Safe from several threads; after a shutdown it repeats the last page.

    Attributes:
        whole: What a page shows: the collection of this process, or of all processes of the service where they share
            one page; see `shared_page`.

    Args:
        reader: A cumulative in-memory reader of the SDK, attached to the meter provider.
        translate: What maps the collected metrics to the promised ones.
    """

    def __init__(self, reader: InMemoryMetricReader, translate: Callable[[MetricsData], MetricsData]) -> None:
        self._reader = reader
        self._translate = translate
        self._lock = Lock()
        self._exemplars: dict[tuple[Any, ...], dict[int, Exemplar]] = {}
        self._last: MetricsData | None = None
        self.whole: Callable[[], MetricsData] = self.collect

    def page(self, accept: str = "") -> tuple[str, str]:
        """Collect and return ``(body, content type)`` in the best format that the ``Accept`` header *accept* names."""
        openmetrics = wants_openmetrics(accept)
        return render(self.whole(), openmetrics=openmetrics), OPENMETRICS if openmetrics else TEXT

    def collect(self) -> MetricsData:
        """Return what this process has measured, translated, with the exemplars of earlier collections."""
        with self._lock:
            collected = self._reader.get_metrics_data()
            if collected is not None or self._last is None:
                # Before the first measurement too, there are the series that exist from the start.
                self._last = self._translate(collected or _NOTHING_YET)
                self._remember_exemplars(self._last)
            return self._last

    def _remember_exemplars(self, data: MetricsData) -> None:
        # The SDK forgets its exemplars at each collection; the last one of a series must survive the scrape.
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        with failsafe("prometheus.exemplars"):
                            self._merge_exemplars((scope.scope, metric.name), point)

    def _merge_exemplars(self, family: tuple[InstrumentationScope, str], point: Any) -> None:
        key = (*family, *sorted((label, text_of(value)) for label, value in (point.attributes or {}).items()))
        if not point.exemplars and key not in self._exemplars:
            return
        bounds = point.explicit_bounds if isinstance(point, HistogramDataPoint) else ()
        held = self._exemplars.setdefault(key, {})
        for exemplar in sorted(point.exemplars, key=lambda each: each.time_unix_nano):
            held[bucket_index(exemplar.value, bounds) if bounds else 0] = exemplar
        if isinstance(point.exemplars, list):  # made for this collection alone, by the translation or the SDK
            point.exemplars[:] = held.values()


def wants_openmetrics(accept: str) -> bool:
    """Return whether an ``Accept`` header prefers OpenMetrics to plain text; quality 0 refuses."""
    qualities = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if media in qualities:
            try:
                qualities[media] = max(qualities[media], float(quality))
            except ValueError:
                continue
    return (
        qualities["application/openmetrics-text"] > 0
        and qualities["application/openmetrics-text"] >= qualities["text/plain"]
    )


# ---- a route of the application --------------------------------------------------------------------------------------


class Page(Protocol):
    """What answers scrapes: a `PrometheusCollector`, or what finds the one of the present process."""

    def page(self, accept: str = "") -> tuple[str, str]:
        """Return ``(body, content type)`` for an ``Accept`` header."""


_current: Callable[[], Page] | None = None


def serve_current(page: Callable[[], Page] | None) -> None:
    """Make *page* what `MetricsMiddleware` answers from: a function, because a page that nobody serves is never made."""
    global _current  # noqa: PLW0603 - one page per process
    _current = page


_NO_PAGE = (
    b"No metrics here: start the service with opentelemetry-instrument, without OTEL_SDK_DISABLED=true "
    b"and OTEL_METRICS_EXPORTER=none.\n"
)


class MetricsMiddleware:
    """ASGI middleware that answers ``/metrics`` and ``/metrics/`` and passes everything else on.

    Wrap the application with it, outside everything else, so that scrapes are not measured as requests::

        app = MetricsMiddleware(app)              # any ASGI application
        app.add_middleware(MetricsMiddleware)     # FastAPI and Starlette: simpler, but scrapes count as requests

    Without telemetry (no launcher, ``OTEL_SDK_DISABLED``) it answers 503 and says why.

    Args:
        app: The application.
        collector: Where the pages come from; None: what the launcher has set up.
    """

    def __init__(self, app: AsgiApp, collector: Page | None = None) -> None:
        self.app = app
        # Asked for now and not at the first scrape, because a page shows what is measured after it was made.
        self._collector = collector if collector is not None or _current is None else _current()

    def __getattr__(self, name: str) -> Any:
        """Be the application for whoever looks at its attributes (``app.state``, ``app.router``…)."""
        return getattr(self.__dict__.get("app"), name)  # not there yet while a copy is being made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape, or call the application."""
        if scope["type"] != "http" or _path_below_root(scope) not in PATHS or scope["method"] not in {"GET", "HEAD"}:
            await self.app(scope, receive, send)
            return
        status, body, content_type = await self._respond(scope)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _respond(self, scope: Scope) -> tuple[int, bytes, str]:
        collector = self._collector or (_current() if _current is not None else None)
        if collector is None:
            return 503, _NO_PAGE, "text/plain; charset=utf-8"
        accept = b",".join(value for key, value in scope["headers"] if key == b"accept").decode("latin-1")
        try:
            page, content_type = await _in_thread(lambda: collector.page(accept))
        except Exception as error:  # noqa: BLE001 - a scrape that fails is answered and counted
            swallow("prometheus.scrape", error)
            return 500, b"Collection failed; see the log of the service.\n", "text/plain; charset=utf-8"
        return 200, page.encode(), content_type


def _path_below_root(scope: Scope) -> str:
    # Some servers put the root in front of the path, some do not.
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _in_thread(work: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    import asyncio  # noqa: PLC0415 - a script that has no loop does not pay for it

    try:
        asyncio.get_running_loop()
    except RuntimeError:  # another event loop than asyncio's: collect here rather than not at all
        return work()
    return await asyncio.to_thread(work)
