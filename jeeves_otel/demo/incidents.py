# SPDX-License-Identifier: Apache-2.0
"""Break what the running service of the demo depends on, and mend it again: its language models, or its database.

In: a kind of incident and where the service runs. Out: failures and delays as others would cause them, through the same
connections; the service itself is not touched, so what its telemetry says is what it would say of a real incident.
"""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from jeeves_otel.demo.stage import Stage

LLM, SLOW, DATABASE = "llm", "slow", "database"
KINDS = {
    LLM: "calls of language models fail",
    SLOW: "calls of language models take two seconds longer, so that pipelines take more than five",
    DATABASE: "a migration has taken the tables away",
}
DELAY_S = 2.0  # three calls of a pipeline take longer than the objective allows
TABLES = ("conversations", "turns", "documents", "events")


@contextmanager
def incident(kind: str, stage: Stage, share: float = 1.0) -> Iterator[None]:
    """Let something be wrong for the length of a ``with`` block.

    Args:
        kind: One of `KINDS`.
        stage: What is running.
        share: Of calls that fail, for ``llm``; ratio, 0..1.
    """
    begin(kind, stage, share)
    try:
        yield
    finally:
        end(kind, stage)


def begin(kind: str, stage: Stage, share: float = 1.0) -> None:
    """Let it be wrong from now on; see `incident`."""
    if kind == DATABASE:
        rename_tables(stage.database, "{}", "{}_old")
    else:
        ask_model(stage.model_url, failing=share if kind == LLM else 0.0, delay_s=DELAY_S if kind == SLOW else 0.0)


def end(kind: str, stage: Stage) -> None:
    """Let all be well again."""
    if kind == DATABASE:
        rename_tables(stage.database, "{}_old", "{}")
    else:
        ask_model(stage.model_url)


def ask_model(url: str, **wrong: float) -> None:
    """Ask the model server at *url* to be wrong in these ways, see `llm_server.Incident`; by default, in none.

    Raises:
        urllib.error.URLError: It does not answer, or does not accept the numbers.
    """
    request = urllib.request.Request(  # noqa: S310 - the demo's own server, on the loopback interface
        f"{url}/incident",
        data=json.dumps(wrong).encode(),
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - as above


def rename_tables(database: Path, old: str, new: str, tables: Iterable[str] = TABLES) -> None:
    """Rename *tables* of *database* from the pattern *old* to the pattern *new*, all or none."""
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for table in tables:
            connection.execute(f"ALTER TABLE {old.format(table)} RENAME TO {new.format(table)}")
        connection.execute("COMMIT")
