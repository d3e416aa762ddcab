# SPDX-License-Identifier: Apache-2.0
"""Start the servers that applications run under, as their users start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.helpers import poll_until
from tests.integration.launching import APPS, LAUNCHER, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UVICORN = ["-m", "uvicorn", "serve:app", "--log-level", "warning", "--port", "{port}"]
_GUNICORN = [
    "-m",
    "gunicorn",
    "--log-level",
    "warning",
    "--no-control-socket",
    "-c",
    "python:booted",
    "--bind",
    "127.0.0.1:{port}",
    "--workers",
    "2",
]
_UVICORN_WORKERS = ["--worker-class", "uvicorn_worker.UvicornWorker", "serve:app"]
SERVERS = {
    "uvicorn": _UVICORN,
    "uvicorn with 2 workers": [*_UVICORN, "--workers", "2"],
    "uvicorn with reload": [*_UVICORN, "--reload"],
    "gunicorn": [*_GUNICORN, "wsgi:app"],
    "gunicorn with threads": [*_GUNICORN, "--threads", "4", "wsgi:app"],
    "gunicorn with preload": [*_GUNICORN, "--preload", "wsgi:app"],
    "gunicorn with uvicorn workers": [*_GUNICORN, *_UVICORN_WORKERS],
    "gunicorn with preload and uvicorn workers": [*_GUNICORN, "--preload", *_UVICORN_WORKERS],
}
WORKERS = 2
SUPERVISED = [name for name in SERVERS if name != "uvicorn"]


def wait_until_up(server: str, port: int, booted: Path) -> None:
    """Wait until *server* answers, and until all workers of gunicorn have left a file in the folder *booted*.

    A signal that reaches a worker of gunicorn before it has handlers of its own is lost, and gunicorn kills that worker 30
    seconds later; without telemetry it did so in 2 of 150 stops right after the first answer.
    """
    poll_until(lambda: answers(f"http://127.0.0.1:{port}/1"), "the server")
    if server.startswith("gunicorn"):
        poll_until(lambda: len(list(booted.iterdir())) >= WORKERS, "its workers")


def command(server: str, port: int) -> list[str]:
    """Return the arguments of Python that start *server* on *port*."""
    return [argument.format(port=port) for argument in SERVERS[server]]


@contextmanager
def process(arguments: list[str], *, measured: bool = True, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of Python, under the launcher if *measured*, and end it afterwards. It exports at its end only."""
    quiet = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "60000", "METRICS_PORT": "0"}
    child = subprocess.Popen(
        [*([LAUNCHER] if measured else []), sys.executable, *arguments],
        env={**environment(**{"OTEL_TRACES_SAMPLER": "always_on", **quiet, **settings}), "PYTHONPATH": str(APPS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    except BaseException as error:
        error.add_note(_ended(child))
        raise
    finally:
        _ended(child)


def _ended(child: subprocess.Popen[str]) -> str:
    """End *child*, and its workers, which outlive a supervisor that is killed; return what it has said last."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stderr is None or child.stderr.closed:
        return ""
    return child.communicate()[1][-4_000:]


def answers(url: str) -> bool:
    """Return whether *url* is answered."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
