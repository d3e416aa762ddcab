# SPDX-License-Identifier: Apache-2.0
"""awaiting: what an instrumentation waits for is read from metadata; where that does not say it, for nothing."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, EntryPoint
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from jeeves_otel import failsafe
from jeeves_otel.awaiting import _packages_in, activate_on_import, modules_of
from tests.integration.distributions import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTHING: set[str] = set()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Swallow what fails, and leave no made-up module behind."""
    failsafe.reset()
    failsafe.set_strict(False)
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("made_up"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("files", "packages"),
    [
        ("httpx/__init__.py httpx/_api.py httpx/_transports/__init__.py", {"httpx"}),
        ("six.py __pycache__/six.cpython-311.pyc", {"six"}),
        ("google/genai/__init__.py google/genai/types/__init__.py", {"google.genai"}),
        ("grpc/__init__.py grpc/_cython/cygrpc.so grpc/aio/__init__.py", {"grpc"}),
        ("fast.cpython-311-x86_64-linux-gnu.so", {"fast"}),
        ("yaml/__init__.py _yaml/__init__.py", {"yaml"}),
        ("__editable___thing_finder.py __editable__.thing.pth", NOTHING),
        ("../../../bin/thing thing-1.0.dist-info/METADATA", NOTHING),
        ("not-a-name/__init__.py", NOTHING),
        ("", NOTHING),
    ],
)
def test_the_packages_of_a_library_are_the_outermost_of_its_files(files: str, packages: set[str]) -> None:
    """Regular packages and modules: a namespace is imported for the sake of others too."""
    assert packages == _packages_in("\n".join(f"{file},sha256=x,1" for file in files.split()))


def _entry_point(name: str, package: Distribution) -> EntryPoint:
    (found,) = (entry for entry in package.entry_points if entry.name == name)
    return found


@pytest.mark.parametrize(
    ("instruments", "extra", "entry", "modules"),
    [
        (("made-up",), "instruments", "thing", {"made_up_one", "made_up_two"}),
        (("Made.Up",), "instruments", "thing", {"made_up_one", "made_up_two"}),
        (("made-up", "made-up-too"), "instruments-any", "thing", {"made_up_one", "made_up_two", "made_up_too"}),
        (("made-up", "made-up-too"), "instruments-any", "made_up_too", {"made_up_too"}),
        (("made-up", "not-installed"), "instruments-any", "thing", {"made_up_one", "made_up_two"}),
        (("made-up", "editable"), "instruments", "thing", NOTHING),
        (("made-up",), "docs", "thing", NOTHING),
        ((), "instruments", "thing", NOTHING),
        ((), "instruments", "sqlite3", {"sqlite3"}),
        ((), "instruments", "jeeves_grpc", {"grpc"}),
        (("made-up",), "instruments", "django", NOTHING),
    ],
)
def test_an_instrumentation_waits_for_the_libraries_that_its_metadata_names(
    instruments: tuple[str, ...], extra: str, entry: str, modules: set[str], tmp_path: Path
) -> None:
    """For any of them, unless it is called like one; for those that are installed; for none where one says nothing."""
    install(tmp_path, "made-up", {"made_up_one/__init__.py": "", "made_up_two.py": ""})
    install(tmp_path, "made-up-too", {"made_up_too.py": ""})
    install(tmp_path, "editable", {"editable.pth": ""})
    info = install(
        tmp_path, "telemetry", {}, instruments=instruments, extra=extra, entry_points={entry: "made_up_telemetry:It"}
    )
    sys.path.insert(0, str(tmp_path))

    assert modules == modules_of(_entry_point(entry, Distribution.at(info)))


def test_metadata_that_cannot_be_read_means_waiting_for_nothing(tmp_path: Path) -> None:
    """It is then activated at once, as by the stock launcher."""
    install(tmp_path, "made-up", {"made_up_one/__init__.py": ""})
    info = install(tmp_path, "telemetry", {}, instruments=("made-up",), entry_points={"thing": "telemetry:It"})
    entry = _entry_point("thing", Distribution.at(info))
    sys.path.insert(0, str(tmp_path))

    assert modules_of(entry) == {"made_up_one"}
    (tmp_path / "made_up-1.0.dist-info" / "RECORD").write_bytes(b"\xff")
    assert modules_of(entry) == NOTHING
    with patch.object(type(entry.dist), "read_text", side_effect=PermissionError):
        assert modules_of(entry) == NOTHING
    assert modules_of(EntryPoint("thing", "telemetry:It", "group")) == NOTHING


def test_an_instrumentation_of_several_modules_is_activated_once(tmp_path: Path) -> None:
    """By the first of them; and what fails is counted once, and breaks no import."""
    for name in ("made_up_a", "made_up_b", "made_up_c"):
        (tmp_path / f"{name}.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    activated: list[str] = []

    def activate() -> None:
        activated.append("once")
        raise RuntimeError

    activate_on_import(("made_up_a", "made_up_b"), "made_up_telemetry", activate, "instrument.made_up")
    __import__("made_up_c")
    before = list(activated)
    __import__("made_up_b")
    __import__("made_up_a")

    assert ([], ["once"]) == (before, activated)
    assert failsafe.counts() == {"instrument.made_up": 1}
