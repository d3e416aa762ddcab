# SPDX-License-Identifier: Apache-2.0
"""What the sidecar has acknowledged arrives, whatever the backends do: the short form of ``make outage``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.backends import OK, REFUSES
from tests.integration.outages import CASES, SMALL_QUEUE, Case, Outcome, Scene, observe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

OUTAGE_S = 2.0
REFUSED_FOR_GOOD = [case for case in CASES if case.drops]
KEPT = [case for case in CASES if not case.drops]
ALERTS = [case for case in CASES if "alerts.yaml" in case.overlays]


def _outcome(case: Case, program: str, folder: Path) -> Outcome:
    patience_s = 4.0 if case.drops else 20.0
    return observe(case, program, folder, outage_s=OUTAGE_S, timeout="2s", patience_s=patience_s)


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_what_was_acknowledged_arrives(collector: str, tmp_path: Path, case: Case) -> None:
    """Every span, every sample, and the counter's last value; and what was not acknowledged is the client's to keep."""
    outcome = _outcome(case, collector, tmp_path)

    assert outcome.acknowledged > 500
    assert (0, 0, True) == (outcome.lost, outcome.samples_lost, outcome.last_is_exact)
    if "queues full" in case.name:
        assert outcome.unacknowledged > 0
    if case in ALERTS or not ("Collector" in case.name or "full" in case.name):
        assert (0, 0) == (outcome.unacknowledged, outcome.duplicated)


@pytest.mark.parametrize("case", REFUSED_FOR_GOOD, ids=lambda case: case.name)
def test_what_a_backend_refuses_for_good_is_dropped_once_and_counted(
    collector: str, tmp_path: Path, case: Case
) -> None:
    """It neither blocks what comes after nor is it asked again and again; a counter goes on with its whole value."""
    outcome = _outcome(case, collector, tmp_path)

    assert outcome.lost == outcome.counted_failures > 0
    assert outcome.refused_requests <= outcome.sent_requests
    assert outcome.last_is_exact


def test_without_the_isolation_a_dead_alertmanager_is_noticed_by_all(collector: str, tmp_path: Path) -> None:
    """The control of the rows about Alertmanager: what batch/isolation is for."""
    processors = "[memory_limiter, filter/exceptions, resource/identity, transform/alerts]"
    without = f"{SMALL_QUEUE}service: {{pipelines: {{traces/alerts: {{processors: {processors}}}}}}}\n"

    def happens(scene: Scene) -> None:
        scene.alertmanager.behave(REFUSES)
        scene.lasts()
        scene.alertmanager.behave(OK)

    outcome = _outcome(Case("no isolation", happens, overlays=("alerts.yaml",), extra=without), collector, tmp_path)

    assert outcome.unacknowledged > 0


def test_a_stop_in_an_outage_is_quick(collector: str, tmp_path: Path) -> None:
    """Containers are killed after 30 s; what waits is on disk already."""
    case = next(case for case in CASES if "SIGTERM" in case.name)

    assert _outcome(case, collector, tmp_path).stop_s < 10


def test_every_backend_fails_in_every_way_alone_and_together() -> None:
    """No row of the table is missing by mistake."""
    ways = ("refuses", "503", "hangs")
    expected = {f"{who}: {how}" for who in ("trace backend", "Prometheus", "both") for how in ways}

    assert set() == expected - {case.name for case in CASES}
