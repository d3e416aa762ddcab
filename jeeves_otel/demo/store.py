# SPDX-License-Identifier: Apache-2.0
"""Keep conversations, documents and usage events in SQL.

In: calls from any thread. Out: rows. Nothing here measures: under the launcher, the integration of SQLAlchemy does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, String, create_engine, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

if TYPE_CHECKING:
    from collections.abc import Iterable

POOL_SIZE = 4
POOL_OVERFLOW = 4

DOCUMENTS = {
    "heat pumps": "A heat pump moves heat instead of making it, so one kilowatt hour of current gives three of heat.",
    "solar panels": "Solar panels turn about a fifth of the light that reaches them into current.",
    "bees": "A bee visits some hundred flowers on one flight.",
    "tides": "Tides follow the moon: two high waters in a little more than a day.",
    "glaciers": "Glaciers flow downhill under their own weight, some by metres in a day.",
    "bridges": "A suspension bridge hangs its road from cables that are anchored at both ends.",
}


class _Base(DeclarativeBase):
    pass


class Conversation(_Base):
    """A session of one user. ``awaits`` names the interrupt that the user has yet to answer."""

    __tablename__ = "conversations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    awaits: Mapped[str | None] = mapped_column(String(32))


class Turn(_Base):
    """One question with its answer."""

    __tablename__ = "turns"
    id: Mapped[int] = mapped_column(primary_key=True)
    conversation: Mapped[str] = mapped_column(ForeignKey("conversations.id"), index=True)
    question: Mapped[str]
    answer: Mapped[str]


class Document(_Base):
    """What the search tool finds."""

    __tablename__ = "documents"
    topic: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str]


class Event(_Base):
    """One use of a feature, written behind the requests."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    feature: Mapped[str] = mapped_column(String(32))


class Store:
    """The database. Safe from several threads: each call has a session of its own.

    Args:
        url: SQLAlchemy URL of the database.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW)
        self._session = sessionmaker(self._engine)
        _Base.metadata.create_all(self._engine)
        # Gateway and kernel start at once: who comes second finds what is needed.
        with suppress(IntegrityError), self._session.begin() as session:
            for topic, text in DOCUMENTS.items():
                session.merge(Document(topic=topic, text=text))

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    def ping(self) -> None:
        """Ask the database for anything.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: It does not answer.
        """
        with self._session() as session:
            session.scalar(select(func.count()).select_from(Document))

    def open_conversation(self, name: str) -> None:
        """Begin a conversation.

        Raises:
            sqlalchemy.exc.IntegrityError: There is one of that name.
        """
        with self._session.begin() as session:
            session.add(Conversation(id=name))

    def close_conversation(self, name: str) -> None:
        """Delete a conversation with its turns."""
        with self._session.begin() as session:
            for turn in session.scalars(select(Turn).where(Turn.conversation == name)):
                session.delete(turn)
            session.flush()  # the turns refer to the conversation, so they go first
            session.delete(session.get_one(Conversation, name))

    def conversation(self, name: str) -> tuple[Conversation | None, list[Turn]]:
        """Return a conversation, or None, and its turns in order."""
        with self._session() as session:
            found = session.get(Conversation, name)
            turns = session.scalars(select(Turn).where(Turn.conversation == name).order_by(Turn.id))
            return found, list(turns)

    def add_turn(self, name: str, question: str, answer: str) -> None:
        """Append a turn."""
        with self._session.begin() as session:
            session.add(Turn(conversation=name, question=question, answer=answer))

    def expect(self, name: str, interrupt: str | None) -> None:
        """Note which interrupt the user has to answer now, if any."""
        with self._session.begin() as session:
            session.get_one(Conversation, name).awaits = interrupt

    def search(self, topic: str) -> str:
        """Return the document about *topic*; empty if there is none."""
        with self._session() as session:
            return session.scalar(select(Document.text).where(Document.topic == topic)) or ""

    def add_events(self, features: Iterable[str]) -> None:
        """Append usage events."""
        with self._session.begin() as session:
            session.add_all([Event(feature=feature) for feature in features])
