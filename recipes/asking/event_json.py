"""Events of an answer as plain values, for ``--json`` and for whoever sends them over a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rsgrpo.answering.records import Answered, AnswerEvent, LookedAtPage, PagesChosen


def event_json(event: AnswerEvent) -> dict[str, Any]:
    """Turn an event into what JSON can hold.

    Args:
        event: the event.

    Returns:
        Its fields, and under ``event`` its kind: ``pages``, ``text`` or ``answer``. No path of this machine is in it
        but those that the user gave.

    Example:
        ``SectionText(section="answer", text="12")`` gives ``{"event": "text", "section": "answer", "text": "12"}``.
    """
    if isinstance(event, PagesChosen):
        return {
            "event": "pages",
            "pages": [page_json(page) for page in event.pages],
            "seconds": event.seconds,
            "remarks": list(event.remarks),
        }
    if isinstance(event, Answered):
        own: Mapping[str, Any] = {
            field.name: getattr(event, field.name)
            for field in dataclasses.fields(event)
            if field.name not in ("pages", "evidence", "spent", "sections", "problems")
        }
        return {
            "event": "answer",
            **own,
            "sections": dict(event.sections),
            "evidence": [dataclasses.asdict(line) for line in event.evidence],
            "pages": [page_json(page) for page in event.pages],
            "problems": list(event.problems),
            "spent": dataclasses.asdict(event.spent),
        }
    return {"event": "text", "section": event.section, "text": event.text}


def page_json(page: LookedAtPage) -> dict[str, Any]:
    """Turn a page into what JSON can hold; where its image lies is left out.

    Args:
        page: the page.
    """
    return {field.name: getattr(page, field.name) for field in dataclasses.fields(page) if field.name != "image"}
