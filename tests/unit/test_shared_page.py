# SPDX-License-Identifier: Apache-2.0
"""shared_page: who is in a folder, what is read from it, and what happens when any step of it fails."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from jeeves_otel import failsafe, launch_tree, shared_folder, shared_page
from jeeves_otel.exposition import render
from jeeves_otel.registry import load
from jeeves_otel.shared_folder import FolderRefused, folder_of
from jeeves_otel.shared_page import ANSWER_S, Holder, Member
from jeeves_otel.snapshots import encode, limits_of
from tests.helpers import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEVER_S = 3_600.0  # the threads of these members only answer; the tests make the turns
NAMED = {"service.name": "orders", "service.namespace": "shop"}
PLACES = ["127.0.0.1:9090"]
BASE = "/var/lib/jeeves"  # only named, never made


def measured(count: float, level: float = 1.0) -> MetricsData:
    """Return what a process has that counted *count*, and whose gauge is at *level*."""
    metrics = [
        Metric("c", "", "", Sum([NumberDataPoint({}, 1, 2, count)], AggregationTemporality.CUMULATIVE, True)),
        Metric("g", "", "", Gauge([NumberDataPoint({}, None, 2, level)])),  # type: ignore[arg-type]  # as the SDK does
    ]
    return MetricsData([ResourceMetrics(Resource({}), [ScopeMetrics(InstrumentationScope("s"), metrics, "")], "")])


class Process:
    """Counts, as one process would, and takes part in a folder."""

    def __init__(self, folder: Path, count: float = 0, **options: Any) -> None:
        self.count = count
        self.member = Member(folder, lambda: measured(self.count), {"g": "sum"}, **{"interval_s": NEVER_S, **options})

    def shown(self) -> float | None:
        """Return what the page shows as the count of all."""
        return shown(self.member, "c")

    def turn(self) -> None:
        """Let an interval pass."""
        self.member._turn()

    def leave(self) -> None:
        """Leave, and wait for the end of the thread."""
        self.member.leave()
        self.member._thread.join(30)
        if self.member._listener is not None:
            self.member._listener.close()  # of one that came after the thread's end

    def without_thread(self) -> Process:
        """End its thread, and return it: some turns change what the thread is waiting for."""
        self.member._stopped.set()
        self.member._wake()
        self.member._thread.join()
        return self


def shown(member: Member, name: str) -> Any:
    """Return the value of one metric on the page of *member*."""
    scopes = [scope for resource in member.whole().resource_metrics for scope in resource.scope_metrics]
    values = [metric.data.data_points[0].value for scope in scopes for metric in scope.metrics if metric.name == name]  # type: ignore[union-attr]
    return values[0] if values else None


def leave_behind(folder: Path, count: float, member: str = "p1-dead", *, lock: bool = True) -> None:
    """Make *folder* look as if a process had died there."""
    (folder / f"{member}.json").write_bytes(encode(measured(count)))
    if lock:
        (folder / f"{member}.lock").touch()
    (folder / f"{member}.sock").touch()


def names(folder: Path) -> list[str]:
    """Return the suffixes of what is in *folder*, in order."""
    return sorted(path.name.partition(".")[2] or path.name for path in folder.iterdir())


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of a group, which does not exist yet; its path is short enough for sockets."""
    with TemporaryDirectory(prefix="jeeves-") as base:
        yield Path(base) / "u" / "g"


@pytest.fixture
def join(folder: Path) -> Iterator[Callable[..., Process]]:
    """Return a factory of processes in *folder*, which leave it afterwards."""
    joined: list[Process] = []

    def make(count: float = 0, **options: Any) -> Process:
        joined.append(Process(folder, count, **options))
        return joined[-1]

    yield make
    failsafe.set_strict(False)
    for process in joined:
        process.leave()


@pytest.fixture
def lenient() -> None:
    """Let failures be swallowed, as in production."""
    failsafe.set_strict(False)


# ---- a page ----------------------------------------------------------------------------------------------------------


def test_page_adds_up_what_all_have_measured(join: Callable[..., Process]) -> None:
    """Whichever process answers."""
    one, other, third = join(1), join(20), join(300)

    assert [321, 321, 321] == [process.shown() for process in (one, other, third)]


def test_page_is_fresh_when_it_is_asked_for(join: Callable[..., Process]) -> None:
    """The others are asked; nobody waits for the end of their intervals."""
    one, other = join(1), join(20)
    one.shown()
    other.count = 50

    assert one.shown() == 51


def test_own_snapshot_is_on_disk_before_the_page_is_answered(join: Callable[..., Process], folder: Path) -> None:
    """What a page has shown must survive a kill, also of a process that was alone."""
    process = join(1)
    process.count = 7
    process.shown()
    (snapshot,) = folder.glob("*.json")

    assert encode(measured(7)) == snapshot.read_bytes()


def test_dead_processes_count_and_their_gauges_do_not(join: Callable[..., Process], folder: Path) -> None:
    """Counters are kept, levels have ended."""
    process = join(1)
    leave_behind(folder, 20)

    assert (21, 1.0) == (process.shown(), shown(process.member, "g"))


def test_file_without_a_lock_is_that_of_a_dead_process(join: Callable[..., Process], folder: Path) -> None:
    """Who has left in peace has taken the lock along."""
    process = join(1)
    leave_behind(folder, 20, lock=False)

    assert (21, 1.0) == (process.shown(), shown(process.member, "g"))


def test_lone_process_writes_nothing_at_its_turns(join: Callable[..., Process], folder: Path) -> None:
    """A service of one process pays nothing."""
    process = join(1)
    process.turn()

    assert ["lock", "lock", "sock"] == names(folder)


def test_process_in_company_writes_at_its_turns(join: Callable[..., Process], folder: Path) -> None:
    """A supervisor that only holds the folder is company too: it will start the next worker."""
    holder = Holder(folder)
    process = join(1)
    process.turn()

    assert ["json", "lock", "lock", "lock", "sock"] == names(folder)
    holder.leave()


def test_newcomer_makes_a_lone_process_write(join: Callable[..., Process], folder: Path) -> None:
    """What it counted while it was alone must not depend on its next turn."""
    lone = join(1)
    join(2)

    poll_until((folder / f"{lone.member._id}.json").exists, "its snapshot")


def test_page_that_was_answered_after_leaving_is_that_of_those_who_stayed(join: Callable[..., Process]) -> None:
    """What one has counted who left stays with the others, and the one who left shows the same."""
    one, other = join(1), join(20)
    other.leave()
    one.count = 2

    assert (22, 22) == (one.shown(), other.shown())


def test_last_one_out_shows_its_last_page(join: Callable[..., Process], folder: Path) -> None:
    """A scrape at the very end must not go back, though the folder is gone."""
    process = join(1)
    leave_behind(folder, 20)
    process.leave()

    assert (21, False) == (process.shown(), folder.exists())


def test_nothing_is_written_after_the_last_snapshot(join: Callable[..., Process], folder: Path) -> None:
    """A snapshot that came after the lock was given up could be retired without its newest counts."""
    one, other = join(1), join(20)
    other.leave()
    other.count = 99
    other.member._snapshot()

    assert 21 == one.shown()
    assert 2 == len(list(folder.glob("*.json")))


# ---- the dead --------------------------------------------------------------------------------------------------------


def test_dead_are_retired_into_one_file(join: Callable[..., Process], folder: Path) -> None:
    """However many have died, one file is left, and the page is what it was."""
    process = join(1)
    for n in range(5):
        leave_behind(folder, 10 ** (n + 1), f"p{n}-dead")
    before = process.shown()
    process.turn()

    assert (111_111, 111_111) == (before, process.shown())
    assert ["json", "json", "lock", "lock", "sock"] == names(folder)


def test_dead_are_retired_again_and_again(join: Callable[..., Process], folder: Path) -> None:
    """Generation after generation is added."""
    process = join(1)
    for n in range(3):
        leave_behind(folder, 10, f"p{n}-dead")
        process.turn()

    assert 31 == process.shown()


def test_who_is_retired_is_not_counted_again(join: Callable[..., Process], folder: Path) -> None:
    """A file that a crash has left beside what it is part of is no news."""
    process = join(1)
    for member in ("p1-dead", "p2-dead"):
        leave_behind(folder, 10, member)
        process.turn()
    for member in ("p1-dead", "p2-dead"):
        leave_behind(folder, 10, member)

    assert 21 == process.shown()
    process.turn()
    assert (21, ["json", "json", "lock", "lock", "sock"]) == (process.shown(), names(folder))


def test_values_of_the_dead_are_bounded_when_they_are_retired(join: Callable[..., Process], folder: Path) -> None:
    """Recycled for months, workers leave no more label values than the registry allows."""
    process = join(1, limits=limits_of(load(("jeeves",))))
    for n in range(0, 300, 100):
        points = [NumberDataPoint({"feature": f"f{n + i}"}, 1, 2, 1) for i in range(100)]
        uses = Metric(
            "jeeves_feature_usage_total", "", "", Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        )
        scope = ScopeMetrics(InstrumentationScope("jeeves_otel"), [uses], "")
        (folder / f"p{n}-dead.json").write_bytes(encode(MetricsData([ResourceMetrics(Resource({}), [scope], "")])))
        process.turn()
    lines = [line for line in render(process.member.whole(), openmetrics=False).splitlines() if "_usage_total{" in line]

    assert (201, True) == (len(lines), 'jeeves_feature_usage_total{feature="other"} 100.0' in lines)


def _steps(monkeypatch: pytest.MonkeyPatch, fail_at: int | None) -> list[str]:
    """Count every change that is made in a folder, and fail at one of them, as if the process ended there."""
    steps: list[str] = []

    def watch(name: str) -> None:
        real = getattr(Path, name)

        def act(path: Path, *args: Any, **options: Any) -> Any:
            if fail_at is not None and len(steps) >= fail_at:
                raise OSError(errno.EIO, "the end")
            steps.append(name)
            return real(path, *args, **options)

        monkeypatch.setattr(Path, name, act)

    for name in ("write_bytes", "replace", "unlink"):
        watch(name)
    return steps


@pytest.mark.parametrize("step", range(11))
@pytest.mark.usefixtures("lenient")
def test_page_is_right_after_every_step_of_retiring(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ended before any of its eleven steps, retiring leaves a folder with the same sum, and the next turn ends it."""
    process, witness = join(1), join(0)
    leave_behind(folder, 20, "p1-dead")
    leave_behind(folder, 300, "p2-dead")
    with monkeypatch.context() as patch:
        made = _steps(patch, step)
        try:
            process.member._retire_dead({"p1-dead", "p2-dead"})
        except OSError:
            assert step == len(made)

    assert 321 == witness.shown()
    process.turn()
    assert 321 == witness.shown()
    assert {"p1-dead", "p2-dead"}.isdisjoint(path.stem for path in folder.iterdir())


def test_retiring_has_as_many_steps_as_are_tested(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would pass over steps that it does not know: write, replace, and four files of two dead each."""
    process = join(1)
    leave_behind(folder, 20, "p1-dead")
    leave_behind(folder, 300, "p2-dead")
    with monkeypatch.context() as patch:
        made = _steps(patch, None)
        process.member._retire_dead({"p1-dead", "p2-dead"})

    assert ["write_bytes", "replace", *["unlink"] * 8] == made


def test_dead_who_are_retired_while_a_page_is_read_count_once(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers take no lock: when the generation has changed under them they read again."""
    process, retiring = join(1), join(0)
    leave_behind(folder, 20)
    real, moments = shared_folder.Folder.ids, iter(["before", "after"])

    def ids(folder: Any) -> set[str]:
        # Between reading retired.json and listing the folder, and between listing and reading the files.
        moment = next(moments, None)
        found = real(folder) if moment != "before" else set()
        if moment is not None:
            monkeypatch.setattr(shared_folder.Folder, "ids", real)
            retiring.turn()
            monkeypatch.setattr(shared_folder.Folder, "ids", ids)
        return found or real(folder)

    monkeypatch.setattr(shared_folder.Folder, "ids", ids)
    live, dead, _ = process.member._read(but=process.member._id)

    assert [0, 20] == [
        data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0].value for data in (*live, *dead)
    ]  # type: ignore[union-attr]


def test_page_that_cannot_be_read_in_one_piece_is_refused(
    join: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is better than one that goes back."""
    process = join(1)
    monkeypatch.setattr(shared_folder.Folder, "generation", lambda _: os.urandom(8).hex())
    with pytest.raises(BlockingIOError):
        process.shown()


def test_retiring_gives_way_to_whoever_has_the_lock(join: Callable[..., Process], folder: Path) -> None:
    """A turn never waits: the next one will do."""
    process = join(1)
    leave_behind(folder, 20)
    assert shared_folder._one_at_a_time.acquire(timeout=1)
    process.turn()
    shared_folder._one_at_a_time.release()

    assert (folder / "p1-dead.json").exists()
    assert 21 == process.shown()


# ---- coming and going ------------------------------------------------------------------------------------------------


def test_folder_of_a_dead_run_is_cleared(join: Callable[..., Process], folder: Path) -> None:
    """A service that starts anew counts from zero."""
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    leave_behind(folder, 20)
    (folder / "retired.json").write_bytes(b'["generation",["p0"]]\n' + encode(measured(300)))

    assert 1 == join(1).shown()


@pytest.mark.parametrize("keeper", ["holder", "member"])
def test_folder_is_not_cleared_while_somebody_lives(join: Callable[..., Process], folder: Path, keeper: str) -> None:
    """The last worker may die while its supervisor starts the next one."""
    holder = Holder(folder) if keeper == "holder" else None
    if holder is None:
        join(0)
    leave_behind(folder, 20)

    assert 21 == join(1).shown()
    if holder is not None:
        holder.leave()


def test_last_one_out_takes_the_folder_away(folder: Path) -> None:
    """Nothing is left on the machine; who holds the folder only keeps it until then."""
    holder, process = Holder(folder), Process(folder, 1)
    process.leave()
    with_holder = folder.exists()
    holder.leave()

    assert (True, False) == (with_holder, folder.exists())


@pytest.mark.usefixtures("lenient")
def test_leaving_a_folder_that_is_gone_gives_up_the_lock(folder: Path) -> None:
    """Whoever deletes it harms nobody."""
    holder = Holder(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    holder.leave()

    assert folder / f"{holder._id}.lock" not in shared_folder._of_this_process
    assert {"shared_page.leave": 1} == failsafe.counts()


def test_folder_that_vanishes_while_one_joins_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one out may be a moment ahead."""
    real, times = shared_folder._make, []

    def make_and_lose(path: Path) -> None:
        real(path)
        times.append(path)
        if len(times) == 1:
            path.rmdir()

    monkeypatch.setattr(shared_folder, "_make", make_and_lose)
    process = Process(folder, 1)

    assert (1, 2) == (process.shown(), len(times))
    process.leave()


def test_lock_of_a_folder_that_was_taken_away_is_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has opened the file of the one before must not believe that it holds the folder."""
    folder.mkdir(parents=True)
    real, files = shared_folder._try_lock, []

    def lock(descriptor: int, kind: int) -> bool:
        files.append(os.fstat(descriptor).st_ino)
        if len(files) == 1:
            (folder / "lock").rename(folder / "old")
        return real(descriptor, kind)

    monkeypatch.setattr(shared_folder, "_try_lock", lock)
    with shared_folder.Folder(folder).locked(1) as locked:
        assert (True, (folder / "lock").stat().st_ino) == (locked, files[-1])


def test_joining_does_not_wait_for_a_lock_that_is_never_released(
    join: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped while it held the lock must not stop others; they clear nothing then."""
    join(1)
    monkeypatch.setattr(shared_folder, "JOIN_S", 0.05)
    assert shared_folder._one_at_a_time.acquire(timeout=1)
    started = time.monotonic()
    process = join(20)
    took_s = time.monotonic() - started
    shared_folder._one_at_a_time.release()

    assert 21 == process.shown()
    assert took_s < 1


def test_folders_of_runs_that_were_killed_are_taken_away_after_a_day(folder: Path) -> None:
    """A service without a name has another folder each time; where somebody lives nothing is taken away."""
    dead, young, living = (folder.with_name(name) for name in ("dead", "young", "living"))
    holder = Holder(living)
    for path in (dead, young):
        path.mkdir()
        leave_behind(path, 20)
    for path in (dead, living):
        os.utime(path, (0, 0))
    process = Process(folder)
    poll_until(lambda: not dead.exists(), "the dead to be swept away")
    process.leave()

    assert (True, True) == ((young / "p1-dead.json").exists(), (living / f"{holder._id}.lock").exists())
    holder.leave()


def test_files_of_others_stay_where_they_are(folder: Path) -> None:
    """Whatever folder was named by mistake: what is not ours is neither read nor deleted."""
    sibling = folder.with_name("sibling")
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    sibling.mkdir()
    files = [path / name for path in (folder, sibling) for name in ("thesis.json", "p.lock", "lock")]
    for file in files:
        file.write_text("mine")
    os.utime(sibling, (0, 0))
    process = Process(folder)
    process.shown()
    process.leave()

    assert [True] * 6 == [file.exists() for file in files]


# ---- which folder ----------------------------------------------------------------------------------------------------


def test_processes_of_one_service_share_a_folder() -> None:
    """Neither the environment nor who started them matters, if the service has a name and a port."""
    one, other = (folder_of(NAMED, PLACES, {launch_tree._TOKEN: tree}, BASE) for tree in ("a", "b"))

    assert one == other
    assert Path(BASE) / f"jeeves-otel-{os.geteuid()}" == one.parent
    assert one.name.startswith("orders-9090-")


@pytest.mark.parametrize(
    ("attributes", "places"),
    [
        ({**NAMED, "service.name": "users"}, PLACES),
        ({**NAMED, "service.namespace": "bank"}, PLACES),
        (NAMED, ["127.0.0.1:9091"]),
        (NAMED, ["0.0.0.0:9090"]),
        (NAMED, [*PLACES, "localhost:9464"]),
        ({"service.name": "shop.orders"}, PLACES),
    ],
)
def test_strangers_do_not_share_a_folder(attributes: dict[str, str], places: list[str]) -> None:
    """Another service, or another place, is another page."""
    assert folder_of(NAMED, PLACES, {}, BASE) != folder_of(attributes, places, {}, BASE)


@pytest.mark.parametrize(
    ("attributes", "places"),
    [({"service.name": "unknown_service:python"}, PLACES), ({}, PLACES), (NAMED, [])],
    ids=["unknown", "none", "no port"],
)
def test_services_without_name_or_port_share_with_their_children_alone(
    attributes: dict[str, str], places: list[str]
) -> None:
    """The first process leaves a mark in its environment, which its children inherit and strangers do not have."""
    environ: dict[str, str] = {}
    mine = folder_of(attributes, places, environ, BASE)

    assert mine == folder_of(attributes, places, dict(environ), BASE)
    assert mine != folder_of(attributes, places, {}, BASE)


def test_default_folder_is_that_for_temporary_files(tmp_path: Path) -> None:
    """TMPDIR where it is set; the memory of the machine where it cannot be written."""
    places = {"TMPDIR": str(tmp_path)}, {}, {"TMPDIR": "/nowhere"}
    expected = [str(tmp_path), "/tmp", "/dev/shm"]  # noqa: S108 - names, not files

    assert expected == [str(folder_of(NAMED, PLACES, environ).parent.parent) for environ in places]


@pytest.mark.parametrize("name", ["a" * 300, "../../etc", "with/slash", "ünï cödé", "."])
def test_folder_of_any_name_is_one_folder_with_a_short_path(name: str) -> None:
    """The path of a socket must stay below 100 bytes, and no name leads elsewhere."""
    base = "/" + "b" * 34
    found = folder_of({"service.name": name}, PLACES, {}, base)

    assert Path(base) / f"jeeves-otel-{os.geteuid()}" == found.parent
    assert len(os.fsencode(found / "p4194304-0123abcd.sock")) < 100
    assert found.name.isascii() and ".." != found.name


# ---- folders that are refused ----------------------------------------------------------------------------------------


def _spoil(kind: str, folder: Path, victim: Path) -> None:
    if kind.startswith("group"):
        folder.parent.mkdir(mode=0o700)
    path = folder if kind.startswith("group") else folder.parent
    if kind.endswith("link"):
        victim.mkdir(mode=0o700)
        path.symlink_to(victim)
    elif kind.endswith("file"):
        path.touch()
    else:
        path.mkdir(mode=0o700)
        path.chmod(0o755) if kind.endswith("open") else os.chown(path, 4_321, -1)


@pytest.mark.parametrize("part", ["user", "group"])
@pytest.mark.parametrize("fault", ["link", "open", "file", "owner"])
def test_folder_that_others_could_use_is_refused_with_a_way_out(tmp_path: Path, part: str, fault: str) -> None:
    """What is there already may have been put there by somebody else."""
    if fault == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    _spoil(f"{part} {fault}", tmp_path / "u" / "g", tmp_path / "victim")
    with pytest.raises(FolderRefused, match="JEEVES_OTEL_FOLDER"):
        Process(tmp_path / "u" / "g")
    with pytest.raises(FolderRefused, match="JEEVES_OTEL_FOLDER"):
        Holder(tmp_path / "u" / "g")


def test_folder_that_cannot_be_made_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """The place that was named must exist."""
    with pytest.raises(FolderRefused, match="JEEVES_OTEL_FOLDER"):
        Process(tmp_path / "missing" / "u" / "g")


def test_system_without_these_locks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows each process answers for itself."""
    monkeypatch.setattr(shared_folder, "_fcntl", None)
    with pytest.raises(FolderRefused, match="locks"):
        Process(folder)
    with pytest.raises(FolderRefused, match="locks"):
        folder_of(NAMED, PLACES, {})


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lenient")
def test_file_that_is_no_snapshot_is_counted_and_left_out(join: Callable[..., Process], folder: Path) -> None:
    """The others are shown; retiring takes it away."""
    process = join(1)
    leave_behind(folder, 20)
    (folder / "p2-dead.json").write_bytes(b"[2,[")

    assert (21, {"shared_page.read": 1}) == (process.shown(), failsafe.counts())
    process.turn()
    assert (21, False) == (process.shown(), (folder / "p2-dead.json").exists())


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"{}", b'["g",["p1-dead"]]\nnonsense', b'["g"]\n[1,[]]', b"[1,2]\n[1,[]]"]
)
@pytest.mark.usefixtures("lenient")
def test_retired_counts_that_cannot_be_read_are_counted_and_left_out(
    join: Callable[..., Process], folder: Path, text: bytes
) -> None:
    """The living and the dead are still shown, and the next to be retired make a readable file."""
    process = join(1)
    leave_behind(folder, 20)
    (folder / "retired.json").write_bytes(text)

    assert (21, 1) == (process.shown(), failsafe.counts()["shared_page.read"])
    process.turn()
    assert 21 == process.shown()


@pytest.mark.usefixtures("lenient")
def test_full_disk_costs_no_page(join: Callable[..., Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is shown nonetheless, and counted: it is lost only if the process is killed now."""
    process = join(1)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)

    assert (1, {"shared_page.write": 1}) == (process.shown(), failsafe.counts())


def test_lack_of_descriptors_refuses_a_page_rather_than_showing_less(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page without some processes would look like a restart."""
    process = join(1)
    leave_behind(folder, 20)

    def none_left(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(Path, "read_bytes", none_left)
    with pytest.raises(OSError, match="too many"):
        process.shown()
    monkeypatch.undo()
    assert (folder / "p1-dead.json").exists()


@pytest.mark.usefixtures("lenient")
def test_lack_of_descriptors_retires_nobody(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read now may be read at the next turn."""
    process = join(1)
    leave_behind(folder, 20)

    def none_left(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", none_left)
        with pytest.raises(OSError, match="too many"):
            process.turn()

    assert 21 == process.shown()


@pytest.mark.usefixtures("lenient")
def test_process_that_may_not_read_the_folder_shows_itself(
    join: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has changed its user, the page is that of this process alone."""
    process = join(1)

    def denied(_: Any) -> set[str]:
        raise PermissionError

    monkeypatch.setattr(shared_folder.Folder, "retired", denied)

    assert (1, {"shared_page.read": 1}) == (process.shown(), failsafe.counts())


@pytest.mark.usefixtures("lenient")
def test_deleted_folder_is_made_again(join: Callable[..., Process], folder: Path) -> None:
    """Those who live come back with all that they have counted; the counts of the dead are gone."""
    one, other = join(1).without_thread(), join(20).without_thread()
    leave_behind(folder, 300)
    one.turn()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    shown_without = one.shown()
    one.turn()
    other.turn()

    assert (1, 21, 21) == (shown_without, one.shown(), other.shown())
    assert {"shared_page.folder": 2, "shared_page.write": 1} == failsafe.counts()


@pytest.mark.usefixtures("lenient")
def test_process_whose_lock_was_deleted_returns_to_what_is_left(join: Callable[..., Process], folder: Path) -> None:
    """It belongs to the run that has left it, and clears nothing."""
    process = join(1).without_thread()
    leave_behind(folder, 20)
    process.turn()
    (folder / f"{process.member._id}.lock").unlink()
    process.turn()

    assert (21, {"shared_page.folder": 1}) == (process.shown(), failsafe.counts())


@pytest.mark.usefixtures("lenient")
def test_process_that_was_taken_for_dead_does_not_count_twice(join: Callable[..., Process], folder: Path) -> None:
    """Somebody has deleted its lock: what it had measured is retired, and it takes part no longer."""
    one, other = join(1), join(20).without_thread()
    other.turn()
    (folder / f"{other.member._id}.lock").unlink()
    shared_folder._of_this_process.discard(folder / f"{other.member._id}.lock")
    one.turn()
    other.count = 50
    at_once = other.shown()
    other.turn()
    other.turn()

    assert (21, 21, 21) == (at_once, one.shown(), other.shown())


@pytest.mark.usefixtures("lenient")
def test_path_that_is_too_long_for_a_socket_costs_freshness_alone(tmp_path: Path) -> None:
    """It is said once; the last snapshots count."""
    folder = tmp_path / ("u" * 60) / ("g" * 60)
    one, other = Process(folder, 1), Process(folder, 20)
    other.turn()
    other.count = 50
    shown_before = one.shown()
    other.turn()

    assert (21, 51, {"shared_page.socket": 2}) == (shown_before, one.shown(), failsafe.counts())
    one.leave()
    other.leave()
    assert not folder.exists()


@pytest.mark.usefixtures("lenient")
def test_failing_collection_ends_no_thread(join: Callable[..., Process]) -> None:
    """A turn that fails is counted; the next one works."""
    join(0)
    turns: list[Event] = [Event(), Event()]

    def every_turn() -> None:
        turns[turns[0].is_set()].set()
        raise ValueError

    process = join(1, interval_s=0.01, every_turn=every_turn)
    process.member._collect = None  # type: ignore[assignment]  # calling it fails

    assert turns[1].wait(30)
    assert {"shared_page.turn", "shared_page.every_turn"} == set(failsafe.counts())
    process.member._collect = lambda: measured(1)


def test_those_who_do_not_answer_are_waited_for_together(join: Callable[..., Process]) -> None:
    """Three that hang take as long as one, and their last snapshots count."""
    process, hanging = join(1), [join(20) for _ in range(3)]
    for each in hanging:
        each.turn()
    locks = [each.member._writing for each in hanging]
    for lock in locks:
        lock.acquire()
    started = time.monotonic()
    count = process.shown()
    took_s = time.monotonic() - started
    for lock in locks:
        lock.release()

    assert 61 == count
    assert ANSWER_S <= took_s < 2 * ANSWER_S


def test_files_in_use_look_used(join: Callable[..., Process], folder: Path) -> None:
    """Those who clean folders for temporary files take away what nobody has touched for days."""
    process = join(1)
    holder = Holder(folder)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    process.member._refreshed = -NEVER_S * 2
    process.turn()

    assert all(path.stat().st_mtime > 0 for path in folder.iterdir())
    holder.leave()


@pytest.mark.parametrize(("cost_s", "pause_s"), [(0.001, 1.0), (0.1, 5.0), (10.0, 60.0)])
def test_costly_snapshots_are_taken_less_often(
    join: Callable[..., Process], folder: Path, monkeypatch: pytest.MonkeyPatch, cost_s: float, pause_s: float
) -> None:
    """At most a fiftieth of a CPU, and never less than once a minute; turns go on meanwhile, for what else they do."""
    process, now = join(1, interval_s=1.0).without_thread(), 1_000.0
    join(0)
    snapshot = folder / f"{process.member._id}.json"
    cost = iter([0.0, cost_s, *[0.0] * 100])
    monkeypatch.setattr(shared_page, "thread_time", lambda: next(cost))
    monkeypatch.setattr(shared_page, "monotonic", lambda: now)
    process.turn()
    snapshot.unlink()
    turns = 0
    while not snapshot.exists():
        now += process.member._interval_s
        turns += 1
        process.turn()

    assert pause_s == turns
