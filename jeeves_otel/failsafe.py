# SPDX-License-Identifier: Apache-2.0
"""Keep our own failures away from the application: swallow, count, log once per site.

In: a block or function of ours, with the name of its site. Out: the application's own behaviour, unchanged, and
one count per swallowed failure, which ``providers`` exposes as ``jeeves_otel_internal_errors_total{site}``.
"""

from __future__ import annotations

import logging
import os
import sys
from threading import RLock
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

_log = logging.getLogger("jeeves_otel")

_counts: dict[str, int] = {}
_failing: set[str] = set()
_strict = False
# Where the locks are: opentelemetry-sdk 1.45 aggregates and queues under them, cardinality admits values.
_LOCKED_IN = ("opentelemetry.sdk.", "jeeves_otel.cardinality")
# Reentrant: a signal handler of the application may record, and fail, while this thread holds it.
_lock = RLock()


class failsafe:  # noqa: N801 - reads as the statement it is: ``with failsafe("site"):``
    """Swallow, count and log once any ``Exception`` of the block; the application's own code never belongs inside.

    Safe from several threads and tasks; one instance may be kept and entered many times.

    Args:
        site: Where the block stands, ``module.operation``; a value of the label ``site``.
    """

    __slots__ = ("site",)

    def __init__(self, site: str) -> None:
        self.site = site

    def __enter__(self) -> None:
        """Enter the guarded block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallow *error* if it is an ``Exception``; let ``KeyboardInterrupt`` and its like pass."""
        if error is None or not isinstance(error, Exception):
            return False
        swallow(self.site, error)
        return True


def swallow(site: str, error: Exception, hint: str = "") -> None:
    """Count *error* against *site* and log it the first time.

    Args:
        site: As for `failsafe`.
        error: What was caught.
        hint: What follows from it and what to do, for the log.

    Raises:
        Exception: *error* itself, in strict mode only.
    """
    with _lock:
        first = site not in _failing
        _failing.add(site)
        _counts[site] = _counts.get(site, 0) + 1
    if _strict:
        raise error
    if first:
        _say(
            f"{site} failed ({_describe(error)}); {hint or 'it was skipped, and the application is not affected'}. "
            f'Further failures here are only counted, in jeeves_otel_internal_errors_total{{site="{site}"}}.'
        )


def guarded(site: str, function: Callable[[], object]) -> Callable[[], None]:
    """Return *function* as one that never raises, for those who call back."""

    def call() -> None:
        with failsafe(site):
            function()

    return call


def is_under_a_lock() -> bool:
    """Return whether this thread may hold a lock that measuring waits for, and that cannot be taken twice.

    Asked by what runs wherever garbage is collected: the end of a forgotten stream or generator. Inside a scrape it
    would wait for itself, and every thread that measures anything for the scrape.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - what inspect.currentframe is, without its import
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_LOCKED_IN):
            return True
        frame = frame.f_back
    return False


def count(site: str, number: int = 1) -> None:
    """Count *number* failures against *site* and log nothing: something else says what happened."""
    with _lock:
        _counts[site] = _counts.get(site, 0) + number


def is_failing(site: str) -> bool:
    """Return whether a failure of *site* was logged and no recovery since."""
    return site in _failing


def note_recovery(site: str, so_far: str = "") -> None:
    """Say that *site* works again, if its last call failed, and what it has cost *so_far*; its next failure is logged again."""
    if site in _failing:
        _failing.discard(site)
        _say(f"{site} works again{so_far and f'; {so_far}'}.")


def counts() -> dict[str, int]:
    """Return ``{site: swallowed failures}`` since the process started (or since `reset`)."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forget all counts, so that every site logs again. For tests and for a child after a fork."""
    with _lock:
        _counts.clear()
        _failing.clear()


def set_strict(strict: Literal[True, False]) -> None:
    """Re-raise what would be swallowed. For our own tests (``JEEVES_OTEL_STRICT``); never inferred."""
    global _strict  # noqa: PLW0603 - one switch for the process, set once at start
    _strict = strict


def _say(message: str) -> None:
    try:
        if _log.hasHandlers() or not _log.isEnabledFor(logging.WARNING):
            _log.warning("%s", message)
        else:
            # Not through logging's last resort: a line that a full stderr has not taken stays in its buffer, and then
            # the interpreter ends with status 120 instead of the application's.
            os.write(sys.stderr.fileno(), f"{message}\n".encode())
    except Exception:  # noqa: BLE001, S110 - a log handler of the application may raise; there is nobody left to tell
        pass


def _describe(error: Exception) -> str:
    # The text of an exception may hold user data, and its __str__ may fail: the type is enough to act on.
    return type(error).__name__


def _unlock_child() -> None:
    # Another thread of the parent may have held the lock when it forked; nobody would ever release it here.
    global _lock  # noqa: PLW0603 - the lock guards what this module holds
    _lock = RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_unlock_child)
