"""The filter within a pipeline: every page is judged once for each question, whatever the depth of the search.

``run_dir/pipeline/<set>/page_scores.jsonl`` keeps what was said of each page, so that a rerun judges nothing again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.filtering.endpoint_scorer import EndpointYesNoScorer
from recipes.filtering.head import head_scorer, worded
from recipes.filtering.stages import AskedModel, make_stages
from recipes.indexing.places import MakeSingleEmbedder
from rollout.engine import NamedLogprobs, TokenJudge
from rsgrpo.config import Config, FilterStageConfig, QueryFilterConfig
from rsgrpo.io.jsonl import append_rows, read_rows
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PageScorer, PagesOfQuestion, ScoredPages
from rsgrpo.types import ImageRef, PromptedSample

_DIGEST_CHARACTERS = 16


class LazyJudge:
    """A ``TokenJudge`` that starts its engine when it is asked for the first time.

    Args:
        start: gives the engine.
    """

    def __init__(self, start: Callable[[], TokenJudge]) -> None:
        self._start = start

    def named_logprobs(
        self, prompted: Sequence[PromptedSample], token_ids: Sequence[int], *, max_pixels: int
    ) -> list[NamedLogprobs]:
        """See :class:`rollout.engine.TokenJudge`."""
        return self._start().named_logprobs(prompted, token_ids, max_pixels=max_pixels)


class KeptScores:
    """A ``PageScorer`` that remembers what another one said, in a file.

    Args:
        scorer: who scores pages that are not known.
        name: tells this scorer and its settings from others in the same file.
        page_ids: the id of each page of the corpus.
        file: the file of the scores.
    """

    def __init__(self, scorer: PageScorer, name: str, page_ids: Mapping[ImageRef, str], file: Path) -> None:
        self._scorer = scorer
        self._name = name
        self._page_ids = page_ids
        self._file = file
        self._known: dict[tuple[str, str], float] = {
            (row["question"], row["page"]): float(row["probability"])
            for row in read_rows(file)
            if row.get("scorer") == name
        }

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.asarray(found.probabilities, dtype=np.float64)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`; known pages cost no token."""
        unknown = [
            PagesOfQuestion(question=item.question, pages=pages)
            for item in asked
            if (pages := tuple(page for page in item.pages if self._key(item.question, page) not in self._known))
        ]
        rows = []
        for item, found in zip(unknown, self._scorer.score_all(unknown) if unknown else (), strict=True):
            for page, probability in zip(item.pages, found.probabilities, strict=True):
                key = self._key(item.question, page)
                self._known[key] = probability
                rows.append({"scorer": self._name, "question": key[0], "page": key[1], "probability": probability})
        append_rows(self._file, rows)
        return [
            ScoredPages(probabilities=tuple(self._known[self._key(item.question, page)] for page in item.pages))
            for item in asked
        ]

    def _key(self, question: str, page: ImageRef) -> tuple[str, str]:
        return question, self._page_ids[page]


def pipeline_stages(
    config: Config,
    model: AskedModel | None,
    model_name: str,
    index: Path,
    make_embedder: MakeSingleEmbedder,
    page_ids: Mapping[ImageRef, str],
    file: Path,
) -> list[FilterStage]:
    """Make the passes of the filter, each of which remembers what it said.

    Args:
        config: the settings of the run.
        model: the model that ``yes_no`` asks; None: the server that answers.
        model_name: the name of the model that answers.
        index: the folder of the index that holds the pages' vectors, if there is one: ``cosine`` takes them from there
            where the embedder is the same.
        make_embedder: makes the embedder of ``cosine``.
        page_ids: the id of each page of the corpus.
        file: the file that scores are kept in.

    Raises:
        RsgrpoError: a pass needs something that the settings do not name.
    """
    settings = config.filter
    if not settings.index and index.is_dir() and settings.embedder == config.embedder.model:
        settings = dataclasses.replace(settings, index=str(index))

    def ask_server(stage: FilterStageConfig) -> PageScorer:
        answers = (settings.yes, settings.no)
        return EndpointYesNoScorer(
            config.eval.endpoint, config.data, worded(settings.prompt), answers, max_pixels=stage.max_pixels
        )

    make_head = head_scorer(settings, config.data.image_rules)
    stages = make_stages(settings, model, make_embedder, make_head, None if model is not None else ask_server)
    return [
        dataclasses.replace(
            stage,
            scorer=KeptScores(stage.scorer, _name(config.filter, chosen, model_name), page_ids, file),
        )
        for stage, chosen in zip(stages, settings.stages, strict=True)
    ]


def _name(settings: QueryFilterConfig, stage: FilterStageConfig, model_name: str) -> str:
    """A name that changes with everything that a score depends on."""
    judged_by = {
        "cosine": [settings.index, settings.embedder, settings.calibration],
        "yes_no": [model_name, settings.prompt, settings.yes, settings.no, stage.max_pixels],
        "head": [settings.head, settings.prompt, stage.max_pixels],
    }[stage.scorer]
    digest = hashlib.sha256(json.dumps(judged_by).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{stage.scorer} {digest}"
