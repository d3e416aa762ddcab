# SPDX-License-Identifier: Apache-2.0
"""Read YAML into nodes that know file and line, and report everything that does not fit.

In: the text of one YAML file. Out: nodes with typed access that never raises; what does not fit becomes a `Finding`
with place and way out, so that a reader can go on and report all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import yaml

_STRING, _INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))


class Level(Enum):
    """How much a finding weighs: a violation fails `check`, advice does not."""

    VIOLATION = "violation"
    ADVICE = "advice"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: file name, line (from 1; 0 where there are no lines) and dotted key."""

    file: str
    line: int
    key: str = ""

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}" + (f" {self.key}" if self.key else "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement about a file: what is wrong, where, and the way out."""

    id: str
    where: Place
    message: str
    hint: str
    level: Level = Level.VIOLATION

    def __str__(self) -> str:
        return f"{self.where}: {self.message}; {self.hint} [{self.id}]"


@dataclass(slots=True)
class Document:
    """One YAML file being read: its name and the findings so far, in reading order."""

    file: str
    findings: list[Finding] = field(default_factory=list)

    def report(self, id_: str, where: Place, message: str, hint: str, level: Level = Level.VIOLATION) -> None:
        """Add one finding."""
        self.findings.append(Finding(id_, where, message, hint, level))


class Node:
    """A YAML node with its place. Every access reports what does not fit and returns an empty value instead."""

    __slots__ = ("_document", "_raw", "where")

    def __init__(self, document: Document, raw: yaml.Node | None, where: Place) -> None:
        self._document = document
        self._raw = raw
        self.where = where

    def report(self, id_: str, message: str, hint: str, level: Level = Level.VIOLATION) -> None:
        """Add a finding at this node."""
        self._document.report(id_, self.where, message, hint, level)

    @property
    def is_list(self) -> bool:
        """Whether the node is a sequence."""
        return self._kind == "sequence"

    @property
    def is_mapping(self) -> bool:
        """Whether the node is a mapping."""
        return self._kind == "mapping"

    @property
    def is_null(self) -> bool:
        """Whether the node is an explicit or empty null."""
        return self._scalar(_NULL) is not None

    @property
    def _kind(self) -> str:
        """``scalar``, ``sequence`` or ``mapping``, as PyYAML calls them; empty if there is nothing."""
        return str(getattr(self._raw, "id", ""))

    def _scalar(self, *tags: str) -> str | None:
        """Return what is written here if it is a scalar with one of *tags*."""
        return (
            str(self._raw.value) if self._raw is not None and self._kind == "scalar" and self._raw.tag in tags else None
        )

    def fields(self, known: Iterable[str] | None = None, required: Iterable[str] = ()) -> dict[str, Node]:
        """Return the mapping's entries by key, in file order.

        Args:
            known: Keys that may appear; any other is a finding that names the nearest one. None allows all.
            required: Keys that must appear.
        """
        if self._raw is None or not self.is_mapping:
            self.report("not-a-mapping", "a mapping is expected here", "write `key: value` lines, indented")
            return {}
        entries: dict[str, Node] = {}
        for key_node, value_node in self._raw.value:
            key = str(key_node.value)
            place = Place(self.where.file, key_node.start_mark.line + 1, f"{self.where.key}.{key}".lstrip("."))
            if key in entries:
                self._document.report(
                    "duplicate-key",
                    place,
                    f"`{key}` stands here twice (first in line {entries[key].where.line})",
                    "keep one of them; YAML would silently take the last",
                )
            entries[key] = Node(self._document, value_node, place)
        if known is not None:
            self._report_unknown(entries, list(known))
        for key in required:
            if key not in entries:
                place = Place(self.where.file, self.where.line, f"{self.where.key}.{key}".lstrip("."))
                self._document.report("missing-key", place, f"`{key}` is missing", f"add `{key}: …`")
        return entries

    def _report_unknown(self, entries: dict[str, Node], known: list[str]) -> None:
        for key in [key for key in entries if key not in known]:
            node = entries.pop(key)
            node.report("unknown-key", f"`{key}` is not known here", did_you_mean(key, known))

    def items(self) -> Iterator[Node]:
        """Yield the entries of a sequence; a single scalar or mapping counts as a sequence of one."""
        if self._raw is not None and self.is_list:
            for index, raw in enumerate(self._raw.value):
                place = Place(self.where.file, raw.start_mark.line + 1, f"{self.where.key}[{index}]")
                yield Node(self._document, raw, place)
        elif self._raw is not None and not self.is_null:
            yield self

    def text(self) -> str:
        """Return the scalar as text; a number keeps its spelling."""
        written = self._scalar(_STRING, _INT, _FLOAT)
        if written is not None:
            return written
        self.report(
            "not-a-text", "a text is expected here", "write one value, quoted if it is yes, no, on, off or null"
        )
        return ""

    def texts(self) -> tuple[str, ...]:
        """Return a sequence of texts (one scalar counts as one)."""
        return tuple(node.text() for node in self.items())

    def choice(self, allowed: Iterable[str]) -> str:
        """Return the scalar if it is one of *allowed*, else report and return ''."""
        allowed = list(allowed)
        value = self.text()
        if value in allowed:
            return value
        if value:
            self.report("not-a-choice", f"`{value}` is not possible here", did_you_mean(value, allowed))
        return ""

    def number(self) -> float:
        """Return the scalar as a float, 0.0 if it is none."""
        value = _decimal(self._scalar(_INT, _FLOAT))
        if value is not None:
            return value
        self.report(
            "not-a-number", "a number is expected here", "write a finite decimal without quotes, for example 0.5"
        )
        return 0.0

    def whole(self, most: int) -> int:
        """Return the scalar as a whole number, 1..*most*; 1 if it is none."""
        value = _decimal(self._scalar(_INT))
        if value is not None and 1 <= value <= most:
            return int(value)
        self.report("not-a-whole-number", "a whole number is expected here", f"write a number from 1 up to {most}")
        return 1

    def numbers(self) -> tuple[float, ...]:
        """Return a sequence of floats."""
        return tuple(node.number() for node in self.items())

    def truth(self) -> bool:
        """Return the scalar as a boolean, False if it is none."""
        written = self._scalar(_BOOL)
        if written is not None:
            return written.lower() in {"true", "yes", "on"}
        self.report("not-a-boolean", "true or false is expected here", "write true or false, without quotes")
        return False


def _decimal(text: str | None) -> float | None:
    """Return the finite number that *text* writes in decimal; YAML also has 0x10, 1:30 and .nan, which are not meant."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def read(text: str, file: str) -> tuple[Node, Document]:
    """Parse *text* and return its root with the document that collects findings.

    A syntax error becomes a finding and an empty mapping.
    """
    import yaml  # noqa: PLC0415 - a library that only records without an SDK never needs it

    document = Document(file)
    top = Place(file, 1)
    try:
        raw = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        document.report("yaml-syntax", Place(file, line), f"this is not YAML: {error.problem}", "mend the syntax")
        raw = None
    except yaml.YAMLError as error:
        document.report("yaml-syntax", top, f"this is not YAML: {error}", "mend the syntax")
        raw = None
    if raw is None and not document.findings:
        document.report("empty-file", top, "the file is empty", "start with `profile: NAME` and `metrics:`")
    return Node(document, raw if raw is not None else yaml.MappingNode("tag:yaml.org,2002:map", []), top), document


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest of *known*, or all of them if none is near."""
    import difflib  # noqa: PLC0415 - only where something is misspelt

    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known) or 'nothing'}"
