# SPDX-License-Identifier: Apache-2.0
"""The objectives that docs/howto/objectives.md shows, and everything that is made of them."""

from __future__ import annotations

from pathlib import Path

from jeeves_otel import dashboards, plausibility
from jeeves_otel.registry import load

SUPPORT = Path(__file__).parents[1] / "docs" / "examples" / "support.yaml"
PROMISED, FINDINGS = plausibility.examine_all(load(), [SUPPORT])
DASHBOARD = dashboards.of_own("own-support", "support", PROMISED)
