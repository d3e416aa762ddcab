# SPDX-License-Identifier: Apache-2.0
"""routes: the template of a request, where the framework says it and where it does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

from jeeves_otel.integrations.routes import route_of


async def _opaque(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("")(scope, receive, send)


async def _leaf(_: Any) -> PlainTextResponse:
    return PlainTextResponse("")


async def _other(_: Any) -> PlainTextResponse:
    return PlainTextResponse("")


LEAF = Route("/{leaf:int}", _leaf, methods=["GET"])
APP = Starlette(
    routes=[
        LEAF,
        Route("/{other}", _other),
        Mount("/opaque/{which}", _opaque),
        Mount("/app/{tenant}", Starlette(routes=[LEAF])),
        Mount("/router", Router(routes=[Mount("/{deeper}", routes=[LEAF])])),
        Mount("/packed", Starlette(routes=[LEAF]), middleware=[Middleware(GZipMiddleware)]),
        Host("{name}.example.com", Starlette(routes=[Mount("/hosted", routes=[LEAF])])),
    ]
)
ROUTES = {
    "/7": "/{leaf}",
    "/canary": "/{other}",
    "/opaque/canary/file": "/opaque/{which}/{path}",
    "/app/canary/7": "/app/{tenant}/{leaf}",
    "/app/canary/canary": None,
    "/router/canary/7": "/router/{deeper}/{leaf}",
    "/router/canary/canary": None,
    "/packed/7": "/packed/{leaf}",
    "/packed/canary": None,
    "/hosted/7": "/hosted/{leaf}",
    "/no/such/path": None,
}


def _routed(path: str, root_path: str, method: str = "GET") -> dict[str, Any]:
    """Return the scope of a request after the application has routed it."""
    host = b"canary.example.com" if path.startswith("/hosted") else b"localhost"
    scope: dict[str, Any] = {"type": "http", "method": method, "path": root_path + path, "root_path": root_path}
    scope |= {"headers": [(b"host", host)], "query_string": b"", "scheme": "http"}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_: Any) -> None:
        """Be a server that takes everything."""

    asyncio.run(APP(scope, receive, send))
    return scope


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("path", ROUTES)
def test_the_template_is_found_whether_the_framework_says_it_or_not(path: str, root_path: str, said: bool) -> None:
    """Starlette since 1.0 puts the route into the scope; before, it is found again by its endpoint."""
    scope = _routed(path, root_path)
    if not said:
        scope.pop("route", None)
    expected = ROUTES[path]

    assert (root_path + expected if expected else None) == route_of(scope, root_path + path, root_path)


@pytest.mark.parametrize("said", [True, False])
def test_a_method_that_is_not_allowed_has_the_route_all_the_same(said: bool) -> None:
    """405 belongs to the route that has other methods."""
    scope = _routed("/app/canary/7", "", "POST")
    if not said:
        scope.pop("route", None)

    assert "/app/{tenant}/{leaf}" == route_of(scope, "/app/canary/7", "")


def test_an_application_without_a_framework_may_name_its_route() -> None:
    """As text, in the scope."""
    assert "/a/{b}" == route_of({"route": "/a/{b}"}, "/a/canary", "")
    assert None is route_of({}, "/a/canary", "")
