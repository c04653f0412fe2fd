"""Training and test questions behind a retriever: over the pages of an index that a search finds for them.

questions with gold ──search──► found pages ──gold that follows──► prompts that fit; searched again every N steps
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.filtering.stages import file_digest
from recipes.indexing.places import make_any_embedder, open_any_index
from recipes.indexing.searching import search_all
from rsgrpo.config import ConfigError, DataConfig, ResponseFormat
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.retrieved_pages import can_show_found_pages, gold_pages, with_found_pages
from rsgrpo.errors import shown
from rsgrpo.retrieval.filtering.cosine_scorer import page_finder
from rsgrpo.retrieval.index.page_index import PageIndexError
from rsgrpo.types import ImageRef, PromptedSample, Sample

if TYPE_CHECKING:  # they take long to import
    from recipes.indexing.command_line import MakeEmbedder
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.index.page_index import FoundPage, PageIndex

_SHOWN_ID = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundQuestions:
    """Questions over the pages that were found for them.

    Attributes:
        prompts: the questions with their prompts, in the order of the data set.
        num_without_gold: how many questions were left out because they name no gold page, or have no answer in the
            pages of the data set.
        num_not_found: how many questions were left out because no page at all was found, as by text for a question
            without a word to search for.
        found_frac: share of the questions all of whose gold pages were found and are shown, in [0, 1].
        pages_mean: mean number of pages shown.
    """

    prompts: tuple[PromptedSample, ...]
    num_without_gold: int
    num_not_found: int
    found_frac: float
    pages_mean: float

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of a search, for the step before which it was made."""
        return {"retrieval/found_frac": self.found_frac, "retrieval/pages_mean": self.pages_mean}

    def line(self, name: str) -> str:
        """Say what was found, for the user.

        Args:
            name: the name of the data set.
        """
        line = (
            f"{name}: asked behind the retriever, {self.pages_mean:.1f} pages each; all gold pages are among them for "
            f"{self.found_frac:.1%} of the questions, the others cannot be answered"
        )
        if self.num_without_gold:
            line += f"; {self.num_without_gold} without a known gold page were left out"
        if self.num_not_found:
            line += f"; {self.num_not_found} for which nothing was found were left out"
        return line


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTrajectories:
    """Trajectories of supervised training, over the pages that were found for them where they can be.

    Attributes:
        prompts: all trajectories with their prompts, in the order of the data set.
        num_found: how many of them show pages that were found.
        found_frac: share of these all of whose gold pages are shown, in [0, 1]; the others are refusals.
    """

    prompts: tuple[PromptedSample, ...]
    num_found: int
    found_frac: float

    def line(self, name: str) -> str:
        """Say what was found, for the user.

        Args:
            name: the name of the data set.
        """
        num_kept = len(self.prompts) - self.num_found
        line = f"{name}: {self.num_found} of {len(self.prompts)} trajectories show the pages that the retriever finds"
        if self.num_found:
            line += f"; all gold pages are among them for {self.found_frac:.1%}, the others are refusals"
        if num_kept:
            line += (
                f"; {num_kept} keep their pages: they have sections beside evidence lines and answer, which speak of "
                "these pages, no answer or no known gold page, or nothing was found for them"
            )
        return line


class PageRetriever:
    """Finds pages for questions in the index that ``data.retrieve`` names.

    Args:
        settings: ``data``, of which the fields ``retrieve…`` say where and how to search.
        seed: the seed of the run, from which numbers of pages are drawn.
        response_format: the declared sections of gold responses.
        make_embedder: makes the embedder from its settings; tests give one that needs no model.

    Raises:
        PageIndexError: there is no index in the folder, it cannot be read, or it holds no page.
        ConfigError: the index does not say which embedder made it.
        EmbeddingError: the embedder cannot be loaded.
    """

    def __init__(
        self,
        settings: DataConfig,
        seed: int,
        response_format: ResponseFormat,
        make_embedder: MakeEmbedder = make_any_embedder,
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._format = response_format
        self._make_embedder = make_embedder
        self._embedder: AnyEmbedder | None = None
        self._embedder_settings: EmbedderConfig | None = None
        self._digests: dict[ImageRef, str] = {}
        self._index = self._open()

    def refresh(self) -> None:
        """Open the index anew; its pages, or its embedder, may have changed.

        Raises:
            PageIndexError: the index cannot be read any more.
        """
        self._index = self._open()

    def questions(
        self,
        samples: Sequence[Sample],
        prompted: Callable[[Sample], PromptedSample],
        fits: Callable[[PromptedSample], bool],
        *,
        search: int | None,
    ) -> FoundQuestions:
        """Search for questions, and show what was found.

        Args:
            samples: the questions with the pages and the gold of the data set.
            prompted: makes the prompt of a question.
            fits: whether a prompt leaves room for a response; where it does not, fewer of the best pages are shown,
                down to one.
            search: the number of the search, from which the number of pages is drawn; None: always ``retrieve_pages``,
                as a test wants them.

        Returns:
            The questions that can be asked behind a retriever, in their order.

        Raises:
            DataError: no question is left, or one cannot be asked over other pages.
            EmbeddingError: a question cannot be embedded.
        """
        asked = [sample for sample in samples if sample.is_sufficient and gold_pages(sample, self._format)]
        found = self._search([sample.question or sample.prompt for sample in asked])
        find_id = page_finder(self._index, self._digest)
        prompts, num_complete = [], 0
        for sample, pages in zip(asked, found, strict=True):
            if pages:
                prompt = self._fitting(sample, pages[: self._num_pages(sample, search)], find_id, prompted, fits)
                prompts.append(prompt)
                num_complete += prompt.sample.is_sufficient
        if not prompts:
            raise DataError(
                f"none of {len(samples)} questions can be asked behind data.retrieve={shown(self._settings.retrieve)}: "
                f"{len(samples) - len(asked)} name no gold page, for {len(asked)} no page was found"
            )
        return FoundQuestions(
            prompts=tuple(prompts),
            num_without_gold=len(samples) - len(asked),
            num_not_found=len(asked) - len(prompts),
            found_frac=num_complete / len(prompts),
            pages_mean=sum(len(prompt.sample.images) for prompt in prompts) / len(prompts),
        )

    def trajectories(
        self,
        samples: Sequence[Sample],
        prompted: Callable[[Sample], PromptedSample],
        fits: Callable[[PromptedSample], bool],
    ) -> FoundTrajectories:
        """Show found pages in those trajectories that can be written anew over them; the others keep theirs.

        Args:
            samples: the trajectories with the pages and the gold of the data set.
            prompted: makes the prompt of a trajectory.
            fits: whether a trajectory fits into a row of the trainer, as in :meth:`questions`.

        Returns:
            All trajectories in their order.

        Raises:
            DataError: one cannot be asked over other pages.
            EmbeddingError: a question cannot be embedded.
        """
        changed = [sample for sample in samples if can_show_found_pages(sample, self._format)]
        found = self.questions(changed, prompted, fits, search=0) if changed else None
        by_id = {prompt.sample.sample_id: prompt for prompt in found.prompts} if found else {}
        return FoundTrajectories(
            prompts=tuple(by_id.get(sample.sample_id) or prompted(sample) for sample in samples),
            num_found=len(by_id),
            found_frac=found.found_frac if found else 0.0,
        )

    def _open(self) -> PageIndex:
        folder = Path(self._settings.retrieve)
        index = open_any_index(folder, IndexConfig())
        if not len(index):
            raise PageIndexError(f"{index.name} (data.retrieve) holds no page; add documents with rsgrpo index")
        if index.embedder is None and not self._settings.retrieve_embedder:
            raise ConfigError(f"{index.name} does not say how to run its embedder; set data.retrieve_embedder to it")
        return index

    def _loaded_embedder(self) -> AnyEmbedder:
        """The embedder of the index as it is now; it is loaded again only where its settings have changed."""
        settings = self._index.embedder or EmbedderConfig()
        if self._settings.retrieve_embedder:
            settings = replace(settings, model=self._settings.retrieve_embedder)
        if self._embedder is None or settings != self._embedder_settings:
            self._embedder, self._embedder_settings = self._make_embedder(settings), settings
        return self._embedder

    def _search(self, questions: Sequence[str]) -> list[list[FoundPage]]:
        """The best pages for each question; none where a search by text has no word to go by."""
        by, k, folder = self._settings.retrieve_by, self._settings.retrieve_pages, Path(self._settings.retrieve)
        return search_all(self._index, folder, questions, k, None if by == "auto" else by, self._loaded_embedder)

    def _num_pages(self, sample: Sample, number: int | None) -> int:
        most, fewest = self._settings.retrieve_pages, self._settings.retrieve_min_pages
        if number is None or not fewest:
            return most
        digest = hashlib.blake2b(sample.sample_id.encode(), digest_size=8).digest()
        # A question's number depends on nothing but seed, search and id: not on which others are asked.
        rng = np.random.default_rng((self._seed, number, int.from_bytes(digest, "big")))
        return int(rng.integers(fewest, most + 1))

    def _fitting(
        self,
        sample: Sample,
        pages: Sequence[FoundPage],
        find_id: Callable[[ImageRef], str | None],
        prompted: Callable[[Sample], PromptedSample],
        fits: Callable[[PromptedSample], bool],
    ) -> PromptedSample:
        """The question over as many of the best pages as fit, at least one."""
        own = {find_id(image): place for place, image in reversed(list(enumerate(sample.images)))}
        places = [own.get(hit.page.page_id) for hit in pages]
        images = [
            sample.images[place] if place is not None else self._image(hit)
            for hit, place in zip(pages, places, strict=True)
        ]
        for count in range(len(images), 0, -1):
            prompt = prompted(with_found_pages(sample, images[:count], places[:count], self._format))
            if fits(prompt):
                break
        return prompt

    def _image(self, hit: FoundPage) -> ImageRef:
        if not hit.page.image_path:
            raise PageIndexError(
                f"page {shown(hit.page.page_id, _SHOWN_ID)!r} of {self._index.name} has no image, so that nobody can "
                "be asked over it; make the index with rsgrpo index"
            )
        return ImageRef(path=f"{hit.page.document}#{hit.page.page_number}", file=hit.page.image_path)

    def _digest(self, image: ImageRef) -> str:
        if image not in self._digests:
            self._digests[image] = file_digest(image)
        return self._digests[image]


class SearchedAgain:
    """Questions of reinforcement learning, searched again while it runs.

    Args:
        retriever: searches the index.
        samples: the questions with the pages and the gold of the data set.
        prompts: the questions as they were found before the first step.
        prompted: makes the prompt of a question.
        fits: whether a prompt leaves room for a response.
    """

    def __init__(
        self,
        retriever: PageRetriever,
        samples: Sequence[Sample],
        prompts: Sequence[PromptedSample],
        prompted: Callable[[Sample], PromptedSample],
        fits: Callable[[PromptedSample], bool],
    ) -> None:
        ids = {prompt.sample.sample_id for prompt in prompts}
        self._retriever = retriever
        self._samples = [sample for sample in samples if sample.sample_id in ids]
        self._prompts = tuple(prompts)
        self._prompted = prompted
        self._fits = fits

    def __call__(self, number: int) -> tuple[tuple[PromptedSample, ...], Mapping[str, float]]:
        """Open the index anew, and search for all questions.

        Args:
            number: the number of the search, from 1; 0 was the one before the first step.

        Returns:
            The same questions in the same order, and the metrics of the search. A question for which nothing is found
            any more, or whose prompt does not fit, keeps the pages that it had.

        Raises:
            RsgrpoError: the index or its embedder cannot be read any more.
        """
        self._retriever.refresh()
        found = self._retriever.questions(self._samples, self._prompted, self._fits, search=number)
        fitting = {prompt.sample.sample_id: prompt for prompt in found.prompts if self._fits(prompt)}
        self._prompts = tuple(fitting.get(prompt.sample.sample_id, prompt) for prompt in self._prompts)
        return self._prompts, found.metrics
