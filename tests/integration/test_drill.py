# SPDX-License-Identifier: Apache-2.0
"""The fire drill with windows a fortieth as long: real parts, a real webhook, and somebody is told in time."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, cast

import pytest

from jeeves_otel.demo import parts
from jeeves_otel.demo.drill import Told, main as drill_main
from jeeves_otel.demo.on_call import Notification, Pace
from jeeves_otel.registry import load
from jeeves_otel.specification import examine
from tests.helpers import poll_until
from tests.integration.test_stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jeeves_otel.demo.drill import Rehearsal

real = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(None in map(parts.cached, parts.PARTS), reason=f"not built: make {' '.join(parts.PARTS)}"),
]


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Stack]:
    """Yield a drill that has not begun."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    made = Stack(folder, "jeeves_otel.demo.drill")
    yield made
    made.kill()


class TestDrill:
    """Real runs."""

    pytestmark = real

    def test_an_outage_and_a_half_are_told_in_time_by_the_right_alerts(self, drill: Stack) -> None:
        """Nothing before the injection, then the outage tier, through the route for critical alerts; and nothing is left."""
        drill.start("--faster", "40", "--only", "llm-outage", "database")
        status = drill.wait()
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in drill.output.splitlines() if "| yes" in line
        ]

        assert (0, []) == (status, drill.left()), drill.output
        assert [
            ["llm_availability", "LLMErrorBudgetBurn", "outage", "pagerduty"],
            ["database_availability", "DatabaseErrorBudgetBurn", "outage", "pagerduty"],
        ] == [[row[0], *row[3:6]] for row in rows]
        assert all(re.fullmatch(r"\d+\.\d s", cell) for row in rows for cell in row[6:10]), rows

    def test_ctrl_c_ends_everything(self, drill: Stack) -> None:
        """While traffic is healthy, which in production takes minutes."""
        drill.start("--only", "llm-half")
        poll_until(lambda: "Healthy traffic" in drill.output, "the traffic", timeout_s=60)
        before = drill.left()
        status = drill.wait(signal.SIGINT)

        assert 7 <= len(before)
        assert (130, []) == (status, drill.left()), drill.output


@pytest.mark.parametrize("times", ["0", "-1", "nan", "61", "fast"])
def test_a_pace_that_no_drill_has_is_wrong_usage(times: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before anything starts."""
    with pytest.raises(SystemExit) as stopped:
        drill_main(["--faster", times])

    assert 2 == stopped.value.code
    assert f"--faster: `{times}` is not a number above 0, up to 60" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("receiver", "severity", "after_s", "met"),
    [
        ("pagerduty", "critical", 150.0, True),
        ("pagerduty", "critical", 150.1, False),
        ("slack", "critical", 1.0, False),
        ("default", "critical", 1.0, False),
        ("slack", "warning", 1.0, True),
        ("pagerduty", "warning", 1.0, False),
    ],
)
def test_who_is_told_must_be_whom_routing_names(receiver: str, severity: str, after_s: float, *, met: bool) -> None:
    """A page that goes to a channel wakes nobody, however soon it comes."""
    told = Notification(0.0, receiver, {"alertname": "LLMErrorBudgetBurn", "severity": severity})

    assert met == Told(cast("Rehearsal", None), None, None, None, told, after_s, 150.0).met


def test_what_nobody_is_told_of_is_not_met() -> None:
    """However long it is waited for."""
    assert not Told(cast("Rehearsal", None), None, None, None, None, None, 150.0).met


def test_in_production_the_drill_changes_no_window_and_no_goal() -> None:
    """Only a faster one does, each window by the same factor."""
    objectives, _ = examine(load())
    production, faster = Pace(), Pace(40)
    lengths = [[tier.long.seconds / 40 for tier in slo.tiers] for slo in objectives.slos]

    assert objectives is production.scaled(objectives)
    assert (15.0, 150.0) == (production.export_s, production.goal_s(150.0))
    assert lengths == [[tier.long.seconds for tier in slo.tiers] for slo in faster.scaled(objectives).slos]
