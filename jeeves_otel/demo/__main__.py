# SPDX-License-Identifier: Apache-2.0
"""Run the demo from the command line: ``python -m jeeves_otel.demo``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from jeeves_otel.demo.driver import run
from jeeves_otel.demo.incidents import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Read *arguments* (default: those of the process), run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jeeves_otel.demo",
        description="Start an instrumented agent service, send requests to it, and show the metrics and one trace.",
    )
    parser.add_argument(
        "--requests", type=positive, default=300, help="how many requests are sent (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="decides requests, answers and failures (default: %(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="let everything run until Ctrl-C, to look around")
    parser.add_argument("--port", type=_port, default=0, help="port of the service (default: a free one)")
    parser.add_argument(
        "--metrics-port", type=_port, default=0, help="port of its /metrics server (default: a free one)"
    )
    parser.add_argument(
        "--sampled", type=ratio, default=1.0, help="share of traces that are sampled, 0 to 1 (default: %(default)s)"
    )
    add_incident(parser)
    given = parser.parse_args(arguments)
    return run(given.requests, given.seed, given.keep, given.port, given.metrics_port, given.sampled, given.incident)


def add_incident(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets something go wrong halfway."""
    kinds = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    parser.add_argument("--incident", choices=KINDS, help=f"what is wrong while the second half is sent ({kinds})")


def positive(text: str) -> int:
    """Return a count that is at least one, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:  # noqa: PLR2004 - the highest TCP port
        raise argparse.ArgumentTypeError(f"{text} is not a TCP port; write 0 to 65535, 0 for a free one")
    return number


def ratio(text: str) -> float:
    """Return a number from 0 to 1, for `argparse`."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a ratio from 0 to 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
