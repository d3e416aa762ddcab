# SPDX-License-Identifier: Apache-2.0
"""Time what a page costs that four processes share: ``python -m bench.shared``.

In: nothing. Out: a table, one line per number of series that each process has.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from jeeves_otel.exposition import render
from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.registry import load
from jeeves_otel.shared_page import Member
from jeeves_otel.snapshots import encode
from jeeves_otel.translation import Translator
from jeeves_otel.views import sdk_views

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESSES = 4
ROUNDS = 9
IDLE_S = 10.0


def member_of(folder: Path, series: int) -> Member:
    """Return a member with about so many series: per agent one histogram of 8 buckets and two counters."""
    registry = load(("jeeves",))
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], views=sdk_views(registry, keep_semconv=False), shutdown_on_exit=False)
    runs = provider.get_meter("bench").create_histogram("jeeves.agent.duration", "s")
    for number in range(series // 3):
        runs.record(0.3 + number / 7, {"gen_ai.agent.name": f"agent-{number}"})
    return Member(folder, PrometheusCollector(reader, Translator(registry)).collect, {})


def timed_ms(work: Callable[[], object]) -> float:
    """Return how long *work* takes; median, milliseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times) * 1_000


def idle_share() -> float:
    """Return the share of a CPU that this process takes while it does nothing; ratio."""
    start = time.process_time()
    time.sleep(IDLE_S)
    return (time.process_time() - start) / IDLE_S


def measure(series: int) -> str:
    """Return a line of the table."""
    with TemporaryDirectory(prefix="jeeves-") as base:
        folder = Path(base) / "u" / "g"
        mine = member_of(folder, series)
        alone = idle_share()
        others = [
            subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-m", "bench.shared", str(folder), str(series)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(PROCESSES - 1)
        ]
        for other in others:
            assert other.stdout is not None  # noqa: S101 - asked for above
            other.stdout.readline()
        mine.whole()
        in_company = idle_share()
        data = mine.whole()
        size = len(encode(data))
        figures = [
            timed_ms(mine._snapshot),
            timed_ms(mine.whole),
            timed_ms(lambda: render(data, openmetrics=False)),
            timed_ms(lambda: render(data, openmetrics=True)),
        ]
        for other in others:
            other.communicate()
        mine.leave()
    shown = " | ".join(f"{figure:.1f} ms" for figure in figures)
    return f"| {series:,} | {size / 1_024:,.0f} KiB | {shown} | {alone:.2%} | {in_company:.2%} |"


def main() -> None:
    """Measure, or be one of those who are measured."""
    if len(sys.argv) > 1:
        member = member_of(Path(sys.argv[1]), int(sys.argv[2]))
        print("ready", flush=True)
        sys.stdin.read()
        member.leave()
        return
    print(
        "| series | snapshot on disk | snapshot | page of 4 | + as text | + as OpenMetrics | CPU alone | CPU in company |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for series in (100, 1_000, 10_000):
        print(measure(series), flush=True)


if __name__ == "__main__":
    main()
