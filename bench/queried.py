# SPDX-License-Identifier: Apache-2.0
"""The competitors that ask a database: one SELECT through SQLAlchemy, on a connection from the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from bench.recorded import binding, jeeves_provider, tracer_provider
from bench.timing import Case, Group, each
from jeeves_otel.integrations import sqlalchemy as integration

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


def sqlalchemy_group() -> Group:
    """Return: one SELECT 1 on SQLite in memory, with taking and giving back a connection."""
    bind = binding(jeeves_provider()[0], tracer_provider())
    bare, ours = _engine(), _engine()

    def measured() -> None:
        bind()
        integration.instrument_engine(ours)

    # Listeners hang on the class of engines, so whoever is not measured has them taken out.
    return Group(
        "one SELECT through SQLAlchemy",
        (
            Case("no telemetry", each(_select(bare)), integration.uninstrument),
            Case("jeeves_otel: durations, waits, span at 10 %", each(_select(ours)), measured),
            *_stock(),
        ),
    )


def _stock() -> list[Case]:
    try:
        from opentelemetry.instrumentation.sqlalchemy import (  # noqa: PLC0415 - a competitor that need not be installed
            SQLAlchemyInstrumentor,
        )
    except ImportError:
        return []
    engine = _engine()
    SQLAlchemyInstrumentor().instrument(engine=engine, tracer_provider=tracer_provider(), skip_dep_check=True)
    return [Case("contrib: span at 10 %", each(_select(engine)), integration.uninstrument)]


def _engine() -> Engine:
    return create_engine("sqlite://", poolclass=StaticPool)


def _select(engine: Engine) -> Callable[[], Any]:
    statement = text("SELECT 1")

    def select() -> None:
        with engine.connect() as connection:
            connection.execute(statement).scalar_one()

    return select
