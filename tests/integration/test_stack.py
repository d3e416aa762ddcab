# SPDX-License-Identifier: Apache-2.0
"""`make stack`: the data of the demo arrives in all real parts, and whatever happens, no process is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from jeeves_otel.demo import parts
from jeeves_otel.demo.processes import ChildError
from jeeves_otel.generators.collector import VARIABLES
from tests.helpers import poll_until
from tests.integration.launching import environment, get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
real = [pytest.mark.integration, pytest.mark.slow]


class Stack:
    """One run, recognised by its folder for temporary files, which everything that it starts inherits."""

    def __init__(self, folder: Path, module: str = "jeeves_otel.demo.stack") -> None:
        self._module = module
        self._folder = folder
        self._output = folder.with_name("output.txt")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **settings: str) -> None:
        """Start it."""
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *arguments],
                env=environment(TMPDIR=str(self._folder), PYTHONUNBUFFERED="1", **settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Tests may run under nohup, whose children would not hear that a terminal is closed.
                preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - before any thread
            )

    @property
    def output(self) -> str:
        """What it has printed so far, lines not broken."""
        return self._output.read_text(encoding="utf-8")

    def wait(self, sent: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and return the exit code."""
        assert self._process is not None
        if sent is not None:
            self._process.send_signal(sent)
        return self._process.wait(120)

    def left(self) -> list[str]:
        """Return the commands of its processes, and its files, that are there now."""
        found = [str(path) for path in self._folder.glob("jeeves-[sd][ter]*")]  # not the folder that pages share
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"TMPDIR={self._folder}\0".encode() in (each / "environ").read_bytes() + b"\0":
                    found.append((each / "cmdline").read_text(encoding="utf-8").replace("\0", " "))
        return found

    def kill(self) -> None:
        """End it, whatever a test has left."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Yield a stack that has not begun, with every part there."""
    for part in parts.PARTS:
        if parts.cached(part) is None:
            pytest.skip(f"there is no {part} in the cache; build it with: make {part}")
    folder = tmp_path / "temporary"
    folder.mkdir()
    made = Stack(folder)
    yield made
    made.kill()


class TestStack:
    """Real runs."""

    pytestmark = real

    def test_data_has_arrived_in_all_parts_and_nothing_is_left(self, stack: Stack) -> None:
        """Counts are those of the page, traces whole, exceptions alerts; then no process runs and no file stays.

        A proxy that the user needs for other things is not asked.
        """
        nobody = "http://127.0.0.1:9"
        stack.start("--once", "--free-ports", "--requests", "40", http_proxy=nobody, HTTP_PROXY=nobody)
        status = stack.wait()

        assert 0 == status, stack.output
        assert re.search(r"ok  /metrics = Prometheus: \d\d+ counters", stack.output)
        assert "ok  traces sampled: 39 = whole in Jaeger: 39" in stack.output
        assert re.search(r"ok  exceptions in the traces, of one service and class each: [1-9] = alerts", stack.output)
        assert re.search(
            r"ServiceException  service=jeeves-kernel  exception_type=\S+  severity=critical", stack.output
        )
        assert "Where to look" not in stack.output, "nothing answers there any more"
        assert [] == stack.left()

    def test_ctrl_c_ends_everything_in_good_order(self, stack: Stack) -> None:
        """With links that answer until then."""
        stack.start("--free-ports", "--requests", "10")
        poll_until(lambda: "until Ctrl-C" in stack.output.partition("Where to look")[2], "the links", timeout_s=60)
        links = re.findall(r"^  (http://\S+)  ", stack.output.partition("Where to look")[2], re.MULTILINE)
        answers = [len(get(link)) for link in links]
        before = stack.left()
        status = stack.wait(signal.SIGINT)

        assert 7 == len([length for length in answers if length > 100])
        assert 8 <= len(before)
        assert (0, []) == (status, stack.left()), stack.output

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])  # the second: a terminal that is closed
    def test_a_signal_while_it_starts_ends_everything(self, stack: Stack, sent: signal.Signals) -> None:
        """The parts are there, the service is not yet."""
        stack.start("--free-ports")
        poll_until(lambda: "They answer" in stack.output, "the parts")
        status = stack.wait(sent)

        assert (130, []) == (status, stack.left()), stack.output
        assert "Everything is stopped." in stack.output

    def test_a_busy_port_is_named_with_the_way_out(self, stack: Stack) -> None:
        """Before anything is started."""
        port = parts.Ports().prometheus
        with socket.socket() as taken:
            with suppress(OSError):  # somebody else has it: as good
                taken.bind(("127.0.0.1", port))
                taken.listen()
            stack.start("--once")
            status = stack.wait()

        assert (1, []) == (status, stack.left())
        assert f"{port} (prometheus)" in stack.output
        assert "--free-ports" in stack.output

    def test_a_part_that_dies_is_shown_with_its_last_words(self, stack: Stack, tmp_path: Path) -> None:
        """One message, the other parts ended, exit code 1."""
        for part in parts.PARTS:
            program = Path(parts.cached(part) or "")
            copy = tmp_path / "jeeves-otel" / program.parent.name / program.name
            copy.parent.mkdir(parents=True)
            if part == "prometheus":
                copy.write_text("#!/bin/sh\necho no such storage\nexit 3\n", encoding="utf-8")
                copy.chmod(0o755)
            else:
                copy.symlink_to(program)
        stack.start("--once", "--free-ports", XDG_CACHE_HOME=str(tmp_path))
        status = stack.wait()

        assert (1, []) == (status, stack.left())
        assert "Prometheus has ended with status 3.\nThe end of its log:\n  no such storage" in stack.output
        assert "Traceback" not in stack.output


# ---- what containers are started with --------------------------------------------------------------------------------------


def _of_compose() -> tuple[list[str], dict[str, str]]:
    collector = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["collector"]
    return collector["command"], collector["environment"]


def _of_kubernetes() -> tuple[list[str], dict[str, str]]:
    manifest = yaml.safe_load((parts.BUNDLE / "kubernetes/deployment.yaml").read_text(encoding="utf-8"))
    (sidecar,) = manifest["spec"]["template"]["spec"]["initContainers"]
    return sidecar["args"], {each["name"]: each.get("value", "a-pod") for each in sidecar["env"]}


@pytest.mark.integration
@pytest.mark.parametrize("started_by", [_of_compose, _of_kubernetes])
def test_the_collector_takes_what_a_container_is_started_with(
    collector: str, started_by: Callable[[], tuple[list[str], dict[str, str]]]
) -> None:
    """Files, their order, and variables."""
    arguments, variables = started_by()
    local = [each.replace("/etc/otelcol", str(parts.BUNDLE)) for each in arguments]
    ended = subprocess.run(
        [collector, "validate", *local],
        env=parts.clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (0, "", "") == (ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.integration
def test_prometheus_takes_the_folder_that_compose_puts_together(tmp_path: Path) -> None:
    """Its file with everything beside it, and the addresses of containers in the place of ours."""
    promtool = Path(parts.cached("prometheus") or pytest.skip("make prometheus")).with_name("promtool")
    mounts = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["prometheus"]["volumes"]
    for source, target, _ in [each.split(":") for each in mounts if each.endswith(":ro")]:
        shutil.rmtree(tmp_path / target[1:], ignore_errors=True)
        shutil.copytree(ROOT / source, tmp_path / target[1:])
    ended = subprocess.run(
        [promtool, "check", "config", tmp_path / "etc/jeeves-otel/prometheus.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 0 == ended.returncode, ended.stdout + ended.stderr


# ---- what `make stack` is started with -----------------------------------------------------------------------------------


def test_the_users_file_is_the_last_that_the_collector_reads(tmp_path: Path) -> None:
    """So that it wins."""
    assert ["sidecar.yaml", "alerts.yaml", "extras.yaml"] == [
        Path(each).name for each in parts.commands(parts.Ports(), tmp_path)["collector"]
    ]


@pytest.mark.integration
def test_what_is_on_the_path_serves_if_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache; else it is built, and who cannot build is told so."""
    installed = tmp_path / "prometheus"
    (tmp_path / "go").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []
    for version in ("3.5.0", "2.42.0"):
        installed.write_text(f"#!/bin/sh\necho prometheus, version {version}\n", encoding="utf-8")
        installed.chmod(0o755)
        if version == "3.5.0":
            assert str(installed) == parts.program("prometheus", said.append)
        else:
            with pytest.raises(ChildError, match="prometheus could not be built"):
                parts.program("prometheus", said.append)

    assert [
        f"  prometheus: {installed}",
        "  prometheus: building it from Go modules; this takes some minutes, once",
    ] == said


def test_usual_ports_are_the_defaults_of_the_bundle() -> None:
    """Whoever looks at a port that the bundle's files name finds it."""
    defaults = {each.name: (each.default or "").rpartition(":")[2] for each in VARIABLES}
    jaeger = dict(re.findall(r"\$\{env:(JAEGER_\w+):-127\.0\.0\.1:(\d+)}", (parts.BUNDLE / "jaeger.yaml").read_text()))
    variables = {
        "otlp_grpc": defaults["COLLECTOR_OTLP_GRPC"],
        "otlp_http": defaults["COLLECTOR_OTLP_HTTP"],
        "hop": defaults["COLLECTOR_HOP"],
        "health": defaults["COLLECTOR_HEALTH"],
        "own_metrics": defaults["COLLECTOR_SELF_PORT"],
        "alertmanager": defaults["COLLECTOR_ALERTMANAGER_URL"],
        "jaeger_otlp": jaeger["JAEGER_OTLP_GRPC"],
        "jaeger": jaeger["JAEGER_QUERY"],
        "jaeger_grpc": jaeger["JAEGER_QUERY_GRPC"],
        "jaeger_health": jaeger["JAEGER_HEALTH"],
    }

    assert variables == {name: str(port) for name, port in asdict(parts.Ports()).items() if name in variables}


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), "python -m jeeves_otel.demo.stack --once"),
        (("DOCKER=1",), "docker compose up --build --once"),
    ],
)
def test_make_stack_starts_processes_or_containers(arguments: tuple[str, ...], command: str) -> None:
    """As the user prefers."""
    ended = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "stack", "ARGS=--once", *arguments],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert ended.stdout.rstrip().endswith(command)
