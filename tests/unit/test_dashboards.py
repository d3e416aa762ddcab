# SPDX-License-Identifier: Apache-2.0
"""The dashboards as Grafana's own linter would judge them, and stricter: what it checks and what we promise."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest

from jeeves_otel import specification
from jeeves_otel.dashboards import UNITS, examine, of_own
from jeeves_otel.documents import Place
from jeeves_otel.generators import dashboards as generated
from jeeves_otel.objectives import Objectives
from jeeves_otel.promql import families_of, findings
from jeeves_otel.registry import load
from tests import examples

REGISTRY = load()
PROMISED, _ = specification.examine(REGISTRY)
RECORDS = PROMISED.records | examples.PROMISED.records
FAMILIES = families_of(REGISTRY)
PACKAGED, FINDINGS = examine(FAMILIES, PROMISED)
DASHBOARDS = (*PACKAGED, examples.DASHBOARD)
PAGES: dict[str, dict[str, Any]] = {
    path.rpartition("/")[2].removesuffix(".json"): json.loads(text)
    for path, text in generated.files(DASHBOARDS).items()
}
PANELS = [(name, panel) for name, page in PAGES.items() for panel in page["panels"] if panel["type"] != "row"]
TARGETS = [(f"{name}: {panel['title']}", target) for name, panel in PANELS for target in panel["targets"]]


def test_the_packaged_dashboards_have_no_findings() -> None:
    """Every metric, label, objective and alert that they name exists."""
    assert [] == FINDINGS


def test_the_five_dashboards_that_were_promised_are_there_with_their_panels() -> None:
    """And two that were not."""
    titles = {name: {panel["title"] for of, panel in PANELS if of == name} for name in PAGES}

    assert {"service", "pipeline", "llm", "infra", "business", "slo", "collector"} == {each.name for each in PACKAGED}
    assert {
        "Request rate",
        "Error rate",
        "Latency percentiles",
        "LLM token usage",
        "Top errors",
        "Service health",
    } <= titles["service"]
    assert {"Success by pipeline", "p99 latency by pipeline", "Agent execution times", "Routing decisions"} <= titles[
        "pipeline"
    ]
    assert {"API call rate by provider", "Token usage by model", "Provider latency", "Provider errors"} <= titles["llm"]
    assert {"Connection pool utilization", "gRPC requests by status", "Memory", "CPU", "Event queue depth"} <= titles[
        "infra"
    ]
    assert {"Interrupts by type", "User sessions", "Feature usage", "Pipeline outcomes"} <= titles["business"]


@pytest.mark.parametrize("name", PAGES)
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    """No id, no inputs, a uid of its own, not to be edited: what file provisioning takes and keeps."""
    page = PAGES[name]

    assert (None, f"jeeves-{name}", False) == (page["id"], page["uid"], page["editable"])
    assert "__inputs" not in page
    assert ["datasource"] == [variable["type"] for variable in page["templating"]["list"]]
    assert "prometheus" == page["templating"]["list"][0]["query"]


@pytest.mark.parametrize("name", PAGES)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    """Two panels in one place hide each other."""
    panels = PAGES[name]["panels"]
    places = [(panel["title"], panel["gridPos"]) for panel in panels]

    assert len(panels) == len({panel["id"] for panel in panels})
    assert [] == [(one, other) for (one, a), (other, b) in combinations(places, 2) if _overlap(a, b)]
    assert [] == [title for title, place in places if place["x"] + place["w"] > 24]


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
    )


@pytest.mark.parametrize(
    "panel", [panel for _, panel in PANELS], ids=[f"{name}: {panel['title']}" for name, panel in PANELS]
)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Title, description, unit, what an empty one means, and the data source as a variable."""
    defaults = panel["fieldConfig"]["defaults"]

    assert panel["title"]
    assert panel["description"].endswith(".")
    assert defaults["unit"] in UNITS
    assert defaults["noValue"]
    assert "${datasource}" == panel["datasource"]["uid"]
    assert [] == [target for target in panel["targets"] if target["datasource"]["uid"] != "${datasource}"]
    assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})


@pytest.mark.parametrize("target", [target for _, target in TARGETS], ids=[name for name, _ in TARGETS])
def test_a_query_of_a_panel_can_be_answered(target: dict[str, Any]) -> None:
    """It is PromQL about promised metrics, and its windows are Grafana's, not a number that is too short somewhere."""
    expression = target["expr"]

    assert [] == findings(expression, FAMILIES, RECORDS, Place("", 0))
    assert [] == re.findall(r"\[\d+[smhd]\](?! offset)", expression)


@pytest.mark.parametrize(("name", "target"), TARGETS, ids=[name for name, _ in TARGETS])
def test_lines_are_told_apart(name: str, target: dict[str, Any]) -> None:
    """A legend names labels that the query answers with, and no others."""
    query = next(
        ask.query
        for dashboard in DASHBOARDS
        for row in dashboard.rows
        for panel in row.panels
        for ask in panel.asks
        if f"{dashboard.name}: {panel.title}" == name and generated.expression(ask) == target["expr"]
    )

    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(query.by)
    assert set(query.by) <= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) or "table" == target.get("format")


def test_every_alert_is_seen_on_a_dashboard() -> None:
    """Whoever is woken finds the picture, and from the picture the runbook."""
    linked = {link["title"].removeprefix("Runbook: ") for _, panel in PANELS for link in panel["links"]}

    assert {*PROMISED.runbooks, *examples.PROMISED.runbooks} == linked


def test_every_alert_leads_to_a_dashboard_that_exists() -> None:
    """A link that leads nowhere is found at night."""
    wanted = PROMISED.dashboards | examples.PROMISED.dashboards

    assert wanted - {""} <= set(PAGES)


def test_latencies_have_exemplars() -> None:
    """From a slow bucket to its trace, wherever times are shown."""
    slow = [
        panel
        for _, panel in PANELS
        if panel["fieldConfig"]["defaults"]["unit"] == "s" and "quantile" in panel["targets"][0]["expr"]
    ]

    assert [] == [panel["title"] for panel in slow if not panel["targets"][0]["exemplar"]]


def test_no_promised_family_is_without_a_panel() -> None:
    """What is promised can be seen, but for what is listed here with its reason."""
    unseen = {
        "jeeves_db_connections": "the pool shows them by state",
        "critic_decision_confidence": "a distribution that nobody has asked for",
        "meta_validator_issue_detections_total": "detail of the verdicts",
        "workflow_retry_reasons_total": "detail of the retries",
        "orchestrator_request_latency_seconds": "the pipeline's latency is the promise",
    }
    text = json.dumps([PAGES[each.name] for each in PACKAGED])
    promised = [metric.name for metric in REGISTRY.metrics.values() if metric.profile == "jeeves"]

    assert sorted(unseen) == sorted(name for name in promised if name not in text)


def test_objectives_of_a_user_have_a_dashboard_with_their_promise_and_the_questions_of_their_runbooks() -> None:
    """A row for each objective and each alert, in which whoever is woken finds what the runbook asks."""
    page = PAGES["own-support"]
    panels = {panel["title"]: panel for panel in page["panels"]}
    bad, queue = panels["Bad events"], panels["EventQueueGrows"]

    assert ["Tools", "EventQueueGrows"] == [panel["title"] for panel in page["panels"] if panel["type"] == "row"]
    assert {"Budget left", "Events", "Which tool?", "How much comes in?"} <= set(panels)
    assert 0.02 == bad["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
    assert ("red", 1000) == tuple(queue["fieldConfig"]["defaults"]["thresholds"]["steps"][-1].values())
    assert ["Runbook: ToolErrorBudgetBurn"] == [link["title"] for link in bad["links"]]


@pytest.mark.parametrize(
    ("comparison", "threshold", "below", "from_it"),
    [
        (">", "1000", "green", "red"),
        (">", "-5", "green", "red"),
        ("<", "3", "red", "green"),
        ("<", "-5", "red", "green"),
    ],
)
def test_an_alert_has_its_line_in_its_panel(comparison: str, threshold: str, below: str, from_it: str) -> None:
    """Red is the side on which it fires; a line below 0 is not cut off."""
    (alert,) = examples.PROMISED.alerts
    changed = replace(alert, comparison=comparison, threshold=Decimal(threshold))
    page = generated.page(of_own("own-x", "x", Objectives((), (changed,))))
    (shown,) = (
        panel["fieldConfig"]["defaults"]
        for panel in page["panels"]
        if panel["title"] == alert.name and panel["type"] != "row"
    )

    assert [{"color": below, "value": None}, {"color": from_it, "value": float(threshold)}] == shown["thresholds"][
        "steps"
    ]
    assert "line" == shown["custom"]["thresholdsStyle"]["mode"]
    assert (0 if float(threshold) > 0 else None) == shown.get("min")


def test_an_alert_without_a_threshold_has_no_line() -> None:
    """Whatever its query answers with is too much."""
    (alert,) = examples.PROMISED.alerts
    (row,) = of_own("own-x", "x", Objectives((), (replace(alert, comparison=""),))).rows

    assert () == row.panels[0].thresholds
