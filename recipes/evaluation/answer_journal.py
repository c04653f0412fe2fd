"""The answers of a run, appended as they come; a rerun asks only what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.evaluation.answering import Answer
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.prompts.turns import TaskPrompt
from rsgrpo.io.ids import well_formed
from rsgrpo.io.jsonl import append_rows, read_rows

_ANSWER_FIELDS = ("text", "finish_reason", "failure")
_MEAN_LOGPROB = "mean_logprob"


class JournalError(RsgrpoError):
    """Kept answers cannot be used; the message names the line and the way out."""


class AnswerJournal:
    """The answers of one task; only those to the prompts of this run count.

    Args:
        name: the name of the task, for messages.
        folder: the folder that ``answers.jsonl`` lies in.
        prompts: the prompts of the task.

    Attributes:
        answers: the answers so far, by prompt id.

    Raises:
        JournalError: two prompts share an id, or a kept line is no answer.
    """

    def __init__(self, name: str, folder: Path, prompts: Sequence[TaskPrompt]) -> None:
        self._file = folder / "answers.jsonl"
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._digests = {prompt.prompt_id: prompt.digest() for prompt in prompts}
        if len(self._digests) != len(prompts):
            counts = Counter(prompt.prompt_id for prompt in prompts)
            twice = next(prompt_id for prompt_id, count in counts.items() if count > 1)
            raise JournalError(f"{name}: two questions have the id {twice!r}; make the ids unique")
        self.answers: dict[str, Answer] = {}
        try:
            for number, row in enumerate(read_rows(self._file), start=1):
                self._check_row(number, row)
                if self._digests.get(row["id"]) == row["digest"]:
                    texts = {name: row[name] for name in _ANSWER_FIELDS}
                    self._take(Answer(prompt_id=row["id"], mean_logprob=row.get(_MEAN_LOGPROB), **texts))
        except ValueError as error:
            raise JournalError(f"{shown(error, 400)}: its question is then asked again") from error

    def _check_row(self, number: int, row: dict[str, Any]) -> None:
        wrong = [name for name in ("id", "digest", *_ANSWER_FIELDS) if not isinstance(row.get(name), str)]
        if wrong:
            raise JournalError(
                f"{shown(self._file)}, line {number}: no text under {', '.join(wrong)}, so no answer of a benchmark "
                "run; remove the line: its question is then asked again"
            )
        if not isinstance(row.get(_MEAN_LOGPROB), float | None):
            raise JournalError(
                f"{shown(self._file)}, line {number}: {_MEAN_LOGPROB} is no number; remove the line: its question is "
                "then asked again"
            )

    def _take(self, answer: Answer) -> None:
        self.answers[answer.prompt_id] = answer

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers: they are written to the disk first, then counted as given."""
        # A server may send half characters, which no file can hold.
        answers = [
            Answer(
                prompt_id=answer.prompt_id,
                mean_logprob=answer.mean_logprob,
                **{name: well_formed(getattr(answer, name))[0] for name in _ANSWER_FIELDS},
            )
            for answer in answers
        ]
        rows = [
            {
                "id": answer.prompt_id,
                "digest": self._digests[answer.prompt_id],
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "failure": answer.failure,
                **({} if answer.mean_logprob is None else {_MEAN_LOGPROB: answer.mean_logprob}),
            }
            for answer in answers
        ]
        append_rows(self._file, rows)
        for answer in answers:
            self._take(answer)

    def missing(self, not_asked: set[str]) -> list[TaskPrompt]:
        """The prompts without an answer; those whose request failed are asked again.

        Args:
            not_asked: the ids of prompts that are not asked, because they are too long.
        """
        return [
            prompt
            for prompt_id, prompt in self._prompts.items()
            if prompt_id not in not_asked and (prompt_id not in self.answers or self.answers[prompt_id].failure)
        ]
