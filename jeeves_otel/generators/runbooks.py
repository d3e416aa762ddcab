# SPDX-License-Identifier: Apache-2.0
"""Turn objectives and alerts into runbooks: what an alert means, what it costs, what to ask, what to do, whom to wake.

In: `Objectives`. Out: ``docs/runbooks/NAME.md``, one per alert, and an index of them. An annotation of each alert leads
to its page.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jeeves_otel.generators import rules
from jeeves_otel.promql import pretty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jeeves_otel.objectives import Alert, Objectives, Runbook, Slo

_HEADER = """<!-- Generated from jeeves_otel/data/objectives by `jeeves-otel render`.
     Change the source and run that command; edits here are overwritten and fail CI. -->
"""
_PLACE = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
WINDOW = "5m"  # of the questions of a diagnosis


def files(objectives: Objectives) -> dict[str, str]:
    """Return the runbooks and their index, ``{path: text}``, paths relative to the project's root."""
    pages = {
        **{slo.alert: _page(slo.alert, _meaning_of_slo(slo), slo.runbook, slo.links) for slo in objectives.slos},
        **{alert.name: _page(alert.name, _meaning(alert), alert.runbook, alert.links) for alert in objectives.alerts},
    }
    return {
        **{f"docs/runbooks/{name}.md": text for name, text in pages.items()},
        "docs/runbooks/README.md": _index(objectives),
    }


def _page(name: str, meaning: Iterator[str], runbook: Runbook, links: Mapping[str, str]) -> str:
    lines = [
        _HEADER,
        f"# {name}",
        "",
        "## Meaning",
        "",
        *meaning,
        "",
        "## Impact",
        "",
        runbook.impact,
        "",
        "## Diagnosis",
        "",
    ]
    for step in runbook.diagnosis:
        lines += [step.say, "", "```promql", pretty(step.ask.promql(WINDOW)), "```", ""]
    if "dashboard_url" in links:
        lines += [f"The dashboard: <{links['dashboard_url']}>.", ""]
    lines += ["## Mitigation", "", *(f"- {each}" for each in runbook.mitigation), ""]
    lines += ["## Escalation", "", runbook.escalation]
    return "\n".join(lines) + "\n"


def _meaning_of_slo(slo: Slo) -> Iterator[str]:
    yield f"{slo.meaning}"
    yield f"Promised are {rules.plain(slo.objective)} % over {slo.period.text}; the alert fires while the budget burns too fast."
    yield ""
    yield "| tier | severity | more than | over | and over | of at least | of which bad |"
    yield "|---|---|---|---|---|---|---|"
    for tier in slo.tiers:
        share = rules.plain(slo.threshold(tier) * 100)
        windows = f"{tier.long.text} | {tier.short.text}"
        yield f"| {tier.name} | {tier.severity} | {share} % bad | {windows} | {tier.events} events | {tier.bad} |"
    if waiting := [tier for tier in slo.tiers if tier.seen]:
        yield ""
        names = ", ".join(tier.name for tier in waiting)
        share = rules.plain(waiting[0].seen * 100)
        yield f"Of {names}, {share} % of the longer window must have been seen, so a young server is not judged by it."
    yield ""
    yield f"The questions below look at {WINDOW}; where a slower tier has fired, ask over its shorter window."


def _meaning(alert: Alert) -> Iterator[str]:
    rule = rules.symptom_alert(alert)
    yield f"{_summary(alert)}. Severity: {alert.severity}."
    yield ""
    yield "```promql"
    yield rule["expr"]
    yield "```"
    if alert.for_.text:
        yield ""
        yield f"It must be so for {alert.for_.text} before anybody is told."


def _summary(alert: Alert) -> str:
    """Return what *alert* says, for whoever reads it without one: its labels are in brackets."""
    return _PLACE.sub(r"(\1)", rules.symptom_alert(alert)["annotations"]["summary"])


def _index(objectives: Objectives) -> str:
    lines = [
        _HEADER,
        "# Runbooks",
        "",
        "One page per alert; the alert links to it.",
        "",
        "| alert | severity | what it says |",
        "|---|---|---|",
    ]
    for slo in objectives.slos:
        severities = "/".join(dict.fromkeys(tier.severity for tier in slo.tiers))
        lines.append(f"| [{slo.alert}]({slo.alert}.md) | {severities} | {slo.title}: the error budget burns too fast |")
    lines += [f"| [{each.name}]({each.name}.md) | {each.severity} | {_summary(each)} |" for each in objectives.alerts]
    return "\n".join(lines) + "\n"
