"""Which documents a visitor sees: with sessions those of all and its own, which lie in a folder of its name."""

from __future__ import annotations

import re

from recipes.serving.access import Visitor

_OWN_FOLDER = re.compile(r"~[0-9a-f]{24}/")


def own_folder(visitor: Visitor) -> str:
    """Name the folder of a visitor's own documents.

    Args:
        visitor: the visitor.
    """
    return f"~{visitor.name}"


def is_visible(document: str, visitor: Visitor, *, has_sessions: bool) -> bool:
    """Whether a visitor sees a document.

    Args:
        document: the name of the document in the index.
        visitor: the visitor.
        has_sessions: whether visitors have documents of their own.
    """
    is_of_somebody = has_sessions and _OWN_FOLDER.match(document) is not None
    return not is_of_somebody or is_own(document, visitor)


def is_own(document: str, visitor: Visitor) -> bool:
    """Whether a document is a visitor's own.

    Args:
        document: the name of the document in the index.
        visitor: the visitor.
    """
    return visitor.has_session and document.startswith(f"{own_folder(visitor)}/")


def shown_document(document: str) -> str:
    """Name a document as its owner knows it, without the folder of the owner's session.

    Args:
        document: the name of the document in the index.

    Example:
        ``shown_document("~0123456789abcdef01234567/plot.pdf")`` is ``"plot.pdf"``.
    """
    return _OWN_FOLDER.sub("", document, count=1) if _OWN_FOLDER.match(document) else document
