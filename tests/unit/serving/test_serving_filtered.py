"""A filter between search and engine: it looks at more pages than the model takes, and outlives the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from recipes.asking.chat_server import RemoteServer, ServerAddress
from recipes.serving.application import make_application
from recipes.serving.filter_thread import FilterThread
from rsgrpo.errors import RsgrpoError
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PagesOfQuestion, ScoredPages
from rsgrpo.types import ImageRef
from tests.unit.serving.served import ADDRESS, INVOICE, LETTER, OWN, FakeAsker, Served, make_parts


class LastPages:
    """A scorer that likes later pages more; its first calls fail as often as is said."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_failures = num_failures

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        return np.arange(1, len(pages) + 1) / 10

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        if self.num_failures:
            self.num_failures -= 1
            raise RsgrpoError("the engine is gone")
        return [ScoredPages(probabilities=tuple(self.score(one.question, one.pages))) for one in asked]


@pytest.mark.parametrize("num_failures", [0, 1, 2])
def test_the_model_sees_what_the_filter_keeps_and_a_lost_engine_is_asked_again(num_failures: int, tmp_path: Path):
    asker = FakeAsker()
    parts = make_parts(tmp_path, asker=asker)
    scorer = LastPages(num_failures)
    stage = FilterStage(name="last", scorer=scorer, top_k=2, threshold=0.0)
    server = RemoteServer(ServerAddress(url="http://127.0.0.1:1/v1", model="m"), backoff_seconds=0.0)
    answers = dataclasses.replace(parts.answers, most_pages=1, filter=FilterThread(lambda: [stage], server, 1))
    parts = dataclasses.replace(parts, answers=answers)
    with TestClient(make_application(parts), base_url=ADDRESS, headers=OWN) as client:
        served = Served(client=client, asker=asker, parts=parts, index=tmp_path / "my.index", state=tmp_path)
        served.bring("invoice.pdf", INVOICE)
        served.bring("letter.pdf", LETTER)
        found = served.ask("Who sails?", num_pages=3)
        if num_failures == 2:  # once more is enough for an engine that was started again
            assert "the engine is gone" in found["problem"][0]["error"]["message"]
            return
        (request,) = asker.requests
        # three pages are looked at though the model takes one; the last is the best, and all keep their numbers
        assert [(page.number, page.is_shown, page.relevance) for page in request.pages] == [
            (1, False, 0.1),
            (2, False, 0.2),
            (3, True, 0.3),
        ]
        assert [page["is_shown"] for page in found["pages"][-1]["pages"]] == [False, False, True]
        # pages that are named are not filtered
        served.ask("Who sails?", pages=[found["pages"][0]["pages"][0]["key"]])
        assert [page.is_shown for page in asker.requests[1].pages] == [True]
