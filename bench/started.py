# SPDX-License-Identifier: Apache-2.0
"""Start programs under both launchers and without one, and say what a start costs until the program has ended.

In: nothing. Out: for each program processor time (user and system, of the launcher too), the most memory it held, and
the modules it had imported. The stock launcher runs in a virtual environment of its own: every package of ours in the
same version, without jeeves-otel and with opentelemetry-distro. Both export over HTTP to a server here that says yes to
everything, because waiting for one that is not there would be measured instead of the start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median, quantiles
from threading import Thread
from typing import TYPE_CHECKING

from bench.timing import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
STOCK = ROOT / ".bench" / "stock"
PROGRAMS = {
    "start and end of a program that imports nothing": "",
    "the same of one that imports fastapi, openai, sqlalchemy, grpc": "import fastapi, openai, sqlalchemy, grpc; ",
}
_COUNT = "import sys; print(len(sys.modules))"
# A process begins with the memory of the one that starts it, as far as its maximum goes: so a small one starts it.
_STARTER = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status != 0)
"""


@dataclass(frozen=True)
class Start(Result):
    """The seconds are of processor time; besides, the most memory held [MB] and the number of modules imported."""

    memory_mb: float
    modules: int


@dataclass(frozen=True)
class _Launch:
    """One way to start a program: the command in front of it, and the environment."""

    name: str
    command: tuple[Path, ...]
    environment: dict[str, str]


def start_results(rounds: int) -> list[Start]:
    """Start each program in each way, in turns, *rounds* times (>= 2)."""
    stock = _stock_environment()
    results: list[Start] = []
    with _sink() as endpoint:
        launches = _launches(stock, endpoint)
        for title, imports in PROGRAMS.items():
            measured: list[list[tuple[float, float, int]]] = [[] for _ in launches]
            for turn in range(-1, rounds):  # the first one compiles, and is not counted
                for position in range(len(launches)):
                    index = (position + turn) % len(launches)
                    figures = _run(launches[index], imports + _COUNT)
                    if turn >= 0:
                        measured[index].append(figures)
            results += _results(title, launches, measured)
    return results


def print_starts(results: list[Start]) -> None:
    """Print one table per program."""
    title = ""
    for result in results:
        if result.group != title:
            title = result.group
            print(f"\n{title:<62} {'median':>10} {'p25-p75':>19} {'ratio':>6} {'memory':>8} {'modules':>8}")
        middle, low, high = (f"{seconds * 1e3:.0f}" for seconds in (result.median_s, result.p25_s, result.p75_s))
        print(
            f"  {result.name:<60} {middle:>7} ms {low + ' - ' + high:>19} {result.ratio:>6.2f} "
            f"{result.memory_mb:>5.0f} MB {result.modules:>8}"
        )


def _results(title: str, launches: list[_Launch], measured: list[list[tuple[float, float, int]]]) -> Iterator[Start]:
    first = median(cpu for cpu, _, _ in measured[0])
    for launch, figures in zip(launches, measured, strict=True):
        low, middle, high = quantiles((cpu for cpu, _, _ in figures), n=4)
        memory = median(memory for _, memory, _ in figures)
        yield Start(title, launch.name, middle, low, high, middle / first, memory, figures[-1][2])


def _launches(stock: Path, endpoint: str) -> list[_Launch]:
    ours = Path(sys.executable).parent
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "JEEVES_", "METRICS_"))}
    # Everything is compiled beforehand, as an image has it, whatever this shell says about that.
    bare.pop("PYTHONDONTWRITEBYTECODE", None)
    bare["PYTHONPYCACHEPREFIX"] = str(STOCK.parent / "bytecode")
    exporting = {
        **bare,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "bench",
    }
    return [
        _Launch("stock launcher and distro", (stock / "opentelemetry-instrument", stock / "python"), exporting),
        _Launch(
            "jeeves_otel", (ours / "opentelemetry-instrument", ours / "python"), {**exporting, "METRICS_PORT": "0"}
        ),
        _Launch("no telemetry", (ours / "python",), bare),
    ]


def _run(launch: _Launch, program: str) -> tuple[float, float, int]:
    """Run *program*; return its processor time [s], the most memory that it held [MB], and its modules."""
    command = [sys.executable, "-I", "-S", "-c", _STARTER, *map(str, launch.command), "-c", program]
    done = subprocess.run(command, env=launch.environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise RuntimeError(f"{launch.name} failed:\n{done.stderr}")
    modules, seconds, memory = done.stdout.split()
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes here
    return float(seconds), int(memory) / scale, int(modules)


# ---- the competitor --------------------------------------------------------------------------------------------------


def _stock_environment() -> Path:
    """Return the folder of programs of the stock environment; it is made when the installed versions have changed."""
    pins = sorted(f"{each.name}=={each.version}" for each in distributions() if each.name != "jeeves-otel")
    pins.append(f"opentelemetry-distro=={version('opentelemetry-instrumentation')}")
    wanted = "\n".join(pins)
    stamp = STOCK / "pins.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, STOCK], check=True)  # noqa: S603 - our own
        subprocess.run(  # noqa: S603 - our own
            [uv, "pip", "install", "--quiet", "--no-deps", "--requirements", "-"],
            check=True,
            input=wanted,
            text=True,
            env={**os.environ, "VIRTUAL_ENV": str(STOCK)},
        )
        stamp.write_text(wanted)
    return STOCK / "bin"


@contextmanager
def _sink() -> Iterator[str]:
    """Answer every request with an empty success; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
