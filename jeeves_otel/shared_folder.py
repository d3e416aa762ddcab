# SPDX-License-Identifier: Apache-2.0
"""Keep the folder that the processes of one service share: where it is, who lives, what each has left.

In: what a service is called and where it answers. Out: a folder that is this user's alone. Whoever lives holds a lock in
it, which ends with its process, however that ends::

    lock             held while processes come and go, and while the dead are retired
    <id>.lock        held by a process as long as it lives
    <id>.json        its newest snapshot, replaced as a whole
    <id>.sock        whoever connects gets a fresh snapshot: the connection is closed when it is on disk
    retired.json     the counts of the dead, and which of them are in it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

from jeeves_otel import launch_tree
from jeeves_otel.failsafe import swallow
from jeeves_otel.snapshots import FORMAT, Unreadable, decode, encode

try:
    import fcntl as _fcntl
except ImportError:  # Windows has neither these locks nor fork
    _fcntl = None  # type: ignore[assignment]  # asked for before each use

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

JOIN_S = 1.0  # what others may keep the folder's lock while a process joins; clearing a folder takes milliseconds
LEAVE_S = 0.25
LONGEST_SOCKET_PATH = 100  # bytes; the address of a Unix socket has 108 on Linux, 104 on macOS
MOST_TRIES = 20
_FORGOTTEN_S = 86_400.0  # whoever lives refreshes its files far more often
_LONGEST_ID = len("p4194304-0123abcd.sock")
_LONGEST_KEY = 48
_MOST_RETIRED = 1_000
_OURS = re.compile(r"(p\d+-\w+)\.(?:lock|json|sock)|(?:p\d+-\w+|retired)\.(?:lock|json)\.tmp|retired\.json")
_READABLE = re.compile(r"[^A-Za-z0-9_.-]+")


class FolderRefused(Exception):
    """There is no folder that the processes of this service can share; the message says what to do."""


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
    room = LONGEST_SOCKET_PATH - 1 - _LONGEST_ID - len(os.fsencode(parent)) - 2 - len(digest) - 1
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


class Folder:
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


class Seat:
    """The lock that says that this process lives."""

    def __init__(self, folder: Folder, member: str) -> None:
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


def new_id() -> str:
    """Return a name for this process that no other has."""
    return f"p{os.getpid()}-{os.urandom(4).hex()}"


def take_seat(folder: Folder, member: str, *, returning: bool = False) -> Seat:
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
        for _ in range(MOST_TRIES):
            _make(folder.path)
            with suppress(FileNotFoundError), folder.locked(JOIN_S) as locked:  # the last one took the folder away
                if locked and not returning and not folder.living():
                    folder.clear()
                return Seat(folder, member)
    except OSError as error:
        raise FolderRefused(
            f"{folder.path} cannot be used ({error.strerror}); name another place with JEEVES_OTEL_FOLDER=/path"
        ) from error
    raise FolderRefused(
        f"{folder.path} is deleted as soon as it is made; name another place with JEEVES_OTEL_FOLDER=/path"
    )


def sweep(parent: Path) -> None:
    """Take away folders in *parent* whose runs were killed, and did not begin again for a day."""
    for path in parent.iterdir():
        folder = Folder(path)
        with suppress(OSError):
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and time() - found.st_mtime > _FORGOTTEN_S:
                with folder.locked(0) as locked:
                    if locked and not folder.living():
                        folder.clear()
                        folder.vanish()


def leave_folder(folder: Folder, member: str, seat: Seat) -> None:
    """Give up *seat*; the last one out takes the folder away."""
    try:
        with folder.locked(LEAVE_S) as locked:
            if locked and not folder.living(but=member):
                folder.clear()
                folder.vanish()
    finally:
        seat.give_up()
