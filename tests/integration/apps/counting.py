# SPDX-License-Identifier: Apache-2.0
"""A process that counts, shares a page, and obeys: one command per line of stdin, one JSON answer per line of stdout.

Arguments: the folder, the interval in seconds. Commands: ``add N``, ``page``, ``fork``, ``orphan``, ``change-user``, ``leave``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.registry import load
from jeeves_otel.shared_page import Member
from jeeves_otel.translation import Translator
from jeeves_otel.views import sdk_views

registry = load(("jeeves",))
reader = InMemoryMetricReader()
provider = MeterProvider([reader], views=sdk_views(registry, keep_semconv=False), shutdown_on_exit=False)
meter = provider.get_meter("test")
uses = meter.create_counter("jeeves.feature.usage", "{use}")
runs = meter.create_histogram("jeeves.agent.duration", "s")
sessions = meter.create_up_down_counter("jeeves.sessions.active", "{session}")

collector = PrometheusCollector(reader, Translator(registry))
merges = {metric.name: metric.merge for metric in registry.metrics.values() if metric.type == "gauge"}
member = Member(Path(sys.argv[1]), collector.collect, merges, interval_s=float(sys.argv[2]))
collector.whole = member.whole
sessions.add(1)


def fork() -> str:
    """Let a child forget the member and end; return what it has seen."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        member.forget()
        member.leave()
        os.write(writing, b"forgot" if member.whole() is not None else b"failed")
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 100).decode()


def obey(command: str, *arguments: str) -> Any:
    """Return the answer to one command."""
    if command == "add":
        for _ in range(int(arguments[0])):
            uses.add(1, {"jeeves.feature.name": "x"})
            runs.record(0.5, {"gen_ai.agent.name": "planner"})
        return "ok"
    if command == "page":
        return collector.page()[0]
    if command == "fork":
        return fork()
    if command == "orphan":
        if (child := os.fork()) == 0:  # forgets nothing, and outlives its parent
            signal.pause()
        return child
    if command == "change-user":
        os.setuid(65_534)
        return "ok"
    member.leave()
    return "left"


print(json.dumps(os.getpid()), flush=True)
for line in sys.stdin:
    print(json.dumps(obey(*line.split())), flush=True)
