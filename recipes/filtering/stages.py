"""Make the passes of a filter from its settings: who scores, and what an embedder, an index or a head is needed for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.filtering.yes_no import YesNoScorer
from recipes.indexing.places import MakeSingleEmbedder
from rollout.engine import TokenJudge
from rsgrpo.config import ConfigError, FilterStageConfig, QueryFilterConfig
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.config.index import IndexConfig
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.data.images.sources import image_bytes
from rsgrpo.errors import shown
from rsgrpo.prompts.relevance import RelevancePrompts, answer_tokens
from rsgrpo.retrieval.embedders.embedder import CountsImageTokens
from rsgrpo.retrieval.filtering.cosine_scorer import CosineScorer, page_finder
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PageScorer
from rsgrpo.retrieval.filtering.relevance import Calibration, load_calibration
from rsgrpo.types import ImageRef

if TYPE_CHECKING:  # they take long to import
    from transformers import ProcessorMixin

    from rsgrpo.retrieval.embedders.embedder import Embedder

CALIBRATION_FILE = "filter_calibration.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedModel:
    """The model that is asked for yes or no.

    Attributes:
        judge: who says how probable answers of one token are: an engine that holds the model, or a forward pass.
        processor: the model's tokenizer and image processor.
        rules: how pages are read; each pass scales them further down.
    """

    judge: TokenJudge
    processor: ProcessorMixin
    rules: ImageRules


def make_stages(
    settings: QueryFilterConfig,
    model: AskedModel | None,
    make_embedder: MakeSingleEmbedder,
    make_head: Callable[[FilterStageConfig], PageScorer],
    make_yes_no: Callable[[FilterStageConfig], PageScorer] | None = None,
) -> list[FilterStage]:
    """Make the passes of a filter.

    Args:
        settings: the settings of the filter.
        model: the model that ``yes_no`` asks; None: there is none.
        make_embedder: makes the embedder of ``cosine`` from its settings.
        make_head: makes the scorer of a pass with ``head``.
        make_yes_no: makes the scorer of a pass with ``yes_no``; None: ``model`` is asked.

    Returns:
        The passes, in the order of the settings.

    Raises:
        ConfigError: a pass needs something that the settings do not name.
        RelevanceError: the calibration is of another embedder.
        PromptTemplateError: yes or no is not one token of the model.
    """
    cosine: CosineScorer | None = None
    stages = []
    for stage in settings.stages:
        if stage.scorer == "cosine":
            # One for all passes: its vectors are kept.
            cosine = cosine or cosine_scorer(settings, make_embedder, needs_calibration=_needs_calibration(settings))
            scorer: PageScorer = cosine
        elif stage.scorer == "yes_no":
            scorer = make_yes_no(stage) if make_yes_no else yes_no_scorer(settings, stage, model)
        else:
            scorer = make_head(stage)
        stages.append(
            FilterStage(name=stage.scorer, scorer=scorer, top_k=stage.top_k, threshold=stage.threshold, mode=stage.mode)
        )
    return stages


def check_filter(settings: QueryFilterConfig, processor: ProcessorMixin) -> None:
    """Refuse a filter that could not work, before anything is loaded or trained; one that is not enabled is passed.

    Args:
        settings: the settings of the filter.
        processor: the tokenizer and the image processor of the model that answers.

    Raises:
        ConfigError: the index, the head or the calibration is not where the settings say.
        PromptTemplateError: yes or no is not one token of the model, or the template cannot be used.
    """
    if not settings.enabled:
        return
    scorers = {stage.scorer for stage in settings.stages}
    if "yes_no" in scorers:
        answer_tokens(processor.tokenizer, settings.yes, settings.no)
        prompts = RelevancePrompts(settings.prompt, processor, settings.template_arguments)
        prompts.build("probe", "?", ImageRef(path="probe.png"))
    for name, scorer in (("index", "cosine"), ("calibration", "cosine"), ("head", "head")):
        path = getattr(settings, name)
        if scorer in scorers and path and not Path(path).exists():
            raise ConfigError(f"filter.{name}={shown(path)} does not exist; give the path of one that does")


def yes_no_scorer(settings: QueryFilterConfig, stage: FilterStageConfig, model: AskedModel | None) -> YesNoScorer:
    """Make the scorer of a pass that asks the model itself.

    Args:
        settings: the settings of the filter, which say how it is asked.
        stage: the pass, which says at which size.
        model: the model; None: there is none.

    Raises:
        ConfigError: there is no model.
        PromptTemplateError: yes or no is not one token of the model.
    """
    if model is None:
        raise ConfigError("filter.stages has a yes_no, and no model is named that is asked; set filter.policy=MODEL")
    return YesNoScorer(
        model.judge,
        RelevancePrompts(settings.prompt, model.processor, settings.template_arguments),
        answer_tokens(model.processor.tokenizer, settings.yes, settings.no),
        max_pixels=stage.max_pixels,
        image_tokens=ImageTokens(model.processor.image_processor, model.rules.scaled_down(stage.max_pixels)),
    )


def cosine_scorer(
    settings: QueryFilterConfig,
    make_embedder: MakeSingleEmbedder,
    *,
    needs_calibration: bool,
    reads_calibration: bool = True,
) -> CosineScorer:
    """Make the scorer over an embedder, with the vectors of the index and the calibration that the settings name.

    Args:
        settings: the settings of the filter.
        make_embedder: makes the embedder from its settings.
        needs_calibration: whether the scores must be probabilities; else a calibration is used where there is one.
        reads_calibration: whether a calibration is looked for at all; not where one is about to be fitted.

    Raises:
        ConfigError: no embedder is named, or a calibration is needed and not there.
        EmbedderMismatchError: another embedder made the index.
        RelevanceError: the calibration is of another embedder.
    """
    index = None
    if settings.index:
        from rsgrpo.retrieval.index.flat_index import open_index

        index = open_index(Path(settings.index), IndexConfig())
    saved = index.embedder if index is not None else None
    if settings.embedder:
        config = EmbedderConfig(model=settings.embedder) if saved is None else replace(saved, model=settings.embedder)
    elif saved is not None:
        config = saved
    else:
        raise ConfigError("filter.stages has a cosine; set filter.embedder, or filter.index to one that names its own")
    embedder = make_embedder(config)
    if embedder.identity.is_multi_vector:
        raise ConfigError(
            f"{shown(config.model, 120)} gives a page many vectors, and the filter compares one; name an embedder with "
            "one vector a page, or let yes_no judge"
        )
    return CosineScorer(
        embedder,
        _calibration(settings, embedder, needs_calibration) if reads_calibration else None,
        image_tokens=embedder.image_tokens if isinstance(embedder, CountsImageTokens) else None,
        index=index,
        find_page_id=page_finder(index, file_digest) if index is not None else None,
    )


def file_digest(page: ImageRef) -> str:
    """SHA-256 of a page's image file, as an index keeps it; 64 hexadecimal digits.

    Args:
        page: the page.

    Raises:
        ImageError: the file cannot be read.
    """
    return hashlib.sha256(image_bytes(page)).hexdigest()


def calibration_file(settings: QueryFilterConfig, embedder: Embedder) -> Path:
    """Where the calibration of an embedder lies: what ``filter.calibration`` names, else beside the embedder.

    Args:
        settings: the settings of the filter.
        embedder: the embedder.
    """
    return Path(settings.calibration) if settings.calibration else Path(embedder.identity.model) / CALIBRATION_FILE


def _needs_calibration(settings: QueryFilterConfig) -> bool:
    return any(stage.scorer == "cosine" and stage.threshold > 0 for stage in settings.stages)


def _calibration(settings: QueryFilterConfig, embedder: Embedder, is_needed: bool) -> Calibration | None:
    file = calibration_file(settings, embedder)
    if file.exists() or settings.calibration:
        return load_calibration(file, embedder.identity)
    if is_needed:
        raise ConfigError(
            f"the cosines of {shown(embedder.identity.model, 120)} have no calibration ({shown(file, 200)} is not "
            "there), so that a threshold means nothing; fit one with rsgrpo filter --calibrate DEV, or set threshold: "
            "0 in that pass to keep the best pages by their order"
        )
    return None
