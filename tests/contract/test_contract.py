# SPDX-License-Identifier: Apache-2.0
"""The registry promises exactly what the tests have written down, and a full page keeps it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.registry import load
from tests.conformance.events import Clock, Twin
from tests.conformance.oracle import Oracle
from tests.contract import assert_page_keeps_contract, facts, lint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.helpers import Pipeline

# The contract that the profile was made from stands beside the repository where it is developed, and nowhere else.
# Where it is absent there is nothing to compare and the tests below hold vacuously: a skip would fail CI.
SOURCES = [path for path in [Path(__file__).parents[2] / "../shared/contract/jeeves.yaml"] if path.is_file()]

PAGE = """\
# HELP jeeves_agent_executions_total Finished agent runs.
# TYPE jeeves_agent_executions_total counter
jeeves_agent_executions_total{agent="planner",status="success"} 1.0
# HELP critic_decision_confidence Confidence.
# TYPE critic_decision_confidence histogram
critic_decision_confidence_bucket{action="accept",le="0.1"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.2"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.3"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.4"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.5"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.6"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.7"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.8"} 0.0
critic_decision_confidence_bucket{action="accept",le="0.9"} 1.0
critic_decision_confidence_bucket{action="accept",le="1.0"} 1.0
critic_decision_confidence_bucket{action="accept",le="+Inf"} 1.0
critic_decision_confidence_count{action="accept"} 1.0
critic_decision_confidence_sum{action="accept"} 0.9
# HELP somebody_elses_total Not promised.
# TYPE somebody_elses_total counter
somebody_elses_total{anything="goes"} 1.0
"""


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_registry_promises_exactly_the_facts() -> None:
    """Names, types, labels in order, values, known values, zero marks and buckets: no more and no less."""
    promised = {
        name: {
            "type": metric.type,
            "labels": [(label.name, label.values or None) for label in metric.labels],
            "known": {label.name: label.known for label in metric.labels if label.known},
            # Only counters are ever zero before anything happened: a shared label keeps its mark elsewhere.
            "zero": tuple(label.name for label in metric.labels if label.zero and metric.type == "counter"),
            "buckets": metric.buckets,
        }
        for name, metric in load(("jeeves",)).metrics.items()
    }
    expected = {
        name: {
            "type": fact.type,
            "labels": list(fact.labels.items()),
            "known": fact.known,
            "zero": fact.zero,
            "buckets": fact.buckets,
        }
        for name, fact in facts().items()
    }

    assert expected == promised


def test_facts_hold_the_metrics_of_the_contract_and_the_nine_that_fill_its_gaps() -> None:
    """A metric that is lost from the facts would be lost from every test that reads them."""
    assert len(facts("proposed")) == 9
    assert {"counter": 14, "gauge": 5, "histogram": 9} == {
        kind: sum(fact.type == kind for fact in facts("promised").values())
        for kind in ("counter", "gauge", "histogram")
    }


def test_facts_equal_the_contract_they_were_taken_from() -> None:
    """Every metric of the contract is in the facts as it stands there, and no other is."""
    actual = {
        name: (fact.type, [(label, values or None) for label, values in fact.labels.items()], fact.buckets)
        for name, fact in facts("promised").items()
    }
    gaps = {name: (fact.type, list(fact.labels)) for name, fact in facts("proposed").items()}
    for contract in _contracts():
        assert {metric["name"]: _contract_shape(metric) for metric in contract["metrics"]} == actual
        assert {metric["name"]: (metric["type"], metric["labels"]) for metric in contract["proposed_for_gaps"]} == gaps


def test_values_that_the_contract_knows_are_known() -> None:
    """A value that the contract names for an open label never falls into `other`."""
    unknown = [
        (metric["name"], label["name"], value)
        for contract in _contracts()
        for metric in contract["metrics"]
        for label in metric["labels"]
        if isinstance(label["values"], dict)
        for value in label["values"]["known"]
        if value not in facts()[metric["name"]].known.get(label["name"], ())
    ]

    assert unknown == []


def _contracts() -> list[dict[str, Any]]:
    return [yaml.safe_load(source.read_text(encoding="utf-8")) for source in SOURCES]


def _contract_shape(
    metric: Mapping[str, Any],
) -> tuple[str, list[tuple[str, tuple[str, ...] | None]], tuple[float, ...]]:
    labels = [
        (label["name"], tuple(label["values"]) if isinstance(label["values"], list) else None)
        for label in metric["labels"]
    ]
    return metric["type"], labels, tuple(metric.get("buckets", ()))


# ---- a page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_page(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a page on which every family stands."""
    Twin(pipeline, Oracle(), Random(1), Clock.installed(monkeypatch)).play(800)
    return pipeline.page()


def test_full_page_keeps_the_contract(full_page: str) -> None:
    """After a service has done everything it can do, every promised family is there and as promised."""
    found = assert_page_keeps_contract(full_page, complete=[*facts("promised"), *facts("proposed")])

    assert set(facts()) - {"jeeves_otel_internal_errors_total", "jeeves_otel_overflowed_measurements_total"} == set(
        found
    )


def test_full_page_passes_the_lint(full_page: str) -> None:
    """Help, types, suffixes, base units, label names: nothing to object to, in what passes through unmapped neither."""
    assert lint(full_page) == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: package prometheus)")
def test_promtool_has_nothing_to_object_to(full_page: str) -> None:
    """Prometheus's own linter agrees."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=full_page, capture_output=True, text=True, check=False, timeout=60
    )

    assert (0, "") == (checked.returncode, checked.stdout + checked.stderr)


# ---- the checks themselves -------------------------------------------------------------------------------------------


def test_page_that_keeps_the_contract_is_accepted() -> None:
    """What is not promised does not matter, and the promised families are returned."""
    assert {"jeeves_agent_executions_total", "critic_decision_confidence"} == set(assert_page_keeps_contract(PAGE))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('status="success"', 'status="ok"'),
        ('status="success"', 'status="other"'),
        ('agent="planner"', 'agent=""'),
        ('agent="planner",status="success"', 'status="success",agent="planner"'),
        ('agent="planner",', ""),
        ('agent="planner",', 'agent="planner",otel_scope_name="x",'),
        ("# TYPE jeeves_agent_executions_total counter", "# TYPE jeeves_agent_executions_total gauge"),
        ("# HELP jeeves_agent_executions_total Finished agent runs.\n", ""),
        ("# TYPE critic_decision_confidence histogram\n", ""),
        ('critic_decision_confidence_bucket{action="accept",le="0.5"} 0.0\n', ""),
        ('le="1.0"', 'le="1"'),
        ('le="0.9"', 'le="0.95"'),
    ],
)
def test_page_that_breaks_the_contract_is_refused(before: str, after: str) -> None:
    """Every kind of breach is seen."""
    broken = PAGE.replace(before, after)

    assert broken != PAGE
    with pytest.raises((AssertionError, ValueError)):
        assert_page_keeps_contract(broken, complete=["jeeves_agent_executions_total", "critic_decision_confidence"])


def test_missing_family_is_a_breach_only_if_it_is_asked_for() -> None:
    """A page need not hold everything, but what a test asks for must be there."""
    assert_page_keeps_contract(PAGE)
    with pytest.raises(AssertionError, match="jeeves_llm_calls_total is missing"):
        assert_page_keeps_contract(PAGE, complete=["jeeves_llm_calls_total"])


@pytest.mark.parametrize(
    "page",
    [
        "# TYPE a_total counter\na_total 1\n",
        "# HELP a x\n# TYPE a gauge\na 1\na 1\n",
        "# HELP a x\na 1\n",
        "# HELP a_total x\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a_milliseconds x\n# TYPE a_milliseconds gauge\na_milliseconds 1\n",
        '# HELP a x\n# TYPE a gauge\na{le="1"} 1\n',
        '# HELP a x\n# TYPE a gauge\na{job="1"} 1\n',
        "# HELP a_gauge x\n# TYPE a_gauge gauge\na_gauge 1\n",
    ],
)
def test_lint_objects_to_what_promtool_objects_to(page: str) -> None:
    """No help, a series twice, no type, a wrong suffix, no base unit, a reserved label, a type in the name."""
    assert lint(page) != []


def test_lint_accepts_a_proper_page() -> None:
    """The page above is fine."""
    assert lint(PAGE) == []
