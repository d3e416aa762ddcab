# SPDX-License-Identifier: Apache-2.0
"""The dashboards are what Grafana's own types say that a dashboard is, options of panels included."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jeeves_otel.generators import dashboards
from tests import examples

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
TYPES = ROOT / "tests/grafana"
COMPILER = TYPES / "node_modules/.bin/tsc"
FILES = sorted((ROOT / "collector/grafana/dashboards").glob("*.json"))
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not COMPILER.exists(), reason="Grafana's types are not installed: make grafana-types"),
]
OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext")
Page = dict[str, Any]


def _compile(pages: dict[str, Page], folder: Path) -> dict[str, list[str]]:
    """Return what the compiler says of each of *pages*."""
    # Beside a link to the types, where the compiler looks for packages.
    (folder / "node_modules").symlink_to(TYPES / "node_modules")
    (folder / "dashboard.ts").write_bytes((TYPES / "dashboard.ts").read_bytes())
    for name, page in pages.items():
        text = json.dumps(page)
        source = f"import type {{ Provisioned }} from './dashboard';\nexport const page: Provisioned = {text};\n"
        (folder / f"{name}.ts").write_text(source, encoding="utf-8")
    command = [COMPILER, *OPTIONS, "--moduleResolution", "bundler", "dashboard.ts", *(f"{name}.ts" for name in pages)]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False).stdout
    findings: dict[str, list[str]] = {name: [] for name in ("dashboard", *pages)}
    for line in said.splitlines():
        found = re.match(r"([\w-]+)\.ts\(", line)
        if found:
            findings[found[1]].append(line)
    return findings


def test_the_dashboards_are_dashboards_of_grafana(tmp_path: Path) -> None:
    """Of the version that compose.yaml starts; those of a user's own objectives, too."""
    pages = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
    pages[examples.DASHBOARD.name] = dashboards.page(examples.DASHBOARD)
    (version,) = re.findall(r"grafana/grafana:(\S+)", (ROOT / "compose.yaml").read_text(encoding="utf-8"))

    assert version == json.loads((TYPES / "package.json").read_text())["devDependencies"]["@grafana/schema"]
    assert {name: [] for name in ("dashboard", *pages)} == _compile(pages, tmp_path)


def _panel(page: Page, kind: str) -> Page:
    return next(panel for panel in page["panels"] if panel["type"] == kind)


SLIPS: dict[str, Callable[[Page], object]] = {
    "number-as-text": lambda page: _panel(page, "timeseries")["gridPos"].update(w="12"),
    "text-as-number": lambda page: page.update(refresh=30),
    "unknown-mode": lambda page: _panel(page, "bargauge")["fieldConfig"]["defaults"]["thresholds"].update(mode="abs"),
    "unknown-calculation-list": lambda page: _panel(page, "bargauge")["options"]["reduceOptions"].update(calcs="last"),
    "unknown-option": lambda page: _panel(page, "table")["options"].update(showHeaders=True),
    "option-of-another-kind": lambda page: _panel(page, "bargauge")["options"].update(textMode="auto"),
    "unknown-style": lambda page: _panel(page, "timeseries")["fieldConfig"]["defaults"]["custom"].update(drawStyle="l"),
    "unknown-style-key": lambda page: _panel(page, "timeseries")["fieldConfig"]["defaults"]["custom"].update(fill=1),
    "unknown-kind": lambda page: _panel(page, "table").update(type="graph"),
    "no-name-of-a-query": lambda page: _panel(page, "table")["targets"][0].pop("refId"),
    "unknown-key-of-a-query": lambda page: _panel(page, "table")["targets"][0].update(expression="up"),
    "unknown-key-of-a-panel": lambda page: _panel(page, "table").update(titel="x"),
    "unknown-key": lambda page: page.update(schemaVerison=41),
    "unknown-link": lambda page: page["links"][0].update(type="dashboard"),
    "unknown-variable": lambda page: page["templating"]["list"][0].update(type="source"),
    "no-colour-of-a-mark": lambda page: page["annotations"]["list"][0].pop("iconColor"),
}


def test_the_compiler_finds_every_slip(tmp_path: Path) -> None:
    """Or the other test would say nothing."""
    (source,) = [path.read_text(encoding="utf-8") for path in FILES if path.stem == "slo"]
    pages = {}
    for name, slip in SLIPS.items():
        pages[name] = json.loads(source)
        slip(pages[name])
    findings = _compile(pages, tmp_path)

    assert [] == findings.pop("dashboard")
    assert [] == [name for name, found in findings.items() if not found]
