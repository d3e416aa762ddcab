# SPDX-License-Identifier: Apache-2.0
"""ASGI applications with one route per ending, the same for FastAPI, Starlette and no framework, and a server for them."""

from __future__ import annotations

import asyncio
import http.client
import socket
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse as StarletteStreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from jeeves_otel.integrations import asgi
from tests.helpers import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.helpers import Pipeline

KINDS = ["fastapi", "starlette", "asgi"]


class Gate:
    """Something that a handler waits for until the test opens it, and by which the test sees that it waits."""

    def __init__(self) -> None:
        self.waiting = False
        self._opened = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def passed(self) -> None:
        """Wait until it is open."""
        self._loop = asyncio.get_running_loop()
        self.waiting = True
        await self._opened.wait()

    def wait_reached(self) -> None:
        """Wait until a handler waits."""
        poll_until(lambda: self.waiting, "the handler to reach the gate")

    def open(self) -> None:
        """Let it go on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)


async def _chunks(gate: Gate | None = None, error: Exception | None = None) -> AsyncIterator[str]:
    yield "data: 1\n\n"
    if gate is not None:
        await gate.passed()
    if error is not None:
        raise error
    yield "data: 2\n\n"


def inner_application(telemetry: Any) -> FastAPI:
    """Return a FastAPI application to be mounted."""
    app = FastAPI(telemetry=telemetry)
    router = APIRouter()

    @app.get("/items/{number}")
    @router.get("/sub/{number}")
    async def item(number: int) -> int:
        return number

    app.include_router(router, prefix="/{tenant}")
    return app


async def bare_inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - the signature of ASGI
    """Answer anything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"raw"})


def fastapi_application(gate: Gate, telemetry: Any) -> FastAPI:  # noqa: C901 - one handler per ending
    """Return the application with FastAPI."""
    app = FastAPI(telemetry=telemetry)

    @app.api_route("/ok/{number}", methods=["GET", "HEAD"])
    async def ok(number: int) -> int:
        return number

    @app.post("/post")
    async def post() -> None:
        """Take nothing."""

    @app.get("/missing/{number}")
    async def missing(number: int) -> None:
        raise HTTPException(404, str(number))

    @app.get("/unavailable")
    async def unavailable() -> None:
        raise HTTPException(503)

    @app.get("/error")
    async def error() -> None:
        raise ValueError("canary")

    @app.get("/cut")
    async def cut() -> StreamingResponse:
        return StreamingResponse(_chunks(error=ValueError("canary")))

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_chunks(gate), media_type="text/event-stream")

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> None:
        tasks.add_task(gate.passed)

    @app.get("/slow")
    async def slow() -> str:
        await gate.passed()
        return "late"

    @app.get("/health")
    @app.get("/metrics")
    async def probe() -> str:
        return "well"

    @app.websocket("/ws/{room}")
    async def room(websocket: WebSocket, room: str) -> None:
        await _converse(websocket, room)

    app.mount("/fastapi/{where}", inner_application(telemetry))
    app.mount("/starlette", Starlette(routes=[Route("/items/{number}", _ok)]))
    app.mount("/raw", bare_inner)
    return app


async def _converse(websocket: Any, room: str) -> None:
    if room == "rejected":
        await websocket.close()
        return
    if room == "broken":
        raise ValueError("canary")
    await websocket.accept()
    text = await websocket.receive_text()
    if text == "error":
        raise ValueError("canary")
    await websocket.send_text(text)
    if text == "stay":
        await websocket.receive_text()
    await websocket.close()


async def _ok(request: Any) -> PlainTextResponse:
    return PlainTextResponse(request.path_params["number"])


def starlette_application(gate: Gate, telemetry: Any) -> Starlette:
    """Return the application with Starlette."""

    async def missing(_: Any) -> Response:
        raise StarletteHTTPException(404)

    async def unavailable(_: Any) -> Response:
        raise StarletteHTTPException(503)

    async def error(_: Any) -> Response:
        raise ValueError("canary")

    async def cut(_: Any) -> Response:
        return StarletteStreamingResponse(_chunks(error=ValueError("canary")))

    async def stream(_: Any) -> Response:
        return StarletteStreamingResponse(_chunks(gate), media_type="text/event-stream")

    async def background(_: Any) -> Response:
        return PlainTextResponse("soon", background=BackgroundTask(gate.passed))

    async def slow(_: Any) -> Response:
        await gate.passed()
        return PlainTextResponse("late")

    async def room(websocket: Any) -> None:
        await _converse(websocket, websocket.path_params["room"])

    async def probe(_: Any) -> Response:
        return PlainTextResponse("well")

    return Starlette(
        routes=[
            Route("/ok/{number}", _ok),
            Route("/post", probe, methods=["POST"]),
            Route("/missing/{number}", missing),
            Route("/unavailable", unavailable),
            Route("/error", error),
            Route("/cut", cut),
            Route("/stream", stream),
            Route("/background", background),
            Route("/slow", slow),
            Route("/health", probe),
            Route("/metrics", probe),
            WebSocketRoute("/ws/{room}", room),
            Mount("/fastapi/{where}", inner_application(telemetry)),
            Mount("/starlette", Starlette(routes=[Route("/items/{number}", _ok)])),
            Mount("/raw", bare_inner),
        ]
    )


class BareApplication:
    """The application without a framework; it names no routes."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer by the first part of the path."""
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["type"] == "websocket":
            await _converse(WebSocket(scope, receive, send), scope["path"].rpartition("/")[2])
            return
        first = scope["path"].split("/")[1]
        if first == "error":
            raise ValueError("canary")
        if first == "slow":
            await self._gate.passed()
        statuses = {"missing": 404, "unavailable": 503, "nothing": 404, "post": 405}
        await send({"type": "http.response.start", "status": statuses.get(first, 200), "headers": []})
        if first == "cut":
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            raise ValueError("canary")
        if first == "incomplete":
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            return
        if first == "stream":
            await self._stream(receive, send)
        await send({"type": "http.response.body", "body": b"2"})
        if first == "background":
            await self._gate.passed()

    async def _stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        opened = asyncio.ensure_future(self._gate.passed())
        while not opened.done():
            message = asyncio.ensure_future(receive())
            await asyncio.wait({opened, message}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                message.cancel()
            elif message.result()["type"] == "http.disconnect":
                opened.cancel()
                raise ConnectionAbortedError


def application(kind: str, gate: Gate, pipeline: Pipeline) -> Any:
    """Return the application of *kind*, as it is measured in a service."""
    telemetry = {
        "meter_provider": pipeline.meter_provider,
        "tracer_provider": pipeline.tracer_provider,
        "logs": False,
    }
    if kind == "fastapi":
        return fastapi_application(gate, telemetry)
    if kind == "starlette":
        return starlette_application(gate, telemetry)
    return asgi.Middleware(BareApplication(gate))


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve *app* with uvicorn in a thread of this process; yield the port."""
    config = uvicorn.Config(app, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    poll_until(lambda: server.started, "the server to start")
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


class Answer:
    """What a client has got: the status, the headers in lower case, the body as far as it came."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            self.body, self.whole = response.read(), True
        except http.client.IncompleteRead as cut:
            self.body, self.whole = cut.partial, False


def ask(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """Return the answer to one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def open_request(port: int, path: str) -> socket.socket:
    """Send a request, and return the connection without waiting for an answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return connection


class Called:
    """What an application has sent when it was called without a server."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._given = False

    async def give(self) -> dict[str, Any]:
        """Be the server's ``receive`` of a request without a body, from a client that stays."""
        if self._given:
            await asyncio.Event().wait()
        self._given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def take(self, message: Any) -> None:
        """Be the server's ``send``."""
        self.messages.append(message)

    @property
    def status(self) -> int:
        """The status of the response."""
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response; a repeated one joined by commas."""
        found: dict[str, str] = {}
        for name, value in self.messages[0].get("headers", ()):
            key = name.decode().lower()
            found[key] = f"{found[key]},{value.decode()}" if key in found else value.decode()
        return found


async def call(
    app: Any,
    path: str,
    headers: dict[str, str] | None = None,
    headers_: list[tuple[bytes, bytes]] | None = None,
    **scope: Any,
) -> Called:
    """Call *app* as a server would, with one GET request; *headers_* are further headers, which may repeat."""
    called = Called()
    whole = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "headers": [*((name.encode(), value.encode()) for name, value in (headers or {}).items()), *(headers_ or [])],
        **scope,
    }
    await app(whole, called.give, called.take)
    return called
