# SPDX-License-Identifier: Apache-2.0
"""What `check` refuses, Prometheus refuses, and what it takes, Prometheus takes: one table, asked twice."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jeeves_otel.demo.parts import cached
from tests.prometheus import EXPERIMENTAL, LENGTHS

PROMETHEUS = cached("prometheus")
PROMTOOL = Path(PROMETHEUS).parent / "promtool" if PROMETHEUS else None
pytestmark = [pytest.mark.integration, pytest.mark.skipif(PROMTOOL is None, reason="no promtool 3: make prometheus")]


def _is_taken(tmp_path: Path, **rule: Any) -> bool:
    """Return whether Prometheus takes a file with one alert; *rule* says what it is."""
    path = tmp_path / "own.yaml"
    content = {"groups": [{"name": "own", "rules": [{"alert": "Own", "expr": "up", **rule}]}]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return (
        subprocess.run(
            [str(PROMTOOL), "check", "rules", str(path)], capture_output=True, timeout=60, check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize("promql", EXPERIMENTAL)
def test_prometheus_refuses_what_is_behind_a_flag(promql: str, tmp_path: Path) -> None:
    """So `check` has to say it; in a version that takes it, it is a finding for nothing."""
    assert not _is_taken(tmp_path, expr=promql)


@pytest.mark.parametrize("function", ["first_over_time", "last_over_time", "quantile_over_time"])
def test_prometheus_takes_what_is_not(function: str, tmp_path: Path) -> None:
    """Or the test above would pass for any reason."""
    assert _is_taken(tmp_path, expr=f"{function}({'0.5, ' if 'quantile' in function else ''}up[5m])")


@pytest.mark.parametrize(("text", "accepted"), LENGTHS.items())
def test_a_length_of_time_is_one_for_prometheus(text: str, *, accepted: bool, tmp_path: Path) -> None:
    """The same table as that of `check`; only 0 is possible, and says nothing."""
    assert (accepted or text == "0s") == _is_taken(tmp_path, **{"for": text})
