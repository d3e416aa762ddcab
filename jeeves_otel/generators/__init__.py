# SPDX-License-Identifier: Apache-2.0
"""List the generators and render all of them to ``{path: text}``; compare that with what is committed.

In: the registry, what is promised on it, and the table of settings. Out: texts by path below the project's root. Nothing is written here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from jeeves_otel import routing
from jeeves_otel.content import kinds
from jeeves_otel.generators import alertmanager, collector, dashboards, docs, rule_tests, rules, runbooks
from jeeves_otel.promql import families_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jeeves_otel.dashboards import Dashboard
    from jeeves_otel.objectives import Objectives
    from jeeves_otel.registry import Registry


# Where every file is rendered: what else is there was rendered once, of something that is no more.
FOLDERS = ("collector/rules", "collector/grafana/dashboards", "docs/runbooks", "tests/alertmanager", "tests/rules")
_KINDS = (".json", ".md", ".yaml")
MARK = "Generated from jeeves_otel/data"


def render(
    registry: Registry,
    objectives: Objectives,
    pages: Sequence[Dashboard],
    settings: Sequence[tuple[str, str, str]],
) -> dict[str, str]:
    """Return every generated file, ``{path: text}``, paths relative to the project's root.

    Args:
        registry: The packaged profiles.
        objectives: What is promised about the service, and when somebody is told.
        pages: The dashboards.
        settings: ``(variable, default, meaning)`` of every setting.

    Raises:
        ValueError: A file would be empty, which is always a mistake.
    """
    files = {
        "docs/reference/metrics.md": docs.metrics_page(registry),
        "docs/reference/instruments.md": docs.instruments_page(registry),
        "docs/reference/settings.md": docs.settings_page(settings),
        "docs/reference/content.md": docs.content_page(kinds().values()),
        **collector.files(registry, kinds().values()),
        **rules.files(objectives),
        **rule_tests.files(objectives, families_of(registry)),
        **runbooks.files(objectives),
        **alertmanager.files(objectives, routing.load()),
        **dashboards.files(pages),
    }
    if empty := [path for path, text in files.items() if not text.strip()]:
        raise ValueError(f"nothing was rendered for {', '.join(empty)}")
    return files


def render_own(
    registry: Registry, objectives: Objectives, pages: Sequence[Dashboard], packaged: Objectives
) -> dict[str, str]:
    """Return every file that is made of a user's *objectives*, ``{path: text}``, paths relative to a folder of theirs.

    Args:
        registry: The profiles that they speak of.
        objectives: What is promised, and when somebody is told.
        pages: The dashboards.
        packaged: The packaged objectives, which the same Alertmanager serves.
    """
    return {
        **rules.files(objectives),
        **rule_tests.files(objectives, families_of(registry)),
        **runbooks.files(objectives),
        **dashboards.files(pages),
        **alertmanager.files(objectives.with_others(packaged), routing.load()),
    }


def stale(files: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return ``{path: unified diff}`` for every file below *root* that differs from what would be rendered, or is left over."""
    diffs = dict.fromkeys(left_over(files, root), "nothing renders it any more\n")
    for path, text in files.items():
        target = root / path
        committed = target.read_text(encoding="utf-8") if target.is_file() else ""
        if committed != text:
            lines = difflib.unified_diff(
                committed.splitlines(keepends=True),
                text.splitlines(keepends=True),
                f"{path} (committed)",
                f"{path} (rendered)",
            )
            diffs[path] = "".join(lines)
    return diffs


def left_over(files: Mapping[str, str], root: Path) -> list[str]:
    """Return the paths of files in `FOLDERS` below *root* that are none of *files*, sorted."""
    there = {
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix in _KINDS
    }
    return sorted(there - files.keys())


def was_rendered(path: Path, mark: str = MARK) -> bool:
    """Return whether the file at *path* says that it was rendered, by its *mark*, and so may be replaced or removed."""
    try:
        return mark in path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # what nobody can read says nothing
        return False
