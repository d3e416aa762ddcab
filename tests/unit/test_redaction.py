# SPDX-License-Identifier: Apache-2.0
"""redaction: spans keep what operators need and lose what users typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, StatusCode

from jeeves_otel.redaction import without_content

if TYPE_CHECKING:
    from tests.helpers import Pipeline


def test_texts_are_taken_out_and_everything_else_stays(pipeline: Pipeline) -> None:
    """Query strings, SQL and the words of exceptions go; names, times, parents, kinds, links and other events stay."""
    tracer = pipeline.tracer_provider.get_tracer("library", "1.2")
    with tracer.start_as_current_span("outer"):
        span = tracer.start_span("GET /x", kind=SpanKind.SERVER)
        span.set_attributes(
            {"url.path": "/x", "url.query": "q=canary", "db.query.text": "canary", "url.full": "http://h/x?canary"}
        )
        span.add_event(
            "exception",
            {"exception.type": "ValueError", "exception.message": "canary", "exception.stacktrace": "canary"},
        )
        span.add_event("other", {"n": 1})
        span.set_attribute("error.type", "ValueError")
        span.set_status(StatusCode.ERROR, "canary")
        span.end()
    before = pipeline.spans()[0]
    after = without_content([before])[0]

    assert "canary" in before.to_json()
    assert "canary" not in after.to_json()
    assert dict(after.attributes or {}) == {"url.path": "/x", "url.full": "http://h/x", "error.type": "ValueError"}
    assert [(event.name, dict(event.attributes or {})) for event in after.events] == [
        ("exception", {"exception.type": "ValueError"}),
        ("other", {"n": 1}),
    ]
    assert (after.status.status_code, after.status.description) == (StatusCode.ERROR, "ValueError")
    for name in (
        "name",
        "context",
        "parent",
        "kind",
        "start_time",
        "end_time",
        "links",
        "resource",
        "instrumentation_scope",
    ):
        assert getattr(after, name) == getattr(before, name)


def test_span_without_content_is_the_same_object(pipeline: Pipeline) -> None:
    """What holds nothing of it is not copied."""
    span = pipeline.tracer_provider.get_tracer("library").start_span("a")
    span.set_attribute("url.path", "/x")
    span.end()
    before = pipeline.spans()[0]

    assert without_content([before])[0] is before


def test_error_without_a_type_loses_its_words(pipeline: Pipeline) -> None:
    """No class is known, so nothing stands in for the text."""
    span = pipeline.tracer_provider.get_tracer("library").start_span("a")
    span.set_status(StatusCode.ERROR, "canary")
    span.end()
    after = without_content(pipeline.spans())[0]

    assert (after.status.status_code, after.status.description) == (StatusCode.ERROR, None)
