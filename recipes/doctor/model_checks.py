"""The model folder, chat template and prompt template, looked at without loading torch or a weight."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.doctor.check import Check, Subject, ok, problem, refused
from recipes.doctor.hub import hub_check
from rsgrpo.config import Config, ConfigError
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.natural_order import visible_files
from rsgrpo.model.families.family import Family
from rsgrpo.model.folder import ModelError, check_model_type, stored_tensors
from rsgrpo.prompts.template import (
    IMAGE_PLACEHOLDER,
    PUBLISHED_TEMPLATES,
    PromptBuilder,
    PromptTemplateError,
    template_fingerprint,
)
from rsgrpo.types import ImageRef, Sample

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_PROCESSOR_KINDS = ("", "Fast", "Pil")  # what transformers puts behind the name of an image processor
_ASSISTANT = "<|im_start|>assistant\n"
_TURN_END = "<|im_end|>"
# A section that the template opens, or an empty one, as it writes where thinking is off.
_IS_BEGUN = re.compile(r"\s*(<[\w.-]+>\s*(</[\w.-]+>\s*)?)?")
_PROBE_IMAGES = 2
_PROBE_TEXT = "What do both pages say?"
_RENDERED_SAMPLES = 512  # of each data set; templates fail on a kind of question, not on one in a thousand
_QUICKSTART_TEXTS = 24


def model_checks(subject: Subject) -> Iterator[Check]:
    """The folder: config, weights' headers, tokenizer, image processor."""
    config = subject.config
    if config is None:
        return
    if config.eval.endpoint.url:
        yield ok("model", f"{config.eval.endpoint.model} at {config.eval.endpoint.url}")
        return
    if config.model.path and config.stage == "retriever":
        yield _embedder_check(config)
    elif not config.model.path:
        yield from _quickstart_checks(subject, config)
    else:
        setting = f"model.path={config.model.path!r}"
        folder = Path(config.model.path)
        if not folder.is_dir():
            found, check = hub_check("model", setting, config.model.path, "model", config.model.revision or None)
            yield check
            if found is None:
                return
            folder = found
        checks = list(folder_checks(folder, setting))
        yield from checks
        if checks[0].status == "ok":
            yield from _tokenizer_checks(subject, folder, setting)
    if config.stage == "eval" and config.eval.checkpoint:
        yield from folder_checks(Path(config.eval.checkpoint), f"eval.checkpoint={config.eval.checkpoint!r}")


def _embedder_check(config: Config) -> Check:
    """Look for the start model of a retriever, which may be of other kinds than the policy."""
    folder = Path(config.model.path)
    if not folder.is_dir():
        return hub_check(
            "model", f"model.path={config.model.path!r}", str(folder), "model", config.model.revision or None
        )[1]
    if not (folder / "config.json").is_file():
        return problem("model", f"model.path={config.model.path!r} has no config.json", "name the folder of a model")
    return ok("model", f"{folder}: the run loads it, and refuses it if it reads no images")


def _quickstart_checks(subject: Subject, config: Config) -> Iterator[Check]:
    """Check the tokenizer that the run builds for the small model: it is learned here from a few of the texts."""
    import dataclasses

    from rsgrpo.data.synthetic.quickstart import corpus
    from rsgrpo.data.synthetic.quickstart_tokenizer import build_tokenizer

    few = dataclasses.replace(
        config.quickstart, num_sft_samples=_QUICKSTART_TEXTS, num_rl_samples=1, num_test_samples=1
    )
    try:
        subject.tokenizer = build_tokenizer(corpus(few, config.seed), config.quickstart.vocabulary_tokens)
    except ValueError as error:
        yield problem("model", str(error), "raise quickstart.vocabulary_tokens")
        return
    yield ok(
        "model",
        f"a small model ({config.quickstart.family}), built by the run into its folder; its tokenizer can be learned",
    )


def folder_checks(folder: Path, setting: str) -> Iterator[Check]:
    """Config, weights and image processor of a folder.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it.
    """
    try:
        family = check_model_type(folder, setting)
    except ModelError as error:
        yield refused("model", error)
        return
    yield ok("model", f"{setting}, a {family.name}")
    try:
        stored_tensors(folder, setting)
    except ModelError as error:
        yield refused("weights", error)
    else:
        files = [*visible_files(folder, "*.safetensors"), *folder.glob("pytorch_model*.bin")]
        size = sum(file.stat().st_size for file in files)
        yield ok("weights", f"{len(files)} files, {size / (1 << 30):.2f} GiB, their headers can be read")
    yield processor_check(folder, family)


def processor_check(folder: Path, family: Family) -> Check:
    """Whether the image processor's settings are those of the model's family.

    Args:
        folder: the folder that holds the model.
        family: its family.
    """
    name = "image processor"
    advice = "copy preprocessor_config.json from the model that it was trained from"
    file = next((folder / file_name for file_name in _PROCESSOR_FILES if (folder / file_name).is_file()), None)
    if file is None:
        return problem(name, f"{folder} has neither {' nor '.join(_PROCESSOR_FILES)}", advice)
    try:
        settings: Any = json.loads(file.read_text(encoding="utf-8"))
        settings = settings.get("image_processor", settings)
        kind = settings.get("image_processor_type")
        patch, merge = settings.get("patch_size", family.patch_pixels), settings.get("merge_size", family.merge)
    except (OSError, ValueError, AttributeError) as error:
        return problem(name, f"{file} cannot be read as JSON settings: {error}", advice)
    if kind not in [f"{family.image_processor_class}{ending}" for ending in _PROCESSOR_KINDS]:
        return problem(
            name, f"{file.name} names {kind!r} where {family.name}'s {family.image_processor_class} is needed", advice
        )
    if (patch, merge) != (family.patch_pixels, family.merge):
        sizes = f"{family.name} has {family.patch_pixels} and {family.merge}"
        return problem(name, f"{file.name} has patch_size={patch}, merge_size={merge}; {sizes}", advice)
    return ok(name, f"{kind}, patches of {patch} pixels, {merge}×{merge} of them a token")


def _tokenizer_checks(subject: Subject, folder: Path, setting: str) -> Iterator[Check]:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    name = "tokenizer"
    advice = "copy tokenizer.json, tokenizer_config.json and chat_template.jinja from the model it was trained from"
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else Qwen2Tokenizer
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare ones for a damaged file
        yield problem(name, f"{setting}: {next(iter(str(error).splitlines()), type(error).__name__)}", advice)
        return
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (IMAGE_PLACEHOLDER, "<|im_start|>", _TURN_END) if token not in vocabulary]
    if missing:
        yield problem(name, f"{setting}: it has no {', '.join(missing)}", advice)
        return
    differing = _differing_ids(folder, vocabulary)
    if differing:
        yield problem(name, f"{setting}: {differing}", "copy config.json and the tokenizer's files from one model")
        return
    subject.tokenizer = tokenizer
    yield ok(name, f"{len(vocabulary)} tokens, {IMAGE_PLACEHOLDER} among them")


def _differing_ids(folder: Path, vocabulary: dict[str, int]) -> str:
    """Which ids of config and tokenizer do not fit together; empty if all do."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # told already
    image_id = config.get("image_token_id")
    if isinstance(image_id, int) and image_id != vocabulary[IMAGE_PLACEHOLDER]:
        return f"{IMAGE_PLACEHOLDER} is {vocabulary[IMAGE_PLACEHOLDER]} here and {image_id} in config.json"
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    rows = text.get("vocab_size")
    if isinstance(rows, int) and max(vocabulary.values()) >= rows:
        return f"it has ids up to {max(vocabulary.values())}, and the model's embedding has {rows} rows"
    return ""


def template_checks(subject: Subject) -> Iterator[Check]:
    """The prompt template alone, the chat template around it, and both on the samples that there are."""
    config = subject.config
    if config is None or config.stage == "retriever":
        return
    try:
        num_characters, digest = template_fingerprint(config.prompt.path)
    except PromptTemplateError as error:
        yield refused("prompt template", error)
        return
    name = PUBLISHED_TEMPLATES.get((num_characters, digest), Path(config.prompt.path).name)
    yield ok("prompt template", f"{name} ({num_characters} characters)")
    if subject.tokenizer is None:
        return
    try:
        builder = PromptBuilder(config.prompt, subject.tokenizer, response_format=config.response.format)
    except ConfigError as error:
        yield refused("chat template", error)
        return
    yield chat_check(builder)
    for name, samples in subject.samples.items():
        if samples and not any(sample.turns for sample in samples):
            yield rendered_check(builder, name, samples[:_RENDERED_SAMPLES], subject, config)


def chat_check(builder: PromptBuilder) -> Check:
    """Whether the chat template keeps images and turns.

    Args:
        builder: builds prompts from the run's template with the model's tokenizer.
    """
    name = "chat template"
    advice = "copy chat_template.jinja from the model that it was trained from"
    images = tuple(ImageRef(path=f"{index}.png") for index in range(_PROBE_IMAGES))
    sample = Sample(sample_id="probe", question=_PROBE_TEXT, images=images, choices=("yes", "no"))
    try:
        text = builder.build(sample).text
    except RsgrpoError as error:
        return refused(name, error)
    except Exception as error:  # whatever a template of somebody else raises
        return problem(
            name, f"it cannot be rendered: {next(iter(str(error).splitlines()), type(error).__name__)}", advice
        )
    _, header, begun = text.rpartition(_ASSISTANT)
    if not header or not _IS_BEGUN.fullmatch(begun):
        return problem(name, f"a prompt ends in {text[-40:]!r} where {_ASSISTANT!r} is needed", advice)
    if _PROBE_TEXT not in text:
        return problem(name, "it drops the question's text", advice)
    return ok(
        name,
        f"{_PROBE_IMAGES} images give {text.count(IMAGE_PLACEHOLDER)} placeholders, the answer's turn is open"
        + (f" and begins with {begun!r}" if begun else ""),
    )


def rendered_check(
    builder: PromptBuilder, name: str, samples: tuple[Sample, ...], subject: Subject, config: Config
) -> Check:
    """Whether prompts can be built of samples, and how long their text is.

    Args:
        builder: builds prompts from the run's template with the model's tokenizer.
        name: the name of the data set.
        samples: some samples of the data set.
        subject: what is examined; it has the tokenizer.
        config: the settings that limit a prompt.
    """
    assert subject.tokenizer is not None
    try:
        texts = [builder.build(sample).text for sample in samples]
    except RsgrpoError as error:
        return refused(f"{name} prompts", error)
    longest = max(texts, key=len)
    num_tokens = len(subject.tokenizer.encode(longest, add_special_tokens=False))
    found = f"{len(texts)} rendered, the longest text has {num_tokens} tokens beside its images"
    limit = min(
        config.data.max_prompt_tokens, config.rollout.max_model_tokens - config.rollout.sampling.max_response_tokens
    )
    if num_tokens > limit:
        return problem(
            f"{name} prompts",
            f"{found}; {limit} is the limit for both",
            "raise data.max_prompt_tokens and rollout.max_model_tokens",
        )
    return ok(f"{name} prompts", found)
