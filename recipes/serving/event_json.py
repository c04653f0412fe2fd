"""Answers as JSON, for the page in the browser, for programs and for the history; no path of the server is in it."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import Any

from recipes.serving.refusals import RefusedError
from rsgrpo.answering.records import Answered, LookedAtPage, PageEvidence, PagesChosen, SectionText

Json = dict[str, Any]


def page_key(page_id: str) -> str:
    """Make of a page's id what can stand in an address.

    Args:
        page_id: the id of the page in its index.

    Example:
        ``page_key("a.pdf#1")`` is ``"YS5wZGYjMQ"``.
    """
    return base64.urlsafe_b64encode(page_id.encode()).decode().rstrip("=")


def page_id_of(key: str) -> str:
    """Read the id of a page off an address.

    Args:
        key: what :func:`page_key` made.

    Raises:
        RefusedError: it made no such thing.
    """
    try:
        return base64.b64decode(key + "=" * (-len(key) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise RefusedError("there is no such page; take its address from an answer", 404) from None


def page_json(page: LookedAtPage) -> Json:
    """Write a page that was looked at as JSON.

    Args:
        page: the page.
    """
    key = page_key(page.page_id)
    return {
        "number": page.number,
        "key": key,
        "document": page.document,
        "page_number": page.page_number,
        "title": page.title,
        "score": page.score,
        "relevance": page.relevance,
        "is_shown": page.is_shown,
        "image": f"/api/pages/{key}.png",
    }


def pages_json(event: PagesChosen) -> Json:
    """Write the pages of an answer as JSON.

    Args:
        event: the pages.
    """
    return {
        "pages": [page_json(page) for page in event.pages],
        "seconds": event.seconds,
        "remarks": list(event.remarks),
    }


def section_json(event: SectionText) -> Json:
    """Write a piece of an answer as JSON.

    Args:
        event: the piece.
    """
    return {"section": event.section, "text": event.text}


def evidence_json(evidence: PageEvidence) -> Json:
    """Write what an answer says of a page as JSON.

    Args:
        evidence: what it says.
    """
    return {"number": evidence.number, "text": evidence.text, "is_relevant": evidence.is_relevant}


def answer_json(answer: Answered) -> Json:
    """Write an answer as JSON.

    Args:
        answer: the answer.
    """
    return {
        "question": answer.question,
        "answer": answer.answer,
        "response": answer.response,
        "sections": dict(answer.sections),
        "evidence": [evidence_json(evidence) for evidence in answer.evidence],
        "pages": [page_json(page) for page in answer.pages],
        "is_insufficient": answer.is_insufficient,
        "is_cut": answer.is_cut,
        "spent": dataclasses.asdict(answer.spent),
        "problems": list(answer.problems),
    }
