# SPDX-License-Identifier: Apache-2.0
"""What a WSGI server serves; it measures its requests by hand, because nothing measures WSGI for it."""

from __future__ import annotations

import os
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from jeeves_otel import record_http_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

tracer = trace.get_tracer("wsgi")


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the ids of trace and process; measured before the answer leaves."""
    began = perf_counter()
    with tracer.start_as_current_span("GET /{item}") as span:
        record_http_request(environ["REQUEST_METHOD"], "/{item}", 200, perf_counter() - began)
        trace_id = f"{span.get_span_context().trace_id:032x}"
    who = [("X-Trace-ID", trace_id), ("X-Process", str(os.getpid()))]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1"), *who])
    return [b"1"]
