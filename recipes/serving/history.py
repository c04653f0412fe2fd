"""The history of questions and answers: one SQLite file, which a killed server leaves whole.

A question is written down before it is asked, so that none is lost; its answer when it is finished. What a server left
unanswered is marked as such at the next start.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.serving.event_json import page_id_of
from rsgrpo.answering.records import EarlierTurn
from rsgrpo.errors import RsgrpoError, shown

HISTORY_FILE = "history.sqlite3"
TurnState = Literal["asking", "answered", "stopped", "failed"]

_VERSION = 1
_APPLICATION = 0x52534752  # "RSGR": tells our files from other SQLite files
_BUSY_SECONDS = 10.0
_TITLE_CHARACTERS = 80
_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    begun REAL NOT NULL,
    changed REAL NOT NULL
);
CREATE INDEX conversations_of_owner ON conversations (owner, changed DESC);
CREATE TABLE turns (
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    question TEXT NOT NULL,
    state TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT '',
    problem TEXT NOT NULL DEFAULT '',
    asked REAL NOT NULL,
    PRIMARY KEY (conversation, number)
);
"""


class HistoryError(RsgrpoError):
    """The history cannot be opened, or holds no such conversation; the message says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryTurn:
    """A question and what came of it.

    Attributes:
        number: its place in the conversation, from 1.
        question: the text of the question.
        state: what came of it.
        answer: the answer as :func:`~recipes.serving.event_json.answer_json` writes it; None: there is none.
        problem: why there is no answer; empty: there is one, or it is still worked on.
        asked: when it was asked, in seconds since 1970.
    """

    number: int
    question: str
    state: TurnState
    answer: dict[str, Any] | None
    problem: str
    asked: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A question with those that followed it.

    Attributes:
        key: what the conversation is found by.
        title: the beginning of its first question.
        begun: when it was begun, in seconds since 1970.
        changed: when its last question was asked, in seconds since 1970.
        num_turns: how many questions it has.
    """

    key: str
    title: str
    begun: float
    changed: float
    num_turns: int


class History:
    """The conversations of all visitors, each of which sees its own; for use by any thread.

    Args:
        folder: the folder that the file lies in; made if need be.

    Raises:
        HistoryError: the file is of something else, of a newer release, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        path = folder / HISTORY_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._base = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode = WAL")
            # What is written outlives a kill of the server. Only a machine that loses its power may lose the last turns
            # (never the file): waiting for the disk twice a question would hold up all who ask.
            self._base.execute("PRAGMA synchronous = NORMAL")
            self._base.execute("PRAGMA foreign_keys = ON")
            self._prepare(path)
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(
                f"the history {shown(path)} cannot be used ({shown(error, 120)}); move it away, or name another folder "
                "by --state"
            ) from error

    def begin(self, owner: str, question: str, conversation: str = "") -> tuple[str, int]:
        """Write a question down, before it is asked.

        Args:
            owner: the visitor's name.
            question: the text of the question.
            conversation: the conversation that it goes on; empty: it begins one.

        Returns:
            The conversation, and the number of the question in it.

        Raises:
            HistoryError: the visitor has no such conversation.
        """
        now = time.time()
        with self._writing() as base:
            if conversation:
                self._check_owner(base, owner, conversation)
                base.execute("UPDATE conversations SET changed = ? WHERE id = ?", (now, conversation))
            else:
                conversation = secrets.token_urlsafe(12)
                row = (conversation, owner, shown(question, _TITLE_CHARACTERS), now, now)
                base.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?)", row)
            (number,) = base.execute(
                "SELECT COALESCE(MAX(number), 0) + 1 FROM turns WHERE conversation = ?", (conversation,)
            ).fetchone()
            base.execute(
                "INSERT INTO turns (conversation, number, question, state, asked) VALUES (?, ?, ?, 'asking', ?)",
                (conversation, number, question, now),
            )
        return conversation, number

    def finish(
        self, conversation: str, number: int, state: TurnState, answer: dict[str, Any] | None = None, problem: str = ""
    ) -> None:
        """Write down what came of a question; nothing where its conversation was deleted, or the history closed.

        Args:
            conversation: the conversation.
            number: the number of the question in it.
            state: what came of it.
            answer: the answer; None: there is none.
            problem: why there is none.
        """
        if self._is_closed:
            return  # the next start will mark it as stopped
        written = "" if answer is None else json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        with self._writing() as base:
            base.execute(
                "UPDATE turns SET state = ?, answer = ?, problem = ? WHERE conversation = ? AND number = ?",
                (state, written.encode("utf-8", "replace").decode(), problem, conversation, number),
            )

    def conversations(self, owner: str) -> list[Conversation]:
        """List a visitor's conversations, the newest first.

        Args:
            owner: the visitor's name.
        """
        with self._lock:
            rows = self._base.execute(
                "SELECT id, title, begun, changed, (SELECT COUNT(*) FROM turns WHERE conversation = id) "
                "FROM conversations WHERE owner = ? ORDER BY changed DESC, id",
                (owner,),
            ).fetchall()
        return [
            Conversation(key=key, title=title, begun=begun, changed=changed, num_turns=num_turns)
            for key, title, begun, changed, num_turns in rows
        ]

    def turns(self, owner: str, conversation: str) -> list[HistoryTurn]:
        """Read a conversation.

        Args:
            owner: the visitor's name.
            conversation: the conversation.

        Returns:
            Its questions, oldest first.

        Raises:
            HistoryError: the visitor has no such conversation.
        """
        with self._lock:
            self._check_owner(self._base, owner, conversation)
            rows = self._base.execute(
                "SELECT number, question, state, answer, problem, asked FROM turns WHERE conversation = ? "
                "ORDER BY number",
                (conversation,),
            ).fetchall()
        return [
            HistoryTurn(
                number=number,
                question=question,
                state=state,
                answer=json.loads(answer) if answer else None,
                problem=problem,
                asked=asked,
            )
            for number, question, state, answer, problem, asked in rows
        ]

    def earlier(self, owner: str, conversation: str, most: int) -> tuple[EarlierTurn, ...]:
        """Read the last questions of a conversation that were answered.

        Args:
            owner: the visitor's name.
            conversation: the conversation.
            most: how many at most.

        Returns:
            The questions with their responses, oldest first.

        Raises:
            HistoryError: the visitor has no such conversation.
        """
        answered = [turn for turn in self.turns(owner, conversation) if turn.answer is not None]
        return tuple(
            EarlierTurn(
                question=turn.question,
                response=str((turn.answer or {}).get("response", "")),
                pages={
                    page["number"]: page_id_of(page["key"])
                    for page in (turn.answer or {}).get("pages", ())
                    if page["is_shown"]
                },
            )
            for turn in answered[-most:]
        )

    def delete(self, owner: str, conversation: str) -> None:
        """Delete a conversation.

        Args:
            owner: the visitor's name.
            conversation: the conversation.

        Raises:
            HistoryError: the visitor has no such conversation.
        """
        with self._writing() as base:
            self._check_owner(base, owner, conversation)
            base.execute("DELETE FROM conversations WHERE id = ?", (conversation,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._is_closed = True
            self._base.close()

    def _prepare(self, path: Path) -> None:
        """Make the tables of a new file, or check those of an old one; what was being asked will not be answered.

        Raises:
            HistoryError: the file is of something else, or of a newer release.
        """
        with self._writing() as base:
            (application,) = base.execute("PRAGMA application_id").fetchone()
            (version,) = base.execute("PRAGMA user_version").fetchone()
            is_new = not base.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            if is_new:
                for statement in _SCHEMA.split(";"):
                    base.execute(statement)
                base.execute(f"PRAGMA application_id = {_APPLICATION}")
                base.execute(f"PRAGMA user_version = {_VERSION}")
            elif application != _APPLICATION or version != _VERSION:
                what = "of another program" if application != _APPLICATION else f"of version {version}"
                raise HistoryError(
                    f"the history {shown(path)} is {what}, this release reads version {_VERSION}; move it away, or "
                    "name another folder by --state"
                )
            base.execute(
                "UPDATE turns SET state = 'stopped', problem = 'the server ended before it was answered; ask it again' "
                "WHERE state = 'asking'"
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def _check_owner(self, base: sqlite3.Connection, owner: str, conversation: str) -> None:
        found = base.execute("SELECT 1 FROM conversations WHERE id = ? AND owner = ?", (conversation, owner))
        if found.fetchone() is None:
            raise HistoryError("there is no such conversation in your history; it may have been deleted")
