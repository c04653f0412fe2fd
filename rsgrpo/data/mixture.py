"""Several data sets as one: weights, held-out records, a new order every epoch, distractors; nothing in memory.

All of it is a function of the seed, the epoch and the position, so that one number resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config import DataConfig, DistractorConfig, SourceConfig, VideoConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.readers.conversations import images_in_front
from rsgrpo.data.readers.findings import ReadReport, short_report
from rsgrpo.data.readers.indexed import IndexedSamples
from rsgrpo.data.readers.options import ReaderOptions
from rsgrpo.errors import shown
from rsgrpo.types import IMAGE_MARKER, BoolArray, ImageRef, Sample, Turn

IndexArray = NDArray[np.int64]

_HELD_OUT, _ORDER, _DISTRACTORS = 0, 1, 2  # keep the random streams of one seed apart
_DRAWS_PER_DISTRACTOR = 8  # records without images, or with images that are shown already, are passed over


class Mixture:
    """Data sets that are trained on together.

    Args:
        sources: the data sets with their weights; read through once, here.
        seed: the seed of the run.
        num_held_out: records kept for validation, but at most a tenth of them.
        on_bad_record: ``error``: stop and show what is wrong with which records. ``skip``: leave them out.
        check_media: whether every image is looked for.
        max_skipped_frac: the share of each data set that ``skip`` may leave out, 0 to 1.
        media_cache: the folder of the media store, see ``DataConfig``.
        video: which frames of a video; None: the defaults.
        columns: EVisRAG: the names of its columns, and how many images a question may have; None: the defaults.

    Raises:
        DataError: a data set is not there, is empty, or (``error``) has bad records.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        *,
        seed: int,
        num_held_out: int,
        on_bad_record: str,
        check_media: bool,
        max_skipped_frac: float = 0.01,
        media_cache: str = "",
        video: VideoConfig | None = None,
        columns: DataConfig | None = None,
    ) -> None:
        choice = video or VideoConfig()
        self._sources = tuple(sources)
        self._seed = seed
        self._data = tuple(
            IndexedSamples(
                source.format,
                source.path,
                ReaderOptions(
                    media_root=source.media_root,
                    on_bad_record=on_bad_record,
                    max_skipped_frac=max_skipped_frac,
                    check_media=check_media,
                    sampling=source.sampling,
                    seed=seed,
                    box_coordinates=source.box_coordinates,
                    frames_per_second=choice.frames_per_second,
                    min_frames=choice.min_frames,
                    max_frames=choice.max_frames,
                    media_cache=media_cache,
                    columns=columns or DataConfig(),
                    is_training=True,
                ),
            )
            for source in sources
        )
        for source, data in zip(sources, self._data, strict=True):
            if not len(data) or (data.report.skipped and on_bad_record == "error"):
                found = data.report
                head = f"{shown(source.path)}: {found.num_samples} of {found.num_records} records can be used"
                advice = "repair them, or set data.on_bad_sample=skip to go on without"
                raise DataError(short_report(head, found.skipped, advice if len(data) else "give it some"))
        self._offsets = np.cumsum([0, *(len(data) for data in self._data)])
        total = int(self._offsets[-1])
        held_out = np.random.default_rng((seed, _HELD_OUT)).permutation(total)[: min(num_held_out, total // 10)]
        self.held_out: IndexArray = np.sort(held_out)
        is_trained = np.ones(total, dtype=bool)
        is_trained[self.held_out] = False
        self._trained = tuple(
            start + np.flatnonzero(is_trained[start:stop])
            for start, stop in zip(self._offsets[:-1], self._offsets[1:], strict=True)
        )

    def __len__(self) -> int:
        """How many conversations an epoch shows."""
        return sum(self._shown(source) for source in range(len(self._sources)))

    @property
    def reports(self) -> tuple[ReadReport, ...]:
        """Reports of what was read and left out, one for each source."""
        return tuple(data.report for data in self._data)

    @property
    def paths(self) -> tuple[str, ...]:
        """The absolute paths of the sources."""
        return tuple(str(Path(source.path).absolute()) for source in self._sources)

    def _shown(self, source: int) -> int:
        return max(1, round(self._sources[source].weight * len(self._trained[source])))

    def order(self, epoch: int) -> IndexArray:
        """Keys of the conversations of an epoch, in the order in which it shows them.

        Args:
            epoch: the number of the epoch, from 0.

        Returns:
            The keys for :meth:`sample`, ``len(self)`` of them; a source of weight 2 has each key twice, one of weight
            0.5 half of its keys, drawn anew every epoch.
        """
        parts = []
        for source, records in enumerate(self._trained):
            rng = np.random.default_rng((self._seed, _ORDER, epoch, source))
            whole, rest = divmod(self._shown(source), len(records))
            parts += [records] * whole + [rng.permutation(records)[:rest]]
        keys = np.concatenate(parts)
        return np.random.default_rng((self._seed, _ORDER, epoch)).permutation(keys)

    def sample(self, key: int, draw: int = 0) -> Sample:
        """One conversation, read from its file.

        Args:
            key: a key of :meth:`order` or ``held_out``.
            draw: the number that distractors are drawn by, such as the position in the stream.

        Returns:
            The sample, its id made unique: ``2.17/x`` is record 17 of source 2, whose own id is x.
        """
        source = int(np.searchsorted(self._offsets, key, side="right")) - 1
        data = self._data[source]
        index = key - int(self._offsets[source])
        sample = data.sample(index)
        sample = replace(sample, sample_id=f"{source}.{data.number(index)}/{sample.sample_id}")
        distractors = self._sources[source].distractors
        if not sample.images or not (distractors.max_images or distractors.relevance != "unused"):
            return sample
        rng = np.random.default_rng((self._seed, _DISTRACTORS, key, draw))
        images = self._draw_images(data, sample, distractors, rng)
        return with_distractors(sample, images, distractors, rng, epoch=draw / len(self))

    def _draw_images(
        self, data: IndexedSamples, sample: Sample, settings: DistractorConfig, rng: np.random.Generator
    ) -> list[ImageRef]:
        """Images of other records that the sample does not show, no image twice."""
        count = int(rng.integers(settings.min_images, settings.max_images + 1))
        shown = set(sample.images)
        drawn: list[ImageRef] = []
        for _ in range(_DRAWS_PER_DISTRACTOR * count):
            if len(drawn) == count:
                break
            images = data.sample(int(rng.integers(len(data)))).images
            if images and images[0] not in shown:
                shown.add(images[0])
                drawn.append(images[0])
        return drawn


def noisy_relevance(
    is_relevant: BoolArray, settings: DistractorConfig, rng: np.random.Generator, *, epoch: float = math.inf
) -> BoolArray:
    """Label some irrelevant images relevant, as a retriever's mistakes (MIRAGE's training code).

    Args:
        is_relevant: the gold label of each image, [images] bool.
        settings: how often, and how many; from which epoch on.
        rng: the generator that draws.
        epoch: how many passes over the data came before.

    Returns:
        The labels to train on, [images] bool; a relevant image stays relevant.

    Example:
        With ``noise_chance=1`` and ``noise_max_frac=0.15``, of 20 irrelevant images round(20 u) are labelled relevant,
        u drawn evenly from 0 to 0.15.
    """
    found = is_relevant.copy()
    if rng.random() < settings.noise_chance and epoch >= settings.noise_from_epoch:
        irrelevant = np.flatnonzero(~is_relevant)
        num_wrong = round(rng.uniform(0.0, settings.noise_max_frac) * len(irrelevant))
        found[rng.permutation(irrelevant)[:num_wrong]] = True
    return found


def with_distractors(
    sample: Sample,
    images: Sequence[ImageRef],
    settings: DistractorConfig,
    rng: np.random.Generator,
    *,
    epoch: float = math.inf,
) -> Sample:
    """Mix irrelevant images into a conversation, as MIRAGE's training does.

    The conversation's own images keep their order among each other. In ``noise_chance`` of the conversations
    round(u · i) of the i irrelevant images are labelled relevant, u drawn evenly from 0 to ``noise_max_frac``.

    Args:
        sample: a conversation whose images all stand in its first question; its ``positive_images`` are the
            relevant ones, all if it names none.
        images: the images to mix in.
        settings: the settings: what the labels do, and how many are wrong.
        rng: the generator that draws places and noise.
        epoch: how many passes over the data came before; there is no noise before ``noise_from_epoch``.

    Returns:
        The conversation with the images that it shows in front of its first question; its ``positive_images`` are those
        labelled relevant.

    Raises:
        DataError: images stand in later questions too.

    Example:
        A question on one image and 4 others, ``relevance: named``: five markers, and an answer such as
        ``Relevant images: 3.\\nThe cup is red.``
    """
    questions = [turn for turn in sample.turns if turn.role == "user"]
    if not questions or any(IMAGE_MARKER in turn.text for turn in questions[1:]):
        raise DataError(
            f"sample {sample.sample_id!r} shows images in later questions, among which no distractors can be mixed; "
            "take distractors out of this source of data.mixture"
        )
    num_own = len(sample.images)
    pool = [*sample.images, *images]
    is_relevant = np.zeros(len(pool), dtype=bool)
    is_relevant[list(sample.positive_images) or slice(num_own)] = True
    is_relevant = noisy_relevance(is_relevant, settings, rng, epoch=epoch)
    places = rng.permutation(len(pool))
    places[places < num_own] = np.arange(num_own)
    if settings.relevance == "filter":
        places = places[is_relevant[places]]
    positive = tuple(np.flatnonzero(is_relevant[places]).tolist())
    turns = images_in_front(sample.turns, len(places))
    if settings.relevance == "named":
        first = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
        named = ", ".join(str(number + 1) for number in positive) or "none"
        turns[first] = Turn(role="assistant", text=f"Relevant images: {named}.\n{turns[first].text}")
    shown = tuple(pool[place] for place in places.tolist())
    return replace(sample, images=shown, positive_images=positive, turns=tuple(turns))
