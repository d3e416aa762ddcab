# SPDX-License-Identifier: Apache-2.0
"""Break what objectives are about in the running demo, and time how long it takes until somebody is told.

Start it in a checkout with ``make fire-drill``, or ``python -m jeeves_otel.demo.drill``. Every scenario has a stack of its
own, all at once, because an outage of the models breaks pipelines, too, and each needs a healthy past. Intervals, rules
and routes are those of the bundle; only the receivers are replaced, by one that notes when it is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.parse
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from jeeves_otel import routing
from jeeves_otel.demo import incidents, parts, stage
from jeeves_otel.demo.on_call import OnCall, Pace, bundle, make_past
from jeeves_otel.demo.processes import ChildError, terminated_as_interrupted
from jeeves_otel.demo.traffic import send_steadily
from jeeves_otel.registry import load
from jeeves_otel.specification import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jeeves_otel.demo.on_call import Notification
    from jeeves_otel.objectives import Objectives, Slo

PER_SECOND = 4.0  # requests, in each stack
SAMPLED = 0.1  # of the traces, which nobody looks at here
OUTAGE_S, HALF_S = 150.0, 300.0  # goals: from injection to notification
PAST = 1.1  # the healthy past, in longest windows of the fastest tier
TABLE_WIDTH = 220  # columns
FASTEST = 60.0  # times; of the shortest window two seconds are left then, and two samples
PATIENCE = 2  # how long a notification is waited for, in goals


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is broken, and by when somebody must know.

    Args:
        name: What ``--only`` calls it.
        slo: The objective whose alert has to come.
        injected: What is done, in words.
        goal_s: From injection to notification; seconds.
        model: What is wrong with the model server, see `llm_server.Incident`.
        tables: What a migration takes away.
    """

    name: str
    slo: str
    injected: str
    goal_s: float
    model: Mapping[str, float] = field(default_factory=dict)
    tables: tuple[str, ...] = ()


# What breaks half of the events was found by trying; the table says which share it was.
SCENARIOS = (
    Scenario("llm-outage", "llm_availability", "every call of a model fails", OUTAGE_S, {"failing": 1.0}),
    Scenario("llm-half", "llm_availability", "half of the calls of models fail", HALF_S, {"failing": 0.5}),
    Scenario("pipelines", "pipeline_success_rate", "models babble where JSON is asked for", HALF_S, {"babbling": 0.28}),
    Scenario(
        "slow",
        "pipeline_latency_p99",
        "some calls of models take 5.5 s longer",
        HALF_S,
        {"delayed": 0.27, "delay_s": 5.5},
    ),
    Scenario("database", "database_availability", "a migration takes tables away", HALF_S, tables=("turns", "events")),
)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One scenario and the stack in which it is played."""

    scenario: Scenario
    slo: Slo
    stage: stage.Stage
    prometheus: str
    on_call: OnCall
    check: Callable[[], None]

    def begin(self) -> None:
        """Break it."""
        incidents.ask_model(self.stage.model_url, usual=False, **self.scenario.model)
        if self.scenario.tables:
            incidents.rename_tables(self.stage.database, "{}", "{}_old", self.scenario.tables)

    def first(self, since: float) -> Notification | None:
        """Return the first notification of the objective's alert since a moment; seconds of the epoch."""
        wanted = {"alertname": self.slo.alert, "slo": self.slo.name}
        told = [each for each in self.on_call.told() if each.at >= since and wanted.items() <= each.labels.items()]
        return min(told, key=lambda each: each.at, default=None)

    def ask(self, query: str) -> list[dict[str, object]]:
        """Return what Prometheus answers to *query*, now."""
        text = stage.read(f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        found: list[dict[str, object]] = json.loads(text)["data"]["result"]
        return found

    def bad_share(self, seconds: float) -> float | None:
        """Return which share of the events of the last *seconds* was bad, None if Prometheus cannot say."""
        window = f"{max(1, round(seconds))}s"
        found = self.ask(f"({self.slo.sli.bad_rate(window)}) / ({self.slo.sli.total_rate(window)} > 0)")
        return float(found[0]["value"][1]) if found else None  # type: ignore[index]  # as Prometheus writes it


@dataclass(frozen=True, slots=True)
class Told:
    """When what happened, in seconds since the injection; None is never."""

    rehearsal: Rehearsal
    share: float | None
    pending_s: float | None
    firing_s: float | None
    notification: Notification | None
    webhook_s: float | None
    goal_s: float

    @property
    def met(self) -> bool:
        """Whether somebody was told in time, and whoever should be."""
        return self.by_its_receiver and self.webhook_s is not None and self.webhook_s <= self.goal_s

    @property
    def by_its_receiver(self) -> bool:
        """Whether the notification came by the receiver that routing names for its labels."""
        told = self.notification
        return told is not None and told.receiver == routing.load().receiver_of(told.labels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read *arguments* (default: those of the process), run the drill, and return the exit code.

    0 if somebody was told in time of everything, 1 if not or if a part fails, 130 if interrupted.
    """
    names = [each.name for each in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="make fire-drill",
        usage='make fire-drill [ARGS="--only llm-outage …"]',
        description="Let what objectives are about fail in the running demo, and time how long it takes until somebody is told.",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="which scenarios (default: all)")
    parser.add_argument(
        "--faster",
        type=_times,
        default=1.0,
        metavar="TIMES",
        help="divide the windows of all tiers by this, and export and evaluate once a second (default: as it is)",
    )
    options = parser.parse_args(arguments)
    chosen = [each for each in SCENARIOS if each.name in options.only]
    console = stage.console_of_the_user()
    try:
        with terminated_as_interrupted(), ExitStack() as stack:
            return _play(console, stack, chosen, Pace(options.faster))
    except ChildError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nEverything is stopped.")
        return stage.INTERRUPTED


def _times(text: str) -> float:
    """Return how many times faster *text* says."""
    try:
        times = float(text)
    except ValueError:
        times = 0
    if not 0 < times <= FASTEST:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0, up to {FASTEST:g}")
    return times


def _play(console: Console, stack: ExitStack, scenarios: list[Scenario], pace: Pace) -> int:
    objectives, _ = examine(load())
    objectives = pace.scaled(objectives)
    programs = {part: parts.program(part, console.print) for part in parts.PARTS}
    console.print(f"Starting {len(scenarios)} stacks: {', '.join(each.name for each in scenarios)}.")
    rehearsals = [_set_up(stack, programs, each, objectives, pace) for each in scenarios]
    past_s = PAST * max(each.slo.tiers[0].long.seconds for each in rehearsals)
    _let_pass(console, past_s, rehearsals)
    for each in rehearsals:
        if told := each.first(0):
            raise ChildError(
                f"{each.scenario.name}: {each.slo.alert} has come before anything was broken: {told.labels}"
            )
    report = _break(console, rehearsals, pace)
    wide = Console(width=max(console.width, TABLE_WIDTH), highlight=False)
    wide.print(_table(report))
    return 0 if all(each.met for each in report) else 1


def _set_up(
    stack: ExitStack, programs: Mapping[str, str], scenario: Scenario, objectives: Objectives, pace: Pace
) -> Rehearsal:
    """Start everything that one scenario needs, and let healthy traffic begin."""
    on_call = stack.enter_context(OnCall())
    ports = parts.Ports.free()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jeeves-drill-")))
    files = bundle(folder, objectives, pace, on_call.url)
    make_past(folder, parts.beside(programs["prometheus"], "promtool"), objectives, pace, PER_SECOND)
    started = parts.start(stack, programs, ports, folder, files)
    endpoint = f"http://127.0.0.1:{ports.otlp_http}"
    settings = {"OTEL_METRIC_EXPORT_INTERVAL": f"{pace.export_s * 1000:.0f}"}
    demo = stage.set_up(Console(quiet=True), stack, endpoint, sampled=SAMPLED, settings=settings)
    incidents.ask_model(demo.model_url, usual=False)
    _let_users_come(stack, demo.url)

    def check() -> None:
        demo.check()
        for part in started:
            part.check()

    slo = next(each for each in objectives.slos if each.name == scenario.slo)
    return Rehearsal(scenario, slo, demo, f"http://127.0.0.1:{ports.prometheus}", on_call, check)


def _let_users_come(stack: ExitStack, url: str) -> None:
    """Send requests from a thread until *stack* ends."""
    ended = Event()
    thread = Thread(target=lambda: asyncio.run(send_steadily(url, 1, PER_SECOND, ended)), name="users", daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(ended.set)


def _let_pass(console: Console, seconds: float, rehearsals: list[Rehearsal]) -> None:
    """Wait while everything is well, and say once a minute for how long."""
    console.print(f"Healthy traffic, {PER_SECOND:g} requests a second in each, for {seconds / 60:.1f} minutes.")
    began = time.monotonic()
    spoken = 0
    while (passed := time.monotonic() - began) < seconds:
        for each in rehearsals:
            each.check()
        if passed // 60 > spoken:
            spoken = int(passed // 60)
            console.print(f"  {spoken} of {seconds / 60:.1f} minutes")
        time.sleep(min(1.0, max(0.0, seconds - passed)))


def _break(console: Console, rehearsals: list[Rehearsal], pace: Pace) -> list[Told]:
    """Break everything, and return when somebody was told of what; the faults stay until all is known."""
    began = {}
    for each in rehearsals:
        each.begin()
        began[each.scenario.name] = time.time()
        console.print(f"  {each.scenario.name}: {each.scenario.injected}")
    told: dict[str, Notification] = {}
    deadline = time.monotonic() + PATIENCE * max(pace.goal_s(each.scenario.goal_s) for each in rehearsals)
    while len(told) < len(rehearsals) and time.monotonic() < deadline:
        for each in rehearsals:
            each.check()
            name = each.scenario.name
            found = each.first(began[name]) if name not in told else None
            if found is not None:
                told[name] = found
                console.print(f"  {name}: told after {found.at - began[name]:.1f} s")
        time.sleep(0.2)
    return [_told(each, began[each.scenario.name], told.get(each.scenario.name), pace) for each in rehearsals]


def _told(rehearsal: Rehearsal, began: float, notification: Notification | None, pace: Pace) -> Told:
    """Return when the alert that was told of was pending and firing, by the evaluations of Prometheus."""
    states: dict[str, float] = {}
    if notification is not None:
        labels = ",".join(f'{key}="{notification.labels[key]}"' for key in ("alertname", "slo", "tier"))
        for series in rehearsal.ask(f"ALERTS{{{labels}}}[1h]"):
            moments = [float(at) for at, _ in series["values"] if float(at) >= began]  # type: ignore[attr-defined]  # pairs
            states[series["metric"]["alertstate"]] = min(moments) - began  # type: ignore[index]  # labels
    return Told(
        rehearsal=rehearsal,
        share=rehearsal.bad_share(time.time() - began),
        pending_s=min(states.values(), default=None),
        firing_s=states.get("firing"),
        notification=notification,
        webhook_s=notification.at - began if notification else None,
        goal_s=pace.goal_s(rehearsal.scenario.goal_s),
    )


def _table(told: list[Told]) -> Table:
    """Return the report, in Markdown."""
    table = Table(box=box.MARKDOWN)
    for heading in (
        "objective",
        "injected",
        "bad",
        "told of",
        "tier",
        "by",
        "pending",
        "firing",
        "webhook",
        "goal",
        "met",
    ):
        table.add_column(heading, no_wrap=True)
    for each in told:
        first = each.notification
        table.add_row(
            each.rehearsal.slo.name,
            each.rehearsal.scenario.injected,
            f"{each.share:.0%}" if each.share is not None else "",
            first.labels["alertname"] if first else "nothing",
            first.labels["tier"] if first else "",
            first.receiver if first else "",
            _seconds(each.pending_s),
            _seconds(each.firing_s),
            _seconds(each.webhook_s),
            _seconds(each.goal_s),
            "yes" if each.met else "NO",
        )
    return table


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
