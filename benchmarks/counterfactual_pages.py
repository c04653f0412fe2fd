"""Which pages does an answer rest on? What it takes to see that without labels, on questions whose pages are known.

    uv run python benchmarks/counterfactual_pages.py --run runs/quickstart --model runs/quickstart/models/sft

Every page of a test question is exchanged for one of another question, and the answer judged without it: how much less
likely the response's own answer becomes (nats over the answer's tokens, one exchange a page), behind different texts,
and whether the policy, that answers greedily once more, still says the same
(``rewards.functions.counterfactual``, ``--exchanges`` a page). A question counts as told right if a page that holds
the answer is worth more than every distractor. The second table says how often the reward labels a page rightly.
The model runs here, on one thread; no engine is started.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.counterfactuals import CounterfactualAnswers
from rewards.base import RewardCall
from rewards.functions.counterfactual import page_values
from rsgrpo.config import Config, SamplingConfig, load_config
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.data.images.loading import load_image
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures.command import run_command
from rsgrpo.prompts.template import PromptBuilder
from rsgrpo.run.folder import RunFolder, read_settings
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import Counterfactuals, Group, PromptedSample, Rollout, RolloutGroup

_BATCH = 64

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One question, answered greedily.

    Attributes:
        prompted: the question.
        parsed: the greedy response to all pages, which has an answer.
        is_right: whether the answer is that of gold, and no refusal.
        values: by the name of a measure the worth of each page; None where it has nothing to say.
    """

    prompted: PromptedSample
    parsed: ParsedResponse
    is_right: bool
    values: dict[str, Sequence[float | None] | None]


class PlainModel:
    """A policy in this process: greedy responses and log-probabilities.

    Args:
        folder: the folder of the model.
        config: the settings of prompts and images.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self._rules = config.data.image_rules

    def _encoded(self, prompted: Sequence[PromptedSample]) -> dict[str, torch.Tensor]:
        images = [[load_image(image, self._rules) for image in asked.prompt.images] for asked in prompted]
        texts = [asked.prompt.text for asked in prompted]
        return dict(self.processor(text=texts, images=images, padding=True, return_tensors="pt"))

    @torch.no_grad()
    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        """As :meth:`rollout.engine.RolloutEngine.generate`, greedily, one response a question."""
        groups = []
        for batch in _batches(prompted):
            encoded = self._encoded(batch)
            ids = self._model.generate(**encoded, do_sample=False, max_new_tokens=sampling.max_response_tokens)
            for asked, row in zip(batch, ids[:, encoded["input_ids"].shape[1] :], strict=True):
                text = self.processor.tokenizer.decode(row, skip_special_tokens=True)
                groups.append(_group(asked, text, row.numpy()))
        return groups

    @torch.no_grad()
    def answer_logprobs(self, asked: Sequence[tuple[PromptedSample, str, str]]) -> list[float]:
        """Log-probability in nats of the last text of each behind prompt and first text, summed over its tokens."""
        found = []
        tokenizer = self.processor.tokenizer
        for batch in _batches(asked):
            encoded = self._encoded([prompted for prompted, _, _ in batch])
            parts = [
                [tokenizer.encode(text, add_special_tokens=False) for text in (ahead, answer)]
                for _, ahead, answer in batch
            ]
            num_prompt, longest = encoded["input_ids"].shape[1], max(sum(map(len, pair)) for pair in parts)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, (ahead, answer) in enumerate(parts):
                ids[row, : len(ahead) + len(answer)] = torch.tensor([*ahead, *answer])
                mask[row, : len(ahead) + len(answer)] = 1
            encoded["input_ids"] = torch.cat([encoded["input_ids"], ids], dim=1)
            encoded["attention_mask"] = torch.cat([encoded["attention_mask"], mask], dim=1)
            if "mm_token_type_ids" in encoded:  # no token of a response is an image's
                encoded["mm_token_type_ids"] = torch.nn.functional.pad(encoded["mm_token_type_ids"], (0, longest))
            logprobs = torch.log_softmax(self._model(**encoded).logits[:, num_prompt - 1 : -1], dim=-1)
            chosen = logprobs.gather(2, ids[:, :, None])[:, :, 0]
            found += [
                float(chosen[row, len(ahead) : len(ahead) + len(answer)].sum())
                for row, (ahead, answer) in enumerate(parts)
            ]
        return found


def _batches(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _group(asked: PromptedSample, text: str, ids: np.ndarray) -> RolloutGroup:
    rollout = Rollout(
        sample_id=asked.sample.sample_id,
        response_index=0,
        token_ids=ids.astype(np.int32),
        logprobs=np.zeros(len(ids), np.float32),
        text=text,
        token_char_starts=np.zeros(len(ids), np.int32),
        finish_reason="stop",
        policy_version=0,
        temperature=0.0,
    )
    return Group(sample=asked.sample, prompt=asked.prompt, prompt_token_ids=np.zeros(0, np.int32), rollouts=(rollout,))


class AllPages:
    """Puts every page into question, and keeps what was answered.

    Args:
        prompted: the questions.
    """

    def __init__(self, prompted: Sequence[PromptedSample]) -> None:
        self._pages = {asked.sample.sample_id: tuple(range(len(asked.sample.images))) for asked in prompted}
        self.taken: dict[str, Counterfactuals] = {}

    def pages_in_question(self) -> Mapping[str, tuple[int, ...]]:
        """Name every page of every question."""
        return self._pages

    def take_counterfactuals(self, counterfactuals: Mapping[str, Counterfactuals]) -> None:
        """Keep the answers."""
        self.taken |= counterfactuals


def _answer_alone(parsed: ParsedResponse, image_index: int | None) -> str:
    return f"<{parsed.format.answer_section}>"


def _whole_text(parsed: ParsedResponse, image_index: int | None) -> str:
    answer = parsed.section(parsed.format.answer_section)
    return parsed.text[: answer.content_start] if answer else ""


def _without_line(parsed: ParsedResponse, image_index: int | None) -> str:
    line = None if image_index is None else parsed.first_lines().get(image_index)
    text = _whole_text(parsed, image_index)
    return text[: line.start] + text[line.stop :] if line else text


def _marked_line(parsed: ParsedResponse, image_index: int | None) -> str:
    line = None if image_index is None else parsed.first_lines().get(image_index)
    text = _whole_text(parsed, image_index)
    return f"{text[: line.start]}[{(image_index or 0) + 1}]: {IRRELEVANT}\n{text[line.stop :]}" if line else text


TEXTS: dict[str, Callable[[ParsedResponse, int | None], str]] = {
    "nothing: the answer stands right behind the prompt": _answer_alone,
    "the response's own text": _whole_text,
    "its own text without the line about the page": _without_line,
    f"its own text, the line about the page says {IRRELEVANT!r}": _marked_line,
}
ANEW = "a text written anew without the page"


def judge(
    model: PlainModel, prompted: Sequence[PromptedSample], config: Config, num_exchanges: int, seed: int
) -> list[Judged]:
    """Answer every question with and without each of its pages."""
    exchanging = CounterfactualAnswers(
        prompted,
        config.rollout.sampling,
        num_exchanges=num_exchanges,
        image_tokens=ImageTokens(model.processor.image_processor, config.data.image_rules).count,
        seed=seed,
    )
    asking = AllPages(prompted)
    exchanging.ask(model, prompted, asking, seed)
    response_format, section = config.response.format, config.response.answer_section
    judged = []
    for asked in prompted:
        known = asking.taken[asked.sample.sample_id]
        parsed = parse_response(known.with_all, response_format)
        if parsed.content(section) is None:
            continue
        call = RewardCall(
            sample=asked.sample,
            text=known.with_all,
            parsed=parsed,
            token_ids=np.zeros(0, np.int32),
            finish_reason="stop",
            num_tokens=0,
            response_index=0,
            counterfactuals=known,
        )
        values = page_values(call, right_only=False)
        is_right = page_values(call) is not None
        judged.append(Judged(prompted=asked, parsed=parsed, is_right=is_right, values={ANEW: values}))
    for name, text_of in TEXTS.items():
        _add_drops(model, judged, exchanging, name, text_of)
    return judged


def _add_drops(
    model: PlainModel,
    judged: Sequence[Judged],
    exchanging: CounterfactualAnswers,
    name: str,
    text_of: Callable[[ParsedResponse, int | None], str],
) -> None:
    """By how many nats each answer becomes less likely where a page is exchanged."""
    wanted = []
    for one in judged:
        answer = one.parsed.content(one.parsed.format.answer_section) or ""
        wanted.append((one.prompted, text_of(one.parsed, None), answer))
        for image_index in range(len(one.prompted.sample.images)):
            (exchanged, *_) = exchanging.exchanged(one.prompted, image_index)
            wanted.append((exchanged, text_of(one.parsed, image_index), answer))
    logprobs = iter(model.answer_logprobs(wanted))
    for one in judged:
        with_all = next(logprobs)
        one.values[name] = tuple(with_all - next(logprobs) for _ in one.prompted.sample.images)


def _told_right(one: Judged, name: str) -> tuple[bool, bool] | None:
    """Whether the best, and whether every page that holds the answer beats all distractors; None without both.

    Where the policy refused to answer nothing is known of its pages, and none beats another.
    """
    sample, values = one.prompted.sample, one.values[name]
    if not sample.is_sufficient:
        return None
    worth = [-1e9 if value is None else value for value in values or [None] * len(sample.images)]
    holding = [worth[index] for index in sample.positive_images]
    others = [value for index, value in enumerate(worth) if index not in sample.positive_images]
    return (max(holding) > max(others), min(holding) > max(others)) if holding and others else None


def ranking_table(judged: Sequence[Judged]) -> str:
    """How often pages that hold the answer are worth more than all distractors."""
    lines = [
        "| the answer stands behind | answered rightly: a page, every page | wrongly: a page, every page |",
        "|---|---|---|",
    ]
    for name in (*TEXTS, ANEW):
        cells = []
        for is_right in (True, False):
            found = [told for one in judged if one.is_right == is_right and (told := _told_right(one, name))]
            shares = [100 * sum(pair[place] for pair in found) / max(1, len(found)) for place in (0, 1)]
            cells.append(f"{shares[0]:.1f}, {shares[1]:.1f} % of {len(found)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def label_table(judged: Sequence[Judged], undecided: float) -> str:
    """How often the reward's label of a page is that of gold, over questions that were answered rightly."""
    found: dict[str, list[bool | None]] = {}
    for one in judged:
        sample, values = one.prompted.sample, one.values[ANEW]
        for index, value in enumerate(values or ()):
            if one.is_right and value is not None:
                holds = sample.is_sufficient and index in sample.positive_images
                kind = "holds the answer" if holds else "distractor" if sample.is_sufficient else "of no answer"
                decided = abs(value - 0.5) > undecided
                found.setdefault(kind, []).append((value > 0.5) == holds if decided else None)
    lines = ["| page | pages | labelled | of these rightly |", "|---|---|---|---|"]
    for kind, labels in sorted(found.items()):
        decided_labels = [label for label in labels if label is not None]
        right = 100 * sum(decided_labels) / max(1, len(decided_labels))
        lines.append(f"| {kind} | {len(labels)} | {100 * len(decided_labels) / len(labels):.1f} % | {right:.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run whose settings and test questions are used")
    parser.add_argument("--model", type=Path, required=True, help="the folder of the policy")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--exchanges", type=int, default=3, help="exchanges a page, as rl.counterfactual_exchanges")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(read_settings(RunFolder(root=options.run).config_file))
    test = config.data.test_path or str(RunFolder(root=options.run).data / "test")
    model = PlainModel(options.model, config)
    builder = PromptBuilder(config.prompt, model.processor, response_format=config.response.format)
    loaded = load_samples(test, config.data, is_training=False, response_format=config.response.format)
    if not loaded.samples:
        raise RsgrpoError(f"{test} holds no questions")
    data = dataclasses.replace(loaded, samples=loaded.samples[: options.questions])
    judged = judge(
        model, [builder.prompted(sample) for sample in data.samples], config, options.exchanges, options.seed
    )
    print(
        f"{len(judged)} of {len(data.samples)} answered, {sum(one.is_right for one in judged)} rightly from the pages"
    )
    print(ranking_table(judged))
    print(label_table(judged, undecided=0.2))


if __name__ == "__main__":
    sys.exit(run_command(main))
