"""From a scope in the settings to the response tokens that a reward may touch.

A scope is first a range of characters, then a range of tokens: a token belongs to the range that holds
its first character, so two ranges that meet share no token and lose none. The end-of-sequence token has
no character; it belongs to every scope that runs to the end of the response. Two scopes may have several ranges:
``{section: look}`` of a repeatable section covers every one of them, ``{pattern: box}`` the tokens of every written
box (``rewards.boxes``), from bracket to bracket. A tag in ``{start, stop}`` is the first of its kind, and one that the
prompt wrote stands in front of the first token.

Absent scopes. Where a scope's tag does not stand in the response, ``on_missing: skip`` gives no tokens.
``on_missing: whole`` is the rule of the public code, and what ``compat: upstream`` is to be used with: an
absent start tag widens the scope to the beginning, an absent stop tag to the end, each on its own side.
An absent section, box or evidence line widens to the whole response. In both modes tags in reversed order
leave no tokens, and ``found`` says whether the scope really stood there.

A line that is left out has no tokens that could be blamed for it but one: with ``skip`` the scope of an absent evidence
line is the tag that closes the section without it. Else a policy that is blamed for wrong lines learns to write none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rewards.boxes import response_boxes
from rsgrpo.config import ResponseFormat, ScopeConfig
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import IntArray, ResponseKey, ScoredGroup, TokenSpan


@dataclass(frozen=True, kw_only=True, slots=True)
class ScopeRequest:
    """A scope as one reward uses it; ``on_missing`` is ``skip`` or ``whole``."""

    scope: ScopeConfig
    on_missing: str = "skip"


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedScope:
    """The tokens at which a scope stands.

    Attributes:
        spans: the ranges of response tokens in the scope; empty where the scope is absent, but for evidence lines.
        found: whether all tags of the scope stood in the response, in order.
        image_index: the 0-based image of an evidence line, else -1.
    """

    spans: tuple[TokenSpan, ...]
    found: bool
    image_index: int = -1


# pairs of start and stop characters, found, image index
_Range = tuple[tuple[tuple[int, int], ...], bool, int]


def locate_scopes(
    requests: Sequence[ScopeRequest], parsed: ParsedResponse, token_char_starts: IntArray, num_images: int
) -> list[tuple[LocatedScope, ...]]:
    """The tokens of all scopes of one response, with a single search over its offsets.

    Args:
        requests: the scopes to locate.
        parsed: the response, cut into its sections.
        token_char_starts: [R] int32, see ``Rollout``.
        num_images: how many entries an ``evidence_line`` scope gives.

    Returns:
        For each request a tuple of one entry, for an ``evidence_line`` scope of one entry per image, in order.

    Raises:
        ConfigError: a scope names a section that is not declared.

    Example:
        In ``"<think>t</think>"`` with tokens that start at 0, 6, 7, 8, 14, 16 (the last one the end of
        sequence), the scope ``{start: <think>, stop: </think>}`` is tokens [0, 3).
    """
    ranges: list[_Range] = []
    counts: list[int] = []
    for request in requests:
        is_whole = request.on_missing == "whole"
        if request.scope.evidence_line:
            ranges.extend(_line_ranges(parsed, num_images, is_whole))
            counts.append(num_images)
        elif request.scope.pattern:
            ranges.append(_pattern_range(parsed, request.scope, is_whole))
            counts.append(1)
        elif request.scope.section:
            ranges.append(_section_range(parsed, request.scope.section, is_whole))
            counts.append(1)
        else:
            ranges.append(_tag_range(parsed, request.scope, is_whole))
            counts.append(1)
    edges = np.array([edge for item in ranges for pair in item[0] for edge in pair], dtype=token_char_starts.dtype)
    tokens: list[int] = np.searchsorted(token_char_starts, edges).tolist()
    spans = zip(tokens[::2], tokens[1::2], strict=True)
    located = [
        LocatedScope(
            spans=tuple(TokenSpan(start=start, stop=stop) for start, stop in islice(spans, len(pairs)) if start < stop),
            found=found,
            image_index=image_index,
        )
        for pairs, found, image_index in ranges
    ]
    result = []
    first = 0
    for count in counts:
        result.append(tuple(located[first : first + count]))
        first += count
    return result


def section_spans(
    groups: Sequence[ScoredGroup], response_format: ResponseFormat
) -> dict[ResponseKey, dict[str, tuple[TokenSpan, ...]]]:
    """The tokens of every section of each response, tags included; those of an absent section are none.

    Args:
        groups: the groups whose responses are taken apart.
        response_format: the declared sections.
    """
    requests = [ScopeRequest(scope=ScopeConfig(section=name)) for name in response_format.names]
    found: dict[ResponseKey, dict[str, tuple[TokenSpan, ...]]] = {}
    for group in groups:
        for scored in group.rollouts:
            rollout = scored.rollout
            parsed = parse_response(rollout.text, response_format, group.prompt.opened_section)
            located = locate_scopes(requests, parsed, rollout.token_char_starts, len(group.sample.images))
            found[scored.key] = {
                name: places[0].spans for name, places in zip(response_format.names, located, strict=True)
            }
    return found


def _end(parsed: ParsedResponse) -> int:
    """A character offset behind every token's, so that the end-of-sequence token lies in front of it."""
    return len(parsed.text) + 1


def _absent(parsed: ParsedResponse, is_whole: bool, image_index: int = -1) -> _Range:
    return ((0, _end(parsed)),) if is_whole else (), False, image_index


def _closing_edge(parsed: ParsedResponse, stop: int) -> int:
    """The given stop; behind the end-of-sequence token where it is the end of the text."""
    return _end(parsed) if stop == len(parsed.text) else stop


def _tag_range(parsed: ParsedResponse, scope: ScopeConfig, is_whole: bool) -> _Range:
    start = 0 if scope.start == "begin" else parsed.tag_start(scope.start)
    stop = _end(parsed) if scope.stop == "end" else parsed.tag_start(scope.stop)
    found = start >= 0 and stop >= 0
    if not found and not is_whole:
        return (), False, -1
    start = max(start, 0)
    stop = stop if stop >= 0 else _end(parsed)
    return ((start, stop),), found and start <= stop, -1


def _section_range(parsed: ParsedResponse, name: str, is_whole: bool) -> _Range:
    """Ranges of characters at which the section stands: one, unless it is repeatable."""
    ranges = tuple((section.start, _closing_edge(parsed, section.stop)) for section in parsed.all_of(name))
    return (ranges, True, -1) if ranges else _absent(parsed, is_whole)


def _pattern_range(parsed: ParsedResponse, scope: ScopeConfig, is_whole: bool) -> _Range:
    """Ranges of characters of every box; the end of sequence is never part of one."""
    boxes = response_boxes(parsed, scope.section)
    return (tuple((box.start, box.stop) for box in boxes), True, -1) if boxes else _absent(parsed, is_whole)


def _line_ranges(parsed: ParsedResponse, num_images: int, is_whole: bool) -> list[_Range]:
    lines = parsed.first_lines()
    closing = () if is_whole else _closing_tag(parsed, parsed.format.lines_section)
    ranges: list[_Range] = []
    for image_index in range(num_images):
        line = lines.get(image_index)
        if line is None:
            ranges.append((closing, False, image_index) if closing else _absent(parsed, is_whole, image_index))
        else:
            ranges.append((((line.start, _closing_edge(parsed, line.stop)),), True, image_index))
    return ranges


def _closing_tag(parsed: ParsedResponse, name: str) -> tuple[tuple[int, int], ...]:
    """The characters of the tag that closes the section, of a repeatable one the last; none where nothing does."""
    closed = [section for section in parsed.all_of(name) if section.is_closed] if name else []
    return ((closed[-1].content_stop, _closing_edge(parsed, closed[-1].stop)),) if closed else ()
