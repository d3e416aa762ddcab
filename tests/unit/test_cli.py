# SPDX-License-Identifier: Apache-2.0
"""cli: exit codes and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jeeves_otel import generators
from jeeves_otel.checks import examine_all
from jeeves_otel.cli import _specification, main
from jeeves_otel.registry import profile_names
from jeeves_otel.settings import VARIABLES
from jeeves_otel.specification import packaged
from tests import examples

ROOT = Path(__file__).parents[2]


def test_check_of_a_bad_file_exits_1_with_every_finding(tmp_path: Path) -> None:
    """The exit code says that something is wrong, stderr says what, all of it."""
    path = tmp_path / "mine.yaml"
    path.write_text("profile: mine\nmetrics:\n  a: {type: conter}\n  b: {}\n")
    result = CliRunner().invoke(main, ["check", str(path)])

    assert result.exit_code == 1
    assert "mine.yaml:3" in result.stderr
    assert "mine.yaml:4" in result.stderr
    assert result.stdout == ""


def test_check_without_a_file_judges_what_is_shipped_and_what_is_committed() -> None:
    """A checkout whose generated pages are fresh passes."""
    result = CliRunner().invoke(main, ["check"])

    assert result.exit_code == 0, result.stderr
    assert "no violation" in result.stdout


def test_advice_alone_does_not_fail_a_check(tmp_path: Path) -> None:
    """A label that scrapes will rename is worth a word, not a failure."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "profile: mine\nmetrics:\n  a_total:\n    type: counter\n    help: A.\n"
        "    source: {instrument: jeeves.errors, take: value}\n"
        "    labels: {component: {from: jeeves.layer, absent: none}}\n"
    )
    result = CliRunner().invoke(main, ["check", str(path)])

    assert result.exit_code == 0
    assert "advice: " in result.stderr
    assert "exported_component" in result.stderr


def test_generated_pages_are_fresh() -> None:
    """What is committed is, byte for byte, what the registry renders."""
    registry, _ = examine_all(profile_names())
    promised, pages, _ = _specification(registry)
    files = generators.render(
        registry, promised, pages, [(each.name, each.default, each.meaning) for each in VARIABLES]
    )

    assert generators.stale(files, ROOT) == {}


def test_stale_page_is_shown_as_a_diff(tmp_path: Path) -> None:
    """A page that was edited by hand, or forgotten, is named with the difference."""
    (tmp_path / "a.md").write_text("old\n")
    diffs = generators.stale({"a.md": "new\n", "b.md": "b\n"}, tmp_path)

    assert sorted(diffs) == ["a.md", "b.md"]
    assert "-old\n+new\n" in diffs["a.md"]


def test_a_file_that_nothing_renders_any_more_is_stale(tmp_path: Path) -> None:
    """In folders where everything is rendered: its runbook would outlive an alert, and its rule would still fire."""
    gone = "docs/runbooks/Gone.md"
    for path in (gone, "docs/runbooks/Here.md", "docs/other.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("a\n")
    diffs = generators.stale({"docs/runbooks/Here.md": "a\n"}, tmp_path)

    assert [gone] == list(diffs)


@pytest.mark.parametrize(
    ("text", "options", "stays"),
    [
        ("# Generated from jeeves_otel/data/x by …\n", [], True),
        ("# Generated from jeeves_otel/data/x by …\n", ["--prune"], False),
        ("mine\n", ["--prune"], True),
    ],
)
def test_render_removes_only_what_was_rendered_and_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, options: list[str], *, stays: bool
) -> None:
    """Nobody loses a file that he put in the wrong place."""
    monkeypatch.setattr("jeeves_otel.cli._ROOT", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    left = tmp_path / "collector/rules/gone.yaml"
    left.parent.mkdir(parents=True)
    left.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["render", *options])

    assert (0, stays) == (result.exit_code, left.exists())
    assert "collector/rules/gone.yaml" in result.output


def _rules(*arguments: str | Path, code: int = 0) -> Result:
    """Return what ``jeeves-otel rules`` says."""
    result = CliRunner().invoke(main, ["rules", *map(str, arguments)])
    assert (code, None) == (result.exit_code, None if code else result.exception), result.output
    return result


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_rules_are_written_nowhere_if_a_file_or_a_folder_is_in_the_way(tmp_path: Path) -> None:
    """Each is named once, before anything is written."""
    (tmp_path / "file").touch()
    page = tmp_path / "out/docs/runbooks/ToolErrorBudgetBurn.md"
    page.mkdir(parents=True)
    below_a_file = _rules(examples.SUPPORT, "--into", tmp_path / "file/sub", code=1)
    over_a_folder = _rules(examples.SUPPORT, "--into", tmp_path / "out", code=1)

    assert f"{tmp_path / 'file'} is a file, and has to be a folder; move it away" in below_a_file.stderr
    assert f"{page} is a folder, and has to be a file; move it away" in over_a_folder.stderr
    assert (1, 1) == tuple(len(each.stderr.splitlines()) for each in (below_a_file, over_a_folder))
    assert {"file"} == _files(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name and the reason, and nothing is written."""

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = _rules(examples.SUPPORT, "--into", tmp_path / "out", code=1)

    assert f"{tmp_path / 'out/collector/rules'} cannot be written (Permission denied)" in result.stderr
    assert ("", 1) == (result.stdout, len(result.stderr.splitlines()))


def test_rules_that_are_made_of_nothing_any_more_are_named_and_removed_only_if_asked(tmp_path: Path) -> None:
    """The rule of an alert that was taken out would still fire; what others put there is theirs."""
    own, out = tmp_path / "support.yaml", tmp_path / "out"
    text = examples.SUPPORT.read_text(encoding="utf-8")
    own.write_text(text, encoding="utf-8")
    _rules(own, "--into", out)
    before = _files(out)
    (out / "collector/rules/mine.yaml").write_text("groups: []\n", encoding="utf-8")
    own.write_text(text.partition("\nalerts:")[0] + "\n", encoding="utf-8")
    named = _rules(own, "--into", out)
    still = _files(out)
    pruned = _rules(own, "--into", out, "--prune")
    gone = before - _files(out)

    assert before | {"collector/rules/mine.yaml"} == still
    assert {"collector/rules/own-support.yaml", "docs/runbooks/EventQueueGrows.md"} <= gone
    assert all(f"{out / path} is rendered no more" in named.stderr for path in gone)
    assert all(f"{out / path} (removed" in pruned.stdout for path in gone)
    assert "collector/rules/mine.yaml" in _files(out)
    assert "mine.yaml" not in named.output + pruned.output


def test_a_file_that_is_called_like_a_packaged_one_is_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are written beside each other, from whichever folder the command is called."""
    monkeypatch.chdir(tmp_path)
    Path("jeeves.yaml").write_text(examples.SUPPORT.read_text(encoding="utf-8"), encoding="utf-8")
    _rules("jeeves", "jeeves.yaml", "--into", "out")
    page = json.loads(Path("out/collector/grafana/dashboards/own-jeeves.json").read_text(encoding="utf-8"))

    assert {f"collector/rules/{name}.yaml" for name in ("alerts", "slos", "own-jeeves", "own-jeeves-slos")} <= _files(
        tmp_path / "out"
    )
    assert ["Tools", "EventQueueGrows"] == [panel["title"] for panel in page["panels"] if panel["type"] == "row"]


def test_a_copy_of_the_package_in_the_current_folder_is_a_file_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even its place, as a path, is not that of a packaged one."""
    own = Path("jeeves_otel/data/objectives/jeeves.yaml")
    (tmp_path / own.parent).mkdir(parents=True)
    (tmp_path / own).write_text(examples.SUPPORT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    _rules("jeeves", own, "--into", "out")

    assert {"own-jeeves.json", "service.json"} <= {path.name for path in Path("out").rglob("*.json")}


def test_a_packaged_file_is_one_however_its_path_is_written(tmp_path: Path) -> None:
    """By name or by path, the same files come out."""
    path = packaged()["telemetry"]
    _rules("telemetry", "--into", tmp_path / "name")
    _rules(path.parent / ".." / path.parent.name / path.name, "--into", tmp_path / "path")

    assert _files(tmp_path / "name") == _files(tmp_path / "path")


def test_collector_prints_the_overlay_that_is_committed() -> None:
    """Below the first lines, which say how it was made."""
    result = CliRunner().invoke(main, ["collector"])
    committed = (ROOT / "collector/translation.yaml").read_text(encoding="utf-8")

    assert result.exit_code == 0
    assert "`jeeves-otel collector jeeves`" in result.stdout
    assert result.stdout.split("#\n", 1)[1] == committed.split("#\n", 1)[1]


def test_collector_prints_no_overlay_for_a_profile_with_mistakes(tmp_path: Path) -> None:
    """Every finding with its place instead, as a check does."""
    path = tmp_path / "mine.yaml"
    path.write_text("profile: mine\nmetrics:\n  a: {type: conter}\n  b: {}\n")
    result = CliRunner().invoke(main, ["collector", "jeeves", str(path)])

    assert result.exit_code == 1
    assert "mine.yaml:3" in result.stderr
    assert "mine.yaml:4" in result.stderr
    assert result.stdout == ""


def test_every_metric_and_setting_is_in_the_reference() -> None:
    """Nothing promised is undocumented."""
    registry, _ = examine_all(profile_names())
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    settings = (ROOT / "docs/reference/settings.md").read_text()

    assert [name for name in registry.metrics if f"### `{name}`" not in metrics] == []
    assert [each.name for each in VARIABLES if f"`{each.name}`" not in settings] == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["check", "--help"], ["render", "-h"], ["collector", "-h"], ["settings", "-h"], ["demo", "-h"]],
)
def test_help_is_there_for_every_command(arguments: list[str]) -> None:
    """A stranger can ask."""
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code in ({0, 2} if not arguments else {0})
    assert "Usage:" in result.output


def test_settings_exits_1_on_a_malformed_value_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows what is in force, and a mistake is a failure."""
    monkeypatch.setenv("METRICS_PORT", "x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=canary")
    result = CliRunner().invoke(main, ["settings"])

    assert result.exit_code == 1
    assert "METRICS_PORT=9090" in result.output
    assert "canary" not in result.output
