# SPDX-License-Identifier: Apache-2.0
"""Measure SQLAlchemy 2: the duration of each statement, the state of each pool, and a span per statement.

In: engines, sync and async, through SQLAlchemy's own events and `Engine.raw_connection`. Out:
``db.client.operation.duration``, ``db.client.connection.*`` and CLIENT spans. No statement text, no parameter and no
message of a driver is recorded, unless the text is asked for. Importing this module does not import SQLAlchemy.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from threading import Lock
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from wrapt import register_post_import_hook

from jeeves_otel import recording
from jeeves_otel.failsafe import failsafe, swallow
from jeeves_otel.integrations.statements import TRANSACTION_CONTROL, operation_of
from jeeves_otel.operations import error_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Dialect, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

_POOL_NAME = "db.client.connection.pool.name"
_OLDEST = 2  # major version
_MOST_NAMES = 64  # pool names that one process gives; an engine per tenant must not make a series per tenant
_SHORT_NAME = re.compile(r"[\w.-]{1,64}")
_LONGEST_TEXT = 4_096
_RUNNING = "_jeeves_otel_running"

# Names of SQLAlchemy's dialects to values of db.system.name. Source: semantic conventions 1.44, registry database.
_SYSTEMS = {
    "clickhouse": "clickhouse",
    "cockroachdb": "cockroachdb",
    "db2": "ibm.db2",
    "firebird": "firebirdsql",
    "hana": "sap.hana",
    "hive": "hive",
    "ibm_db_sa": "ibm.db2",
    "informix": "ibm.informix",
    "mariadb": "mariadb",
    "mssql": "microsoft.sql_server",
    "mysql": "mysql",
    "netezza": "ibm.netezza",
    "oracle": "oracle.db",
    "postgresql": "postgresql",
    "redshift": "aws.redshift",
    "spanner+spanner": "gcp.spanner",
    "sqlite": "sqlite",
    "teradatasql": "teradata",
    "trino": "trino",
}

_before_guard = failsafe("sqlalchemy.before")
_after_guard = failsafe("sqlalchemy.after")
_pool_guard = failsafe("sqlalchemy.pool")


def instrument_engine(engine: Engine | AsyncEngine, pool_name: str | None = None) -> None:
    """Measure *engine* from now on, and call its pool *pool_name*; an engine is never measured twice.

    Args:
        engine: Sync or async.
        pool_name: A short, stable name, a label value; default the engine's ``pool_logging_name``, else the name of
            its database.
    """
    with failsafe("sqlalchemy.instrument"):
        _hooks.install()
        sync_engine: Any = getattr(engine, "sync_engine", engine)
        _watch(sync_engine, pool_name)


def instrument(*, statement_text: bool = False) -> None:
    """Measure every engine of the process, those that exist already too; waits for SQLAlchemy to be imported.

    Args:
        statement_text: Whether spans note the statement as ``db.query.text``, at most 4,096 characters, with
            placeholders for its parameters; under the launcher, whether ``JEEVES_OTEL_CONTENT`` asks for ``sql``.
    """
    with failsafe("sqlalchemy.instrument"):
        _hooks.everything = True
        _hooks.statement_text = statement_text
        if "sqlalchemy" in sys.modules:
            _hooks.install()
        elif not _hooks.waiting:
            _hooks.waiting = True
            register_post_import_hook(_imported, "sqlalchemy")


def uninstrument() -> None:
    """Measure no engine any more, whether it was given by hand or not."""
    with failsafe("sqlalchemy.uninstrument"):
        _hooks.remove()
        _engines.clear()
        _names.clear()


class Instrumentor:
    """The shape in which the launcher activates integrations (entry point ``jeeves_sqlalchemy``)."""

    def instrument(self, *, statement_text: bool = False, **_: Any) -> None:
        """See `instrument`."""
        instrument(statement_text=statement_text)

    def uninstrument(self, **_: Any) -> None:
        """See `uninstrument`."""
        uninstrument()


def _imported(_: object) -> None:
    with failsafe("sqlalchemy.instrument"):
        if _hooks.everything:
            _hooks.install()


class _Hooks:
    """What has been hung into SQLAlchemy: listeners on the class `Engine`, and its ``raw_connection`` timed."""

    def __init__(self) -> None:
        self.everything = False
        self.statement_text = False
        self.waiting = False
        self._observing = False
        self._original: Callable[[Any], Any] | None = None
        self._lock = Lock()

    def _listeners(self) -> tuple[tuple[str, Callable[..., None]], ...]:
        return (
            ("before_cursor_execute", _before),
            ("after_cursor_execute", _after),
            ("handle_error", _failed),
            ("engine_disposed", _disposed),
        )

    def install(self) -> None:
        """Hang everything in, once; nothing of a SQLAlchemy before 2."""
        import sqlalchemy  # noqa: PLC0415 - imported by the application, never by us

        if int(sqlalchemy.__version__.partition(".")[0]) < _OLDEST:
            swallow(
                "sqlalchemy.instrument", ImportError(), "SQLAlchemy 2.0 or newer is needed, nothing of it is measured"
            )
            return
        from sqlalchemy import event  # noqa: PLC0415 - imported by the application, never by us
        from sqlalchemy.engine import Engine  # noqa: PLC0415 - as above

        with self._lock:
            if self._original is not None:
                return
            for name, listener in self._listeners():
                event.listen(Engine, name, listener)
            self._original = Engine.raw_connection
            Engine.raw_connection = _timed(self._original)  # type: ignore[assignment,method-assign]  # public, and without an event
            if not self._observing:
                self._observing = True
                for instrument_name in ("count", "max", "pending_requests"):
                    name = f"db.client.connection.{instrument_name}"
                    recording.observe(name, functools.partial(_pool_levels, name))
                recording.observe(_OVERFLOW, functools.partial(_pool_levels, _OVERFLOW))

    def remove(self) -> None:
        """Take everything out again."""
        self.everything = False
        with self._lock:
            if self._original is None:
                return
            from sqlalchemy import event  # noqa: PLC0415 - as above
            from sqlalchemy.engine import Engine  # noqa: PLC0415 - as above

            for name, listener in self._listeners():
                event.remove(Engine, name, listener)
            Engine.raw_connection = self._original  # type: ignore[assignment,method-assign]  # as above
            self._original = None

    def unlock(self) -> None:
        """Forget who held the lock, in the child of a fork."""
        self._lock = Lock()


_hooks = _Hooks()


# ---- engines ---------------------------------------------------------------------------------------------------------


class _Watched:
    """One engine as it is measured. Refers to its pool weakly, so that it keeps nothing alive.

    ``opened`` and ``in_use`` are counted from events for pools that do not count their connections themselves.
    """

    def __init__(self, engine: Engine) -> None:
        self.pool: ref[Pool] | None = None
        self.pool_name = ""
        self.given_name: str | None = None
        self.listening = False
        self.pending = 0
        self.opened = 0
        self.in_use = 0
        self.lock = Lock()
        self.namespace = _short_database(engine)
        self._url = engine.url
        self._system: str | None = None
        self._attributes: dict[str | None, dict[str, str]] = {}
        self._span: dict[str | None, tuple[str, dict[str, Any]]] = {}

    def attributes(self, dialect: Dialect, operation: str | None) -> dict[str, str]:
        """Return what a duration is recorded with."""
        found = self._attributes.get(operation)
        if found is None:
            found = {"db.system.name": self._system or self._name_system(dialect)}
            if operation is not None:
                found["db.operation.name"] = operation
            self._attributes[operation] = found
        return found

    def span(self, dialect: Dialect, operation: str | None) -> tuple[str, dict[str, Any]]:
        """Return name and attributes of a span. Source: semantic conventions 1.44, database spans."""
        found = self._span.get(operation)
        if found is None:
            attributes: dict[str, Any] = dict(self.attributes(dialect, operation))
            target = self.namespace or self._url.host
            if self.namespace:
                attributes["db.namespace"] = self.namespace
            if self._url.host:
                attributes["server.address"] = self._url.host
                if self._url.port:
                    attributes["server.port"] = self._url.port
            name = " ".join(part for part in (operation, target) if part)
            found = self._span[operation] = (name or attributes["db.system.name"], attributes)
        return found

    def _name_system(self, dialect: Dialect) -> str:
        # Asked at the first statement: whether a MySQL server is a MariaDB is known when it has been connected to.
        mariadb = dialect.name == "mysql" and getattr(dialect, "is_mariadb", False)
        self._system = "mariadb" if mariadb else _SYSTEMS.get(dialect.name, "other_sql")
        return self._system

    def count(self, *, opened: int = 0, in_use: int = 0, pending: int = 0) -> None:
        """Add to what is counted here."""
        with self.lock:
            self.opened = max(0, self.opened + opened)
            self.in_use = max(0, self.in_use + in_use)
            self.pending = max(0, self.pending + pending)

    def levels(self) -> Iterator[tuple[str, str | None, float]]:
        """Yield ``(instrument, state, value)`` for the pool as it is now; nothing after a dispose."""
        from sqlalchemy.pool import AssertionPool, QueuePool, StaticPool  # noqa: PLC0415 - the application's

        pool = self.pool() if self.pool is not None else None
        if pool is None:
            return
        maximum: int | None = None
        if isinstance(pool, QueuePool):
            used, idle, size = pool.checkedout(), pool.checkedin(), pool.size()
            # There is no public way to ask for it. Negative means that there is no limit, as a size of 0 does.
            most: int | None = getattr(pool, "_max_overflow", None)
            if size > 0:
                yield _OVERFLOW, None, max(0, pool.overflow())
                if most is not None and most >= 0:
                    maximum = size + most
        else:
            used = min(self.in_use, self.opened)  # a StaticPool hands its one connection out several times
            idle = self.opened - used
            maximum = 1 if isinstance(pool, (StaticPool, AssertionPool)) else None
        yield _COUNT, "used", max(0, used)
        yield _COUNT, "idle", max(0, idle)
        yield "db.client.connection.pending_requests", None, self.pending
        if maximum is not None:
            yield "db.client.connection.max", None, maximum


_COUNT = "db.client.connection.count"
_OVERFLOW = "jeeves.db.pool.overflow"

# By dialect: that is one per engine, and the same for all option engines of one.
_engines: WeakKeyDictionary[Dialect, _Watched] = WeakKeyDictionary()
_names: set[str] = set()
_lock = Lock()


def _watch(engine: Engine, given_name: str | None = None) -> _Watched:
    """Return what *engine* is measured with, made if need be, and bound to its present pool."""
    watched = _engines.get(engine.dialect)
    if watched is not None and given_name is None and watched.pool is not None and watched.pool() is engine.pool:
        return watched
    with _lock:
        watched = _engines.get(engine.dialect)
        if watched is None:
            watched = _engines[engine.dialect] = _Watched(engine)
        watched.given_name = given_name or watched.given_name
        pool = engine.pool
        watched.pool = None  # its old name is free
        watched.pool_name = _unique(watched.given_name or pool.logging_name or watched.namespace or engine.dialect.name)
        watched.pool = ref(pool)
        if not watched.listening:
            watched.listening = True  # a pool that takes the place of a disposed one inherits the listeners
            _count_connections(pool, watched)
    return watched


def _living() -> list[_Watched]:
    """Return what is measured now. Without the lock: `keyrefs` is one step, which iterating over values is not."""
    dialects = (reference() for reference in _engines.keyrefs())
    found = (_engines.get(dialect) for dialect in dialects if dialect is not None)
    return [watched for watched in found if watched is not None]


def _unlock_child() -> None:
    # Another thread of the parent may have held a lock when it forked; nobody would ever release it here.
    global _lock  # noqa: PLW0603 - the lock guards what this module holds
    _lock = Lock()
    _hooks.unlock()
    for watched in _living():
        watched.lock = Lock()
        watched.pending = 0  # those who wait are threads of the parent


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_unlock_child)


def _unique(wanted: str) -> str:
    """Return *wanted*, numbered if a living pool has that name, or ``other`` if there have been too many names."""
    wanted = str(wanted)[:64]
    taken = {each.pool_name for each in _living() if each.pool is not None and each.pool() is not None}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    if name not in _names and len(_names) >= _MOST_NAMES:
        return "other"
    _names.add(name)
    return name


def _short_database(engine: Engine) -> str:
    """Return the name of the database without folders; empty if there is none or it is no plain name."""
    database = (engine.url.database or "").partition("?")[0]
    name = re.split(r"[/\\]", database)[-1].strip(":")
    return name if _SHORT_NAME.fullmatch(name) else ""


def _count_connections(pool: Pool, watched: _Watched) -> None:
    from sqlalchemy import event  # noqa: PLC0415 - the application's
    from sqlalchemy.pool import QueuePool  # noqa: PLC0415 - as above

    if isinstance(pool, QueuePool):
        return  # it counts them itself

    def counting(**change: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            with _pool_guard:
                watched.count(**change)

        return count

    event.listen(pool, "connect", counting(opened=1))
    event.listen(pool, "close", counting(opened=-1))
    event.listen(pool, "checkout", counting(in_use=1))
    event.listen(pool, "checkin", counting(in_use=-1))
    event.listen(pool, "detach", counting(opened=-1, in_use=-1))


def _pool_levels(instrument_name: str) -> Iterator[tuple[float, dict[str, str]]]:
    """Yield the values of one instrument; pools of the same name add up."""
    sums: dict[tuple[str, str | None], float] = {}
    for watched in _living():
        with _pool_guard:
            for name, state, value in watched.levels():
                if name == instrument_name:
                    key = watched.pool_name, state
                    sums[key] = sums.get(key, 0) + value
    for (pool_name, state), value in sums.items():
        attributes = {_POOL_NAME: pool_name}
        if state is not None:
            attributes["db.client.connection.state"] = state
        yield value, attributes


# ---- what SQLAlchemy calls -------------------------------------------------------------------------------------------


def _timed(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `Engine.raw_connection` with the wait for a connection measured."""

    @functools.wraps(original)
    def raw_connection(self: Engine) -> Any:
        watched = None
        with _pool_guard:
            if _hooks.everything or self.dialect in _engines:
                watched = _watch(self)
                watched.count(pending=1)
        if watched is None:
            return original(self)
        started_s, started_ns = perf_counter(), time_ns()
        try:
            connection = original(self)
        except Exception as error:
            with _pool_guard:
                _count_timeout(watched, error)
                _record_unreached(watched, self.dialect, error, perf_counter() - started_s, started_ns)
            raise
        finally:
            watched.count(pending=-1)
        with _pool_guard:
            _wait_time().record(perf_counter() - started_s, {_POOL_NAME: watched.pool_name})
        return connection

    return raw_connection


def _wait_time() -> Any:
    return recording.instruments().histogram("db.client.connection.wait_time")


def _count_timeout(watched: _Watched, error: Exception) -> None:
    from sqlalchemy.exc import TimeoutError as PoolTimeout  # noqa: PLC0415 - the application's

    if isinstance(error, PoolTimeout):
        recording.instruments().counter("db.client.connection.timeouts").add(1, {_POOL_NAME: watched.pool_name})


def _record_unreached(
    watched: _Watched, dialect: Dialect, error: Exception, duration_s: float, started_ns: int
) -> None:
    """Record a statement that found no connection: it failed, and nobody knows which operation it would have been."""
    kind = error_type(_of_driver(error))
    name, attributes = watched.span(dialect, None)
    span = recording.tracer().start_span(
        name, kind=SpanKind.CLIENT, attributes={**attributes, "error.type": kind}, start_time=started_ns
    )
    _record(span, duration_s, {**watched.attributes(dialect, None), "error.type": kind}, failed=True)


def _disposed(engine: Engine) -> None:
    with _pool_guard:
        watched = _engines.get(engine.dialect)
        if watched is not None:
            watched.pool = None


class _Running:
    """A statement that the driver is working on."""

    __slots__ = ("attributes", "span", "started_s")

    def __init__(self, attributes: dict[str, str], span: Span) -> None:
        self.attributes = attributes
        self.span = span
        self.started_s = perf_counter()


def _before(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any) -> None:  # noqa: ARG001 - the signature of the event
    with _before_guard:
        # An engine with execution options hears the same event twice.
        if context is None or getattr(context, _RUNNING, None) is not None:
            return
        dialect = context.dialect
        watched = _engines.get(dialect)
        if watched is None:
            if not _hooks.everything:
                return
            watched = _watch(conn.engine)
        operation = operation_of(statement)
        if operation in TRANSACTION_CONTROL or recording.is_suppressed():
            return
        name, attributes = watched.span(dialect, operation)
        span = recording.tracer().start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        if _hooks.statement_text and span.is_recording():
            span.set_attribute("db.query.text", statement[:_LONGEST_TEXT])
        setattr(context, _RUNNING, _Running(watched.attributes(dialect, operation), span))


def _after(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any) -> None:  # noqa: ARG001 - as above
    with _after_guard:
        _finish(context, None)


def _failed(failure: ExceptionContext) -> None:
    with _after_guard:
        _finish(failure.execution_context, failure.original_exception)


def _finish(context: Any, error: BaseException | None) -> None:
    running: _Running | None = getattr(context, _RUNNING, None)
    if running is None:
        return
    setattr(context, _RUNNING, None)  # one context runs one statement after the other, and an end counts once
    duration_s = perf_counter() - running.started_s
    attributes, span = running.attributes, running.span
    if error is not None:
        kind = error_type(_of_driver(error))
        attributes = {**attributes, "error.type": kind}
        span.set_attribute("error.type", kind)
    _record(span, duration_s, attributes, failed=error is not None)


def _record(span: Span, duration_s: float, attributes: dict[str, str], *, failed: bool) -> None:
    """Record the duration inside *span*, and end it."""
    try:
        if failed:
            span.set_status(Status(StatusCode.ERROR))  # no text: the driver's quotes values
        in_span = set_span_in_context(span) if span.is_recording() else None
        recording.instruments().histogram("db.client.operation.duration").record(duration_s, attributes, in_span)
    finally:
        span.end()


def _of_driver(error: BaseException) -> BaseException:
    """Return the driver's own error where SQLAlchemy's adapter of an async driver has put one of its own around it."""
    cause = error.__cause__
    return cause if cause is not None and type(error).__module__.startswith("sqlalchemy.") else error
