# SPDX-License-Identifier: Apache-2.0
"""closing: everything is stopped at once, once, and never waited for too long."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING

from jeeves_otel import failsafe
from jeeves_otel.closing import Closer

if TYPE_CHECKING:
    import pytest


def test_all_stops_run_at_the_same_time() -> None:
    """Two that wait for each other can both end."""
    first, second = Event(), Event()

    def meet(mine: Event, other: Event) -> None:
        mine.set()
        assert other.wait(5)

    ended: list[str] = []
    stops = {
        "a": lambda: (meet(first, second), ended.append("a")),
        "b": lambda: (meet(second, first), ended.append("b")),
    }
    Closer(stops, 5.0).close()  # type: ignore[arg-type]  # what they return is nobody's business

    assert sorted(ended) == ["a", "b"]


def test_stop_that_hangs_is_not_waited_for_longer_than_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """What has not ended in time is named in one line, and the others have ended."""
    never, ended = Event(), Event()
    closer = Closer({"traces": never.wait, "metrics": ended.set}, 0.2)  # type: ignore[dict-item]  # as above
    began = time.monotonic()
    closer.close()
    took = time.monotonic() - began
    never.set()

    assert ended.is_set()
    assert took < 2
    assert [record.getMessage() for record in caplog.records] == ["the last traces were not delivered within 0.2 s"]


def test_what_was_lost_is_said_in_one_line_by_who_knows_it(caplog: pytest.LogCaptureFixture) -> None:
    """The stops begin after it was told; a stop that has failed is in the account though it has ended in time."""
    order: list[str] = []
    stops = {"traces": lambda: order.append("stop")}
    Closer(stops, 5.0, lambda: order.append("begin"), lambda within: f"3 spans were lost{within}").close()

    assert ["begin", "stop"] == order
    assert ["3 spans were lost"] == caplog.messages


def test_an_account_that_cannot_be_given_does_not_keep_the_process() -> None:
    """A failure at exit is a failure like any other."""
    failsafe.set_strict(False)
    ended = Event()

    def fail(*_: str) -> str:
        raise ValueError

    Closer({"traces": ended.set}, 5.0, fail, fail).close()

    assert ended.is_set()
    assert {"shutdown.begin": 1, "shutdown.report": 1} == failsafe.counts()


def test_second_close_does_nothing() -> None:
    """At exit it runs once more, and finds that all is done."""
    calls: list[int] = []
    closer = Closer({"a": lambda: calls.append(1)}, 5.0)
    closer.close()
    closer.close()

    assert calls == [1]


def test_stop_that_fails_is_counted_and_takes_no_other_along() -> None:
    """A failure at exit is a failure like any other."""
    failsafe.set_strict(False)
    ended = Event()

    def fail() -> None:
        raise ValueError

    Closer({"traces": fail, "metrics": ended.set}, 0.5).close()

    assert ended.is_set()
    assert failsafe.counts() == {"shutdown.traces": 1}
