# SPDX-License-Identifier: Apache-2.0
"""failsafe: our own failures are swallowed, counted and said once; everything else passes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jeeves_otel import failsafe


@pytest.fixture(autouse=True)
def _lenient(caplog: pytest.LogCaptureFixture) -> None:
    failsafe.set_strict(False)
    caplog.set_level(logging.WARNING)


def test_a_failure_is_swallowed_counted_and_said_once_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The text of an exception may hold user data."""
    guard = failsafe.failsafe("here")
    for _ in range(3):
        with guard:
            raise ValueError("canary")

    assert failsafe.counts() == {"here": 3}
    (record,) = caplog.records
    assert record.getMessage() == (
        "here failed (ValueError); it was skipped, and the application is not affected. Further failures here are only "
        'counted, in jeeves_otel_internal_errors_total{site="here"}.'
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_what_stops_the_process_passes(error: BaseException) -> None:
    """Only exceptions are ours to swallow."""
    with pytest.raises(type(error)) as caught, failsafe.failsafe("here"):
        raise error

    assert caught.value is error
    assert failsafe.counts() == {}


def test_strict_mode_raises_what_it_has_counted() -> None:
    """Our own tests see every failure."""
    failsafe.set_strict(True)
    with pytest.raises(ValueError, match="x"), failsafe.failsafe("here"):
        raise ValueError("x")

    assert failsafe.counts() == {"here": 1}


def test_a_site_that_recovered_says_so_and_logs_its_next_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Failed, works again, failed: three lines; a recovery of what never failed says nothing."""
    failsafe.note_recovery("here")
    for _ in range(2):
        failsafe.swallow("here", ValueError(), "do this")
        failsafe.note_recovery("here")
        failsafe.note_recovery("here")

    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "here failed (ValueError)",
        "here works again.",
    ] * 2
    assert failsafe.counts() == {"here": 2}


def test_concurrent_failures_are_all_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Eight threads that fail at one site at the same time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: [failsafe.swallow("here", ValueError()) for _ in range(1_000)], range(8)))
    finally:
        sys.setswitchinterval(interval)

    assert failsafe.counts() == {"here": 8_000}
    assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_a_failure_was_being_counted_can_count() -> None:
    """The lock that another thread of the parent held is not the child's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(failsafe._lock.acquire).result()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            failsafe.swallow("child", ValueError())
            os._exit(0 if failsafe.counts() == {"child": 1} else 1)
        pool.submit(failsafe._lock.release).result()

    assert os.waitpid(child, 0)[1] == 0
