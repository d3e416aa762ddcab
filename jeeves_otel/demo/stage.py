# SPDX-License-Identifier: Apache-2.0
"""Put the service of the demo on stage: model server, kernel and gateway, as a user would start them.

In: where telemetry goes, and ports. Out: a `Stage` with everything running, which the caller's stack ends again.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jeeves_otel.demo import incidents
from jeeves_otel.demo.processes import environment_without, free_ports, running
from jeeves_otel.demo.samples import parse, series_of, total
from jeeves_otel.demo.store import Store
from jeeves_otel.demo.traffic import Outcome, Step, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import ExitStack

    from jeeves_otel.demo.processes import Child
    from jeeves_otel.demo.samples import Series

PLAIN_WIDTH = 100  # columns, where there is no terminal to ask
SETTLING_S = 5.0  # the longest that the service may work on after the last answer
INTERRUPTED = 130  # what shells expect after Ctrl-C
# What telemetry reads stays out, so that the demo is the same everywhere.
_TELEMETRY = ("OTEL_", "JEEVES_OTEL_", "METRICS_", "OPENAI_")


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the loopback interface; 0 stands for any free one."""

    gateway: int = 0
    metrics: int = 0
    kernel_metrics: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running."""

    gateway: Child
    kernel: Child
    url: str
    metrics_urls: tuple[str, ...]
    model_url: str
    database: Path

    def check(self) -> None:
        """Raise `ChildError` if a process of the service has ended."""
        self.gateway.check()
        self.kernel.check()

    def page(self) -> dict[Series, float]:
        """Return what gateway and kernel have on /metrics, added up."""
        return total(parse(read(url)) for url in self.metrics_urls)


def console_of_the_user() -> Console:
    """Return a console that is as wide as the terminal, or readable without one."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def set_up(
    console: Console,
    stack: ExitStack,
    endpoint: str,
    *,
    seed: int = 1,
    sampled: float = 1.0,
    ports: Ports = Ports(),
    settings: Mapping[str, str] | None = None,
) -> Stage:
    """Start everything, and let *stack* end it, the gateway first.

    Args:
        console: Where the commands are shown.
        stack: Ends what is started here.
        endpoint: URL of OTLP over HTTP.
        seed: Of the language model.
        sampled: Share of the traces that are sampled; ratio, 0..1.
        ports: Where the service is to be found.
        settings: More variables for gateway and kernel.

    Raises:
        ChildError: A process does not start.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jeeves-demo-")))
    database = folder / "demo.db"
    # Before kernel and gateway, which start at the same time: each would find it empty, and one of them fail.
    Store(f"sqlite:///{database}").close()
    port, metrics_port, kernel_port, kernel_metrics_port, model_port = _chosen(ports)
    launched = _Launched(stack, environment_without(*_TELEMETRY), folder)
    model_url = f"http://127.0.0.1:{model_port}"
    model = launched.start(
        "model",
        ["-m", "jeeves_otel.demo.llm_server", "--port", str(model_port)],
        {"JEEVES_DEMO_SEED": str(seed)},
    )
    shared = {**_of_both(endpoint, sampled, database), **(settings or {})}
    kernel_settings = {
        "OTEL_SERVICE_NAME": "jeeves-kernel",
        **shared,
        "METRICS_PORT": str(kernel_metrics_port),
        **_of_the_model(model_port),
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
    gateway = launched.start("gateway", gateway_command, gateway_settings)
    kernel.wait_until_listening(kernel_port)
    model.wait_until_answering(f"{model_url}/calls")
    gateway.wait_until_answering(f"http://127.0.0.1:{port}/metrics")
    pages = tuple(f"http://127.0.0.1:{each}/metrics" for each in (metrics_port, kernel_metrics_port))
    return Stage(gateway, kernel, f"http://127.0.0.1:{port}", pages, model_url, database)


def _chosen(ports: Ports) -> tuple[int, int, int, int, int]:
    """Return the ports of the gateway, its page, the kernel, its page, and the models."""
    gateway, metrics, kernel, kernel_metrics, model = free_ports(5)
    pages = ports.metrics or metrics, ports.kernel_metrics or kernel_metrics
    return ports.gateway or gateway, pages[0], kernel, pages[1], model


def _of_both(endpoint: str, sampled: float, database: Path) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_SAMPLER_ARG": f"{sampled:g}",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "DATABASE_URL": f"sqlite:///{database}",
    }


def _of_the_model(port: int) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "none-needed",
        "LLAMASERVER_URL": f"http://localhost:{port}/v1",
        "JEEVES_OTEL_LLM_PROVIDERS": f"llamaserver=http://localhost:{port}",
    }


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


def _announce(console: Console, *processes: tuple[list[str], dict[str, str]]) -> None:
    console.rule("The service, as you would start it", align="left")
    for command, settings in processes:
        for name, value in settings.items():
            console.print(f"  {name}={value}", markup=False, soft_wrap=True)
        console.print(f"  opentelemetry-instrument python {' '.join(command)}\n", markup=False, soft_wrap=True)
    console.print("Without OTEL_TRACES_SAMPLER_ARG one trace in ten is sampled.\n")


def send_all(console: Console, stage: Stage, users: list[list[Step]], kind: str | None = None) -> Outcome:
    """Send what *users* ask, show how far it is, and return what came back.

    With a *kind* of incident, something is wrong while the second half of the users ask.
    """
    if kind is None:
        return _send(console, stage, users)
    well, unwell = users[: len(users) // 2], users[len(users) // 2 :]
    outcome = _send(console, stage, well)
    console.print(f"From now on {incidents.KINDS[kind]}.")
    with incidents.incident(kind, stage):
        outcome.add(_send(console, stage, unwell))
    return outcome


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


def settled_page(stage: Stage, sent: int) -> dict[Series, float]:
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


def read(url: str) -> str:
    """Return the body of *url*, which is one of ours."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
        body: bytes = response.read()
    return body.decode()


def wait_for_interrupt(console: Console, check: Callable[[], None]) -> None:
    """Return when the user presses Ctrl-C, unless *check*, once a second, raises."""
    try:
        while True:
            check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("\nStopping everything.")
