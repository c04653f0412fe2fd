"""What goes in: the model, the data, the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import ConfigError, at_least, at_most, between, check_share, more_than, not_empty, one_of
from rsgrpo.config.image_rules import MAX_MEGAPIXELS, ImageRules, parse_colour
from rsgrpo.errors import shown

DATA_FORMATS = (
    "evisrag",
    "llava",
    "sharegpt",
    "mirage",
    "mgrounding",
    "milebench",
    "vhs",
    "mig_bench",
)
"""What ``rsgrpo.data.readers`` reads."""

BOX_COORDINATES = ("shares", "permille", "pixels")
"""What the numbers of a gold box may count."""

_MAX_QUICKSTART_SAMPLES = 1_000_000
_MAX_QUICKSTART_PIXELS = 2800
_MAX_QUICKSTART_HIDDEN = 8192
_MAX_QUICKSTART_LAYERS = 128
_MIN_VOCABULARY = 256 + 14  # every byte, and Qwen2.5's special tokens
_MAX_VOCABULARY = 200_000
_SCANS_PER_DIGIT = 174  # scikit-learn's digits: 174 scans of the 8, more of the others


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters: only they train; engines and exports get the merged weights."""

    rank: int = 0
    """r; 0: no adapters, every weight trains that is not frozen."""
    alpha: float = 32.0
    """A layer's weight is ``W + alpha / r * B A``."""
    dropout: float = 0.0
    """Share of an adapter's inputs left out while training; above 0 the policy is not the one that sampled."""
    target_modules: Any = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """The linear layers that get an adapter, as peft takes them: ``all-linear``, a list of names or ends of names, or
    a regular expression for whole names."""
    include_vision: bool = False
    """Adapters in the linear layers of the vision tower's blocks as well (needs ``model.freeze_vision=false``)."""

    def __post_init__(self) -> None:
        at_least("model.lora.rank", self.rank, 0)
        more_than("model.lora.alpha", self.alpha, 0.0)
        at_most("model.lora.alpha", self.alpha, 1.0e6)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.lora.dropout={self.dropout} must lie in [0, 1)")
        self._check_targets()

    @property
    def targets(self) -> tuple[str, ...]:
        """``target_modules`` as a list, also where it is one text."""
        return (self.target_modules,) if isinstance(self.target_modules, str) else tuple(self.target_modules)

    def _check_targets(self) -> None:
        given = self.target_modules
        is_list = isinstance(given, list) and all(isinstance(one, str) for one in given)
        if not isinstance(given, str) and not is_list:
            raise ConfigError(
                f"model.lora.target_modules={shown(given, 80)} does not fit; it must be a list of names such as "
                "[q_proj, v_proj], all-linear, or a regular expression"
            )
        if any(not target.strip() for target in self.targets) or (self.rank and not self.targets):
            raise ConfigError("model.lora.target_modules is empty; name layers such as [q_proj, v_proj], or set rank=0")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ConfigError(
                    f"model.lora.target_modules={shown(target, 80)!r} is no regular expression: {error}"
                ) from error


@dataclass(kw_only=True, slots=True)
class VisionCacheConfig:
    """Features of a frozen vision tower, kept on disk: they are constants of the run."""

    folder: str = ""
    """Where; a relative path lies in ``run_dir``; empty: compute them anew each time. Runs and ranks may share it."""
    max_gib: float = 64.0
    """Most that the folder holds, GiB; what was used longest ago goes first (a page of a 7B model: 14 MB)."""

    def __post_init__(self) -> None:
        more_than("model.vision_cache.max_gib", self.max_gib, 0.0)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The policy."""

    path: str = ""
    """Qwen2.5-VL directory or hub id; empty: build the quickstart's small one into the run folder."""
    revision: str = ""
    """Hub revision; empty: the newest."""
    dtype: str = "bfloat16"
    """Compute precision, ``float32`` or ``bfloat16`` (master weights are float32 either way)."""
    freeze_vision: bool = True
    """Keep the vision tower as it is (the projector, ``visual.merger``, goes with it)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""
    attention: str = "auto"
    """What computes attention in the trainer: ``flash`` (GPU, bfloat16: flash-attn if installed, else torch's own),
    ``flex`` (GPU: torch's compiled flex_attention), ``sdpa`` (any device: in tiles), or ``auto``: the first of these
    that works."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    vision_cache: VisionCacheConfig = field(default_factory=VisionCacheConfig)

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("float32", "bfloat16"))
        one_of("model.attention", self.attention, ("auto", "sdpa", "flash", "flex"))
        if self.lora.rank and self.freeze_vision == self.lora.include_vision:
            raise ConfigError(
                f"model.lora.rank={self.lora.rank} trains adapters only, and model.lora.include_vision="
                f"{str(self.lora.include_vision).lower()} does not go with model.freeze_vision="
                f"{str(self.freeze_vision).lower()}; set model.freeze_vision={str(not self.freeze_vision).lower()}, "
                f"or model.lora.include_vision={str(not self.lora.include_vision).lower()}"
            )
        if self.vision_cache.folder and not self.freeze_vision:
            raise ConfigError(
                f"model.vision_cache.folder={shown(self.vision_cache.folder)!r} keeps features of a tower that "
                "training changes (model.freeze_vision=false); set model.freeze_vision=true, or leave the folder empty"
            )


@dataclass(kw_only=True, slots=True)
class QuickstartConfig:
    """The handwriting task that the quickstart writes, and the small model that it builds."""

    num_sft_samples: int = 4096
    """Samples with gold responses to write for supervised training."""
    num_rl_samples: int = 4096
    """Samples to write for reinforcement learning."""
    num_test_samples: int = 512
    """Held-out samples to write; no handwriting of theirs occurs in training."""
    sft_scans_per_digit: int = 10
    """Handwritten scans of each digit that supervised training sees, out of 174 or more. Few, so that it
    learns the questions soon and leaves reading other hands to reinforcement learning."""
    rl_scans_per_digit: int = 120
    """Scans of each digit for reinforcement learning."""
    test_scans_per_digit: int = 40
    """Scans of each digit for the test, and all that are left over."""
    unanswerable_frac: float = 0.2
    """Share of questions whose pages do not hold the answer."""
    image_pixels: int = 28
    """Width and height of a page; a multiple of 28."""
    text_hidden: int = 128
    """Width of the language model that is built."""
    text_layers: int = 3
    """Its layers."""
    text_heads: int = 4
    """Its attention heads."""
    vision_hidden: int = 96
    """Width of the vision tower."""
    vision_layers: int = 1
    """Its layers."""
    vision_heads: int = 4
    """Its attention heads."""
    vocabulary_tokens: int = 768
    """Size of the byte-level BPE vocabulary, special tokens included."""

    def __post_init__(self) -> None:
        for name in ("num_sft_samples", "num_rl_samples", "num_test_samples"):
            between(f"quickstart.{name}", getattr(self, name), 1, _MAX_QUICKSTART_SAMPLES)
        for name in ("sft_scans_per_digit", "rl_scans_per_digit", "test_scans_per_digit"):
            at_least(f"quickstart.{name}", getattr(self, name), 1)
        if self.sft_scans_per_digit + self.rl_scans_per_digit + self.test_scans_per_digit > _SCANS_PER_DIGIT:
            raise ConfigError(
                f"quickstart.sft_scans_per_digit={self.sft_scans_per_digit}, rl_scans_per_digit="
                f"{self.rl_scans_per_digit} and test_scans_per_digit={self.test_scans_per_digit} are more than the "
                f"{_SCANS_PER_DIGIT} scans that there are of the rarest digit; lower one of them"
            )
        if not 0.0 <= self.unanswerable_frac < 1.0:
            raise ConfigError(f"quickstart.unanswerable_frac={self.unanswerable_frac} must lie in [0, 1)")
        if self.image_pixels % 28 or self.image_pixels < 28:
            raise ConfigError(f"quickstart.image_pixels={self.image_pixels} must be a positive multiple of 28")
        between("quickstart.image_pixels", self.image_pixels, 28, _MAX_QUICKSTART_PIXELS)
        between("quickstart.vocabulary_tokens", self.vocabulary_tokens, _MIN_VOCABULARY, _MAX_VOCABULARY)
        for part in ("text", "vision"):
            hidden, layers, heads = (getattr(self, f"{part}_{name}") for name in ("hidden", "layers", "heads"))
            between(f"quickstart.{part}_hidden", hidden, 8, _MAX_QUICKSTART_HIDDEN)
            between(f"quickstart.{part}_layers", layers, 1, _MAX_QUICKSTART_LAYERS)
            between(f"quickstart.{part}_heads", heads, 1, hidden)
            if hidden % heads or hidden // heads % 8:
                raise ConfigError(
                    f"quickstart.{part}_hidden={hidden} must be quickstart.{part}_heads={heads} times a multiple of 8, "
                    "the width of a head"
                )
        if self.text_heads > 1 and self.text_heads % 2:
            raise ConfigError(
                f"quickstart.text_heads={self.text_heads} must be even: two heads share a key and a value"
            )


@dataclass(kw_only=True, slots=True)
class DistractorConfig:
    """Irrelevant images that are mixed into a conversation, as MIRAGE trains; drawn anew every epoch."""

    min_images: int = 0
    """Fewest distractors of a conversation."""
    max_images: int = 0
    """Most; their number is drawn evenly, they come from other records of the source. 0: no distractors."""
    relevance: str = "unused"
    """What the images' relevance labels do. ``unused``: nothing. ``named``: the first answer begins with a line
    ``Relevant images: 2, 5.``, so that the model learns to retrieve. ``filter``: only images that are labelled
    relevant are shown, as behind a retriever."""
    noise_chance: float = 0.0
    """Share of conversations in which irrelevant images are labelled relevant: a retriever's mistakes."""
    noise_max_frac: float = 0.15
    """Of the irrelevant images of such a conversation between none and this share are, drawn evenly."""

    def __post_init__(self) -> None:
        at_least("min_images", self.min_images, 0)
        at_least("max_images", self.max_images, self.min_images)
        one_of("relevance", self.relevance, ("unused", "named", "filter"))
        check_share("noise_chance", self.noise_chance)
        check_share("noise_max_frac", self.noise_max_frac)
        if self.noise_chance and self.relevance == "unused":
            raise ConfigError(
                f"noise_chance={self.noise_chance} changes labels that nothing reads; set distractors."
                "relevance to named or filter, or leave the noise out"
            )


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One data set of a mixture for supervised training."""

    format: str = "llava"
    """How it is written; docs/formats.md."""
    path: str = ""
    """File, folder, hub data set, names in braces, or a LLaVA manifest (YAML)."""
    media_root: str = ""
    """Folder that image paths are relative to; empty: where the format keeps them."""
    weight: float = 1.0
    """How often an epoch shows each record: 2 shows all twice, 0.5 half of them, drawn anew."""
    sampling: str = "all"
    """Which records of each file: ``all``, ``first:N``, ``end:N``, ``random:N``; N may be ``10%``."""
    box_coordinates: str = ""
    """As ``data.box_coordinates``, for this source (format ``evisrag``); empty: that."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)

    def __post_init__(self) -> None:
        one_of("format", self.format, DATA_FORMATS)
        one_of("box_coordinates", self.box_coordinates, ("", *BOX_COORDINATES))
        if self.box_coordinates and self.format != "evisrag":
            raise ConfigError(
                f"box_coordinates={self.box_coordinates!r} says what the column boxes of the format evisrag counts; a "
                f"source of format {self.format!r} has none, and boxes in its text are trained on as they stand "
                "(docs/boxes.md)"
            )
        more_than("weight", self.weight, 0.0)
        at_most("weight", self.weight, 1.0e6)
        if not self.path.strip():
            raise ConfigError(f"path is empty; name the file of this source of format {self.format!r}")


@dataclass(kw_only=True, slots=True)
class VideoConfig:
    """Which frames of a video a conversation shows, as images; docs/media.md says at which seconds."""

    frames_per_second: float = 2.0
    """How many of each second (of a folder of frames: all, up to ``max_frames``)."""
    min_frames: int = 4
    """Of a short video, as far as it has them."""
    max_frames: int = 32
    """Of a long video, evenly spread; counts where it is lower than ``min_frames``."""

    def __post_init__(self) -> None:
        more_than("data.video.frames_per_second", self.frames_per_second, 0.0)
        at_least("data.video.min_frames", self.min_frames, 1)
        at_least("data.video.max_frames", self.max_frames, 1)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """EVisRAG-Train / -Test files (JSONL or JSON beside image files or ``images.parquet``), or any format."""

    sft_path: str = ""
    """Tagged trajectories; a file, or a folder. All three empty: the quickstart's own data."""
    sft_sections: list[str] | None = None
    """Sections that every trajectory of ``sft_path`` must have, closed; those that it has beside them must be closed
    as well. ``[]`` for responses without sections; null: the required ones of ``response.sections``."""
    format: str = "evisrag"
    """Format of ``sft_path``. ``evisrag`` needs tagged responses and is held in memory; any other one is read
    from its files record by record while it trains, and every answer of a conversation is a target."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Data sets of the supervised stage in place of ``sft_path``."""
    check_media: bool = True
    """Look for every image of a mixture before training starts; false: an image is missed when it is needed."""
    rl_path: str = ""
    """Questions with gold for reinforcement learning."""
    test_path: str = ""
    """Held-out questions."""
    image_root: str = ""
    """Folder that image paths are relative to; empty: the folder of the data file."""
    media_cache: str = ""
    """Folder for images that stand in the data as text or bytes, for the frames of videos, and for what was found out
    about the pages of data sets; on several nodes one that all see. Empty: ``$XDG_CACHE_HOME/rsgrpo/media``, or
    ``~/.cache/rsgrpo/media``."""
    video: VideoConfig = field(default_factory=VideoConfig)
    id_column: str = "qid"
    """Column or key of an EVisRAG record with its id."""
    question_column: str = "query"
    """The same with the question."""
    prompt_column: str = "prompt"
    """The same with a ready prompt."""
    answer_column: str = "answer"
    """The same with the accepted answers."""
    image_column: str = "image"
    """The same with the images."""
    gold_column: str = "gold_response"
    """Tagged gold response beside plain answers, for the evidence score of a test set; may be absent."""
    box_coordinates: str = "shares"
    """What the numbers in the column ``boxes`` count: ``shares`` of the page's width and height, ``permille`` (0 to
    1000), or ``pixels`` of the image as it is stored, upright. Formats that fix it themselves (``mgrounding``:
    per mille, ``mig_bench``: shares) do not ask."""
    max_images: int = 5
    """Images a question may have; further ones are cut in evaluation data, an error in training data."""
    min_pixels: int = 3136
    """Smaller pages are scaled up to this area before the processor sees them."""
    max_pixels: int = 1568000
    """Larger pages are scaled down to this area."""
    background: str = "white"
    """What shows through where an image is transparent: a name, or ``#rrggbb``. White is what qwen-vl-utils takes."""
    max_image_megapixels: float = MAX_MEGAPIXELS
    """Larger image files are rejected or skipped; a megapixel takes up to 10 MB of memory while it is read."""
    max_prompt_tokens: int = 15000
    """A longer prompt is rejected or skipped, never cut."""
    on_bad_sample: str = "reject"
    """``reject``: stop and name the sample. ``skip``: leave it out and say how many were left out."""
    max_skipped_frac: float = 0.01
    """Share of a data set that ``skip`` may leave out without stopping; one sample may always be."""

    def __post_init__(self) -> None:
        one_of("data.on_bad_sample", self.on_bad_sample, ("reject", "skip"))
        one_of("data.box_coordinates", self.box_coordinates, BOX_COORDINATES)
        check_share("data.max_skipped_frac", self.max_skipped_frac)
        at_least("data.max_images", self.max_images, 1)
        at_least("data.min_pixels", self.min_pixels, 1)
        at_least("data.max_prompt_tokens", self.max_prompt_tokens, 1)
        if self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"data.max_pixels={self.max_pixels} is less than data.min_pixels={self.min_pixels}; "
                "raise the one or lower the other"
            )
        more_than("data.max_image_megapixels", self.max_image_megapixels, 0.0)
        try:
            parse_colour(self.background)
        except ValueError as error:
            raise ConfigError(
                f"data.background={self.background!r} is no colour ({error}); give a name such as white, or '#ffffff'"
            ) from error
        one_of("data.format", self.format, DATA_FORMATS)
        if self.mixture and self.sft_path:
            raise ConfigError("data.sft_path and data.mixture are both set; give the supervised stage one of them")
        is_mixture = bool(self.mixture) or self.format != "evisrag"
        paths = (self.rl_path,) if is_mixture else (self.sft_path, self.rl_path, self.test_path)
        if any(paths) and not self.test_path:
            given = " and ".join(
                f"data.{name}_path" for name in ("sft", "rl") if getattr(self, f"{name}_path") in filter(None, paths)
            )
            raise ConfigError(f"data.test_path is empty although {given} is set; name the held-out questions")

    @property
    def image_rules(self) -> ImageRules:
        """How images are read: the settings that belong together, as one record."""
        return ImageRules(
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            background=parse_colour(self.background),
            max_megapixels=self.max_image_megapixels,
        )


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How a question becomes a prompt."""

    path: str = "configs/prompt/evidence.jinja"
    """Jinja template with the variables ``question``, ``num_images`` and ``choices``."""
    image_order: str = "text_first"
    """``text_first``, ``images_first``, or ``markers`` (where the data set's ready prompt says)."""
    system: str = "You are a helpful assistant."
    """System turn; the default is the Qwen chat template's own."""

    def __post_init__(self) -> None:
        not_empty("prompt.path", self.path)
        one_of("prompt.image_order", self.image_order, ("text_first", "images_first", "markers"))
