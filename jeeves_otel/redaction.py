# SPDX-License-Identifier: Apache-2.0
"""Take content out of what is about to leave, whatever instrumentation has put it there.

In: finished spans and log records of any library, and a `Content` that says what may leave. Out: the same ones without
the rest. What holds none of it passes as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

from jeeves_otel.content import LEFT_OUT, without_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord

    from jeeves_otel.content import Content


_ERROR_TYPE = "error.type"


class Redactor:
    """Spans and log records without what *content* keeps back. Safe from several threads."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._masks = bool(content.rules.mask)

    def spans(self, spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
        """Return *spans* as they may leave."""
        return [self._span(span) for span in spans]

    def logs(self, records: Sequence[ReadableLogRecord]) -> list[ReadableLogRecord]:
        """Return *records* as they may leave."""
        return [self._log(record) for record in records]

    def _span(self, span: ReadableSpan) -> ReadableSpan:
        attributes = span.attributes or {}
        kept = self._attributes(attributes)
        events = _unless_same(span.events, [self._event(event) for event in span.events])
        links = _unless_same(span.links, [self._link(link) for link in span.links])
        status, name = self._status(span), self._text(span.name)
        if (
            kept is attributes
            and events is span.events
            and links is span.links
            and status is span.status
            and name == span.name
        ):
            return span
        return ReadableSpan(
            name=name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=kept,
            events=events,
            links=links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        attributes = event.attributes or {}
        kept, name = self._attributes(attributes), self._text(event.name)
        return event if kept is attributes and name == event.name else Event(name, kept, event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = link.attributes or {}
        kept = self._attributes(attributes)
        return link if kept is attributes else Link(link.context, kept)

    def _status(self, span: ReadableSpan) -> Status:
        described = span.status.description
        if described is None:
            return span.status
        if not self._content.statuses and described != (span.attributes or {}).get("error.type"):
            described = None if self._content.drops(_ERROR_TYPE) else _error_type(span)
        text = None if described is None else self._text(described)
        return span.status if text == span.status.description else Status(span.status.status_code, text)

    def _log(self, readable: ReadableLogRecord) -> ReadableLogRecord:
        record = readable.log_record
        attributes = record.attributes or {}
        kept = self._nested(self._attributes(attributes))
        scope = readable.instrumentation_scope
        silent = self._content.is_silent(scope.name if scope else "", record.event_name or "", record.body)
        body = LEFT_OUT if silent and record.body is not None else self._nested(self._value(record.body))
        if kept is attributes and body is record.body:
            return readable
        changed = copy(record)
        changed.attributes, changed.body = kept, body
        return replace(readable, log_record=changed)

    def _attributes(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return *attributes*, the very same object if nothing has to be taken out."""
        content = self._content
        dropped = [key for key in attributes if content.drops(key)]
        changed = {}
        for key in content.cut.intersection(attributes):
            if (url := without_query(str(attributes[key]))) != attributes[key]:
                changed[key] = url
        if self._masks:
            for key, value in attributes.items():
                if (masked := self._value(changed.get(key, value))) is not value:
                    changed[key] = masked
        if not dropped and not changed:
            return attributes
        return {key: changed.get(key, value) for key, value in attributes.items() if key not in dropped}

    def _nested(self, value: Any) -> Any:
        """Return *value* without what is to be left out of mappings inside it; the very same object if that is nothing."""
        if isinstance(value, (list, tuple)):
            return _unless_same(value, [self._nested(each) for each in value])
        if not isinstance(value, Mapping):
            return value
        kept = {key: self._nested(each) for key, each in value.items() if not self._content.drops(key)}
        return value if len(kept) == len(value) and all(kept[key] is value[key] for key in kept) else kept

    def _value(self, value: Any) -> Any:
        """Return *value* with the texts in it masked; the very same object if none is."""
        if not self._masks:
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (list, tuple)):
            return _unless_same(value, [self._value(each) for each in value])
        if isinstance(value, dict):
            masked = {key: self._value(each) for key, each in value.items()}
            return value if all(masked[key] is value[key] for key in value) else masked
        return value

    def _text(self, text: str) -> str:
        return self._content.masked(text) if self._masks else text


def _unless_same(before: Sequence[Any], after: list[Any]) -> Sequence[Any]:
    """Return *after*, or *before* if nothing in it has changed."""
    return before if all(old is new for old, new in zip(before, after, strict=True)) else after


def _error_type(span: ReadableSpan) -> str | None:
    """Return the class of the error in place of its text, which may quote a prompt."""
    kind = (span.attributes or {}).get(_ERROR_TYPE)
    return str(kind) if kind is not None else None
