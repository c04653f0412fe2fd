"""A model is asked through vLLM's own server, as ``rsgrpo ask`` starts it: one start, several questions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recipes.asking.asker import ModelAsker
from recipes.asking.chat_stream import ChatClient
from recipes.asking.engine_choice import open_server, opened_section_of
from recipes.asking.messages import QuestionError
from recipes.asking.model_choice import choose_model
from recipes.asking.page_choice import named_pages
from rsgrpo.answering.records import Answered, AskRequest, PagesChosen, SectionText
from rsgrpo.config.image_rules import ImageRules
from tests.tiny_model import build_tiny_model, write_images

pytestmark = pytest.mark.engine

MAX_TOKENS = 512


async def answer(asker: ModelAsker, request: AskRequest) -> Answered:
    events = [event async for event in asker.ask(request)]
    assert isinstance(events[0], PagesChosen)
    assert isinstance(events[-1], Answered)
    told = "".join(event.text for event in events if isinstance(event, SectionText))
    # No tag stands in what a model of random weights says.
    assert told == events[-1].response
    return events[-1]


def test_questions_about_pages_are_answered_and_their_pages_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "q.jinja").write_text("{{ question }}")
    images = write_images(tmp_path / "pages", [(280, 280)] * 4)
    pages = named_pages([image.file for image in images], tmp_path, ImageRules())
    chosen = choose_model(
        str(build_tiny_model(tmp_path / "model", hidden=128)),
        given={
            "prompt": {"path": str(tmp_path / "q.jinja"), "system": ""},
            "data": {"max_images": 4, "min_pixels": 784, "max_pixels": 1_000_000},
            "sampling": {"max_response_tokens": 16},
            "rollout": {"max_model_tokens": MAX_TOKENS, "max_batched_tokens": MAX_TOKENS, "enforce_eager": True},
            "model": {"dtype": "float32"},
        },
    )
    with open_server(chosen, log_file=tmp_path / "log") as server:

        async def work() -> None:
            async with ModelAsker(chosen.settings, server, opened=opened_section_of(chosen)) as asker:
                first, same, other = [
                    await answer(asker, AskRequest(question=question, pages=pages[:2]))
                    for question in ("What stands there?", "What stands there?", "Who signed it?")
                ]
                assert (first.response, first.spent.cached_tokens) == (same.response, 0)
                assert first.spent.response_tokens <= 16
                # A page of 280 × 280 pixels has 10 · 10 = 100 tokens; pages stand first, so that the first block of 128
                # tokens, which the cache on a CPU counts in, holds nothing of the question.
                assert first.spent.prompt_tokens > 2 * 100
                assert (other.spent.cached_tokens or 0) >= 128
                # A letter is a token: 260 and two pages of 102 make 464 and the turns' own, a third page is too much.
                request = AskRequest(question="a" * 260, pages=pages)
                with pytest.raises(QuestionError, match=r"context has 512 .* the first 2 pages would fit"):
                    await answer(asker, request)
            async with ChatClient(server) as client:
                assert await client.count_tokens([{"role": "user", "content": "?"}])

        asyncio.run(work())
