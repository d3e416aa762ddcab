# SPDX-License-Identifier: Apache-2.0
"""Keep what users have typed out of spans, whatever instrumentation has put it there.

In: finished spans of any library. Out: the same spans without query strings, SQL text and the texts of exceptions, which
quote prompts and parameters. Spans that hold none of it pass as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Source: semantic conventions 1.44 and their older spellings; what the instrumentations were seen to send.
_TEXTS = frozenset(
    {
        "url.query",
        "http.target",
        "db.query.text",
        "db.statement",
        "db.query.parameter",
        "db.statement.parameters",
        "exception.message",
        "exception.stacktrace",
    }
)
_URLS = ("url.full", "http.url")


def without_content(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Return *spans* without content."""
    return [_without_content(span) for span in spans]


def _without_content(span: ReadableSpan) -> ReadableSpan:
    attributes, events = span.attributes or {}, span.events
    kept, kept_events = _kept(attributes), _kept_events(events)
    described = span.status.description is not None and span.status.description != attributes.get("error.type")
    if kept is attributes and kept_events is events and not described:
        return span
    status = Status(span.status.status_code, _error_type(span)) if described else span.status
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=kept,
        events=kept_events,
        links=span.links,
        kind=span.kind,
        status=status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kept(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    urls = [key for key in _URLS if "?" in str(attributes.get(key, ""))]
    if not urls and _TEXTS.isdisjoint(attributes):
        return attributes
    kept = {key: value for key, value in attributes.items() if key not in _TEXTS}
    return {**kept, **{key: str(attributes[key]).partition("?")[0] for key in urls}}


def _kept_events(events: Sequence[Event]) -> Sequence[Event]:
    if all(_TEXTS.isdisjoint(event.attributes or {}) for event in events):
        return events
    return [Event(event.name, _kept(event.attributes or {}), event.timestamp) for event in events]


def _error_type(span: ReadableSpan) -> str | None:
    """Return the class of the error in place of its text, which may quote a prompt."""
    kind = (span.attributes or {}).get("error.type")
    return str(kind) if kind is not None else None
