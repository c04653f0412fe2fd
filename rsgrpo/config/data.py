"""``data``: data sets, their formats, and how their images are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import (
    ConfigError,
    Literal,
    at_least,
    at_most,
    between,
    check_choices,
    check_share,
    more_than,
    one_of,
)
from rsgrpo.config.image_rules import MAX_MEGAPIXELS, ImageRules, parse_colour

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
"""The formats that ``rsgrpo.data.readers`` reads."""
BOX_COORDINATES = ("shares", "permille", "pixels")
"""What the numbers of a gold box may count."""

OnBadSample = Literal["reject", "skip"]


@dataclass(kw_only=True, slots=True)
class DistractorConfig:
    """Irrelevant images that are mixed into a conversation, as MIRAGE trains; drawn anew every epoch."""

    min_images: int = 0
    """Fewest distractors of a conversation."""
    max_images: int = 0
    """Most distractors of a conversation; their number is drawn evenly, they come from other records of the source. 0:
    no distractors."""
    relevance: Literal["unused", "named", "filter"] = "unused"
    """What the images' relevance labels do. ``unused``: nothing. ``named``: the first answer begins with a line
    ``Relevant images: 2, 5.``, so that the model learns to retrieve. ``filter``: only images that are labelled
    relevant are shown, as behind a retriever."""
    noise_chance: float = 0.0
    """Share of conversations in which irrelevant images are labelled relevant: a retriever's mistakes."""
    noise_max_frac: float = 0.15
    """Largest share of such a conversation's irrelevant images that are labelled relevant; the share is drawn evenly
    from 0 on."""
    noise_from_epoch: float = 0.0
    """How many passes over the data come first, in which the labels are those of the data; MIRAGE's code has 0.6."""

    def __post_init__(self) -> None:
        at_least("min_images", self.min_images, 0)
        at_least("max_images", self.max_images, self.min_images)
        check_choices(self, "")
        check_share("noise_chance", self.noise_chance)
        check_share("noise_max_frac", self.noise_max_frac)
        at_least("noise_from_epoch", self.noise_from_epoch, 0.0)
        if self.noise_chance and self.relevance == "unused":
            raise ConfigError(
                f"noise_chance={self.noise_chance} changes labels that nothing reads; set distractors."
                "relevance to named or filter, or leave the noise out"
            )


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One data set of a mixture for supervised training."""

    format: str = "llava"
    """Format of its files; docs/formats.md describes them."""
    path: str = ""
    """Where it lies: file, folder, hub data set, names in braces, or a LLaVA manifest (YAML)."""
    media_root: str = ""
    """Folder that image paths are relative to; empty: where the format keeps them."""
    weight: float = 1.0
    """How often an epoch shows each record: 2 shows all twice, 0.5 half of them, drawn anew."""
    sampling: str = "all"
    """Which records of each file are used: ``all``, ``first:N``, ``end:N``, ``random:N``; N may be ``10%``."""
    box_coordinates: str = ""
    """What the numbers of its boxes count (format ``evisrag``); empty: what ``data.box_coordinates`` says."""
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
    """How many frames of each second are shown (of a folder of frames: all, up to ``max_frames``)."""
    min_frames: int = 4
    """Fewest frames of a short video, as far as it has them."""
    max_frames: int = 32
    """Most frames of a long video, evenly spread; counts where it is lower than ``min_frames``."""

    def __post_init__(self) -> None:
        more_than("data.video.frames_per_second", self.frames_per_second, 0.0)
        at_least("data.video.min_frames", self.min_frames, 1)
        at_least("data.video.max_frames", self.max_frames, 1)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """EVisRAG-Train / -Test files (JSONL or JSON beside image files or ``images.parquet``), or any format."""

    sft_path: str = ""
    """File or folder of tagged trajectories for the supervised stage. If ``sft_path``, ``rl_path`` and ``test_path``
    are all empty, the run makes the quickstart's own data."""
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
    retrieve: str = ""
    """Index (``rsgrpo index``) whose pages questions of ``rl_path`` and ``test_path`` are asked over, as its retriever
    finds them, in place of the pages that the data name; empty: those. Trajectories of ``sft_path`` show them where
    nothing is said of other pages. docs/behind_retriever.md"""
    retrieve_pages: int = 3
    """Most pages that are found for a question; fewer where the prompt would be too long."""
    retrieve_min_pages: int = 0
    """Fewest pages of a training question: their number is drawn evenly from here to ``retrieve_pages``, anew at every
    refresh. 0: always ``retrieve_pages``."""
    retrieve_by: Literal["auto", "vector", "text", "hybrid"] = "auto"
    """What is searched; ``auto``: text and vectors where a weight was tuned for the index, else vectors."""
    retrieve_embedder: str = ""
    """Where the embedder that made the index lies now; empty: where it lay then."""
    retrieve_refresh_steps: int = 0
    """Open the index and search again every so many steps of reinforcement learning: it may have got pages, or another
    embedder, in the meantime. 0: never."""
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
    """Column or key of the record with its question."""
    prompt_column: str = "prompt"
    """Column or key of the record with a ready prompt."""
    answer_column: str = "answer"
    """Column or key of the record with the accepted answers."""
    image_column: str = "image"
    """Column or key of the record with the images."""
    gold_column: str = "gold_response"
    """Column or key of the record with a tagged gold response beside plain answers, for the evidence score of a test
    set; may be absent."""
    box_coordinates: str = "shares"
    """What the numbers in the column ``boxes`` count: ``shares`` of the page's width and height, ``permille`` (0 to
    1000), or ``pixels`` of the image as it is stored, upright. Formats that fix it themselves (``mgrounding``:
    per mille, ``mig_bench``: shares) do not ask."""
    max_images: int = 5
    """Most images of a question; further ones are cut in evaluation data, an error in training data."""
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
    on_bad_sample: OnBadSample = "reject"
    """``reject``: stop and name the sample. ``skip``: leave it out and say how many were left out."""
    max_skipped_frac: float = 0.01
    """Share of a data set that ``skip`` may leave out without stopping; one sample may always be."""

    def __post_init__(self) -> None:
        check_choices(self, "data.")
        one_of("data.box_coordinates", self.box_coordinates, BOX_COORDINATES)
        check_share("data.max_skipped_frac", self.max_skipped_frac)
        at_least("data.max_images", self.max_images, 1)
        at_least("data.retrieve_pages", self.retrieve_pages, 1)
        between("data.retrieve_min_pages", self.retrieve_min_pages, 0, self.retrieve_pages)
        at_least("data.retrieve_refresh_steps", self.retrieve_refresh_steps, 0)
        if self.retrieve and self.retrieve_pages > self.max_images:
            raise ConfigError(
                f"data.retrieve_pages={self.retrieve_pages} is more than data.max_images={self.max_images}; lower the "
                "one or raise the other"
            )
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
