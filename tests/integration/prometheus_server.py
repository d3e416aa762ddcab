# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that scrapes what a test tells it to, on a free port of the loopback interface."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import poll_until
from tests.integration.launching import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_BUNDLE = Path(__file__).parents[2] / "collector"


class Prometheus:
    """The query API of a running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of the HTTP API; an error of the query fails with its message."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return ``{sorted labels: value}`` of an instant query."""
        result = self.get("query", query=expression)["result"]
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in result}

    def samples(self, selector: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return ``[(labels, [(time in s, value), …])]`` of every series of the last two hours, each sample as stored."""
        result = self.get("query", query=f"{selector}[2h]")["result"]
        return [(each["metric"], [(float(at), float(value)) for at, value in each["values"]]) for each in result]

    def is_ready(self) -> bool:
        """Return whether the server answers queries."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """Run a server that scrapes *targets* (``host:port``) every second; its data stays in *folder*."""
    listed = ", ".join(f"'{target}'" for target in targets)
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: jeeves, static_configs: [{{targets: [{listed}]}}]}}]\n",
        encoding="utf-8",
    )
    with _running(config, folder) as found:
        yield found


@contextmanager
def prometheus_of_the_bundle(folder: Path) -> Iterator[Prometheus]:
    """Run a server as the bundle says, which remote write fills; its data stays in *folder*."""
    flags = ("--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage")
    with _running(_BUNDLE / "prometheus.yaml", folder, *flags, "--storage.tsdb.retention.time=35d") as found:
        yield found


@contextmanager
def _running(config: Path, folder: Path, *flags: str) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus on the path (Debian: apt-get install prometheus)")
    port = free_port()
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        *flags,
    ]
    server = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = Prometheus(port)
    try:
        poll_until(found.is_ready, "Prometheus to be ready")
        yield found
    finally:
        server.terminate()
        server.wait(30)
