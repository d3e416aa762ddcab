# SPDX-License-Identifier: Apache-2.0
"""Carry the ids of a workflow and of its run across processes, beside W3C Trace Context and Baggage.

In: request headers or gRPC metadata. Out: a context that holds the ids, attributes for the server's span, and the pairs
that an onward call sends. Pure functions over OpenTelemetry contexts. The ids are for spans and headers, never for labels.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context

from jeeves_otel.layers import running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context

WORKFLOW_HEADER = "x-workflow-id"
RUN_HEADER = "x-run-id"

_ATTRIBUTES = {WORKFLOW_HEADER: "jeeves.workflow.id", RUN_HEADER: "jeeves.run.id"}
_KNOWN = {spelling: name for name in _ATTRIBUTES for spelling in (name, name.encode())}
_KEY = otel_context.create_key("jeeves-ids")
_ID = re.compile("[!-~]{1,128}")  # printable ASCII without spaces


def incoming(metadata: Iterable[tuple[str | bytes, str | bytes]] | None, context: Context | None = None) -> Context:
    """Return *context* with the ids that a request has brought along; unchanged if it has brought none.

    Args:
        metadata: Pairs of name and value; names in any case. HTTP headers, ASGI's bytes and gRPC metadata alike.
            Of a name that comes twice, the first valid value holds. What is longer than 128 characters or holds
            anything but printable ASCII without spaces is no id.
        context: Default the current one.
    """
    found: dict[str, str] = {}
    for key, value in metadata or ():
        name = _KNOWN.get(key.lower())
        if name is not None and name not in found:
            checked = _checked(value)
            if checked is not None:
                found[name] = checked
    base = otel_context.get_current() if context is None else context
    return otel_context.set_value(_KEY, found, base) if found else base


def outgoing(context: Context | None = None) -> list[tuple[str, str]]:
    """Return the pairs ``x-workflow-id`` and ``x-run-id`` that a call made in *context* sends, as far as they are known.

    An id that came in with the request holds from end to end. Otherwise the workflow is the innermost running pipeline,
    by its name, and the run is its ``request_id``.

    Args:
        context: Default the current one.
    """
    base = otel_context.get_current() if context is None else context
    ids = _carried(base)
    if len(ids) < len(_ATTRIBUTES):
        pipeline = running("pipeline", base)
        if pipeline is not None:
            own = {WORKFLOW_HEADER: _checked(pipeline.name), RUN_HEADER: _checked(pipeline.request_id)}
            ids = {name: value for name in own if (value := ids.get(name) or own[name]) is not None}
    return list(ids.items())


def attributes(context: Context) -> dict[str, str]:
    """Return what the span of a request says about the ids that came with it, ``jeeves.workflow.id``, ``jeeves.run.id``."""
    return {_ATTRIBUTES[name]: value for name, value in _carried(context).items()}


def _carried(context: Context) -> dict[str, str]:
    return context.get(_KEY) or {}  # type: ignore[return-value]  # nobody else has this key


def _checked(value: str | bytes | None) -> str | None:
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text if _ID.fullmatch(text) else None
