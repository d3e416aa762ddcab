# SPDX-License-Identifier: Apache-2.0
"""The generated rules under promtool: valid, and each alert fires when it should, and not before."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jeeves_otel.demo.parts import cached
from jeeves_otel.generators import promtool
from jeeves_otel.specification import FUNCTIONS
from tests.prometheus import EXPERIMENTAL, LENGTHS

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


def _is_taken(tmp_path: Path, **rule: Any) -> bool:
    """Return whether Prometheus takes a file with one alert; *rule* says what it is."""
    path = tmp_path / "own.yaml"
    content = {"groups": [{"name": "own", "rules": [{"alert": "Own", "expr": "up", **rule}]}]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return _promtool("check", "rules", path).returncode == 0


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


@pytest.mark.parametrize("file", sorted((ROOT / "tests/rules").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_rule_does_what_its_objective_says(file: Path) -> None:
    """Fires just after the computed moment, not just before; silent in health, without traffic, below floors, at restarts."""
    result = _promtool("test", "rules", file)

    assert (0, "") == (result.returncode, result.stderr)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("alerts", r">\n\s+0\.01\n", "> 0.5\n"),
        ("alerts", r"\[5m\]", "[10m]"),
        ("alerts", "for: 1m", "for: 3m"),
        ("alerts", r"\$labels\.provider", "$labels.model"),
        ("collector", r'exporter!~"[^"]+"', 'exporter!="alertmanager"'),
        ("collector", r'\{receiver="otlp"\}', ""),
        ("collector", r"\[15m\] offset", "[1m] offset"),
        (
            "collector",
            r"unless\s+last_over_time\(otelcol_exporter_enqueue_failed_spans_total",
            "unless last_over_time(up",
        ),
        ("collector", r"increase\(\s*otelcol_exporter_enqueue", "0 * increase(otelcol_exporter_enqueue"),
        ("prometheus", r"< 1", "< 0"),
        ("telemetry", "logs", "nothing"),
    ],
)
def test_a_wrong_rule_fails_its_test(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    """The tests can fail: each of these slips has happened somewhere."""
    for folder in ("collector/rules", "tests/rules"):
        (tmp_path / folder).mkdir(parents=True)
    rules = (ROOT / f"collector/rules/{name}.yaml").read_text(encoding="utf-8")
    changed = re.sub(right, lambda _: wrong, rules)
    (tmp_path / f"collector/rules/{name}.yaml").write_text(changed, encoding="utf-8")
    suite = tmp_path / f"tests/rules/{name}.yaml"
    suite.write_text((ROOT / f"tests/rules/{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    result = _promtool("test", "rules", suite)

    assert changed != rules
    assert 0 != result.returncode
    assert "parse error" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "value", ["0", "0.00123", "0.5", "1", "7.5", "59.9", "60", "999.4", "2000", "86400", "90061.5", "-90", "-1234567"]
)
def test_texts_are_rendered_as_prometheus_does(value: str, tmp_path: Path) -> None:
    """The generated tests expect what each function of a text makes of a value."""
    texts = {name: f"{{{{ $value | {name} }}}}" for name in FUNCTIONS}
    expected = {name: promtool.rendered(text, {}, float(value)) for name, text in texts.items()}
    rule = {"alert": "A", "expr": f"vector({value})", "annotations": texts}
    test = {
        "eval_time": "1m",
        "alertname": "A",
        "exp_alerts": [{"exp_labels": {}, "exp_annotations": expected}],
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}), encoding="utf-8")
    suite = tmp_path / "tests.yaml"
    suite.write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [{"alert_rule_test": [test]}]}), encoding="utf-8"
    )
    result = _promtool("test", "rules", suite)

    assert (0, "") == (result.returncode, result.stderr)
