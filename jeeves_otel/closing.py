# SPDX-License-Identifier: Apache-2.0
"""End telemetry within a bounded time when the process exits.

In: what must be stopped, by name, and the time that all of it together may take. Out: everything was flushed, or one line
says what was not. Each stop has a thread that was started beforehand: at exit Python 3.12 starts none any more.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger("jeeves_otel")

_LAST = -1_000


class Closer:
    """Run every stop at once, at exit or when asked, once.

    Args:
        stops: ``{name: function that flushes and stops one thing}``.
        timeout_s: What all of them together may take; seconds, > 0.
        begin: Called before the stops run.
        undelivered: Returns the line about what was lost, given how long was waited for what has not ended.
    """

    def __init__(
        self,
        stops: Mapping[str, Callable[[], None]],
        timeout_s: float,
        begin: Callable[[], None] = lambda: None,
        undelivered: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._timeout_s = timeout_s
        self._begin, self._undelivered = begin, undelivered
        self._pid = os.getpid()
        self._asked = Event()
        self._done = {name: Event() for name in stops}
        for name, stop in stops.items():
            Thread(target=self._wait, args=(name, stop), name=f"jeeves-otel-close-{name}", daemon=True).start()
        self._closing = self._closed = False
        self._after: Callable[[], None] | None = None
        self._dismissed = False
        atexit.register(self.close)
        with failsafe("shutdown.finalizer"):
            self._close_as_finalizer()

    def _close_as_finalizer(self) -> None:
        """Close last of all that multiprocessing ends, in its forked children, which leave without `atexit`."""
        util, process = (sys.modules.get(f"multiprocessing.{name}") for name in ("util", "process"))
        if util is None or process is None or os.getpid() != self._pid:
            return
        if process.parent_process() is not None:
            util.Finalize(None, self.close, exitpriority=_LAST)
        else:  # a child that imports its program, or is not a child; one that begins to work forgets its finalizers
            util.register_after_fork(self, Closer._close_as_finalizer)

    def _wait(self, name: str, stop: Callable[[], None]) -> None:
        self._asked.wait()
        if not self._dismissed:
            with failsafe(f"shutdown.{name}"):
                stop()
        self._done[name].set()

    def dismiss(self) -> None:
        """Let go of the stops and run none of them, now or at exit."""
        self._dismissed = self._closing = self._closed = True
        self._asked.set()
        atexit.unregister(self.close)

    def close(self) -> None:
        """Stop everything, wait for it as long as is allowed, and say what has not ended."""
        if self._closing or os.getpid() != self._pid:
            return  # the threads of a parent do not exist in its forked child
        self._closing = True
        with failsafe("shutdown.begin"):
            self._begin()
        self._asked.set()
        late, within = self._late()
        with failsafe("shutdown.report"):
            line = self._undelivered(within)
            if not line and late:
                line = f"the last {' and '.join(late)} were not delivered{within}"
            if line:
                _log.warning("%s", line)
        self._closed = True
        if self._after is not None:
            self._after()

    def _late(self) -> tuple[list[str], str]:
        """Wait as long as is allowed; return what has not ended, and how long that was. Ctrl-C ends the wait."""
        deadline = monotonic() + self._timeout_s
        try:
            late = [name for name, done in self._done.items() if not done.wait(max(0.0, deadline - monotonic()))]
        except KeyboardInterrupt:
            return [name for name, done in self._done.items() if not done.is_set()], " before it was interrupted"
        return late, f" within {self._timeout_s:g} s" if late else ""

    def is_closing(self) -> bool:
        """Return whether `close` is at work in this thread or another."""
        return self._closing and not self._closed

    def then(self, after: Callable[[], None]) -> None:
        """Call *after* at the end of the `close` that is at work."""
        self._after = after
