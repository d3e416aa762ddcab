# SPDX-License-Identifier: Apache-2.0
"""propagators: traces cross the border, baggage only as far as it is allowed."""

from __future__ import annotations

import pytest
from opentelemetry import baggage, context as otel_context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jeeves_otel import propagators
from jeeves_otel.propagators import AllowedBaggage
from jeeves_otel.settings import Settings

STOCK = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
HEADERS = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
    "baggage": "tenant=a,secret=canary,app.region=eu",
}


@pytest.mark.parametrize(
    ("allowed", "kept"),
    [
        ((), {}),
        (("tenant",), {"tenant": "a"}),
        (("tenant", "app.*"), {"tenant": "a", "app.region": "eu"}),
        (("*",), {"tenant": "a", "secret": "canary", "app.region": "eu"}),
    ],
)
def test_only_allowed_baggage_comes_in_and_goes_out(allowed: tuple[str, ...], kept: dict[str, str]) -> None:
    """In both directions; the trace crosses in every case."""
    propagator = AllowedBaggage(STOCK, allowed)
    came_in = propagator.extract(HEADERS, otel_context.Context())
    outgoing: dict[str, str] = {}
    propagator.inject(outgoing, STOCK.extract(HEADERS, otel_context.Context()))

    assert kept == baggage.get_all(came_in)
    assert kept == baggage.get_all(STOCK.extract(outgoing, otel_context.Context()))
    assert (HEADERS["traceparent"], HEADERS["tracestate"]) == (outgoing["traceparent"], outgoing["tracestate"])
    assert trace.get_current_span(came_in).get_span_context().trace_id == 0x0AF7651916CD43DD8448EB211C80319C


def test_baggage_that_the_application_has_set_stays_in_the_process() -> None:
    """What is not allowed does not leave, and is not taken from the application either."""
    propagator = AllowedBaggage(STOCK, ())
    own = baggage.set_baggage("secret", "mine", otel_context.Context())
    outgoing: dict[str, str] = {}
    propagator.inject(outgoing, own)

    assert (outgoing, baggage.get_all(own)) == ({}, {"secret": "mine"})
    assert baggage.get_all(propagator.extract({"baggage": "other=x"}, own)) == {"secret": "mine"}


def test_the_current_context_is_the_default() -> None:
    """As with every propagator."""
    propagator = AllowedBaggage(STOCK, ("tenant",))
    token = otel_context.attach(baggage.set_baggage("tenant", "a", baggage.set_baggage("secret", "s")))
    outgoing: dict[str, str] = {}
    propagator.inject(outgoing)
    came_in = propagator.extract({"baggage": "secret=other"})
    started_anew = STOCK.extract({})
    otel_context.detach(token)

    assert outgoing == {"baggage": "tenant=a"}
    assert baggage.get_all(came_in) == baggage.get_all(started_anew) == {}
    assert propagator.fields == STOCK.fields


def test_a_propagator_of_nothing_gives_back_the_context_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_PROPAGATORS=none carries nothing and breaks nothing; installing again changes nothing."""
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([]))
    propagators.install(())
    installed = propagate.get_global_textmap()
    propagators.install(("*",))
    context = otel_context.set_value("key", "value")
    outgoing: dict[str, str] = {}
    propagate.inject(outgoing, context)

    assert propagate.extract(HEADERS, context) == context
    assert outgoing == {}
    assert propagate.get_global_textmap() is installed


@pytest.mark.parametrize(
    ("environ", "allowed"),
    [
        ({}, ()),
        ({"JEEVES_OTEL_BAGGAGE": "tenant, app.*"}, ("tenant", "app.*")),
        ({"OTEL_PROPAGATORS": "tracecontext,baggage"}, ("*",)),
        ({"OTEL_PROPAGATORS": "tracecontext,baggage", "JEEVES_OTEL_BAGGAGE": "tenant"}, ("tenant",)),
    ],
)
def test_who_names_the_propagators_gets_what_they_do(environ: dict[str, str], allowed: tuple[str, ...]) -> None:
    """Standard variables keep their meaning; ours narrows it."""
    assert allowed == Settings.from_env(environ)[0].baggage
