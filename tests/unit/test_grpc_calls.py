# SPDX-License-Identifier: Apache-2.0
"""What a gRPC target says of the server, and what a propagator may put into the metadata of a call."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator

from jeeves_otel.integrations.grpc_calls import method_of, sent, status_name, status_of_number


@pytest.mark.parametrize(
    ("target", "address", "port"),
    [
        ("kernel:50051", "kernel", 50051),
        ("kernel", "kernel", None),
        ("dns:///kernel.svc:50051", "kernel.svc", 50051),
        ("dns://8.8.8.8/kernel:50051", "kernel", 50051),
        ("dns:kernel:50051", "kernel", 50051),
        ("ipv4:10.0.0.1:80", "10.0.0.1", 80),
        ("ipv6:[2001:db8::1]:80", "2001:db8::1", 80),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", None),
        ("::1", "::1", None),
        ("unix:/run/kernel.sock", "/run/kernel.sock", None),
        ("unix:///run/kernel.sock", "/run/kernel.sock", None),
        ("ipv4:10.0.0.1:80,10.0.0.2:80", None, None),
        ("", None, None),
        ("dns:///", None, None),
    ],
)
def test_address_and_port_of_the_server_are_those_of_the_target(
    target: str, address: str | None, port: int | None
) -> None:
    """Every form that gRPC resolves; several addresses are not one server."""
    attributes = method_of("/t.T/m", target).attributes

    assert (address, port) == (attributes.get("server.address"), attributes.get("server.port"))


@pytest.mark.parametrize("full", ["/kernel.v1.Kernel/Run", b"/kernel.v1.Kernel/Run", "kernel.v1.Kernel/Run"])
def test_a_method_is_called_without_its_leading_slash(full: Any) -> None:
    """As the convention has it, from text and from bytes."""
    assert "kernel.v1.Kernel/Run" == method_of(full).name


@pytest.mark.parametrize(("code", "name"), [(None, None), (5, "UNKNOWN"), ("NOT_FOUND", "UNKNOWN")])
def test_what_is_no_status_code_is_unknown_as_grpc_has_it(code: Any, name: str | None) -> None:
    """Only an asyncio server takes numbers."""
    assert name == status_name(code)
    assert ("NOT_FOUND", "UNAUTHENTICATED", "UNKNOWN") == tuple(map(status_of_number, (5, 16, 17)))


class _Propagator(TextMapPropagator):
    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return context or Context()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        carrier.update({"B3-Flags": "1", "taken": "ours", "illegal": "line\nbreak", "foreign": "é"})

    @property
    def fields(self) -> set[str]:
        return set()


def test_only_what_grpc_accepts_goes_into_the_metadata() -> None:
    """Names in lower case, values in printable ASCII, nothing twice; the rest would end the call."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(_Propagator())
    try:
        metadata = sent((("taken", "theirs"),), Context())
    finally:
        propagate.set_global_textmap(before)

    assert (("taken", "theirs"), ("b3-flags", "1")) == metadata
