# SPDX-License-Identifier: Apache-2.0
"""Backends of the Collector that fail as they are told: a receiver of spans, and a door in front of remote write."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.integration.launching import free_port

if TYPE_CHECKING:
    import ssl

    from tests.integration.certificates import Certificates

OK, UNAVAILABLE, INVALID, HANGS, REFUSES = "ok", "503", "400", "hangs", "refuses"
_STATUS = {UNAVAILABLE: grpc.StatusCode.UNAVAILABLE, INVALID: grpc.StatusCode.INVALID_ARGUMENT}


class Spans:
    """OTLP over gRPC on one port, that keeps every span with its resource, and the metadata of every request.

    Args:
        certificates: With them it asks clients for TLS, and for a certificate of the same authority.
    """

    def __init__(self, certificates: Certificates | None = None) -> None:
        self.port = free_port()
        self.requests: list[Any] = []
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.refused = 0
        self._behaviour = REFUSES
        self._certificates = certificates
        self._over = Event()
        self._server: grpc.Server | None = None
        self.behave(OK)

    def behave(self, behaviour: str) -> None:
        """Answer from now on with success, an error, not at all, or do not even listen."""
        before, self._behaviour = self._behaviour, behaviour
        self._over.set()  # who hangs may go
        self._over = Event()
        if behaviour == REFUSES and self._server is not None:
            self._server.stop(0).wait()
            self._server = None
        elif before == REFUSES and behaviour != REFUSES:
            self._server = self._listen()

    def _listen(self) -> grpc.Server:
        backend = self

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the RPC
                return backend._answer(request, context)

        server = grpc.server(ThreadPoolExecutor(16))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
        address = f"127.0.0.1:{self.port}"
        if self._certificates is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, self._certificates.of_a_grpc_server())
        server.start()
        return server

    def _answer(self, request: Any, context: Any) -> Any:
        behaviour, over = self._behaviour, self._over
        if behaviour == HANGS:
            context.add_callback(over.set)
            over.wait(60)
        if behaviour != OK:
            self.refused += 1
            context.abort(_STATUS.get(behaviour, grpc.StatusCode.CANCELLED), "as told")
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self.requests.append(request)
        for resource in request.resource_spans:
            self.resources.append(resource.resource)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def stop(self) -> None:
        """Stop listening."""
        self.behave(REFUSES)


class Door:
    """HTTP on one port, that passes requests on to *url*, or answers *status* without one, unless it is told to fail.

    Args:
        url: Of the real endpoint; host and port are what counts.
        certificates: With them it asks clients for TLS, and for a certificate of the same authority.
        status: Of a successful answer, where there is nobody to pass requests on to.
    """

    def __init__(self, url: str = "", certificates: Certificates | None = None, status: int = 204) -> None:
        self.port = free_port()
        self._status = status
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.refused = 0
        self._behaviour = REFUSES
        self._target = urlsplit(url).netloc
        self._certificates = certificates
        self._over = Event()
        self._server: ThreadingHTTPServer | None = None
        self.behave(OK)

    def behave(self, behaviour: str) -> None:
        """Answer from now on with success, an error, not at all, or do not even listen."""
        before, self._behaviour = self._behaviour, behaviour
        self._over.set()
        self._over = Event()
        if behaviour == REFUSES and self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        elif before == REFUSES and behaviour != REFUSES:
            self._server = self._listen()

    def _listen(self) -> ThreadingHTTPServer:
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # HTTP/1.0: no connection outlives a change of mind
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, text = door._answer(self.path, dict(self.headers.items()), body)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    pass  # it has hung up meanwhile

            def log_message(self, *args: Any) -> None:
                """Stay silent."""

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        if self._certificates is not None:
            context: ssl.SSLContext = self._certificates.of_a_server()
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        behaviour, over = self._behaviour, self._over
        if behaviour == HANGS:
            over.wait(60)
        if behaviour != OK:
            self.refused += 1
            return (int(behaviour) if behaviour.isdigit() else 503), b"as told\n"
        self.headers.append({key.lower(): value for key, value in headers.items()})
        self.bodies.append(body)
        if not self._target:
            return self._status, b""
        connection = http.client.HTTPConnection(self._target, timeout=20)
        try:
            connection.request("POST", path, body, {key: value for key, value in headers.items() if key != "Host"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop listening."""
        self.behave(REFUSES)
