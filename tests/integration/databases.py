# SPDX-License-Identifier: Apache-2.0
"""Real databases for tests: SQLite files, and a PostgreSQL server of our own on a free port."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from tests.integration.launching import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

PASSWORD = "canary-password"
DATABASE = "orders"


def server_binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL server on this machine, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgresql(binaries: Path) -> Iterator[str]:
    """Run a server with a fresh database; yield ``user:password@host:port/database`` of it."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="jeeves-postgresql-"))
    as_user: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: object) -> None:
        subprocess.run([str(each) for each in (binaries / program, *arguments)], check=True, timeout=120, **as_user)

    data, log = folder / "data", folder / "log"
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off -c max_connections=40"
    try:
        run("initdb", "-D", data, "-U", "jeeves", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        run("pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", port, "-U", "jeeves", DATABASE)
            yield f"jeeves:{PASSWORD}@127.0.0.1:{port}/{DATABASE}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Database:
    """One engine, sync or async, on which steps are played: each is a function of a connection of its own.

    Args:
        url: SQLAlchemy URL; the driver says whether it is async.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_async = any(driver in url for driver in ("aiosqlite", "asyncpg", "psycopg_async"))
        self.system = url.partition(":")[0].partition("+")[0]

    def play(self, *steps: Callable[[Connection], Any], inspect: Callable[[Engine], Any] | None = None) -> None:
        """Run *steps* in transactions of their own, then *inspect* the engine, and dispose of it."""
        if self.is_async:
            asyncio.run(self._play_async(*steps, inspect=inspect))
            return
        engine = create_engine(self.url)
        try:
            for step in steps:
                with engine.begin() as connection:
                    step(connection)
            if inspect is not None:
                inspect(engine)
        finally:
            engine.dispose()

    async def _play_async(self, *steps: Callable[[Connection], Any], inspect: Callable[[Engine], Any] | None) -> None:
        engine = create_async_engine(self.url)
        try:
            for step in steps:
                async with engine.begin() as connection:
                    await connection.run_sync(step)
            if inspect is not None:
                inspect(engine.sync_engine)
        finally:
            await engine.dispose()
