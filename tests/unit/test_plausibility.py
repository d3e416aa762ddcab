# SPDX-License-Identifier: Apache-2.0
"""plausibility: what could never fire, or always would, what silences nothing, what leads nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.plausibility import examine_all
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from pathlib import Path

    from jeeves_otel.documents import Finding

REGISTRY = load()
RUNBOOK = {"impact": "I", "diagnosis": [], "mitigation": [], "escalation": "E"}
SHARE = {"share": "jeeves_tool_calls_total", "bad": {"status": "error"}}
SLOWER = {"slower": "jeeves_tool_duration_seconds", "than": 5}
QUANTILE = {"quantile": "jeeves_tool_duration_seconds", "q": 0.99}
RATE = {"rate": "jeeves_interrupts_total"}
MEAN = {"mean": "jeeves_tool_duration_seconds"}
LEVEL = {"level": "jeeves_db_pool_size"}
RISES = {"rises": "jeeves_errors_total"}
CASES = {"fires": {"series": {"a": 1}, "over": "1m"}, "silent": [{"when": "w", "series": {"a": 0}}]}


def slo(**changes: Any) -> dict[str, Any]:
    """Return the least that an objective is, with *changes*."""
    return {"title": "T", "alert": "OwnBudgetBurn", "objective": 98, "sli": SHARE, "runbook": RUNBOOK, **changes}


def alert(**changes: Any) -> dict[str, Any]:
    """Return the least that an alert is, with *changes*."""
    return {"severity": "info", "query": SHARE, "summary": "S", "description": "D", "runbook": RUNBOOK, **changes}


def judged(tmp_path: Path, **content: Any) -> list[Finding]:
    """Return the findings about a file with *content*."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return examine_all(REGISTRY, [path])[1]


def ids(findings: list[Finding]) -> list[str]:
    """Return what *findings* are called."""
    return [finding.id for finding in findings]


def test_what_is_packaged_is_plausible() -> None:
    """Every rule is asked of it, and none has anything to say."""
    assert [] == examine_all(REGISTRY)[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"objective": 90}, ["unfirable-tier", "unfirable-tier"]),
        ({"objective": 90, "tiers": ["slow", "ticket", "drift"]}, []),
        ({"tiers": ["fast", "fast"]}, ["duplicate-tier"]),
        ({"tiers": {"outage": {"floor": {"events": 4, "bad": 3}}, "fast": None}}, []),
        ({"tiers": {"outage": {"floor": {"events": 3, "bad": 4}}}}, ["floor"]),
        ({"tiers": {"outage": {"floor": {"events": 3}}}}, ["missing-key"]),
        ({"tiers": {"outage": {"burn": 3}}}, ["unknown-key"]),
        ({"tiers": {"outrage": None}}, ["unknown-key"]),
        ({"period": "1d"}, ["short-period"]),
        ({"period": "1d", "tiers": ["outage", "fast"]}, []),
        ({"period": "3d"}, []),
        ({"period": "90d"}, ["long-period"]),
        ({"title": "Tools of {{ $labels.tool }}"}, ["unknown-template"]),
        ({"meaning": "{{ $value }} fail."}, ["unknown-template"]),
        ({"sli": {**SHARE, "excluded": {"status": "error"}}}, ["bad-and-excluded"]),
        ({"sli": {**SHARE, "bad": {"status": ["error", "success"]}}}, ["all-bad"]),
        ({"sli": {**SHARE, "excluded": {"status": "success"}}}, ["all-bad"]),
        ({"sli": SLOWER}, []),
        ({"dashboard": "llm"}, []),
        ({"dashboard": "own-own"}, []),
        ({"dashboard": "lllm"}, ["unknown-dashboard"]),
    ],
)
def test_an_objective(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    """A truth table: what is changed in the least that an objective is, and what is found."""
    assert expected == ids(judged(tmp_path, slos={"own": slo(**changes)}))


@pytest.mark.parametrize(
    ("query", "above", "expected"),
    [
        (SHARE, 0, ["untested-alert"]),
        (SHARE, 0.5, []),
        (SHARE, 1, ["threshold-out-of-reach"]),
        (SHARE, 5, ["threshold-out-of-reach"]),
        (SHARE, -0.1, ["threshold-out-of-reach"]),
        (SLOWER, 0.99, []),
        (SLOWER, 1, ["threshold-out-of-reach"]),
        (QUANTILE, 1, []),
        (QUANTILE, 10_000, ["threshold-out-of-reach"]),
        (RATE, 10_000, []),
        (RATE, -1, ["threshold-out-of-reach"]),
        (RISES, 5, []),
        (RISES, -5, ["threshold-out-of-reach"]),
    ],
)
def test_an_alert_above_a_threshold(query: dict[str, Any], above: float, expected: list[str], tmp_path: Path) -> None:
    """It can be exceeded, and need not always be."""
    assert expected == ids(judged(tmp_path, alerts={"Own": alert(query=query, above=above)}))


@pytest.mark.parametrize(
    ("query", "below", "expected"),
    [
        (SHARE, 0, ["threshold-out-of-reach"]),
        (SHARE, 0.5, []),
        (SHARE, 1, []),
        (SHARE, 1.1, ["threshold-out-of-reach"]),
        (QUANTILE, 0, ["threshold-out-of-reach"]),
        (RATE, 0, ["threshold-out-of-reach"]),
        (RATE, 0.01, []),
        (MEAN, 0, ["threshold-out-of-reach"]),
        (LEVEL, -10, []),
    ],
)
def test_an_alert_below_a_threshold(query: dict[str, Any], below: float, expected: list[str], tmp_path: Path) -> None:
    """It can be undercut, and need not always be; of a level nobody knows. Of what should not be low, cases say how low it is."""
    tested, untested = (
        ids(judged(tmp_path, alerts={"Own": alert(query=query, below=below, **cases)}))
        for cases in ({"cases": CASES}, {})
    )

    assert (expected, expected or ["untested-alert"]) == (tested, untested)


def test_the_last_bound_of_a_histogram_is_out_of_reach(tmp_path: Path) -> None:
    """Above it Prometheus answers with the bound itself, which is not above itself."""
    top = REGISTRY.metrics["jeeves_tool_duration_seconds"].buckets[-1]
    at, below = (
        judged(tmp_path, alerts={"Own": alert(query=QUANTILE, above=above)}) for above in (top, round(top * 0.99, 6))
    )

    assert (["threshold-out-of-reach"], []) == (ids(at), ids(below))
    assert f"from 0 to {top:g}" in at[0].hint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["no-threshold"]),
        ({"query": RISES}, []),
        ({"above": 0.1, "window": "59s"}, ["short-window"]),
        ({"above": 0.1, "window": "1m"}, []),
        ({"above": 0.1, "floor": 5}, []),
        ({"query": RATE, "above": 1, "floor": 5}, ["no-floor"]),
        ({"above": 0.1, "dashboard": "nowhere"}, ["unknown-dashboard"]),
        ({"above": 0.1, "query": {**SHARE, "excluded": {"status": "error"}}}, ["bad-and-excluded"]),
    ],
)
def test_an_alert(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    """A truth table: what is changed in the least that an alert is, and what is found."""
    assert expected == ids(judged(tmp_path, alerts={"Own": alert(**changes)}))


@pytest.mark.parametrize(
    ("worse", "equal", "expected"),
    [
        ("critical", ["service"], []),
        ("warning", ["service"], ["not-worse"]),
        ("info", ["service"], ["not-worse"]),
        ("critical", ["instance"], ["unknown-label"]),
    ],
)
def test_an_alert_is_silenced_by_a_worse_one_in_labels_that_it_has(
    worse: str, equal: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Else it is never silenced, or always: labels that both lack agree."""
    found = judged(
        tmp_path,
        labels={"service": "own"},
        alerts={
            "Own": alert(severity="warning", above=0.1, inhibited_by={"Worse": equal}),
            "Worse": alert(severity=worse, above=0.5),
        },
    )

    assert expected == ids(found)


@pytest.mark.parametrize(("severity", "expected"), [("warning", []), ("critical", ["not-worse"])])
def test_an_objective_silences_by_its_worst_tier(severity: str, expected: list[str], tmp_path: Path) -> None:
    """What is critical itself is not silenced by a page."""
    found = judged(
        tmp_path,
        labels={"service": "own"},
        slos={"own": slo()},
        alerts={"Own": alert(severity=severity, above=0.1, inhibited_by={"OwnBudgetBurn": ["service"]})},
    )

    assert expected == ids(found)


def test_nobody_is_silenced_by_an_alert_that_is_not_there(tmp_path: Path) -> None:
    """A misspelt name is told from the right one."""
    found = judged(
        tmp_path,
        labels={"service": "own"},
        slos={"own": slo()},
        alerts={"Own": alert(severity="warning", above=0.1, inhibited_by={"OwnBudgetBurm": ["service"]})},
    )

    assert [("unknown-alert", "did you mean `OwnBudgetBurn`?")] == [(each.id, each.hint) for each in found]


def test_two_alerts_of_one_name_would_share_a_runbook(tmp_path: Path) -> None:
    """Of two objectives, or of an objective and an alert; the finding says where the first one is."""
    found = judged(
        tmp_path,
        slos={"one": slo(), "other": slo()},
        alerts={"OwnBudgetBurn": alert(above=0.1)},
    )

    assert ["duplicate-alert", "duplicate-alert"] == ids(found)
    assert all("own.yaml:2 slos.one" in each.message for each in found)


def test_what_could_not_be_read_is_not_judged_too(tmp_path: Path) -> None:
    """One mistake gives one finding."""
    found = judged(
        tmp_path, alerts={"Own": alert(query={"share": "jeeves_tool_call_total", "bad": {"status": "error"}})}
    )

    assert ["unknown-metric"] == ids(found)


def test_a_finding_names_file_line_key_and_way_out(tmp_path: Path) -> None:
    """So that an editor can go there."""
    (found,) = judged(tmp_path, alerts={"Own": alert(above=5)})

    assert f"{tmp_path / 'own.yaml'}:2 alerts.Own.above" == str(found.where)
    assert "write 0.05 for 5 %" in found.hint
