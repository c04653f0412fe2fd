"""The answer that counts for each question: its only one, or the best of several from single pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from recipes.evaluation.answering import Answer
from recipes.evaluation.task_records import BenchmarkRequest
from rsgrpo.evaluation.answer_choice import choose_answer


def choose_answers(
    requests: Sequence[BenchmarkRequest], answers: Mapping[str, Answer]
) -> list[tuple[BenchmarkRequest, Answer | None]]:
    """Give each question the answer that counts.

    Args:
        requests: the requests of a task; those with a ``page_score`` that share a sample are one question.
        answers: the answers by prompt id.

    Returns:
        One pair for each question, in order: the request whose answer counts, and the answer. Where one of several
        pages has no answer, or none with a log-probability, nothing can be chosen: the pair then holds the failed
        answer, or None where a page was not asked.
    """
    chosen: list[tuple[BenchmarkRequest, Answer | None]] = []
    places: dict[str, list[BenchmarkRequest]] = {}
    for request in requests:
        if request.page_score is None:
            chosen.append((request, answers.get(request.prompt.prompt_id)))
        else:
            places.setdefault(request.sample.sample_id, []).append(request)
    return chosen + [_choose(alternatives, answers) for alternatives in places.values()]


def _choose(
    alternatives: Sequence[BenchmarkRequest], answers: Mapping[str, Answer]
) -> tuple[BenchmarkRequest, Answer | None]:
    scores, logprobs, given = [], [], []
    for request in alternatives:
        answer = answers.get(request.prompt.prompt_id)
        if answer is None or answer.failure:
            return request, answer
        if answer.mean_logprob is None:
            return request, Answer(prompt_id=answer.prompt_id, failure="its log-probability is not known")
        given.append(answer)
        logprobs.append(answer.mean_logprob)
        scores.append(request.page_score or 0.0)
    index = choose_answer(scores, logprobs).index
    return alternatives[index], given[index]


def count_questions(requests: Sequence[BenchmarkRequest], prompt_ids: Collection[str] | None = None) -> int:
    """Count questions: requests, where those of one question's single pages count once.

    Args:
        requests: the requests of a task.
        prompt_ids: the ids of the prompts whose questions are counted; None: all.
    """
    found = [request for request in requests if prompt_ids is None or request.prompt.prompt_id in prompt_ids]
    alone = sum(request.page_score is None for request in found)
    return alone + len({request.sample.sample_id for request in found if request.page_score is not None})
