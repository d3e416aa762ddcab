# SPDX-License-Identifier: Apache-2.0
"""Read ``data/routing.yaml``: which receivers there are, what each is told, and how often.

In: that file. Out: one `Routing`. It is ours alone, so a mistake in it raises; users have files of Alertmanager.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jeeves_otel.documents import read
from jeeves_otel.queries import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jeeves_otel.documents import Node

KINDS = ("pagerduty", "slack", "webhook", "nobody")
DEFAULT = "default"  # the receiver of what no route matches
_FILE = Path(__file__).parent / "data" / "routing.yaml"
_OF_A_ROUTE = ("group_wait", "group_interval", "repeat_interval")


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who is told, and the name of the file with the secret that this takes; empty for nobody."""

    name: str
    kind: str
    secret: str
    channel: str
    purpose: str
    resolved: bool  # whether it is told that an alert is over


@dataclass(frozen=True, slots=True)
class Route:
    """Labels of alerts, the receiver that is told, and durations and groups where they differ, as Alertmanager names them."""

    where: Mapping[str, str]
    to: str
    timing: Mapping[str, str]
    group_by: tuple[str, ...]  # instead of that of all routes; empty: as they do


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While an alert with the labels *by* fires, those with *what* are not told, if they agree in the labels *equal*."""

    by: Mapping[str, str]
    what: Mapping[str, str]
    equal: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything in ``data/routing.yaml``, in file order."""

    secrets: str
    group_by: tuple[str, ...]
    timing: Mapping[str, str]
    installation: tuple[str, ...]
    receivers: tuple[Receiver, ...]
    routes: tuple[Route, ...]
    silenced: tuple[Inhibition, ...]

    def receiver_of(self, labels: Mapping[str, str]) -> str:
        """Return the name of the receiver that is told of an alert with *labels*."""
        return next((route.to for route in self.routes if route.where.items() <= labels.items()), DEFAULT)


@cache
def load() -> Routing:
    """Return the routing.

    Raises:
        ValueError: The file has findings, which is a mistake of ours.
    """
    root, document = read(_FILE.read_text(encoding="utf-8"), _FILE.name)
    keys = ("secrets", "group_by", "timing", "installation", "receivers", "routes", "silenced")
    top = root.fields(keys, required=keys)
    receivers = tuple(_receiver(name, node) for name, node in top["receivers"].fields().items())
    names = [DEFAULT, *(receiver.name for receiver in receivers)]
    made = Routing(
        secrets=top["secrets"].text(),
        group_by=top["group_by"].texts(),
        timing=_timing(top["timing"], (*_OF_A_ROUTE, "resolve_timeout")),
        installation=top["installation"].texts(),
        receivers=receivers,
        routes=tuple(_route(node, names) for node in top["routes"].items()),
        silenced=tuple(_inhibition(node) for node in top["silenced"].items()),
    )
    if document.findings:
        raise ValueError("\n".join(map(str, document.findings)))
    return made


def _receiver(name: str, node: Node) -> Receiver:
    entry = node.fields(("kind", "secret", "channel", "for", "resolved"), required=("kind", "for"))
    return Receiver(
        name=name,
        kind=entry["kind"].choice(KINDS),
        secret=entry["secret"].text() if "secret" in entry else "",
        channel=entry["channel"].text() if "channel" in entry else "",
        purpose=entry["for"].text(),
        resolved=entry["resolved"].truth() if "resolved" in entry else True,
    )


def _route(node: Node, receivers: list[str]) -> Route:
    entry = node.fields(("where", "to", "group_by", *_OF_A_ROUTE), required=("where", "to"))
    group_by = entry["group_by"].texts() if "group_by" in entry else ()
    return Route(_labels(entry["where"]), entry["to"].choice(receivers), _timing(node, _OF_A_ROUTE), group_by)


def _inhibition(node: Node) -> Inhibition:
    entry = node.fields(("by", "what", "equal"), required=("by", "what", "equal"))
    return Inhibition(_labels(entry["by"]), _labels(entry["what"]), entry["equal"].texts())


def _labels(node: Node) -> Mapping[str, str]:
    return MappingProxyType({label: value.text() for label, value in node.fields().items()})


def _timing(node: Node, keys: tuple[str, ...]) -> Mapping[str, str]:
    entry = node.fields()
    return MappingProxyType({key: duration(entry[key]).text for key in keys if key in entry})
