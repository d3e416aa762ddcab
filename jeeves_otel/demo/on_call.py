# SPDX-License-Identifier: Apache-2.0
"""Stand in for whoever is on call: a webhook that notes when it is told of what, and a bundle whose receivers lead to it.

In: the bundle, and how much faster than in production its windows pass. Out: files for the real parts, and `Notification`s.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import TYPE_CHECKING, Any

import yaml

from jeeves_otel.demo.loopback import LoopbackServer
from jeeves_otel.demo.parts import BUNDLE
from jeeves_otel.generators import incidents, rules
from jeeves_otel.objectives import Objectives
from jeeves_otel.promql import families_of
from jeeves_otel.queries import Duration
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


EXPORT_S = 15.0  # the default of the package
PAST = 1.1  # windows
SHORTEST_S = 1.0  # an interval of the faster form
# What the faster form does not make shorter: whole seconds of export and evaluation, and the ways between.
ALLOWANCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Notification:
    """One alert in one notification: when it came, by which receiver, with which labels."""

    at: float  # seconds of the epoch
    receiver: str
    labels: Mapping[str, str]


class OnCall(LoopbackServer):
    """A webhook on a free port of the loopback interface. Safe from several threads; a context manager."""

    def __init__(self) -> None:
        super().__init__(type("Handler", (_Handler,), {"on_call": self}))
        self._lock = Lock()
        self._told: list[Notification] = []

    def told(self) -> list[Notification]:
        """Return every firing alert of every notification so far, in the order in which they came."""
        with self._lock:
            return list(self._told)

    def take(self, notification: dict[str, Any]) -> None:
        """Note one notification of Alertmanager, version 4 of its webhook."""
        at = time.time()
        firing = [each["labels"] for each in notification["alerts"] if each["status"] == "firing"]
        with self._lock:
            self._told += [Notification(at, notification["receiver"], labels) for labels in firing]


class _Handler(BaseHTTPRequestHandler):
    on_call: OnCall
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.on_call.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Stay silent: the report is what the user wants to read."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much faster than in production windows pass; 1 is production, with the intervals of the bundle."""

    faster: float = 1.0

    @property
    def export_s(self) -> float:
        """Between two exports of a service; seconds."""
        return EXPORT_S if self.faster == 1 else SHORTEST_S

    def goal_s(self, goal_s: float) -> float:
        """Return the goal at this pace; seconds."""
        return goal_s if self.faster == 1 else goal_s / self.faster + ALLOWANCE_S

    def scaled(self, objectives: Objectives) -> Objectives:
        """Return the same objectives with shorter windows in all tiers; symptoms, which the drill does not time, are left out."""
        if self.faster == 1:
            return objectives
        slos = [
            replace(
                slo,
                tiers=tuple(
                    replace(tier, long=self._scaled(tier.long), short=self._scaled(tier.short)) for tier in slo.tiers
                ),
            )
            for slo in objectives.slos
        ]
        return Objectives(tuple(slos), ())

    def _scaled(self, window: Duration) -> Duration:
        milliseconds = round(window.seconds / self.faster * 1000)
        return Duration(f"{milliseconds}ms", milliseconds / 1000)


def bundle(folder: Path, objectives: Objectives, pace: Pace, url: str) -> Path:
    """Make a bundle in *folder* whose receivers are all at *url* and whose windows pass at *pace*; return where it is.

    Everything else is that of the checkout.
    """
    made = folder / "bundle"
    made.mkdir()
    for entry in BUNDLE.iterdir():
        (made / entry.name).symlink_to(entry)
    _write(made / "alertmanager.yaml", _alertmanager(_read(BUNDLE / "alertmanager.yaml"), pace, url))
    if pace.faster != 1:
        (made / "rules").unlink()
        (made / "rules").mkdir()
        for path, text in rules.files(objectives).items():
            (folder / "bundle" / path.removeprefix("collector/")).write_text(text, encoding="utf-8")
        prometheus = _read(BUNDLE / "prometheus.yaml")
        prometheus["global"]["evaluation_interval"] = f"{SHORTEST_S:g}s"
        _write(made / "prometheus.yaml", prometheus)
    return made


def make_past(folder: Path, promtool: str, objectives: Objectives, pace: Pace, per_second: float) -> None:
    """Give Prometheus in *folder* a healthy past, as long as the longest window of raw counters, before it starts.

    Without it, all windows would be as long as the drill, and tiers would alert first whose turn it is not yet.
    """
    families = families_of(load())
    step_s = pace.export_s
    # Windows of days are not asked until half of them was seen.
    length_s = PAST * max(tier.long.seconds for slo in objectives.slos for tier in slo.tiers if not tier.seen)
    steps = int(length_s / step_s)
    began = time.time() - steps * step_s
    healthy = incidents.Phase(steps, per_second * step_s)
    lines = []
    for slo in objectives.slos:
        for series, values in incidents.played(slo.sli, families[slo.sli.family], [healthy]).items():
            start, per_step = _straight(values)
            named = f'{series[:-1]}{"" if series.endswith("{}") else ","}job="past"}}'
            lines += [f"{named} {start + per_step * step:g} {began + step * step_s:.3f}" for step in range(steps)]
    text = folder / "past.txt"
    text.write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
    subprocess.run(  # noqa: S603 - a part of Prometheus
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(text), str(folder / "samples")],
        check=True,
        capture_output=True,
        timeout=60,
    )


def _straight(values: str) -> tuple[float, float]:
    """Return start and step of ``start+step x count``, or of ``start x count``."""
    start, _, per_step = values.partition("x")[0].partition("+")
    return float(start), float(per_step or 0)


def _alertmanager(config: dict[str, Any], pace: Pace, url: str) -> dict[str, Any]:
    """Return *config* with routes, groups and inhibitions as they are, and one webhook for every receiver."""
    config["receivers"] = [{"name": each["name"], "webhook_configs": [{"url": url}]} for each in config["receivers"]]
    # Secrets of those who are replaced.
    config["global"] = {key: value for key, value in config.get("global", {}).items() if not key.endswith("_file")}
    if pace.faster != 1:
        _hurry(config["route"])
    return config


def _hurry(route: dict[str, Any]) -> None:
    if "group_wait" in route:
        route["group_wait"] = f"{SHORTEST_S:g}s"
    for each in route.get("routes", ()):
        _hurry(each)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.unlink()
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
