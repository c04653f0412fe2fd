"""Conversations as chat formats write them: ShareGPT's ``from``/``value``, OpenAI's and the hub's ``role``/``content``.

Content may be a text or a list of parts (text, image, video); what parts refer to joins the record's own lists.
Calls of functions and their results become what Qwen2.5 writes for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rsgrpo.data.readers.fields import written_list
from rsgrpo.data.readers.findings import BadRecordError, Remark
from rsgrpo.data.readers.formats import likely_format
from rsgrpo.errors import shown
from rsgrpo.types import IMAGE_MARKER, Turn

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    "function_call": "assistant",
    **dict.fromkeys(("observation", "tool", "function"), "user"),
}
"""The role here (``system``, ``user`` or ``assistant``) of each role of the chat formats; LLaMA-Factory maps those of
functions in the same way."""

_CALL_ROLE = "function_call"
_RESULT_ROLES = ("observation", "tool", "function")
_PLAIN_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_LIST_KEYS = ("messages", "conversations", "conversation")
_TEXT_TYPES = ("text", "input_text", "output_text")
_MEDIA = {"image": IMAGE_MARKER, "video": "<video>", "audio": "<audio>"}
_REFERENCE_KEYS = ("image", "image_url", "video", "video_url", "audio", "input_audio", "audio_url")
_PLACE_KEYS = ("path", "url", "base64", "bytes", "data", "source", "file", "b64_json")


_LEARNED_KEYS = ("weight", "loss", "train")
"""The keys with which OpenAI, ms-swift and axolotl say that an answer is not to be learned."""
_REASONING_KEYS = ("reasoning_content", "reasoning")


def chat(record: Mapping[str, Any], remark: Remark) -> tuple[list[Turn], Mapping[str, Any]]:
    """The conversation of a record.

    Args:
        record: a record with ``messages`` or ``conversations``, one of which may be null.
        remark: is told of what is left out: a first turn that is an answer, reasoning beside an answer.

    Returns:
        The turns (a system turn if there is one, then question and answer in turn); and the record, with the media that
        parts of the content refer to in ``images`` and ``videos``, in the order of their markers.

    Raises:
        BadRecordError: there is no conversation, a role or part is not known, or turns do not take turns.

    Example:
        The content ``[{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]`` becomes the text
        ``<image>What?`` and the record's images ``["a.png"]``.
    """
    found: dict[str, list[object]] = {name: [] for name in _MEDIA}
    turns: list[Turn] = []
    was_result = False
    for given in _given(record):
        role = given.get("from") if type(given) is dict else None
        if type(role) is str and role in _PLAIN_ROLES and len(given) == 2 and type(given.get("value")) is str:
            turns.append(Turn(role=_PLAIN_ROLES[role], text=given["value"]))  # nearly all of ten millions
            was_result = False
            continue
        role, text = _read(given, found)
        for key in _REASONING_KEYS:
            if given.get(key):
                remark("reasoning left out", f"a turn has {key} beside its content; only the content is learned")
        is_result = role in _RESULT_ROLES
        if is_result and was_result:  # results of several calls at once are one turn
            turns[-1] = Turn(role="user", text=f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(role=ROLES[role], text=text))
        was_result = is_result
    tools = record.get("tools")
    if tools and tools != "[]":
        turns = _with_tools(turns, tools, record.get("system"))
    _check_order(turns, record, remark)
    return turns, _with_media(record, found) if any(found.values()) else record


def _given(record: Mapping[str, Any]) -> Sequence[Any]:
    for key in _LIST_KEYS:
        given = written_list(record.get(key))
        if isinstance(given, list) and given:
            return given
    key = next((key for key in _LIST_KEYS if record.get(key) is not None), "")
    if key:
        given = record[key]
        detail = f"{key} must be a list of turns, got {type(given).__name__} {given!r:.80}"
        raise BadRecordError("wrong type", detail)
    names = shown(", ".join(map(str, record)) or "nothing", 120)
    raise BadRecordError(
        "wrong type", f"it has neither conversations nor messages (it has {names}){likely_format(record, 'sharegpt')}"
    )


def _read(given: Any, found: dict[str, list[object]]) -> tuple[str, str]:
    """Role as written and text of a turn; media of its parts are added to ``found``."""
    if not isinstance(given, dict):
        raise BadRecordError("wrong type", f"a turn must be an object, got {type(given).__name__} {given!r:.80}")
    role_key = "from" if given.get("from") is not None else "role"
    role = given.get(role_key)
    if isinstance(role, str) and role not in ROLES:
        role = role.strip().lower()
    if not isinstance(role, str) or role not in ROLES:
        raise BadRecordError("role", f"{role_key}={role!r:.40} is not known; expected one of {', '.join(ROLES)}")
    if ROLES[role] == "assistant":
        _check_learned(given)
    content = given.get("value") if given.get("value") is not None else given.get("content")
    calls = given.get("tool_calls") or ([given["function_call"]] if given.get("function_call") else [])
    if isinstance(content, str):
        text = content
    elif isinstance(content, (list, dict)) and content and role not in (_CALL_ROLE,):
        text = _parts(content if isinstance(content, list) else [content], found)
    elif content is None and calls:
        text = ""
    elif role == _CALL_ROLE and content:
        text = json.dumps(content, ensure_ascii=False)
    else:
        text_key = "value" if role_key == "from" else "content"
        raise BadRecordError("wrong type", f"a turn must hold the text {text_key!r}, got {given!r:.80}")
    if calls:
        return role, "\n".join(([text] if text else []) + [_call(call) for call in _as_list(calls)])
    if role == _CALL_ROLE:
        return role, "\n".join(_call(call) for call in _as_list(_parsed(text)))
    if role in _RESULT_ROLES:
        return role, f"<tool_response>\n{text}\n</tool_response>"
    return role, text


def _check_learned(turn: Mapping[str, Any]) -> None:
    """Refuse a turn that says that nothing shall be learned from it: every answer of a conversation is learned here."""
    for key in _LEARNED_KEYS:
        value = turn.get(key)
        if isinstance(value, bool | int | float) and not value:
            raise BadRecordError(
                "turn not to be learned",
                f"a turn says {key}={value!r}, but every answer of a conversation is learned from; end the "
                "conversation in front of it, or leave the record out",
            )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("function call", f"a function call must be JSON, got {text!r:.80}") from error


def _call(value: Any) -> str:
    """The text of a call of a function, as Qwen2.5 writes it."""
    call = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRecordError("function call", f"a function call must have name and arguments, got {value!r:.80}")
    arguments = call.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    written = json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _with_tools(turns: list[Turn], tools: Any, system: Any) -> list[Turn]:
    """The turns with a system turn that tells what functions there are, as Qwen2.5's chat template does."""
    given = _parsed(tools) if isinstance(tools, str) else tools
    lines = []
    for tool in _as_list(given):
        if not isinstance(tool, dict):
            raise BadRecordError("tools", f"tools must hold objects, got {tool!r:.80}")
        wrapped = tool if "function" in tool else {"type": "function", "function": tool}
        lines.append(json.dumps(wrapped, ensure_ascii=False))
    about = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        "function signatures within <tools></tools> XML tags:\n<tools>\n"
        + "\n".join(lines)
        + "\n</tools>\n\nFor each function "
        "call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
    if turns and turns[0].role == "system":
        return [Turn(role="system", text=f"{turns[0].text}\n\n{about}"), *turns[1:]]
    said = system if isinstance(system, str) and system else "You are a helpful assistant."
    return [Turn(role="system", text=f"{said}\n\n{about}"), *turns]


def _parts(parts: Sequence[Any], found: dict[str, list[object]]) -> str:
    """The text of a content that is a list, a marker where an image or video stands."""
    pieces: list[str] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise BadRecordError("content", f"a part of the content must be an object, got {part!r:.80}")
        given = {key: value for key, value in part.items() if value is not None}
        kind = given.get("type") or next((key for key in ("text", *_REFERENCE_KEYS) if key in given), "")
        if kind in _TEXT_TYPES and isinstance(given.get("text"), str):
            pieces.append(given["text"])
            texts.append(given["text"])
            continue
        medium = next((name for name in _MEDIA if name in str(kind)), "")
        if not medium:
            raise BadRecordError(
                "content", f"a part of type {kind!r:.40} is not known; expected {', '.join(_TEXT_TYPES)}, image, video"
            )
        found[medium].append(_reference(given))
        pieces.append(_MEDIA[medium])
    if len(texts) < len(pieces) and any(marker in text for text in texts for marker in _MEDIA.values()):
        raise BadRecordError("markers", "a text part holds a marker such as <image> beside parts that are images")
    return "".join(pieces)


def _reference(part: Mapping[str, Any]) -> object:
    """What a part refers to: a path, an address, an object with bytes, an index into the record's list, or None."""
    for key in _REFERENCE_KEYS:
        if key in part:
            return part[key]
    if "file_id" in part:
        raise BadRecordError("content", "a part refers to a file of OpenAI's by file_id; write its path or its bytes")
    holder = {key: part[key] for key in _PLACE_KEYS if key in part}
    if holder:
        return holder
    index = part.get("index")
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _with_media(record: Mapping[str, Any], found: Mapping[str, list[object]]) -> Mapping[str, Any]:
    """The record with what its parts refer to in its lists; a part without a reference takes the next of its list."""
    changed = dict(record)
    for name, references in found.items():
        if not references:
            continue
        key = next((field_name for field_name in (f"{name}s", name) if record.get(field_name) not in (None, [])), "")
        listed = _as_list(record[key]) if key else []
        if all(reference is None for reference in references):
            continue
        if all(isinstance(reference, int) for reference in references) and listed:
            numbers = [reference for reference in references if isinstance(reference, int)]
            if not all(0 <= number < len(listed) for number in numbers):
                raise BadRecordError("content", f"parts name the {name}s {numbers!r:.60}, but it lists {len(listed)}")
            values: list[object] = [listed[number] for number in numbers]
        elif any(reference is None or isinstance(reference, int) for reference in references):
            raise BadRecordError("content", f"some of its {name} parts say which {name} they are, some do not")
        elif listed and listed != references:
            raise BadRecordError("content", f"its parts and its {key!r} both name {name}s, not the same; keep one")
        else:
            values = references
        changed.pop(name, None)
        changed[f"{name}s"] = values
    return changed


def _check_order(turns: list[Turn], record: Mapping[str, Any], remark: Remark) -> None:
    """Check that question and answer take turns; an answer that comes first is taken out."""
    roles = [turn.role for turn in turns]
    start = 1 if roles[0] == "system" else 0
    if roles[start : start + 1] == ["assistant"]:
        remark("first turn is an answer", "it is left out, as LLaVA does")
        del turns[start], roles[start]
    talk = roles[start:]
    if not talk or talk != ["user", "assistant"] * ((len(talk) + 1) // 2):
        why = ""
        if talk and talk == (["user", "assistant"] * len(talk))[: len(talk)]:
            why = "; the last question has no answer" + likely_format(record, "sharegpt")
        raise BadRecordError("turns", f"question and answer must take turns, got {', '.join(roles)[:80]}{why}")
    if not turns[start].text.strip():
        raise BadRecordError("no question", "its first question is blank: nothing is asked; write it, or leave it out")
