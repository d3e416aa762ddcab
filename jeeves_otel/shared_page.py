# SPDX-License-Identifier: Apache-2.0
"""Let any number of processes of one service answer with one page, through a folder that they share.

In: what each process measures. Out: what all of them have measured, those that are dead included. Whoever lives holds a
lock in the folder, which ends with its process, however that ends. Nothing that a page has shown is ever taken back.

In the folder of a group of processes::

    lock             held while processes come and go, and while the dead are retired
    <id>.lock        held by a process as long as it lives
    <id>.json        its newest snapshot, replaced as a whole
    <id>.sock        whoever connects gets a fresh snapshot: the connection is closed when it is on disk
    retired.json     the counts of the dead, and which of them are in it

docs/decisions/0014-one-page.md says why nothing is lost or counted twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import socket
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, sleep, thread_time, time
from typing import TYPE_CHECKING, Any

from jeeves_otel import launch_tree
from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.snapshots import FORMAT, Held, Unreadable, bounded, dated, decode, encode, merged, retired

try:
    import fcntl as _fcntl
except ImportError:  # Windows has neither these locks nor fork
    _fcntl = None  # type: ignore[assignment]  # asked for before each use

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

    from jeeves_otel.snapshots import Limits

INTERVAL_S = 1.0
ANSWER_S = 0.25  # what all other processes together may take to bring their snapshots up to date
JOIN_S = 1.0  # what others may keep the folder's lock while a process joins; clearing a folder takes milliseconds
# A snapshot may cost this share of a CPU, and its callbacks may wait this share of the time; else it is taken less often.
_CPU_SHARE = 0.02
_TIME_SHARE = 0.1
_LONGEST_PAUSE_S = 60.0  # a process that was stopped in between must not fall silent for hours
_REFRESH_S = 3_600.0  # files that nobody touches for days are taken away by those who clean temporary folders
_FORGOTTEN_S = 86_400.0  # whoever lives refreshes its files far more often
_LONGEST_SOCKET_PATH = 100  # bytes; the address of a Unix socket has 108 on Linux, 104 on macOS
_LONGEST_ID = len("p4194304-0123abcd.sock")
_LONGEST_KEY = 48
_MOST_TRIES = 20
_MOST_RETIRED = 1_000
_OURS = re.compile(r"(p\d+-\w+)\.(?:lock|json|sock)|(?:p\d+-\w+|retired)\.(?:lock|json)\.tmp|retired\.json")
_READABLE = re.compile(r"[^A-Za-z0-9_.-]+")


class FolderRefused(Exception):
    """There is no folder that the processes of this service can share; the message says what to do."""


class FolderGone(Exception):
    """The files of a living process were deleted."""


class TakenForDead(Exception):
    """The files of a living process were deleted, and others have retired what it had measured."""


class NoSocket(Exception):
    """Other processes cannot ask this one, because the path of its socket is too long."""


# ---- which folder ----------------------------------------------------------------------------------------------------


def folder_of(
    attributes: Mapping[str, Any], places: Sequence[str], environ: MutableMapping[str, str], base: str | None = None
) -> Path:
    """Return the folder that the processes of this service share; it may not exist yet.

    Processes belong together that have the same service and answer at the same places, or, if the service has no name or
    answers nowhere of its own, that one process has launched.

    Raises:
        FolderRefused: The system has no locks that end with their process, and no place for such a folder.

    Args:
        attributes: Of the resource.
        places: ``host:port`` of each page.
        environ: Of this process; children must inherit what is written there.
        base: An existing folder; None: the folder of the system for temporary files.
    """
    _need_locks()
    name, namespace = (str(attributes.get(f"service.{key}") or "") for key in ("name", "namespace"))
    anonymous = not places or not name or name.startswith("unknown_service")
    # The same port of another network namespace, of a container that shares the folder, is another place.
    with suppress(OSError):
        namespace += f"@{Path('/proc/self/ns/net').stat().st_ino}"
    identity = [FORMAT, namespace, name, sorted(places), launch_tree.token(environ) if anonymous else ""]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    parent = Path(base or _temporary(environ)) / f"jeeves-otel-{os.geteuid()}"
    room = _LONGEST_SOCKET_PATH - 1 - _LONGEST_ID - len(os.fsencode(parent)) - 2 - len(digest) - 1
    readable = _READABLE.sub("_", "-".join([name or "unnamed", *(place.rpartition(":")[2] for place in places)]))
    readable = readable[: max(0, min(room, _LONGEST_KEY))]
    return parent / (f"{readable}-{digest}" if readable else digest)


def _need_locks() -> None:
    if _fcntl is None:
        raise FolderRefused("this system has no POSIX record locks; each process answers for itself")


def _temporary(environ: Mapping[str, str]) -> str:
    candidates = (environ.get("TMPDIR") or "/tmp", "/dev/shm")  # noqa: S108 - below it stands a folder of our own
    return next((path for path in candidates if os.access(path, os.W_OK | os.X_OK)), candidates[0])


def _make(folder: Path) -> None:
    """Make *folder* and the one above it, open to this user alone.

    Raises:
        FolderRefused: Somebody else could read or replace what is in it.
    """
    for path in (folder.parent, folder):
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
        except OSError as error:
            raise FolderRefused(
                f"{path} cannot be made ({error.strerror}); name an existing folder that this user can write, "
                "JEEVES_OTEL_FOLDER=/path"
            ) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise FolderRefused(
                f"{path} is not a folder of this user's alone, so others could forge or read what is measured; "
                "delete it, or name another place with JEEVES_OTEL_FOLDER=/path"
            )


# ---- files of a folder -----------------------------------------------------------------------------------------------

# These locks belong to a process, and end when it closes any descriptor of the file. So no process opens the lock of a
# member of its own again, and one thread at a time holds the lock of a folder.
_of_this_process: set[Path] = set()
_one_at_a_time = Lock()


def _after_fork() -> None:
    global _one_at_a_time  # noqa: PLW0603 - as in `failsafe`
    _one_at_a_time = Lock()
    _of_this_process.clear()  # a child does not inherit these locks


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        _fcntl.lockf(descriptor, kind | _fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves the choice
        return False
    return True


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


class _Folder:
    """The files that the processes of one group share. Remembers nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ids(self) -> set[str]:
        """Return the ids of all processes that have left anything here."""
        try:
            entries = list(self.path.iterdir())
        except FileNotFoundError:
            return set()
        return {found[1] for entry in entries if (found := _OURS.fullmatch(entry.name)) and found[1]}

    def lives(self, member: str) -> bool:
        """Return whether the process *member* lives."""
        path = self.path / f"{member}.lock"
        if path in _of_this_process:
            return True
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, _fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def living(self, *, but: str = "") -> list[str]:
        """Return the ids of those who live, without *but*."""
        return [member for member in self.ids() if member != but and self.lives(member)]

    def snapshot(self, member: str) -> MetricsData | None:
        """Return the newest snapshot of *member*, or None if it has none that can be read; the latter is counted."""
        try:
            return decode((self.path / f"{member}.json").read_bytes())
        except FileNotFoundError:
            return None
        except Unreadable as error:
            swallow("shared_page.read", error, "what one process has measured is missing on the page")
            return None

    def write(self, name: str, data: bytes) -> None:
        """Replace the file *name*: a reader finds the old text or the new."""
        new = self.path / f"{name}.tmp"
        new.write_bytes(data)
        new.replace(self.path / name)

    def retired(self) -> tuple[str, list[str], MetricsData | None]:
        """Return the generation of ``retired.json``, whose counts are in it, and the counts."""
        try:
            head, _, body = (self.path / "retired.json").read_bytes().partition(b"\n")
        except FileNotFoundError:
            return "", [], None
        try:
            return _generation(head), [str(member) for member in json.loads(head)[1]], decode(body)
        except (ValueError, TypeError, LookupError) as error:
            swallow("shared_page.read", error, "what processes have measured that have ended is missing on the page")
            return _generation(head), [], None

    def generation(self) -> str:
        """Return the generation of ``retired.json``, which changes whenever it does."""
        try:
            with (self.path / "retired.json").open("rb") as file:
                return _generation(file.readline())
        except FileNotFoundError:
            return ""

    def retire(self, members: Collection[str], data: MetricsData, before: Sequence[str]) -> None:
        """Replace ``retired.json`` by *data*, which holds the counts of *members* too."""
        head = json.dumps([os.urandom(8).hex(), [*before, *members][-_MOST_RETIRED:]])
        self.write("retired.json", f"{head}\n".encode() + encode(data))

    def remove(self, member: str) -> None:
        """Take away what *member* has left."""
        for suffix in ("json", "json.tmp", "sock", "lock"):
            (self.path / f"{member}.{suffix}").unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away everything of ours that stands here now, except the lock of the folder."""
        for entry in list(self.path.iterdir()):
            if _OURS.fullmatch(entry.name):  # whatever folder was named, nothing else is lost
                entry.unlink(missing_ok=True)

    def vanish(self) -> None:
        """Take away the lock and the folder; whoever has come meanwhile keeps it."""
        with suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == ["lock"]:
                (self.path / "lock").unlink()
                self.path.rmdir()

    def refresh(self) -> None:
        """Say that everything here is in use."""
        for entry in (self.path, *self.path.iterdir()):
            with suppress(FileNotFoundError):
                os.utime(entry)

    @contextmanager
    def locked(self, timeout_s: float) -> Iterator[bool]:
        """Hold the lock of the folder, or yield False if others have held it for *timeout_s*."""
        deadline = monotonic() + timeout_s
        if not _one_at_a_time.acquire(timeout=timeout_s):
            yield False
            return
        try:
            descriptor = self._locked_file(deadline)
            try:
                yield descriptor is not None
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        finally:
            _one_at_a_time.release()

    def _locked_file(self, deadline: float) -> int | None:
        while True:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _try_lock(descriptor, _fcntl.LOCK_EX):
                    # Whoever was here last has taken the file away, perhaps after it was opened here.
                    with suppress(FileNotFoundError):
                        if _same_file(os.fstat(descriptor), (self.path / "lock").stat()):
                            kept, descriptor = descriptor, -1
                            return kept
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            if monotonic() >= deadline:
                return None
            sleep(0.005)


def _generation(head: bytes) -> str:
    try:
        return str(json.loads(head)[0])
    except (ValueError, TypeError, LookupError):
        return ""


class _Seat:
    """The lock that says that this process lives."""

    def __init__(self, folder: _Folder, member: str) -> None:
        self._path = folder.path / f"{member}.lock"
        new = folder.path / f"{member}.lock.tmp"
        self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fstat(self._descriptor)
        try:
            # Under another name until it is locked: an unlocked one says that its process is dead.
            _fcntl.lockf(self._descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            new.replace(self._path)
        except OSError:
            self.forget()
            raise
        _of_this_process.add(self._path)

    def stands(self) -> bool:
        """Return whether others can see it."""
        try:
            return _same_file(self._path.stat(), self._file)
        except FileNotFoundError:
            return False

    def give_up(self) -> None:
        """Say that this process takes part no longer."""
        if self.stands():
            self._path.unlink(missing_ok=True)
        _of_this_process.discard(self._path)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor alone; in a forked child that leaves the lock to its parent."""
        with suppress(OSError):  # an application that closes all descriptors may have closed, and reused, this one
            if _same_file(os.fstat(self._descriptor), self._file):
                os.close(self._descriptor)


def _new_id() -> str:
    return f"p{os.getpid()}-{os.urandom(4).hex()}"


def _sit(folder: _Folder, member: str, *, returning: bool = False) -> _Seat:
    """Take a seat in *folder*, and clear it before if nobody else has one: then it is left from an earlier run.

    Args:
        folder: May not exist yet.
        member: Whose seat it is.
        returning: Whether it belongs to the run that has left what is there.

    Raises:
        FolderRefused: See `_make`, or the system has no such locks, or files cannot be written there.
    """
    _need_locks()
    try:
        for _ in range(_MOST_TRIES):
            _make(folder.path)
            with suppress(FileNotFoundError), folder.locked(JOIN_S) as locked:  # the last one took the folder away
                if locked and not returning and not folder.living():
                    folder.clear()
                return _Seat(folder, member)
    except OSError as error:
        raise FolderRefused(
            f"{folder.path} cannot be used ({error.strerror}); name another place with JEEVES_OTEL_FOLDER=/path"
        ) from error
    raise FolderRefused(
        f"{folder.path} is deleted as soon as it is made; name another place with JEEVES_OTEL_FOLDER=/path"
    )


def _sweep(parent: Path) -> None:
    """Take away folders in *parent* whose runs were killed, and did not begin again for a day."""
    for path in parent.iterdir():
        folder = _Folder(path)
        with suppress(OSError):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and time() - found.st_mtime > _FORGOTTEN_S:
                with folder.locked(0) as locked:
                    if locked and not folder.living():
                        folder.clear()
                        folder.vanish()


# ---- those who take part ---------------------------------------------------------------------------------------------


class Holder:
    """Keeps a folder as long as this process lives, and takes no other part: for a supervisor, whose workers come and go.

    Raises:
        FolderRefused: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = _Folder(folder)
        self._pid = os.getpid()
        self._id = _new_id()
        self._seat = _sit(self._folder, self._id)

    def leave(self) -> None:
        """Keep the folder no longer; the last one out takes it away. To go on as a `Member`, become that first."""
        if os.getpid() == self._pid:
            with failsafe("shared_page.leave"):
                _go(self._folder, self._id, self._seat)

    def forget(self) -> None:
        """Leave it to the parent, in a child after a fork."""
        self._seat.forget()


def _go(folder: _Folder, member: str, seat: _Seat) -> None:
    try:
        with folder.locked(ANSWER_S) as locked:
            if locked and not folder.living(but=member):
                folder.clear()
                folder.vanish()
    finally:
        seat.give_up()


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
        self._folder = _Folder(folder)
        self._collect = collect
        self._merges = merges
        self._limits = limits or {}
        self._interval_s = interval_s
        self._rests_until = 0.0
        self._every_turn = every_turn
        self._pid = os.getpid()
        self._id = _new_id()
        self._writing = Lock()
        self._held: Held = {}
        self._final: MetricsData | None = None
        self._left = False
        self._stopped = Event()
        self._asking: list[socket.socket] = []
        self._refreshed = monotonic()
        self._seat = _sit(self._folder, self._id)
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
        for _ in range(_MOST_TRIES):
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
        if len(os.fsencode(path)) >= _LONGEST_SOCKET_PATH:
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
            _sweep(self._folder.path.parent)
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
        self._seat = _sit(self._folder, self._id, returning=True)
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
            _go(self._folder, self._id, self._seat)
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
