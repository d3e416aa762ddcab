# SPDX-License-Identifier: Apache-2.0
"""Every panel, every question of a runbook and every rule is answered with data, scraped and through the Collector."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from jeeves_otel import specification
from jeeves_otel.dashboards import examine
from jeeves_otel.demo.parts import cached
from jeeves_otel.generators import dashboards as generated, runbooks
from jeeves_otel.promql import families_of
from jeeves_otel.registry import load
from tests import examples
from tests.integration import pint
from tests.integration.panel_feeds import FEEDS, HEALTHY, INCIDENT, Run, run as played

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jeeves_otel.dashboards import Panel
    from jeeves_otel.queries import Query

PINT = cached("pint") or ""
PROGRAMS = {part: cached(part) for part in ("collector", "prometheus", "alertmanager")}
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(None in PROGRAMS.values(), reason="a part is not built: make collector prometheus alertmanager"),
]

REGISTRY = load()
PROMISED, _ = specification.examine(REGISTRY)
PACKAGED, _ = examine(families_of(REGISTRY), PROMISED)
DASHBOARDS = (*PACKAGED, examples.DASHBOARD)
PANELS: dict[str, tuple[Panel, dict[str, Any]]] = {
    f"{dashboard.name}: {panel.title}": (panel, rendered)
    for dashboard in DASHBOARDS
    for panel, rendered in zip(
        [panel for row in dashboard.rows for panel in row.panels],
        [each for each in generated.page(dashboard)["panels"] if each["type"] != "row"],
        strict=True,
    )
}
# Questions that nothing in `panel_feeds` gives an answer to, and why; the only place for them.
UNANSWERED: dict[str, str] = {}
# Labels that alerts on an objective have, and others do not.
OF_SOME_ALERTS = {"slo", "tier"}
STEPS: dict[str, Query] = {
    f"{name}: {step.say}": step.ask
    for name, runbook in [
        *((slo.alert, slo.runbook) for slo in PROMISED.slos),
        *((alert.name, alert.runbook) for alert in PROMISED.alerts),
    ]
    for step in runbook.diagnosis
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Yield what two servers know of the demo, well and unwell."""
    programs = {part: path for part, path in PROGRAMS.items() if path}
    with played(programs, tmp_path_factory.mktemp("panels")) as found:
        yield found


def _answers(run: Run, feed: str, phase: str, rendered: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [run.series(feed, phase, target) for target in rendered["targets"]]


def _has_numbers(series: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(value) for each in series for value in each["values"])


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", PANELS)
def test_a_panel_shows_something(name: str, feed: str, run: Run) -> None:
    """Every query of it has an answer with a number, in health, or in an incident if that is what it is about."""
    panel, rendered = PANELS[name]
    answers = _answers(run, feed, INCIDENT if panel.incident else HEALTHY, rendered)
    empty = [
        target["expr"] for target, series in zip(rendered["targets"], answers, strict=True) if not _has_numbers(series)
    ]

    if panel.missing:
        assert empty, f"there is data: take `missing: {panel.missing}` away"
    else:
        assert [] == empty


@pytest.mark.parametrize("feed", FEEDS)
def test_a_panel_whose_source_nobody_sends_is_found(feed: str, run: Run) -> None:
    """The other tests can fail: on a name that does not exist, and on one that is there with nothing in it."""
    for expression in ("sum(rate(jeeves_nobody_sends_this_total[$__rate_interval]))", "vector(0) / vector(0)"):
        for instant in (True, False):
            assert not _has_numbers(run.series(feed, INCIDENT, {"expr": expression, "instant": instant}))


@pytest.mark.parametrize("phase", [HEALTHY, INCIDENT])
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", PANELS)
def test_lines_of_a_panel_are_told_apart_and_in_its_unit(name: str, feed: str, phase: str, run: Run) -> None:
    """They have the labels that are asked by, no more and no less; a share is at most 1, no process has a thousand bytes."""
    panel, rendered = PANELS[name]
    answers = _answers(run, feed, phase, rendered)
    numbers = [value for series in answers for each in series for value in each["values"] if not math.isnan(value)]
    least, most = _range(panel)

    assert [set() for _ in panel.asks] == [
        _unexpected(ask.query, series) for ask, series in zip(panel.asks, answers, strict=True)
    ]
    assert [] == [value for value in numbers if math.isinf(value) or not least <= value <= most]


def _unexpected(query: Query, series: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Return the sets of labels in *series* that are not those of *query*."""
    found = {tuple(sorted(set(each["metric"]) - {"__name__"})) for each in series}
    return {labels for labels in found if set(labels) | (OF_SOME_ALERTS & set(query.by)) != set(query.by)}


def _range(panel: Panel) -> tuple[float, float]:
    """Return what a number of *panel* can be; what is left of a budget can be less than nothing."""
    if panel.unit == "percentunit":
        return (-math.inf if panel.title == "Budget left" else 0.0), 2.0 if panel.title == "CPU" else 1.0
    return {"bytes": (1e6, 1e11), "s": (0.0, 60.0)}.get(panel.unit, (0.0, 1e6))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", STEPS)
def test_a_question_of_a_runbook_is_answered(name: str, feed: str, run: Run) -> None:
    """While something is wrong, at least by the labels that the next step needs."""
    query = STEPS[name]
    series = run.series(feed, INCIDENT, {"expr": query.promql(runbooks.WINDOW), "instant": True})

    assert _has_numbers(series) == (name not in UNANSWERED)
    assert [] == [each["metric"] for each in series if not set(query.by) <= set(each["metric"])]


@pytest.mark.parametrize("feed", FEEDS)
def test_every_rule_is_evaluated(feed: str, run: Run) -> None:
    """Without an error, since the beginning."""
    rules = [rule for group in run.feeds[feed].get("rules")["groups"] for rule in group["rules"]]

    assert len(rules) > len(PROMISED.records)
    assert [] == [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"]


@pytest.mark.parametrize("feed", FEEDS)
def test_every_record_is_there(feed: str, run: Run) -> None:
    """For each objective that has one."""
    recorded = run.feeds[feed].get("series", **{"match[]": '{__name__=~"slo:.*", slo!=""}'})
    found = {(each["slo"], each["__name__"]) for each in recorded}

    assert set() == {(slo.name, record) for slo in PROMISED.slos for record in slo.records} - found


@pytest.mark.parametrize("feed", FEEDS)
def test_every_metric_that_a_rule_asks_exists(feed: str, run: Run) -> None:
    """An alert on a metric that nobody sends would never fire, and nobody would know."""
    names = set(run.feeds[feed].get("label/__name__/values"))
    rules = [rule for group in run.feeds[feed].get("rules")["groups"] for rule in group["rules"]]
    asked = {
        name
        for rule in rules
        for name in re.findall(
            r"\b(?:alertmanager|jeeves|otelcol|process|prometheus|slo)[\w:]+(?=[{\[)\s]|$)", rule["query"]
        )
    }

    assert len(asked) > len(names & set(PROMISED.records))
    assert set() == asked - names


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("llm: Provider errors", 0.95),
        ("llm: LLM errors as agents see them", 0.95),
        ("pipeline: Success by pipeline", None),
        ("infra: Query errors", 0.95),
        ("service: Latency percentiles", 5.0),
        ("pipeline: Runs slower than promised", 0.5),
    ],
)
def test_an_incident_is_seen_where_its_runbook_leads(name: str, above: float | None, feed: str, run: Run) -> None:
    """What was low rises above a line, and success falls to nothing."""
    rendered = PANELS[name][1]
    healthy, ill = (
        [value for series in _answers(run, feed, phase, rendered) for each in series for value in each["values"]]
        for phase in (HEALTHY, INCIDENT)
    )

    if above is None:
        assert min(ill) < 0.05 < min(healthy)
    else:
        assert max(ill) > above


@pytest.mark.parametrize("feed", FEEDS)
def test_an_incident_fires_alerts(feed: str, run: Run) -> None:
    """Of the objectives that it hurts, in the tier that is for outages."""
    firing = run.series(feed, INCIDENT, {"expr": 'ALERTS{alertstate="firing", tier="outage"}', "instant": True})

    assert {"pipeline_success_rate", "llm_availability", "database_availability"} <= {
        each["metric"]["slo"] for each in firing
    }


@pytest.mark.parametrize("feed", FEEDS)
def test_alerts_are_marked_in_every_dashboard(feed: str, run: Run) -> None:
    """The query of the annotation, which no panel shows."""
    for dashboard in DASHBOARDS:
        (annotation,) = generated.page(dashboard)["annotations"]["list"]
        marks = run.series(feed, INCIDENT, {**annotation["target"], "instant": False})

        assert _has_numbers(marks)
        assert {True} == {{"alertname", "severity"} <= set(each["metric"]) for each in marks}


@pytest.mark.skipif(not PINT, reason="no pint: make pint")
@pytest.mark.parametrize("feed", FEEDS)
def test_no_rule_asks_for_what_nobody_sends(feed: str, run: Run, tmp_path: Path) -> None:
    """Pint finds every series of every rule in the server, and nothing else to say but what `pint.hcl` has reasons for."""
    disabled = set(re.findall(r'disable = \["(.+)"\]', pint.EXCEPTIONS.read_text(encoding="utf-8")))
    rules, url = pint.ROOT / "collector/rules", run.feeds[feed].url

    assert [] == pint.findings(PINT, tmp_path, rules, url)
    assert disabled == {check for _, check, *_ in pint.findings(PINT, tmp_path, rules, url, exceptions="")}


@pytest.mark.skipif(not PINT, reason="no pint: make pint")
def test_a_rule_about_what_nobody_sends_is_found(run: Run, tmp_path: Path) -> None:
    """On a name that does not exist, and on a value that a label never has."""
    rules = tmp_path / "dead.yaml"
    asked = ("jeeves_nobody_sends_this_total", 'jeeves_llm_provider_calls_total{status="nonsense"}')
    alerts = [{"alert": f"Dead{number}", "expr": f"rate({each}[5m]) > 1"} for number, each in enumerate(asked)]
    rules.write_text(json.dumps({"groups": [{"name": "dead", "rules": alerts}]}), encoding="utf-8")
    found = pint.findings(PINT, tmp_path, rules, run.feeds["written"].url)

    assert ["promql/series", "promql/series"] == [check for _, check, *_ in found]
