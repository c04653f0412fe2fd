"""How a plan is shown: aligned plain text for people, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.plan.estimate import Estimate, Facts, StageEstimate
from recipes.plan.gpus import PlanError
from recipes.plan.memory import GIB
from recipes.plan.proposals import Proposal
from rsgrpo.config import Config

_NAME_COLUMNS = 36


def plan_lines(config: Config, facts: Facts, found: Estimate, notes: Sequence[str]) -> list[str]:
    """The plan as lines of text.

    Args:
        config: the run's settings.
        facts: what was read of model, data and machine.
        found: the estimate that was computed.
        notes: what to say first, such as how the kind of GPU was chosen.
    """
    model = facts.model(config.model)
    kind = facts.gpu
    lines = [
        f"Plan of {config.name}: stage={config.stage}, {found.gpus} × {kind.name} ({kind.memory_gib:g} GiB)",
        *(f"  {note}" for note in notes),
        f"  model: {model.num_elements / 1e9:.3f}·10⁹ parameters, {model.num_trained / 1e9:.3f}·10⁹ of them trained",
    ]
    for stage in facts.stages:
        data = stage.data
        more = "" if data.is_counted else " and more (not read to the end)"
        lines.append(f"  data of {stage.name}: {len(data.items)} of {data.num_items}{more} samples looked at")
    if found.rank is not None:
        packed = found.rank.packed
        title = f"GPU memory of a rank, its largest sequence {packed.num_tokens:,} tokens"
        lines += ["", title, *_memory(found.rank.parts, found.rank.peak, found.rank.capacity)]
    if found.engine is not None:
        engine = found.engine
        lines += [
            "",
            "GPU memory of an engine, on each of its GPUs",
            *_memory(engine.parts, engine.taken, engine.capacity),
        ]
        lines.append(_line("sequences of the longest kind at a time", f"{engine.cache / max(1, engine.longest):8.1f}"))
        if engine.beside:
            lines.append(_line("the resting trainer beside it", _gib(engine.beside)))
    lines += ["", "Host memory of a node", *(_line(name, _gib(size)) for name, size in found.host.items())]
    for estimate in found.stages:
        lines += ["", *_stage_lines(estimate)]
    lines += ["", "Budgets, the tightest first", *(_line(name, f"{use:8.0%} used") for name, use in found.uses)]
    lines += ["", *_total(config, facts, found)]
    return lines


def _memory(parts: Mapping[str, int], peak: int, capacity: int) -> list[str]:
    lines = [_line(name, _gib(size)) for name, size in parts.items()]
    return [*lines, _line("together", f"{_gib(peak)}   {peak / capacity:.0%} of {capacity / GIB:.1f} GiB")]


def _stage_lines(stage: StageEstimate) -> list[str]:
    lines = [
        f"{stage.name}: {stage.num_steps} steps",
        _line("tokens of a step in the trainer", f"{stage.tokens:12,.0f}"),
    ]
    if stage.sampled_tokens:
        lines.append(_line("sampled tokens of a step", f"{stage.sampled_tokens:12,.0f}"))
    lines.append(_line("micro-batches, fullest rank", f"{stage.packs:12,.1f}"))
    lines.append(_line("longest prompt", f"{stage.longest_prompt:12,d} tokens"))
    lines += [_line(f"{name}, expected", f"{seconds:12,.2f} s") for name, seconds in stage.seconds.items()]
    return [*lines, _line("a step, expected", f"{stage.step_seconds:12,.2f} s")]


def _total(config: Config, facts: Facts, found: Estimate) -> list[str]:
    hours = found.hours * found.gpus
    price = config.plan_for.price_per_gpu_hour
    lines = [
        "Run",
        _line("time, evaluations and refills left out", f"{found.hours:8.1f} h"),
        _line("GPU hours", f"{hours:8.1f}"),
    ]
    if price:
        lines.append(_line(f"cost at {price:g} a GPU hour", f"{hours * price:8.2f}"))
    lines.append(f"  times rest on shares of the GPU's figures that are {facts.assumed.source}")
    if facts.stages and any(stage.max_response_tokens for stage in facts.stages):
        frac = config.plan_for.response_frac
        lines.append(f"  responses are taken to be {frac:.0%} of their bound on average (plan_for.response_frac)")
    return lines


def _line(name: str, value: str) -> str:
    return f"  {name:<{_NAME_COLUMNS}} {value}"


def _gib(size: int) -> str:
    return f"{size / GIB:8.2f} GiB"


def refusal(found: Estimate, proposed: Sequence[Proposal]) -> str:
    """One sentence: what does not fit, and what would.

    Args:
        found: the estimate, which names its problems.
        proposed: the proposals that would fit; may be empty.
    """
    ways = " or ".join(" ".join(proposal.overrides) for proposal in proposed)
    way_out = f"{ways} would fit" if ways else "take GPUs with more memory, more ranks, or a smaller model"
    return f"this run does not fit: {'; '.join(found.problems)}; {way_out}"


def document(config: Config, facts: Facts, found: Estimate, proposed: Sequence[Proposal]) -> dict[str, Any]:
    """The plan as data for JSON: bytes, seconds and tokens."""
    rank, engine = found.rank, found.engine
    return {
        "name": config.name,
        "stage": config.stage,
        "gpu": dataclasses.asdict(facts.gpu),
        "assumptions": dataclasses.asdict(facts.assumed),
        "num_gpus": found.gpus,
        "fits": not found.problems,
        "problems": list(found.problems),
        "proposals": [list(proposal.overrides) for proposal in proposed],
        "rank_bytes": None if rank is None else {**rank.parts, "together": rank.peak},
        "engine_bytes": None if engine is None else {**engine.parts, "together": engine.taken},
        "host_bytes": found.host,
        "samples_looked_at": {stage.name: [len(stage.data.items), stage.data.num_items] for stage in facts.stages},
        "stages": [dataclasses.asdict(stage) for stage in found.stages],
        "budgets_used": dict(found.uses),
        "hours": found.hours,
        "gpu_hours": found.hours * found.gpus,
        "cost": found.hours * found.gpus * config.plan_for.price_per_gpu_hour,
    }


def write_plan(file: Path, content: Mapping[str, Any]) -> None:
    """Write a plan as data.

    Raises:
        PlanError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(
            f"plan_for.file={file} cannot be written: {error.strerror or error}; name another file"
        ) from error
