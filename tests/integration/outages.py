# SPDX-License-Identifier: Apache-2.0
"""What the sidecar makes of outages: what it has acknowledged, and what of that arrives, is lost, or arrives twice.

``make outage`` prints the table of docs/reliability.md. Real Collector, real Prometheus behind a door that fails as it
is told, and a receiver of OTLP over gRPC in place of the trace backend.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from jeeves_otel.demo.parts import cached
from tests.helpers import poll_until
from tests.integration.backends import HANGS, INVALID, OK, REFUSES, UNAVAILABLE, Door, Spans
from tests.integration.collectors import Sidecar, counter, may_mount, resource, send, span, spans, text
from tests.integration.prometheus_server import Prometheus, prometheus_of_the_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.05
SMALL_DISK = "512k"
SPANS_EACH = 20
COUNTER = "outage_events_total"
SERVICE = resource(service_name="under-load", service_instance_id="one")


class Load:
    """A client that sends spans and one count twenty times a second, and notes what was acknowledged."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.spans: set[bytes] = set()
        self.samples: dict[int, int] = {}
        self.requests = 0
        self.unacknowledged = 0
        self.slowest_s = 0.0
        self._sidecar = sidecar
        self._over = Event()
        self._number = 0
        self._began_ms = time.time_ns() // 1_000_000
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.send(SPANS_EACH)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self._over.wait(max(0.0, EVERY_S - (time.monotonic() - began)))

    def send(self, count: int) -> None:
        """Send *count* spans in one request, and the next value of the counter in another."""
        raised = Span.Event(name="exception", attributes=[text("exception.type", "TimeoutError")])
        made = [span(self._number + each, attributes={"note": "x" * 300}, events=[raised]) for each in range(count)]
        self._number += count
        self.requests += 1
        if send(self._sidecar, spans(SERVICE, *made)):
            self.spans |= {each.span_id for each in made}
        else:
            self.unacknowledged += count
        now_ms = time.time_ns() // 1_000_000
        if send(self._sidecar, counter(SERVICE, COUNTER, self._number, now_ms, self._began_ms)):
            self.samples[now_ms] = self._number

    def stop(self) -> None:
        """Stop sending."""
        self._over.set()
        self._thread.join(30)


@dataclass
class Scene:
    """What is running."""

    sidecar: Sidecar
    jaeger: Spans
    door: Door
    alertmanager: Door
    prometheus: Prometheus
    load: Load
    outage_s: float
    overlays: tuple[Path | str, ...]
    stop_s: float = 0.0

    def lasts(self) -> None:
        """Let time pass under load."""
        time.sleep(self.outage_s)

    def restart(self, end: Callable[[], object]) -> None:
        """End the Collector, and start it again on the same queue."""
        end()
        self.sidecar.start(*self.overlays)

    def stored(self) -> dict[int, int]:
        """Return the samples of the counter in Prometheus, ``{time in ms: value}``."""
        series = self.prometheus.samples(COUNTER)
        return {round(at * 1000): int(value) for _, samples in series for at, value in samples}


@dataclass(frozen=True)
class Case:
    """One outage: what is done while the load goes on, and what of the environment is not the default."""

    name: str
    happens: Callable[[Scene], None]
    drops: bool = False  # what was acknowledged is refused for good, which nobody can repair
    overlays: tuple[str, ...] = ()
    extra: str = ""  # a further overlay
    variables: dict[str, str] = field(default_factory=dict)
    small_disk: bool = False


@dataclass
class Outcome:
    """What came of one case; spans, then samples of the counter."""

    case: str
    acknowledged: int
    delivered: int
    lost: int
    duplicated: int
    unacknowledged: int
    samples: int
    samples_lost: int
    last_is_exact: bool
    slowest_s: float
    stop_s: float
    counted_failures: float
    sent_requests: int
    refused_requests: int


def _backends(behaviour: str, *names: str) -> Callable[[Scene], None]:
    def happens(scene: Scene) -> None:
        for name in names:
            getattr(scene, name).behave(behaviour)
        scene.lasts()
        for name in names:
            getattr(scene, name).behave(OK)

    return happens


def _killed(scene: Scene) -> None:
    scene.jaeger.behave(UNAVAILABLE)
    scene.door.behave(UNAVAILABLE)
    scene.lasts()
    scene.restart(scene.sidecar.kill)
    scene.lasts()
    scene.jaeger.behave(OK)
    scene.door.behave(OK)


def _killed_while_all_is_well(scene: Scene) -> None:
    for _ in range(3):
        time.sleep(scene.outage_s / 3)
        scene.restart(scene.sidecar.kill)


def _terminated(scene: Scene) -> None:
    scene.jaeger.behave(UNAVAILABLE)
    scene.door.behave(UNAVAILABLE)
    scene.lasts()

    def end() -> None:
        scene.stop_s = scene.sidecar.stop()

    scene.restart(end)
    scene.jaeger.behave(OK)
    scene.door.behave(OK)


def _oversized(scene: Scene) -> None:
    scene.load.stop()
    scene.load.send(20_000)


BOTH = ("jaeger", "door")
SMALL_QUEUE = "exporters: {alertmanager: {sending_queue: {queue_size: 2}}}\n"
CASES = (
    Case("nothing, for comparison", Scene.lasts),
    *(Case(f"trace backend: {how}", _backends(how, "jaeger")) for how in (REFUSES, UNAVAILABLE, HANGS)),
    *(Case(f"Prometheus: {how}", _backends(how, "door")) for how in (REFUSES, UNAVAILABLE, HANGS)),
    *(Case(f"both: {how}", _backends(how, *BOTH)) for how in (REFUSES, UNAVAILABLE, HANGS)),
    Case("both: 400, which is final", _backends(INVALID, *BOTH), drops=True),
    Case("Collector: kill -9, three times", _killed_while_all_is_well),
    Case("both: 503, Collector: kill -9", _killed),
    Case("both: 503, Collector: SIGTERM", _terminated),
    *(
        Case(
            f"Alertmanager: {how}, its queue full", _backends(how, "alertmanager"), False, ("alerts.yaml",), SMALL_QUEUE
        )
        for how in (REFUSES, UNAVAILABLE, HANGS)
    ),
    Case(
        "both: 503, queues full",
        _backends(UNAVAILABLE, *BOTH),
        variables={"COLLECTOR_TRACES_QUEUE_BYTES": "270000", "COLLECTOR_METRICS_QUEUE_BYTES": "3000"},
    ),
    Case("a request of 20,000 spans", _oversized),
)
# The queue on a file system of its own, in a name space of its own, which not every machine allows.
DISK_FULL = Case("both: 503, disk full", _backends(UNAVAILABLE, *BOTH), small_disk=True)


def observe(case: Case, program: str, folder: Path, *, outage_s: float, timeout: str, patience_s: float) -> Outcome:
    """Run *case* with an outage of *outage_s* seconds.

    Args:
        case: What happens.
        program: Of the Collector.
        folder: For queues, logs and data.
        outage_s: How long each part of the outage lasts.
        timeout: Deadline of one request to a backend, as the Collector spells it.
        patience_s: How long nothing has to arrive before the rest is called lost.
    """
    with ExitStack() as stack:
        jaeger, alertmanager = Spans(), Door(status=200)
        prometheus = stack.enter_context(prometheus_of_the_bundle(folder))
        door = Door(prometheus.url)
        for backend in (jaeger, alertmanager, door):
            stack.callback(backend.stop)
        variables = {
            "COLLECTOR_TRACES_ENDPOINT": f"127.0.0.1:{jaeger.port}",
            "COLLECTOR_REMOTE_WRITE_URL": f"http://127.0.0.1:{door.port}/api/v1/write",
            "COLLECTOR_ALERTMANAGER_URL": f"http://127.0.0.1:{alertmanager.port}",
            "COLLECTOR_TRACES_TIMEOUT": timeout,
            "COLLECTOR_HOP_TIMEOUT": timeout,
        }
        overlays: tuple[Path | str, ...] = case.overlays
        if case.extra:
            (folder / "extra.yaml").write_text(case.extra, encoding="utf-8")
            overlays = (*overlays, folder / "extra.yaml")
        sidecar = Sidecar(program, folder, **{**variables, **case.variables})
        if case.small_disk:
            sidecar.disk_of(SMALL_DISK)
        stack.enter_context(sidecar.running(*overlays))
        load = Load(sidecar)
        stack.callback(load.stop)
        scene = Scene(sidecar, jaeger, door, alertmanager, prometheus, load, outage_s, overlays)
        poll_until(lambda: jaeger.spans and scene.stored(), "the first spans and samples")
        case.happens(scene)
        time.sleep(1)  # the load goes on, so that something comes after the outage
        load.stop()
        _wait_for_the_rest(scene, patience_s)
        return _outcome(case, scene)


def _wait_for_the_rest(scene: Scene, patience_s: float) -> None:
    """Return when everything that was acknowledged is there, or nothing more has come for *patience_s*."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < patience_s:
        stored = scene.stored()
        arrived = {each.span_id for each in list(scene.jaeger.spans)}
        if scene.load.spans <= arrived and scene.load.samples.items() <= stored.items():
            return
        if len(arrived) + len(stored) != before:
            before, since = len(arrived) + len(stored), time.monotonic()
        time.sleep(0.1)


def _outcome(case: Case, scene: Scene) -> Outcome:
    load, stored = scene.load, scene.stored()
    ids = [each.span_id for each in scene.jaeger.spans]
    delivered = load.spans & set(ids)
    lost_samples = load.samples.items() - stored.items()
    failed = "otelcol_exporter_send_failed_spans__spans__total", "otelcol_exporter_send_failed_spans_total"
    counted = 0.0
    with suppress(OSError):
        counted = sum(value for (name, _), value in scene.sidecar.own_metrics().items() if name in failed)
    return Outcome(
        case=case.name,
        acknowledged=len(load.spans),
        delivered=len(delivered),
        lost=len(load.spans) - len(delivered),
        duplicated=len(ids) - len(set(ids)),
        unacknowledged=load.unacknowledged,
        samples=len(load.samples),
        samples_lost=len(lost_samples),
        last_is_exact=stored.get(max(load.samples)) == max(load.samples.values()),
        slowest_s=load.slowest_s,
        stop_s=scene.stop_s,
        counted_failures=counted,
        sent_requests=len(load.samples) + load.requests,
        refused_requests=scene.jaeger.refused + scene.door.refused,
    )


HEAD = (
    "| what happens | spans acknowledged | delivered | lost | twice | not acknowledged | samples acknowledged | lost"
    " | slowest answer, s |\n|---|---|---|---|---|---|---|---|---|"
)


def row(outcome: Outcome) -> str:
    """Return *outcome* as a row of the table."""
    stop = f" (ends in {outcome.stop_s:.1f} s)" if outcome.stop_s else ""
    cells = (
        outcome.case + stop,
        *(
            f"{number:,}"
            for number in (
                outcome.acknowledged,
                outcome.delivered,
                outcome.lost,
                outcome.duplicated,
                outcome.unacknowledged,
                outcome.samples,
                outcome.samples_lost,
            )
        ),
        f"{outcome.slowest_s:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    """Print the table; 1 if anything that was acknowledged and not refused for good is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each outage lasts (default 30)")
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args(arguments)
    program = cached()
    if program is None:
        print("there is no Collector in the cache; build it with: make collector", file=sys.stderr)
        return 1
    failed = False
    print(HEAD, flush=True)
    cases = (*CASES, *((DISK_FULL,) if may_mount() else ()))
    for case in (case for case in cases if options.only in case.name):
        with tempfile.TemporaryDirectory(prefix="outage-") as folder:
            # Longer than the longest pause between two attempts, which is 30 s and half as much by chance.
            outcome = observe(case, program, Path(folder), outage_s=options.seconds, timeout="15s", patience_s=60)
        print(row(outcome), flush=True)
        failed = failed or (not case.drops and (outcome.lost > 0 or outcome.samples_lost > 0))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
