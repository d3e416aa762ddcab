# SPDX-License-Identifier: Apache-2.0
"""What every test may use: a telemetry pipeline of its own, strict fail-safe, globals restored."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from jeeves_otel import failsafe, recording
from tests.helpers import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# A shell starts what it runs in the background with SIGINT ignored, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every skip."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail on skips where CI has installed every part that tests need."""
    if _skipped and os.environ.get("JEEVES_TEST_NO_SKIPS") == "1":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips fail the run."""
    if _skipped and os.environ.get("JEEVES_TEST_NO_SKIPS") == "1":
        terminalreporter.section("skips are failures here (JEEVES_TEST_NO_SKIPS=1)")
        for nodeid in _skipped:
            terminalreporter.line(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first: what fails soonest is seen soonest."""
    weight = {"integration": 1, "slow": 2}
    items.sort(key=lambda item: max((weight.get(mark.name, 0) for mark in item.iter_markers()), default=0))


@pytest.fixture(autouse=True)
def _strict_failsafe() -> Iterator[None]:
    """A failure that would be swallowed fails the test, unless the test says otherwise."""
    failsafe.reset()
    failsafe.set_strict(True)
    yield
    failsafe.set_strict(False)
    failsafe.reset()


@pytest.fixture
def make_pipeline() -> Iterator[Callable[..., Pipeline]]:
    """Return a factory of pipelines into which the recording API records; everything is unbound afterwards."""
    made: list[Pipeline] = []

    def make(*profiles: str, **options: object) -> Pipeline:
        pipeline = Pipeline(*profiles, **options)  # type: ignore[arg-type]  # passed through
        made.append(pipeline)
        recording.bind(meter_provider=pipeline.meter_provider, tracer_provider=pipeline.tracer_provider)
        return pipeline

    yield make
    recording.bind()
    for pipeline in made:
        pipeline.shutdown()


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    """Return a pipeline with the jeeves profile and all spans sampled."""
    return make_pipeline()
