# SPDX-License-Identifier: Apache-2.0
"""Turn the registry's YAML into frozen, typed objects that remember file and line.

In: ``data/instruments.yaml`` and the profiles asked for, by name or path. Out: one `Registry`, or every finding at
once. Nothing here imports OpenTelemetry, so that ``check`` and ``render`` run anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.documents import Document, Finding, Node, Place, did_you_mean, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DATA = Path(__file__).parent / "data"
KINDS = ("counter", "updowncounter", "histogram", "gauge")
TYPES = ("counter", "gauge", "histogram")
TAKES = ("value", "count", "sum", "histogram")
MERGES = ("sum", "min", "max", "last")
STABILITIES = ("stable", "release_candidate", "development", "project")
OTHER = "other"
# Of a resource whose metrics have promised names already: whoever translates behind it leaves it as it is.
TRANSLATED = "jeeves.otel.translated"
DEFAULT_LIMIT = 100
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
MOST_VALUES = 10_000
OPERATIONS = ("agent", "llm_call", "tool")
ALWAYS_ON = "internal"

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class RegistryError(Exception):
    """The registry cannot be used; ``findings`` says why, all at once."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


@dataclass(frozen=True, slots=True)
class Form:
    """One spelling of an instrument, as some version of a convention has it."""

    name: str
    kind: str
    unit: str
    convention: str
    assume: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Instrument:
    """What code records into; ``generations`` lists its spellings, best first, each one or several forms."""

    name: str
    kind: str
    unit: str
    brief: str
    stability: str
    convention: str
    attributes: tuple[str, ...]
    bounds: tuple[float, ...]
    operation: str
    generations: tuple[tuple[Form, ...], ...]
    where: Place


@dataclass(frozen=True, slots=True)
class Template:
    """Text with attribute keys in braces, ``/{rpc.method}``; a bare key is the template ``{key}``."""

    parts: tuple[tuple[str, str], ...]  # (literal before the key, key)
    tail: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """Split *text* into literals and keys; text without braces is one key."""
        if "{" not in text:
            return cls((("", text),), "")
        parts, end = [], 0
        for match in _PLACEHOLDER.finditer(text):
            parts.append((text[end : match.start()], match.group(1)))
            end = match.end()
        return cls(tuple(parts), text[end:])

    @property
    def keys(self) -> tuple[str, ...]:
        """The attribute keys, in order."""
        return tuple(key for _, key in self.parts)


@dataclass(frozen=True, slots=True)
class Label:
    """How one label of a metric is computed from attributes."""

    name: str
    templates: tuple[Template, ...]
    value_map: Mapping[str, str]
    fold: str  # "", "upper" or "lower": how a value is folded before the map is asked
    absent: str | None
    present: str | None
    unmapped: str  # "keep", or the value for what neither map nor values know
    values: tuple[str, ...]  # closed set; empty means open
    known: tuple[str, ...]  # values of an open label that keep their name whatever comes
    limit: int  # of an open label: so many values, then "other"
    zero: bool
    where: Place

    @property
    def is_open(self) -> bool:
        """Whether any value may appear, up to the limit."""
        return not self.values

    @property
    def start_values(self) -> tuple[str, ...]:
        """The values that exist with 0 from the start, if the label is marked ``zero``."""
        return (self.values or self.known) if self.zero else ()


@dataclass(frozen=True, slots=True)
class Source:
    """Which points of which instrument feed a metric; a None among the accepted values accepts absence."""

    instrument: str
    take: str
    conditions: Mapping[str, tuple[str | None, ...]]
    where: Place


@dataclass(frozen=True, slots=True)
class Metric:
    """A view's promised side: one exported family with the sources that feed it."""

    name: str
    type: str
    unit: str
    help: str
    sources: tuple[Source, ...]
    labels: tuple[Label, ...]
    buckets: tuple[float, ...]
    merge: str
    profile: str
    where: Place

    @property
    def label_names(self) -> tuple[str, ...]:
        """Label names in promised order."""
        return tuple(label.name for label in self.labels)


@dataclass(frozen=True, slots=True)
class Profile:
    """A named set of metrics."""

    name: str
    include: tuple[str, ...]
    metrics: tuple[Metric, ...]
    where: Place


@dataclass(frozen=True, slots=True)
class Registry:
    """Everything that is promised and everything that is recorded, in file order.

    ``spellings`` gives, for an attribute, itself and its other spellings in the order in which they are read.
    """

    instruments: Mapping[str, Instrument]
    profiles: tuple[Profile, ...]
    metrics: Mapping[str, Metric]
    spellings: Mapping[str, tuple[str, ...]]

    def spelled(self, attribute: str) -> tuple[str, ...]:
        """Return *attribute* and its other spellings, in reading order."""
        return self.spellings.get(attribute, (attribute,))

    def bounds_needed(self, instrument: str) -> tuple[float, ...]:
        """Return the bounds of all histograms that are made from *instrument*, ascending, in its unit."""
        per_second = PER_SECOND.get(self.instruments[instrument].unit, 1)
        needed = {
            bound * (per_second if metric.unit == "s" else 1)
            for metric in self.metrics.values()
            if any(each.instrument == instrument and each.take == "histogram" for each in metric.sources)
            for bound in metric.buckets
        }
        return tuple(sorted(needed))


@dataclass(slots=True)
class _Draft:
    """A registry under construction."""

    instruments: dict[str, Instrument] = field(default_factory=dict)
    spellings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class _Shared:
    """What the metrics of one profile share: label definitions, value maps, and which definitions were used."""

    labels: Mapping[str, Node]
    maps: Mapping[str, Mapping[str, str]]
    used: set[str] = field(default_factory=set)


def load(profiles: Iterable[str] = ("jeeves",)) -> Registry:
    """Return the registry with *profiles* (names or paths of YAML files) and what they include.

    Raises:
        RegistryError: A profile cannot be found or read; it carries every finding.
    """
    registry, findings = examine(profiles)
    if findings:
        raise RegistryError(findings)
    return registry


def examine(profiles: Iterable[str]) -> tuple[Registry, list[Finding]]:
    """Return what could be read of the registry, and every finding about its shape."""
    draft = _Draft()
    _read_instruments(draft, DATA / "instruments.yaml")
    for profile in (*profiles, ALWAYS_ON):
        _read_profile(draft, profile, Place("profiles", 0))
    registry = Registry(
        MappingProxyType(draft.instruments),
        tuple(draft.profiles.values()),
        MappingProxyType(draft.metrics),
        MappingProxyType(draft.spellings),
    )
    return registry, draft.findings


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles in the package, ours about ourselves last."""
    names = (path.stem for path in (DATA / "profiles").glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: (name == ALWAYS_ON, name)))


# ---- instruments ---------------------------------------------------------------------------------------------------


def _read_instruments(draft: _Draft, path: Path) -> None:
    root, document = read(path.read_text(encoding="utf-8"), path.name)
    top = root.fields(known=("attributes", "instruments"))
    if "attributes" in top:
        _read_spellings(draft, top["attributes"])
    if "instruments" in top:
        _read_instrument_list(draft, top["instruments"])
    draft.findings += document.findings


def _read_spellings(draft: _Draft, node: Node) -> None:
    for name, others in node.fields().items():
        draft.spellings[name] = (name, *others.texts())


def _read_instrument_list(draft: _Draft, node: Node) -> None:
    for written, entry in node.fields().items():
        name = written.lower()  # as the SDK reads it
        if name in draft.instruments:
            place = draft.instruments[name].where
            entry.report("duplicate-instrument", f"{name} is declared already, in {place}", "give it another name")
            continue
        draft.instruments[name] = _read_instrument(name, entry)


def _read_instrument(name: str, node: Node) -> Instrument:
    known = ("kind", "unit", "stability", "convention", "brief", "attributes", "bounds", "generations", "operation")
    entry = node.fields(known, required=("kind", "unit"))
    kind = entry["kind"].choice(KINDS) if "kind" in entry else ""
    unit = entry["unit"].text() if "unit" in entry else ""
    convention = entry["convention"].text() if "convention" in entry else ""
    own = Form(name, kind, unit, convention, MappingProxyType({}))
    return Instrument(
        name=name,
        kind=kind,
        unit=unit,
        brief=entry["brief"].text() if "brief" in entry else "",
        stability=entry["stability"].choice(STABILITIES) if "stability" in entry else "project",
        convention=convention,
        attributes=entry["attributes"].texts() if "attributes" in entry else (),
        bounds=entry["bounds"].numbers() if "bounds" in entry else (),
        operation=entry["operation"].choice(OPERATIONS) if "operation" in entry else "",
        generations=_read_generations(entry.get("generations"), own),
        where=node.where,
    )


def _read_generations(node: Node | None, own: Form) -> tuple[tuple[Form, ...], ...]:
    if node is None:
        return ((own,),)
    generations: list[tuple[Form, ...]] = []
    for item in node.items():
        if item.is_list or item.is_mapping:
            generations.append(tuple(_read_form(form, own) for form in item.items()))
        elif item.choice(["self"]):
            generations.append((own,))
    if (own,) not in generations:
        generations.append((own,))
    return tuple(generations)


def _read_form(node: Node, own: Form) -> Form:
    entry = node.fields(("name", "kind", "unit", "convention", "assume"), required=("name",))
    assume = {key: value.text() for key, value in entry["assume"].fields().items()} if "assume" in entry else {}
    return Form(
        name=entry["name"].text() if "name" in entry else "",
        kind=entry["kind"].choice(KINDS) if "kind" in entry else own.kind,
        unit=entry["unit"].text() if "unit" in entry else own.unit,
        convention=entry["convention"].text() if "convention" in entry else "",
        assume=MappingProxyType(assume),
    )


# ---- profiles ------------------------------------------------------------------------------------------------------


def _read_profile(draft: _Draft, name_or_path: str, asked: Place) -> None:
    path = _find_profile(name_or_path)
    if path is None:
        names = profile_names()
        hint = f"{did_you_mean(name_or_path, names)}, or the path of a file of your own, such as ./my-profile.yaml"
        reason = "is a path, but not of a file" if Path(name_or_path).exists() else "does not exist"
        draft.findings.append(Finding("unknown-profile", asked, f"profile `{name_or_path}` {reason}", hint))
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"profile {path} cannot be read ({type(error).__name__})"
        draft.findings.append(
            Finding("unreadable-profile", asked, message, "check the path, the rights and the encoding (UTF-8)")
        )
        return
    root, document = read(text, _short(path))
    if document.findings:  # not YAML, or nothing: what is missing in it goes without saying
        draft.findings += document.findings
        return
    top = root.fields(
        ("profile", "include", "value_maps", "labels", "instruments", "metrics"), required=("profile", "metrics")
    )
    name = top["profile"].text() if "profile" in top else path.stem
    if name in draft.profiles:
        if draft.profiles[name].where.file != root.where.file:
            root.report("duplicate-profile", f"profile `{name}` is loaded already", "give this one another name")
        draft.findings += document.findings
        return
    draft.profiles[name] = Profile(name, (), (), root.where)  # reserved first, so that a circle of includes ends
    if "instruments" in top:
        _read_instrument_list(draft, top["instruments"])
    include = tuple(top["include"].items()) if "include" in top else ()
    metrics = _read_metrics(draft, name, top, document)
    draft.profiles[name] = Profile(name, tuple(node.text() for node in include), metrics, root.where)
    draft.findings += document.findings
    for node in include:
        _read_profile(draft, _beside(path, node.text()), node.where)


def _find_profile(name_or_path: str) -> Path | None:
    packaged = DATA / "profiles" / f"{name_or_path}.yaml"
    if re.fullmatch(r"[\w-]+", name_or_path) and packaged.is_file():
        return packaged
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else None


def _beside(path: Path, included: str) -> str:
    sibling = path.parent / included
    return str(sibling) if included.endswith((".yaml", ".yml")) and sibling.is_file() else included


def _short(path: Path) -> str:
    return path.name if path.is_relative_to(DATA) else str(path)


def _read_metrics(draft: _Draft, profile: str, top: Mapping[str, Node], document: Document) -> tuple[Metric, ...]:
    maps = {name: _read_map(node) for name, node in top["value_maps"].fields().items()} if "value_maps" in top else {}
    shared = _Shared(top["labels"].fields() if "labels" in top else {}, maps)
    metrics = []
    for name, node in top["metrics"].fields().items() if "metrics" in top else ():
        metric = _read_metric(name, node, profile, shared)
        if name in draft.metrics:
            place = draft.metrics[name].where
            document.report(
                "duplicate-metric",
                node.where,
                f"{name} is promised already, in {place}",
                "one profile owns a name: rename it or leave it out",
            )
            continue
        draft.metrics[name] = metric
        metrics.append(metric)
    for name in [name for name in shared.labels if name not in shared.used]:
        _read_label(name, shared.labels[name], shared)  # nobody uses it; its mistakes are findings all the same
    return tuple(metrics)


def _read_map(node: Node) -> Mapping[str, str]:
    return MappingProxyType({key: value.text() for key, value in node.fields().items()})


def _read_metric(name: str, node: Node, profile: str, shared: _Shared) -> Metric:
    known = ("type", "unit", "help", "source", "labels", "buckets", "merge", "stability")
    entry = node.fields(known, required=("type", "help", "source"))
    labels = entry["labels"].fields() if "labels" in entry else {}
    return Metric(
        name=name,
        type=entry["type"].choice(TYPES) if "type" in entry else "",
        unit=entry["unit"].text() if "unit" in entry else "",
        help=entry["help"].text() if "help" in entry else "",
        sources=tuple(_read_source(source) for source in entry["source"].items()) if "source" in entry else (),
        labels=tuple(_read_label(label, definition, shared) for label, definition in labels.items()),
        buckets=entry["buckets"].numbers() if "buckets" in entry else (),
        merge=entry["merge"].choice(MERGES) if "merge" in entry else "sum",
        profile=profile,
        where=node.where,
    )


def _read_source(node: Node) -> Source:
    entry = node.fields(("instrument", "take", "where"), required=("instrument", "take"))
    conditions = {
        key: tuple(None if value.is_null else value.text() for value in _values(accepted))
        for key, accepted in (entry["where"].fields() if "where" in entry else {}).items()
    }
    return Source(
        instrument=entry["instrument"].text().lower() if "instrument" in entry else "",
        take=entry["take"].choice(TAKES) if "take" in entry else "",
        conditions=MappingProxyType(conditions),
        where=node.where,
    )


def _values(node: Node) -> Iterable[Node]:
    return (node,) if node.is_null else node.items()


def _read_label(name: str, node: Node, shared: _Shared) -> Label:
    if not node.is_mapping:
        wanted = node.text()
        if wanted not in shared.labels:
            if wanted:
                node.report(
                    "unknown-label-definition",
                    f"there is no label definition `{wanted}`",
                    did_you_mean(wanted, shared.labels),
                )
            return Label(name, (), MappingProxyType({}), "", "", None, OTHER, (), (), DEFAULT_LIMIT, False, node.where)  # noqa: FBT003 - positional only here
        shared.used.add(wanted)
        node = shared.labels[wanted]
    known = ("from", "map", "fold", "absent", "present", "unmapped", "values", "known", "limit", "zero")
    entry = node.fields(known, required=("from",))
    values = entry["values"].texts() if "values" in entry else ()
    value_map = _label_map(entry.get("map"), shared.maps)
    return Label(
        name=name,
        templates=tuple(Template.parse(text) for text in entry["from"].texts()) if "from" in entry else (),
        value_map=value_map,
        fold=entry["fold"].choice(("upper", "lower")) if "fold" in entry else "",
        absent=entry["absent"].text() if "absent" in entry else None,
        present=entry["present"].text() if "present" in entry else None,
        unmapped=entry["unmapped"].text() if "unmapped" in entry else (OTHER if values else "keep"),
        values=values,
        known=entry["known"].texts() if "known" in entry else (),
        limit=entry["limit"].whole(MOST_VALUES) if "limit" in entry else DEFAULT_LIMIT,
        zero=entry["zero"].truth() if "zero" in entry else False,
        where=node.where,
    )


def _label_map(node: Node | None, maps: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    if node is None:
        return MappingProxyType({})
    if node.is_mapping:
        return _read_map(node)
    name = node.text()
    if name not in maps:
        if name:
            node.report("unknown-value-map", f"there is no value map `{name}`", did_you_mean(name, maps))
        return MappingProxyType({})
    return maps[name]
