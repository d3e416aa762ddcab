# SPDX-License-Identifier: Apache-2.0
"""Let any number of processes of one service answer with one page, through a folder that they share.

In: what each process measures. Out: what all of them have measured, those that are dead included. Nothing that a page has
shown is ever taken back; docs/decisions/0014-one-page.md says why nothing is lost or counted twice.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from threading import Event, Lock, Thread
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.shared_folder import (
    LONGEST_SOCKET_PATH,
    MOST_TRIES,
    Folder,
    FolderRefused,
    leave_folder,
    new_id,
    sweep,
    take_seat,
)
from jeeves_otel.snapshots import Held, bounded, dated, encode, merged, retired

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import MetricsData

    from jeeves_otel.snapshots import Limits

INTERVAL_S = 1.0
ANSWER_S = 0.25  # what all other processes together may take to bring their snapshots up to date
# A snapshot may cost this share of a CPU, and its callbacks may wait this share of the time; else it is taken less often.
_CPU_SHARE = 0.02
_TIME_SHARE = 0.1
_LONGEST_PAUSE_S = 60.0  # a process that was stopped in between must not fall silent for hours
_REFRESH_S = 3_600.0  # files that nobody touches for days are taken away by those who clean temporary folders


class FolderGone(Exception):
    """The files of a living process were deleted."""


class TakenForDead(Exception):
    """The files of a living process were deleted, and others have retired what it had measured."""


class NoSocket(Exception):
    """Other processes cannot ask this one, because the path of its socket is too long."""


class Holder:
    """Keeps a folder as long as this process lives, and takes no other part: for a supervisor, whose workers come and go.

    Raises:
        FolderRefused: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Folder(folder)
        self._pid = os.getpid()
        self._id = new_id()
        self._seat = take_seat(self._folder, self._id)

    def leave(self) -> None:
        """Keep the folder no longer; the last one out takes it away. To go on as a `Member`, become that first."""
        if os.getpid() == self._pid:
            with failsafe("shared_page.leave"):
                leave_folder(self._folder, self._id, self._seat)

    def forget(self) -> None:
        """Leave it to the parent, in a child after a fork."""
        self._seat.forget()


class Member:
    """One of the processes that share a page. Safe from several threads; nothing here raises but what is named.

    Args:
        folder: See `folder_of`.
        collect: Returns what this process has measured, translated.
        merges: ``{name of a gauge: "sum", "min", "max" or "last"}``, see `snapshots.merged`.
        limits: How many values the labels of the dead may have together, see `snapshots.bounded`.
        interval_s: Time between two snapshots while others live; seconds, > 0.
        every_turn: Called once per interval, in the thread of this member.

    Raises:
        FolderRefused: The folder cannot be used; the page is that of this process alone.
    """

    def __init__(
        self,
        folder: Path,
        collect: Callable[[], MetricsData],
        merges: Mapping[str, str],
        *,
        limits: Limits | None = None,
        interval_s: float = INTERVAL_S,
        every_turn: Callable[[], None] | None = None,
    ) -> None:
        self._folder = Folder(folder)
        self._collect = collect
        self._merges = merges
        self._limits = limits or {}
        self._interval_s = interval_s
        self._rests_until = 0.0
        self._every_turn = every_turn
        self._pid = os.getpid()
        self._id = new_id()
        self._writing = Lock()
        self._held: Held = {}
        self._final: MetricsData | None = None
        self._left = False
        self._stopped = Event()
        self._asking: list[socket.socket] = []
        self._refreshed = monotonic()
        self._seat = take_seat(self._folder, self._id)
        self._listener = self._listen()
        self._thread = Thread(target=self._run, name="jeeves-otel-page", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # at exit Python starts no threads any more
            self._seat.give_up()
            raise FolderRefused("no thread can be started; this process is not on the page of the others") from error
        with failsafe("shared_page.join"):
            for connection in self._ask():  # those who were alone until now have written nothing
                connection.close()

    # ---- the page ----------------------------------------------------------------------------------------------------

    def whole(self) -> MetricsData:
        """Return what all processes have measured, up to date for each that answers in `ANSWER_S`.

        Raises:
            OSError: Files cannot be read for want of descriptors or the like; no page is better than one that goes back.
        """
        if os.getpid() != self._pid:
            return self._collect()
        others: list[socket.socket] = []
        with failsafe("shared_page.ask"):
            others = self._ask()
        # On disk before anybody sees it, or a kill could take it back.
        own = None if self._left else self._snapshot()
        with failsafe("shared_page.ask"):
            self._await(others)
        if own is None:
            return self._whole_without_us()
        try:
            live, dead, retired_ids = self._read(but=self._id)
        except PermissionError as error:
            hint = "this process has changed its user, and its page is that of this process alone from now on"
            swallow("shared_page.read", error, hint)
            return own
        if self._left or self._id in retired_ids:  # meanwhile; what we have measured is in the folder, or soon will be
            return self._whole_without_us()
        return merged([own, *live], dead, self._merges)

    def _whole_without_us(self) -> MetricsData:
        live, dead, _ = self._read(but="")
        if live or dead or self._final is None:
            return merged(live, dead, self._merges)
        return self._final

    def _read(self, *, but: str) -> tuple[list[MetricsData], list[MetricsData], list[str]]:
        """Return the snapshots of those who live and of the dead, and who is retired; nothing is missing, or there twice."""
        for _ in range(MOST_TRIES):
            generation, retired_ids, counts = self._folder.retired()
            live: list[MetricsData] = []
            dead = [counts] if counts is not None else []
            for member in self._folder.ids().difference(retired_ids, (but,)):
                alive = self._folder.lives(member)  # asked first: what a dead one has left is final
                data = self._folder.snapshot(member)
                if data is not None:
                    (live if alive else dead).append(data)
            if self._folder.generation() == generation:
                return live, dead, retired_ids
        raise BlockingIOError("the dead are retired faster than they can be read")

    def _snapshot(self, *, last: bool = False) -> MetricsData:
        """Collect, put it on disk, and return it; after the *last* one nothing is put there any more."""
        with self._writing:
            cpu, wall = thread_time(), monotonic()
            data, self._held = dated(self._collect(), self._held, self._merges)
            if not self._left:
                try:
                    self._folder.write(f"{self._id}.json", encode(data))
                except OSError as error:
                    swallow("shared_page.write", error, "if this process is killed, what it has measured is lost")
            self._left = self._left or last
            costly_s = max((thread_time() - cpu) / _CPU_SHARE, (monotonic() - wall) / _TIME_SHARE)
            pause_s = min(costly_s, _LONGEST_PAUSE_S)
            self._rests_until = monotonic() + pause_s if pause_s > self._interval_s else 0.0
            return data

    def has_company(self) -> bool:
        """Return whether other processes share the page now."""
        with failsafe("shared_page.read"):
            return bool(self._folder.living(but=self._id))
        return False

    # ---- asking each other -------------------------------------------------------------------------------------------

    def _ask(self) -> list[socket.socket]:
        """Connect to all others, who take that as a wish for a fresh snapshot."""
        asked = []
        for member in self._folder.ids() - {self._id}:
            # Dead, or without a socket, or so slow that its queue is full: its last snapshot counts.
            with suppress(OSError):
                asked.append(self._connect(member))
        return asked

    def _connect(self, member: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(0)
        try:
            connection.connect(str(self._folder.path / f"{member}.sock"))
        except OSError:
            connection.close()
            raise
        return connection

    @staticmethod
    def _await(asked: list[socket.socket]) -> None:
        """Wait until all have answered, or the time of all together is over."""
        deadline = monotonic() + ANSWER_S
        poll = select.poll()
        waiting = {connection.fileno(): connection for connection in asked}
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        while waiting and (left_s := deadline - monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s * 1_000):
                poll.unregister(descriptor)
                waiting.pop(descriptor)
        for connection in asked:
            connection.close()

    def _listen(self) -> socket.socket | None:
        path = self._folder.path / f"{self._id}.sock"
        hint = "other processes see what this one measures once per interval only"
        if len(os.fsencode(path)) >= LONGEST_SOCKET_PATH:
            swallow("shared_page.socket", NoSocket(path), f"{hint}; a shorter JEEVES_OTEL_FOLDER helps")
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(64)
        except OSError as error:
            listener.close()
            swallow("shared_page.socket", error, hint)
            return None
        return listener

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with failsafe("shared_page.sweep"):
            sweep(self._folder.path.parent)
        due = monotonic() + self._interval_s
        while not self._stopped.is_set():
            with failsafe("shared_page.turn"):
                self._accept(max(0.0, due - monotonic()))
                if self._asking and not self._stopped.is_set():
                    self._snapshot()
            self._answer()
            if monotonic() >= due and not self._stopped.is_set():
                with failsafe("shared_page.turn"):
                    self._turn()
                if self._every_turn is not None:
                    with failsafe("shared_page.every_turn"):
                        self._every_turn()
                due = monotonic() + self._interval_s
        if self._listener is not None:
            with suppress(OSError):
                self._listener.close()  # by nobody else: a number that is closed under `accept` may be another file's by then

    def _accept(self, timeout_s: float) -> None:
        """Wait for somebody to ask, no longer than *timeout_s*, and accept all who do."""
        listener = self._listener
        if listener is None:
            self._stopped.wait(timeout_s)
            return
        try:
            listener.settimeout(timeout_s)
            while True:
                self._asking.append(listener.accept()[0])
                listener.settimeout(0)
        except (TimeoutError, BlockingIOError):
            return
        except OSError as error:  # no descriptor is left, or all were closed: wait instead of trying again at once
            swallow("shared_page.accept", error)
            self._stopped.wait(timeout_s)

    def _answer(self) -> None:
        while self._asking:
            connection = self._asking.pop()
            with suppress(OSError):  # it has gone away
                # Closing alone would not reach it while a child, forked meanwhile, has the connection too.
                connection.send(b".", getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT)
            connection.close()

    def _turn(self) -> None:
        if not self._seat.stands() and not self._sit_again():
            return
        others = self._folder.ids() - {self._id}
        if others:  # alone it would write for nobody: with the last process the run is over
            if monotonic() >= self._rests_until:
                self._snapshot()
            self._retire_dead(others)
        if monotonic() - self._refreshed > _REFRESH_S:
            self._refreshed = monotonic()
            self._folder.refresh()

    def _retire_dead(self, others: Collection[str]) -> None:
        """Put the counts of the dead into ``retired.json``; after each step, whatever happens, a page is right."""
        dead = [member for member in others if not self._folder.lives(member)]
        if not dead:
            return
        with self._folder.locked(0) as locked:
            if not locked:
                return
            _, retired_ids, counts = self._folder.retired()
            fresh = {
                member: data
                for member in dead
                if member not in retired_ids and (data := self._folder.snapshot(member)) is not None
            }
            if fresh:
                fitting = bounded(fresh.values(), counts, lambda: self._living(dead), self._limits)
                self._folder.retire(fresh, retired([*([counts] if counts is not None else []), *fitting]), retired_ids)
            for member in dead:
                self._folder.remove(member)

    def _living(self, dead: Collection[str]) -> list[MetricsData]:
        snapshots = (self._folder.snapshot(member) for member in self._folder.ids().difference(dead))
        return [data for data in snapshots if data is not None]

    def _sit_again(self) -> bool:
        """Return to a folder whose files were deleted; return whether that is possible."""
        hint = "files of a living process were deleted: what processes have measured that have ended is missing on the page"
        swallow("shared_page.folder", FolderGone(self._folder.path), hint)
        if self._id in self._folder.retired()[1]:
            hint = "the page has what this process had measured, and nothing that it measures from now on; restart it"
            self._left = True
            self._stopped.set()
            swallow("shared_page.folder", TakenForDead(self._id), hint)
            return False
        self._seat.give_up()
        self._seat = take_seat(self._folder, self._id, returning=True)
        if self._listener is not None:
            self._listener.close()
        (self._folder.path / f"{self._id}.sock").unlink(missing_ok=True)
        self._listener = self._listen()
        return True

    # ---- the end -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Take part no longer; what was measured stays on the page of the others. The last one out takes the folder away."""
        if os.getpid() != self._pid or self._left:
            return
        with failsafe("shared_page.leave"):
            # Before the thread stops: whoever asks after that takes the closed connection for an answer.
            last = self._snapshot(last=True)
            self._stopped.set()
            self._wake()
            with failsafe("shared_page.leave"):
                if not self._folder.living(but=self._id):
                    self._final = merged([last], self._read(but=self._id)[1], self._merges)
            (self._folder.path / f"{self._id}.sock").unlink(missing_ok=True)
            leave_folder(self._folder, self._id, self._seat)
        self._stopped.set()

    def _wake(self) -> None:
        with suppress(OSError):
            self._connect(self._id).close()

    def forget(self) -> None:
        """Leave everything to the parent, in a child after a fork: close what was inherited, and touch nothing else."""
        self._left = True
        self._stopped.set()
        self._seat.forget()
        for connection in (*self._asking, *([self._listener] if self._listener is not None else [])):
            connection.close()
        self._asking, self._listener = [], None
