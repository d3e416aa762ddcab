# SPDX-License-Identifier: Apache-2.0
"""metrics_server: what scrapers do stays between them and the server."""

from __future__ import annotations

import socket
import struct
import urllib.request
from typing import TYPE_CHECKING

from jeeves_otel import failsafe
from jeeves_otel.metrics_server import MetricsServer

if TYPE_CHECKING:
    import pytest

    from tests.helpers import Pipeline


def test_scrapers_that_hang_up_write_nothing_into_the_applications_log(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection that is reset is nobody's failure: no traceback, no count, and the next scrape is answered."""
    failsafe.set_strict(False)
    server = MetricsServer(pipeline.collector, "127.0.0.1", 0)
    for _ in range(20):
        scraper = socket.create_connection(("127.0.0.1", server.port))
        scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scraper.close()  # resets the connection while the request is being read
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    server.shutdown()

    assert "# TYPE" in page
    assert capfd.readouterr().err == ""
    assert failsafe.counts() == {}
