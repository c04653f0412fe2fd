"""Reading what a request says: JSON within bounds, values of the right type, a sentence where one is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any, get_args

from starlette.requests import Request

from recipes.indexing.searching import SearchBy
from recipes.serving.access import Visitor
from recipes.serving.refusals import RefusedError
from rsgrpo.errors import shown
from rsgrpo.io.ids import well_formed

MOST_JSON_BYTES = 1 << 20
"""The longest body of a request, the images in it aside, in bytes."""

_IMAGE_MARK = b'"data:image/'
_LARGE_BYTES = 64 << 10  # reading so much takes longer than handing it to a thread

_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def visitor_of(request: Request) -> Visitor:
    """Say who sends a request; the guard has found out.

    Args:
        request: the request.
    """
    visitor: Visitor = request.state.visitor
    return visitor


async def json_body(request: Request, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read the JSON object that a request brings.

    Args:
        request: the request.
        most_bytes: the longest body, in bytes; what is beyond :data:`MOST_JSON_BYTES` must be images as data URLs.

    Returns:
        The object, whose texts can all be written as UTF-8.

    Raises:
        RefusedError: it brings none, or a longer one.
    """
    # A form of another site can send text/plain without asking; JSON it cannot.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(f"the content type is {shown(kind or 'not given', 60)}; send application/json", 415)
    body = bytearray()
    beside_images = BesideImages()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise RefusedError(f"the body is longer than {most_bytes:,} bytes; send less", 413)
        if beside_images.num_bytes(body) > MOST_JSON_BYTES:
            raise RefusedError(f"the body has more than {MOST_JSON_BYTES:,} bytes beside its images; send less", 413)
    return await asyncio.to_thread(_parsed, body) if len(body) > _LARGE_BYTES else _parsed(body)


class BesideImages:
    """Counts the bytes of a growing body that stand in no data URL of an image.

    Such a URL is one text, however long; other JSON of its length would be millions of objects, with many times the
    memory.
    """

    def __init__(self) -> None:
        self._num_bytes = 0
        self._place = 0
        self._is_in_image = False

    def num_bytes(self, body: bytearray) -> int:
        """Count on, up to the end of the body; a mark that it may cut is counted with what comes next.

        Args:
            body: the body so far, which begins as it did at the call before.
        """
        while True:
            found = body.find(b'"' if self._is_in_image else _IMAGE_MARK, self._place)
            if self._is_in_image:
                self._place = len(body) if found < 0 else found
            else:
                end = max(self._place, len(body) - len(_IMAGE_MARK) + 1) if found < 0 else found + len(_IMAGE_MARK)
                self._num_bytes += end - self._place
                self._place = end
            if found < 0 or self._num_bytes > MOST_JSON_BYTES:
                return self._num_bytes
            self._is_in_image = not self._is_in_image


def _parsed(body: bytearray) -> dict[str, Any]:
    try:
        found = _with_well_formed_texts(json.loads(body, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        raise RefusedError("the body is no JSON; send an object") from None
    if not isinstance(found, dict):
        raise RefusedError("the body is no JSON object; send one in braces")
    return found


def _with_well_formed_texts(value: Any) -> Any:
    """The same JSON without halves of characters, which ``\\ud800`` brings and nothing can store or send."""
    if isinstance(value, str):
        return value if value.isascii() else well_formed(value)[0]
    if isinstance(value, list):
        return [_with_well_formed_texts(item) for item in value]
    if isinstance(value, dict):
        return {_with_well_formed_texts(name): _with_well_formed_texts(item) for name, item in value.items()}
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)


class Fields:
    """The values of a JSON object, each checked as it is read.

    Args:
        values: the object.
        known: the names that are known; others are refused. None: any name may stand there.

    Raises:
        RefusedError: a name is not known.
    """

    def __init__(self, values: Mapping[str, Any], known: Collection[str] | None = None) -> None:
        self._values = values
        unknown = sorted(set(values) - set(known)) if known is not None else []
        if unknown:
            raise RefusedError(
                f"there is no field {shown(unknown[0], 60)!r}; there are {', '.join(sorted(known or ()))}"
            )

    def text(self, name: str, default: str | None = None) -> str:
        """Read a text.

        Args:
            name: the field's name.
            default: what holds where there is none; None: there must be one.

        Raises:
            RefusedError: it is missing, or no text.
        """
        value = self._value(name, default, str)
        return str(value)

    def number(self, name: str, default: int) -> int:
        """Read a whole number.

        Args:
            name: the field's name.
            default: what holds where there is none.

        Raises:
            RefusedError: it is no whole number.
        """
        value = self._value(name, default, int)
        if isinstance(value, bool):
            raise RefusedError(f"{name} must be a whole number")
        return int(value)

    def flag(self, name: str) -> bool:
        """Read a value that is true or false; false where there is none.

        Args:
            name: the field's name.

        Raises:
            RefusedError: it is neither.
        """
        return bool(self._value(name, False, bool))

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of texts; empty where there is none.

        Args:
            name: the field's name.

        Raises:
            RefusedError: it is no list of texts.
        """
        value = self._value(name, [], list)
        if not all(isinstance(item, str) for item in value):
            raise RefusedError(f"{name} must be a list of texts")
        return tuple(value)

    def search_by(self) -> SearchBy | None:
        """Read what is searched, from the field ``by``; None where it does not say.

        Raises:
            RefusedError: it is nothing that can be searched.
        """
        given = self.text("by", "")
        found: SearchBy | None = next((by for by in get_args(SearchBy) if by == given), None)
        if given and found is None:
            raise RefusedError(f"by must be one of {', '.join(get_args(SearchBy))}, got {shown(given, 40)!r}")
        return found

    def _value(self, name: str, default: Any, kind: type) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise RefusedError(f"{name} is missing; send it as {_KINDS[kind]}")
            return default
        if not isinstance(value, kind):
            raise RefusedError(f"{name} must be {_KINDS[kind]}")
        return value
