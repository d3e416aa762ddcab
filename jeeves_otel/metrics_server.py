# SPDX-License-Identifier: Apache-2.0
"""Serve the metrics page on a port of its own, from daemon threads.

In: a collector, host and port. Out: ``/metrics`` over HTTP/1.1, compressed where the scraper takes it.
"""

from __future__ import annotations

import errno
import gzip
import socket
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from jeeves_otel.failsafe import swallow
from jeeves_otel.prometheus import PATHS

if TYPE_CHECKING:
    from jeeves_otel.prometheus import PrometheusCollector


# None is left, or the application has closed all of them.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.EBADF)
_REST_S = 0.1


class MetricsServer:
    """Serve pages on a port of their own, from daemon threads.

    Args:
        collector: Where the pages come from.
        host: Address to bind, ``127.0.0.1`` or ``0.0.0.0`` in a container.
        port: TCP port; 0 lets the system choose.

    Raises:
        OSError: The port cannot be bound.
    """

    def __init__(self, collector: PrometheusCollector, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"collector": collector})
        self._server = _Server(host, port, handler)
        self.host = host
        self.port: int = self._server.server_address[1]
        Thread(target=self._server.serve_forever, name="jeeves-otel-metrics", daemon=True).start()

    def shutdown(self) -> None:
        """Stop serving and free the port."""
        with suppress(OSError):  # wakes the thread that waits for connections; not everywhere, there it looks in time
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()

    def abandon(self) -> None:
        """Let go of the port, of which a forked child has inherited a second end; the parent goes on serving."""
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """The server, over IPv4 or IPv6, that keeps a scraper's hang-up to itself."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        # Looked up before the socket is made, because its family depends on the address.
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), handler)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; take a rest where that cannot be, or `serve_forever` would try without end."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                sleep(_REST_S)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what is ours; a scraper that has gone away is nobody's failure."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            swallow("prometheus.send", error)

    daemon_threads = True
    # Two processes must not share the port: each would answer with its own part of the counts.
    allow_reuse_port = False


class _Handler(BaseHTTPRequestHandler):
    collector: PrometheusCollector
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in {*PATHS, "/"}:
            self._answer(404, b"Not found. Metrics are at /metrics.\n", "text/plain; charset=utf-8")
            return
        try:
            body, content_type = self.collector.page(self.headers.get("Accept", ""))
        except Exception as error:  # noqa: BLE001 - a scrape that fails is answered and counted
            swallow("prometheus.scrape", error)
            self._answer(500, b"Collection failed; see the log of the service.\n", "text/plain; charset=utf-8")
            return
        self._answer(200, body.encode(), content_type)

    do_HEAD = do_GET  # noqa: N815 - as above

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        zipped = len(body) > 1_024 and "gzip" in self.headers.get("Accept-Encoding", "")  # noqa: PLR2004 - one packet
        if zipped:
            body = gzip.compress(body, compresslevel=1)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if zipped:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Stay silent: a line for each scrape would drown the application's log."""
