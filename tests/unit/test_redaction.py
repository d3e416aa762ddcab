# SPDX-License-Identifier: Apache-2.0
"""redaction: spans and log records keep what operators need and lose what users typed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode

from jeeves_otel.content import LEFT_OUT, Content, Rules
from jeeves_otel.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

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
    after = Redactor(Content()).spans([before])[0]

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

    assert Redactor(Content()).spans([before])[0] is before


def test_error_without_a_type_loses_its_words(pipeline: Pipeline) -> None:
    """No class is known, so nothing stands in for the text."""
    span = pipeline.tracer_provider.get_tracer("library").start_span("a")
    span.set_status(StatusCode.ERROR, "canary")
    span.end()
    after = Redactor(Content()).spans(pipeline.spans())[0]

    assert (after.status.status_code, after.status.description) == (StatusCode.ERROR, None)


def test_links_lose_content_too(pipeline: Pipeline) -> None:
    """A link keeps where it points to, and its other attributes."""
    tracer = pipeline.tracer_provider.get_tracer("library")
    other = tracer.start_span("other")
    tracer.start_span("a", links=[Link(other.get_span_context(), {"gen_ai.prompt": "canary", "queue": "q"})]).end()
    link = Redactor(Content()).spans(pipeline.spans())[0].links[0]

    assert (link.context, dict(link.attributes or {})) == (other.get_span_context(), {"queue": "q"})


def test_patterns_of_the_user_are_masked_in_every_text_of_a_span(pipeline: Pipeline) -> None:
    """Name, attributes, lists in them, events, links and status; what does not match stays."""
    tracer = pipeline.tracer_provider.get_tracer("library")
    context = tracer.start_span("other").get_span_context()
    span = tracer.start_span("card 1234567890123456", links=[Link(context, {"l": "1234567890123456"})])
    span.set_attributes({"a": "x 1234567890123456 y", "b": ["1234567890123456", "z"], "n": 1234567890123456})
    span.add_event("e", {"c": "1234567890123456"})
    span.set_status(StatusCode.ERROR, "1234567890123456")
    span.end()
    content = Content(frozenset({"exceptions"}), Rules(mask=(re.compile(r"\b\d{16}\b"),)))
    after = Redactor(content).spans(pipeline.spans())[0]

    assert after.name == "card ***"
    assert dict(after.attributes or {}) == {"a": "x *** y", "b": ["***", "z"], "n": 1234567890123456}
    assert [dict(event.attributes or {}) for event in after.events] == [{"c": "***"}]
    assert [dict(link.attributes or {}) for link in after.links] == [{"l": "***"}]
    assert after.status.description == "***"


def test_patterns_are_masked_in_names_of_events_and_in_what_stands_for_the_words_of_an_error(
    pipeline: Pipeline,
) -> None:
    """The type of the error takes the place of the text, and is a text itself."""
    span = pipeline.tracer_provider.get_tracer("library").start_span("s")
    span.add_event("came id-42")
    span.set_attribute("error.type", "id-43")
    span.set_status(StatusCode.ERROR, "canary")
    span.end()
    after = Redactor(Content(rules=Rules(mask=(re.compile(r"id-\d+"),)))).spans(pipeline.spans())[0]

    assert ["came ***"] == [event.name for event in after.events]
    assert ("***", "***") == ((after.attributes or {})["error.type"], after.status.description)


@pytest.fixture
def emitted() -> Callable[..., ReadableLogRecord]:
    """Return a function that emits a record through the SDK and returns what an exporter gets."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))

    def emit(logger: str, **fields: Any) -> ReadableLogRecord:
        provider.get_logger(logger).emit(LogRecord(**fields))
        record: ReadableLogRecord = exporter.get_finished_logs()[-1]
        return record

    return emit


def test_log_record_of_the_application_keeps_its_words_and_loses_those_of_the_exception(
    emitted: Callable[..., ReadableLogRecord],
) -> None:
    """What the developer wrote leaves, what the exception quotes does not."""
    before = emitted("app", body="it failed", attributes={"exception.type": "E", "exception.message": "canary", "n": 1})
    after = Redactor(Content()).logs([before])[0]

    assert (after.log_record.body, dict(after.log_record.attributes or {})) == (
        "it failed",
        {"exception.type": "E", "n": 1},
    )
    assert dict(before.log_record.attributes or {})["exception.message"] == "canary"
    assert after.resource is before.resource


@pytest.mark.parametrize(
    ("logger", "event", "kinds", "leaves"),
    [
        ("openai", "", (), False),
        ("openai._base_client", "", (), False),
        ("openai._base_client", "", ("prompts",), True),
        ("openaifan", "", (), True),
        ("aiohttp.access", "", (), False),
        ("django.server", "", (), False),
        ("tornado.access", "", (), False),
        ("werkzeug", "", (), False),
        ("sqlalchemy.engine.Engine", "", (), False),
        ("sqlalchemy.engine.Engine", "", ("sql",), True),
        ("sqlalchemy.pool", "", (), True),
        ("app", "gen_ai.user.message", (), False),
        ("app", "gen_ai.choice", ("prompts",), False),
        ("app", "gen_ai.choice", ("completions",), True),
    ],
)
def test_lines_in_which_libraries_quote_content_leave_without_their_text(
    logger: str, event: str, kinds: tuple[str, ...], leaves: bool, emitted: Callable[..., ReadableLogRecord]
) -> None:
    """That something was logged stays, with time and severity; its text leaves only if its kind is asked for."""
    before = emitted(logger, body="canary", event_name=event or None)
    after = Redactor(Content(frozenset(kinds))).logs([before])[0]

    assert after.log_record.body == ("canary" if leaves else LEFT_OUT)


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        ('127.0.0.1:1 - "WebSocket /ws?q=canary" [accepted]', False),
        ("Started server process [1]", True),
        ("connection open", True),
    ],
)
def test_lines_of_a_logger_are_left_out_where_they_quote_content(
    body: str, leaves: bool, emitted: Callable[..., ReadableLogRecord]
) -> None:
    """uvicorn writes the access lines of WebSockets to uvicorn.error, among others that are needed."""
    after = Redactor(Content()).logs([emitted("uvicorn.error", body=body)])[0]

    assert after.log_record.body == (body if leaves else LEFT_OUT)


def test_content_inside_mappings_of_a_log_record_is_left_out(emitted: Callable[..., ReadableLogRecord]) -> None:
    """Attributes and body may be nested."""
    nested = {"deep": [{"gen_ai.input.messages": "canary", "kept": 1}], "url.query": "canary"}
    before = emitted("app", body=dict(nested), attributes={"event": dict(nested)})
    record = Redactor(Content()).logs([before])[0].log_record

    assert record.body == {"deep": [{"kept": 1}]}
    assert "canary" not in str(record.attributes)


def test_a_dropped_error_type_does_not_come_back_as_the_words_of_a_status(pipeline: Pipeline) -> None:
    """Whoever drops it does not want it anywhere."""
    span = pipeline.tracer_provider.get_tracer("library").start_span("a")
    span.set_attribute("error.type", "Secret")
    span.set_status(StatusCode.ERROR, "canary")
    span.end()
    after = Redactor(Content(rules=Rules(drop=("error.type",)))).spans(pipeline.spans())[0]

    assert "Secret" not in after.to_json()


def test_patterns_are_masked_inside_structured_bodies(emitted: Callable[..., ReadableLogRecord]) -> None:
    """A body may be a mapping of lists of texts."""
    before = emitted("app", body={"a": ["id-42", 1], "b": {"c": "id-43"}})
    after = Redactor(Content(rules=Rules(mask=(re.compile(r"id-\d+"),)))).logs([before])[0]

    assert after.log_record.body == {"a": ["***", 1], "b": {"c": "***"}}


def test_record_without_content_is_the_same_object(emitted: Callable[..., ReadableLogRecord]) -> None:
    """What holds nothing of it is not copied."""
    before = emitted("app", body="fine", attributes={"n": 1})

    assert Redactor(Content()).logs([before])[0] is before


def test_kinds_asked_for_stay_on_spans(pipeline: Pipeline) -> None:
    """Each kind by itself: the other one still goes."""

    def sent(*kinds: str) -> dict[str, Any]:
        span: ReadableSpan = Redactor(Content(frozenset(kinds))).spans(pipeline.spans())[0]
        return dict(span.attributes or {})

    span = pipeline.tracer_provider.get_tracer("library").start_span("a")
    span.set_attributes(
        {"db.query.text": "SELECT 1", "url.full": "http://u:p@h/x?q=1#f", "gen_ai.output.messages": "m"}
    )
    span.end()

    assert sent() == {"url.full": "http://h/x"}
    assert sent("sql") == {"url.full": "http://h/x", "db.query.text": "SELECT 1"}
    assert sent("queries") == {"url.full": "http://u:p@h/x?q=1#f"}
    assert sent("completions") == {"url.full": "http://h/x", "gen_ai.output.messages": "m"}
