# SPDX-License-Identifier: Apache-2.0
"""generators.translation: what must hold of the statements before any Collector has seen them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from jeeves_otel.generators.translation import LIMITS, bounds, page, statements
from jeeves_otel.registry import TRANSLATED, load

REGISTRY = load()
GROUPS: list[dict[str, Any]] = yaml.safe_load(statements(REGISTRY))
ALL = [statement for group in GROUPS for statement in group["statements"]]
ON_METRICS = ("copy_metric", "extract_", "aggregate_on", "convert_", "scale_metric")


def test_no_statement_that_copies_can_match_a_copy() -> None:
    """The loop also visits what it has appended: such a statement would never end."""
    copying = [each for each in ALL if each.startswith(("copy_metric", "extract_"))]

    assert copying
    assert [] == [each for each in copying if not re.search(r' where metric\.name == "[^#"]+"( and |$)', each)]
    assert [] == [each for each in copying if "#" not in each.split(" where ")[0]]


def test_functions_of_metrics_and_of_points_stand_apart() -> None:
    """One group cannot mix them."""
    contexts = {group["context"] for group in GROUPS for each in group["statements"] if each.startswith(ON_METRICS)}

    assert {"metric"} == contexts


@pytest.mark.parametrize("name", list(REGISTRY.metrics))
def test_every_promised_metric_is_made_in_one_place(name: str) -> None:
    """With all its labels, and no other attribute."""
    made = [group["statements"] for group in GROUPS if f'set(metric.name, "{name}")' in group["statements"]]
    kept = ", ".join(f'"{label}"' for label in (*REGISTRY.metrics[name].label_names, "jeeves.otel.drop"))

    assert 1 == len(made)
    assert made[0][0].endswith(f"[{kept}])")


def test_what_is_marked_is_not_looked_for() -> None:
    """Groups that begin the work ask for the mark; the others need what these have made."""
    unmarked = f'resource.attributes["{TRANSLATED}"] == nil'
    without = [group for group in GROUPS if group["context"] == "metric" and group.get("conditions") == [unmarked]]

    assert 2 == len(without)
    assert [f'set(resource.attributes["{TRANSLATED}"], true)'] == GROUPS[-1]["statements"]


def test_the_page_has_every_bound_and_every_limit() -> None:
    """Whoever sets up a service needs the one, whoever compares needs the other."""
    text = page(REGISTRY)

    assert [] == [name for name in bounds(REGISTRY) if f"| `{name}`" not in text]
    assert [] == [limit.name for limit in LIMITS if f"| {limit.sdk} | {limit.collector} |" not in text]
    assert set(bounds(REGISTRY)) == {
        source.instrument
        for metric in REGISTRY.metrics.values()
        for source in metric.sources
        if source.take == "histogram"
    }
