# SPDX-License-Identifier: Apache-2.0
"""Our rules beside those of sloth, on the same events under promtool: equal where both do the same, right where they differ."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.demo.parts import beside, cached
from jeeves_otel.generators import rules
from jeeves_otel.generators.incidents import Phase, played
from jeeves_otel.objectives import Objectives
from jeeves_otel.promql import families_of
from jeeves_otel.registry import load
from jeeves_otel.specification import examine

if TYPE_CHECKING:
    from pathlib import Path

    from jeeves_otel.objectives import Slo

PROMETHEUS, SLOTH = cached("prometheus"), cached("sloth")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(PROMETHEUS is None or SLOTH is None, reason="no promtool 3 or no sloth: make prometheus sloth"),
]

# A share of events, and a share of observations of a histogram.
CHOSEN = ("llm_availability", "pipeline_latency_p99")
SHARED_WINDOWS = ("5m", "30m", "1h", "2h", "6h")
EXACT = 1e-12
STEP_S = 120
# What happens in six hours, twenty events per step if nothing else is said.
EVENTS = {
    "all is well": [Phase(180)],
    **{f"{share:.0%} bad": [Phase(30), Phase(60, bad=share), Phase(90)] for share in (0.02, 0.1, 0.5, 1.0)},
    "traffic comes and goes": [
        Phase(20, events=400, bad=0.01),
        Phase(30, events=4, bad=0.5),
        Phase(30, events=1000, bad=0.02),
        Phase(20, events=0),
        Phase(30, events=40, bad=1.0),
        Phase(50, events=1800),
    ],
}


@pytest.fixture(scope="module")
def slos() -> list[Slo]:
    """Return the objectives that are compared."""
    return [slo for slo in examine(load())[0].slos if slo.name in CHOSEN]


@pytest.fixture
def folder(tmp_path: Path, slos: list[Slo]) -> Path:
    """Return a folder with the rules of both, from the same objectives and the same queries."""
    (ours,) = rules.files(Objectives(tuple(slos), ())).values()
    (tmp_path / "ours.yaml").write_text(ours, encoding="utf-8")
    specification = {
        "version": "prometheus/v1",
        "service": "jeeves",
        "slos": [
            {
                "name": slo.name,
                "objective": float(slo.objective),
                "sli": {
                    "events": {
                        "error_query": f"{slo.sli.bad_rate('{{.window}}')} or 0 * {slo.sli.total_rate('{{.window}}')}",
                        "total_query": slo.sli.total_rate("{{.window}}"),
                    }
                },
                "alerting": {"name": "Sloth", "labels": {"slo": slo.name}},
            }
            for slo in slos
        ],
    }
    (tmp_path / "specification.yaml").write_text(yaml.safe_dump(specification), encoding="utf-8")
    command = [SLOTH, "generate", "--no-log", "-i", tmp_path / "specification.yaml", "-o", tmp_path / "sloth.yaml"]
    subprocess.run(map(str, command), check=True, capture_output=True, timeout=60)
    # Its alerts are a group of their own, which may see what was recorded one evaluation before.
    groups = yaml.safe_load((tmp_path / "sloth.yaml").read_text(encoding="utf-8"))["groups"]
    one = {"groups": [{"name": "sloth", "rules": [rule for group in groups for rule in group["rules"]]}]}
    (tmp_path / "sloth.yaml").write_text(yaml.safe_dump(one), encoding="utf-8")
    return tmp_path


def _play(folder: Path, slos: list[Slo], name: str, phases: list[Phase], step_s: int, asked: dict[str, bool]) -> str:
    """Let *phases* happen under both sets of rules, and return what promtool says if *asked*, ``{expression: true?}``, is not so."""
    families = families_of(load())
    series: dict[str, str] = {}
    for slo in slos:
        series |= played(slo.sli, families[slo.sli.family], phases)
    end = f"{(sum(phase.steps for phase in phases) - 1) * step_s}s"
    test: dict[str, Any] = {
        "name": name,
        "interval": f"{step_s}s",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"vector(1) and on () ({expression})",
                "eval_time": end,
                "exp_samples": [{"labels": "{}", "value": 1}] * holds,
            }
            for expression, holds in asked.items()
        ],
    }
    suite = {"rule_files": ["ours.yaml", "sloth.yaml"], "evaluation_interval": f"{step_s}s", "tests": [test]}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    command = [beside(str(PROMETHEUS), "promtool"), "test", "rules", str(folder / "suite.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ended.stdout + ended.stderr if ended.returncode else ""


def _ours(slo: Slo, window: str) -> str:
    return f'(slo:bad:rate{window}{{slo="{slo.name}"}} / (slo:total:rate{window}{{slo="{slo.name}"}} > 0))'


def _theirs(slo: Slo, window: str) -> str:
    return f'slo:sli_error:ratio_rate{window}{{sloth_slo="{slo.name}"}}'


def _firing(matchers: str) -> str:
    return f'(max(ALERTS{{alertstate="firing",{matchers}}}) or vector(0))'


@pytest.mark.parametrize("case", EVENTS)
def test_over_hours_ratios_and_pages_are_those_of_sloth(folder: Path, slos: list[Slo], case: str) -> None:
    """Every shared window has the same ratio, and tiers fast and slow fire when sloth's page does, at every evaluation.

    Before half of its six hours are seen our tier slow waits, and sloth's does not.
    """
    asked = {}
    for slo in slos:
        for window in SHARED_WINDOWS:
            both = f"({_ours(slo, window)} - on () {_theirs(slo, window)})"
            asked[f"count_over_time((abs{both} > {EXACT})[6h:2m])"] = False
            asked[f"count_over_time({both}[6h:2m]) > 150"] = True
        ours, theirs = (
            _firing(f'slo="{slo.name}",tier=~"fast|slow"'),
            _firing(f'slo="{slo.name}",sloth_severity="page"'),
        )
        asked[f"count_over_time(({ours} > {theirs})[6h:2m])"] = False
        asked[f"count_over_time(({ours} != {theirs})[170m:2m])"] = False
        asked[f"count_over_time(({theirs} > 0)[6h:2m]) > 10"] = case not in {"all is well", "2% bad"}

    assert "" == _play(folder, slos, case, EVENTS[case], STEP_S, asked)


def test_no_traffic_is_no_number_with_us_and_no_alert_with_either(folder: Path, slos: list[Slo]) -> None:
    """Sloth divides by zero, and records NaN."""
    asked = {}
    for slo in slos:
        asked[_ours(slo, "5m")] = False
        asked[f"{_theirs(slo, '5m')} == {_theirs(slo, '5m')}"] = False
        asked[_theirs(slo, "5m")] = True
        asked[f'ALERTS{{slo="{slo.name}"}}'] = False

    assert "" == _play(folder, slos, "nothing happens", [Phase(30, events=0)], STEP_S, asked)


def test_over_days_recorded_rates_say_what_raw_counters_do(folder: Path, slos: list[Slo]) -> None:
    """Half of everything is bad after half a day: our ticket is there when sloth's ratios ask for one, within two evaluations.

    Its own alert comes earlier here: without regard to how much was seen, its next tier takes half a day for three.
    """
    asked = {}
    for slo in slos[:1]:
        ours, threshold = _firing(f'slo="{slo.name}",tier="ticket"'), 3 * slo.budget
        asks = f"{_theirs(slo, '2h')} > {threshold} and on () {_theirs(slo, '1d')} > {threshold}"
        theirs = f"(count({asks}) or vector(0))"
        for window in ("1d", "3d"):
            apart = f"abs({_ours(slo, window)} / on () {_theirs(slo, window)} - 1)"
            asked[f"count_over_time(({apart} > 0.03)[1h:5m])"] = False
        asked[f"count_over_time(({ours} != {theirs})[4h:150s]) > 2"] = False
        asked[f"count_over_time(({ours} > 0)[4h:150s]) > 20"] = True

    assert "" == _play(folder, slos[:1], "a bad night", [Phase(300), Phase(40, bad=0.5), Phase(20)], 150, asked)


def test_a_bad_night_with_few_events_is_weighted_by_events(folder: Path, slos: list[Slo]) -> None:
    """Of 144,072 events 72 are bad, one in two thousand; sloth averages ratios of five minutes, and sees a third."""
    day, night = Phase(144, events=1000), Phase(72, events=1, bad=1.0)
    share = 72 / (144 * 1000 + 72)
    asked = {}
    for slo in slos[:1]:
        asked[f"abs({_ours(slo, '30d')} / {share} - 1) < 0.03"] = True
        asked[f"{_theirs(slo, '30d')} > {500 * share}"] = True

    assert "" == _play(folder, slos[:1], "a quiet bad night", [day, night], 150, asked)
