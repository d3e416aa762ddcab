# SPDX-License-Identifier: Apache-2.0
"""Start programs as a user would: with opentelemetry-instrument, configured by the environment alone."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tests.helpers import Samples, poll_until, samples_of

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = Path(__file__).parent / "apps"
_CHANCE = random.SystemRandom()  # tests that run at the same time must not agree
_GIVEN: set[int] = set()  # ports; a run of all tests takes some thousand
LAUNCHER = Path(sys.executable).parent / "opentelemetry-instrument"


def free_port() -> int:
    """Return a TCP port on which nobody listens, and which the system gives to no outgoing connection meanwhile.

    None is given twice: who asks for several listens on none of them yet.
    """
    while True:
        port = _CHANCE.randrange(15_000, 32_000)  # below the range of outgoing connections, from 32,768
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port


def environment(**settings: str) -> dict[str, str]:
    """Return an environment without any telemetry variable but *settings*."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OTEL_", "JEEVES_", "_JEEVES_", "METRICS_"))
    }
    quick = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_SERVICE_NAME": "test-service"}
    return {**kept, **quick, **settings}


class App:
    """A program under the launcher. Its output is read as it comes, so that it never waits for us."""

    def __init__(self, script: str, settings: dict[str, str], stderr: Any = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [LAUNCHER, sys.executable, str(APPS / script)],
            env=environment(**settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        lines.extend(iter(stream.readline, ""))

    def _alive(self) -> None:
        if self.process.poll() is not None:
            raise AssertionError(f"the application ended with {self.process.returncode}:\n{''.join(self.err)}")

    def wait_ready(self) -> None:
        """Wait until it has printed ``ready``."""

        def ready() -> bool:
            if "ready\n" not in self.out:
                self._alive()
            return "ready\n" in self.out

        poll_until(ready, "the application to be ready")

    def wait_for_page(self, url: str) -> None:
        """Wait until *url* answers."""

        def answers() -> bool:
            self._alive()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return True
            except OSError:
                return False

        poll_until(answers, url)

    def finish(self) -> int:
        """Let it end, and return its exit code."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        code = self.process.wait(timeout=60)
        for reader in self._readers:
            reader.join(timeout=10)
        return code

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(timeout=10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return "".join(self.err)

    @property
    def lines(self) -> list[str]:
        """The lines of the log."""
        return list(self.err)


@contextmanager
def launched(script: str, stderr: Any = subprocess.PIPE, **settings: str) -> Iterator[App]:
    """Run tests/integration/apps/*script* with *settings*, and end it afterwards."""
    app = App(script, settings, stderr)
    try:
        yield app
    finally:
        app.stop()


def get(url: str, accept: str = "") -> str:
    """Return the body of *url*."""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        text: str = response.read().decode()
        return text


def scrape(port: int) -> Samples:
    """Return the samples of the /metrics server on *port*."""
    return samples_of(get(f"http://127.0.0.1:{port}/metrics"))


def page_with_requests(count: int, url: str) -> Samples:
    """Return the samples of the page at *url* once it shows *count* HTTP requests.

    A server records a request after its last byte has left, so the client may be back before that.
    """

    def complete() -> Samples | None:
        samples = samples_of(get(url))
        shown = sum(value for (name, _), value in samples.items() if name == "jeeves_http_requests_total")
        return samples if shown >= count else None

    samples: Samples = poll_until(complete, f"{count} requests on {url}")
    return samples


@contextmanager
def llm_server() -> Iterator[str]:
    """Serve chat completions with 11 prompt and 7 completion tokens; yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": "hi"}
            answer = json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
