# SPDX-License-Identifier: Apache-2.0
"""What the files of Alertmanager are made of: receivers, secrets, what silences what, and a case for every alert."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from jeeves_otel import routing
from jeeves_otel.generators import alertmanager, rules
from jeeves_otel.registry import load
from jeeves_otel.specification import examine

ROOT = Path(__file__).parents[2]
OBJECTIVES, _ = examine(load())
ROUTING = routing.load()
QUIET, PAGING, CASES = (yaml.safe_load(text) for text in alertmanager.files(OBJECTIVES, ROUTING).values())


def _keys(value: Any) -> set[str]:
    """Return every key in *value*."""
    if isinstance(value, dict):
        return set(value) | {key for each in value.values() for key in _keys(each)}
    return {key for each in value for key in _keys(each)} if isinstance(value, list) else set()


def test_both_files_differ_in_nothing_but_what_receivers_do() -> None:
    """What is seen of routes and silences before paging is turned on is true after."""
    names = [receiver["name"] for receiver in PAGING["receivers"]]

    assert {**PAGING, "receivers": None} == {**QUIET, "receivers": None}
    assert [{"name": name} for name in names] == QUIET["receivers"]


def test_secrets_are_files() -> None:
    """No key that would hold one is there."""
    secret = {"routing_key", "service_key", "api_url", "url", "password", "credentials", "http_config"}

    assert {"routing_key_file", "api_url_file", "url_file"} == {key for key in _keys(PAGING) if key.endswith("_file")}
    assert set() == secret & _keys(PAGING)


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"alertname": "LLMProviderDown", "severity": "critical"}, "pagerduty"),
        ({"alertname": "LLMRateLimited", "severity": "warning"}, "slack"),
        ({"alertname": "HighInterruptRate", "severity": "info"}, "default"),
        ({"alertname": "Watchdog", "severity": "none"}, "deadman"),
        ({"alertname": "ServiceException", "severity": "critical"}, "nobody"),
        ({"alertname": "WithoutSeverity"}, "default"),
    ],
)
def test_severities_have_the_receivers_that_were_promised(labels: dict[str, str], receiver: str) -> None:
    """Critical wakes somebody, a warning is read, the rest is taken in."""
    assert receiver == ROUTING.receiver_of(labels)


def test_every_alert_has_a_case_with_its_labels() -> None:
    """A case for each tier of each objective, and for each symptom."""
    promised = [
        {"alertname": rule["alert"], **rule["labels"]}
        for text in rules.files(OBJECTIVES).values()
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    labels = [case["labels"] for case in CASES["cases"]]

    assert [] == [each for each in promised if each not in labels]
    assert {receiver["name"] for receiver in PAGING["receivers"]} == {case["receiver"] for case in CASES["cases"]}


def test_alerts_of_two_installations_are_two_notifications() -> None:
    """Else PagerDuty adds an outage in production to the open incident of a test system, and wakes nobody."""
    assert set(ROUTING.installation) < set(PAGING["route"]["group_by"])


def test_a_tier_silences_exactly_those_that_burn_slower() -> None:
    """Each pair once, and always of one objective of one service of one installation."""
    found = {
        (each.by["tier"], target)
        for each in alertmanager.inhibitions(OBJECTIVES, ROUTING)
        for target in each.what.get("tier", "").split("|")
        if "tier" in each.by
    }
    equal = [rule["equal"] for rule in PAGING["inhibit_rules"] if rule["source_matchers"][0].startswith("tier")]

    assert set(combinations(("outage", "fast", "slow", "ticket", "drift"), 2)) == found
    assert [["slo", "service", "cluster", "environment"]] * 4 == equal


def test_an_alert_is_silenced_only_by_what_is_worse() -> None:
    """A ticket about a budget does not hide that it burns."""
    severities = [
        (each.by["severity"].split("|"), each.what["alertname"])
        for each in alertmanager.inhibitions(OBJECTIVES, ROUTING)
        if "tier" not in each.by
    ]
    own = {alert.name: alert.severity for alert in OBJECTIVES.alerts}

    assert [] == [name for worse, name in severities if own.get(name, "warning") in worse]


def test_the_howto_names_every_receiver_file_and_every_silence() -> None:
    """As the files have them."""
    howto = (ROOT / "docs/howto/alerting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?:, critical)? \| `(\w+)`(?:, warning)? \| (.+) \|$", howto, re.MULTILINE)
    said = {(by, what, tuple(re.findall(r"\w+", equal))) for by, what, equal in rows}
    silenced = {
        (each.by["alertname"], each.what["alertname"], each.equal)
        for each in alertmanager.inhibitions(OBJECTIVES, ROUTING)
        if "tier" not in each.by
    }

    assert silenced == said
    assert [] == [each.secret for each in ROUTING.receivers if f"`{each.secret}`" not in howto and each.secret]
