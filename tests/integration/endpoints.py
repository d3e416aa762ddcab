# SPDX-License-Identifier: Apache-2.0
"""What an application notices of an endpoint that misbehaves: latency while it runs, time at its end, what is lost.

``make endpoints`` prints the table of docs/reliability.md. Runs of all endpoints take turns, so that whatever else the
machine does hits all of them alike; times of exit are the longest of the runs, the other figures medians.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.faults import FAULTS, HTTP, PROTOCOLS, FaultyGrpc, FaultyHttp, endpoint_that
from tests.helpers import poll_until
from tests.integration.launching import APPS, LAUNCHER, environment, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUESTS = 2_000  # four spans each: more than wait in a queue (2,048)
WARM_UP = 100
SPANS = 7
SPANS_PER_REQUEST = 4  # FastAPI's own: the request, its dependencies, its endpoint, its serialization
NO_TELEMETRY = "no telemetry"

SCRIPT = f"""
import sys, time
from opentelemetry import trace
from jeeves_otel import record_error
for _ in range({SPANS}):
    with trace.get_tracer("test").start_as_current_span("test"):
        pass
record_error("Test", "engine")
print(time.monotonic(), flush=True)
if sys.argv[1:] == ["wait"]:
    time.sleep(60)
"""


@dataclass
class Observed:
    """What one run has shown.

    ``exit_s`` is from the last statement of the program, or from the signal, to the end of the process, in seconds;
    ``sent`` counts spans, ``lines`` are those about what was lost.
    """

    exit_s: float
    status: int
    lines: list[str]
    sent: int
    delivered: int
    p50_ms: float = 0.0
    p99_ms: float = 0.0

    def said(self) -> int:
        """Return how many spans the lines say were lost."""
        return sum(int(number) for line in self.lines for number in re.findall(r"(\d+) spans?\b", line))


def settings_for(protocol: str, endpoint: str, **settings: str) -> dict[str, str]:
    """Return the environment of a program that sends every span to *endpoint*, as its defaults have it."""
    standard = {
        "JEEVES_OTEL_LOG_LEVEL": "warning",
        "METRICS_PORT": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    return {**environment(**{**standard, **settings}), "PYTHONPATH": str(APPS)}


def script(fault: str, protocol: str = HTTP, *, terminated: bool, **settings: str) -> Observed:
    """Run a script that records and ends at once, by itself or by SIGTERM."""
    with endpoint_that(fault, protocol) as receiver:
        child = subprocess.Popen(
            [LAUNCHER, sys.executable, "-c", SCRIPT, *(["wait"] if terminated else [])],
            env=settings_for(protocol, receiver.endpoint, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        ends = float(child.stdout.readline())
        if terminated:
            ends = time.monotonic()
            child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=60)
        took = time.monotonic() - ends
        return Observed(took, child.returncode, said.splitlines(), SPANS, len(receiver.spans()))


@contextmanager
def served(endpoint: str, protocol: str = HTTP, **settings: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve tests/integration/apps/serve.py by uvicorn; without the launcher if *endpoint* is empty."""
    port = free_port()
    quick = {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
    server = subprocess.Popen(
        [
            *([LAUNCHER] if endpoint else []),
            *(sys.executable, "-m", "uvicorn", "serve:app", "--log-level", "error", "--port", str(port)),
        ],
        env=settings_for(protocol, endpoint, **quick, **settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        poll_until(lambda: _answers(port), "the server")
        yield server, port
    finally:
        server.kill()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # it answers that there is no such thing; requests for health are not measured
    except OSError:
        return False


def application(fault: str, protocol: str = HTTP, requests: int = REQUESTS, **settings: str) -> Observed:
    """Send *requests* to a server, one after another, then SIGTERM; return what its client and its receiver saw."""
    with endpoint_that("good" if fault == NO_TELEMETRY else fault, protocol) as receiver:
        endpoint = "" if fault == NO_TELEMETRY else receiver.endpoint
        with served(endpoint, protocol, **settings) as (server, port):
            command = [sys.executable, "-m", "tests.integration.endpoints", "--client", str(port), str(requests)]
            asked = subprocess.run(
                command, capture_output=True, text=True, check=True
            )  # a process of its own: no shared GIL
            latencies = sorted(json.loads(asked.stdout))
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=60)
            return Observed(
                exit_s=time.monotonic() - began,
                status=server.returncode,
                lines=said.splitlines(),
                sent=(requests + WARM_UP) * SPANS_PER_REQUEST,
                delivered=len(receiver.spans()),
                p50_ms=latencies[len(latencies) // 2] * 1e3,
                p99_ms=latencies[len(latencies) * 99 // 100] * 1e3,
            )


def ask(port: int, requests: int) -> list[float]:
    """Return the seconds that each of *requests* took, over one connection, after a few to warm up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    took = []
    for _ in range(WARM_UP + requests):
        began = time.perf_counter()
        connection.request("GET", "/1")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    return took[WARM_UP:]


# ---- while it runs ---------------------------------------------------------------------------------------------------

LOOP = """
import resource, sys
from opentelemetry import metrics, trace
from jeeves_otel import failsafe
count = metrics.get_meter("test").create_counter("test.count")
for line in sys.stdin:
    for _ in range(int(line)):
        count.add(1)
        with trace.get_tracer("test").start_as_current_span("test"):
            pass
    seen = failsafe.counts()
    print(seen.get("lost.traces", 0), seen.get("export.traces", 0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


class Loop:
    """A program that records as often as it is told to."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.lost = self.failed = self.memory_kib = 0

    def record(self, times: int) -> None:
        """Record; note how many spans were lost and exports of spans failed so far, and the most memory that the process has had."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(f"{times}\n")
        self.child.stdin.flush()
        self.lost, self.failed, self.memory_kib = (int(word) for word in self.child.stdout.readline().split())

    def end(self) -> list[str]:
        """Let it end; return what it said."""
        _, said = self.child.communicate(timeout=60)
        return said.splitlines()


@contextmanager
def looping(endpoint: str, protocol: str, **settings: str) -> Iterator[Loop]:
    """Run a `Loop`, whose exports are quick to fail and to come."""
    quick = {
        "JEEVES_OTEL_EXIT_TIMEOUT": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
    }
    child = subprocess.Popen(
        [LAUNCHER, sys.executable, "-c", LOOP],
        env=settings_for(protocol, endpoint, **{**quick, **settings}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Loop(child)
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


class Outage:
    """An endpoint that is *kind* of bad (a key of `FAULTS`) until it is told to be `back`."""

    def __init__(self, protocol: str, kind: str) -> None:
        self._made = FaultyHttp if protocol == HTTP else FaultyGrpc
        self.receiver: Any = None
        if kind == "refused":
            self._port = free_port()
            self.endpoint = f"http://127.0.0.1:{self._port}"
        else:
            self.receiver = self._made(kind)
            self.endpoint = self.receiver.endpoint

    def back(self) -> Any:
        """Let it get well; return the receiver."""
        if self.receiver is None:
            self.receiver = self._made("good", self._port)
        self.receiver.fault = "good"
        return self.receiver


@contextmanager
def outage(protocol: str, kind: str) -> Iterator[Outage]:
    """Yield an `Outage`, and stop its endpoint afterwards."""
    made = Outage(protocol, kind)
    yield made
    if made.receiver is not None:
        made.receiver.stop()


def long_outage(protocol: str, kind: str, seconds: int = 60) -> str:
    """Return what became of 20 spans a second before, during and after an outage, with the settings as they come."""
    defaults = {
        "JEEVES_OTEL_EXIT_TIMEOUT": "2000",
        "OTEL_BSP_SCHEDULE_DELAY": "5000",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "10",
        "OTEL_METRIC_EXPORT_INTERVAL": "15000",
    }
    with outage(protocol, kind) as well, looping(well.endpoint, protocol, **defaults) as loop:
        recorded = _record_for(seconds, loop)
        receiver, back = well.back(), time.monotonic()
        first: dict[str, float] = {}
        while len(first) < 2 and time.monotonic() - back < seconds:
            recorded += _record_for(0.2, loop)
            for signal_name, arrived in (("spans", receiver.spans), ("counts", receiver.points)):
                if signal_name not in first and arrived():
                    first[signal_name] = time.monotonic() - back
        said = loop.end()
        counted = next(value for (name, _), value in receiver.points().items() if name == "test.count")
    arrived = ", ".join(f"first {name} after {after:.1f} s" for name, after in first.items())
    return (
        f"{FAULTS[kind]} for {seconds} s, {protocol}: {arrived}; {counted:.0f} of {recorded} counted, "
        f"{len(receiver.spans())} spans delivered, {loop.lost} lost; said: {said}"
    )


def _record_for(seconds: float, loop: Loop) -> int:
    """Record 20 times a second; return how often it was."""
    times = round(seconds * 20)
    for _ in range(times):
        loop.record(1)
        time.sleep(0.05)
    return times


# ---- the table -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser("make endpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each row (default: %(default)s)")
    parser.add_argument("--only", choices=FAULTS, action="append", help="this row; may be repeated")
    parser.add_argument("--client", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--outage", action="store_true", help="instead: an endpoint that comes back after a minute")
    options = parser.parse_args(arguments)
    if options.client:
        print(json.dumps(ask(*options.client)))
        return
    if options.outage:
        cases = [(protocol, kind) for protocol in PROTOCOLS for kind in ("refused", "hangs", "busy")]
        with ThreadPoolExecutor(len(cases)) as pool:  # each of them mostly waits
            print(*pool.map(lambda case: long_outage(*case), cases), sep="\n")
        return
    began = time.monotonic()
    for protocol in PROTOCOLS:
        seen: dict[str, list[tuple[Observed, Observed, Observed]]] = {}
        for _ in range(options.runs):
            if protocol == HTTP:
                plain = application(NO_TELEMETRY)
                seen.setdefault(NO_TELEMETRY, []).append((plain, plain, plain))
            for fault in options.only or FAULTS:
                ends, terminated = (script(fault, protocol, terminated=how) for how in (False, True))
                seen.setdefault(fault, []).append((ends, terminated, application(fault, protocol)))
        _print_table(protocol, seen)
    print(f"\n{options.runs} runs each, in turns; {REQUESTS} requests; {time.monotonic() - began:.0f} s in all.")


def _print_table(protocol: str, seen: dict[str, list[tuple[Observed, Observed, Observed]]]) -> None:
    print(f"\n{protocol}\n")
    print(
        "| endpoint | exit s | SIGTERM s | uvicorn SIGTERM s | p50 ms | p99 ms | spans delivered | said lost | lines |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for fault, runs in seen.items():
        cells: list[Any] = [FAULTS.get(fault, fault)]
        cells += [f"{max(run[kind].exit_s for run in runs):.2f}" for kind in range(3)]
        servers = [run[2] for run in runs]
        cells += [f"{median(each.p50_ms for each in servers):.2f}", f"{median(each.p99_ms for each in servers):.2f}"]
        cells += [
            f"{median(each.delivered for each in servers):.0f} of {servers[0].sent}" if fault != NO_TELEMETRY else "",
            f"{median(each.said() for each in servers):.0f}",
            f"{max(len(run[0].lines) for run in runs)}, {max(len(run[1].lines) for run in runs)}, {max(len(each.lines) for each in servers)}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    for fault, runs in seen.items():
        for line in dict.fromkeys(line for run in runs[:1] for each in run for line in each.lines):
            print(f"  {fault}: {line}")


if __name__ == "__main__":
    main()
