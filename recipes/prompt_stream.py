"""The order in which training sees its questions: a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import PromptedSample

SearchAgain = Callable[[int], tuple[Sequence[PromptedSample], Mapping[str, float]]]
"""Gives the same questions in the same order, over the pages that a retriever finds now, and the metrics of its search;
called with the number of the search, from 1."""


class PromptStream:
    """Endless stream over a data set, shuffled anew every epoch, resumable by one number.

    Args:
        prompted: the questions, with unique ids.
        seed: the run's seed.
        shuffle: new random order every epoch; False keeps the file's order.
        position: how many questions were passed before; a checkpoint stores it.

    Example:
        With three questions a, b, c and ``shuffle=False``, ``take(2)`` gives a, b and the next
        ``take(2)`` gives c, a.
    """

    def __init__(self, prompted: Sequence[PromptedSample], *, seed: int, shuffle: bool, position: int = 0) -> None:
        self._prompted = prompted
        self._seed = seed
        self._shuffle = shuffle
        self._order_epoch = -1
        self._order = np.arange(len(prompted))
        self.position = position
        self._search_again: SearchAgain | None = None
        self._search_every_steps = 0
        self._num_searches = 0

    @property
    def num_prompts(self) -> int:
        """How many questions the data set has."""
        return len(self._prompted)

    def search_every(self, steps: int, search_again: SearchAgain) -> None:
        """Let pages be found anew while training runs.

        Args:
            steps: after how many steps; 0: never.
            search_again: finds pages for the questions.
        """
        self._search_again, self._search_every_steps = search_again, steps

    def is_search_due(self, step: int) -> bool:
        """Whether pages are to be found anew before a step.

        Args:
            step: the 0-based step that the next questions are for.
        """
        return bool(self._search_every_steps) and step // self._search_every_steps != self._num_searches

    def find_pages(self, step: int) -> Mapping[str, float]:
        """Find pages for the questions anew where it is time to, as it is in a process that goes on in the middle.

        Args:
            step: the 0-based step that the next questions are for.

        Returns:
            The metrics of the search; none where there was none.

        Raises:
            ValueError: the search gave other questions.
            RsgrpoError: the index cannot be searched any more.
        """
        if self._search_again is None or not self.is_search_due(step):
            return {}
        number = step // self._search_every_steps
        prompted, metrics = self._search_again(number)
        if [new.sample.sample_id for new in prompted] != [old.sample.sample_id for old in self._prompted]:
            raise ValueError("a search gave other questions than it was asked; only their pages may change")
        self._prompted, self._num_searches = prompted, number
        return metrics

    def _at(self, position: int) -> PromptedSample:
        epoch, index = divmod(position, len(self._prompted))
        if self._shuffle and self._order_epoch != epoch:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._prompted))
            self._order_epoch = epoch
        return self._prompted[int(self._order[index])]

    def take(self, count: int, *, without: Set[str] = frozenset()) -> list[PromptedSample]:
        """The next ``count`` questions, no id twice.

        Args:
            count: how many questions to take.
            without: sample ids to pass over, such as groups carried over into the same step.

        Raises:
            RsgrpoError: the data set has fewer than ``count`` questions beside those in ``without``.
        """
        taken: list[PromptedSample] = []
        ids = set(without)
        num_passed = 0
        while len(taken) < count:
            # Two epochs meet inside a step: a question may come up twice, once is enough.
            if num_passed > 2 * len(self._prompted):
                raise RsgrpoError(
                    f"a step needs {count} different questions, the data set has {len(self._prompted)}; "
                    "lower the questions a step (rl.prompts_per_step, sft.samples_per_step) or add data"
                )
            candidate = self._at(self.position)
            self.position += 1
            num_passed += 1
            if candidate.sample.sample_id not in ids:
                ids.add(candidate.sample.sample_id)
                taken.append(candidate)
        return taken
