# SPDX-License-Identifier: Apache-2.0
"""From a statement to its operation: a truth table, and what holds for any text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from jeeves_otel.integrations.statements import operation_of

TABLE = {
    # plain
    "SELECT 1": "SELECT",
    "select * from t": "SELECT",
    "\n\t InSeRt INTO t VALUES (1)": "INSERT",
    "update t set a = 1": "UPDATE",
    "DELETE FROM t": "DELETE",
    "SELECT*FROM t": "SELECT",
    'select"a"from t': "SELECT",
    # comments, parentheses and the like before it
    "-- DELETE\nSELECT 1": "SELECT",
    "/* DELETE */ SELECT 1": "SELECT",
    "/* a /* DELETE */ UPDATE */ SELECT 1": "SELECT",
    "/* a /* b */ SELECT 1": "SELECT",
    "/*+ hint */ -- one\n -- two\n/**/update t set a=1": "UPDATE",
    "# DELETE\nSELECT 1": "SELECT",
    "(SELECT 1) UNION (SELECT 2)": "SELECT",
    "((select 1))": "SELECT",
    ";SELECT 1": "SELECT",
    "{call f(1)}": "CALL",
    # common table expressions
    "WITH a AS (SELECT 1) SELECT * FROM a": "SELECT",
    "with a as (select 1) insert into t select * from a": "INSERT",
    "WITH a AS (SELECT 1), b AS (SELECT (2)) UPDATE t SET x = (SELECT 1)": "UPDATE",
    "WITH a AS (INSERT INTO t VALUES (1) RETURNING id) DELETE FROM u": "DELETE",
    "WITH RECURSIVE a(n) AS (VALUES (1) UNION ALL SELECT n+1 FROM a) SELECT n FROM a": "SELECT",
    "WITH a AS MATERIALIZED (SELECT ')' , '''(' ) DELETE FROM t": "DELETE",
    "WITH a AS (SELECT 1 /* ) DELETE */ -- ) UPDATE\n) INSERT INTO t SELECT 1": "INSERT",
    'WITH "delete" AS (SELECT 1), update AS (SELECT 2) SELECT 1': "SELECT",
    "WITH `delete` (x) AS (SELECT 1) SELECT 1": "SELECT",
    "WITH a AS (SELECT $$ ) DELETE $$, $q$ ) $$ $q$) UPDATE t SET a=1": "UPDATE",
    r"WITH a AS (SELECT E'it\'s )') DELETE FROM t": "DELETE",
    "WITH a AS (WITH b AS (SELECT 1) DELETE FROM x RETURNING *) SELECT 1": "SELECT",
    "(WITH a AS (SELECT 1) SELECT 1) UNION SELECT 2": "SELECT",
    "WITH a AS (SELECT x #> '{y}' FROM t) MERGE INTO t USING a": "MERGE",
    "WITH a AS (SELECT 1) SEARCH DEPTH FIRST BY x, y SET z SELECT 1": "SELECT",
    # other keywords
    "CREATE TABLE secret (x int)": "CREATE",
    "pragma table_info('secret')": "PRAGMA",
    "EXPLAIN SELECT 1": "EXPLAIN",
    "COMMIT": "COMMIT",
    "SAVEPOINT secret": "SAVEPOINT",
    # not clear
    "": None,
    "   ": None,
    "-- only a comment": None,
    "/* open": None,
    "# open": None,
    "secret": None,
    "'secret'": None,
    "selected": None,
    "1 SELECT": None,
    "WITH": None,
    "WITH a AS (SELECT 1": None,
    "WITH a AS (SELECT 'open) DELETE FROM t": None,
    "(WITH a AS (SELECT 1)) SELECT 1": None,
    ") SELECT": "SELECT",
}


@pytest.mark.parametrize(("statement", "operation"), TABLE.items())
def test_the_operation_of_a_statement_is_its_main_verb(statement: str, operation: str | None) -> None:
    """What stands before the verb, around it and in strings does not count; what is not clear has no operation."""
    assert operation == operation_of(statement)


PIECES = st.sampled_from(
    [
        "WITH ",
        "a AS ",
        "(",
        ")",
        ",",
        "SELECT ",
        "delete ",
        "'",
        '"',
        "`",
        "--",
        "\n",
        "/*",
        "*/",
        "$$",
        "$x$",
        "#",
        "\\",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
@example("S\u017fELECT")
def test_any_text_gives_a_keyword_or_nothing(statement: str) -> None:
    """Nothing raises, and nothing but a keyword comes back."""
    operation = operation_of(statement)

    assert operation is None or (operation.isascii() and operation.isupper() and len(operation) <= 10)


@pytest.mark.parametrize("piece", ["'", "''", '"', "/*", "(", "$$", "$a$", "a ", "WITH ", "\\", "--", "e'\\"])
def test_a_long_statement_is_read_in_one_pass(piece: str) -> None:
    """However long and however broken, a statement is named without delay (the test's time limit judges)."""
    assert operation_of("WITH x AS (SELECT " + piece * 200_000) is None


def test_the_cache_never_holds_a_long_statement() -> None:
    """A bulk insert with its literals is parsed anew instead of being kept."""
    from jeeves_otel.integrations import statements

    before = statements._remembered.cache_info().currsize
    assert operation_of("INSERT INTO t VALUES " + "(1)," * 50_000) == "INSERT"

    assert before == statements._remembered.cache_info().currsize
