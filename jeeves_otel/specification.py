# SPDX-License-Identifier: Apache-2.0
"""Turn ``data/objectives/*.yaml``, or files of a user, into objectives and alerts that the profile can keep, or into findings.

In: YAML files and the registry whose metrics they speak of. Out: one `Objectives`, and a finding for whatever nobody
promises, or could never happen. Nothing here imports OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.documents import did_you_mean, read
from jeeves_otel.objectives import SEVERITIES, Alert, Case, Links, Objectives, Runbook, Slo, Step, Tier
from jeeves_otel.promql import families_of
from jeeves_otel.queries import Duration, Promql, Share, Slower, duration, read_query
from jeeves_otel.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jeeves_otel.documents import Finding, Node
    from jeeves_otel.promql import Families
    from jeeves_otel.registry import Registry

FOLDER = Path(__file__).parent / "data" / "objectives"
_PLACE = "jeeves_otel/data/objectives"  # of packaged files, in findings
_LONGEST_PAGE = 40 - len("jeeves-")  # Grafana takes no uid that is longer than 40
_HASH = 6  # characters
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
_TEMPLATES = "write {{ $labels.NAME }} or {{ $value | humanize }}, with these spaces"
_HEAD = re.compile(r"""^["']?(slos|alerts)["']?\s*:""", re.MULTILINE)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED_LABELS = ("alertname", "severity", "slo", "tier")
_OF_EVERY_ALERT = ("alertname", "severity")
_MOST_EVENTS = 10**9
_NO_DURATION = Duration("", 0.0)


def examine(
    registry: Registry, files: Iterable[Path] = (), links: Links | None = None
) -> tuple[Objectives, list[Finding]]:
    """Return what could be read of the packaged objectives, or of *files*, and every finding, in reading order.

    Args:
        registry: The profiles that the queries speak of.
        files: Objectives of a user, or some of the packaged ones, instead of all that are packaged.
        links: Where runbooks and dashboards are to be found; in this project, unless it is said.
    """
    findings: list[Finding] = []
    tiers = _read_tiers(findings)
    slos: list[Slo] = []
    alerts: list[Alert] = []
    families = families_of(registry)
    for path in tuple(files) or packaged().values():
        reader = _File(families, tiers, {slo.name: slo for slo in slos}, links or Links())
        found = reader.read(path)
        slos += found.slos
        alerts += found.alerts
        findings += reader.findings
    return Objectives(tuple(slos), tuple(alerts)), findings


def packaged() -> dict[str, Path]:
    """Return the packaged files of objectives and alerts by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if path.name != "tiers.yaml"}


@cache
def names_of_packaged() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the objectives and the alerts that are packaged, each by name, with the name of its file."""
    slos, alerts = {}, {}
    for file, path in packaged().items():
        top = read(path.read_text(encoding="utf-8"), path.name)[0].fields()
        for name, node in top["slos"].fields().items() if "slos" in top else ():
            slos[name] = alerts[node.fields()["alert"].text()] = file
        alerts |= dict.fromkeys(top["alerts"].fields() if "alerts" in top else (), file)
    return MappingProxyType(slos), MappingProxyType(alerts)


def is_packaged(path: Path) -> bool:
    """Return whether *path* leads to one of the packaged files, however it is written."""
    return path.resolve().parent == FOLDER.resolve()


def place_of(path: Path) -> str:
    """Return what the file at *path* is called in findings, and told from others by; no file of a user is called like a packaged one."""
    if is_packaged(path):
        return f"{_PLACE}/{path.name}"
    return str(path.absolute() if is_of_the_package(str(path)) else path)


def is_of_the_package(place: str) -> bool:
    """Return whether *place*, of which a finding speaks, is a packaged file."""
    return place.startswith(f"{_PLACE}/")


def own_page(file: str) -> str:
    """Return the name of the dashboard that the objectives of a user's *file* get; a long one ends with a hash."""
    stem = Path(file).stem
    name = f"own-{re.sub('[^a-z0-9]+', '-', stem.lower()).strip('-')}"
    if name != "own-" and len(name) <= _LONGEST_PAGE:
        return name
    short = name[: _LONGEST_PAGE - _HASH - 1].rstrip("-")
    return f"{short}-{hashlib.sha256(stem.encode()).hexdigest()[:_HASH]}"


def holds_objectives(path: str) -> bool:
    """Return whether the file *path* says of itself that it holds objectives or alerts."""
    return _HEAD.search(_text_of(Path(path))) is not None


def profiles_of(files: Iterable[Path]) -> tuple[str, ...]:
    """Return the profiles whose metrics *files* speak of, as they name them; ``jeeves`` where they name none."""
    named = []
    for file in files:
        root, _ = read(_text_of(file), str(file))
        profile = root.fields().get("profile")
        name = profile.text() if profile is not None else "jeeves"
        beside = file.parent / name
        named.append(str(beside) if name.endswith((".yaml", ".yml")) and beside.is_file() else name)
    return tuple(dict.fromkeys(named))


def _text_of(path: Path) -> str:
    """Return the text of the file at *path*, or an empty mapping; whoever reads it for good reports why."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "{}"


def _read_tiers(findings: list[Finding]) -> dict[str, Tier]:
    path = FOLDER / "tiers.yaml"
    root, document = read(path.read_text(encoding="utf-8"), path.name)
    tiers = {name: _tier(name, node) for name, node in root.fields(("tiers",))["tiers"].fields().items()}
    findings += document.findings
    return tiers


def _tier(name: str, node: Node) -> Tier:
    known = ("severity", "burn", "long", "short", "floor", "keep_firing_for", "seen")
    entry = node.fields(known, required=("severity", "burn", "long", "short", "floor"))
    events, bad = _floor(entry["floor"])
    return Tier(
        name=name,
        severity=entry["severity"].choice(SEVERITIES),
        burn=_decimal(entry["burn"]),
        long=duration(entry["long"]),
        short=duration(entry["short"]),
        events=events,
        bad=bad,
        keep_firing_for=duration(entry["keep_firing_for"]) if "keep_firing_for" in entry else _NO_DURATION,
        seen=_decimal(entry["seen"]) if "seen" in entry else Decimal(0),
    )


def _floor(node: Node) -> tuple[int, int]:
    """Return how many events there must be, and how many of them bad."""
    floor = node.fields(("events", "bad"), required=("events", "bad"))
    events, bad = (floor[key].whole(_MOST_EVENTS) if key in floor else 1 for key in ("events", "bad"))
    if bad > events:
        node.report("floor", f"of {events} events no {bad} are bad", "let `events` be the larger one")
    return events, bad


def _with_floor(tier: Tier, node: Node) -> Tier:
    """Return *tier* with the floor at *node*, or as it is where that is empty."""
    entry = {} if node.is_null else node.fields(("floor",))
    if "floor" not in entry:
        return tier
    events, bad = _floor(entry["floor"])
    return replace(tier, events=events, bad=bad)


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

    def __init__(self, families: Families, tiers: dict[str, Tier], slos: dict[str, Slo], links: Links) -> None:
        self.findings: list[Finding] = []
        self._families = families
        self._tiers = tiers
        self._slos = slos
        self._links = links
        self._labels: Mapping[str, Node] = {}
        self._rules = ""  # name of the rule file for alerts
        self._dashboard = ""  # of what names none

    def read(self, path: Path) -> Objectives:
        """Return what the file at *path* promises."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            root, document = read("{}", place_of(path))
            root.report("unreadable-file", f"it cannot be read ({type(error).__name__})", "check the path and rights")
            self.findings += document.findings
            return Objectives((), ())
        is_own = not is_packaged(path)
        self._dashboard = own_page(path.name) if is_own else ""
        self._rules = own_page(path.name) if is_own else "alerts"
        root, document = read(text, place_of(path))
        top = root.fields(("profile", "rules", "labels", "slos", "alerts")) if not document.findings else {}
        self._name_rules(top.get("rules"), is_own=is_own)
        self._labels = _own_labels(top.get("labels"))
        for name, node in top["slos"].fields().items() if "slos" in top else ():
            if name in self._slos:
                node.report("duplicate-slo", f"{name} is promised already", "give it another name")
            self._slos[name] = self._slo(name, node)
        alerts = tuple(self._alert(*each) for each in top["alerts"].fields().items()) if "alerts" in top else ()
        self.findings += document.findings
        return Objectives(tuple(slo for slo in self._slos.values() if slo.where.file == root.where.file), alerts)

    def _name_rules(self, node: Node | None, *, is_own: bool) -> None:
        """Take the name at *node* for the rule file of alerts, which is not that of a packaged one in the same folder."""
        if node is None:
            return
        name = node.text()
        taken = {"slos", *(("alerts", *packaged()) if is_own else ())}
        if not _SLO_NAME.fullmatch(name) or name in taken:
            hint = f"use small letters, digits and underscores; not {', '.join(sorted(taken))}"
            node.report("rules-name", f"`{name}` is not a name for a file of one's own", hint)
        self._rules = name

    @property
    def _slo_rules(self) -> str:
        """The name of the rule file for objectives, beside that for alerts."""
        return "slos" if not self._dashboard else f"{self._rules}-slos"

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
        alert = _alert_name(entry["alert"]) if "alert" in entry else ""
        dashboard = entry["dashboard"].text() if "dashboard" in entry else self._dashboard
        return Slo(
            name=name,
            title=entry["title"].text() if "title" in entry else "",
            meaning=entry["meaning"].text() if "meaning" in entry else "",
            alert=alert,
            objective=objective,
            period=duration(entry["period"]) if "period" in entry else Duration("30d", 2_592_000),
            sli=self._sli(entry.get("sli")),
            tiers=self._tiers_of(entry.get("tiers")),
            dashboard=dashboard,
            links=self._links.of(alert, dashboard),
            labels=_values({**self._labels, **_own_labels(entry.get("labels"))}),
            runbook=self._runbook(entry.get("runbook")),
            file=self._slo_rules,
            where=node.where,
        )

    def _sli(self, node: Node | None) -> Share | Slower:
        query = read_query(node, self._families) if node is not None else None
        if isinstance(query, Share | Slower) and not query.by:
            return query
        if node is not None:
            node.report(
                "not-an-sli", "an objective is about a share of all events", "write `share` or `slower`, no `by`"
            )
        return Share("", ())

    def _tiers_of(self, node: Node | None) -> tuple[Tier, ...]:
        """Return the tiers at *node*: all there are, those that a list names, or those of a mapping with floors of its own."""
        if node is not None and node.is_mapping:
            return tuple(_with_floor(self._tiers[name], each) for name, each in node.fields(self._tiers).items())
        names = [each.choice(self._tiers) for each in node.items()] if node is not None else list(self._tiers)
        return tuple(self._tiers[name] for name in names if name)

    def _alert(self, name: str, node: Node) -> Alert:
        entry = node.fields(_ALERT_KEYS, required=("severity", "query", "summary", "description", "runbook"))
        if not _ALERT_NAME.fullmatch(name):
            node.report("alert-name", f"`{name}` is not a name of an alert", "write it in CamelCase")
        comparison, threshold = self._threshold(entry)
        cases = entry["cases"].fields(("fires", "silent")) if "cases" in entry else {}
        labels = {**self._labels, **_own_labels(entry.get("labels"))}
        query = read_query(entry["query"], self._families, self._records) if "query" in entry else Promql("")
        for key in ("summary", "description"):
            if key in entry:
                _judge_text(entry[key], query.by)
        if "query" in entry:
            # What every rule sets is as if it stood in `labels:`.
            _judge_labels(name, {**dict.fromkeys(_OF_EVERY_ALERT, entry["query"]), **labels}, query.by)
        fires = tuple(_case(each) for each in cases["fires"].items()) if "fires" in cases else ()
        for case in fires:
            if missing := set(query.by) - set(case.labels):
                hint = "add them to its `labels:`, with the values that its series have"
                cases["fires"].report("missing-label", f"a case has no {', '.join(sorted(missing))}", hint)
        always = entry["always"].truth() if "always" in entry else False
        if fires and not always and not any(case.over.text for case in fires):
            hint = "let what it fires at end in its `series:`, and add `over: …`, so long after it begins"
            cases["fires"].report("no-end", f"no case says when {name} is over", hint)
        dashboard = entry["dashboard"].text() if "dashboard" in entry else self._dashboard
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
            dashboard=dashboard,
            links=self._links.of(name, dashboard),
            labels=_values(labels),
            runbook=self._runbook(entry.get("runbook")),
            fires=fires,
            silent=tuple(_case(each) for each in cases["silent"].items()) if "silent" in cases else (),
            always=always,
            inhibited_by=_inhibited_by(entry.get("inhibited_by")),
            file=self._rules,
            where=node.where,
        )

    def _threshold(self, entry: dict[str, Node]) -> tuple[str, Decimal]:
        """Return how the query is compared, and with what: a number, or the bound that an objective promises."""
        if "above" in entry and "below" in entry:
            entry["below"].report("two-thresholds", "there is `above`, too", "write two alerts, each with one of them")
        for key, comparison in (("above", ">"), ("below", "<")):
            if key not in entry:
                continue
            slo = self._slos.get(entry[key].text())
            if slo is not None and isinstance(slo.sli, Slower):
                return comparison, Decimal(str(slo.sli.than)).normalize()
            return comparison, _decimal(entry[key])
        return "", Decimal(0)

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


def _own_labels(node: Node | None) -> dict[str, Node]:
    """Return the labels at *node*; those that alerts have anyway, and those that Prometheus refuses, are findings."""
    own = {}
    for name, each in node.fields().items() if node is not None else ():
        if name in _RESERVED_LABELS:
            each.report("reserved-label", f"`{name}` is set already", "give it another name; routing reads this one")
        elif not _LABEL_NAME.fullmatch(name):
            each.report("label-name", f"`{name}` is not a label", "use letters, digits and underscores, no digit first")
        elif name.startswith("__"):
            each.report("label-name", f"`{name}` is one of Prometheus' own labels", "begin with at most one underscore")
        elif text := each.text():  # for Prometheus, an empty one is none
            own[name] = each
            if re.search(r"\{\{|\}\}", text):
                hint = "write what is always true, or ask `by` a label that says it"
                each.report("unknown-template", "a label is a fixed text: by it alerts are routed and silenced", hint)
    return own


def _values(labels: Mapping[str, Node]) -> Mapping[str, str]:
    return MappingProxyType({name: node.text() for name, node in labels.items()})


def _judge_labels(alert: str, labels: Mapping[str, Node], by: tuple[str, ...]) -> None:
    """Report the labels that *alert* writes over those by which its query tells series apart."""
    for label in by:
        if label in labels:
            message = f"{alert} answers by `{label}`; with one value for all, Prometheus refuses two series at once"
            labels[label].report("label-of-series", message, "give it another name, or take it out of `by`")


def _alert_name(node: Node) -> str:
    name = node.text()
    if name and not _ALERT_NAME.fullmatch(name):
        node.report("alert-name", f"`{name}` is not a name of an alert", "write it in CamelCase")
    return name


def _judge_text(node: Node, labels: tuple[str, ...]) -> None:
    """Report what the text of an annotation asks that the alert does not have: it would be empty, at night."""
    text = node.text()
    for place in re.findall(r"\{\{(.*?)\}\}", text, re.DOTALL):
        label, function = (re.fullmatch(pattern, place) for pattern in (_LABEL_PLACE, _VALUE_PLACE))
        if label is not None and label[1] not in labels:
            hint = f"put it into `by`, or {did_you_mean(label[1], labels)}"
            node.report("unknown-label", f"the alert has no label `{label[1]}`", hint)
        elif function is not None and function[1] not in FUNCTIONS:
            node.report("unknown-function", f"`{function[1]}` cannot be tested", did_you_mean(function[1], FUNCTIONS))
        elif label is None and function is None:
            node.report("unknown-template", f"`{{{{{place}}}}}` cannot be tested", _TEMPLATES)
    if half := re.search(r"\{\{|\}\}", re.sub(r"\{\{.*?\}\}", "", text, flags=re.DOTALL)):
        node.report("unknown-template", f"there is a `{half[0]}` without its other half", _TEMPLATES)


def _inhibited_by(node: Node | None) -> Mapping[str, tuple[str, ...]]:
    """Return which alerts silence this one, and the labels in which they must agree."""
    entries = node.fields() if node is not None else {}
    return MappingProxyType({name: each.texts() for name, each in entries.items()})


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
