# SPDX-License-Identifier: Apache-2.0
"""Turn ``data/objectives/*.yaml`` into tiers, objectives and alerts that the profile can keep, or into findings.

In: YAML files and the registry whose metrics they speak of. Out: one `Objectives`. Numbers that become thresholds are
decimals from the file to the rule, because 1 - 0.995 is not 0.005 in binary. Nothing here imports OpenTelemetry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.documents import Place, did_you_mean, read
from jeeves_otel.promql import families_of
from jeeves_otel.queries import Duration, Level, Mean, Promql, Rises, Share, Slower, duration, read_query
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jeeves_otel.documents import Finding, Node
    from jeeves_otel.promql import Families
    from jeeves_otel.queries import Query
    from jeeves_otel.registry import Registry

FOLDER = Path(__file__).parent / "data" / "objectives"
SEVERITIES = ("critical", "warning", "info", "none")
_ALERT_NAME = re.compile(r"[A-Z][A-Za-z0-9]+")
_SLO_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ALERT_KEYS = (
    *("severity", "query", "window", "above", "below", "floor", "for", "keep_firing_for"),
    *("summary", "description", "dashboard", "labels", "runbook", "cases", "always", "inhibited_by"),
)
_LABEL_PLACE = r" \$labels\.(\w+) "
_VALUE_PLACE = r" \$value \| (\w+) "
# Of Prometheus' functions in texts, those whose output the generated tests know.
FUNCTIONS = ("humanize", "humanizeDuration", "humanizePercentage")
_HEAD = re.compile(r"""^["']?(slos|alerts)["']?\s*:""", re.MULTILINE)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED_LABELS = ("alertname", "severity", "slo", "tier")
_MOST_EVENTS = 10**9
_NO_DURATION = Duration("", 0.0)


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
    labels: Mapping[str, str]
    runbook: Runbook
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
            | {"slo:objective:ratio", "slo:burn_rate:ratio1h", "slo:budget_remaining:ratio", "slo:period_seen:ratio"}
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
    floor: int  # events that must have been bad within the window
    for_: Duration
    keep_firing_for: Duration
    summary: str
    description: str
    dashboard: str
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
    def names(self) -> tuple[str, ...]:
        """Names of all alerts."""
        return tuple(dict.fromkeys([*(slo.alert for slo in self.slos), *(alert.name for alert in self.alerts)]))


def has_shape(query: Query, comparison: str, threshold: Decimal) -> bool:
    """Return whether a query and its threshold say what an alert fires at; if not, its cases have to."""
    if isinstance(query, Rises):
        return True
    if comparison != ">" or isinstance(query, Promql | Level | Mean):
        return False
    return 0 < threshold < 1 if isinstance(query, Share | Slower) else threshold > 0


def examine(registry: Registry, files: Iterable[Path] = ()) -> tuple[Objectives, list[Finding]]:
    """Return what could be read of the packaged objectives, or of *files*, and every finding, in reading order.

    Args:
        registry: The profiles that the queries speak of.
        files: Objectives of a user, instead of the packaged ones; tiers are the packaged ones if none has any.
    """
    findings: list[Finding] = []
    tiers = _read_tiers(findings)
    slos: list[Slo] = []
    alerts: list[Alert] = []
    families = families_of(registry)
    for path in tuple(files) or sorted(path for path in FOLDER.glob("*.yaml") if path.name != "tiers.yaml"):
        reader = _File(families, tiers, {slo.name: slo for slo in slos})
        found = reader.read(path)
        slos += found.slos
        alerts += found.alerts
        findings += reader.findings
    return Objectives(tuple(slos), tuple(alerts)), findings


def holds_objectives(path: str) -> bool:
    """Return whether the file *path* says of itself that it holds objectives or alerts."""
    try:
        return _HEAD.search(Path(path).read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def profiles_of(files: Iterable[str]) -> tuple[str, ...]:
    """Return the profiles whose metrics *files* speak of, as they name them; ``jeeves`` where they name none."""
    named = []
    for file in files:
        root, _ = read(Path(file).read_text(encoding="utf-8"), file)
        profile = root.fields().get("profile")
        name = profile.text() if profile is not None else "jeeves"
        beside = Path(file).parent / name
        named.append(str(beside) if name.endswith((".yaml", ".yml")) and beside.is_file() else name)
    return tuple(dict.fromkeys(named))


def _read_tiers(findings: list[Finding]) -> dict[str, Tier]:
    path = FOLDER / "tiers.yaml"
    root, document = read(path.read_text(encoding="utf-8"), path.name)
    tiers = {name: _tier(name, node) for name, node in root.fields(("tiers",))["tiers"].fields().items()}
    findings += document.findings
    return tiers


def _tier(name: str, node: Node) -> Tier:
    known = ("severity", "burn", "long", "short", "floor", "keep_firing_for", "seen")
    entry = node.fields(known, required=("severity", "burn", "long", "short", "floor"))
    floor = entry["floor"].fields(("events", "bad"), required=("events", "bad"))
    return Tier(
        name=name,
        severity=entry["severity"].choice(SEVERITIES),
        burn=_decimal(entry["burn"]),
        long=duration(entry["long"]),
        short=duration(entry["short"]),
        events=floor["events"].whole(_MOST_EVENTS),
        bad=floor["bad"].whole(_MOST_EVENTS),
        keep_firing_for=duration(entry["keep_firing_for"]) if "keep_firing_for" in entry else _NO_DURATION,
        seen=_decimal(entry["seen"]) if "seen" in entry else Decimal(0),
    )


def _decimal(node: Node) -> Decimal:
    """Return the number at *node* exactly as it is written."""
    text = node.text()
    try:
        value = Decimal(text or "0")
    except InvalidOperation:
        value = Decimal("NaN")
    if value.is_finite():
        return value
    node.report("not-a-number", f"`{text}` is not a number", "write a finite decimal, for example 99.5")
    return Decimal(0)


class _File:
    """One file of objectives being read."""

    def __init__(self, families: Families, tiers: dict[str, Tier], slos: dict[str, Slo]) -> None:
        self.findings: list[Finding] = []
        self._families = families
        self._tiers = tiers
        self._slos = slos
        self._labels: Mapping[str, str] = {}
        self._rules = "alerts"
        self._named: list[tuple[str, Node]] = []  # alerts that others name, which may stand further down

    def read(self, path: Path) -> Objectives:
        """Return what the file at *path* promises."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            root, document = read("{}", str(path))
            root.report("unreadable-file", f"it cannot be read ({type(error).__name__})", "check the path and rights")
            self.findings += document.findings
            return Objectives((), ())
        root, document = read(text, path.name if path.is_relative_to(FOLDER) else str(path))
        top = root.fields(("profile", "rules", "labels", "slos", "alerts")) if not document.findings else {}
        self._rules = top["rules"].text() if "rules" in top else self._rules
        if not _SLO_NAME.fullmatch(self._rules) or self._rules == "slos":
            top["rules"].report(
                "rules-name", f"`{self._rules}` is not a name for a file", "use small letters; not slos"
            )
        self._labels = _own_labels(top.get("labels"))
        for name, node in top["slos"].fields().items() if "slos" in top else ():
            if name in self._slos:
                node.report("duplicate-slo", f"{name} is promised already", "give it another name")
            self._slos[name] = self._slo(name, node)
        alerts = tuple(self._alert(*each) for each in top["alerts"].fields().items()) if "alerts" in top else ()
        known = {*(slo.alert for slo in self._slos.values()), *(alert.name for alert in alerts)}
        for name, node in self._named:
            if name not in known:
                node.report("unknown-alert", f"there is no alert `{name}`", did_you_mean(name, known))
        self.findings += document.findings
        return Objectives(tuple(slo for slo in self._slos.values() if slo.where.file == root.where.file), alerts)

    @property
    def _records(self) -> frozenset[str]:
        return frozenset(name for slo in self._slos.values() for name in slo.records)

    def _slo(self, name: str, node: Node) -> Slo:
        known = ("title", "meaning", "alert", "objective", "period", "sli", "tiers", "dashboard", "labels", "runbook")
        entry = node.fields(known, required=("title", "alert", "objective", "sli", "runbook"))
        if not _SLO_NAME.fullmatch(name):
            node.report("slo-name", f"`{name}` is not a name", "use small letters, digits and underscores")
        objective = _decimal(entry["objective"]) if "objective" in entry else Decimal(99)
        if not 0 < objective < 100:  # noqa: PLR2004 - percent
            entry["objective"].report("objective", f"{objective} % leaves no budget", "write percent, for example 99.5")
            objective = Decimal(99)
        slo = Slo(
            name=name,
            title=entry["title"].text() if "title" in entry else "",
            meaning=entry["meaning"].text() if "meaning" in entry else "",
            alert=_alert_name(entry["alert"]) if "alert" in entry else "",
            objective=objective,
            period=duration(entry["period"]) if "period" in entry else Duration("30d", 2_592_000),
            sli=self._sli(entry.get("sli")),
            tiers=(),
            dashboard=entry["dashboard"].text() if "dashboard" in entry else "",
            labels=MappingProxyType({**self._labels, **_own_labels(entry.get("labels"))}),
            runbook=self._runbook(entry.get("runbook")),
            where=node.where,
        )
        return replace(slo, tiers=self._tiers_of(slo, entry.get("tiers"), node))

    def _sli(self, node: Node | None) -> Share | Slower:
        query = read_query(node, self._families) if node is not None else None
        if isinstance(query, Share | Slower) and not query.by:
            return query
        if node is not None:
            node.report(
                "not-an-sli", "an objective is about a share of all events", "write `share` or `slower`, no `by`"
            )
        return Share("", ())

    def _tiers_of(self, slo: Slo, node: Node | None, owner: Node) -> tuple[Tier, ...]:
        """Return the tiers of *slo*: all, or those named; one that could never fire is a finding."""
        names = [each.choice(self._tiers) for each in node.items()] if node is not None else list(self._tiers)
        tiers = tuple(self._tiers[name] for name in names if name)
        for tier in tiers:
            if slo.threshold(tier) >= 1:
                owner.report(
                    "unfirable-tier",
                    f"tier {tier.name} would fire above {slo.threshold(tier):.0%} bad events, which is never",
                    f"leave it out: `tiers: [{', '.join(each.name for each in tiers if slo.threshold(each) < 1)}]`",
                )
        return tiers

    def _alert(self, name: str, node: Node) -> Alert:
        entry = node.fields(_ALERT_KEYS, required=("severity", "query", "summary", "description", "runbook"))
        if not _ALERT_NAME.fullmatch(name):
            node.report("alert-name", f"`{name}` is not a name of an alert", "write it in CamelCase")
        comparison, threshold = self._threshold(entry)
        if not comparison and "query" in entry and not {"promql", "rises"} & set(entry["query"].fields()):
            node.report("no-threshold", f"{name} would fire whatever the query answers", "add `above: …` or `below: …`")
        cases = entry["cases"].fields(("fires", "silent")) if "cases" in entry else {}
        query = read_query(entry["query"], self._families, self._records) if "query" in entry else Promql("")
        for key in ("summary", "description"):
            if key in entry:
                _judge_text(entry[key], (*query.by, "severity", *self._labels))
        fires = tuple(_case(each) for each in cases["fires"].items()) if "fires" in cases else ()
        for case in fires:
            if missing := set(query.by) - set(case.labels):
                hint = "add them to its `labels:`, with the values that its series have"
                cases["fires"].report("missing-label", f"a case has no {', '.join(sorted(missing))}", hint)
        always = entry["always"].truth() if "always" in entry else False
        needed = {"fires"} if always else {"fires", "silent"}
        speaks = has_shape(query, comparison, threshold) or (
            not comparison and not isinstance(query, Promql | Level | Mean)
        )
        if "query" in entry and not speaks and not needed <= set(cases):
            node.report("untested-alert", f"{name} has no cases", "add `cases:` with `fires` and `silent`")
        if fires and not always and not any(case.over.text for case in fires):
            hint = "let what it fires at end in its `series:`, and add `over: …`, so long after it begins"
            cases["fires"].report("no-end", f"no case says when {name} is over", hint)
        return Alert(
            name=name,
            severity=entry["severity"].choice(SEVERITIES) if "severity" in entry else "warning",
            query=query,
            window=duration(entry["window"]) if "window" in entry else Duration("5m", 300),
            comparison=comparison,
            threshold=threshold,
            floor=entry["floor"].whole(_MOST_EVENTS) if "floor" in entry else 0,
            for_=duration(entry["for"]) if "for" in entry else _NO_DURATION,
            keep_firing_for=duration(entry["keep_firing_for"]) if "keep_firing_for" in entry else _NO_DURATION,
            summary=entry["summary"].text() if "summary" in entry else "",
            description=entry["description"].text() if "description" in entry else "",
            dashboard=entry["dashboard"].text() if "dashboard" in entry else "",
            labels=MappingProxyType({**self._labels, **_own_labels(entry.get("labels"))}),
            runbook=self._runbook(entry.get("runbook")),
            fires=fires,
            silent=tuple(_case(each) for each in cases["silent"].items()) if "silent" in cases else (),
            always=always,
            inhibited_by=self._inhibited_by(entry.get("inhibited_by"), (*query.by, *self._labels)),
            file=self._rules,
            where=node.where,
        )

    def _threshold(self, entry: dict[str, Node]) -> tuple[str, Decimal]:
        """Return how the query is compared, and with what: a number, or the bound that an objective promises."""
        for key, comparison in (("above", ">"), ("below", "<")):
            if key not in entry:
                continue
            slo = self._slos.get(entry[key].text())
            if slo is not None and isinstance(slo.sli, Slower):
                return comparison, Decimal(str(slo.sli.than)).normalize()
            return comparison, _decimal(entry[key])
        return "", Decimal(0)

    def _inhibited_by(self, node: Node | None, labels: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
        """Return which alerts silence this one, and the labels in which they agree, which it must have."""
        entries = node.fields() if node is not None else {}
        for name, each in entries.items():
            self._named.append((name, each))
            for label in each.texts():
                if label not in labels:
                    each.report("unknown-label", f"the alert has no label `{label}`", did_you_mean(label, labels))
        return MappingProxyType({name: each.texts() for name, each in entries.items()})

    def _runbook(self, node: Node | None) -> Runbook:
        if node is None:
            return Runbook()
        parts = ("impact", "diagnosis", "mitigation", "escalation")
        entry = node.fields(parts, required=parts)
        steps = []
        for each in entry["diagnosis"].items() if "diagnosis" in entry else ():
            step = each.fields(("say", "ask"), required=("say", "ask"))
            if len(step) == 2:  # noqa: PLR2004 - both are there
                steps.append(Step(step["say"].text(), read_query(step["ask"], self._families, self._records)))
        return Runbook(
            impact=entry["impact"].text() if "impact" in entry else "",
            diagnosis=tuple(steps),
            mitigation=entry["mitigation"].texts() if "mitigation" in entry else (),
            escalation=entry["escalation"].text() if "escalation" in entry else "",
        )


def _texts(node: Node | None) -> dict[str, str]:
    return {key: value.text() for key, value in node.fields().items()} if node is not None else {}


def _own_labels(node: Node | None) -> dict[str, str]:
    """Return the labels at *node*; those that alerts have anyway, and those that Prometheus refuses, are findings."""
    own = {}
    for name, each in node.fields().items() if node is not None else ():
        if name in _RESERVED_LABELS:
            each.report("reserved-label", f"`{name}` is set already", "give it another name; routing reads this one")
        elif not _LABEL_NAME.fullmatch(name):
            each.report("label-name", f"`{name}` is not a label", "use letters, digits and underscores, no digit first")
        else:
            own[name] = each.text()
    return own


def _alert_name(node: Node) -> str:
    name = node.text()
    if name and not _ALERT_NAME.fullmatch(name):
        node.report("alert-name", f"`{name}` is not a name of an alert", "write it in CamelCase")
    return name


def _judge_text(node: Node, labels: tuple[str, ...]) -> None:
    """Report what the text of an annotation asks that the alert does not have: it would be empty, at night."""
    text = node.text()
    for place in re.findall(r"\{\{(.*?)\}\}", text):
        label, function = (re.fullmatch(pattern, place) for pattern in (_LABEL_PLACE, _VALUE_PLACE))
        if label is not None and label[1] not in labels:
            hint = f"put it into `by`, or {did_you_mean(label[1], labels)}"
            node.report("unknown-label", f"the alert has no label `{label[1]}`", hint)
        elif function is not None and function[1] not in FUNCTIONS:
            node.report("unknown-function", f"`{function[1]}` cannot be tested", did_you_mean(function[1], FUNCTIONS))
        elif label is None and function is None:
            hint = "write {{ $labels.NAME }} or {{ $value | humanize }}, with these spaces"
            node.report("unknown-template", f"`{{{{{place}}}}}` cannot be tested", hint)


def _case(node: Node) -> Case:
    known = ("when", "series", "every", "begins", "after", "over", "value", "labels")
    entry = node.fields(known, required=("series",))
    for each in entry["series"].fields().values() if "series" in entry else ():
        try:
            samples(each.text())
        except ValueError as error:
            each.report("not-samples", str(error), "write 5, 5x10, 0+2x10, _x10 or stale, separated by spaces")
    return Case(
        when=entry["when"].text() if "when" in entry else "",
        series=MappingProxyType(_texts(entry.get("series"))),
        every=duration(entry["every"]) if "every" in entry else Duration("15s", 15),
        begins=entry["begins"].whole(_MOST_EVENTS) if "begins" in entry else 0,
        after=duration(entry["after"]) if "after" in entry else _NO_DURATION,
        over=duration(entry["over"]) if "over" in entry else _NO_DURATION,
        value=entry["value"].number() if "value" in entry else 1.0,
        labels=MappingProxyType(_texts(entry.get("labels"))),
    )
