"""Everything that can be checked before a worker starts: rewards, data, model folder, prompts and their lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from recipes.filtering.questions import largest_pages
from recipes.filtering.stages import check_filter
from recipes.setup.page_retriever import FoundQuestions, FoundTrajectories, PageRetriever, SearchedAgain
from recipes.setup.reward_smoke_test import smoke_test_rewards
from recipes.setup.sft_preparation import supervised_phases
from recipes.setup.wanted_data import WANTED, builds_quickstart_data, sample_check, uses_mixture
from recipes.sft import SftPhase
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import Config, PromptConfig
from rsgrpo.config.prompt import template_arguments_text
from rsgrpo.data.evisrag_files import LoadedData, load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.images.counts import ImageCounts, update_report
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.data.images.image_view import ImageView, model_view, write_view
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus
from rsgrpo.errors import shown
from rsgrpo.model.folder import check_model_type, find_model, load_processor, stored_tensors
from rsgrpo.model.lora import check_adapters
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.prompts.conversation import TURN_END, ConversationBuilder, count_tokens
from rsgrpo.prompts.template import (
    PUBLISHED_TEMPLATES,
    PromptBuilder,
    PromptWriter,
    response_behind,
    template_fingerprint,
)
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.types import ImageRef, PromptedSample, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the stages work on.

    Attributes:
        base_model: the folder of the model that the run starts from.
        tokenizer: the tokenizer of that model.
        scorer: the rewards of the run, ready to score groups.
        sft: the phases of supervised training with their data; empty if the stage does not run.
        image_tokens: gives how many tokens an image takes in a prompt.
        rl: the questions with gold for reinforcement learning; empty if the stage does not run.
        test: the held-out questions; may be empty where only conversations are trained on.
        prompt_fingerprint: which prompt template is used, by name where it is a published one.
        num_skipped: how many questions were left out because something is wrong with them.
        images: counts of the images that were read before the stages began.
        processor: the tokenizer and the image processor of the base model.
        rl_behind_retriever: finds pages for the questions of ``rl`` again (``data.retrieve``); None: they show those of
            the data set.
        builder: makes prompts of questions; where ``filter.enabled``, those of ``test`` show all pages, and are made
            anew from the pages that are kept.
    """

    base_model: Path
    tokenizer: PreTrainedTokenizerBase
    scorer: Scorer
    image_tokens: Callable[[ImageRef], int]
    sft: tuple[SftPhase, ...]
    rl: tuple[PromptedSample, ...]
    test: tuple[PromptedSample, ...]
    prompt_fingerprint: str
    num_skipped: int
    images: ImageCounts
    processor: ProcessorMixin
    builder: PromptBuilder
    rl_behind_retriever: SearchedAgain | None = None


def prepare(config: Config, folder: RunFolder, progress: Progress) -> Prepared:
    """Build or read everything, and refuse what cannot work.

    Args:
        config: the checked settings of the run.
        folder: gets the quickstart's data and model.
        progress: shows what is being done.

    Returns:
        Data, prompts, rewards and the base model's folder.

    Raises:
        RsgrpoError: a reward cannot be loaded or fails on a gold response, data are bad, the model cannot be trained,
            a prompt is too long.
    """
    response_format = config.response.format
    rewards = load_rewards(config.scored_rewards, Path.cwd(), response_format)
    with progress.phase("Reading data and model"):
        writer = PromptWriter(config.prompt)
        loaded = _load_data(config, folder, writer)
        base_model = find_base_model(config, folder)
        processor = load_processor(base_model, f"model.path={config.model.path!r}")
        _check_start_model(config, base_model)
        if config.stage != "eval":
            check_adapters(base_model, config.model.lora)
        view = _image_view(config, processor)
        write_view(folder.image_view_file, view)
        scorer = Scorer(rewards, view, response_format)
        builder = PromptBuilder(config.prompt, processor, writer, response_format=response_format)
        lengths = PromptLengths(config, processor)
        num_skipped = sum(sum(data_set.skipped.values()) for data_set in loaded.values())
        check_filter(config.filter, processor)
        worded = _worded(config, loaded, builder, lengths, progress)
        prompted = worded.prompts
        num_skipped += worded.num_long
        if "rl" in prompted:
            scorer.check_samples([prompt.sample for prompt in prompted["rl"]])
        image_tokens = lengths.image_tokens
        phases: tuple[SftPhase, ...] = ()
        if config.stage in ("sft", "all"):
            conversations = ConversationBuilder(config.prompt, processor, response_format)
            phases = supervised_phases(
                config, prompted.get("sft", ()), conversations, processor.tokenizer, image_tokens, progress, folder.root
            )
        for name, prompts in prompted.items():
            progress.line(f"{name}: {len(prompts)} questions")
        for name, data in loaded.items():
            if data.num_mended:
                progress.line(f"{name}: {data.num_mended} lone surrogates in its texts were replaced by U+FFFD")
        images = ImageCounts.total(data_set.images for data_set in loaded.values())
        update_report(folder.root, {"images": images.document()})
        for line in images.lines():
            progress.line(line)
        if num_skipped:
            progress.line(f"left out {num_skipped} bad questions (data.on_bad_sample=skip)")
        if "rl" in prompted:
            for line in smoke_test_rewards(scorer, prompted["rl"], processor.tokenizer):
                progress.line(line)
        fingerprint = describe_template(config.prompt)
        progress.line(f"prompt: {fingerprint}")
    return Prepared(
        base_model=base_model,
        tokenizer=processor.tokenizer,
        scorer=scorer,
        image_tokens=image_tokens,
        sft=phases,
        rl=prompted.get("rl", ()),
        test=prompted.get("test", ()),
        prompt_fingerprint=fingerprint,
        num_skipped=num_skipped,
        images=images,
        processor=processor,
        builder=builder,
        rl_behind_retriever=worded.rl_behind_retriever,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Worded:
    """Questions as prompts.

    Attributes:
        prompts: the prompts that fit, by the name of their data set.
        num_long: how many prompts were left out as too long.
        rl_behind_retriever: as in :class:`Prepared`.
    """

    prompts: Mapping[str, tuple[PromptedSample, ...]]
    num_long: int
    rl_behind_retriever: SearchedAgain | None


def _worded(
    config: Config, loaded: Mapping[str, LoadedData], builder: PromptBuilder, lengths: PromptLengths, progress: Progress
) -> _Worded:
    """Make prompts over the pages of the data set, or over those that a retriever finds."""
    prompts: dict[str, tuple[PromptedSample, ...]] = {}
    num_all_long = 0
    search = (
        PageRetriever(config.data, config.seed, config.response.format) if config.data.retrieve and loaded else None
    )
    for name, data in loaded.items():
        if search is not None:
            fits = partial(lengths.fits, name)
            found: FoundQuestions | FoundTrajectories
            if name == "sft":
                found = search.trajectories(data.samples, builder.prompted, fits)
            else:
                found = search.questions(data.samples, builder.prompted, fits, search=0 if name == "rl" else None)
            progress.line(found.line(name))
            prompts[name], num_long = lengths.checked(name, found.prompts)
        else:
            most = config.filter.stages[-1].top_k if name == "test" and config.filter.enabled else None
            prompts[name], num_long = _fitting(name, data.samples, builder, lengths, most)
        num_all_long += num_long
    again = None
    # Else the embedder would stay in memory for as long as the run trains.
    if search is not None and "rl" in prompts and config.data.retrieve_refresh_steps:
        fits = partial(lengths.fits, "rl")
        again = SearchedAgain(search, loaded["rl"].samples, prompts["rl"], builder.prompted, fits)
    return _Worded(prompts=prompts, num_long=num_all_long, rl_behind_retriever=again)


def _fitting(
    name: str, samples: Sequence[Sample], builder: PromptBuilder, lengths: PromptLengths, most_pages: int | None
) -> tuple[tuple[PromptedSample, ...], int]:
    """Prompts that fit, and how many were left out; with ``most_pages`` those that fit with any so many pages."""
    if most_pages is None:
        return lengths.checked(name, [builder.prompted(sample) for sample in samples])
    largest = [builder.prompted(largest_pages(sample, most_pages, lengths.image_tokens)) for sample in samples]
    fitting, num_long = lengths.checked(name, largest)
    ids = {prompt.sample.sample_id for prompt in fitting}
    return tuple(builder.prompted(sample) for sample in samples if sample.sample_id in ids), num_long


def describe_template(prompt: PromptConfig) -> str:
    """Length and hash of the prompt template, its name where it is a published one, and the chat template's arguments.

    Args:
        prompt: the settings.

    Example:
        ``EVisRAG evidence (1955 characters, 7fbff7c28244); enable_thinking=false``.
    """
    num_characters, digest = template_fingerprint(prompt.path)
    name = PUBLISHED_TEMPLATES.get((num_characters, digest), Path(prompt.path).name)
    arguments = template_arguments_text(prompt.template_arguments)
    return f"{name} ({num_characters} characters, {digest}){f'; {arguments}' if arguments else ''}"


def _check_start_model(config: Config, base_model: Path) -> None:
    """Refuse weights that workers could not load."""
    checkpoint = config.eval.checkpoint if config.stage == "eval" else ""
    if not checkpoint:
        stored_tensors(base_model, f"model.path={config.model.path!r}")
        return
    setting = f"eval.checkpoint={checkpoint!r}"
    check_model_type(Path(checkpoint), setting)
    stored_tensors(Path(checkpoint), setting)


def _image_view(config: Config, processor: ProcessorMixin) -> ImageView:
    """The sizes at which the answering model sees pages: the engine takes the processor of the folder that it loads."""
    checkpoint = config.eval.checkpoint if config.stage == "eval" else ""
    if checkpoint:
        processor = load_processor(Path(checkpoint), f"eval.checkpoint={checkpoint!r}")
    return model_view(config.data, processor.image_processor)


def _load_data(config: Config, folder: RunFolder, writer: PromptWriter) -> Mapping[str, LoadedData]:
    data = config.data
    paths = {"sft": data.sft_path, "rl": data.rl_path, "test": data.test_path}
    if builds_quickstart_data(config):
        built = build_quickstart_data(config.quickstart, folder.data, config.seed)
        paths = {"sft": built.sft_path, "rl": built.rl_path, "test": built.test_path}
    loaded: dict[str, LoadedData] = {}
    for name in WANTED[config.stage]:
        is_streamed = name == "sft" and uses_mixture(config)
        if is_streamed or (name == "test" and config.stage == "sft" and uses_mixture(config) and not paths[name]):
            continue
        if not paths[name]:
            raise DataError(f"stage={config.stage} needs data.{name}_path; set it, or choose another stage")
        check = sample_check(config, name, writer.parts_ahead)
        # A filter reads more pages than the model that answers.
        shown = replace(data, max_images=config.filter.max_pages) if name == "test" and config.filter.enabled else data
        loaded[name] = load_samples(
            paths[name], shown, is_training=name != "test", check=check, response_format=config.response.format
        )
    return loaded


def find_base_model(config: Config, folder: RunFolder) -> Path:
    """The folder of the model that the run starts from, built or fetched from the hub if need be.

    Args:
        config: ``model.path`` is a folder, a hub id, or empty: the quickstart's small model.
        folder: gets the quickstart's model.

    Raises:
        ModelError: the model is of no supported family, or the hub does not give it.
    """
    if not config.model.path:
        texts = corpus(config.quickstart, config.seed)
        return build_quickstart_model(config.quickstart, folder.base_model, config.seed, texts)
    return find_model(config.model.path, config.model.revision)


class PromptLengths:
    """Counts tokens from page sizes alone: no pixel is decoded for it.

    Args:
        config: the settings, of which ``data``, ``rollout`` and ``trainer`` limit a prompt.
        processor: the processor of the model.
        max_response_tokens: how many tokens of a sampled response must fit beside a prompt; None: those of
            ``rollout.sampling``.
    """

    def __init__(self, config: Config, processor: ProcessorMixin, max_response_tokens: int | None = None) -> None:
        self._config = config
        sampling = config.rollout.sampling
        self._response = sampling.max_response_tokens if max_response_tokens is None else max_response_tokens
        self._tokenizer = processor.tokenizer
        self.image_tokens = ImageTokens(processor.image_processor, config.data.image_rules).count

    def _count(self, text: str, images: Sequence[ImageRef] = ()) -> int:
        return count_tokens(text, images, self._tokenizer, self.image_tokens)

    def _limits(self, name: str, prompted: PromptedSample) -> list[tuple[int, str]]:
        """The most prompt tokens by each rule for a data set, and what to change to allow more."""
        data, rollout, trainer = self._config.data, self._config.rollout, self._config.trainer
        limits = [(data.max_prompt_tokens, "raise data.max_prompt_tokens")]
        if name == "sft":
            gold = self._count(response_behind(prompted.prompt, prompted.sample.gold_response) + TURN_END)
            budget = min(self._config.sft.max_tokens or trainer.micro_batch_tokens, trainer.micro_batch_tokens)
            raised = "trainer.micro_batch_tokens (and sft.max_tokens)" if self._config.sft.max_tokens else ""
            return [*limits, (budget - gold, f"raise {raised or 'trainer.micro_batch_tokens'}")]
        limits.append((rollout.max_model_tokens - self._response, "raise rollout.max_model_tokens"))
        if name == "rl":
            limits.append((trainer.micro_batch_tokens - self._response, "raise trainer.micro_batch_tokens"))
        return limits

    def fits(self, name: str, prompted: PromptedSample) -> bool:
        """Whether a prompt leaves room for a response.

        Args:
            name: the data set, as in :meth:`checked`.
            prompted: the sample with its prompt.
        """
        return self._count(prompted.prompt.text, prompted.prompt.images) <= min(self._limits(name, prompted))[0]

    def checked(self, name: str, prompts: Sequence[PromptedSample]) -> tuple[tuple[PromptedSample, ...], int]:
        """Questions that fit, and how many were left out.

        Args:
            name: ``sft``: the gold response stands behind the prompt in a row of the trainer; ``rl``: a sampled one,
                in the engine and the trainer; any other: a sampled one in the engine.
            prompts: the samples with their prompts.

        Raises:
            DataError: a prompt is too long (``data.on_bad_sample=reject``), or all of them are.
        """
        fitting: list[PromptedSample] = []
        worst: tuple[int, str] = (0, "")
        for prompted in prompts:
            count = self._count(prompted.prompt.text, prompted.prompt.images)
            limit, way_out = min(self._limits(name, prompted))
            if count <= limit:
                fitting.append(prompted)
            elif count - limit > worst[0]:
                worst = (
                    count - limit,
                    f"the prompt of sample {shown(prompted.sample.sample_id)!r} has {count} tokens, {limit} are left "
                    f"for it; {way_out}, lower data.max_pixels",
                )
        num_long = len(prompts) - len(fitting)
        if num_long and (self._config.data.on_bad_sample == "reject" or not fitting):
            raise DataError(
                f"{num_long} of {len(prompts)} {name} prompts are too long ({worst[1]}), or set data.on_bad_sample=skip"
            )
        return tuple(fitting), num_long
