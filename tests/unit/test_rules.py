# SPDX-License-Identifier: Apache-2.0
"""What the rule files are made of, and that each rule in them is played."""

from __future__ import annotations

import json
import operator
import re
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from jeeves_otel import routing
from jeeves_otel.cli import main
from jeeves_otel.documents import Level
from jeeves_otel.generators import alertmanager, rule_tests, rules
from jeeves_otel.objectives import Links
from jeeves_otel.plausibility import examine_all
from jeeves_otel.promql import families_of, family_of, metrics_in
from jeeves_otel.registry import load
from jeeves_otel.samples import samples
from jeeves_otel.specification import FOLDER, own_page
from tests import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jeeves_otel.objectives import Objectives

REGISTRY = load()
OBJECTIVES, FINDINGS = examine_all(REGISTRY)
RULES = {name: yaml.safe_load(text) for name, text in rules.files(OBJECTIVES).items()}
TESTS = rule_tests.suites(OBJECTIVES, families_of(REGISTRY))
EVERY_RULE = [rule for file in RULES.values() for group in file["groups"] for rule in group["rules"]]
ASSERTIONS = [each for file in TESTS.values() for test in file["tests"] for each in test.get("promql_expr_test", ())]
TOLD = [each for file in TESTS.values() for test in file["tests"] for each in test.get("alert_rule_test", ())]


def _own(text: str, tmp_path: Path) -> tuple[Objectives, list[str]]:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    found, findings = examine_all(REGISTRY, [path])
    return found, [finding.id for finding in findings]


def _slo(sli: str = "{share: jeeves_tool_calls_total, bad: {status: error}}", objective: int = 98) -> str:
    """Return the least that an objective is."""
    return f"""
slos:
  tool_success:
    title: Tools
    alert: ToolErrorBudgetBurn
    objective: {objective}
    sli: {sli}
    runbook: {{impact: Agents fail., diagnosis: [], mitigation: [], escalation: Us.}}
"""


def _alert(lines: str) -> str:
    """Return an alert of which *lines* say what matters."""
    return f"""
alerts:
  Own:
    {lines}
    summary: S
    description: D
    runbook: {{impact: I, diagnosis: [], mitigation: [], escalation: E}}
"""


def test_the_packaged_objectives_have_no_findings() -> None:
    """Every metric, label, value and bound that they name is promised by the profile."""
    assert [] == FINDINGS


def test_the_seeds_objectives_and_alerts_are_there_under_their_names() -> None:
    """What teams were promised keeps its name."""
    assert {"pipeline_success_rate", "pipeline_latency_p99", "llm_availability", "database_availability"} <= {
        slo.name for slo in OBJECTIVES.slos
    }
    assert {"HighErrorRate", "HighLatency", "LLMProviderDown", "DatabasePoolExhaustion", "HighInterruptRate"} <= {
        alert.name for alert in OBJECTIVES.alerts
    }


def _asserted(rule: dict[str, Any], test: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what *test* asserts of the alert of *rule*, and of its tier, in order of time."""
    matchers = {
        "alertname": rule["alert"],
        **{key: rule["labels"][key] for key in ("slo", "tier") if key in rule["labels"]},
    }
    found = test.get("promql_expr_test", ())
    of_it = [each for each in found if all(f'{key}="{value}"' in each["expr"] for key, value in matchers.items())]
    return sorted(of_it, key=lambda each: int(each["eval_time"][:-1]))


def _restarts(test: dict[str, Any], counters: set[str]) -> bool:
    """Return whether one of *counters* falls while *test* is played."""
    played = test["input_series"]
    return any(each["series"].partition("{")[0] in counters and _falls(each["values"]) for each in played)


@cache
def _falls(notation: str) -> bool:
    values = [value for value in samples(notation) if value is not None]
    return any(map(operator.gt, values, values[1:]))


def _is_at_floor(test: dict[str, Any], asserted: list[dict[str, Any]]) -> bool:
    """Return whether *test* says of its alert only that it is silent, and a moment later fires: what was missing came."""
    return "enough" in test["name"] and [[], True] == [each["exp_samples"] and True for each in asserted]


def _shown(rule: dict[str, Any], counters: set[str], suites: dict[str, Any] = TESTS) -> set[str]:
    """Return what is shown of the alert of *rule* by the tests of *suites*."""
    shown = set()
    for test in (test for suite in suites.values() for test in suite["tests"]):
        asserted = _asserted(rule, test)
        if not asserted:
            continue
        fires = [bool(each["exp_samples"]) for each in asserted]
        ever = [each for each in asserted if "count_over_time" in each["expr"]]
        shown |= {"fires"} if any(fires) else set()
        shown |= {"silent just before"} if "01" in "".join("01"[each] for each in fires) and ever else set()
        shown |= {"resolves"} if "10" in "".join("01"[each] for each in fires) else set()
        shown |= {"silent with nothing there"} if not test["input_series"] and not any(fires) and ever else set()
        shown |= {"silent in health"} if test["input_series"] and not any(fires) and ever else set()
        shown |= {"right when counters restart"} if _restarts(test, counters) else set()
        shown |= {"silent below its floor"} if _is_at_floor(test, asserted) else set()
    return shown


def _counters(rule: dict[str, Any]) -> set[str]:
    """Return the counters that the alert of *rule* asks, itself or by what is recorded of its own objective."""
    families, asked, pending = families_of(REGISTRY), set(), [rule]
    recorded = {(each.get("record"), each["labels"].get("slo")): each for each in EVERY_RULE if "record" in each}
    while pending:
        each = pending.pop()
        names = set(metrics_in(each["expr"])) - asked
        asked |= names
        slo = each["labels"].get("slo")
        pending += [recorded[name, slo] for name in names if (name, slo) in recorded]
    of_types = {name: family_of(name, families) for name in asked}
    return {name for name, family in of_types.items() if family is not None and family.type in {"counter", "histogram"}}


def _needed(rule: dict[str, Any]) -> set[str]:
    """Return what has to be shown of the alert of *rule*. One fires always: whoever receives it wakes somebody when it stops."""
    if rule["alert"] == "Watchdog":
        return {"fires"}
    floors = {alert.name for alert in OBJECTIVES.alerts if alert.floor}
    return {
        "fires",
        "silent just before",
        "resolves",
        "silent in health",
        "silent with nothing there",
        *(["right when counters restart"] if _counters(rule) else []),
        *(["silent below its floor"] if rule["alert"] in floors or "tier" in rule["labels"] else []),
    }


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if "alert" in rule], ids=lambda rule: rule["alert"])
def test_of_every_alert_is_shown_when_it_fires_and_when_not(rule: dict[str, Any]) -> None:
    """A rule that nobody has seen fire, end, or stay silent, is a guess."""
    assert set() == _needed(rule) - _shown(rule, _counters(rule))


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("nothing at all", {"silent with nothing there"}),
        ("enough", {"silent below its floor"}),
        ("as much", {"resolves"}),
        ("restart|as much", {"resolves", "right when counters restart"}),
        ("is silent", {"silent in health", "silent with nothing there"}),
    ],
)
def test_a_test_that_is_taken_away_is_missed(words: str, missing: set[str]) -> None:
    """Of an alert about a share."""
    (rule,) = (rule for rule in EVERY_RULE if rule.get("alert") == "LLMProviderDown")
    fewer = {
        name: {**suite, "tests": [test for test in suite["tests"] if not re.search(words, test["name"])]}
        for name, suite in TESTS.items()
    }

    assert missing == _needed(rule) - _shown(rule, _counters(rule), fewer)


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if "alert" in rule], ids=lambda rule: rule["alert"])
def test_what_every_alert_says_is_read_by_a_test(rule: dict[str, Any]) -> None:
    """A template that is misspelt shows an empty text, at night."""
    told = [alert for each in TOLD if each["alertname"] == rule["alert"] for alert in each["exp_alerts"]]
    same = [each for each in told if rule["labels"].items() <= each["exp_labels"].items()]

    assert [] != same
    assert set(rule["annotations"]) == set(same[0]["exp_annotations"])
    assert [] == [text for text in same[0]["exp_annotations"].values() if "{{" in text or "<" in text]


def test_every_alert_leads_to_a_runbook_and_every_runbook_belongs_to_an_alert() -> None:
    """As files of this repository, with the headings that whoever is woken looks for."""
    root = Path(__file__).parents[2]
    linked = {
        rule["alert"]: rule["annotations"]["runbook_url"].removeprefix(f"{Links().runbooks}/")
        for rule in EVERY_RULE
        if "alert" in rule
    }
    pages = {path.name: path.read_text(encoding="utf-8") for path in (root / "docs/runbooks").glob("*.md")}
    index = pages.pop("README.md")

    assert Links().runbooks.endswith("/docs/runbooks")
    assert {name: f"{name}.md" for name in linked} == linked
    assert set(pages) == set(linked.values()) == set(re.findall(r"^\| \[\w+\]\((\w+\.md)\)", index, re.MULTILINE))
    assert {("Meaning", "Impact", "Diagnosis", "Mitigation", "Escalation")} == {
        tuple(re.findall(r"^## (\w+)$", text, re.MULTILINE)) for text in pages.values()
    }


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if "record" in rule], ids=lambda rule: rule["record"])
def test_every_recording_rule_has_a_test(rule: dict[str, Any]) -> None:
    """Its value is asked for the objective that it belongs to."""
    asked = f'{rule["record"]}{{slo="{rule["labels"]["slo"]}"}}'

    assert [] != [each for each in ASSERTIONS if asked in each["expr"]]


def test_records_have_the_names_that_queries_may_ask() -> None:
    """No dashboard asks what nobody records."""
    assert OBJECTIVES.records == {rule["record"] for rule in EVERY_RULE if "record" in rule}


def test_thresholds_are_exact_decimals() -> None:
    """One minus 0.995 is not 0.005 in binary."""
    numbers = {number for rule in EVERY_RULE for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", rule["expr"])}

    assert [] == [number for number in numbers if len(number) > len("0.0072")]
    assert {"0.1", "0.072", "0.03", "0.015", "0.005"} <= numbers
    assert Decimal("0.005") == OBJECTIVES.slos[0].budget


def test_no_expression_compares_le_with_one_spelling() -> None:
    """Scraped, a bound of five is written 5.0; pushed, it is 5."""
    assert [] == [rule["expr"] for rule in EVERY_RULE if re.search(r'le="(?!\+Inf)', rule["expr"])]


def test_an_objective_of_a_user_gives_its_rules_and_their_tests(tmp_path: Path) -> None:
    """A few lines of YAML are enough."""
    found, findings = _own(_slo(), tmp_path)
    names = [
        rule.get("alert")
        for group in yaml.safe_load(rules.files(found)["collector/rules/own-own-slos.yaml"])["groups"]
        for rule in group["rules"]
    ]

    assert [] == findings
    assert 5 == names.count("ToolErrorBudgetBurn")
    tiers = ("outage", "fast", "slow", "ticket", "drift")
    assert {
        f"tests/rules/own-own-slos{part}.yaml" for part in ("", "-records", *(f"-{tier}" for tier in tiers))
    } == set(rule_tests.files(found, families_of(REGISTRY)))


def test_a_user_may_have_alerts_and_no_objective(tmp_path: Path) -> None:
    """Rules and tests of the alerts are written, and none of objectives."""
    found, findings = _own(_alert("severity: info\n    query: {rate: jeeves_interrupts_total}\n    above: 1"), tmp_path)

    assert [] == findings
    assert {"collector/rules/own-own.yaml"} == set(rules.files(found))
    assert {"tests/rules/own-own.yaml"} == set(rule_tests.files(found, families_of(REGISTRY)))


@pytest.mark.parametrize(
    ("sli", "finding"),
    [
        ("{share: jeeves_tool_call_total, bad: {status: error}}", "unknown-metric"),
        ("{share: jeeves_tool_calls_total, bad: {state: error}}", "unknown-label"),
        ("{share: jeeves_tool_calls_total, bad: {status: failed}}", "unknown-value"),
        ("{share: jeeves_tool_duration_seconds, bad: {status: error}}", "wrong-type"),
        ("{slower: jeeves_tool_duration_seconds, than: 3}", "not-a-bound"),
        ("{share: jeeves_tool_calls_total, bda: {status: error}}", "unknown-key"),
        ("{rate: jeeves_tool_calls_total}", "not-an-sli"),
        ("{}", "no-query"),
    ],
)
def test_an_objective_about_what_nobody_promises_is_a_finding(sli: str, finding: str, tmp_path: Path) -> None:
    """A dead rule is found before it is deployed."""
    _, findings = _own(_slo(sli), tmp_path)

    assert finding in findings


@pytest.mark.parametrize(
    ("query", "finding"),
    [
        ("{rises: jeeves_otel_internal_error_total}", "unknown-metric"),
        ("{rises: [jeeves_otel_internal_errors_total, jeeves_db_pool_size]}", "wrong-type"),
        ("{rises: jeeves_otel_internal_errors_total, where: {place: lost}}", "unknown-label"),
        ("{rises: []}", "no-value"),
        ("{level: jeeves_db_pool_size}\n    above: 1", "untested-alert"),
    ],
)
def test_a_shape_that_asks_what_nobody_promises_is_a_finding(query: str, finding: str, tmp_path: Path) -> None:
    """Counters that should stand still, and levels."""
    _, findings = _own(_alert(f"severity: info\n    query: {query}"), tmp_path)

    assert [finding] == findings


def test_labels_in_which_alerts_agree_are_labels_of_both() -> None:
    """Where one lacks them, they never agree."""
    labels = {
        **{slo.alert: {"slo", *slo.labels} for slo in OBJECTIVES.slos},
        **{alert.name: {*alert.query.by, *alert.labels} for alert in OBJECTIVES.alerts},
    }
    pairs = [(by, alert.name, equal) for alert in OBJECTIVES.alerts for by, equal in alert.inhibited_by.items()]

    assert 4 == len(pairs)
    assert [] == [pair for pair in pairs if not set(pair[2]) <= labels[pair[0]] & labels[pair[1]]]


def test_alerts_stand_in_the_file_that_their_specification_names(tmp_path: Path) -> None:
    """Those of the Collector can be loaded without those of Jeeves."""
    _, findings = _own("rules: slos\nalerts: {}\n", tmp_path)
    of_the_collector = RULES["collector/rules/collector.yaml"]["groups"][0]["rules"]

    assert ["rules-name"] == findings
    assert {alert.name for alert in OBJECTIVES.alerts if alert.file == "collector"} == {
        rule["alert"] for rule in of_the_collector
    }
    assert {"slos", "alerts", "collector", "objectives", "prometheus", "telemetry"} == {name[16:-5] for name in RULES}


@pytest.mark.parametrize(
    ("query", "finding"),
    [
        ("sum(rate(jeeves_pipeline_executions_total[5m])", "promql-syntax"),
        ("rate(jeeves_pipelines_total[5m])", "unknown-metric"),
        ('rate(jeeves_pipeline_executions_total{outcome="error"}[5m])', "unknown-label"),
        ('rate(jeeves_pipeline_executions_total{status="failed"}[5m])', "unknown-value"),
        ('rate(jeeves_pipeline_duration_seconds_bucket{le="5"}[5m])', "exact-le"),
        ("rate(jeeves_db_pool_size[5m])", "wrong-type"),
    ],
)
def test_an_expression_that_can_not_be_right_is_a_finding(query: str, finding: str, tmp_path: Path) -> None:
    """What is written out is judged like what is generated."""
    _, findings = _own(
        _alert(
            f"severity: info\n    query: {{promql: '{query}'}}\n    cases: {{fires: {{series: {{}}, over: 5m}}, silent: {{series: {{}}}}}}"
        ),
        tmp_path,
    )

    assert [finding] == findings


@pytest.mark.parametrize(
    ("alert", "finding"),
    [
        (
            "query: {level: jeeves_db_pool_size}\n    above: 1\n    cases: {fires: {series: {a: 2}}, silent: {series: {a: 1}}}",
            "no-end",
        ),
        (
            (
                "query: {level: jeeves_db_pool_size}\n    above: 1\n"
                "    cases: {fires: {series: {a: two}, over: 5m}, silent: {series: {a: 1}}}"
            ),
            "not-samples",
        ),
        ("query: {rate: jeeves_interrupts_total}\n    below: 1", "untested-alert"),
        ("query: {share: jeeves_tool_calls_total, bad: {status: error}}\n    above: 0", "untested-alert"),
    ],
)
def test_an_alert_whose_tests_could_not_be_written_is_a_finding(alert: str, finding: str, tmp_path: Path) -> None:
    """Nobody knows when it is over, what there is, or what is still well."""
    _, findings = _own(_alert(f"severity: info\n    {alert}"), tmp_path)

    assert [finding] == [each for each in findings if each != "silent-when-gone"]  # which is advice


def test_an_alert_that_is_written_out_must_bring_its_cases(tmp_path: Path) -> None:
    """Nobody can make up what it should fire at."""
    _, findings = _own(_alert("severity: info\n    query: {promql: jeeves_db_pool_size}"), tmp_path)

    assert ["untested-alert"] == findings


def _mutations() -> list[tuple[str, str]]:
    """Return ``(place, text)``: the packaged file with one value after another taken away, or replaced by what it is not."""
    whole = yaml.safe_load((FOLDER / "jeeves.yaml").read_text(encoding="utf-8"))
    kept = {"slos": {"pipeline_latency_p99"}, "alerts": {"HighLatency", "DatabasePoolExhaustion", "LLMProviderDown"}}
    for section, names in kept.items():
        whole[section] = {name: value for name, value in whole[section].items() if name in names}
    made = []
    for path in _paths(whole):
        for wrong in (None, [], "nonsense", -1):
            copy = json.loads(json.dumps(whole))
            owner = copy
            for step in path[:-1]:
                owner = owner[step]
            owner[path[-1]] = wrong
            made.append((f"{path} {wrong!r}", yaml.safe_dump(copy)))
    return made


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _paths(child, (*path, key))


def test_a_file_of_a_user_never_breaks_the_reader(tmp_path: Path) -> None:
    """Whatever stands where, it is read to its end; and nothing that has no violation fails to be written."""
    quiet = []
    path = tmp_path / "own.yaml"
    for place, text in _mutations():
        path.write_text(text, encoding="utf-8")
        found, findings = examine_all(REGISTRY, [path])
        if not any(finding.level is Level.VIOLATION for finding in findings):
            quiet.append(place)
            rules.files(found)
            rule_tests.suites(found, families_of(REGISTRY))

    assert 0 < len(quiet) < len(_mutations()) / 3


def test_the_command_writes_what_promtool_then_runs(tmp_path: Path) -> None:
    """From a file of one's own to rules, tests and runbooks in a folder of one's own."""
    own = tmp_path / "own.yaml"
    own.write_text(_slo(), encoding="utf-8")
    judged = CliRunner().invoke(main, ["check", str(own)])
    written = CliRunner().invoke(main, ["rules", str(own), "--into", str(tmp_path / "out")])

    assert (0, f"{own}: objectives, no violation\n") == (judged.exit_code, judged.output)
    assert (0, 14) == (written.exit_code, len(written.output.splitlines()))
    assert (tmp_path / "out/docs/runbooks/ToolErrorBudgetBurn.md").is_file()


def test_the_command_reports_every_finding_and_writes_nothing(tmp_path: Path) -> None:
    """Half a set of rules is worse than none."""
    own = tmp_path / "own.yaml"
    own.write_text("slos:\n  a: {objective: 98}\nalerts:\n  b: {}\n", encoding="utf-8")
    written = CliRunner().invoke(main, ["rules", str(own), "--into", str(tmp_path / "out")])

    assert 1 == written.exit_code
    assert {"missing-key", "alert-name"} == set(re.findall(r"\[([\w-]+)\]", written.output))
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_documentation_is_judged_well() -> None:
    """Whoever copies it, from the page or as a file, begins with something that works."""
    page = (FOLDER.parents[2] / "docs/howto/objectives.md").read_text(encoding="utf-8")

    assert f"```yaml\n{examples.SUPPORT.read_text(encoding='utf-8')}```" in page
    assert [] == examples.FINDINGS
    assert ["ToolErrorBudgetBurn", "EventQueueGrows"] == [*examples.PROMISED.runbooks]


def test_the_command_replaces_what_it_has_written_and_nothing_else(tmp_path: Path) -> None:
    """A page that somebody has written by hand stays, and so does everything beside it."""
    own, out = examples.SUPPORT, tmp_path / "out"
    first, again = (CliRunner().invoke(main, ["rules", str(own), "--into", str(out)]) for _ in range(2))
    rule_file = (out / "collector/rules/own-support-slos.yaml").read_text(encoding="utf-8")
    mine = out / "docs/runbooks/README.md"
    mine.write_text("mine\n", encoding="utf-8")
    (out / "collector/rules/own-support-slos.yaml").unlink()
    refused = CliRunner().invoke(main, ["rules", str(own), "--into", str(out)])

    assert (0, 0, 1) == (first.exit_code, again.exit_code, refused.exit_code)
    assert rule_file.startswith(f"# Generated from {own} by `jeeves-otel rules`.\n")
    assert f"{mine} is not from this command" in refused.output
    assert ("mine\n", False) == (
        mine.read_text(encoding="utf-8"),
        (out / "collector/rules/own-support-slos.yaml").exists(),
    )


@pytest.mark.parametrize(
    ("lines", "finding"),
    [
        (
            "severity: info\n    query: {rate: jeeves_interrupts_total}\n    above: 1\n    labels: {severity: x}",
            "reserved-label",
        ),
        (
            "severity: info\n    query: {rate: jeeves_interrupts_total}\n    above: 1\n    labels: {a-b: x}",
            "label-name",
        ),
    ],
)
def test_an_alert_that_would_go_wrong_in_production_is_a_finding(lines: str, finding: str, tmp_path: Path) -> None:
    """One whose routing is lost, one that Prometheus refuses with all others of its file."""
    _, findings = _own(_alert(lines), tmp_path)

    assert [finding] == findings


def _written(tmp_path: Path, *arguments: str) -> dict[str, str]:
    """Return what the command writes, ``{path: text}``."""
    result = CliRunner().invoke(main, ["rules", *arguments, "--into", str(tmp_path / "out")])
    assert 0 == result.exit_code, result.output
    return {
        path.relative_to(tmp_path / "out").as_posix(): path.read_text(encoding="utf-8")
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }


def test_links_lead_to_where_a_user_has_the_pages(tmp_path: Path) -> None:
    """In rules, tests, runbooks and dashboards; nothing of this project is left."""
    wiki, grafana = "https://wiki.example/runbooks", "https://grafana.example/d"
    files = _written(tmp_path, str(examples.SUPPORT), "--runbooks", f"{wiki}/", "--dashboards", grafana)
    rule_file, page = files["collector/rules/own-support.yaml"], files["docs/runbooks/EventQueueGrows.md"]
    (dashboard,) = (text for path, text in files.items() if path.endswith(".json"))

    assert f"runbook_url: {wiki}/EventQueueGrows.md\n" in rule_file
    assert f"dashboard_url: {grafana}/jeeves-own-support\n" in rule_file
    assert f"<{grafana}/jeeves-own-support>" in page
    assert f'"{wiki}/ToolErrorBudgetBurn.md"' in dashboard
    assert [] == [path for path, text in files.items() if Links().runbooks in text or Links().dashboards in text]


def test_packaged_objectives_are_written_by_name_with_links_of_a_user(tmp_path: Path) -> None:
    """As `render` writes them, but for their heads and links; with the dashboards that their links lead to."""
    files = _written(tmp_path, "collector", "--dashboards", "https://grafana.example/d")
    own = yaml.safe_load(files["collector/rules/collector.yaml"])
    urls = {rule["annotations"].pop("dashboard_url") for rule in own["groups"][0]["rules"]}
    packaged = yaml.safe_load(rules.files(OBJECTIVES)["collector/rules/collector.yaml"])
    for rule in packaged["groups"][0]["rules"]:
        rule["annotations"].pop("dashboard_url")

    assert packaged == own
    assert {"https://grafana.example/d/jeeves-collector"} == urls
    assert ["collector/grafana/dashboards/collector.json"] == [path for path in files if path.endswith(".json")]


def test_one_alertmanager_serves_packaged_and_own_alerts(tmp_path: Path) -> None:
    """What the packaged file silences is silenced beside what the user's own alerts say."""
    own = tmp_path / "own.yaml"
    own.write_text(
        _slo()
        + _alert(
            "severity: info\n    query: {rate: jeeves_interrupts_total}\n    above: 1\n    inhibited_by: {ToolErrorBudgetBurn: []}"
        ),
        encoding="utf-8",
    )
    written = yaml.safe_load(_written(tmp_path, str(own))["collector/alertmanager.yaml"])["inhibit_rules"]
    packaged = yaml.safe_load(alertmanager.files(OBJECTIVES, routing.load())["collector/alertmanager.yaml"])

    assert [] == [rule for rule in packaged["inhibit_rules"] if rule not in written]
    assert [['alertname = "Own"']] == [
        rule["target_matchers"] for rule in written if rule not in packaged["inhibit_rules"]
    ]


def test_a_name_that_is_no_file_is_told_from_the_packaged_ones() -> None:
    """With exit code 2 and a way out."""
    result = CliRunner().invoke(main, ["rules", "colector", "--into", "out"])

    assert (2, True) == (result.exit_code, "did you mean `collector`?" in result.output)


def test_files_of_one_name_in_two_folders_share_what_is_written(tmp_path: Path) -> None:
    """Nothing of either is lost."""
    one, other = tmp_path / "a" / "team.yaml", tmp_path / "b" / "team.yaml"
    for path, text in (
        (one, _slo()),
        (other, _alert("severity: info\n    query: {rate: jeeves_interrupts_total}\n    above: 1")),
    ):
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
    files = _written(tmp_path, str(one), str(other))
    page = json.loads(files["collector/grafana/dashboards/own-team.json"])

    assert {"collector/rules/own-team.yaml", "collector/rules/own-team-slos.yaml"} < set(files)
    assert ["Tools", "Own"] == [panel["title"] for panel in page["panels"] if panel["type"] == "row"]


@pytest.mark.parametrize(
    ("q", "written"), [("0.99", "0.99"), ("0.9999999", "0.9999999"), ("0.0000001", "0.0000001"), ("0.5", "0.5")]
)
def test_a_quantile_is_asked_as_it_is_promised(q: str, written: str, tmp_path: Path) -> None:
    """Not rounded, and without an exponent."""
    found, findings = _own(
        _alert(f"severity: info\n    query: {{quantile: jeeves_tool_duration_seconds, q: {q}}}\n    above: 1"), tmp_path
    )

    assert [] == findings
    assert f"histogram_quantile({written}, " in found.alerts[0].query.promql("5m")


def test_a_value_may_be_whatever_a_service_sends(tmp_path: Path) -> None:
    """Two lines, quotes and a backslash: rules and the series of their tests have them as one literal."""
    value = 'a\n"b"\\c'
    sli = f"{{share: jeeves_tool_calls_total, bad: {{tool: {json.dumps(value)}}}}}"
    found, findings = _own(_slo(sli), tmp_path)
    literal = r'tool="a\n\"b\"\\c"'
    recorded = [rule["expr"] for rule in rules.records(found.slos[0]) if rule["record"] == "slo:bad:rate5m"]
    played = [
        each["series"]
        for text in rule_tests.files(found, families_of(REGISTRY)).values()
        for test in yaml.safe_load(text)["tests"]
        for each in test["input_series"]
    ]

    assert [] == findings
    assert [True] == [literal in expression for expression in recorded]
    assert any(literal in series for series in played)
    assert [] == [series for series in played if "\n" in series]


def test_a_long_name_of_a_file_becomes_a_short_one_of_its_own() -> None:
    """Grafana takes no uid of more than 40 characters; two long names that begin alike stay two."""
    short, long, longer, none = map(
        own_page, ("support.yaml", f"{'a' * 29}.yaml", f"{'a' * 30}.yaml", "\N{SNOWMAN}.yaml")
    )

    assert ("own-support", f"own-{'a' * 29}") == (short, long)
    assert 40 == len(f"jeeves-{longer}")
    assert longer == own_page(f"somewhere/{'a' * 30}.yaml") != own_page(f"{'a' * 31}.yaml")
    assert re.fullmatch(r"own-[0-9a-f]{6}", none)


def test_a_service_with_little_traffic_has_floors_of_its_own(tmp_path: Path) -> None:
    """Of the tiers that name them; the others keep theirs."""
    found, findings = _own(f"{_slo()}    tiers: {{outage: {{floor: {{events: 4, bad: 3}}}}, fast: {{}}}}\n", tmp_path)
    outage, fast = (rule["expr"] for rule in rules.burn_alerts(found.slos[0]))

    assert [] == findings
    assert [["3", "4"], ["5", "20"]] == [re.findall(r">= (\d+)", expression) for expression in (outage, fast)]
