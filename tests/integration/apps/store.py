# SPDX-License-Identifier: Apache-2.0
"""A program that knows nothing of telemetry: SQLAlchemy, imported late, on the database of DATABASE_URL."""

import os
import sys

assert "sqlalchemy" not in sys.modules

from sqlalchemy import create_engine, text  # noqa: E402 - the assertion comes first

engine = create_engine(os.environ["DATABASE_URL"])
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE t (x TEXT)"))
    connection.execute(text("INSERT INTO t VALUES (:x)"), [{"x": "canary-parameter"}, {"x": "b"}])
    connection.execute(text("/* mine */ WITH a AS (SELECT 'canary-literal') SELECT * FROM t, a"))
print("ready", flush=True)
sys.stdin.read()
engine.dispose()
