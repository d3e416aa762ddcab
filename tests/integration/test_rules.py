# SPDX-License-Identifier: Apache-2.0
"""The generated rules under promtool: valid, and each alert fires when it should, and not before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jeeves_otel.demo.parts import cached

ROOT = Path(__file__).parents[2]
PROMETHEUS = cached("prometheus")
PROMTOOL = Path(PROMETHEUS).parent / "promtool" if PROMETHEUS else None
pytestmark = [pytest.mark.integration, pytest.mark.skipif(PROMTOOL is None, reason="no promtool 3: make prometheus")]


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("file", sorted((ROOT / "collector/rules").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_rule_files_are_valid(file: Path) -> None:
    """Duplicates and syntax; without the flag, promtool prints what it finds and says that all is well."""
    result = _promtool("check", "rules", "--lint=all", "--lint-fatal", file)

    assert (0, "") == (result.returncode, result.stderr)


@pytest.mark.parametrize("file", sorted((ROOT / "tests/rules").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_rule_does_what_its_objective_says(file: Path) -> None:
    """Fires just after the computed moment, not just before; silent in health, without traffic, below floors, at restarts."""
    result = _promtool("test", "rules", file)

    assert (0, "") == (result.returncode, result.stderr)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("> 0.01\n", "> 0.5\n"),
        ("[5m]", "[10m]"),
        ("for: 1m", "for: 3m"),
        ("$labels.provider", "$labels.model"),
    ],
)
def test_a_wrong_rule_fails_its_test(right: str, wrong: str, tmp_path: Path) -> None:
    """The tests can fail: each of these slips has happened somewhere."""
    for folder in ("collector/rules", "tests/rules"):
        (tmp_path / folder).mkdir(parents=True)
    rules = (ROOT / "collector/rules/alerts.yaml").read_text(encoding="utf-8")
    changed = rules.replace(
        right.replace("> 0.01\n", ">\n              0.01\n"), wrong.replace("> 0.5\n", ">\n              0.5\n")
    )
    (tmp_path / "collector/rules/alerts.yaml").write_text(changed, encoding="utf-8")
    suite = tmp_path / "tests/rules/alerts.yaml"
    suite.write_text((ROOT / "tests/rules/alerts.yaml").read_text(encoding="utf-8"), encoding="utf-8")

    assert changed != rules
    assert 0 != _promtool("test", "rules", suite).returncode
