# SPDX-License-Identifier: Apache-2.0
"""Say what whoever is told of an alert reads, as Prometheus renders it.

In: an `Alert`, the labels and the value with which it fires. Out: an assertion for promtool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jeeves_otel.generators import promtool, rules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jeeves_otel.generators.promtool import Test
    from jeeves_otel.objectives import Alert


def told_of(alert: Alert, labels: Mapping[str, str], value: float, at_s: float) -> Test:
    """Return the assertion that *alert* fires once with *labels*, and says what it should with *value*."""
    annotations = rules.symptom_alert(alert)["annotations"]
    shown = {name: promtool.rendered(text, labels, value) for name, text in annotations.items()}
    return promtool.is_told(alert.name, at_s, [(labels, shown)])
