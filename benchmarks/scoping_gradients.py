"""The pool of the scoping study: responses of one policy, and the gradient of every stretch of their tokens.

A gradient of some million numbers is kept as a sketch: every number goes with a drawn sign into one of D buckets. Inner
products of sketches are those of the gradients up to a relative error of about 1 / sqrt(D) of the lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from recorded_groups import recorded_groups
from scoping_estimators import PoolGroup, Stretch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from rewards.plugins import load_rewards
from rewards.scopes import section_spans
from rewards.scorer import Scorer
from rsgrpo.config import Config
from rsgrpo.data.images.image_view import read_view
from rsgrpo.data.images.loading import load_image
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import replacing
from rsgrpo.prompts.template import PromptBuilder
from rsgrpo.run.folder import RunFolder
from rsgrpo.types import RolloutGroup, ScoredGroup, ScoredRollout, TokenSpan

SKETCH_SIZE = 8192


class Sketch:
    """Sums the numbers of a model's gradient into buckets, each with a drawn sign.

    Args:
        parameters: the parameters, in order.
        seed: the seed of buckets and signs.
    """

    def __init__(self, parameters: Sequence[Tensor], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._buckets = [torch.randint(SKETCH_SIZE, (p.numel(),), generator=generator) for p in parameters]
        self._signs = [torch.randint(2, (p.numel(),), generator=generator).float() * 2 - 1 for p in parameters]

    def __call__(self, gradients: Sequence[Tensor | None]) -> NDArray[np.float32]:
        """Sketch one gradient: [SKETCH_SIZE]; None stands for zeros."""
        total = torch.zeros(SKETCH_SIZE)
        for gradient, buckets, signs in zip(gradients, self._buckets, self._signs, strict=True):
            if gradient is not None:
                total.index_add_(0, buckets, gradient.reshape(-1) * signs)
        found: NDArray[np.float32] = total.numpy()
        return found


def stretches_of(rollout: ScoredRollout, sections: Mapping[str, Sequence[TokenSpan]]) -> tuple[Stretch, ...]:
    """Cut a response where any scope begins or ends, and where a section does.

    Args:
        rollout: the response with its rewards.
        sections: the tokens of each section of it.

    Returns:
        The stretches, which cover all tokens in order.
    """
    places = [(span.start, span.stop, name) for name, spans in sections.items() for span in spans]
    edges = {0, rollout.num_tokens}
    edges.update(edge for reward in rollout.rewards for span in reward.spans for edge in (span.start, span.stop))
    edges.update(edge for first, behind, _ in places for edge in (first, behind))
    cut = sorted(edge for edge in edges if 0 <= edge <= rollout.num_tokens)
    return tuple(
        Stretch(
            start=start,
            stop=stop,
            section=next((name for first, behind, name in places if first <= start < behind), "between"),
        )
        for start, stop in itertools.pairwise(cut)
    )


class GradientMaker:
    """Computes the sketched gradient of every stretch of a group's responses.

    Args:
        model: the folder of the policy.
        config: the settings that the responses were sampled with.
        seed: the seed of the sketch.
    """

    def __init__(self, model: Path, config: Config, seed: int) -> None:
        self._model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
        self._processor = AutoProcessor.from_pretrained(model)
        self._builder = PromptBuilder(config.prompt, self._processor, response_format=config.response.format)
        self._rules = config.data.image_rules
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._sketch = Sketch(self._parameters, seed)

    def gradients(self, group: RolloutGroup, stretches: Sequence[Sequence[Stretch]]) -> tuple[NDArray[np.float32], ...]:
        """[stretches, SKETCH_SIZE] for each response: the gradients of the log-probability of each stretch."""
        prompt = self._builder.build(group.sample)
        images = [load_image(image, self._rules) for image in group.sample.images]
        encoded = self._processor(text=[prompt.text], images=images or None, return_tensors="pt")
        num_prompt = encoded["input_ids"].shape[1]
        found = []
        for rollout, cut in zip(group.rollouts, stretches, strict=True):
            ids = torch.cat([encoded["input_ids"][0], torch.from_numpy(rollout.token_ids.astype(np.int64))])[None]
            feed = {key: value for key, value in encoded.items() if key not in ("input_ids", "attention_mask")}
            if "mm_token_type_ids" in feed:  # no token of a response is an image's
                feed["mm_token_type_ids"] = torch.nn.functional.pad(
                    feed["mm_token_type_ids"], (0, len(rollout.token_ids))
                )
            logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), **feed).logits[0]
            logprobs = torch.log_softmax(logits[num_prompt - 1 : -1], dim=-1)
            chosen = logprobs.gather(1, ids[0, num_prompt:, None])[:, 0]
            rows = []
            for number, stretch in enumerate(cut):
                is_last = number == len(cut) - 1
                rows.append(
                    self._sketch(
                        torch.autograd.grad(
                            chosen[stretch.start : stretch.stop].sum(),
                            self._parameters,
                            retain_graph=not is_last,
                            allow_unused=True,
                        )
                    )
                )
            found.append(np.stack(rows))
        return tuple(found)


def scored_groups(run: Path, config: Config) -> Iterator[tuple[RolloutGroup, ScoredGroup]]:
    """Read the responses of a run, and score them with its rewards.

    Args:
        run: the folder of a run of reinforcement learning.
        config: its settings.

    Raises:
        RsgrpoError: nothing was recorded.
    """
    response_format = config.response.format
    rewards = load_rewards(config.scored_rewards, Path.cwd(), response_format)
    scorer = Scorer(rewards, read_view(RunFolder(root=run).image_view_file), response_format)
    for sampled in recorded_groups(run):
        (scored,) = scorer.score([sampled])
        yield sampled, scored


def make_pool(run: Path, model: Path, config: Config, folder: Path, num_groups: int, seed: int) -> list[PoolGroup]:
    """Compute the gradients of a run's responses; groups that are finished are not computed again.

    Args:
        run: the folder of the run that sampled them.
        model: the folder of the policy that wrote them.
        config: the settings of the run.
        folder: gets a file a group.
        num_groups: how many groups are taken.
        seed: the seed of the sketch.

    Returns:
        The groups with their gradients.

    Raises:
        RsgrpoError: nothing was recorded, or a file holds the gradients of other stretches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maker: GradientMaker | None = None
    pool = []
    for number, (sampled, scored) in enumerate(itertools.islice(scored_groups(run, config), num_groups)):
        sections = section_spans([scored], config.response.format)
        stretches = tuple(stretches_of(rollout, sections[rollout.key]) for rollout in scored.rollouts)
        file = folder / f"{number:05d}.npz"
        if not file.exists():
            maker = maker or GradientMaker(model, config, seed)
            found = maker.gradients(sampled, stretches)
            with replacing(file) as output:
                np.savez(output, *[matrix.astype(np.float16) for matrix in found])
        with np.load(file) as stored:
            gradients = tuple(stored[f"arr_{index}"] for index in range(len(stretches)))
        if [len(rows) for rows in gradients] != [len(cut) for cut in stretches]:
            raise RsgrpoError(f"{file} was computed with other scopes; delete {folder}, or take another --folder")
        num_pages = len(sampled.sample.images)
        pool.append(PoolGroup(scored=scored, stretches=stretches, gradients=gradients, num_pages=num_pages))
        if number % 50 == 49:
            print(f"{number + 1} groups", flush=True)
    return pool
