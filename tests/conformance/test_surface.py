# SPDX-License-Identifier: Apache-2.0
"""The public surface: names, entry points, what importing them costs; and the layers below, as they are drawn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import jeeves_otel

ROOT = Path(__file__).parents[2]
PUBLIC = [
    "agent", "current_llm_call", "interrupt", "llm_call", "orchestration", "pipeline", "record_agent",
    "record_critic_decision", "record_db_operation", "record_error", "record_feature_usage", "record_health",
    "record_http_request", "record_interrupt", "record_llm_call", "record_orchestration", "record_pipeline",
    "record_pool", "record_queue_depth", "record_rejection", "record_retry", "record_routing_decision", "record_rpc",
    "record_session_closed", "record_session_opened", "record_tool", "record_validation_report", "session", "tool",
]  # fmt: skip


def test_public_names_are_exactly_these() -> None:
    """A name that comes or goes is a change of the API, and shows here."""
    assert jeeves_otel.__all__ == PUBLIC
    assert all(callable(getattr(jeeves_otel, name)) for name in PUBLIC)


def test_importing_the_recording_api_imports_no_sdk() -> None:
    """A library may depend on the recording API: it stands on opentelemetry-api alone."""
    script = (
        "import sys, json, jeeves_otel; print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry.')]))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = json.loads(out)

    assert [name for name in loaded if name.split(".")[1] in {"sdk", "exporter", "instrumentation", "proto"}] == []


def test_entry_points_are_named_jeeves_and_load() -> None:
    """The launcher finds the distro and the configurator under the names that the documentation gives."""
    for group in ("opentelemetry_distro", "opentelemetry_configurator"):
        found = {entry.name: entry for entry in entry_points(group=group)}

        assert "jeeves" in found
        assert callable(found["jeeves"].load())


def test_no_other_distribution_is_installed_beside_ours() -> None:
    """Two distributions would take turns: opentelemetry-distro is not among our dependencies."""
    assert [entry.name for entry in entry_points(group="opentelemetry_distro")] == ["jeeves"]


def test_the_page_about_architecture_draws_the_layers_that_the_linter_keeps() -> None:
    """A module that was placed is drawn."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = [block.replace(" · ", " : ").splitlines() for block in re.findall(r"```\n(.*?)```", page, re.DOTALL)]

    assert contracts[0]["layers"] in drawn
