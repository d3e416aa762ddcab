# SPDX-License-Identifier: Apache-2.0
"""Run the demo: model server, OTLP receiver, kernel and gateway, then traffic, then the report.

In: `Options`. Out: an exit code, and a report on the terminal. Kernel and gateway are started as a user would start
them, with the launcher and environment variables, and everything started is ended again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jeeves_otel.demo import report
from jeeves_otel.demo.processes import ChildError, free_ports, require_free, running, terminated_as_interrupted
from jeeves_otel.demo.receiver import Receiver
from jeeves_otel.demo.samples import parse, series_of, total
from jeeves_otel.demo.traffic import Outcome, Step, scripts, send
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jeeves_otel.demo.processes import Child
    from jeeves_otel.demo.samples import Series
    from jeeves_otel.registry import Registry

PLAIN_WIDTH = 100  # columns, where there is no terminal to ask
SETTLING_S = 5.0  # the longest that the service may work on after the last answer
DELIVERY_S = 15.0  # the longest that an export may be under way
INTERRUPTED = 130  # what shells expect after Ctrl-C


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; see `run`."""

    requests: int
    seed: int
    keep: bool
    port: int
    metrics_port: int
    sampled: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running."""

    gateway: Child
    kernel: Child
    receiver: Receiver
    url: str
    metrics_urls: tuple[str, ...]
    model_url: str

    def check(self) -> None:
        """Raise `ChildError` if a process of the service has ended."""
        self.gateway.check()
        self.kernel.check()

    def page(self) -> dict[Series, float]:
        """Return what gateway and kernel have on /metrics, added up."""
        return total(parse(_read(url)) for url in self.metrics_urls)


def run(requests: int, seed: int, keep: bool, port: int, metrics_port: int, sampled: float = 1.0) -> int:  # noqa: FBT001 - the arguments of the command
    """Start the service and what it needs, send requests, print what its telemetry says, and stop everything.

    Args:
        requests: How many requests are sent; count, >= 1.
        seed: Decides the requests and every answer, delay and failure of the language model.
        keep: Whether everything runs on until Ctrl-C.
        port: TCP port of the service; 0 chooses a free one.
        metrics_port: TCP port of its /metrics server; 0 chooses a free one.
        sampled: Share of the traces that are sampled; ratio, 0..1.

    Returns:
        Exit code: 0 if every count agrees, 1 if one differs or a process fails, 130 after Ctrl-C before the end.
    """
    options = Options(requests, seed, keep, port, metrics_port, sampled)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    try:
        with terminated_as_interrupted(), ExitStack() as stack:
            return _play(console, options, _set_up(console, options, stack))
    except ChildError as error:
        console.print(str(error), markup=False, style="red")
        return 1
    except KeyboardInterrupt:
        console.print("\nEverything is stopped.")
        return INTERRUPTED


# ---- the stage -------------------------------------------------------------------------------------------------------


def _set_up(console: Console, options: Options, stack: ExitStack) -> Stage:
    """Start everything, and let *stack* end it, the gateway first."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jeeves-demo-")))
    require_free(options.port, "--port")
    require_free(options.metrics_port, "--metrics-port")
    port, metrics_port, kernel_port, kernel_metrics_port, model_port = free_ports(5)
    port, metrics_port = options.port or port, options.metrics_port or metrics_port
    receiver = stack.enter_context(Receiver())
    launched = _Launched(stack, _clean_environment(), folder)
    model_url = f"http://127.0.0.1:{model_port}"
    model = launched.start(
        "model",
        ["-m", "jeeves_otel.demo.llm_server", "--port", str(model_port)],
        {"JEEVES_DEMO_SEED": str(options.seed)},
    )
    shared = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_TRACES_SAMPLER_ARG": f"{options.sampled:g}",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "DATABASE_URL": f"sqlite:///{folder / 'demo.db'}",
    }
    kernel_settings = {
        "OTEL_SERVICE_NAME": "jeeves-kernel",
        **shared,
        "METRICS_PORT": str(kernel_metrics_port),
        "OPENAI_BASE_URL": f"{model_url}/v1",
        "OPENAI_API_KEY": "none-needed",
        "LLAMASERVER_URL": f"http://localhost:{model_port}/v1",
        "JEEVES_OTEL_LLM_PROVIDERS": f"llamaserver=http://localhost:{model_port}",
    }
    kernel_command = ["-m", "jeeves_otel.demo.kernel", "--port", str(kernel_port)]
    gateway_settings = {
        "OTEL_SERVICE_NAME": "jeeves-gateway",
        **shared,
        "METRICS_PORT": str(metrics_port),
        "KERNEL_ADDRESS": f"127.0.0.1:{kernel_port}",
    }
    gateway_command = ["-m", "uvicorn", "jeeves_otel.demo.service:app", "--port", str(port), "--log-level", "warning"]
    _announce(console, (kernel_command, kernel_settings), (gateway_command, gateway_settings))
    kernel = launched.start("kernel", kernel_command, kernel_settings)
    kernel.wait_until_listening(kernel_port)
    gateway = launched.start("gateway", gateway_command, gateway_settings)
    model.wait_until_answering(f"{model_url}/calls")
    gateway.wait_until_answering(f"http://127.0.0.1:{port}/metrics")
    pages = tuple(f"http://127.0.0.1:{each}/metrics" for each in (metrics_port, kernel_metrics_port))
    return Stage(gateway, kernel, receiver, f"http://127.0.0.1:{port}", pages, model_url)


@dataclass(frozen=True, slots=True)
class _Launched:
    """Starts processes of Python, those of the service with the launcher in front; *stack* ends them."""

    stack: ExitStack
    environment: dict[str, str]
    folder: Path

    def start(self, name: str, command: list[str], settings: dict[str, str]) -> Child:
        launcher = [] if name == "model" else [str(Path(sys.executable).with_name("opentelemetry-instrument"))]
        whole = [*launcher, sys.executable, *command]
        log = self.folder / f"{name}.log"
        return self.stack.enter_context(running(f"The {name}", whole, {**self.environment, **settings}, log))


def _clean_environment() -> dict[str, str]:
    """Return the environment without settings of telemetry, so that the demo is the same everywhere."""
    ours = ("OTEL_", "JEEVES_OTEL_", "METRICS_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _announce(console: Console, *processes: tuple[list[str], dict[str, str]]) -> None:
    console.print("On this machine only: a gateway, a gRPC kernel with five agents, a language model that answers from")
    console.print("a seed, and a receiver of OTLP. Nothing leaves the machine, and everything is ended afterwards.\n")
    console.rule("The service, as you would start it", align="left")
    for command, settings in processes:
        for name, value in settings.items():
            console.print(f"  {name}={value}", markup=False, soft_wrap=True)
        console.print(f"  opentelemetry-instrument python {' '.join(command)}\n", markup=False, soft_wrap=True)
    console.print("Without OTEL_TRACES_SAMPLER_ARG one trace in ten is sampled.\n")


# ---- the play --------------------------------------------------------------------------------------------------------


def _play(console: Console, options: Options, stage: Stage) -> int:
    registry = load()
    began = time.monotonic()
    outcome = _send(console, stage, scripts(options.seed, options.requests))
    stage.check()
    seconds = time.monotonic() - began
    page = _settled_page(stage, outcome.sent - outcome.probes)
    expected = report.comparable(registry, page)
    sampled = sampled_of(outcome.traces, options.sampled)
    delivered = _wait_for_delivery(stage.receiver, registry, expected, sampled)
    _report_traffic(console, outcome, seconds)
    console.rule("Every promised metric, from /metrics", align="left")
    report.print_metrics(console, registry, page)
    agreed = _report_trace(console, stage.receiver)
    agreed = _report_counts(console, stage, outcome, page) and agreed
    agreed = _report_sampling(console, options, stage.receiver, outcome, sampled) and agreed
    agreed = report.print_differences(console, expected, delivered) and agreed
    _report_next(console, options, stage)
    if options.keep:
        _wait_for_interrupt(console, stage)
    return 0 if agreed and not outcome.broken else 1


def _wait_for_interrupt(console: Console, stage: Stage) -> None:
    """Return when the user presses Ctrl-C."""
    try:
        while True:
            stage.check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("\nStopping everything.")


def _send(console: Console, stage: Stage, users: list[list[Step]]) -> Outcome:
    total = sum(len(steps) for steps in users)
    if not console.is_terminal:
        console.print(f"Sending {total} requests of {len(users)} users…")
        return asyncio.run(send(stage.url, users, lambda: None))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Requests of {len(users)} users", total=total)
        advance: Callable[[], None] = lambda: progress.advance(task)  # noqa: E731 - a callback of one line
        return asyncio.run(send(stage.url, users, advance))


def _settled_page(stage: Stage, sent: int) -> dict[Series, float]:
    """Return what is on /metrics as soon as the service is done with all requests, or when the time for it is over.

    Who leaves early does not wait for the service to notice.
    """
    deadline = time.monotonic() + SETTLING_S
    while True:
        page = stage.page()
        served = sum(series_of(page, "jeeves_http_requests_total").values())
        running_still = sum(series_of(page, "orchestrator_inflight_requests").values())
        if (served >= sent and not running_still) or time.monotonic() > deadline:
            return page
        time.sleep(0.1)


def sampled_of(traces: Iterable[str], ratio: float) -> set[str]:
    """Return those of *traces* (ids, 32 hexadecimal digits) that the sampler keeps: the id alone decides."""
    sampler = TraceIdRatioBased(ratio)
    keep = Decision.RECORD_AND_SAMPLE
    return {trace for trace in traces if sampler.should_sample(None, int(trace, 16), "").decision is keep}


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


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
        body: bytes = response.read()
    return body.decode()


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
    calls = float(_read(f"{stage.model_url}/calls").partition(":")[2].strip("} \n"))
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
