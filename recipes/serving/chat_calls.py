"""Reading a call of ``/v1/chat/completions``: the question, the turns before it, the images that come along.

What OpenAI's API has beside that is of three kinds: how tokens are drawn, which is the server's and passed over; what
this server cannot do, which is refused; and what says no more than that, which is taken.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.serving.answers import MOST_PAGES, VisitorQuestion
from recipes.serving.refusals import RefusedError
from recipes.serving.requests import Fields
from rsgrpo.answering.records import EarlierTurn, LookedAtPage
from rsgrpo.data.images.kinds import describe_non_image
from rsgrpo.data.inline_media import media_suffix
from rsgrpo.errors import shown
from rsgrpo.types import ImageRef

MOST_BYTES = 64 << 20
"""The longest body of a call, its images included."""

_MOST_EARLIER = 3
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".gif", ".webp", ".bmp"})
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NOT_DONE = ("tools", "functions", "audio", "prediction", "logit_bias", "logprobs", "top_logprobs")
_ONLY: Mapping[str, tuple[object, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
}
_NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_WHOLE_NUMBERS = ("max_tokens", "max_completion_tokens", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """A chat completion that is asked for.

    Attributes:
        key: the completion's id.
        question: the question.
        is_streamed: whether the answer comes in pieces.
        has_usage: whether a stream ends with the tokens that it took.
    """

    key: str
    question: VisitorQuestion
    is_streamed: bool
    has_usage: bool


def read_call(body: Mapping[str, Any], folder: Path) -> ChatCall:
    """Read a call.

    Args:
        body: the JSON of the call.
        folder: the folder that images which it brings are written into.

    Raises:
        RefusedError: it asks for what there is not.
    """
    fields = Fields(body)
    _check_options(fields, body)
    *before, last = _messages(body)
    options = body.get("stream_options")
    text, given = _content(last, folder)
    question = VisitorQuestion(
        text=text,
        num_pages=fields.number("num_pages", 5),
        documents=fields.texts("documents"),
        by=fields.search_by(),
        given=given,
        earlier=_earlier(before),
    )
    return ChatCall(
        key=f"chatcmpl-{secrets.token_hex(12)}",
        question=question,
        is_streamed=fields.flag("stream"),
        has_usage=isinstance(options, dict) and Fields(options).flag("include_usage"),
    )


def _check_options(fields: Fields, body: Mapping[str, Any]) -> None:
    """Refuse what is not done, and values of the wrong type also where they would not be heeded.

    Raises:
        RefusedError: it is not done, or of the wrong type.
    """
    for name in _NOT_DONE:
        if body.get(name):
            raise RefusedError(f"{name} is not something that this server does; leave it out")
    for name, values in _ONLY.items():
        if body.get(name) is not None and body[name] not in values:
            told = " or ".join(map(json.dumps, values))
            raise RefusedError(f"{name} can only be {told} with this server; leave it out")
    if fields.number("n", 1) != 1:
        raise RefusedError("n must be 1: a question gets one answer")
    for name in _WHOLE_NUMBERS:
        fields.number(name, 0)
    for name in _NUMBERS:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RefusedError(f"{name} must be a number")
    stop = body.get("stop")
    if stop is not None and not isinstance(stop, str):
        fields.texts("stop")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RefusedError("stream_options must be an object")


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise RefusedError("messages is missing; send a list of messages, of which the last is the question")
    for message in messages:
        if message.get("role") not in _ROLES:
            raise RefusedError(
                f"a message's role is {shown(message.get('role'), 40)!r}; it must be one of {', '.join(_ROLES)}"
            )
    if messages[-1]["role"] != "user":
        raise RefusedError("the last message must be the user's: it is the question")
    return messages


def _content(message: Mapping[str, Any], folder: Path | None) -> tuple[str, tuple[LookedAtPage, ...]]:
    """Read a message's text and its images, which are written into the folder; None: images are passed over."""
    content = message.get("content")
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RefusedError("a message's content must be a text or a list of parts")
    texts: list[str] = []
    pages: list[LookedAtPage] = []
    for part in content:
        kind = part.get("type")
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            texts.append(part[kind])
        elif kind == "image_url":
            if folder is not None:
                pages.append(_page(part.get("image_url"), folder, len(pages) + 1))
        else:
            raise RefusedError("a part of a message must be of the type text or image_url")
    return "\n".join(texts), tuple(pages)


def _page(address: object, folder: Path, number: int) -> LookedAtPage:
    """Write an image that stands in a message to a file; nothing is fetched from anywhere."""
    url = address.get("url") if isinstance(address, dict) else address
    if number > MOST_PAGES:
        raise RefusedError(f"a question is answered from {MOST_PAGES} pages at most; give fewer")
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:200]:
        raise RefusedError("an image must come along as data:image/png;base64,…; this server fetches none")
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(f"image {number} is no base64") from None
    suffix = media_suffix(data)
    if suffix not in _IMAGE_SUFFIXES:
        raise RefusedError(f"image {number} is {describe_non_image(data)[0]}; send PNG or JPEG", 415)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{number}{suffix}"
    file.write_bytes(data)
    name = f"image {number}"
    return LookedAtPage(
        number=number, page_id=name, document=name, page_number=1, image=ImageRef(path=name, file=str(file))
    )


def _earlier(messages: list[Mapping[str, Any]]) -> tuple[EarlierTurn, ...]:
    """Read the turns of a conversation; what the system, a developer or a tool says is passed over."""
    turns: list[EarlierTurn] = []
    question = ""
    for message in messages:
        if message["role"] == "user":
            question = _content(message, None)[0]
        elif message["role"] == "assistant" and question and message.get("content") is not None:
            # Which pages the turn was about does not stand in the call.
            turns.append(EarlierTurn(question=question, response=_content(message, None)[0], pages={}))
            question = ""
    return tuple(turns[-_MOST_EARLIER:])
