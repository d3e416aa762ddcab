# SPDX-License-Identifier: Apache-2.0
"""Time the rules of the bundle on a real Prometheus with a month of data: ``python -m bench.rules``.

In: the shipped rules, and a month of what they record, made up, beside hours and a day of counters. Out: how long one evaluation of each group takes, and which
of its rules take longest; milliseconds.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeeves_otel.demo import parts
from jeeves_otel.demo.processes import free_ports, running
from jeeves_otel.demo.stage import read
from jeeves_otel.generators.incidents import Phase, played
from jeeves_otel.promql import families_of
from jeeves_otel.registry import load
from jeeves_otel.specification import examine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.objectives import Slo

STEP_S = 15  # of samples and evaluations, as in production
DAY_S = 86_400
RECORDED_S = 30 * DAY_S
RAW_S = 7 * 3_600  # more than the longest window over counters
INSTANCES = 20  # of the service
RULES = parts.BUNDLE / "rules"
SHOWN = 5  # of the dearest rules
EVALUATIONS_S = 130.0  # long enough for two of the slowest group


def main() -> None:
    """Make the month, start Prometheus, and print what its evaluations took."""
    programs = {"prometheus": parts.program("prometheus", print)}
    objectives, _ = examine(load())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jeeves-bench-")))
        began = time.monotonic()
        samples = _make_month(folder, parts.beside(programs["prometheus"], "promtool"), objectives.slos)
        print(f"{samples:,} samples made in {time.monotonic() - began:.0f} s")
        (port,) = free_ports(1)
        configuration = folder / "prometheus.yaml"
        settings = {"global": {"evaluation_interval": f"{STEP_S}s"}, "rule_files": [str(RULES / "*.yaml")]}
        configuration.write_text(json.dumps(settings), encoding="utf-8")
        command = [
            *(programs["prometheus"], f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'samples'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", *parts.PROMETHEUS_FLAGS),
        ]
        server = stack.enter_context(running("Prometheus", command, parts.clean_environment(), folder / "log"))
        server.wait_until_answering(f"http://127.0.0.1:{port}/-/ready")
        time.sleep(EVALUATIONS_S)
        _report(f"http://127.0.0.1:{port}")


def _make_month(folder: Path, promtool: str, slos: tuple[Slo, ...]) -> int:
    """Give Prometheus in *folder* its past, and return how many samples that is."""
    samples = 0
    now = int(time.time())
    # Day by day: promtool reads all of its input again for every block of two hours.
    for begins in range(now - RECORDED_S, now, DAY_S):
        ends = min(begins + DAY_S, now)
        lines = [line for slo in slos for line in _lines(slo, begins, ends, now)]
        lines += _process_lines(max(begins, now - DAY_S), ends)
        samples += len(lines)
        text = folder / "day.txt"
        text.write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
        command = [promtool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(text), str(folder / "samples")]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - a part of Prometheus
    return samples


def _lines(slo: Slo, begins: int, ends: int, now: int) -> Iterator[str]:
    """Yield what is recorded about *slo* in some stretch of time, and as much of its counters as rules read."""
    for name, level, kept_s in (("total", 20.0, RECORDED_S), ("bad", 0.02, RECORDED_S), ("traffic", 20.0, DAY_S)):
        for at in range(max(begins, now - kept_s), ends, STEP_S):
            # As traffic does, it changes all the time; a constant would be compressed to nothing.
            value = level * (1.5 + math.sin(at / 13_500) + at % 7 / 100)
            yield f'slo:{name}:rate5m{{slo="{slo.name}"}} {value:.6g} {at}'
    for series in played(slo.sli, families_of(load())[slo.sli.family], [Phase(1)]):
        for instance in range(INSTANCES):
            named = f'{series[:-1]}{"" if series.endswith("{}") else ","}instance="{instance}"}}'
            for at in range(max(begins, now - RAW_S), ends, STEP_S):
                yield f"{named} {at - now + RAW_S} {at}"


def _process_lines(begins: int, ends: int) -> Iterator[str]:
    """Yield the last day of every process, which the alert on absent telemetry looks back on."""
    for instance in range(INSTANCES):
        for at in range(begins, ends, STEP_S):
            yield f'process_cpu_seconds_total{{job="jeeves",instance="{instance}"}} {at % 1_000_000 * 0.031:.3f} {at}'


def _report(url: str) -> None:
    groups: list[dict[str, Any]] = json.loads(read(f"{url}/api/v1/rules"))["data"]["groups"]
    print("\n| group | rules | interval | one evaluation |\n|---|---|---|---|")
    for group in groups:
        name, count = group["name"], len(group["rules"])
        print(f"| {name} | {count} | {group['interval']:g} s | {group['evaluationTime'] * 1000:.1f} ms |")
    dearest = sorted(
        ((rule["evaluationTime"], rule) for group in groups for rule in group["rules"]), key=lambda each: -each[0]
    )
    print("\n| dearest rules | evaluation |\n|---|---|")
    for seconds, rule in dearest[:SHOWN]:
        print(f"| {rule['name']} {rule.get('labels', {}).get('slo', '')} | {seconds * 1000:.1f} ms |")
    failed = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    print(f"\nnot evaluated: {failed or 'none'}")


if __name__ == "__main__":
    main()
