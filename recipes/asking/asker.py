"""Answer questions about pages: choose the pages, ask the model, hand on its sections as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType

from recipes.asking.chat_server import ChatServer
from recipes.asking.chat_stream import ChatClient, ChatEnd, ChatQuestion, PromptTooLongError
from recipes.asking.messages import Message, MessageWriter, QuestionError
from recipes.asking.model_choice import AskSettings
from recipes.asking.page_choice import PageChooser
from recipes.asking.page_images import PageImages
from rsgrpo.answering.finished import finish_answer
from rsgrpo.answering.records import (
    AnswerEvent,
    AskRequest,
    LookedAtPage,
    PagesChosen,
    Spent,
)
from rsgrpo.answering.streamed_sections import SectionStream
from rsgrpo.types import ImageRef

_CUT = "length"
_ONE_AT_A_TIME = "this small model has learnt single questions alone, so it does not see the questions before"


class ModelAsker:
    """An :class:`~rsgrpo.answering.records.Asker` of a model behind a chat server.

    Args:
        settings: how the model is asked.
        server: where it is asked.
        chooser: finds pages where a request brings none; None: every request has to.
        opened: the section that the model's chat template opens at the end of a prompt; empty: none.
        timeout_seconds: the longest silence of the server.

    Raises:
        PromptTemplateError: the template of the settings cannot be used.
    """

    def __init__(
        self,
        settings: AskSettings,
        server: ChatServer,
        chooser: PageChooser | None = None,
        *,
        opened: str = "",
        timeout_seconds: float = 300.0,
    ) -> None:
        self._settings = settings
        self._chooser = chooser
        self._opened = opened
        self._writer = MessageWriter(settings.prompt, settings.response_format, opened)
        self._images = PageImages(settings.image_rules, is_near=server.is_ours)
        self._client = ChatClient(server, timeout_seconds=timeout_seconds)

    async def __aenter__(self) -> ModelAsker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the server, in the event loop that asked, and end the threads that read pages."""
        await self._client.close()
        self._images.close()

    def image_url(self, image: ImageRef) -> str:
        """The data URL of a page, as the model gets it.

        Args:
            image: the page.

        Raises:
            ImageError: the page cannot be read.
        """
        return self._images.url(image)

    async def ask(self, request: AskRequest) -> AsyncGenerator[AnswerEvent, None]:
        """See :class:`~rsgrpo.answering.records.Asker`."""
        begin = time.perf_counter()
        chosen, messages = await asyncio.to_thread(self._prepared, request)
        chosen = replace(chosen, seconds=time.perf_counter() - begin)
        yield chosen
        asked = time.perf_counter()
        first = 0.0
        stream = SectionStream(self._settings.response_format, self._opened)
        end = ChatEnd(finish_reason="")
        question = ChatQuestion(
            messages=messages,
            sampling=self._settings.sampling,
            template_arguments=self._settings.prompt.template_arguments,
            may_go_on=not self._opened,
        )
        try:
            async with aclosing(self._client.stream(question)) as pieces:
                async for piece in pieces:
                    first = first or time.perf_counter() - asked
                    if isinstance(piece, ChatEnd):
                        end = piece
                        continue
                    for text in stream.feed(piece.text):
                        yield text
        except PromptTooLongError as error:
            raise QuestionError(await self._how_many_fit(request, chosen, str(error))) from error
        for text in stream.end():
            yield text
        yield finish_answer(
            request.question,
            stream.text,
            chosen.pages,
            self._settings.response_format,
            Spent(
                prompt_tokens=end.prompt_tokens,
                cached_tokens=end.cached_tokens,
                response_tokens=end.response_tokens,
                choose_seconds=chosen.seconds,
                first_token_seconds=first,
                total_seconds=time.perf_counter() - begin,
            ),
            opened=self._opened,
            is_cut=end.finish_reason == _CUT,
        )

    def _prepared(self, request: AskRequest) -> tuple[PagesChosen, list[Message]]:
        """The pages and the messages; in a thread, since reading pages and searching take their time."""
        if not request.question.strip():
            raise QuestionError("the question is empty; ask something")
        chosen = self._chosen(request)
        if request.earlier and not self._settings.keeps_turns:
            chosen = replace(chosen, remarks=(*chosen.remarks, _ONE_AT_A_TIME))
            request = replace(request, earlier=())
        num_shown = sum(page.is_shown for page in chosen.pages)
        most = self._settings.max_images
        if num_shown > most:
            raise QuestionError(
                f"the model takes at most {most} page{'s' * (most != 1)} (data.max_images), and {num_shown} are given; "
                f"name {most} or fewer"
            )
        self._images.read(page.image for page in chosen.pages if page.is_shown)  # the writer then finds them read
        return chosen, self._writer.messages(request, chosen.pages, self._images.url)

    def _chosen(self, request: AskRequest) -> PagesChosen:
        if request.pages:
            return PagesChosen(pages=request.pages, seconds=0.0)
        if self._chooser is None:
            raise QuestionError("no page is given, and there is no index to search; name pages or an index")
        return self._chooser.choose(request, self._settings.max_images)

    async def _how_many_fit(self, request: AskRequest, chosen: PagesChosen, refusal: str) -> str:
        """The sentence for pages beyond the model's context: how many of them fit, where the server counts."""
        seen = [page for page in chosen.pages if page.is_shown]
        most = self._settings.rollout.max_model_tokens
        counts: dict[int, int | None] = {}

        async def count(num_pages: int) -> int | None:
            if num_pages not in counts:
                counts[num_pages] = await self._num_tokens(request, seen[:num_pages])
            return counts[num_pages]

        whole = await count(len(seen))
        if whole is None:
            return f"the question and its {len(seen)} pages are beyond the model's context ({refusal}); name fewer"
        fitting = 0
        low, high = 1, len(seen) - 1
        while low <= high:
            middle = (low + high) // 2
            if (await count(middle) or most) < most:
                fitting, low = middle, middle + 1
            else:
                high = middle - 1
        told = (
            f"the first {fitting} page{'s' * (fitting != 1)} would fit: name fewer"
            if fitting
            else "not even one page would fit: ask in fewer words, or lower data.max_pixels"
        )
        turns = ", the conversation so far" if request.earlier else ""
        return (
            f"the question{turns} and {len(seen)} page{'s' * (len(seen) != 1)} have {whole:,} tokens, and the model's "
            f"context has {most:,} (rollout.max_model_tokens); {told}"
        )

    async def _num_tokens(self, request: AskRequest, pages: Sequence[LookedAtPage]) -> int | None:
        messages = await asyncio.to_thread(self._writer.messages, request, pages, self._images.url)
        return await self._client.count_tokens(messages, self._settings.prompt.template_arguments)
