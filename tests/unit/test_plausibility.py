# SPDX-License-Identifier: Apache-2.0
"""plausibility: what could never fire, or always would, what silences nothing, what leads nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.documents import Level
from jeeves_otel.plausibility import examine_all
from jeeves_otel.registry import load
from jeeves_otel.specification import packaged
from tests.prometheus import EXPERIMENTAL, LENGTHS

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
SEVERAL = {"rises": ["jeeves_errors_total", "jeeves_interrupts_total"]}
BY_TOOL = {**SHARE, "by": ["tool"]}
CASES = {"fires": {"series": {"a": 1}, "over": "1m"}, "silent": [{"when": "w", "series": {"a": 0}}]}
OF_SEVERITY = {**CASES, "fires": {**CASES["fires"], "labels": {"severity": "info"}}}


def asking(query: dict[str, Any]) -> dict[str, Any]:
    """Return a runbook with one question."""
    return {**RUNBOOK, "diagnosis": [{"say": "What?", "ask": query}]}


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
        ({"period": "24h", "tiers": ["outage", "fast"]}, []),
        ({"period": "23h", "tiers": ["outage", "fast"]}, ["short-period"]),
        ({"period": "1h", "tiers": ["outage", "fast"]}, ["short-period"]),
        ({"period": "5m", "tiers": ["outage", "fast"]}, ["short-period"]),
        ({"period": "3d"}, []),
        ({"tiers": []}, ["no-tiers"]),
        ({"tiers": {}}, ["no-tiers"]),
        ({"alert": "ServiceException"}, ["routed-name"]),
        ({"alert": "HighLatency"}, ["packaged-name"]),
        ({"labels": {"_team": "tools"}}, []),
        ({"labels": {"__team": "tools"}}, ["label-name"]),
        ({"labels": {"team": "{{ $labels.team }}"}}, ["unknown-template"]),
        ({"labels": {"team": "tools }}"}}, ["unknown-template"]),
        ({"period": "90d"}, ["long-period"]),
        ({"title": "Tools of {{ $labels.tool }}"}, ["unknown-template"]),
        ({"meaning": "{{ $value }} fail."}, ["unknown-template"]),
        ({"meaning": "They work. }}"}, ["unknown-template"]),
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
    ("objective", "tiers", "hint"),
    [
        (90, ["outage", "slow"], "leave it out: `tiers: [slow]`"),
        (90, ["outage"], "promise more than 95.00 %, or name others"),
    ],
)
def test_the_way_out_of_a_tier_that_never_fires_leaves_some(
    objective: int, tiers: list[str], hint: str, tmp_path: Path
) -> None:
    """An empty list is no way out: nobody would be told."""
    found = judged(tmp_path, slos={"own": slo(objective=objective, tiers=tiers)})

    assert [("unfirable-tier", hint)] == [(each.id, each.hint) for each in found]


@pytest.mark.parametrize(("text", "accepted"), LENGTHS.items())
def test_a_length_of_time_is_what_prometheus_takes_for_one(text: str, accepted: bool, tmp_path: Path) -> None:
    """Units from the largest to the smallest, each once, in digits of ASCII, and no more than it can count."""
    found = judged(tmp_path, alerts={"Own": alert(above=0.1, **{"for": text})})

    assert ([] if accepted else ["not-a-duration"]) == ids(found)


@pytest.mark.parametrize(
    ("promql", "by", "expected"),
    [
        ("jeeves_db_pool_size", [], []),
        ("sum(jeeves_db_pool_size)", [], []),
        ("sum(jeeves_db_pool_size)", ["job"], ["other-labels"]),
        ("sum by (job) (jeeves_db_pool_size)", ["job"], []),
        ("sum by (job, instance) (jeeves_db_pool_size)", ["instance", "job"], []),
        ("sum by (job) (jeeves_db_pool_size)", [], ["other-labels"]),
        ("(sum by (job) (jeeves_db_pool_size)) > 5", ["instance"], ["other-labels"]),
        ("-1 < (sum by (job) (jeeves_db_pool_size) > 5)", ["job"], []),
        ("-1 < (sum by (job) (jeeves_db_pool_size) > 5)", ["instance"], ["other-labels"]),
        ('count_values by (job) ("size", jeeves_db_pool_size)', ["job", "size"], []),
        ('count_values by (job) ("size", jeeves_db_pool_size)', ["job"], ["other-labels"]),
        ("sum without (instance) (jeeves_db_pool_size)", ["job"], []),
        ("topk(3, jeeves_db_pool_size)", ["job"], []),
        ("max by (job) (jeeves_db_pool_size) / 2", ["instance"], ["other-labels"]),
        ("rate(jeeves_interrupts_total[$window])", [], []),
        ("rate(jeeves_interrupts_total[$__rate_interval])", [], ["unknown-variable"]),
        ("rate(jeeves_interrupts_total[$__range])", [], ["unknown-variable"]),
        ("rate(jeeves_interrupts_total[${window}])", [], ["unknown-variable"]),
        ("rate(jeeves_interrupts_total[1h$window])", [], ["unknown-variable"]),
        ("rate(jeeves_interrupts_total[$windows])", [], ["unknown-variable"]),
        ('label_replace(jeeves_db_pool_size, "a", "$1", "job", "(.*)")', [], []),
        ("label_replace(jeeves_db_pool_size, 'a', '$1', 'job', `a$x`)", [], []),
        ("rate(jeeves_interrupts_total[9999999y])", [], ["promql-syntax"]),
        ("jeeves_db_pool_size offset 293y", [], ["promql-syntax"]),
        ('jeeves_db_pool_size{job="293y"}', [], []),
        ("rate(jeeves_interrupts_total[30m1h])", [], ["promql-syntax"]),
    ],
)
def test_a_question_that_is_written_out(promql: str, by: list[str], expected: list[str], tmp_path: Path) -> None:
    """It says by which labels it answers, leaves nothing open but its window, and asks for no longer than there can be."""
    assert expected == ids(judged(tmp_path, slos={"own": slo(runbook=asking({"promql": promql, "by": by}))}))


@pytest.mark.parametrize("promql", EXPERIMENTAL)
def test_what_prometheus_has_behind_a_flag_is_a_finding(promql: str, tmp_path: Path) -> None:
    """A file with it is refused as a whole, by a Prometheus that is started as usual."""
    found = judged(tmp_path, slos={"own": slo(runbook=asking({"promql": promql}))})

    assert ["experimental-promql"] == ids(found)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ({"by": ["tool"]}, []),
        ({"by": ["status"]}, ["bad-in-by"]),
        ({"by": ["tool", "status"]}, ["bad-in-by"]),
        ({"bad": {"status": "error", "tool": "a"}, "by": ["tool"]}, []),
        ({"bad": {"status": "error", "tool": "a"}, "by": ["tool", "status"]}, ["bad-in-by"]),
        ({"excluded": {"tool": "a"}, "by": ["tool"]}, []),
    ],
)
def test_a_share_by_what_is_bad_is_all_or_nothing(share: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    """By what is excluded it is a share of each of the others."""
    assert expected == ids(judged(tmp_path, slos={"own": slo(runbook=asking({**SHARE, **share}))}))


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
        (SHARE, 0.5, ["silent-when-gone"]),
        (SHARE, 1, ["silent-when-gone"]),
        (SHARE, 1.1, ["threshold-out-of-reach"]),
        (SLOWER, 0.5, ["silent-when-gone"]),
        (QUANTILE, 0, ["threshold-out-of-reach"]),
        (RATE, 0, ["threshold-out-of-reach"]),
        (QUANTILE, 1, ["silent-when-gone"]),
        (RATE, 0.01, ["silent-when-gone"]),
        (MEAN, 0, ["threshold-out-of-reach"]),
        (MEAN, 1, ["silent-when-gone"]),
        (LEVEL, -10, []),
    ],
)
def test_an_alert_below_a_threshold(query: dict[str, Any], below: float, expected: list[str], tmp_path: Path) -> None:
    """It can be undercut, and need not always be; of a level nobody knows. Of what should not be low, cases say how low it is."""
    tested, untested = (
        ids(judged(tmp_path, alerts={"Own": alert(query=query, below=below, **cases)}))
        for cases in ({"cases": CASES}, {})
    )

    out_of_reach = ["threshold-out-of-reach"]
    assert (expected, expected if expected == out_of_reach else [*expected, "untested-alert"]) == (tested, untested)


def test_that_a_low_rate_is_silent_when_the_service_is_gone_is_advice(tmp_path: Path) -> None:
    """It may be what is meant; another alert says that the service is gone."""
    (found,) = judged(tmp_path, alerts={"Own": alert(query=RATE, below=1, cases=CASES)})

    assert (Level.ADVICE, True) == (found.level, "TelemetryAbsent" in found.hint)


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
        ({"above": 0.5, "below": 0.1}, ["two-thresholds"]),
        ({"query": SEVERAL}, []),
        ({"query": SEVERAL, "above": 5}, ["several-compared"]),
        ({"query": {"rises": ["jeeves_errors_total"]}, "above": 5}, []),
        ({"above": 0.1, "summary": "{{ $value | humanize }} of {{ $labels.tool }}", "query": BY_TOOL}, []),
        ({"above": 0.1, "summary": "Tools {{ $labels.tool fail", "query": BY_TOOL}, ["unknown-template"]),
        ({"above": 0.1, "summary": "Tools {{ $labels.tool\n}}", "query": BY_TOOL}, ["unknown-template"]),
        ({"above": 0.1, "description": "Tools $labels.tool }} fail", "query": BY_TOOL}, ["unknown-template"]),
        # Of labels that the rule adds, Prometheus' texts know nothing.
        ({"above": 0.1, "summary": "{{ $labels.severity }}"}, ["unknown-label"]),
        ({"above": 0.1, "summary": "{{ $labels.team }}", "labels": {"team": "tools"}}, ["unknown-label"]),
        ({"above": 0.1, "labels": {"team": "{{ $value }}"}}, ["unknown-template"]),
        ({"above": 0.1, "labels": {"__team": "tools"}}, ["label-name"]),
        ({"above": 0.1, "labels": {"tool": "some"}}, []),
        ({"above": 0.1, "labels": {"tool": "some"}, "query": BY_TOOL}, ["label-of-series"]),
        (
            {"query": {"promql": "count by (severity) (ALERTS)", "by": ["severity"]}, "cases": OF_SEVERITY},
            ["label-of-series"],
        ),
    ],
)
def test_an_alert(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    """A truth table: what is changed in the least that an alert is, and what is found."""
    assert expected == ids(judged(tmp_path, alerts={"Own": alert(**changes)}))


def test_a_label_that_hides_that_of_a_series_is_found_where_it_is_written(tmp_path: Path) -> None:
    """Of the alert or of its file: two series would be one alert, which Prometheus refuses when both are there."""
    of_the_alert, of_the_file = (
        judged(tmp_path, **labels, alerts={"Own": alert(above=0.1, query=BY_TOOL, **own)})
        for labels, own in (({}, {"labels": {"tool": "some"}}), ({"labels": {"tool": "some"}}, {}))
    )

    assert [("label-of-series", "alerts.Own.labels.tool")] == [(each.id, each.where.key) for each in of_the_alert]
    assert [("label-of-series", "labels.tool")] == [(each.id, each.where.key) for each in of_the_file]
    assert 2 == of_the_file[0].where.line


@pytest.mark.parametrize("name", ["ServiceException", "Watchdog", "NotificationsFailing"])
def test_a_name_of_which_routing_speaks_is_taken(name: str, tmp_path: Path) -> None:
    """Its alert would go to nobody, or to the dead-man's switch."""
    found = judged(tmp_path, alerts={name: alert(above=0.1)})

    assert [("routed-name", f"alerts.{name}")] == [(each.id, each.where.key) for each in found]


def test_a_packaged_name_is_advice_and_beside_the_packaged_file_a_violation(tmp_path: Path) -> None:
    """Whoever loads both has two alerts, or two objectives, of one name."""
    content = {"slos": {"llm_availability": slo()}, "alerts": {"HighLatency": alert(above=0.1)}}
    alone = judged(tmp_path, **content)
    beside = examine_all(REGISTRY, [packaged()["jeeves"], tmp_path / "own.yaml"])[1]
    beside_another = examine_all(REGISTRY, [packaged()["collector"], tmp_path / "own.yaml"])[1]

    assert ["packaged-name", "packaged-name"] == ids(alone) == ids(beside_another)
    assert {Level.ADVICE} == {each.level for each in alone}
    assert {"alerts.HighLatency", "slos.llm_availability"} == {each.where.key for each in alone}
    assert ["duplicate-slo", "duplicate-alert"] == ids(beside)


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


@pytest.mark.parametrize(
    ("equal", "expected"),
    [(["service"], []), (["tool"], []), (["service", "status"], ["unknown-label"]), (["slo"], ["unknown-label"])],
)
def test_an_alert_is_silenced_in_labels_that_the_worse_one_has(
    equal: list[str], expected: list[str], tmp_path: Path
) -> None:
    """One that it lacks never agrees."""
    by_more = {"rate": "jeeves_tool_calls_total", "by": ["tool", "status"]}
    found = judged(
        tmp_path,
        labels={"service": "own"},
        alerts={
            "Own": alert(severity="warning", query=by_more, above=1, inhibited_by={"Worse": equal}),
            "Worse": alert(severity="critical", query=BY_TOOL, above=0.5),
        },
    )

    assert expected == ids(found)


def test_an_objective_has_a_label_that_says_which_it_is(tmp_path: Path) -> None:
    """What is recorded of it has that label, too, and so has an alert that asks it."""
    asked = {"promql": "slo:burn_rate:ratio1h > 1", "by": ["slo"]}
    cases = {"fires": {**CASES["fires"], "labels": {"slo": "own"}}, "silent": CASES["silent"]}
    silenced = alert(severity="warning", query=asked, cases=cases, inhibited_by={"OwnBudgetBurn": ["slo"]})

    assert [] == ids(judged(tmp_path, slos={"own": slo()}, alerts={"Own": silenced}))


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
