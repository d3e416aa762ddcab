# SPDX-License-Identifier: Apache-2.0
"""Run the comparison and print it.

In: the number of rounds. Out: a table per group, and JSON on request. There are no thresholds: figures of shared
machines are for reading, and only the ratios of one run can be compared.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from bench.called import grpc_group
from bench.clients import client_group, stream_group
from bench.queried import sqlalchemy_group
from bench.recorded import fastapi_group, http_group, llm_group
from bench.scraped import scrape_group
from bench.served import served_group
from bench.sidecar import TURN_S, print_costs, sidecar_results
from bench.started import print_starts, start_results
from bench.timing import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.timing import Result

GROUPS = {
    "llm": llm_group,
    "client": client_group,
    "stream": stream_group,
    "http": http_group,
    "fastapi": fastapi_group,
    "served": served_group,
    "grpc": grpc_group,
    "sqlalchemy": sqlalchemy_group,
    "scrape": scrape_group,
}
START = "start"  # processes, and no events
SIDECAR = "sidecar"  # only if it is asked for: it needs a Collector, and minutes
PACKAGES = ("opentelemetry-sdk", "prometheus-client", "fastapi", "openai", "opentelemetry-instrumentation-genai-openai")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the groups that were asked for."""
    parser = argparse.ArgumentParser(
        "python -m bench", description="Compare what recording, scraping and starting cost."
    )
    parser.add_argument(
        "--rounds", type=int, default=31, help="turns of each competitor, at least 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        choices=[*GROUPS, START, SIDECAR],
        action="append",
        help="this group; may be repeated (default: all but sidecar)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, in seconds per event")
    parser.add_argument(
        "--turn",
        type=float,
        default=TURN_S,
        metavar="S",
        help="how long sidecar loads each, seconds (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    start = perf_counter()
    about = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    print(f"{', '.join(f'{name} {number}' for name, number in about.items())}; {options.rounds} rounds each, in turns")
    results: list[Result] = []
    for name in options.only or [*GROUPS, START]:
        if name == START:
            starts = start_results(options.rounds)
            print_starts(starts)
            results += starts
        elif name == SIDECAR:
            for costs in sidecar_results(options.rounds, options.turn):
                print_costs(costs)
                results += costs
        else:
            results += _print_table(measure(GROUPS[name](), options.rounds))
    print(f"\n{perf_counter() - start:.0f} s in all. Compare ratios of one run, never times of two.")
    if options.json:
        figures = {"about": about, "rounds": options.rounds, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _print_table(results: list[Result]) -> list[Result]:
    print(f"\n{results[0].group:<62} {'median':>10} {'p25-p75':>19} {'ratio':>6}")
    for result in results:
        median, low, high = (f"{seconds * 1e6:.2f}" for seconds in (result.median_s, result.p25_s, result.p75_s))
        print(f"  {result.name:<60} {median:>7} µs {low + ' - ' + high:>19} {result.ratio:>6.2f}")
    return results


if __name__ == "__main__":
    main()
