# SPDX-License-Identifier: Apache-2.0
"""Run the demo behind the real parts, see whether its data has arrived in all of them, and let everything run on.

Start it in a checkout with ``make stack``, or ``python -m jeeves_otel.demo.stack``. It belongs to the demo, whose
service and traffic it uses; it is no command of ``jeeves-otel``, because the bundle is not in the wheel.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from jeeves_otel.demo import arrivals, parts, report, stage
from jeeves_otel.demo.__main__ import add_incident, positive, ratio
from jeeves_otel.demo.processes import ChildError, terminated_as_interrupted, without_proxy
from jeeves_otel.demo.traffic import scripts
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from jeeves_otel.demo.receiver import Span
    from jeeves_otel.demo.samples import Series

ARRIVAL_S = 30.0  # the longest that data may be under way
SERVICE = stage.Ports(gateway=8000, metrics=9090, kernel_metrics=9091)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; see `main`."""

    requests: int
    seed: int
    sampled: float
    once: bool
    free_ports: bool
    incident: str | None


@dataclass(frozen=True, slots=True)
class Arrived:
    """What the backends have at one moment."""

    samples: dict[Series, float]
    traces: list[list[Span]]
    raised: arrivals.Exceptions
    alerts: list[dict[str, Any]]

    @property
    def whole(self) -> set[str]:
        """The ids of the traces that are complete."""
        return {spans[0].trace for spans in self.traces if report.is_whole(spans)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read *arguments* (default: those of the process), run everything, and return the exit code.

    0 if the data has arrived, 1 if it has not or a part fails, 130 if interrupted before that was known.
    """
    parser = argparse.ArgumentParser(
        prog="make stack",
        usage='make stack [ARGS="--once --free-ports …"]',
        description="Run the demo behind a real Collector, Prometheus, Alertmanager and Jaeger, with the files in "
        "collector/, show that its data has arrived in all of them, and let everything run until Ctrl-C.",
    )
    parser.add_argument("--once", action="store_true", help="end when it is known whether the data has arrived")
    parser.add_argument("--free-ports", action="store_true", help="use any free ports instead of the usual ones")
    parser.add_argument("--requests", type=positive, default=100, help="how many are sent (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides requests and failures (default: %(default)s)")
    parser.add_argument("--sampled", type=ratio, default=1.0, help="share of traces, 0 to 1 (default: %(default)s)")
    add_incident(parser)
    options = Options(**vars(parser.parse_args(arguments)))
    console = stage.console_of_the_user()
    without_proxy()
    try:
        with terminated_as_interrupted(), ExitStack() as stack:
            return _play(console, options, stack)
    except ChildError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nEverything is stopped.")
        return stage.INTERRUPTED


def _play(console: Console, options: Options, stack: ExitStack) -> int:
    ports = parts.Ports.free() if options.free_ports else parts.Ports()
    service = stage.Ports() if options.free_ports else SERVICE
    ports.require_free(
        {"service": service.gateway, "its page": service.metrics, "page of the kernel": service.kernel_metrics},
        'Stop it, or take any free ports: make stack ARGS="--free-ports"',
    )
    console.rule("The parts", align="left")
    programs = {part: parts.program(part, console.print) for part in parts.PARTS}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jeeves-stack-")))
    console.print("Starting Collector, Prometheus, Alertmanager and Jaeger with the files in collector/.")
    started = parts.start(stack, programs, ports, folder)
    console.print(f"They answer. Logs and data, until everything is ended: {folder}\n", soft_wrap=True)
    endpoint = f"http://127.0.0.1:{ports.otlp_http}"
    demo = stage.set_up(console, stack, endpoint, seed=options.seed, sampled=options.sampled, ports=service)
    outcome = stage.send_all(console, demo, scripts(options.seed, options.requests), options.incident)

    def check() -> None:
        demo.check()
        for part in started:
            part.check()

    check()
    page = report.comparable(load(), stage.settled_page(demo, outcome.sent - outcome.probes))
    sampled = stage.sampled_of(outcome.traces, options.sampled)
    arrived = _prove(console, ports, page, sampled, check) and not outcome.broken
    if not options.once:
        _print_links(console, ports, demo, sorted(sampled)[:1])
        console.print("\nEverything runs until Ctrl-C.")
        stage.wait_for_interrupt(console, check)
    return 0 if arrived else 1


# ---- the proof -------------------------------------------------------------------------------------------------------


def _prove(
    console: Console, ports: parts.Ports, page: dict[Series, float], sampled: set[str], check: Callable[[], None]
) -> bool:
    """Print what has arrived, and return whether it is everything: the *page*, and the traces that were *sampled*."""
    found = _wait(ports, page, sampled, check)
    console.print()
    console.rule("In Prometheus", align="left")
    agreed = report.print_differences(console, page, found.samples, "Prometheus")
    console.rule("In Jaeger", align="left")
    whole = len(found.whole & sampled)
    agreed = report.print_comparison(console, "traces sampled", len(sampled), "whole in Jaeger", whole) and agreed
    spans = report.telling(found.traces)
    if spans:
        console.print(f"  one of them, {spans[0].trace}:")
        report.print_trace(console, spans)
    console.rule("In Alertmanager", align="left")
    return _print_alerts(console, found) and agreed


def _wait(ports: parts.Ports, page: dict[Series, float], sampled: set[str], check: Callable[[], None]) -> Arrived:
    """Return what has arrived as soon as it is everything, or when the time for it is over."""
    deadline = time.monotonic() + ARRIVAL_S
    while True:
        try:
            found = _ask(ports, len(sampled))
        except OSError as error:
            check()  # which knows more about a part that has ended
            raise ChildError(f"A part does not answer: {error}") from error
        complete = found.samples == page and sampled <= found.whole and arrivals.alerted(found.alerts) == found.raised
        if complete or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _ask(ports: parts.Ports, sampled: int) -> Arrived:
    registry, at = load(), "http://127.0.0.1"
    # More than there are, which are those of requests alone; Jaeger gives as many as it is asked for.
    traces = arrivals.traces(f"{at}:{ports.jaeger}", "jeeves-gateway", 2 * sampled + 100)
    return Arrived(
        report.comparable(registry, arrivals.samples(f"{at}:{ports.prometheus}")),
        [arrivals.spans(each) for each in traces],
        arrivals.exceptions(traces),
        arrivals.alerts(f"{at}:{ports.alertmanager}"),
    )


def _print_alerts(console: Console, found: Arrived) -> bool:
    """Print the alerts, and return whether there is one for each exception in the traces."""
    raised, alerted = found.raised, arrivals.alerted(found.alerts)
    for service, kind, severity in sorted(alerted):
        labels = f"service={service}  exception_type={kind}  severity={severity}"
        console.print(Text.assemble("  ", (arrivals.ALERT, "bold"), f"  {labels}"), soft_wrap=True)
    if not raised:
        console.print("  No sampled request has failed: send more.")
    left = "exceptions in the traces, of one service and class each"
    same = report.print_comparison(console, left, len(raised), "alerts", len(found.alerts))
    for each in sorted(raised ^ alerted):
        console.print(f"    {'  '.join(each)}: {'no alert' if each in raised else 'in no trace'}", style="red")
    return same and raised == alerted


def _print_links(console: Console, ports: parts.Ports, demo: stage.Stage, traces: list[str]) -> None:
    console.print()
    console.rule("Where to look", align="left")
    links = {
        f"http://127.0.0.1:{ports.prometheus}/api/v1/query?query=jeeves_llm_calls_total": "a query of Prometheus",
        **{f"http://127.0.0.1:{ports.jaeger}/api/traces/{trace}": "a trace in Jaeger" for trace in traces},
        f"http://127.0.0.1:{ports.alertmanager}/#/alerts": "the alerts",
        f"http://127.0.0.1:{ports.own_metrics}/metrics": "the Collector about itself",
        **dict.fromkeys(demo.metrics_urls, "what a scraper would get"),
        f"{demo.url}/docs": "the service",
    }
    for url, what in links.items():
        console.print(f"  {url}  {what}", soft_wrap=True, markup=False)
    console.print(
        "Prometheus and Jaeger are built without their web pages; their images have them: make stack DOCKER=1"
    )


if __name__ == "__main__":
    sys.exit(main())
