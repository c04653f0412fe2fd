"""A model is asked about pages: what it reads, what comes back, and in which order."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from recipes.asking.asker import ModelAsker
from recipes.asking.chat_stream import ChatClient
from recipes.asking.messages import MessageWriter, QuestionError
from recipes.asking.model_choice import AskSettings
from recipes.asking.page_choice import IndexPages, IndexPlace, PageChoiceError, PageChooser, named_pages
from recipes.asking.page_images import PageImages
from rsgrpo.answering.records import (
    Answered,
    AnswerEvent,
    AskRequest,
    EarlierTurn,
    LookedAtPage,
    PagesChosen,
    SectionText,
)
from rsgrpo.config import EVISRAG, DataConfig, ImageOrder, PromptConfig, RolloutConfig, SamplingConfig
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.config.index import IndexConfig
from rsgrpo.data.images.sources import ImageError
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PagesOfQuestion, ScoredPages
from rsgrpo.types import ImageRef
from tests.fake_server import FakeServer
from tests.unit.asking.stream_server import RESPONSE, answering, draw_pages, error, remote, streamed, texts_of
from tests.unit.recipes.test_text_search_command import make_index
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder

EARLIER = EarlierTurn(question="First?", response=RESPONSE)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    answering(fake)
    yield fake
    fake.close()


def settings_of(tmp_path: Path, order: ImageOrder = "images_first", *, keeps_turns: bool = True) -> AskSettings:
    (tmp_path / "q.jinja").write_text("Look. {{ question }}")
    return AskSettings(
        prompt=PromptConfig(path=str(tmp_path / "q.jinja"), image_order=order, system=""),
        response_format=EVISRAG,
        data=DataConfig(max_images=3),
        sampling=SamplingConfig(temperature=0.0, max_response_tokens=64),
        rollout=RolloutConfig(max_model_tokens=200, sampling=SamplingConfig(max_response_tokens=64)),
        dtype="float32",
        keeps_turns=keeps_turns,
    )


def ask(
    server: FakeServer, settings: AskSettings, request: AskRequest, chooser: PageChooser | None = None, opened: str = ""
) -> list[AnswerEvent]:
    async def work() -> list[AnswerEvent]:
        async with ModelAsker(settings, remote(server, retries=0), chooser, opened=opened) as asker:
            return [event async for event in asker.ask(request)]

    return asyncio.run(work())


def pages_in(tmp_path: Path, num_pages: int = 2):
    files = draw_pages(tmp_path / "pages", num_pages)
    return named_pages([str(file) for file in files], tmp_path, ImageRules())


def test_pages_come_first_then_the_sections_then_the_whole(server, tmp_path):
    pages = pages_in(tmp_path)
    chosen, *texts, answered = ask(server, settings_of(tmp_path), AskRequest(question="What?", pages=pages))
    assert isinstance(chosen, PagesChosen)
    assert chosen.pages == pages
    assert isinstance(answered, Answered)
    found: dict[str, str] = {}
    for event in texts:
        assert isinstance(event, SectionText)
        found[event.section] = found.get(event.section, "") + event.text
    assert {name: text.strip() for name, text in found.items() if name} == dict(answered.sections)
    assert (answered.answer, answered.response, answered.problems) == ("two", RESPONSE, ())
    assert [(line.number, line.text, line.is_relevant) for line in answered.evidence] == [
        (1, "two", True),
        (2, "no relevant information", False),
    ]
    assert (answered.spent.prompt_tokens, answered.spent.response_tokens) == (40, 12)
    assert 0 < answered.spent.first_token_seconds <= answered.spent.total_seconds


@pytest.mark.parametrize(
    ("order", "content"),
    [("text_first", ["Look. What?", "image", "image"]), ("images_first", ["image", "image", "Look. What?"])],
)
def test_the_prompt_is_that_of_the_settings_an_empty_system_turn_included(server, tmp_path, order, content):
    ask(server, settings_of(tmp_path, order), AskRequest(question="What?", pages=pages_in(tmp_path)))
    # Without its own system turn a chat template would put in another one.
    assert texts_of(server.bodies[0]) == [("system", [""]), ("user", content)]


def test_pages_that_a_filter_left_out_are_not_shown_and_the_others_keep_their_numbers(server, tmp_path):
    first, second, third = pages_in(tmp_path, 3)
    server.reply = lambda question, attempt: streamed("<evidence>[3]: x\n[1]: y</evidence><answer>x</answer>")
    pages = (dataclasses.replace(first, is_shown=False), second, third)
    *_, answered = ask(server, settings_of(tmp_path), AskRequest(question="What?", pages=pages))
    assert texts_of(server.bodies[0])[1][1] == ["\n[2]:", "image", "\n[3]:", "image", "Look. What?"]
    assert isinstance(answered, Answered)
    # The model never saw page 1.
    assert [line.number for line in answered.evidence] == [3, 0]


def test_a_follow_up_about_the_same_pages_goes_on_with_the_conversation(server, tmp_path):
    request = AskRequest(question="And then?", pages=pages_in(tmp_path), earlier=(EARLIER,))
    ask(server, settings_of(tmp_path), request)
    assert texts_of(server.bodies[0])[1:] == [
        ("user", ["image", "image", "Look. First?"]),
        ("assistant", [RESPONSE]),
        ("user", ["And then?"]),
    ]


def test_a_follow_up_that_searches_anew_shows_the_new_pages_and_the_earlier_answers_alone(server, tmp_path):
    class Chooser:
        def choose(self, request: AskRequest, max_images: int) -> PagesChosen:
            return PagesChosen(pages=pages_in(tmp_path)[:1], seconds=0.0, remarks=("one page has no text",))

    request = AskRequest(question="And then?", earlier=(EARLIER,))
    chosen, *_ = ask(server, settings_of(tmp_path), request, Chooser())
    assert texts_of(server.bodies[0])[1:] == [
        ("user", ["First?"]),
        ("assistant", ["two"]),
        ("user", ["image", "Look. And then?"]),
    ]
    assert isinstance(chosen, PagesChosen)
    assert chosen.remarks == ("one page has no text",)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> MessageWriter:
    return MessageWriter(settings_of(tmp_path_factory.mktemp("prompt")).prompt, EVISRAG)


def written(writer: MessageWriter, request: AskRequest) -> list[tuple[str, list[str]]]:
    messages = writer.messages(request, request.pages, lambda image: f"data:{image.path}")
    return texts_of({"messages": messages})[1:]


def page(page_id: str, number: int = 1, *, is_shown: bool = True) -> LookedAtPage:
    image = ImageRef(path=page_id, file=page_id)
    return LookedAtPage(number=number, page_id=page_id, document=page_id, page_number=1, image=image, is_shown=is_shown)


@given(st.text("AB", max_size=5), st.sampled_from("AB"))
def test_pages_stand_before_the_last_turns_that_were_about_them_and_before_no_other(
    writer: MessageWriter, before: str, asked: str
) -> None:
    earlier = tuple(EarlierTurn(question=f"{name}?", response=RESPONSE, pages={1: name}) for name in before)
    turns = written(writer, AskRequest(question="now?", pages=(page(asked),), earlier=earlier))
    users, answers = turns[::2], turns[1::2]
    first = len(before.rstrip(asked))
    assert [place for place, (_, content) in enumerate(users) if "image" in content] == [first]
    assert [text for _, (text,) in answers] == ["two"] * first + [RESPONSE] * (len(before) - first)
    assert [content[-1].removeprefix("Look. ") for _, content in users] == [*(f"{name}?" for name in before), "now?"]


@pytest.mark.parametrize(
    ("pages", "is_same"),
    [
        ((page("A"), page("B", 2)), True),
        ((page("B"), page("A", 2)), False),  # the answer calls them by other numbers
        ((page("A"),), False),
        ((page("A"), page("B", 2), page("C", 3, is_shown=False)), True),
    ],
    ids=["same", "other numbers", "fewer", "left out"],
)
def test_the_same_pages_are_those_that_the_model_saw_under_the_same_numbers(
    writer: MessageWriter, pages: tuple[LookedAtPage, ...], is_same: bool
) -> None:
    turn = EarlierTurn(question="First?", response=RESPONSE, pages={1: "A", 2: "B"})
    first, answer, _ = written(writer, AskRequest(question="now?", pages=pages, earlier=(turn,)))
    assert (answer == ("assistant", [RESPONSE])) == ("image" in first[1]) == is_same


@pytest.mark.parametrize(
    ("turn", "question", "reason"),
    [
        (EARLIER, "now <|im_end|>?", "^the question holds"),
        (EarlierTurn(question="a <|im_end|>?", response="b"), "now?", "^the earlier question 'a <|im_end|>?' holds"),
        (EarlierTurn(question="a?", response="b <|im_end|>"), "now?", "^the answer to the earlier question 'a?' holds"),
    ],
    ids=["question", "earlier question", "earlier answer"],
)
def test_a_control_token_is_named_with_the_text_that_holds_it(
    writer: MessageWriter, turn: EarlierTurn, question: str, reason: str
) -> None:
    with pytest.raises(QuestionError, match=reason.replace("|", r"\|").replace("?", r"\?")):
        written(writer, AskRequest(question=question, pages=(page("A"),), earlier=(turn,)))


def test_a_model_that_knows_single_questions_alone_is_asked_one_at_a_time_and_says_so(server, tmp_path):
    request = AskRequest(question="And then?", pages=pages_in(tmp_path), earlier=(EARLIER,))
    chosen, *_ = ask(server, settings_of(tmp_path, keeps_turns=False), request)
    assert texts_of(server.bodies[0])[1:] == [("user", ["image", "image", "Look. And then?"])]
    assert isinstance(chosen, PagesChosen)
    assert "single questions" in chosen.remarks[0]


def test_a_response_in_a_section_that_the_prompt_opened(server, tmp_path):
    server.reply = lambda question, attempt: streamed("so</observe><answer>no relevant information</answer>")
    request = AskRequest(question="What?", pages=pages_in(tmp_path))
    _, first, *_, answered = ask(server, settings_of(tmp_path), request, opened="observe")
    assert first == SectionText(section="observe", text="so")
    assert isinstance(answered, Answered)
    assert answered.sections["observe"] == "so"
    assert answered.is_insufficient


def test_an_answer_without_sections_is_an_answer(server, tmp_path):
    server.reply = lambda question, attempt: streamed("Two, I think.", finish_reason="length")
    *_, answered = ask(server, settings_of(tmp_path), AskRequest(question="What?", pages=pages_in(tmp_path)))
    assert isinstance(answered, Answered)
    assert (answered.answer, answered.is_cut) == ("Two, I think.", True)
    assert len(answered.problems) == 4


def test_what_cannot_be_asked_is_refused_before_the_model_is_asked(server, tmp_path):
    pages = pages_in(tmp_path, 4)
    for request, words in (
        (AskRequest(question=" ", pages=pages[:1]), "is empty"),
        (AskRequest(question="What?", pages=pages), "at most 3 pages"),
        (AskRequest(question="What?"), "no page is given"),
        (AskRequest(question="What?<|im_end|>", pages=pages[:1]), "<|im_end|>"),
        (AskRequest(question="What?", pages=(dataclasses.replace(pages[0], is_shown=False),)), "no page to ask about"),
    ):
        with pytest.raises(QuestionError) as told:
            ask(server, settings_of(tmp_path), request)
        assert words in str(told.value)
    assert not server.bodies


def test_pages_beyond_the_context_are_counted_and_the_sentence_says_how_many_fit(server, tmp_path, monkeypatch):
    async def count_tokens(client: ChatClient, messages, template_arguments) -> int:
        return 20 + 70 * sum(part["type"] == "image_url" for part in messages[1]["content"])

    monkeypatch.setattr(ChatClient, "count_tokens", count_tokens)
    server.reply = lambda question, attempt: error(400, "maximum context length is 200 tokens")
    request = AskRequest(question="What?", pages=pages_in(tmp_path, 3))
    # 20 + 3 · 70 = 230 tokens; of 200 two pages take 160.
    with pytest.raises(QuestionError, match=r"have 230 tokens, and the model's context has 200 .* first 2 pages"):
        ask(server, settings_of(tmp_path), request)


def test_whoever_stops_reading_ends_the_question(server, tmp_path):
    async def work() -> AnswerEvent:
        async with (
            ModelAsker(settings_of(tmp_path), remote(server)) as asker,
            aclosing(asker.ask(AskRequest(question="What?", pages=pages_in(tmp_path)))) as events,
        ):
            async for event in events:
                return event
        raise AssertionError

    assert isinstance(asyncio.run(work()), PagesChosen)
    assert not server.bodies


def test_a_page_is_read_once_until_its_file_changes(tmp_path):
    (page,) = pages_in(tmp_path, 1)
    images = PageImages(ImageRules())
    before = images.url(page.image)
    assert images.url(page.image) is before
    draw_pages(tmp_path / "pages", 2)[1].replace(page.image.file)
    assert images.url(page.image) != before


def test_a_damaged_page_is_named_without_settings_of_training(tmp_path):
    (page,) = pages_in(tmp_path, 1)
    file = Path(page.image.file)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"is truncated or damaged: .*; replace it$"):
        PageImages(ImageRules()).url(page.image)


def test_a_server_of_ours_gets_the_same_pixels_unpacked(tmp_path):
    (page,) = pages_in(tmp_path, 1)
    urls = [PageImages(ImageRules(), is_near=is_near).url(page.image) for is_near in (False, True)]
    assert [url.partition(";")[0] for url in urls] == ["data:image/png", "data:image/bmp"]
    png, bmp = (np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls)
    assert (png == bmp).all()
    assert png.shape == (56, 56, 3)


def test_kept_pages_take_no_more_room_than_they_may(tmp_path):
    first, second = pages_in(tmp_path)
    size = len(PageImages(ImageRules()).url(first.image))
    images = PageImages(ImageRules(), max_bytes=size + 10)
    before = images.url(first.image)
    images.url(second.image)
    assert images.url(first.image) is not before


def index_pages(
    folder: Path, given: SignEmbedder, make_filter: Callable[[], Sequence[FilterStage]] | None = None
) -> IndexPages:
    place = IndexPlace(folder=folder, settings=IndexConfig(), embedder=lambda saved: EmbedderConfig(model="m"))
    return IndexPages(place, make_filter, lambda config: given)


def test_an_index_of_another_embedder_is_refused_before_a_question(tmp_path):
    make_index(tmp_path / "index", "one", "two")
    other = SignEmbedder(dataclasses.replace(IDENTITY, revision="sha256:11"))
    with pytest.raises(EmbedderMismatchError):
        index_pages(tmp_path / "index", other).prepare()
    index_pages(tmp_path / "index", SignEmbedder()).prepare()


def test_an_index_is_searched_and_a_page_that_was_added_meanwhile_is_found(tmp_path):
    make_index(tmp_path / "index", "one", "two", "three")
    chooser = index_pages(tmp_path / "index", SignEmbedder())
    # The first document's pages have the vectors 0, 1, 2, 3 (its last is a picture).
    chosen = chooser.choose(AskRequest(question="which is 2", num_pages=2), max_images=1)
    assert [(page.number, page.document, page.page_number) for page in chosen.pages] == [(1, "a.pdf", 3)]
    assert "at most 1 page" in chosen.remarks[0]
    assert Path(chosen.pages[0].image.file).is_file()
    make_index(tmp_path / "index", "four", name="b.pdf")
    chosen = chooser.choose(AskRequest(question="which is 0", documents=("b.pdf",)), max_images=3)
    assert [page.document for page in chosen.pages] == ["b.pdf", "b.pdf"]
    with pytest.raises(PageChoiceError, match=r"no page of c\.pdf"):
        chooser.choose(AskRequest(question="which is 0", documents=("c.pdf",)), max_images=3)


def test_a_filter_leaves_pages_out_and_says_how_relevant_each_is(tmp_path):
    class Second:
        def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
            return [ScoredPages(probabilities=(0.1, 0.9, 0.2)) for _ in asked]

        def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
            raise AssertionError("all pages of a question are scored together")

    make_index(tmp_path / "index", "one", "two")
    place = IndexPlace(
        folder=tmp_path / "index", settings=IndexConfig(), embedder=lambda saved: EmbedderConfig(model="m")
    )
    stages = [FilterStage(name="second", scorer=Second(), top_k=1)]
    chooser = IndexPages(place, lambda: stages, lambda config: SignEmbedder())
    # A filter may look at more pages than the model takes.
    chosen = chooser.choose(AskRequest(question="which is 0", num_pages=3), max_images=1)
    assert [(page.number, page.is_shown, page.relevance) for page in chosen.pages] == [
        (1, False, 0.1),
        (2, True, 0.9),
        (3, False, 0.2),
    ]
