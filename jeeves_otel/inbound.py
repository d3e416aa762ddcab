# SPDX-License-Identifier: Apache-2.0
"""Say which request, coming in from outside, a measurement or a span was made in.

The seam around a server (`integrations.asgi`) makes an `OpenRequest` the current one. The meter provider asks it when an
instrumentation records an HTTP instrument, so that a request counts once and by how it really ended, and the sampler
asks it whether anything of the request is kept at all.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from opentelemetry.context import Context

# What a request counts as where another status was sent, or none.
OUTCOME = "jeeves.http.status_code"
CLIENT_LEFT = 499  # nginx's number for "client closed request"; no standard has one
CUT_SHORT = 500  # the response had begun, and an error kept it from ending

# Not in the context of OpenTelemetry: FastAPI's own telemetry begins a new one from what came in (0.142 to 0.165).
_current: ContextVar[OpenRequest | None] = ContextVar("jeeves-inbound-request", default=None)
# In it all the same for requests that are excluded: threads and pools get that context, and no other variable.
_EXCLUDED = otel_context.create_key("jeeves-excluded-request")


class OpenRequest:
    """A request that is being served, as far as others need to know it.

    It stays in the contexts of tasks that were started while it ran, so it knows that it has ended.

    Args:
        excluded: Whether neither spans nor measurements are made of it.
        ours: Whether the seam measures it itself, and no instrumentation may.

    Attributes:
        ended: Whether the application has returned; what runs on is no longer part of the request.
        reported: Instruments that an instrumentation has recorded.
    """

    __slots__ = ("ended", "excluded", "ours", "reported")

    def __init__(self, *, excluded: bool, ours: bool) -> None:
        self.excluded = excluded
        self.ours = ours
        self.ended = False
        self.reported: set[str] = set()

    def admits(self, instrument: str, *, once: bool) -> bool:
        """Return whether a measurement that an instrumentation makes of this request counts.

        Args:
            instrument: Its name.
            once: Whether a request has one measurement of it, so that a second is another instrumentation's.
        """
        if self.excluded or self.ours or (once and instrument in self.reported):
            return False
        if once:
            self.reported.add(instrument)
        return True

    def corrected(self, attributes: Any) -> Any:
        """Return the attributes of a duration as they should have been recorded."""
        return attributes


def inbound_request() -> OpenRequest | None:
    """Return the request that is being served here, or None."""
    request = _current.get()
    return None if request is None or request.ended else request


def with_excluded(request: OpenRequest, context: Context) -> Context:
    """Return *context* in which the spans of *request*, which is excluded, are left out in other threads too."""
    return otel_context.set_value(_EXCLUDED, request, context)


def is_excluded(context: Context | None) -> bool:
    """Return whether a span that begins here, in *context* (default: the current one), is part of an excluded request."""
    request = inbound_request() or otel_context.get_value(_EXCLUDED, context)
    return isinstance(request, OpenRequest) and request.excluded and not request.ended


def enter(request: OpenRequest) -> OpenRequest | None:
    """Make *request* the one that is being served here; return the one around it, which called it in this process."""
    around = _current.get()
    _current.set(request)
    return around


def leave(request: OpenRequest, around: OpenRequest | None) -> None:
    """Note that *request* has been served, and go back to what `enter` has returned."""
    request.ended = True
    _current.set(around)
