"""A conversation as a file to keep: Markdown for people, JSON for programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from recipes.serving.history import HistoryTurn

_STATES = {"asking": "is being answered", "stopped": "was stopped", "failed": "could not be answered"}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~])")
_LINE_START = re.compile(r"^(\s*\d*)([-+=.)])", re.MULTILINE)


def turn_json(turn: HistoryTurn) -> dict[str, object]:
    """Write a question of the history as JSON.

    Args:
        turn: the question.
    """
    return {
        "number": turn.number,
        "question": turn.question,
        "state": turn.state,
        "answer": turn.answer,
        "problem": turn.problem,
        "asked": turn.asked,
    }


def markdown_export(turns: Sequence[HistoryTurn]) -> str:
    """Write a conversation as Markdown; what people, pages and model wrote stays text in it.

    Args:
        turns: the questions, oldest first.
    """
    return "\n\n".join(_turn_markdown(turn) for turn in turns) + "\n"


def _turn_markdown(turn: HistoryTurn) -> str:
    asked = datetime.fromtimestamp(turn.asked, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"## {_plain(' '.join(turn.question.split()))}", f"Asked {asked}."]
    answer = turn.answer
    if answer is None:
        state = f"It {_STATES.get(turn.state, turn.state)}"
        parts.append(f"{state}: {_plain(turn.problem)}." if turn.problem else f"{state}.")
        return "\n\n".join(parts)
    if answer.get("is_insufficient"):
        parts.append("**The pages are insufficient to answer.**")
    parts.append(_plain(str(answer.get("answer", ""))))
    pages = {page["number"]: page for page in answer.get("pages", ())}
    lines = [
        f"- {_source(pages.get(evidence['number']), evidence['number'])}: {_plain(evidence['text'])}"
        for evidence in answer.get("evidence", ())
        if evidence.get("is_relevant")
    ]
    if lines:
        parts += ["### Evidence", "\n".join(lines)]
    looked_at = [f"{number}. {_source(page, number)}" for number, page in sorted(pages.items())]
    if looked_at:
        parts += ["### Pages looked at", "\n".join(looked_at)]
    return "\n\n".join(parts)


def _source(page: Mapping[str, Any] | None, number: int) -> str:
    if page is None:
        return f"page [{number}], which there is not"
    return f"{_plain(str(page['document']))}, page {page['page_number']}"


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup."""
    escaped = _MARKUP.sub(r"\\\1", text)
    return _LINE_START.sub(r"\1\\\2", escaped)
