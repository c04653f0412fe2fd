"""A question with its pages and the conversation before it, as the messages of a chat request.

A follow-up about the same pages goes on with the conversation as it was: the pages stand in the first of the turns
about them, so that an engine with a prefix cache has them read already. Turns about other pages keep their answers
alone, since their evidence speaks of those under the same numbers; new pages stand in the follow-up's own turn.

    pages of the turns  A  B  B  and of the question  B:   q₁ a₁ │ B q₂ response₂ │ q₃ response₃ │ question
                                                      C:   q₁ a₁ │ q₂ a₂ │ q₃ a₃ │ C question
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rsgrpo.answering.records import AskRequest, EarlierTurn, LookedAtPage
from rsgrpo.config import PromptConfig, ResponseFormat
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.text.control_tokens import control_token
from rsgrpo.text.sections import parse_response
from rsgrpo.types import ImageRef, Sample

Message = dict[str, object]


class QuestionError(RsgrpoError):
    """A question cannot be asked; the message says why."""


class MessageWriter:
    """Words questions as one model is asked.

    Args:
        prompt: the settings: template, image order, system turn.
        response_format: the declared sections.
        opened: the section that the model's chat template opens, whose tag earlier responses do not repeat; empty:
            none.

    Raises:
        PromptTemplateError: the template cannot be used.
    """

    def __init__(self, prompt: PromptConfig, response_format: ResponseFormat, opened: str = "") -> None:
        self._opened = opened
        self._system = prompt.system
        self._writer = PromptWriter(prompt)
        self._format = response_format

    def messages(
        self, request: AskRequest, pages: Sequence[LookedAtPage], image_url: Callable[[ImageRef], str]
    ) -> list[Message]:
        """Write the messages of a request.

        Args:
            request: the question, and the turns before it.
            pages: the pages that were chosen; those that are not shown are left out, and the others keep their numbers.
            image_url: gives a page's address, such as a data URL.

        Returns:
            The system turn, also an empty one (chat templates add their own otherwise), the turns before, the question.

        Raises:
            QuestionError: a text is empty, or would forge a turn or an image; the message says which.
            PromptTemplateError: the template fails on the question.
        """
        if forged := control_token(request.question):
            raise QuestionError(f"the question holds {forged!r}, which is a sign of the model's own; take it out")
        if not request.question.strip():
            raise QuestionError("the question is empty; ask something")
        if not any(page.is_shown for page in pages):
            raise QuestionError("there is no page to ask about; name some, or an index to search")
        shown_in = _first_about(request, pages)
        turns = [self._turn(turn, is_same=place >= shown_in) for place, turn in enumerate(request.earlier)]
        questions = [*(question for question, _ in turns), request.question]
        contents: list[object] = [*questions]
        contents[shown_in] = self._content(questions[shown_in], pages, image_url)
        messages: list[Message] = [{"role": "system", "content": self._system}]
        for place, content in enumerate(contents):
            messages.append({"role": "user", "content": content})
            if place < len(turns):
                messages.append({"role": "assistant", "content": turns[place][1]})
        return messages

    def _turn(self, turn: EarlierTurn, *, is_same: bool) -> tuple[str, str]:
        if is_same:
            response = f"<{self._opened}>\n{turn.response}" if self._opened else turn.response
        else:
            answer = parse_response(turn.response, self._format, self._opened).content(self._format.answer_section)
            response = (answer or turn.response).strip()
        for what, text in (("", turn.question), ("the answer to ", response)):
            if forged := control_token(text):
                raise QuestionError(
                    f"{what}the earlier question {shown(turn.question, 60)!r} holds {forged!r}, which is a sign of the "
                    "model's own; leave that turn out, or begin a new conversation"
                )
        return turn.question, response

    def _content(
        self, question: str, pages: Sequence[LookedAtPage], image_url: Callable[[ImageRef], str]
    ) -> list[Message]:
        seen = [page for page in pages if page.is_shown]
        numbers = tuple(page.number for page in seen)
        is_plain = numbers == tuple(range(1, len(seen) + 1))
        sample = Sample(
            sample_id="question",
            question=question,
            images=tuple(page.image for page in seen),
            page_numbers=() if is_plain else numbers,
        )
        images = iter(sample.images)
        return [
            {"type": "image_url", "image_url": {"url": image_url(next(images))}}
            if part is None
            else {"type": "text", "text": part}
            for part in self._writer.parts(sample)
            if part != ""
        ]


def _first_about(request: AskRequest, pages: Sequence[LookedAtPage]) -> int:
    """The place of the first of those last turns that were about the same pages; there is none: the question's own."""
    seen = {page.number: page.page_id for page in pages if page.is_shown}
    place = len(request.earlier)
    for turn in reversed(request.earlier):
        if not (request.pages if turn.pages is None else turn.pages == seen):
            break
        place -= 1
    return place
