# SPDX-License-Identifier: Apache-2.0
"""Run the demo: model server, OTLP receiver, kernel and gateway, then traffic, then the report.

In: `Options`. Out: an exit code, and a report on the terminal. Kernel and gateway are started as a user would start
them, with the launcher and environment variables, and everything started is ended again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jeeves_otel.demo import report
from jeeves_otel.demo.processes import ChildError, require_free, terminated_as_interrupted, without_proxy
from jeeves_otel.demo.receiver import Receiver
from jeeves_otel.demo.samples import series_of
from jeeves_otel.demo.stage import (
    INTERRUPTED,
    Ports,
    console_of_the_user,
    read,
    sampled_of,
    send_all,
    set_up,
    settled_page,
    wait_for_interrupt,
)
from jeeves_otel.demo.traffic import scripts
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from rich.console import Console

    from jeeves_otel.demo.samples import Series
    from jeeves_otel.demo.stage import Stage
    from jeeves_otel.demo.traffic import Outcome
    from jeeves_otel.registry import Registry

DELIVERY_S = 15.0  # the longest that an export may be under way


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; see `run`."""

    requests: int
    seed: int
    keep: bool
    port: int
    metrics_port: int
    sampled: float
    incident: str | None


def run(
    requests: int,
    seed: int,
    keep: bool,  # noqa: FBT001 - as above
    port: int,
    metrics_port: int,
    sampled: float = 1.0,
    incident: str | None = None,
) -> int:
    """Start the service and what it needs, send requests, print what its telemetry says, and stop everything.

    Args:
        requests: How many requests are sent; count, >= 1.
        seed: Decides the requests and every answer, delay and failure of the language model.
        keep: Whether everything runs on until Ctrl-C.
        port: TCP port of the service; 0 chooses a free one.
        metrics_port: TCP port of its /metrics server; 0 chooses a free one.
        sampled: Share of the traces that are sampled; ratio, 0..1.
        incident: What is wrong while the second half is sent, one of `incidents.KINDS`; None for nothing.

    Returns:
        Exit code: 0 if every count agrees, 1 if one differs or a process fails, 130 after Ctrl-C before the end.
    """
    options = Options(requests, seed, keep, port, metrics_port, sampled, incident)
    console = console_of_the_user()
    without_proxy()
    try:
        with terminated_as_interrupted(), ExitStack() as stack:
            receiver = stack.enter_context(Receiver())
            return _play(console, options, _set_up(console, options, stack, receiver), receiver)
    except ChildError as error:
        console.print(str(error), markup=False, style="red")
        return 1
    except KeyboardInterrupt:
        console.print("\nEverything is stopped.")
        return INTERRUPTED


def _set_up(console: Console, options: Options, stack: ExitStack, receiver: Receiver) -> Stage:
    require_free(options.port, "--port")
    require_free(options.metrics_port, "--metrics-port")
    console.print("On this machine only: a gateway, a gRPC kernel with five agents, a language model that answers from")
    console.print("a seed, and a receiver of OTLP. Nothing leaves the machine, and everything is ended afterwards.\n")
    ports = Ports(options.port, options.metrics_port)
    return set_up(console, stack, receiver.endpoint, seed=options.seed, sampled=options.sampled, ports=ports)


# ---- the play --------------------------------------------------------------------------------------------------------


def _play(console: Console, options: Options, stage: Stage, receiver: Receiver) -> int:
    registry = load()
    began = time.monotonic()
    outcome = send_all(console, stage, scripts(options.seed, options.requests), options.incident)
    stage.check()
    seconds = time.monotonic() - began
    page = settled_page(stage, outcome.sent - outcome.probes)
    expected = report.comparable(registry, page)
    sampled = sampled_of(outcome.traces, options.sampled)
    delivered = _wait_for_delivery(receiver, registry, expected, sampled)
    _report_traffic(console, outcome, seconds)
    console.rule("Every promised metric, from /metrics", align="left")
    report.print_metrics(console, registry, page)
    agreed = _report_trace(console, receiver)
    agreed = _report_counts(console, stage, outcome, page) and agreed
    agreed = _report_sampling(console, options, receiver, outcome, sampled) and agreed
    agreed = report.print_differences(console, expected, delivered) and agreed
    _report_next(console, options, stage)
    if options.keep:
        wait_for_interrupt(console, stage.check)
    return 0 if agreed and not outcome.broken else 1


def _wait_for_delivery(
    receiver: Receiver, registry: Registry, expected: dict[Series, float], sampled: set[str]
) -> dict[Series, float]:
    """Return what OTLP has delivered, as soon as it is what was *expected*, or when the time for it is over."""
    deadline = time.monotonic() + DELIVERY_S
    while True:
        delivered = report.comparable(registry, receiver.samples())
        traced = sampled <= {spans[0].trace for spans in receiver.traces() if report.is_whole(spans)}
        if (delivered == expected and traced) or time.monotonic() > deadline:
            return delivered
        time.sleep(0.1)


# ---- the report ------------------------------------------------------------------------------------------------------


def _report_traffic(console: Console, outcome: Outcome, seconds: float) -> None:
    statuses = "  ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items()))
    console.print(
        f"{outcome.sent} requests in {seconds:.1f} s, {outcome.sent / seconds:.0f} per second. Answers by status:"
    )
    console.print(f"  {statuses}")
    for request in outcome.broken[:5]:
        console.print(f"  no answer: {request}", style="red", markup=False)
    console.print()


def _report_trace(console: Console, receiver: Receiver) -> bool:
    traces = receiver.traces()
    console.print()
    console.rule(f"One trace of {len(traces)}, as it arrived over OTLP", align="left")
    spans = report.telling(traces)
    if not spans:
        console.print("No whole trace has arrived.", style="red")
        return not traces
    console.print(f"  trace {spans[0].trace}, {len(spans)} spans")
    report.print_trace(console, spans)
    return True


def _report_counts(console: Console, stage: Stage, outcome: Outcome, page: dict[Series, float]) -> bool:
    console.print()
    console.rule("Do the counts agree?", align="left")
    served = sum(series_of(page, "jeeves_http_requests_total").values())
    sent = outcome.sent - outcome.probes
    same = report.print_comparison(console, "requests sent", sent, "jeeves_http_requests_total", served)
    calls = float(read(f"{stage.model_url}/calls").partition(":")[2].strip("} \n"))
    left = sum(series_of(page, "jeeves_llm_provider_calls_total").values())
    same = (
        report.print_comparison(console, "calls at the model server", calls, "jeeves_llm_provider_calls_total", left)
        and same
    )
    asked = sum(series_of(page, "rpc_client_call_duration_seconds_count").values())
    answered = sum(series_of(page, "jeeves_grpc_requests_total").values())
    same = (
        report.print_comparison(console, "calls of the gateway", asked, "jeeves_grpc_requests_total", answered) and same
    )
    failures = sum(series_of(page, "jeeves_otel_internal_errors_total").values())
    return report.print_comparison(console, "failures inside the telemetry", failures, "allowed", 0) and same


def _report_sampling(
    console: Console, options: Options, receiver: Receiver, outcome: Outcome, sampled: set[str]
) -> bool:
    """Say whether every sampled request has left a whole trace, and whether their share is what was asked for."""
    requested = outcome.sent - outcome.probes - len(outcome.broken)
    same = report.print_comparison(console, "answers", requested, "trace ids in them", len(outcome.traces))
    arrived = [spans for spans in receiver.traces() if spans[0].trace in outcome.traces]
    same = report.print_comparison(console, "traces sampled", len(sampled), "that arrived", len(arrived)) and same
    whole = [spans for spans in arrived if report.is_whole(spans)]
    same = report.print_comparison(console, "traces that arrived", len(arrived), "whole", len(whole)) and same
    return report.print_share(console, len(sampled), len(outcome.traces), options.sampled) and same


def _report_next(console: Console, options: Options, stage: Stage) -> None:
    console.print()
    console.rule("Where to look next", align="left")
    if options.keep:
        console.print(f"  {' and '.join(stage.metrics_urls)}  the pages of a scraper", soft_wrap=True)
        console.print(f"  {stage.url}/docs  the service", soft_wrap=True)
        console.print("  Everything runs until Ctrl-C.")
    else:
        console.print("  jeeves-otel demo --keep          let it run on, with /metrics to look at")
    console.print("  jeeves_otel/demo/agents.py       the agents: how code is instrumented")
    console.print("  jeeves_otel/data/profiles/       what is promised, and what it is made from")
    console.print("  README.md, docs/                 your own service")
