# SPDX-License-Identifier: Apache-2.0
"""What is promised about a service, and what somebody is told of: tiers, objectives, alerts, and all of them together.

Shapes only: `specification` reads them from YAML, `generators` render them. Numbers that become thresholds are decimals
from the file to the rule, because 1 - 0.995 is not 0.005 in binary. Nothing here imports OpenTelemetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.queries import Duration, Level, Mean, Promql, Rises, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

    from jeeves_otel.documents import Place
    from jeeves_otel.queries import Query

SEVERITIES = ("critical", "warning", "info", "none")  # the worst first


@dataclass(frozen=True, slots=True)
class Links:
    """Where runbooks and dashboards are, for whoever is told of an alert: two addresses, below which each has its page."""

    runbooks: str = "https://github.com/jeeves-otel/jeeves-otel/blob/main/docs/runbooks"
    dashboards: str = "http://localhost:3000/d"

    def of(self, alert: str, dashboard: str) -> Mapping[str, str]:
        """Return the annotations of *alert* that lead to its runbook and, if it has one, its *dashboard*."""
        urls = {"runbook_url": f"{self.runbooks}/{alert}.md"}
        if dashboard:
            urls["dashboard_url"] = f"{self.dashboards}/jeeves-{dashboard}"
        return MappingProxyType(urls)


@dataclass(frozen=True, slots=True)
class Tier:
    """How fast a budget may burn over two windows before somebody is told; see ``data/objectives/tiers.yaml``."""

    name: str
    severity: str
    burn: Decimal
    long: Duration
    short: Duration
    events: int
    bad: int
    keep_firing_for: Duration
    seen: Decimal  # share of the long window that must have been observed, 0..1


@dataclass(frozen=True, slots=True)
class Step:
    """One question of a diagnosis, in words and as a query."""

    say: str
    ask: Query


@dataclass(frozen=True, slots=True)
class Runbook:
    """What to do when an alert fires."""

    impact: str = ""
    diagnosis: tuple[Step, ...] = ()
    mitigation: tuple[str, ...] = ()
    escalation: str = ""


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise about a share of good events over a period, and the alert that fires when its budget burns."""

    name: str
    title: str
    meaning: str
    alert: str
    objective: Decimal  # percent, 0 < objective < 100
    period: Duration
    sli: Share | Slower
    tiers: tuple[Tier, ...]
    dashboard: str
    links: Mapping[str, str]  # annotations
    labels: Mapping[str, str]
    runbook: Runbook
    file: str  # name of the rule file that it stands in
    where: Place

    @property
    def budget(self) -> Decimal:
        """The share of events that may be bad, 0 < budget < 1."""
        return (100 - self.objective) / 100

    @property
    def windows(self) -> tuple[Duration, ...]:
        """The windows over which events are recorded, ascending: those of the tiers, 5m, 1h and the period."""
        wanted = [Duration("5m", 300), Duration("1h", 3_600), self.period]
        wanted += [window for tier in self.tiers for window in (tier.long, tier.short)]
        return tuple(sorted({window.text: window for window in wanted}.values(), key=lambda window: window.seconds))

    @property
    def windows_to_be_seen(self) -> tuple[Duration, ...]:
        """The windows of which it matters how much there was to see: those of tiers that say so."""
        return tuple({tier.long.text: tier.long for tier in self.tiers if tier.seen}.values())

    @property
    def records(self) -> frozenset[str]:
        """Names of what is recorded about this objective, which queries may ask."""
        period = self.period.text
        return frozenset(
            {f"slo:{what}:rate{window.text}" for what in ("total", "bad") for window in self.windows}
            | {f"slo:seen:ratio{window.text}" for window in self.windows_to_be_seen}
            | {f"slo:error_ratio:rate{text}" for text in ("5m", "1h", period)}
            | {
                "slo:traffic:rate5m",
                "slo:traffic:max1d",
                "slo:objective:ratio",
                "slo:burn_rate:ratio1h",
                "slo:budget_remaining:ratio",
                "slo:period_seen:ratio",
            }
        )

    def threshold(self, tier: Tier) -> Decimal:
        """Return the share of bad events from which *tier* alerts."""
        return tier.burn * self.budget


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule is tested with: ``{series: value or promtool's notation}``, one sample per step of *every*.

    The alert fires *after* so long, counted from the step at which it *begins*, and shows *value*; so long after the same
    step it is *over*.
    """

    when: str
    series: Mapping[str, str]
    every: Duration
    begins: int
    after: Duration
    over: Duration
    value: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Alert:
    """A symptom that somebody is told of: a query, a threshold, and for how long."""

    name: str
    severity: str
    query: Query
    window: Duration
    comparison: str  # ">", "<", or nothing: whatever the query answers with
    threshold: Decimal
    floor: int  # events that must have been bad within the window; of a quantile, observations
    for_: Duration
    keep_firing_for: Duration
    summary: str
    description: str
    dashboard: str
    links: Mapping[str, str]  # annotations
    labels: Mapping[str, str]
    runbook: Runbook
    fires: tuple[Case, ...]
    silent: tuple[Case, ...]
    always: bool  # whether it is meant to fire all the time
    inhibited_by: Mapping[
        str, tuple[str, ...]
    ]  # {worse alert: labels in which both agree}; then nobody is told of this one
    file: str  # name of the rule file that it stands in
    where: Place


@dataclass(frozen=True, slots=True)
class Objectives:
    """Everything that is promised about the service, and everything that somebody is told of, in file order."""

    slos: tuple[Slo, ...]
    alerts: tuple[Alert, ...]

    @property
    def records(self) -> frozenset[str]:
        """Names of all recording rules."""
        return frozenset(name for slo in self.slos for name in slo.records)

    @property
    def runbooks(self) -> dict[str, str]:
        """The address of the runbook of every alert, ``{name: URL}``."""
        named = [*((slo.alert, slo.links) for slo in self.slos), *((alert.name, alert.links) for alert in self.alerts)]
        return {name: links["runbook_url"] for name, links in named}

    @property
    def dashboards(self) -> frozenset[str]:
        """Names of the dashboards to which alerts lead."""
        return frozenset(each.dashboard for promised in (self.slos, self.alerts) for each in promised)

    def of_files(self, files: Iterable[str]) -> Objectives:
        """Return those that were read from *files*."""
        wanted = frozenset(files)
        slos = (slo for slo in self.slos if slo.where.file in wanted)
        return Objectives(tuple(slos), tuple(alert for alert in self.alerts if alert.where.file in wanted))

    def with_others(self, others: Objectives) -> Objectives:
        """Return these and those of *others* whose names are not taken."""
        slos = (slo for slo in others.slos if slo.name not in {own.name for own in self.slos})
        alerts = (alert for alert in others.alerts if alert.name not in {own.name for own in self.alerts})
        return Objectives((*self.slos, *slos), (*self.alerts, *alerts))


def has_shape(query: Query, comparison: str, threshold: Decimal) -> bool:
    """Return whether a query and its threshold say what an alert fires at; if not, its cases have to."""
    if isinstance(query, Rises):
        return True
    if comparison != ">" or isinstance(query, Promql | Level | Mean):
        return False
    return 0 < threshold < 1 if isinstance(query, Share | Slower) else threshold > 0
