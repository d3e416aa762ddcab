# SPDX-License-Identifier: Apache-2.0
"""The generated rules under promtool: valid, and each alert fires when it should, and not before."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from jeeves_otel.cli import main
from jeeves_otel.demo.parts import cached
from jeeves_otel.generators import promtool
from jeeves_otel.specification import FUNCTIONS
from tests.integration import mutants

ROOT = Path(__file__).parents[2]
PROMETHEUS = cached("prometheus")
PROMTOOL = Path(PROMETHEUS).parent / "promtool" if PROMETHEUS else None
pytestmark = [pytest.mark.integration, pytest.mark.skipif(PROMTOOL is None, reason="no promtool 3: make prometheus")]

OWN = ROOT / "tests/integration/golden/own-objectives.yaml"
SUITES = {path.stem: path for path in sorted((ROOT / "tests/rules").glob("*.yaml"))}
_ONE_OF = 31  # a prime, so that the chosen ones are of all kinds


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("file", sorted((ROOT / "collector/rules").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_rule_files_are_valid(file: Path) -> None:
    """Duplicates and syntax; without the flag, promtool prints what it finds and says that all is well."""
    result = _promtool("check", "rules", "--lint=all", "--lint-fatal", file)

    assert (0, "") == (result.returncode, result.stderr)


@pytest.fixture(scope="module")
def played() -> dict[str, subprocess.CompletedProcess[str]]:
    """Return what promtool says of every suite, two of which are played at a time: the longest takes a tenth of them all."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SUITES, pool.map(partial(_promtool, "test", "rules"), SUITES.values()), strict=True))


@pytest.mark.parametrize("name", SUITES)
def test_every_rule_does_what_its_objective_says(
    name: str, played: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    """Fires just after the computed moment, not just before; ends; silent in health, without traffic, below floors, at restarts."""
    assert (0, "") == (played[name].returncode, played[name].stderr)


def test_rules_of_a_user_pass_the_tests_that_are_written_with_them(tmp_path: Path) -> None:
    """Objectives with other budgets and periods, two of one metric, and alerts of every shape."""
    written = CliRunner().invoke(main, ["rules", str(OWN), "--into", str(tmp_path)])
    suites = sorted((tmp_path / "tests/rules").glob("*.yaml"))
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(suites, pool.map(partial(_promtool, "test", "rules"), suites), strict=True))

    assert (0, 5) == (written.exit_code, len(suites))
    assert {} == {suite.stem: result.stderr for suite, result in results.items() if result.returncode}


@pytest.mark.parametrize("file", sorted(mutants.shipped().rules))
def test_a_rule_without_a_slip_passes_what_its_mutants_are_played_with(file: str) -> None:
    """Else everything would be killed, whatever the tests say."""
    first = next(mutant for mutant in mutants.mutants() if mutant.file == file)
    right = mutants.shipped().of(file)[first.index]

    assert mutants.survives(replace(first, rule=right), str(PROMTOOL))


def test_a_slip_in_a_rule_is_noticed() -> None:
    """Of one in so many of each file, which are other rules and other slips; all of them: make mutants."""
    made = {file: [each for each in mutants.mutants() if each.file == file] for file in mutants.shipped().rules}
    chosen = [mutant for each in made.values() for mutant in each[::_ONE_OF]]

    assert set(made) == {mutant.file for mutant in chosen}
    assert [] == mutants.play(chosen, str(PROMTOOL)).findings(complete=False)


def test_every_slip_that_cannot_be_noticed_exists() -> None:
    """A reason that no slip falls under any more is out of date."""
    assert [] == mutants.unused(list(mutants.mutants()))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("collector-30s", r'exporter!~"[^"]+"', 'exporter!="alertmanager"'),
        (
            "collector-30s",
            r"unless\s+last_over_time\(otelcol_exporter_enqueue_failed_spans_total",
            "unless last_over_time(up",
        ),
        ("collector-30s", r"increase\(\s*otelcol_exporter_enqueue", "0 * increase(otelcol_exporter_enqueue"),
        ("telemetry-30s", "logs", "nothing"),
    ],
)
def test_a_slip_in_a_pattern_or_a_function_fails_its_test(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    """What no matrix makes: each of these has happened somewhere."""
    file = name.partition("-")[0]
    for folder in ("collector/rules", "tests/rules"):
        (tmp_path / folder).mkdir(parents=True)
    rules = (ROOT / f"collector/rules/{file}.yaml").read_text(encoding="utf-8")
    changed = re.sub(right, lambda _: wrong, rules)
    (tmp_path / f"collector/rules/{file}.yaml").write_text(changed, encoding="utf-8")
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
