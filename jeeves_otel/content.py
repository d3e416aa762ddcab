# SPDX-License-Identifier: Apache-2.0
"""Decide what of an attribute, a line or a text may leave: kinds of content, and the rules that users add.

In: ``data/content.yaml``, the kinds asked for (``JEEVES_OTEL_CONTENT``) and a file of rules (``JEEVES_OTEL_REDACTION``).
Out: one `Content`, that `redaction` and `metering` ask. Nothing here imports OpenTelemetry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeeves_otel.documents import Finding, Place, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jeeves_otel.documents import Node

MASK = "***"
LEFT_OUT = "[left out: JEEVES_OTEL_CONTENT]"
_FILE = Path(__file__).parent / "data" / "content.yaml"
_LISTS = ("attributes", "cut", "events", "loggers", "asked_by")
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")
_HEAD = re.compile(r"""^\s*["']?redactions?["']?\s*:""", re.MULTILINE | re.IGNORECASE)
_NO = {"", "0", "false", "no", "none", "no_content"}
_MOST_KEYS = 10_000  # that are remembered; an application that makes up names of attributes must not fill the memory


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of content, and where it is found; see the head of ``data/content.yaml``."""

    name: str
    meaning: str
    attributes: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    loggers: tuple[str, ...] = ()
    asked_by: tuple[str, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    statuses: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What a user adds: names of attributes to leave out, and patterns whose matches become ``***`` in every text."""

    drop: tuple[str, ...] = ()
    mask: tuple[re.Pattern[str], ...] = ()


@cache
def kinds() -> dict[str, Kind]:
    """Return ``{name: kind}``, in the order of the file."""
    root, document = read(_FILE.read_text(encoding="utf-8"), _FILE.name)
    found = {name: _kind(name, node) for name, node in root.fields(["kinds"])["kinds"].fields().items()}
    assert not document.findings, document.findings  # noqa: S101 - the file is part of the package, and tested
    return found


def asked_by(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the kinds that standard variables in *environ* ask for, in the order of the file."""
    # Every start asks; hardly any has such a variable, and then the file need not be parsed, nor YAML be imported.
    if _variables().isdisjoint(environ):
        return ()
    return tuple(
        name
        for name, kind in kinds().items()
        if any(environ.get(variable, "").strip().lower() not in _NO for variable in kind.asked_by)
    )


@cache
def _variables() -> frozenset[str]:
    """Return what is written in the file like the name of a variable."""
    return frozenset(_VARIABLE.findall(_FILE.read_text(encoding="utf-8")))


def _kind(name: str, node: Node) -> Kind:
    fields = node.fields(["meaning", *_LISTS, "lines", "statuses"], required=["meaning"])
    lists = {key: fields[key].texts() for key in _LISTS if key in fields}
    lines = fields["lines"].fields() if "lines" in fields else {}
    return Kind(
        name,
        fields["meaning"].text(),
        **lists,
        lines=tuple((logger, text.text()) for logger, text in lines.items()),
        statuses="statuses" in fields and fields["statuses"].truth(),
    )


def read_rules(path: str) -> tuple[Rules, list[Finding]]:
    """Return the rules in the YAML file *path*, and a finding for each that cannot be used; the others hold."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        return Rules(), [
            Finding("unreadable-file", Place(path, 0), f"the rules cannot be read: {reason}", "mend the path")
        ]
    root, document = read(text, path)
    fields = root.fields(["redaction"], required=["redaction"])
    rules = fields["redaction"].fields(["drop", "mask"]) if "redaction" in fields else {}
    drop = tuple(name for name in rules["drop"].texts() if name) if "drop" in rules else ()
    masks = [_pattern(node) for node in rules["mask"].items()] if "mask" in rules else []
    return Rules(drop, tuple(mask for mask in masks if mask is not None)), document.findings


def holds_rules(path: str) -> bool:
    """Return whether the file *path* says of itself that it holds rules."""
    try:
        return _HEAD.search(Path(path).read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _pattern(node: Node) -> re.Pattern[str] | None:
    text = node.text()
    try:
        pattern = re.compile(text)
    except re.error as error:
        node.report("not-a-pattern", f"`{text}` is not a regular expression: {error}", "see the syntax of Python's re")
        return None
    if pattern.search(""):
        node.report(
            "empty-match", f"`{text}` matches the empty text, and so everything", "make it match at least one character"
        )
        return None
    return pattern


@dataclass(slots=True)
class Content:
    """What may leave: everything but the kinds that are not in *asked_for*, and what *rules* take out.

    Safe from several threads: what is remembered is decided the same way by all.
    """

    asked_for: frozenset[str] = frozenset()
    rules: Rules = field(default_factory=Rules)
    cut: frozenset[str] = field(init=False)
    statuses: bool = field(init=False)
    _known: dict[str, bool] = field(init=False, default_factory=dict)
    _pattern: re.Pattern[str] = field(init=False)
    _silent_loggers: frozenset[str] = field(init=False)
    _silent_events: frozenset[str] = field(init=False)
    _silent_lines: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        private = [kind for name, kind in kinds().items() if name not in self.asked_for]
        names = [*_all(kind.attributes for kind in private), *self.rules.drop]
        self._pattern = re.compile("|".join(translate(name) for name in names) or r"(?!)")
        self.cut = frozenset(_all(kind.cut for kind in private))
        self.statuses = not any(kind.statuses for kind in private)
        self._silent_loggers = frozenset(_all(kind.loggers for kind in private))
        self._silent_events = frozenset(_all(kind.events for kind in private))
        self._silent_lines = tuple(line for kind in private for line in kind.lines)

    def drops(self, key: str) -> bool:
        """Return whether the attribute *key* is left out."""
        known = self._known.get(key)
        if known is None:
            known = isinstance(key, str) and self._pattern.match(key) is not None
            if len(self._known) < _MOST_KEYS:
                self._known[key] = known
        return known

    def kept(self, key: str, value: Any) -> Any:
        """Return what of *value* may leave as the attribute *key*, None if nothing may."""
        if self.drops(key):
            return None
        return value if value is None or key not in self.cut else without_query(str(value))

    def masked(self, text: str) -> str:
        """Return *text* with ``***`` for what the user's patterns match."""
        for pattern in self.rules.mask:
            text = pattern.sub(MASK, text)
        return text

    def is_silent(self, logger: str, event: str, body: object = None) -> bool:
        """Return whether *body* of a log record of *logger* (or of its parents), or of *event*, is left out."""
        if event in self._silent_events or any(
            logger == name and isinstance(body, str) and text in body for name, text in self._silent_lines
        ):
            return True
        while logger:
            if logger in self._silent_loggers:
                return True
            logger = logger.rpartition(".")[0]
        return False


def without_query(url: str) -> str:
    """Return *url* without query, fragment and user information."""
    return re.sub(r"(?<=://)[^/\s]+@", "", re.split(r"[?#]", url, maxsplit=1)[0])


def _all(lists: Iterable[tuple[str, ...]]) -> list[str]:
    return [name for names in lists for name in names]
