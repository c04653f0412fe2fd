"""A run folder as a run would leave it, small and made up, for tests of the report and for looking at it."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rsgrpo.config import Config, LoggingConfig, RewardConfig, ScopeConfig, resolved_yaml
from rsgrpo.evaluation.metrics import EvaluationMetrics
from rsgrpo.run.logger import RunLogger, read_metrics
from rsgrpo.run.recorder import record_evaluation, record_groups
from rsgrpo.run.summary import RunSummary, summarise_rl, summarise_sft, write_summary
from rsgrpo.text.sections import parse_response
from rsgrpo.types import (
    ChatPrompt,
    CreditedGroup,
    CreditedRollout,
    Group,
    ImageRef,
    Rollout,
    RolloutGroup,
    Sample,
    ScopedReward,
    TokenSpan,
)

WEIGHTS = {"accuracy": 3.0, "evidence": 3.0, "format": 1.0, "overlong": 1.0, "observe_citation": 1.0, "think_copy": 1.0}
SCOPES = {
    "accuracy": ("<think>", "end"),
    "evidence": ("begin", "<think>"),
    "format": ("begin", "end"),
    "overlong": ("begin", "end"),
    "observe_citation": ("begin", "<evidence>"),
    "think_copy": ("<think>", "<answer>"),
}


def run_config(**logging: object) -> Config:
    """Settings of the made-up run."""
    rewards = {
        name: RewardConfig(
            function=f"rewards.{name}:{name}",
            scope=ScopeConfig(start=SCOPES[name][0], stop=SCOPES[name][1]),
            weight=weight,
        )
        for name, weight in WEIGHTS.items()
    }
    settings = {"wandb_mode": "disabled", "tensorboard": False, **logging}
    return Config(name="handwriting", rewards=rewards, logging=LoggingConfig(**settings))  # type: ignore[arg-type]


def make_rollout(text: str, index: int = 0, *, sample_id: str = "q0", version: int = 0, ended: bool = True) -> Rollout:
    """A response in tokens of up to four characters, end of sequence last."""
    starts, position = [], 0
    while position < len(text):
        starts.append(position)
        position += 1 + (len(text) * 7 + position * 5) % 4
    if ended:
        starts.append(len(text))
    return Rollout(
        sample_id=sample_id,
        response_index=index,
        token_ids=np.arange(len(starts), dtype=np.int32),
        logprobs=np.full(len(starts), -0.5, dtype=np.float32),
        text=text,
        token_char_starts=np.array(starts, dtype=np.int32),
        finish_reason="stop" if ended else "length",
        policy_version=version,
    )


def sampled_group(sample: Sample, texts: list[str]) -> RolloutGroup:
    """Responses to a question, as the engine would give them."""
    return Group(
        sample=sample,
        prompt=ChatPrompt(sample_id=sample.sample_id, text=sample.question),
        prompt_token_ids=np.zeros(1, dtype=np.int32),
        rollouts=tuple(make_rollout(text, index, sample_id=sample.sample_id) for index, text in enumerate(texts)),
    )


def make_sample(sample_id: str = "q0", images: tuple[ImageRef, ...] = (), answer: str = "7") -> Sample:
    """A question over two cards."""
    return Sample(
        sample_id=sample_id,
        question="What number is on card B?",
        images=images,
        answers=(answer,),
        gold_response=response(answer, well_read=True),
        is_sufficient=answer != "insufficient to answer",
    )


def response(answer: str, *, well_read: bool, cites: bool = False, copies: bool = False) -> str:
    """A tagged response."""
    observe = "Two cards, one digit each. [1] is blue." if cites else "Two cards, one digit each."
    line = f"[2]: card B shows {answer}" if well_read else "[2]: no relevant information"
    think = answer if copies else f"Card B is the second page, so the number is {answer}."
    return (
        f"<observe>{observe}</observe>\n<evidence>[1]: no relevant information\n{line}</evidence>\n"
        f"<think>{think}</think>\n<answer>{answer}</answer>"
    )


def credited_group(sample: Sample, rollouts: list[Rollout], values: dict[str, list[float | None]]) -> CreditedGroup:
    """Credit by the formula of the method, written out for one group alone (N_k and W of this group)."""
    spans = {name: [_spans(sibling, *SCOPES[name]) for sibling in rollouts] for name in values}
    advantages = {name: _advantages(found) for name, found in values.items()}
    active = sum(WEIGHTS[name] for name in values if any(advantages[name])) or 1.0
    credited = []
    for index, rollout in enumerate(rollouts):
        streams = np.zeros((2, len(rollout.token_ids)), dtype=np.float64)
        rewards = []
        for name in values:
            length = sum(span.stop - span.start for spans_of_rollout in spans[name] for span in spans_of_rollout)
            credit = WEIGHTS[name] * advantages[name][index] / (active * max(length, 1))
            for span in spans[name][index]:
                streams[int(credit < 0), span.start : span.stop] += abs(credit)
            found = bool(spans[name][index])
            rewards.append(
                ScopedReward(name=name, value=values[name][index], spans=spans[name][index], scope_found=found)
            )
        credited.append(
            CreditedRollout(
                rollout=rollout,
                rewards=tuple(rewards),
                advantages=tuple(advantages[name][index] for name in values),
                positive_weights=streams[0].astype(np.float32),
                negative_weights=streams[1].astype(np.float32),
            )
        )
    prompt = ChatPrompt(sample_id=sample.sample_id, text=sample.question, images=sample.images)
    return Group(sample=sample, prompt=prompt, prompt_token_ids=np.arange(4, dtype=np.int32), rollouts=tuple(credited))


def make_group(sample: Sample, skill: float, seed: int, *, size: int = 8, version: int = 0) -> CreditedGroup:
    """Siblings of one question, better ones as ``skill`` grows from 0 to 1."""
    draw = random.Random(seed)
    rollouts: list[Rollout] = []
    values: dict[str, list[float | None]] = {name: [] for name in WEIGHTS}
    for index in range(size):
        is_right, well_read = draw.random() < skill, draw.random() < skill
        cites, copies = draw.random() < 0.2 * (1 - skill), draw.random() < 0.2 * (1 - skill)
        text = response(sample.answers[0] if is_right else "4", well_read=well_read, cites=cites, copies=copies)
        is_cut = draw.random() < 0.08
        if is_cut:
            text = text[: len(text) // 2]
        rollouts.append(make_rollout(text, index, sample_id=sample.sample_id, version=version, ended=not is_cut))
        values["accuracy"].append(float(is_right and not is_cut))
        values["evidence"].append((1.0 if well_read else 0.5) if not is_cut else 0.25)
        values["format"].append(float(not is_cut))
        values["overlong"].append(-0.4 if is_cut else 0.0)
        values["observe_citation"].append(-float(cites))
        values["think_copy"].append(None if is_cut else -float(copies))
    return credited_group(sample, rollouts, values)


def make_run(
    folder: Path, *, num_steps: int = 60, stages: tuple[str, ...] = ("sft", "rl"), finished: bool = True
) -> Path:
    """Write a whole run folder.

    Args:
        folder: where.
        num_steps: of each stage.
        stages: ``sft``, ``rl`` or both; evaluations before and after each are written too.
        finished: whether there is a summary.
    """
    config = run_config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(resolved_yaml(config))
    samples = [make_sample(f"quickstart-rl-{n:04d}", _images(folder, n), str(n % 10)) for n in range(6)]
    skills = {"before_sft": 0.02, "after_sft": 0.55, "after_rl": 0.82}
    points = ["before_sft"] + [f"after_{stage}" for stage in stages]
    with RunLogger(folder, config) as logger:
        for stage in stages:
            for step in range(1, num_steps + 1):
                values = _sft_values(step) if stage == "sft" else _rl_values(step, num_steps)
                logger.log(stage, step, values)
        for step in range(10, num_steps + 1, 10):
            if "rl" in stages:
                skill = 0.5 + 0.35 * step / num_steps
                groups = [make_group(sample, skill, step * 10 + n, version=step) for n, sample in enumerate(samples)]
                record_groups(folder / "rollouts.jsonl", "rl", step, groups, num_kept=4)
        for point in points:
            logger.log(point, 0, {"eval/accuracy": skills[point]})
            texts = [response("7" if n / 6 < skills[point] else "4", well_read=True) for n in range(6)]
            record_evaluation(
                folder / "rollouts.jsonl",
                point,
                samples,
                [make_rollout(text, sample_id=sample.sample_id) for text, sample in zip(texts, samples, strict=True)],
                [{"em": float(n % 2)} for n in range(6)],
            )
    if finished:
        rows = read_metrics(folder / "metrics.jsonl")
        summary = RunSummary(
            name=config.name,
            stage="all",
            recipe="quickstart",
            seed=0,
            device="cpu",
            num_cores=2,
            versions={"python": "3.11.9", "torch": "2.13.0", "vllm": "0.32.0", "git_commit": "0f3a" * 10},
            prompt_fingerprint="ours-v1",
            stage_seconds={"before_sft": 14.2, "sft": 171.0, "after_sft": 12.8, "rl": 402.5, "after_rl": 12.9},
            evaluations={point: evaluation(skills[point]) for point in points},
            sft=summarise_sft(rows),
            rl=summarise_rl(rows),
        )
        write_summary(folder / "summary.json", summary)
    return folder


def evaluation(skill: float) -> EvaluationMetrics:
    """Test metrics that go with a skill."""
    shares = {name: skill for name in ("em", "accuracy", "strict_em", "strict_accuracy")}
    return EvaluationMetrics(
        **shares,
        f1=min(1.0, skill * 1.04),
        strict_f1=skill,
        answerable_em=skill * 0.97,
        answerable_accuracy=skill * 0.97,
        answerable_f1=skill,
        unanswerable_em=min(1.0, skill * 1.1),
        unanswerable_accuracy=min(1.0, skill * 1.1),
        unanswerable_f1=skill,
        evidence_f1=min(1.0, skill * 1.1),
        well_formed_frac=min(1.0, 0.05 + skill * 1.75),
        abstention_answerable_frac=0.05,
        abstention_unanswerable_frac=skill,
        num_responses=512,
        num_answerable=410,
        num_unanswerable=102,
        num_with_gold_evidence=512,
    )


def _advantages(values: list[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    if len(known) < 2 or max(known) - min(known) < 1e-6:
        return [0.0] * len(values)
    mean = sum(known) / len(known)
    spread = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return [0.0 if value is None else (value - mean) / spread for value in values]


def _spans(rollout: Rollout, start: str, stop: str) -> tuple[TokenSpan, ...]:
    parsed = parse_response(rollout.text)
    first = 0 if start == "begin" else parsed.tag_start(start)
    last = len(rollout.text) + 1 if stop == "end" else parsed.tag_start(stop)
    if first < 0 or last < 0:
        return ()
    begin, end = (int(np.searchsorted(rollout.token_char_starts, edge)) for edge in (first, last))
    return (TokenSpan(start=begin, stop=end),) if end > begin else ()


def _images(folder: Path, number: int) -> tuple[ImageRef, ...]:
    images = []
    for index, letter in enumerate("AB"):
        file = folder / "data" / "images" / f"{number:04d}_{letter}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (56, 56), 255)
        draw = ImageDraw.Draw(image)
        draw.rectangle((3, 3, 52, 52), outline=90)
        draw.text((8, 6), letter, fill=60)
        draw.text((26, 26), str(number % 10 if index else (number * 3 + 1) % 10), fill=0)
        image.save(file)
        images.append(ImageRef(path=f"images/{file.name}", file=str(file.resolve())))
    return tuple(images)


def _sft_values(step: int) -> dict[str, float]:
    noise = math.sin(step * 12.9) * 0.05
    values = {
        "policy/loss": 0.4 + 3.2 * math.exp(-step / 14) + noise,
        "policy/grad_norm": 0.8 + math.exp(-step / 9) * 4 + noise,
        "policy/learning_rate": 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 60)),
        "policy/num_response_tokens": 2800.0,
        "time/update": 0.61 + noise,
    }
    if step % 20 == 0:
        values["policy/validation_loss"] = 0.45 + 3.1 * math.exp(-step / 14)
    return values


def _rl_values(step: int, num_steps: int) -> dict[str, float]:
    share, noise = step / num_steps, math.sin(step * 12.9) * 0.04
    values = {
        "reward/accuracy": 0.5 + 0.33 * share + noise,
        "reward/evidence": 0.68 + 0.2 * share - noise,
        "reward/format": 0.95 + 0.04 * share,
        "reward/overlong": -0.05 + 0.04 * share,
        "reward/observe_citation": -0.1 * (1 - share),
        "reward/think_copy": -0.08 * (1 - share) + noise / 8,
        "policy/entropy": 0.52 - 0.3 * share + noise / 2,
        "policy/grad_norm": 0.9 + noise * 4,
        "policy/loss": noise / 10,
        "policy/clip_fraction": 0.0,
        "policy/num_response_tokens": 21000.0 + 9000 * noise,
        "engine/logprob_gap_mean": 2e-6 * (1.2 + math.sin(step)),
        "engine/logprob_gap_max": 3e-5 * (1.2 + math.sin(step * 1.7)),
        "engine/sampled_tokens": 23500.0,
        "response/tokens_mean": 84 + 30 * noise,
        "selection/sampled_groups": 32.0,
        "selection/kept_frac": 0.9 - 0.2 * share,
        "selection/filled_frac": 1.0 - 0.2 * share,
        "time/generate": 1.9 + noise,
        "time/score": 0.03,
        "time/credit": 0.012,
        "time/update": 2.1 - noise,
        "time/weights": 0.11,
        "time/log": 0.05,
    }
    for name in WEIGHTS:
        values[f"scope/{name}_found_frac"] = min(1.0, 0.94 + 0.06 * share + noise / 8)
    return values
