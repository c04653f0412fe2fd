"""Looks at a run's data and model without loading either: texts, image headers, config and tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from recipes.plan.memory import samples_ahead
from recipes.plan.workload import DataSet, Item, Stage, TokensOfImage
from recipes.setup.wanted_data import WANTED, builds_quickstart_data, default_sources, uses_mixture
from recipes.stages import planned_steps
from rsgrpo.config import Config, SftPhaseConfig, SourceConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.model.folder import find_model
from rsgrpo.prompts.conversation import Conversation, ConversationBuilder
from rsgrpo.prompts.template import PromptBuilder
from rsgrpo.types import ChatPrompt, ImageRef, Sample

_READ_SECONDS = 15.0  # for one source of a mixture


def config_folder(config: Config, scratch: Path) -> Path:
    """A folder with the model's config, tokenizer and processor; weights are neither fetched nor read.

    Args:
        config: ``model.path`` is a folder, a hub id, or empty: the quickstart's small model.
        scratch: gets the quickstart's model.

    Raises:
        ModelError: the model is of no supported family, or the hub does not give it.
    """
    path = config.eval.checkpoint if config.stage == "eval" and config.eval.checkpoint else config.model.path
    if not path:
        from rsgrpo.data.synthetic.quickstart import corpus
        from rsgrpo.model.quickstart_model import build_quickstart_model

        texts = corpus(config.quickstart, config.seed)
        return build_quickstart_model(config.quickstart, scratch / "model", config.seed, texts)
    return find_model(path, config.model.revision, with_weights=False)


class ImageCounter:
    """Counts image tokens from headers, under any bound of a page's size; each header is read once.

    Args:
        config: the settings, which say how images are read.
        processor: the processor of the model.
    """

    def __init__(self, config: Config, processor: ProcessorMixin) -> None:
        self._rules = config.data.image_rules
        self._processor = processor.image_processor
        self._counters: dict[int, ImageTokens] = {}
        self._known: dict[tuple[ImageRef, int], int] = {}

    def count(self, ref: ImageRef, max_pixels: int) -> int:
        """Image tokens of a page.

        Raises:
            ImageError: the image is missing or no image.
        """
        key = (ref, max_pixels)
        if key not in self._known:
            if max_pixels not in self._counters:
                rules = dataclasses.replace(self._rules, max_pixels=max_pixels)
                self._counters[max_pixels] = ImageTokens(self._processor, rules)
            self._known[key] = self._counters[max_pixels].count(ref)
        return self._known[key]


def spread(items: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many items, evenly spread.

    Example:
        Of ten items at most 3: those at 0, 3 and 6.
    """
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


class Reader:
    """Makes stages of a run's settings.

    Args:
        config: the settings of the run.
        processor: the processor of the model.
        scratch: gets the quickstart's data.
        tokens_of_image: how many tokens a page takes.
    """

    def __init__(
        self, config: Config, processor: ProcessorMixin, scratch: Path, tokens_of_image: TokensOfImage
    ) -> None:
        self._config = config
        self._tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._prompts = PromptBuilder(config.prompt, processor, response_format=config.response.format)
        self._conversations = ConversationBuilder(config.prompt, processor, config.response.format)
        self._scratch = scratch
        self._tokens_of_image = tokens_of_image
        data = config.data
        self._paths = {"sft": data.sft_path, "rl": data.rl_path, "test": data.test_path}
        self._totals: dict[str, int] = {}

    def stages(self) -> tuple[Stage, ...]:
        """The stages that the run has, in order.

        Raises:
            RsgrpoError: the run could not use its data.
        """
        config = self._config
        if builds_quickstart_data(config):
            self._build_quickstart()
        found: list[Stage] = []
        if config.stage in ("sft", "all"):
            found += self._supervised()
        if config.stage in ("rl", "all"):
            found.append(self._reinforcement())
        if config.stage == "eval":
            data = self._held("test", samples=True)
            found.append(
                Stage(
                    name="eval",
                    data=data,
                    per_step=len(data.items),
                    num_samples=1,
                    max_response_tokens=config.eval.sampling.max_response_tokens,
                    num_steps=-(-data.num_items // len(data.items)),
                )
            )
        return tuple(found)

    def _build_quickstart(self) -> None:
        from rsgrpo.data.synthetic.quickstart import build_quickstart_data

        settings, most = self._config.quickstart, self._config.plan_for.max_samples
        counts = {name: getattr(settings, f"num_{name}_samples") for name in WANTED["all"]}
        few = {f"num_{name}_samples": min(count, most) for name, count in counts.items()}
        built = build_quickstart_data(dataclasses.replace(settings, **few), self._scratch / "data", self._config.seed)
        self._paths = {"sft": built.sft_path, "rl": built.rl_path, "test": built.test_path}
        self._totals = counts

    def _held(self, name: str, *, samples: bool) -> DataSet:
        """Look at a data set that the run holds in memory."""
        if not self._paths[name]:
            raise DataError(f"stage={self._config.stage} needs data.{name}_path; set it, or choose another stage")
        loaded = load_samples(
            self._paths[name],
            self._config.data,
            is_training=name != "test",
            looks_at_images=False,
            response_format=self._config.response.format,
        ).samples
        chosen = spread(loaded, self._config.plan_for.max_samples)
        make = self._prompt_item if samples else self._answered
        return DataSet(
            name=name,
            items=self._fitting(
                [make(sample) for sample in chosen],
                is_sampled=samples,
                max_tokens=0 if samples else self._config.sft.max_tokens,
            ),
            num_items=self._totals.get(name, len(loaded)),
        )

    def _fitting(self, items: Sequence[Item], *, is_sampled: bool, max_tokens: int = 0) -> tuple[Item, ...]:
        """The items that the run would keep: those within its limits, where it leaves the others out."""
        config = self._config
        if config.data.on_bad_sample != "skip":
            return tuple(items)
        most = min(max_tokens or config.trainer.micro_batch_tokens, config.trainer.micro_batch_tokens)
        response = config.rollout.sampling.max_response_tokens if is_sampled else 0

        def fits(row: Item) -> bool:
            prompt = row.prompt_text_tokens + self._images(row.images)
            answer = response or row.answer_text_tokens + self._images(row.answer_images)
            is_short = prompt + answer <= most or config.stage == "eval"
            return prompt <= config.data.max_prompt_tokens and is_short

        kept = tuple(item for item in items if all(fits(row) for row in item.rows))
        if not kept:
            limit = f"sft.max_tokens={max_tokens}" if max_tokens else f"trainer.micro_batch_tokens={most}"
            raise DataError(
                f"all of {len(items)} prompts that were looked at are too long for data.max_prompt_tokens="
                f"{config.data.max_prompt_tokens} or {limit}; raise them, or lower data.max_pixels"
            )
        return kept

    def _images(self, images: Iterable[ImageRef]) -> int:
        return sum(self._tokens_of_image(image, self._config.data.max_pixels) for image in images)

    def _prompt_item(self, sample: Sample) -> Item:
        prompt = self._prompts.build(sample)
        return Item(sample_id=sample.sample_id, prompt_text_tokens=self._text(prompt), images=prompt.images)

    def _answered(self, sample: Sample) -> Item:
        """A conversation, with all rows that it is trained as."""
        first, *more = (self._row(conversation) for conversation in self._conversations.build(sample))
        return dataclasses.replace(first, more_rows=tuple(more))

    def _row(self, conversation: Conversation) -> Item:
        shown_later = tuple(image for part in conversation.parts for image in part.images)
        text = sum(self._count(part.text) for part in conversation.parts)
        return Item(
            sample_id=conversation.sample_id,
            prompt_text_tokens=self._text(conversation.prompt),
            images=conversation.prompt.images,
            answer_text_tokens=text - len(shown_later),
            answer_images=shown_later,
        )

    def _text(self, prompt: ChatPrompt) -> int:
        # Each page's one placeholder gives way to its image tokens.
        return self._count(prompt.text) - len(prompt.images)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _supervised(self) -> list[Stage]:
        config, sft = self._config, self._config.sft
        phases = sft.phases or [
            SftPhaseConfig(
                name="sft",
                num_epochs=sft.num_epochs,
                max_steps=sft.max_steps,
                samples_per_step=sft.samples_per_step,
                max_tokens=sft.max_tokens,
            )
        ]
        found = []
        for phase in phases:
            if uses_mixture(config):
                data = self._mixture(phase, phase.mixture or default_sources(config))
            else:
                data = self._held("sft", samples=False)
            trained = data.num_items - min(sft.validation_samples, data.num_items // 10)
            by_epochs = max(1, phase.num_epochs * trained // phase.samples_per_step)
            found.append(
                Stage(
                    name=phase.name,
                    data=data,
                    per_step=phase.samples_per_step,
                    num_samples=1,
                    max_response_tokens=0,
                    num_steps=min(by_epochs, phase.max_steps) if phase.max_steps else by_epochs,
                )
            )
        return found

    def _mixture(self, phase: SftPhaseConfig, sources: Sequence[SourceConfig]) -> DataSet:
        """Look at a mixture: each source's first records, for some seconds, in the proportion of their weights."""
        most = max(1, self._config.plan_for.max_samples // len(sources))
        samples: list[Sample] = []
        total, is_counted = 0.0, True
        for source in sources:
            kept, count, is_whole = self._source(source, most)
            samples += kept
            total += source.weight * count
            is_counted = is_counted and is_whole
        if not samples:
            raise DataError(f"{phase.name}: no record of its {len(sources)} sources can be used; the doctor says why")
        items = self._fitting(
            [self._answered(sample) for sample in samples], is_sampled=False, max_tokens=phase.max_tokens
        )
        return DataSet(name=phase.name, items=items, num_items=max(1, int(total)), is_counted=is_counted)

    def _source(self, source: SourceConfig, most: int) -> tuple[list[Sample], int, bool]:
        from rsgrpo.data.readers import ReaderOptions, open_reader

        config = self._config
        options = ReaderOptions(
            media_root=source.media_root,
            check_media=False,
            sampling=source.sampling,
            seed=config.seed,
            on_bad_record="skip",
            box_coordinates=source.box_coordinates or config.data.box_coordinates,
            columns=config.data,
            is_training=True,
        )
        reader = iter(open_reader(source.format, source.path, options=options))
        kept = list(itertools.islice(reader, most))
        count, deadline = len(kept), time.monotonic() + _READ_SECONDS
        for _ in reader:
            count += 1
            if time.monotonic() > deadline:
                return kept, count, False
        return kept, count, True

    def _reinforcement(self) -> Stage:
        config, rl = self._config, self._config.rl
        data = self._held("rl", samples=True)
        trained = data.num_items - min(rl.validation_samples, data.num_items // 2)
        is_scored = rl.loss.old_logprobs == "recompute" or (
            rl.updates_per_batch > 1 and rl.loss.old_logprobs == "auto" and not samples_ahead(config)
        )
        return Stage(
            name="rl",
            data=data,
            per_step=rl.prompts_per_step,
            num_samples=rl.samples_per_prompt,
            max_response_tokens=config.rollout.sampling.max_response_tokens,
            num_steps=planned_steps(rl, trained),
            passes=is_scored + (rl.loss.kl.coefficient > 0),
        )
