# SPDX-License-Identifier: Apache-2.0
"""The queries that tests execute hold every one that was written down for this contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT = Path(__file__).parents[2] / "../shared/contract"
QUERIES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "queries.yaml").read_text())["queries"]
# Where they were written down stands beside the repository where it is developed, and nowhere else; where it is absent
# there is nothing to compare, and the test holds vacuously: see test_contract.
SOURCES = [path for path in (CONTRACT / "alerts.yaml", CONTRACT / "dashboards.yaml") if path.is_file()]


def _written_down(source: Path) -> Iterator[str]:
    document = yaml.safe_load(source.read_text())
    entries = document["alerts"] if "alerts" in document else document["dashboards"]
    for entry in entries:
        if entry["system"] == "jeeves":
            for each in entry.get("panels", [entry]):
                yield from filter(None, (each.get("expression"), each.get("recommended_expression")))


def _without_threshold(expression: str) -> list[str]:
    """Return the queries in *expression*: without what an alert compares with, one for each quantile of a panel."""
    text, _, quantiles = re.sub(r" > [\d.]+$", "", expression).partition(" for q = ")
    return [text.replace("quantile(q,", f"quantile({quantile},") for quantile in quantiles.split(", ")]


def test_every_query_that_was_written_down_is_executed_or_replaced() -> None:
    """In the very spelling, as a query or as what a query stands for."""
    known = {text for entry in QUERIES for text in (entry["query"], entry.get("was"))}
    wanted = {
        source.name: [query for expression in _written_down(source) for query in _without_threshold(expression)]
        for source in SOURCES
    }

    assert [] == [source for source, queries in wanted.items() if not queries]
    assert [] == [query for queries in wanted.values() for query in queries if query not in known]


def test_every_metric_that_is_queried_is_promised() -> None:
    """A query of a metric that nobody promises would be empty tomorrow."""
    promised = set(load().metrics)
    queried = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for entry in QUERIES
        for name in re.findall(r"\b(?:jeeves|process|orchestrator)_\w+", entry["query"])
    }

    assert queried <= promised
