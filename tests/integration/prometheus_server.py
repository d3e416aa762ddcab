# SPDX-License-Identifier: Apache-2.0
"""Real stores of samples on free ports of the loopback interface: Prometheus 3 and 2.42, and VictoriaMetrics."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import yaml

from jeeves_otel.demo.parts import cached
from tests.helpers import poll_until
from tests.integration.collectors import BUNDLE as _BUNDLE
from tests.integration.launching import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
_Store = TypeVar("_Store", bound="Prometheus")
NOT_IN_2_42 = {"otlp", "scrape_config_files"}


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

    def exemplars(self, selector: str) -> list[tuple[dict[str, str], list[tuple[dict[str, str], float, float]]]]:
        """Return ``[(labels of the series, [(labels of the exemplar, value, time in s), …])]``."""
        result = self.get("query_exemplars", query=selector, start="0", end="9999999999")
        return [
            (
                each["seriesLabels"],
                [(one["labels"], float(one["value"]), float(one["timestamp"])) for one in each["exemplars"]],
            )
            for each in result
        ]

    def is_ready(self) -> bool:
        """Return whether the server answers queries."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


class VictoriaMetrics(Prometheus):
    """The same of VictoriaMetrics."""

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer, new samples included, which would take seconds to be seen."""
        with urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=10) as response:
            response.read()
        return super().get(path, **parameters)

    def is_ready(self) -> bool:
        """Return whether the server answers queries; its other page does so before."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
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
def prometheus_of_the_bundle(
    folder: Path, *, old: bool = False, otlp: bool = False, jobs: str = "", targets: Mapping[str, str] | None = None
) -> Iterator[Prometheus]:
    """Run a server as the bundle says; its data stays in *folder*.

    Args:
        folder: Of this server alone.
        old: Debian's 2.42 instead of the version of the bundle.
        otlp: Whether it receives OTLP, too.
        jobs: What stands in ``scrape-enabled``, as YAML.
        targets: ``{name of a file in targets, without its suffix: host:port}``; the others are empty.
    """
    config = configuration(folder, old=old)
    for file in (folder / "targets").iterdir():
        address = (targets or {}).get(file.stem)
        file.write_text(json.dumps([{"targets": [address]}] if address else []), encoding="utf-8")
    if jobs:
        (folder / "scrape-enabled").mkdir()
        (folder / "scrape-enabled" / "jobs.yaml").write_text(jobs, encoding="utf-8")
    flags = ["--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage"]
    flags += ["--storage.tsdb.retention.time=35d", *(["--web.enable-otlp-receiver"] if otlp else [])]
    with _running(config, folder, *flags, program=None if old else _program()) as found:
        yield found


def configuration(folder: Path, *, old: bool = False) -> Path:
    """Copy the bundle's configuration into *folder*, without what 2.42 does not know if it is for *old*; return its path."""
    for name in ("rules", "targets"):
        shutil.copytree(_BUNDLE / name, folder / name)
    text = (_BUNDLE / "prometheus.yaml").read_text(encoding="utf-8")
    if old:
        text = yaml.safe_dump({key: value for key, value in yaml.safe_load(text).items() if key not in NOT_IN_2_42})
    path = folder / "prometheus.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def promtool(*, old: bool = False) -> str:
    """Return the program that checks files for the same version."""
    return (shutil.which("promtool") if old else str(Path(_program()).with_name("promtool"))) or "promtool"


def _program() -> str:
    program = cached("prometheus")
    if program is None:
        pytest.skip("there is no Prometheus 3 in the cache; build it with: make prometheus")
    return program


@contextmanager
def victoria_metrics(folder: Path) -> Iterator[VictoriaMetrics]:
    """Run a single VictoriaMetrics, which answers the same queries; its data stays in *folder*."""
    program = shutil.which("victoria-metrics")
    if program is None:
        pytest.skip("no victoria-metrics on the path (Debian: apt-get install victoria-metrics)")
    port = free_port()
    data, address = f"-storageDataPath={folder / 'data'}", f"-httpListenAddr=127.0.0.1:{port}"
    # Answers may lack the last half minute otherwise.
    fresh = ("-search.latencyOffset=0s", "-search.disableCache")
    with _process([program, data, address, "-retentionPeriod=35d", *fresh], VictoriaMetrics(port)) as found:
        yield found


@contextmanager
def _running(config: Path, folder: Path, *flags: str, program: str | None = None) -> Iterator[Prometheus]:
    program = program or shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on the path (Debian: apt-get install prometheus)")
    port = free_port()
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        *flags,
    ]
    with _process([program, *arguments], Prometheus(port)) as found:
        yield found


@contextmanager
def _process(command: list[str], found: _Store) -> Iterator[_Store]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        poll_until(found.is_ready, "the server to be ready")
        yield found
    finally:
        server.terminate()
        server.wait(30)
