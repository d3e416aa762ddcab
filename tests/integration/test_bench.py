# SPDX-License-Identifier: Apache-2.0
"""bench: the comparison runs, and its report holds every competitor. Its figures are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sidecar
from bench.timing import Case, Group, each, measure

ROOT = Path(__file__).parents[2]
COMPETITORS = {
    "one LLM call": 6,
    "one chat completion through openai's client": 3,
    "one chat completion streamed in 20 chunks": 3,
    "one HTTP request recorded": 3,
    "one request through FastAPI": 5,
    "one request served, with spans at 10 %": 7,
    "one unary call through grpc.aio, server and client in one process": 6,
    "one SELECT through SQLAlchemy": 3,
    "one scrape of 1,000 histogram series": 3,
    "start and end of a program that imports nothing": 3,
    "the same of one that imports fastapi, openai, sqlalchemy, grpc": 3,
}


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts the stock launcher, too, in a virtual environment that it makes
def test_the_comparison_runs_and_reports_every_competitor(tmp_path: Path) -> None:
    """Two rounds of everything, as a table and as JSON."""
    report = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--rounds", "2", "--json", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads(report.read_text())["results"]

    assert (done.returncode, done.stderr) == (0, "")
    assert {group: len([r for r in results if r["group"] == group]) for group in COMPETITORS} == COMPETITORS
    assert all(result["name"] in done.stdout for result in results)
    assert all(result["median_s"] > 0 for result in results)


@pytest.mark.integration
@pytest.mark.slow
def test_the_sidecar_is_compared_with_a_bare_collector(collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short turns of spans and of points: everything that was acknowledged has reached the sink, or this would raise."""
    assert collector
    _, spans, _, points = sidecar.LOADS
    monkeypatch.setattr(sidecar, "LOADS", (spans, points))
    of_spans, of_points = sidecar.sidecar_results(turns=2, turn_s=0.2)

    assert (2, 4) == (len(of_spans), len(of_points))
    assert (1.0, 1.0) == (of_spans[0].ratio, of_points[0].ratio)
    assert all(cost.memory_mib > 1 for cost in of_spans + of_points)


def test_the_ratio_of_a_case_to_the_first_one_is_that_of_their_work() -> None:
    """Twice the work is about twice the time, whatever the clock says; the empty loop is in neither."""

    def once() -> None:
        sum(range(2_000))

    def twice() -> None:
        once()
        once()

    first, second = measure(Group("g", (Case("once", each(once)), Case("twice", each(twice)))), rounds=31)

    assert (first.ratio, 1.5 < second.ratio < 2.5) == (1.0, True)


def test_each_case_is_prepared_before_each_turn() -> None:
    """Competitors that need a global of their own set it themselves."""
    turns: list[str] = []
    current = [""]

    def case(name: str) -> Case:
        def prepare() -> None:
            current[0] = name
            turns.append(name)

        def step() -> None:
            assert current[0] == name
            sum(range(10_000))

        return Case(name, each(step), prepare)

    measure(Group("g", (case("a"), case("b"))), rounds=3)

    assert {name: turns.count(name) for name in "ab"}.keys() == {"a", "b"}
    assert turns[-6:].count("a") == 3
