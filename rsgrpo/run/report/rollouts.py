"""Recorded groups as the page shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.run.recorder import RecordedGroup, RecordedReward, RecordedRollout
from rsgrpo.run.report.pictures import embed_pictures
from rsgrpo.text.sections import ParsedResponse, parse_response

_BUDGET_CHARACTERS = 2_500_000  # of JSON; the whole report stays below 8 MB
_MAX_EVALUATED = 24  # questions shown of each evaluation, the same ones at every point
_MAX_IMAGES = 600
_MAX_WEIGHT = 1e300  # of settings that are shown as they stand in a file


def collect_rollouts(
    groups: Sequence[RecordedGroup],
    reward_settings: Mapping[str, Any],
    run_folder: Path,
    rules: ImageRules,
    response_format: ResponseFormat = EVISRAG,
) -> dict[str, Any]:
    """Choose groups that fit, and describe them.

    Args:
        groups: all groups that were recorded.
        reward_settings: ``rewards`` of the config, by name; weights and scopes are shown.
        run_folder: where moved images are looked for.
        rules: how the run read its images.
        response_format: the sections that the run declared.

    Returns:
        An object with ``sections`` (their names, in the order of their colours), ``rewards`` (name, weight, scope),
        ``images`` (data URIs), ``groups``, and ``omitted``, the number of recorded groups that are not shown.
    """
    chosen = _within_budget(_choose(groups), response_format)
    pictures = embed_pictures([image for group in chosen for image in group.images][:_MAX_IMAGES], run_folder, rules)
    numbers = {image: number for number, image in enumerate(pictures)}
    names = list(
        dict.fromkeys(
            r.name for g in chosen for rollout in g.rollouts if rollout.positive_weights for r in rollout.rewards
        )
    )
    documents = []
    for group in chosen:
        document = _group_document(group, response_format)
        called = group.page_numbers or range(1, len(group.images) + 1)
        document["images"] = [
            {"path": image.path, "picture": numbers.get(image), "number": number}
            for image, number in zip(group.images, called, strict=False)
        ]
        documents.append(document)
    return {
        "sections": list(response_format.names),
        "rewards": [_reward_settings(name, reward_settings.get(name)) for name in names],
        "images": list(pictures.values()),
        "groups": documents,
        "omitted": len(groups) - len(chosen),
    }


def _choose(groups: Sequence[RecordedGroup]) -> list[RecordedGroup]:
    """All training groups, and the first questions of every evaluation."""
    evaluated: dict[tuple[str, int], int] = {}
    chosen = []
    for group in groups:
        if any(rollout.positive_weights for rollout in group.rollouts):
            chosen.append(group)
            continue
        place = (group.stage, group.step)
        evaluated[place] = evaluated.get(place, 0) + 1
        if evaluated[place] <= _MAX_EVALUATED:
            chosen.append(group)
    return chosen


def _within_budget(groups: list[RecordedGroup], response_format: ResponseFormat) -> list[RecordedGroup]:
    """Leave out every second group until the rest fits; first and last steps stay."""
    sizes = {id(group): len(json.dumps(_group_document(group, response_format))) for group in groups}
    while len(groups) > 1 and sum(sizes[id(group)] for group in groups) > _BUDGET_CHARACTERS:
        last = groups[-1]
        groups = groups[::2]
        if groups[-1] is not last:
            groups[-1] = last
    return groups


def _reward_settings(name: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {"name": name, "weight": 1.0, "scope": ""}
    weight = settings.get("weight")
    shown = float(weight) if isinstance(weight, int | float) and abs(weight) < _MAX_WEIGHT else 1.0
    return {"name": name, "weight": shown, "scope": _scope_text(settings.get("scope"))}


def _scope_text(scope: Any) -> str:
    if not isinstance(scope, Mapping):
        return ""
    if scope.get("pattern"):
        return f"every {scope['pattern']}" + (f" in section {scope['section']}" if scope.get("section") else "")
    if scope.get("section"):
        return f"section {scope['section']}"
    if scope.get("evidence_line"):
        return "each image's evidence line"
    return f"{scope.get('start', '')} … {scope.get('stop', '')}"


def _group_document(group: RecordedGroup, response_format: ResponseFormat) -> dict[str, Any]:
    return {
        "stage": group.stage,
        "step": group.step,
        "id": group.sample_id,
        "question": group.question,
        "answers": list(group.answers),
        "gold": group.gold_response,
        "goldSections": _sections(parse_response(group.gold_response, response_format)),
        "isSufficient": group.is_sufficient,
        "scopeTokens": dict(group.scope_tokens),
        "rollouts": [_rollout_document(rollout, response_format, group) for rollout in group.rollouts],
    }


def _rollout_document(
    rollout: RecordedRollout, response_format: ResponseFormat, group: RecordedGroup
) -> dict[str, Any]:
    # A record may be of a run whose settings are gone: what it opened need not be declared.
    opened = group.opened_section
    parsed = parse_response(rollout.text, response_format, opened if opened in response_format.names else "")
    return {
        "index": rollout.response_index,
        "text": rollout.text,
        "sections": _sections(parsed),
        "finish": rollout.finish_reason,
        "version": rollout.policy_version,
        "starts": list(rollout.token_char_starts),
        "rewards": [_reward_document(reward, group.page_numbers) for reward in rollout.rewards],
        "positive": list(rollout.positive_weights),
        "negative": list(rollout.negative_weights),
    }


def _reward_document(reward: RecordedReward, page_numbers: Sequence[int]) -> dict[str, Any]:
    is_numbered = 0 <= reward.image_index < len(page_numbers)
    return {
        "name": reward.name,
        "image": page_numbers[reward.image_index] if is_numbered else reward.image_index + 1,
        "value": reward.value,
        "advantage": reward.advantage,
        "found": reward.scope_found,
        "spans": [[span.start, span.stop] for span in reward.spans],
    }


def _sections(parsed: ParsedResponse) -> list[list[Any]]:
    """Name, first character and end of each section, every time it stands in the text."""
    return [[name, section.start, section.stop] for name in parsed.format.names for section in parsed.all_of(name)]
