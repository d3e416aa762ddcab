# SPDX-License-Identifier: Apache-2.0
"""What pint says of the rules by themselves; what it says beside a live Prometheus is in test_panels."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from jeeves_otel.demo.parts import cached
from tests.integration.pint import EXCEPTIONS, ROOT, findings

if TYPE_CHECKING:
    from pathlib import Path

PINT = cached("pint") or ""
pytestmark = [pytest.mark.integration, pytest.mark.skipif(not PINT, reason="no pint: make pint")]


def test_pint_finds_nothing_in_the_rules(tmp_path: Path) -> None:
    """Of warnings and worse."""
    assert [] == findings(PINT, tmp_path, ROOT / "collector/rules")


def test_every_exception_has_a_reason() -> None:
    """A comment stands above each."""
    text = EXCEPTIONS.read_text(encoding="utf-8")
    reasoned = re.findall(r"^  # .{30,}\n(?:  # .*\n)*  disable = \[\".+?\"\]$", text, re.MULTILINE)

    assert 3 == len(reasoned) == text.count("disable")


def test_pint_sees_an_alert_that_names_a_label_it_does_not_have(tmp_path: Path) -> None:
    """The slip of the alert that ours replaces: it sums all labels away, and then says which provider is down."""
    rule = tmp_path / "wrong.yaml"
    alert = {"expr": "sum(rate(calls_total[5m])) > 1", "annotations": {"summary": "{{ $labels.provider }} is down"}}
    rule.write_text(json.dumps({"groups": [{"name": "g", "rules": [{"alert": "Down", **alert}]}]}), encoding="utf-8")

    assert ["alerts/template"] == [check for _, check, *_ in findings(PINT, tmp_path, rule)]
