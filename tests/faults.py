# SPDX-License-Identifier: Apache-2.0
"""OTLP endpoints that misbehave, over HTTP and over gRPC; each can be told to get well."""

from __future__ import annotations

import gzip
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from tests.otlp import _BY_PATH, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP, GRPC = "http/protobuf", "grpc"
PROTOCOLS = (HTTP, GRPC)
# What each fault is, as the table in docs/reliability.md says it.
FAULTS = {
    "good": "answers",
    "refused": "down: connections are refused",
    "unresolvable": "its name does not resolve",
    "hangs": "accepts, never answers",
    "slow 1 s": "answers after 1 s",
    "slow 5 s": "answers after 5 s",
    "busy": "503 / UNAVAILABLE",
    "busy, retry after 1 s": "503 with Retry-After / UNAVAILABLE with RetryInfo, 1 s",
    "busy, retry after 30 s": "503 with Retry-After / UNAVAILABLE with RetryInfo, 30 s",
    "refuses data": "400 / INVALID_ARGUMENT",
    "cuts": "closes the connection in the middle of its answer",
}


class FaultyHttp(Receiver):
    """OTLP over HTTP that does what *fault* says before, or instead of, answering.

    Args:
        fault: A key of `FAULTS`; can be changed while it runs.
        port: To listen on; 0 for a free one.
    """

    def __init__(self, fault: str, port: int = 0) -> None:
        super().__init__()
        self.asked = 0
        self.fault = fault
        self._over = Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.answer(self, gzip.decompress(body) if self.headers.get("Content-Encoding") else body)

            def log_message(self, *args: Any) -> None:
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Stay silent: clients that are killed leave broken connections."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request, or do not."""
        self.asked += 1
        fault = self.fault
        if fault == "hangs":
            self._over.wait()
            handler.close_connection = True
        elif fault == "cuts":
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n12"
            )
            handler.close_connection = True
        elif fault.startswith("busy"):
            self._respond(handler, 503, b"", _seconds(fault))
        elif fault == "refuses data":
            self._respond(handler, 400, b"")
        else:
            if fault.startswith("slow"):
                self._over.wait(_seconds(fault))
            request_type, response_type = _BY_PATH[handler.path]
            self.requests.append(request_type.FromString(body))
            self._respond(handler, 200, response_type().SerializeToString())

    @staticmethod
    def _respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, retry_after_s: int | None = None) -> None:
        handler.send_response(status)
        if retry_after_s is not None:
            handler.send_header("Retry-After", str(retry_after_s))
        handler.send_header("Content-Type", "application/x-protobuf")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def stop(self) -> None:
        """Stop serving."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


class FaultyGrpc(Receiver):
    """OTLP over gRPC that does what *fault* says; see `FaultyHttp`."""

    def __init__(self, fault: str, port: int = 0) -> None:
        super().__init__()
        self.asked = 0
        self.fault = fault
        self._over = Event()
        self._server = grpc.server(ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
        traces, metrics = _BY_PATH["/v1/traces"][1], _BY_PATH["/v1/metrics"][1]
        service = type("Service", (), {"Export": lambda _, request, context: self._answer(request, context, traces)})
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service(), self._server)
        service = type("Service", (), {"Export": lambda _, request, context: self._answer(request, context, metrics)})
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(service(), self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def _answer(self, request: Any, context: Any, response_type: type) -> Any:
        self.asked += 1
        fault = self.fault
        if fault == "hangs":
            self._over.wait()
            context.abort(grpc.StatusCode.CANCELLED, "over")
        if fault.startswith("busy"):
            seconds = _seconds(fault)
            if seconds is not None:
                info = RetryInfo(retry_delay=Duration(seconds=seconds)).SerializeToString()
                context.set_trailing_metadata((("google.rpc.retryinfo-bin", info),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        elif fault == "refuses data":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        elif fault.startswith("slow"):
            self._over.wait(_seconds(fault))
        self.requests.append(request)
        return response_type()

    def stop(self) -> None:
        """Stop serving."""
        self._over.set()
        self._server.stop(None).wait()


class Cutter(Receiver):
    """Accepts, reads, writes what begins like an answer of HTTP/2, and closes."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(5)
                    connection.recv(65_536)
                    connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # an empty SETTINGS frame
                    connection.recv(65_536)
            except OSError:
                if self._socket.fileno() < 0:
                    return

    def stop(self) -> None:
        """Stop serving."""
        self._socket.close()


class Nobody(Receiver):
    """An endpoint that nobody serves."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self.endpoint = endpoint

    def stop(self) -> None:
        """Do nothing."""


@contextmanager
def endpoint_that(fault: str, protocol: str = HTTP) -> Iterator[Any]:
    """Serve OTLP as `FAULTS` says, over *protocol*; yield the receiver."""
    receiver = _made(fault, protocol)
    try:
        yield receiver
    finally:
        receiver.stop()


def _made(fault: str, protocol: str) -> Any:
    assert fault in FAULTS
    if fault == "unresolvable":
        return Nobody("http://collector.invalid:4318")
    if fault == "refused":
        with socket.socket() as probe:  # bound and not listening: nobody else gets the port at this moment
            probe.bind(("127.0.0.1", 0))
            return Nobody(f"http://127.0.0.1:{probe.getsockname()[1]}")
    if fault == "cuts" and protocol == GRPC:
        return Cutter()
    return (FaultyHttp if protocol == HTTP else FaultyGrpc)(fault)


def _seconds(fault: str) -> int | None:
    """Return the number of seconds that *fault* names."""
    return next((int(word) for word in fault.split() if word.isdigit()), None)
