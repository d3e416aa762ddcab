# SPDX-License-Identifier: Apache-2.0
"""Incidents of the demo: they begin, they end, and they last as long as the second half of the requests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

from jeeves_otel.demo import incidents, stage
from jeeves_otel.demo.store import DOCUMENTS, Store
from jeeves_otel.demo.traffic import Outcome, Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOPIC = next(iter(DOCUMENTS))


def test_the_store_fails_without_its_tables_and_has_its_rows_again_afterwards(tmp_path: Path) -> None:
    """As after a migration that went wrong, and its way back."""
    path = tmp_path / "demo.db"
    store = Store(f"sqlite:///{path}")
    store.open_conversation("one")
    store.add_turn("one", "why?", "because")

    incidents.rename_tables(path, "{}", "{}_old")
    with pytest.raises(OperationalError, match="no such table"):
        store.search(TOPIC)
    incidents.rename_tables(path, "{}_old", "{}")
    _, turns = store.conversation("one")

    assert DOCUMENTS[TOPIC] == store.search(TOPIC)
    assert ["why?"] == [turn.question for turn in turns]
    store.close()


def test_an_incident_lasts_while_the_second_half_of_the_users_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half is there to compare; what came back of both is one outcome."""
    happened: list[Any] = []

    def send(_: object, __: object, users: list[list[Step]]) -> Outcome:
        happened.extend(step.path for steps in users for step in steps)
        return Outcome(sent=len(users), broken=["one"])

    @contextmanager
    def incident(kind: str, _: object) -> Iterator[None]:
        happened.append(f"{kind} begins")
        yield
        happened.append(f"{kind} ends")

    monkeypatch.setattr(stage, "_send", send)
    monkeypatch.setattr(incidents, "incident", incident)
    users = [[Step("GET", f"/{number}")] for number in range(4)]
    outcome = stage.send_all(stage.console_of_the_user(), None, users, incidents.LLM)  # type: ignore[arg-type]

    assert ["/0", "/1", "llm begins", "/2", "/3", "llm ends"] == happened
    assert Outcome(sent=4, broken=["one", "one"]) == outcome


def test_an_incident_ends_when_its_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next one would begin with two."""
    happened: list[str] = []
    monkeypatch.setattr(incidents, "begin", lambda *_: happened.append("begins"))
    monkeypatch.setattr(incidents, "end", lambda *_: happened.append("ends"))

    with pytest.raises(LookupError), incidents.incident(incidents.SLOW, None):  # type: ignore[arg-type]
        raise LookupError

    assert ["begins", "ends"] == happened
