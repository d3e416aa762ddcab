# SPDX-License-Identifier: Apache-2.0
"""Name the operation of an SQL statement, and nothing else about it.

In: statement text of any dialect. Out: a keyword of a closed set, or None where the text is not clear; never any of the
text itself.
"""

from __future__ import annotations

import re
from functools import lru_cache

# What may follow the common table expressions of a WITH.
_MAIN_VERBS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "VALUES", "TABLE"})
_KEYWORDS = _MAIN_VERBS | {
    *(
        "ALTER",
        "ANALYZE",
        "ATTACH",
        "CALL",
        "CLUSTER",
        "COMMENT",
        "COPY",
        "CREATE",
        "DEALLOCATE",
        "DECLARE",
        "DESCRIBE",
    ),
    *("DETACH", "DISCARD", "DO", "DROP", "EXEC", "EXECUTE", "EXPLAIN", "FETCH", "GRANT", "KILL", "LISTEN", "LOAD"),
    *("LOCK", "MOVE", "NOTIFY", "OPTIMIZE", "PRAGMA", "PREPARE", "REFRESH", "REINDEX", "RENAME", "RESET", "REVOKE"),
    *("SET", "SHOW", "TRUNCATE", "UNLISTEN", "UPSERT", "USE", "VACUUM"),
}
TRANSACTION_CONTROL = frozenset({"BEGIN", "COMMIT", "END", "RELEASE", "ROLLBACK", "SAVEPOINT", "START"})

_LONGEST_PARSED = 20_000  # characters; the main verb of a longer WITH may stay unknown
_LONGEST_CACHED = 4_000  # characters; 1,024 statements of this length are the most that the cache holds

# Possessive, so that no text takes more than one pass; what is not closed reaches to the end.
_TOKEN = re.compile(
    r"""
      (?P<skip>\s++ | --[^\n]*+ | [eE]'(?:[^'\\]|\\.|'')*+(?:'|\Z) | '(?:[^']|'')*+(?:'|\Z) | "(?:[^"]|"")*+(?:"|\Z)
        | `[^`]*+(?:`|\Z) | \$(?P<tag>(?:[^\W\d]\w*)?)\$(?s:.*?)(?:\$(?P=tag)\$|\Z))
    | (?P<comment>/\*)
    | (?P<word>[^\W\d]\w*+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MARK = re.compile(r"/\*|\*/")


def operation_of(statement: str) -> str | None:
    """Return the keyword that says what *statement* does, in upper case; None if that is not clear.

    The main verb of a WITH counts, not those of its common table expressions. The answer is remembered for the text.
    """
    return _remembered(statement) if len(statement) <= _LONGEST_CACHED else _parse(statement[:_LONGEST_PARSED])


class _Reader:
    """What is known after some tokens of a statement.

    ``depth`` counts the parentheses around, ``level`` is that of the WITH, and ``naming`` says that the next word is
    the name of a common table expression, which may look like a verb.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.level: int | None = None
        self.naming = False
        self.found: str | None = None
        self.done = False

    def read(self, token: re.Match[str]) -> None:
        if token["word"] is not None:
            self._word(token["word"].upper())
        elif token["other"] is not None:
            self._other(token["other"])
        elif self.level == self.depth and token["skip"] is not None and token["skip"][0] in '"`':
            self.naming = False  # a quoted name

    def _word(self, word: str) -> None:
        if self.level is None:
            if word == "WITH":
                self.level, self.naming = self.depth, True
            else:
                self._end(word if word in _KEYWORDS or word in TRANSACTION_CONTROL else None)
        elif self.depth == self.level:
            if self.naming:
                self.naming = word == "RECURSIVE"
            elif word in _MAIN_VERBS:
                self._end(word)

    def _other(self, sign: str) -> None:
        if sign == "(":
            self.depth += 1
        elif sign == ")":
            self.depth -= 1
            if self.level is not None and self.depth < self.level:
                self._end(None)
        elif self.level is None:
            if sign not in ";{":
                self._end(None)
        elif sign == "," and self.depth == self.level:
            self.naming = True

    def _end(self, found: str | None) -> None:
        self.found, self.done = found, True


def _parse(statement: str) -> str | None:
    reader, position = _Reader(), 0
    while position < len(statement) and not reader.done:
        token = _TOKEN.match(statement, position)
        if token is None:
            break
        if token["comment"] is not None:
            position = _after_comment(statement, position)
        elif token["other"] == "#" and reader.level is None:  # a comment of MySQL; elsewhere an operator
            position = statement.find("\n", position) % (len(statement) + 1)
        else:
            reader.read(token)
            position = token.end()
    return reader.found


_remembered = lru_cache(maxsize=1_024)(_parse)


def _after_comment(statement: str, start: int) -> int:
    """Return where the comment at *start* ends: nested as in PostgreSQL if that works out, else at the first end."""
    depth, first = 0, len(statement)
    for mark in _MARK.finditer(statement, start):
        if mark[0] == "/*":
            depth += 1
        else:
            first = min(first, mark.end())
            depth -= 1
            if depth == 0:
                return mark.end()
    return first
