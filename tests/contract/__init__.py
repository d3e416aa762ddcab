# SPDX-License-Identifier: Apache-2.0
"""The promised facts as data of the tests' own, and ways to hold a page against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric as Family

FACTS = Path(__file__).with_name("jeeves.yaml")
OTHER = "other"

_BASE_UNITS = ("seconds", "bytes", "ratio")
_NOT_BASE = re.compile(
    r"(^|_)(milliseconds?|microseconds?|nanoseconds?|minutes?|hours?|days?|ms|kilobytes|kibibytes|mebibytes|megabytes|gibibytes|percent)(_|$)"
)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_METRIC_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PARTS = {"histogram": ("_bucket", "_count", "_sum")}


@dataclass(frozen=True, slots=True)
class Fact:
    """One promised family: its labels in order (None: open), zero-marked labels, known values, bounds."""

    name: str
    type: str
    labels: Mapping[str, tuple[str, ...] | None]
    known: Mapping[str, tuple[str, ...]]
    zero: tuple[str, ...]
    buckets: tuple[float, ...]

    def start_values(self, label: str) -> tuple[str, ...]:
        """Return the values of *label* that exist with 0 by the zero rule; none for a label that is not marked."""
        return (self.labels[label] or self.known[label]) if label in self.zero else ()


@cache
def facts(*sections: str) -> dict[str, Fact]:
    """Return ``{name: fact}`` of *sections* (``promised``, ``proposed``, ``besides``); default: all."""
    written = yaml.safe_load(FACTS.read_text(encoding="utf-8"))
    return {name: _fact(name, entry) for section in sections or written for name, entry in written[section].items()}


def _fact(name: str, entry: Mapping[str, Any]) -> Fact:
    labels = {label: None if values == "open" else tuple(values) for label, values in entry.get("labels", {}).items()}
    return Fact(
        name=name,
        type=entry["type"],
        labels=labels,
        known={label: tuple(values) for label, values in entry.get("known", {}).items()},
        zero=tuple(entry.get("zero", ())),
        buckets=tuple(float(bound) for bound in entry.get("buckets", ())),
    )


# ---- pages -----------------------------------------------------------------------------------------------------------


def assert_page_keeps_contract(
    page: str, *, complete: Iterable[str] = (), other_allowed: bool = False
) -> dict[str, Family]:
    """Fail unless every promised family on *page* (Prometheus text) is as promised; return those families by name.

    Type, HELP and TYPE, exact label names, values within the closed sets, exact ``le`` bounds. What is not promised is
    ignored.

    Args:
        page: The text format, as a scraper gets it.
        complete: Names of families that must be there.
        other_allowed: Whether ``other`` may stand for a value that a closed label does not know.
    """
    promised = facts()
    families = {_page_name(family): family for family in text_string_to_metric_families(page)}
    found = {name: family for name, family in families.items() if name in promised}
    problems = [f"{name} is missing" for name in complete if name not in found]
    for name, family in found.items():
        problems += _family_problems(promised[name], family, page, other_allowed=other_allowed)

    assert not problems, "\n".join(problems)
    return found


def _page_name(family: Family) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _family_problems(fact: Fact, family: Family, page: str, *, other_allowed: bool) -> list[str]:
    problems = []
    if family.type != fact.type:
        problems.append(f"{fact.name} is a {family.type}, promised is a {fact.type}")
    for comment in ("HELP", "TYPE"):
        lines = [line for line in page.split("\n") if line.startswith(f"# {comment} {fact.name} ")]
        if len(lines) != 1 or not lines[0].split(" ", 3)[-1].strip():
            problems.append(f"{fact.name} has {len(lines)} {comment} lines")
    bounds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for sample in family.samples:
        labels = {key: value for key, value in sample.labels.items() if not (key == "le" and fact.type == "histogram")}
        problems += _label_problems(fact, labels, other_allowed=other_allowed)
        if "le" in sample.labels and fact.type == "histogram":
            bounds.setdefault(tuple(sorted(labels.items())), []).append(sample.labels["le"])
    expected = [*(repr(bound) for bound in fact.buckets), "+Inf"]
    problems += [f"{fact.name}{labels} has the bounds {has}" for labels, has in bounds.items() if has != expected]
    return problems


def _label_problems(fact: Fact, labels: Mapping[str, str], *, other_allowed: bool) -> list[str]:
    if list(labels) != list(fact.labels):
        return [f"{fact.name} has the labels {list(labels)}, promised are {list(fact.labels)}"]
    problems = []
    for name, value in labels.items():
        closed = fact.labels[name]
        if not value:
            problems.append(f"{fact.name}: {name} is empty")
        elif closed is not None and value not in closed and not (other_allowed and value == OTHER):
            problems.append(f"{fact.name}: {name} is {value!r}, promised are {closed}")
    return problems


def lint(page: str) -> list[str]:
    """Return what a linter of Prometheus metrics objects to on *page*, one sentence per finding.

    In the spirit of ``promtool check metrics``, and runs where that is not installed.
    """
    problems: list[str] = []
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    names: set[str] = set()
    for family in text_string_to_metric_families(page):
        name = _page_name(family)
        problems += [] if name not in names else [f"{name} stands twice"]
        names.add(name)
        problems += _name_problems(name, family)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            problems += [] if key not in seen else [f"{key} stands twice"]
            seen.add(key)
            problems += _reserved_labels(name, family.type, sample.labels)
    return problems


def _name_problems(name: str, family: Family) -> list[str]:
    problems = []
    if not family.documentation.strip():
        problems.append(f"{name} has no help")
    if family.type == "unknown":
        problems.append(f"{name} has no type")
    if not _METRIC_NAME.fullmatch(name):
        problems.append(f"{name} is not a name")
    if family.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket", "_info", "_created")):
        problems.append(f"{name} is a {family.type} with the suffix of something else")
    if _NOT_BASE.search(name):
        problems.append(f"{name} is not in base units ({', '.join(_BASE_UNITS)})")
    if family.type in name.split("_"):
        problems.append(f"{name} holds its type")
    return problems


def _reserved_labels(name: str, kind: str, labels: Mapping[str, str]) -> list[str]:
    reserved = {"quantile", "job", "instance", *(() if kind == "histogram" else ("le",))}
    return [
        f"{name} has the label {label}"
        for label in labels
        if label in reserved or label.startswith("__") or not _LABEL_NAME.fullmatch(label)
    ]
