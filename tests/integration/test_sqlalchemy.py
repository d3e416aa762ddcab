# SPDX-License-Identifier: Apache-2.0
"""SQLAlchemy on real databases: every ending of a statement, every pool, seen on the page and on the spans."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import Engine, bindparam, create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from jeeves_otel import failsafe, pipeline as pipeline_run, recording
from jeeves_otel.integrations import sqlalchemy as integration
from tests.helpers import poll_until
from tests.integration.databases import DATABASE, Database, postgresql, server_binaries
from tests.integration.launching import free_port, launched, scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tests.helpers import Pipeline

pytestmark = pytest.mark.integration

KINDS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+psycopg_async", "postgresql+asyncpg"]
UNIQUE = {
    "sqlite": "sqlite3.IntegrityError",
    "sqlite+aiosqlite": "sqlite3.IntegrityError",
    "postgresql+psycopg": "psycopg.errors.UniqueViolation",
    "postgresql+psycopg_async": "psycopg.errors.UniqueViolation",
    "postgresql+asyncpg": "asyncpg.exceptions.UniqueViolationError",
}
CANARY = "canary-value"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return where a PostgreSQL server of our own listens."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server under /usr/lib/postgresql (Debian: apt-get install postgresql)")
    with postgresql(binaries) as address:
        yield address


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of the kind that the test is parametrized with, SQLite by default."""
    kind: str = getattr(request, "param", "sqlite")
    if kind.startswith("sqlite"):
        return f"{kind}:///{tmp_path / DATABASE}.db"
    address: str = request.getfixturevalue("server")
    plain = create_engine(f"postgresql+psycopg://{address}")
    with plain.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    plain.dispose()
    return f"{kind}://{address}"


@pytest.fixture
def database(url: str) -> Database:
    """Return a database with the table ``t (x TEXT UNIQUE)``, made before anything was measured."""
    found = Database(url)
    found.play(lambda connection: connection.execute(text("CREATE TABLE t (x TEXT UNIQUE)")))
    return found


@pytest.fixture
def measured(database: Database, pipeline: Pipeline) -> Iterator[Pipeline]:  # noqa: ARG001 - made first, unmeasured
    """Return the pipeline into which every engine is measured."""
    integration.instrument()
    yield pipeline
    integration.uninstrument()


every_kind = pytest.mark.parametrize("url", KINDS, indirect=True)
on_postgresql = pytest.mark.parametrize("url", ["postgresql+psycopg", "postgresql+asyncpg"], indirect=True)


def _queries(pipeline: Pipeline) -> dict[tuple[str, str], float]:
    """Return ``{(operation, status): count}``, without zeros; the histogram's counts must agree."""
    counts: dict[tuple[str, str], float] = {}
    histogram: dict[str, float] = {}
    for (name, labels), value in pipeline.samples().items():
        if name == "jeeves_db_queries_total" and value:
            counts[dict(labels)["operation"], dict(labels)["status"]] = value
        if name == "jeeves_db_query_duration_seconds_count" and value:
            histogram[dict(labels)["operation"]] = value
    by_operation: dict[str, float] = {}
    for (operation, _), value in counts.items():
        by_operation[operation] = by_operation.get(operation, 0) + value
    assert by_operation == histogram
    return counts


def _levels(pipeline: Pipeline) -> dict[str, float]:
    """Return the state of all pools as the page has it."""
    names = ("connections", "pool_size", "pool_active_connections", "pool_idle_connections")
    samples = pipeline.samples()
    return {name: samples[f"jeeves_db_{name}", ()] for name in names if (f"jeeves_db_{name}", ()) in samples}


def _pool_names(pipeline: Pipeline) -> set[str]:
    return {
        dict(labels)["db_client_connection_pool_name"]
        for (name, labels) in pipeline.samples()
        if name == "db_client_connection_pending_requests"
    }


def _attempt(statement: str, parameters: Any = None) -> Callable[[Connection], None]:
    """Return a step that runs *statement*, which must fail."""

    def step(connection: Connection) -> None:
        with pytest.raises(exc.DBAPIError):
            connection.execute(text(statement), parameters)
        if not connection.invalidated:
            connection.rollback()

    return step


def _run(statement: str, parameters: Any = None) -> Callable[[Connection], None]:
    def step(connection: Connection) -> None:
        connection.execute(text(statement), parameters)

    return step


def _nested(connection: Connection) -> None:
    """Run one statement between the rows of another."""
    for (x,) in connection.execute(text("SELECT x FROM t ORDER BY x")):
        connection.execute(text("UPDATE t SET x = x WHERE x = :x"), {"x": x})


def _streamed(connection: Connection) -> None:
    """Leave a streamed result after its first rows."""
    with connection.execution_options(stream_results=True, max_row_buffer=2).execute(text("SELECT x FROM t")) as rows:
        assert rows.fetchone() is not None


def _savepoint(connection: Connection) -> None:
    with connection.begin_nested():
        connection.execute(text("DELETE FROM t"))


def _with_options(connection: Connection) -> None:
    options = connection.engine.execution_options(stream_results=False)
    assert options is not connection.engine
    connection.execute(text("SELECT 1"))


TWO = [{"x": "a"}, {"x": "b"}]
ENDINGS: dict[str, tuple[Callable[[Connection], None], dict[tuple[str, str], int]]] = {
    "select": (_run("select * from t"), {("select", "success"): 1}),
    "insert": (_run("INSERT INTO t VALUES (:x)", {"x": "c"}), {("insert", "success"): 1}),
    "executemany": (_run("INSERT INTO t VALUES (:x)", [{"x": "c"}, {"x": "d"}]), {("insert", "success"): 1}),
    "update": (_run("-- DELETE\nUPDATE t SET x = x"), {("update", "success"): 1}),
    "delete": (_run("DELETE FROM t"), {("delete", "success"): 1}),
    "cte": (
        _run("WITH a AS (SELECT 'c' AS x) INSERT INTO t SELECT x FROM a"),
        {("insert", "success"): 1},
    ),
    "other": (_run("CREATE TABLE u (x TEXT)"), {("other", "success"): 1}),
    "constraint": (_attempt("INSERT INTO t VALUES (:x)", {"x": "a"}), {("insert", "error"): 1}),
    "constraint in executemany": (_attempt("INSERT INTO t VALUES (:x)", TWO), {("insert", "error"): 1}),
    "no such table": (_attempt("DELETE FROM missing"), {("delete", "error"): 1}),
    "syntax": (_attempt("SELEC 1"), {("other", "error"): 1}),
    "nested": (_nested, {("select", "success"): 1, ("update", "success"): 2}),
    "streamed": (_streamed, {("select", "success"): 1}),
    "savepoint": (_savepoint, {("delete", "success"): 1}),
    "option engine": (_with_options, {("select", "success"): 1}),
}


@every_kind
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_statement_counts_once_by_operation_and_outcome(
    ending: str, database: Database, measured: Pipeline
) -> None:
    """However a statement ends, it is one query on the page and one span."""
    step, expected = ENDINGS[ending]
    database.play(_run("INSERT INTO t VALUES (:x)", TWO))
    before = _queries(measured)
    spans_before = len(measured.spans())
    database.play(step)
    after = _queries(measured)
    spans = measured.spans()[spans_before:]

    assert expected == {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key)}
    assert sum(expected.values()) == len(spans)
    assert {SpanKind.CLIENT} == {span.kind for span in spans}
    failed = sum(count for (_, status), count in expected.items() if status == "error")
    assert failed == sum(span.status.status_code is StatusCode.ERROR for span in spans)


@every_kind
def test_an_error_has_the_class_of_the_driver_and_none_of_its_text(
    database: Database, measured: Pipeline, request: pytest.FixtureRequest
) -> None:
    """The driver's message quotes the value: the span has the class of the error, and no description or event."""
    database.play(_run("INSERT INTO t VALUES (:x)", TWO), _attempt("INSERT INTO t VALUES (:x)", {"x": "a"}))
    span = measured.spans()[-1]
    kind = request.node.callspec.params["url"]

    assert span.attributes is not None
    assert UNIQUE[kind] == span.attributes["error.type"]
    assert span.status.description is None
    assert () == tuple(span.events)


@every_kind
def test_no_statement_and_no_parameter_leaves_the_process(database: Database, measured: Pipeline) -> None:
    """Not in a parameter, a literal, a comment, a name or an error, and no password of a URL either."""
    database.play(
        _run("INSERT INTO t VALUES (:x)", {"x": CANARY}),
        _run(f"SELECT '{CANARY}' /* {CANARY} */ FROM t WHERE x = :x", {"x": CANARY}),  # noqa: S608 - no user's text
        _attempt("INSERT INTO t VALUES (:x)", {"x": CANARY}),
        _attempt(f"{CANARY} '{CANARY}'"),
        _attempt(f"SELECT * FROM {CANARY.replace('-', '_')}"),  # noqa: S608 - as above
    )
    left = measured.page(openmetrics=True) + "".join(span.to_json() for span in measured.spans())

    assert len(measured.spans()) == 5
    assert "canary" not in left


@every_kind
def test_a_span_says_what_the_conventions_ask_for(
    database: Database, measured: Pipeline, request: pytest.FixtureRequest
) -> None:
    """Name, system, namespace, operation and, over a network, the server."""
    database.play(_run("select * from t"))
    (span,) = measured.spans()
    address = {}
    name = f"{DATABASE}.db"
    if database.system == "postgresql":
        port = int(request.getfixturevalue("server").rpartition(":")[2].partition("/")[0])
        address, name = {"server.address": "127.0.0.1", "server.port": port}, DATABASE

    assert span.name == f"SELECT {name}"
    assert span.attributes == {
        "db.system.name": database.system,
        "db.namespace": name,
        "db.operation.name": "SELECT",
        **address,
    }


@on_postgresql
@pytest.mark.parametrize(
    ("statements", "operation"),
    [
        (("SET statement_timeout = 50", "SELECT pg_sleep(30)"), "select"),
        (("SELECT 1", "SELECT pg_terminate_backend(pg_backend_pid())"), "select"),
    ],
)
def test_a_statement_that_the_server_ends_is_one_error(
    statements: tuple[str, str], operation: str, database: Database, measured: Pipeline
) -> None:
    """A time-out of the server and a lost connection are errors of the statement that ran."""

    def step(connection: Connection) -> None:
        connection.execute(text(statements[0]))
        with pytest.raises(exc.DBAPIError):
            connection.execute(text(statements[1]))
        connection.rollback()

    database.play(step)

    assert _queries(measured)[operation, "error"] == 1


@pytest.mark.parametrize(
    ("dialect", "error"),
    [
        ("postgresql+psycopg", "psycopg.OperationalError"),
        ("postgresql+psycopg_async", "psycopg.OperationalError"),
        ("postgresql+asyncpg", "ConnectionRefusedError"),
    ],
)
def test_a_database_that_is_down_is_seen_as_failed_operations(dialect: str, error: str, measured: Pipeline) -> None:
    """One attempt counts as one error, or the availability of a dead database would be that of its last minute."""
    unreachable = Database(f"{dialect}://nobody@127.0.0.1:{free_port()}/orders")
    with pytest.raises((exc.DBAPIError, OSError)):
        unreachable.play(_run("SELECT 1"))
    (span,) = measured.spans()

    assert _queries(measured) == {("other", "error"): 1}
    assert (span.name, span.kind, span.status.status_code) == ("orders", SpanKind.CLIENT, StatusCode.ERROR)
    assert span.attributes is not None
    assert span.attributes["error.type"] == error
    assert "db.operation.name" not in span.attributes


def test_statement_text_is_on_the_span_only_where_it_is_asked_for(database: Database, pipeline: Pipeline) -> None:
    """With placeholders: the values of parameters never are."""
    integration.instrument(statement_text=True)
    try:
        database.play(_run("INSERT INTO t (x) VALUES (:x)", {"x": CANARY}))
    finally:
        integration.uninstrument()
    (span,) = pipeline.spans()

    assert span.attributes is not None
    assert span.attributes["db.query.text"] == "INSERT INTO t (x) VALUES (?)"
    assert CANARY not in span.to_json()


@pytest.mark.parametrize("url", ["postgresql+psycopg_async", "postgresql+asyncpg"], indirect=True)
def test_a_cancelled_task_ends_its_statement_once_as_an_error(database: Database, measured: Pipeline) -> None:
    """The cancellation reaches the task, the statement counts, and no connection stays in use."""

    async def cancelled() -> None:
        engine = create_async_engine(database.url)
        async with engine.connect() as connection:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(connection.execute(text("SELECT pg_sleep(30)")), timeout=0.2)
        assert _levels(measured)["pool_active_connections"] == 0
        await engine.dispose()

    asyncio.run(cancelled())
    (span,) = measured.spans()

    assert _queries(measured) == {("select", "error"): 1}
    assert span.attributes is not None
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


@every_kind
def test_pool_gauges_follow_the_pool_and_vanish_with_it(database: Database, measured: Pipeline) -> None:
    """Used, idle and maximum while connections are out and when they are back; nothing after dispose."""
    seen: list[dict[str, float]] = []

    def inspect(engine: Engine) -> None:
        seen.append(_levels(measured))
        if not database.is_async:
            with engine.connect(), engine.connect():
                seen.append(_levels(measured))
            seen.append(_levels(measured))

    database.play(lambda _: seen.append(_levels(measured)), inspect=inspect)

    def expected(used: int, idle: int) -> dict[str, float]:
        counts = {"pool_active_connections": used, "pool_idle_connections": idle}
        return {"connections": used + idle, "pool_size": 15, **counts}

    wanted = [expected(1, 0), expected(0, 1)] + ([] if database.is_async else [expected(2, 0), expected(0, 2)])
    assert wanted == seen
    assert _levels(measured) == {}
    assert _pool_names(measured) == set()


def test_overflow_waiting_and_time_outs_are_seen(database: Database, measured: Pipeline) -> None:
    """A pool at its limit has overflow and a request that waits; one that waits in vain is a time-out."""
    engine = create_engine(database.url, pool_size=1, max_overflow=1, pool_timeout=0.01)
    patient = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=30, pool_logging_name="patient")
    waiting = ("db_client_connection_pending_requests", (("db_client_connection_pool_name", "patient"),))
    done: list[bool] = []

    def wait() -> None:
        with patient.connect():
            done.append(True)

    with engine.connect(), engine.connect():
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        pool = (("db_client_connection_pool_name", f"{DATABASE}.db"),)
        assert measured.samples()["jeeves_db_pool_overflow", pool] == 1
        assert measured.samples()["db_client_connection_timeouts_total", pool] == 1
        assert measured.samples()["db_client_connection_wait_time_seconds_count", pool] == 2
    with patient.connect():
        waiter = Thread(target=wait)
        waiter.start()
        poll_until(lambda: measured.samples()[waiting] == 1, "the thread to wait for a connection")
    waiter.join()

    assert [True] == done
    assert measured.samples()[waiting] == 0
    assert _queries(measured) == {("other", "error"): 1}
    engine.dispose()
    patient.dispose()


@pytest.mark.parametrize(
    ("options", "open_one", "open_none"),
    [
        ({"poolclass": QueuePool, "pool_size": 2, "max_overflow": 3}, (1, 0, 5), (0, 1, 5)),
        ({"poolclass": QueuePool, "pool_size": 2, "max_overflow": -1}, (1, 0, None), (0, 1, None)),
        ({"poolclass": QueuePool, "pool_size": 0}, (1, 0, None), (0, 1, None)),
        ({"poolclass": NullPool}, (1, 0, None), (0, 0, None)),
        ({"poolclass": StaticPool}, (1, 0, 1), (0, 1, 1)),
        ({"poolclass": SingletonThreadPool}, (1, 0, None), (0, 1, None)),
    ],
    ids=["queue", "unlimited overflow", "unlimited size", "null", "static", "singleton thread"],
)
def test_every_kind_of_pool_is_counted(
    options: dict[str, Any],
    open_one: tuple[int, int, int | None],
    open_none: tuple[int, int, int | None],
    database: Database,
    measured: Pipeline,
) -> None:
    """Used, idle and, where there is one, the maximum; the second of two identical rounds looks like the first."""
    engine = create_engine(database.url, **options)

    def seen() -> tuple[Any, ...]:
        levels = _levels(measured)
        return tuple(levels.get(f"pool_{name}") for name in ("active_connections", "idle_connections", "size"))

    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            assert open_one == seen()
        assert open_none == seen()
    engine.dispose()
    assert seen() == (None, None, None)
    with engine.connect():
        assert open_one == seen()
    engine.dispose()


def test_a_connection_that_is_detached_or_invalidated_is_no_longer_counted(
    database: Database, measured: Pipeline
) -> None:
    """What has left the pool, or is broken, is neither used nor idle."""
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.detach()
        assert _levels(measured)["connections"] == 0
    with engine.connect() as connection:
        connection.invalidate()
        assert _levels(measured)["connections"] == 0
    assert _levels(measured)["connections"] == 0
    engine.dispose()


def test_a_collected_engine_leaves_nothing_behind(database: Database, measured: Pipeline) -> None:
    """No series, no entry: an engine that is measured can be collected."""
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert _pool_names(measured) == {f"{DATABASE}.db"}
    del engine, connection
    gc.collect()

    assert _pool_names(measured) == set()
    assert len(integration._engines) == 0


def test_pool_names_are_short_told_apart_and_limited(
    tmp_path: Path, measured: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's name, numbered if taken; given names win; no path; beyond a number of names, ``other``."""
    monkeypatch.setattr(integration, "_MOST_NAMES", 4)
    urls = [f"sqlite:///{tmp_path}/orders.db"] * 2 + [
        "sqlite://",
        f"sqlite:///{tmp_path}/given",
        f"sqlite:///{tmp_path}/a",
    ]
    engines = [create_engine(each) for each in urls]
    integration.instrument_engine(engines[3], pool_name="reports")
    for engine in engines:
        with engine.connect():
            pass

    assert _pool_names(measured) == {"orders.db", "orders.db-2", "sqlite", "reports", "other"}
    for engine in engines:
        engine.dispose()


def test_one_engine_by_hand_is_measured_alone_and_once(database: Database, pipeline: Pipeline) -> None:
    """instrument_engine measures that engine; the others stay unmeasured, and instrument() adds nothing twice."""
    mine, other = create_engine(database.url), create_engine(database.url)
    for _ in range(2):
        integration.instrument_engine(mine, "mine")
    for engine in (mine, other):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    assert _queries(pipeline) == {("select", "success"): 1}
    assert _pool_names(pipeline) == {"mine"}
    integration.instrument()
    integration.instrument()
    with mine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert _queries(pipeline) == {("select", "success"): 2}
    assert _pool_names(pipeline) == {"mine"}
    integration.uninstrument()
    with mine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert _queries(pipeline) == {("select", "success"): 2}
    mine.dispose()
    other.dispose()


@pytest.mark.parametrize("url", ["sqlite+aiosqlite"], indirect=True)
def test_an_async_engine_by_hand_is_measured(database: Database, pipeline: Pipeline) -> None:
    """instrument_engine takes an AsyncEngine as it is."""

    async def run() -> None:
        engine = create_async_engine(database.url)
        integration.instrument_engine(engine, "mine")
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            rows = await connection.stream(text("SELECT x FROM t"))
            assert [] == [row async for row in rows]
        assert _pool_names(pipeline) == {"mine"}
        await engine.dispose()

    asyncio.run(run())
    integration.uninstrument()

    assert _queries(pipeline) == {("select", "success"): 2}


def test_a_statement_inside_an_event_of_another_is_measured_by_itself(database: Database, measured: Pipeline) -> None:
    """A listener of the application that runs a statement on the same connection does not disturb the one around."""
    engine = create_engine(database.url)

    @event.listens_for(engine, "before_cursor_execute")
    def audit(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            connection.execute(text("DELETE FROM t"))

    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()

    assert _queries(measured) == {("select", "success"): 1, ("delete", "success"): 1}


@pytest.mark.parametrize("url", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_a_statement_is_a_child_of_what_runs_around_it(database: Database, measured: Pipeline) -> None:
    """The span of a statement belongs to the operation of the application, across the greenlet of an async engine too."""
    with pipeline_run("around"):
        database.play(_run("SELECT 1"), _run("SELECT 1"))
    *statements, around = measured.spans()

    assert around.context is not None
    assert [around.context.span_id] * 2 == [span.parent and span.parent.span_id for span in statements]


def test_an_engine_made_and_used_before_is_measured_from_its_next_connection(
    database: Database, pipeline: Pipeline
) -> None:
    """instrument() reaches engines that exist already; open connections go on as they are."""
    engine = create_engine(database.url)
    with engine.connect() as connection:
        integration.instrument()
        connection.execute(text("SELECT 1"))
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM t"))
        levels = _levels(pipeline)
    engine.dispose()
    integration.uninstrument()

    assert levels["pool_active_connections"] == 1
    assert _queries(pipeline)["delete", "success"] == 1


def test_a_child_process_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held(
    database: Database,
    measured: Pipeline,  # noqa: ARG001 - switches it on
) -> None:
    """After a fork, whatever was locked is free."""
    engine = create_engine(database.url)
    with engine.connect():
        pass
    (watched,) = integration._living()
    watched.count(pending=1)
    locks = [watched.lock, integration._lock, integration._hooks._lock]
    for lock in locks:
        lock.acquire()
    integration._unlock_child()
    with engine.connect():
        assert watched.pending == 0
    for lock in locks:
        lock.release()
    engine.dispose()


def test_a_sqlalchemy_before_2_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are made in another way: nothing is hung into it, and that is said."""
    failsafe.set_strict(False)
    monkeypatch.setattr("sqlalchemy.__version__", "1.4.54")
    before = Engine.raw_connection
    integration.instrument()
    integration.uninstrument()

    assert before is Engine.raw_connection
    assert failsafe.counts() == {"sqlalchemy.instrument": 1}


@pytest.mark.parametrize("key", recording.SUPPRESSED)
def test_a_suppressed_statement_is_not_measured(key: str, database: Database, measured: Pipeline) -> None:
    """Who suppresses instrumentation, as exporters do, is left alone."""
    token = otel_context.attach(otel_context.set_value(key, True))
    try:
        database.play(_run("SELECT 1"))
    finally:
        otel_context.detach(token)

    assert _queries(measured) == {}
    assert measured.spans() == ()


def test_a_failure_of_ours_does_not_reach_the_statement(
    database: Database,
    measured: Pipeline,  # noqa: ARG001 - switches it on
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever breaks in here, the application gets its rows, and the failure is counted."""
    failsafe.set_strict(False)

    def broken(*_: Any) -> None:
        raise RuntimeError

    for name in ("operation_of", "_finish", "_watch"):
        with monkeypatch.context() as patch:
            patch.setattr(integration, name, broken)
            database.play(_run("INSERT INTO t VALUES (:x)", {"x": name}))

    assert {"sqlalchemy.before", "sqlalchemy.after", "sqlalchemy.pool"} == set(failsafe.counts())


@pytest.mark.parametrize("missing", [(), ("greenlet",)])
def test_it_waits_for_sqlalchemy_and_works_without_greenlet(missing: tuple[str, ...], tmp_path: Path) -> None:
    """Activating it imports nothing; sync engines need no greenlet."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from jeeves_otel.integrations import sqlalchemy as integration\n"
        "integration.Instrumentor().instrument(skip_dep_check=True)\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "from sqlalchemy import create_engine, text\n"
        f"engine = create_engine('sqlite:///{tmp_path}/a.db')\n"
        "with engine.connect() as connection: connection.execute(text('SELECT 1'))\n"
        "assert [each.pool_name for each in integration._engines.values()] == ['a.db']\n"
        "engine.dispose()\n"
        "from jeeves_otel import failsafe; assert failsafe.counts() == {}\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("disabled", ["", "sqlalchemy", "jeeves_sqlalchemy", "*"])
def test_under_the_launcher_an_application_is_measured_without_a_line_of_its_own(disabled: str, tmp_path: Path) -> None:
    """Wired by itself, silent on stderr, off when it is disabled by its name or with everything."""
    port = free_port()
    settings = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled} if disabled else {}
    database_url = f"sqlite:///{tmp_path}/orders.db"
    with launched("store.py", METRICS_PORT=str(port), DATABASE_URL=database_url, **settings) as app:
        app.wait_ready()
        page = scrape(port)
        assert app.finish() == 0
    counts = {
        dict(labels)["operation"]: value
        for (name, labels), value in page.items()
        if name == "jeeves_db_queries_total" and value
    }

    expected = {"other": 1, "insert": 1, "select": 1} if disabled == "" else {}
    assert expected == counts
    assert (1 if expected else None) == page.get(("jeeves_db_pool_idle_connections", ()))
    assert "canary" not in str(page)
    assert disabled in {"jeeves_sqlalchemy", "sqlalchemy"} or "only instruments" not in app.log


def test_an_expanding_parameter_and_a_driver_error_in_fetching_count_once(
    database: Database, measured: Pipeline
) -> None:
    """A statement that has answered is a success, whatever happens while its rows are read."""

    def step(connection: Connection) -> None:
        connection.execute(
            text("SELECT x FROM t WHERE x IN :xs").bindparams(bindparam("xs", expanding=True)), {"xs": [1]}
        )
        rows = connection.execute(text("SELECT 1"))
        rows.close()
        with pytest.raises(exc.ResourceClosedError):
            rows.fetchone()

    database.play(step)

    assert _queries(measured) == {("select", "success"): 2}
