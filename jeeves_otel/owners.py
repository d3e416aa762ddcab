# SPDX-License-Identifier: Apache-2.0
"""Give each library one owner: which instrumentation is activated, which is left out, and why.

In: the instrumentations that are installed (entry points), and those that the user favours or has disabled. Out: one
verdict per entry point, and the line at start that says them. Nothing is loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GROUP = "opentelemetry_instrumentor"


@dataclass(frozen=True, slots=True)
class Ownership:
    """One owner: entry point *owner* measures *library*, and the entry points *others* would do so again.

    Attributes:
        library: Name of the distribution, empty for the standard library.
        needs: Distribution that the owner works with, if it is not the library's own.
        oldest: Major version of the library from which on the owner measures it.
        shared: Whether the others measure something else as well, so that favouring one of them does not end the owner.
    """

    owner: str
    library: str
    others: tuple[str, ...]
    needs: str = ""
    oldest: int = 0
    shared: bool = False


_DRIVERS = (
    "aiopg", "aiosqlite", "asyncpg", "dbapi", "mysql", "mysqlclient", "psycopg", "psycopg2", "pymysql", "pymssql",
    "sqlite3",
)  # fmt: skip
OWNERSHIPS = (
    Ownership("jeeves_asgi", "starlette", ("asgi", "fastapi", "starlette")),
    Ownership("jeeves_grpc", "grpcio", ("grpc_client", "grpc_server", "grpc_aio_client", "grpc_aio_server")),
    Ownership("jeeves_sqlalchemy", "sqlalchemy", ("sqlalchemy",), oldest=2),
    Ownership("jeeves_sqlalchemy", "sqlalchemy", _DRIVERS, oldest=2, shared=True),
    Ownership("jeeves_openai", "openai", ("openai",), "opentelemetry-instrumentation-genai-openai"),
    Ownership("jeeves_anthropic", "anthropic", ("anthropic",), "opentelemetry-instrumentation-genai-anthropic"),
    Ownership("jeeves_threads", "", ("threading",)),
)

# Libraries with telemetry of their own: since which version, and by whom they are completed.
NATIVE = (("fastapi", (0, 142), "jeeves_asgi"),)


class Owners:
    """Who owns what in this process.

    Args:
        installed: Names of the entry points that are installed.
        disabled: Names that the user has disabled (``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``), ``*`` is all.
        favoured: Names that the user prefers (``JEEVES_OTEL_OWNERS``).
        version_of: Returns the version of a distribution; raises PackageNotFoundError.
    """

    def __init__(
        self,
        installed: Iterable[str],
        disabled: Iterable[str] = (),
        favoured: Iterable[str] = (),
        version_of: Callable[[str], str] = version,
    ) -> None:
        self.installed = frozenset(installed)
        self._disabled, self._favoured = set(disabled), set(favoured)
        self._version_of = cache(version_of)  # reads and parses a file each time
        self._activated: dict[str, str] = {}
        self._awaited: dict[str, str] = {}
        self._left_out: dict[str, str] = {}

    def owner_over(self, name: str) -> str | None:
        """Return the entry point in favour of which *name* is left out, or None if it is to be activated."""
        if name in self._favoured:
            return None
        for each in OWNERSHIPS:
            rivals = sorted(self._favoured.intersection(each.others, self.installed))
            if name == each.owner and rivals and not each.shared:
                return rivals[0]
            if name in each.others and (holder := self._holder(each)):
                return holder
        return None

    def unknown(self) -> list[str]:
        """Return the favoured names that no entry point has."""
        return sorted(self._favoured - self.installed)

    def is_disabled(self, name: str) -> bool:
        """Return whether the user has disabled *name*: by itself, or all the names under which others measure the same."""
        if "*" in self._disabled or name in self._disabled:
            return True
        others = [each.others for each in OWNERSHIPS if each.owner == name and not each.shared]
        return any(self._disabled.issuperset(names) for names in others)

    def _holder(self, ownership: Ownership) -> str | None:
        """Return who measures what *ownership* is about: its owner, or a rival of the owner that is favoured."""
        owner = ownership.owner
        if owner not in self.installed or self.is_disabled(owner) or not self._can(ownership):
            return None
        rival = self.owner_over(owner)
        return owner if rival is None else rival if ownership.shared else None

    def _can(self, ownership: Ownership) -> bool:
        """Return whether the library is one that the owner measures, and what it needs for that is there."""
        if ownership.needs and self._major(ownership.needs) < 0:
            return False
        return not ownership.library or self._major(ownership.library) >= ownership.oldest

    def _major(self, library: str) -> int:
        return self._release(library)[0]

    def _release(self, library: str) -> tuple[int, int]:
        """Return major and minor version, (-1, 0) of a library that is not installed."""
        try:
            major, minor, *_ = f"{self._version_of(library)}.0".split(".")
        except PackageNotFoundError:
            return -1, 0
        return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0

    # ---- what has happened -------------------------------------------------------------------------------------------

    def note_activated(self, name: str, by: str, *, on_import: bool = False) -> None:
        """Note that the entry point *name* of the distribution *by* has been activated, or will be with its library."""
        owned = self._awaited if on_import else self._activated
        own = next((each for each in OWNERSHIPS if each.owner == name), None)
        library = own.library if own is not None else ""
        if own is None or self._can(own):
            owned[library or name.removeprefix("jeeves_")] = by
        for native, since, owner in NATIVE:
            if owner == name and self._release(native) >= since:
                owned[native] = f"itself, completed by {by}"

    def note_left_out(self, name: str, why: str) -> None:
        """Note that the entry point *name* has been left out."""
        self._left_out[name] = why

    def summary(self) -> str:
        """Return the line at start; empty if nothing was activated or left out."""
        parts = []
        for when, owned in (("instrumented", self._activated), ("once imported", self._awaited)):
            if owned:
                parts.append(f"{when}: " + "; ".join(f"{', '.join(names)} by {by}" for by, names in _grouped(owned)))
        return "; ".join(parts + [f"{', '.join(names)} left out: {why}" for why, names in _grouped(self._left_out)])


def _grouped(reasons: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Return ``[(reason, its names)]``, both sorted."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(reasons.items()):
        names_by_reason.setdefault(reason, []).append(name)
    return sorted(names_by_reason.items())
