# SPDX-License-Identifier: Apache-2.0
"""Flush before a signal ends the process, as SIGTERM does when containers are stopped.

In: a `Closer`. Out: the default of the signal, after telemetry has been delivered or its time is over. An application that
has a handler of its own ends by itself, and `closing` runs at its exit; servers that handle the signal, stop, and raise it
again (uvicorn) come here the second time.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from jeeves_otel.closing import Closer

# What the interrupted thread may hold a lock of, that delivery needs.
_LOCKING = ("jeeves_otel", "logging", "opentelemetry", "queue", "threading")
_RETRIES = 100
_WAITS = 10  # retries after which a thread that has not moved is taken to wait
_RETRY_S = 0.01


# Of SIGINT Python makes an exception, except where somebody has given it its default again, as workers of gunicorn do.
ENDING = (signal.SIGTERM, signal.SIGINT)


def flush_before_termination(closer: Closer, signals: Sequence[int] = ENDING) -> None:
    """Let each of *signals* that nobody handles run *closer* first; only the main thread can arrange that."""
    global _handler  # noqa: PLW0603 - a process has one handler of its signals
    if threading.current_thread() is not threading.main_thread():
        return
    unhandled = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    if unhandled or _inherited:
        _handler = _Handler(closer)
        for number in unhandled:
            signal.signal(number, _handler)
        _guard_forks()


def leave_termination() -> None:
    """Let signals be as before `flush_before_termination`, if nobody has taken them since; main thread only."""
    if _handler is not None and threading.current_thread() is threading.main_thread():
        _handler.retire()
        _give_back()


def _give_back() -> None:
    global _handler
    handler, _handler = _handler, None
    for number in (*ENDING, signal.SIGQUIT) if hasattr(signal, "SIGQUIT") else ENDING:  # Windows has no SIGQUIT
        if handler is not None and signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL)


@cache
def _guard_forks() -> None:
    """Arrange, once for a process and those that it forks, that no signal is lost and that a child has the default."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_leave_parent)


# Python forgets, in the child of a fork, a signal that has come before it was ready: so none comes before.
def _hold() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _leave_parent() -> None:
    """Give a forked child, in which there is nobody yet who could deliver, the defaults again."""
    global _inherited  # noqa: PLW0603 - of this process, like the handler
    _inherited = _inherited or _handler is not None
    _give_back()
    _let_go()


_mask = threading.local()
_handler: _Handler | None = None
# Whether a handler of the application, inherited by this process, may call one of ours that is its parent's.
_inherited = False


class _Handler:
    """What a signal calls. Takes no lock that the interrupted thread may hold.

    Args:
        closer: What is to be closed first.
    """

    def __init__(self, closer: Closer) -> None:
        self._closer = closer
        self._retries = 0
        self._place: tuple[int, int] | None = None
        self._same = 0
        self._process = os.getpid()
        # Started now: a handler that starts a thread would wait for a lock of `threading`.
        self._wake, self._waked = os.pipe()
        threading.Thread(target=self._deliver_again, name="jeeves-otel-terminate", daemon=True).start()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Close telemetry and let the signal have its default, now or, if a lock may be held, a moment later."""
        if os.getpid() != self._process:  # the closer, the thread and the pipe are the parent's, which is not to end
            (_handler or _by_default)(number, frame)
            return
        if self._closer.is_closing():
            self._closer.then(lambda: _by_default(number, None))
            return
        if self._retries < _RETRIES and self._gets_on(frame) and _may_hold_a_lock(frame):
            self._retries += 1
            with suppress(OSError):  # an application that closes all descriptors has closed this one, too
                os.write(self._waked, bytes([number]))
                return
        self._closer.close()
        _by_default(number, frame)

    def _gets_on(self, frame: FrameType | None) -> bool:
        """Return whether the interrupted code has been elsewhere lately, and so does not just wait."""
        place = (id(frame), frame.f_lasti) if frame is not None else None
        self._same = self._same + 1 if place == self._place else 0
        self._place = place
        return self._same < _WAITS

    def retire(self) -> None:
        """End the thread; a handler of the application that still calls this one gets the default."""
        self._retries = _RETRIES
        os.close(self._waked)

    def _deliver_again(self) -> None:
        with suppress(OSError):  # an application that closes all descriptors has closed this one, too
            while number := os.read(self._wake, 1):
                threading.Event().wait(_RETRY_S)
                os.kill(self._process, number[0])
            os.close(self._wake)


def _may_hold_a_lock(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _LOCKING:
            return True
        frame = frame.f_back
    return False


def _by_default(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
