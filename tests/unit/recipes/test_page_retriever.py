"""Questions behind a retriever: what is found, what fits, what is left out, and what a repeated search gives."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.setup.page_retriever import FoundQuestions, PageRetriever, SearchedAgain
from rsgrpo.config import EVISRAG, ConfigError, DataConfig
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.data.files import DataError
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import IndexedPage, PageIndexError
from rsgrpo.types import ChatPrompt, ImageRef, PromptedSample, Sample
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder, make_page, sign_vectors

NUM_PAGES = 6


def _make_index(folder: Path, embedder: EmbedderConfig | None, *pages: IndexedPage) -> None:
    index = create_index(folder, IDENTITY, IndexConfig(), embedder)
    index.add(pages, sign_vectors([page.page_number for page in pages]))
    index.save()
    index.close()


def _add_pages(folder: Path, numbers: list[int]) -> None:
    """Page ``n`` has the sign vector ``n`` and an image file of its own bytes."""
    index = open_index(folder / "index", IndexConfig(), is_writable=True)
    pages = []
    for number in numbers:
        file = folder / f"{number}.png"
        file.write_bytes(f"page {number}".encode())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        pages.append(dataclasses.replace(make_page(number), image_path=str(file), sha256=digest))
    index.add(pages, sign_vectors(numbers))
    index.save()
    index.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _make_index(tmp_path / "index", EmbedderConfig(model="m", preset="visrag"))
    _add_pages(tmp_path, list(range(NUM_PAGES)))
    return tmp_path


def _sample(folder: Path, number: int, *, gold: int) -> Sample:
    """A question whose best page is ``number``, and whose data set shows ``gold`` and a page that no index has."""
    other = folder / "other.png"
    other.write_bytes(b"a page of the data set")
    own = (ImageRef(path="other.png", file=str(other)), ImageRef(path="own.png", file=str(folder / f"{gold}.png")))
    return Sample(
        sample_id=f"q{number}-{gold}", question=f"page {number}", images=own, answers=("x",), positive_images=(1,)
    )


def _retriever(folder: Path, **settings: object) -> PageRetriever:
    data = replace(DataConfig(), **{"retrieve": str(folder / "index"), **settings})  # type: ignore[arg-type] # by name
    return PageRetriever(data, 0, EVISRAG, lambda config: SignEmbedder())


def _prompted(sample: Sample) -> PromptedSample:
    return PromptedSample(sample=sample, prompt=ChatPrompt(sample_id=sample.sample_id, text="", images=sample.images))


def _ask(retriever: PageRetriever, samples: list[Sample], most: int = 9, search: int | None = None) -> FoundQuestions:
    return retriever.questions(samples, _prompted, lambda prompt: len(prompt.sample.images) <= most, search=search)


def test_a_gold_page_is_known_by_the_content_of_its_file(folder: Path) -> None:
    found = _ask(_retriever(folder, retrieve_pages=1), [_sample(folder, 3, gold=3), _sample(folder, 2, gold=3)])
    right, wrong = (prompt.sample for prompt in found.prompts)
    # The best page of question 3 is page 3, which the data set calls own.png; of question 2 it is page 2, a stranger.
    assert [image.path for image in right.images] == ["own.png"] and right.is_sufficient
    assert [image.path for image in wrong.images] == ["doc2.pdf#3"] and not wrong.is_sufficient
    assert wrong.images[0].file == str(folder / "2.png")
    assert (found.found_frac, found.pages_mean) == (0.5, 1.0)
    assert found.metrics == {"retrieval/found_frac": 0.5, "retrieval/pages_mean": 1.0}


def test_fewer_of_the_best_pages_are_shown_where_all_would_be_too_long(folder: Path) -> None:
    (prompt,) = _ask(_retriever(folder, retrieve_pages=3), [_sample(folder, 3, gold=3)], most=2).prompts
    assert len(prompt.sample.images) == 2 and prompt.sample.images[0].path == "own.png"
    # Not even one page fits: it is left to the caller, who refuses or skips the prompt as any other.
    (prompt,) = _ask(_retriever(folder, retrieve_pages=3), [_sample(folder, 3, gold=3)], most=0).prompts
    assert len(prompt.sample.images) == 1


def test_the_number_of_pages_is_drawn_anew_by_question_and_search_and_never_for_a_test(folder: Path) -> None:
    retriever = _retriever(folder, retrieve_pages=4, retrieve_min_pages=1)
    samples = [_sample(folder, number, gold=gold) for number in range(NUM_PAGES) for gold in range(NUM_PAGES)]

    def counts(asked: list[Sample], search: int | None) -> list[int]:
        return [len(prompt.sample.images) for prompt in _ask(retriever, asked, search=search).prompts]

    first = counts(samples, 0)
    assert set(first) == {1, 2, 3, 4} and counts(samples, 0) == first != counts(samples, 1)
    assert counts(samples[5:], 0) == first[5:]  # whoever else is asked
    assert set(counts(samples, None)) == {4}


def test_questions_without_known_gold_are_left_out_and_counted(folder: Path) -> None:
    sample = _sample(folder, 1, gold=1)
    unknown = replace(sample, sample_id="u", positive_images=())
    unanswerable = replace(sample, sample_id="n", is_sufficient=False)
    found = _ask(_retriever(folder), [unknown, sample, unanswerable])
    assert [prompt.sample.sample_id for prompt in found.prompts] == [sample.sample_id]
    assert found.num_without_gold == 2 and "2 without a known gold page were left out" in found.line("rl")
    with pytest.raises(DataError, match=r"none of 2 questions .* 2 name no gold page"):
        _ask(_retriever(folder), [unknown, unanswerable])


def test_a_later_search_sees_pages_that_were_added_meanwhile(folder: Path) -> None:
    sample = _sample(folder, 9, gold=3)
    (folder / "9.png").write_bytes(b"page 9")
    sample = replace(sample, images=(sample.images[0], ImageRef(path="nine.png", file=str(folder / "9.png"))))
    retriever = _retriever(folder, retrieve_pages=1)
    before = _ask(retriever, [sample], search=0).prompts
    assert not before[0].sample.is_sufficient
    again = SearchedAgain(retriever, [sample], before, _prompted, lambda prompt: True)
    _add_pages(folder, [9])
    (after,), metrics = again(1)
    assert after.sample.is_sufficient and after.sample.images[0].path == "nine.png"
    assert metrics["retrieval/found_frac"] == 1.0


def test_an_index_that_cannot_be_asked_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PageIndexError, match="nowhere"):
        _retriever(folder, retrieve=str(tmp_path / "nowhere"))
    _make_index(tmp_path / "empty", EmbedderConfig(model="m"))
    with pytest.raises(PageIndexError, match="holds no page"):
        _retriever(folder, retrieve=str(tmp_path / "empty"))
    _make_index(tmp_path / "nameless", None, make_page(1))
    with pytest.raises(ConfigError, match=r"set data\.retrieve_embedder"):
        _retriever(folder, retrieve=str(tmp_path / "nameless"))
    pictureless = _retriever(folder, retrieve=str(tmp_path / "nameless"), retrieve_embedder="m")
    with pytest.raises(PageIndexError, match="has no image"):
        _ask(pictureless, [_sample(folder, 1, gold=1)])


def test_trajectories_show_found_pages_where_they_speak_of_no_others_and_keep_theirs_elsewhere(folder: Path) -> None:
    brief = "<evidence>\n[1]: no relevant information\n[2]: x\n</evidence>\n<answer> x</answer>"
    right, wrong = (replace(_sample(folder, number, gold=3), gold_response=brief) for number in (3, 2))
    told = replace(_sample(folder, 1, gold=1), gold_response=f"<observe> two pages</observe>\n{brief}")
    retriever = _retriever(folder, retrieve_pages=1)
    found = retriever.trajectories([told, right, wrong], _prompted, lambda prompt: True)
    kept, shown, refused = (prompt.sample for prompt in found.prompts)
    assert kept == told
    assert shown.gold_response == "<evidence>\n[1]: x\n</evidence>\n<answer> x</answer>"
    assert refused.gold_response == (
        "<evidence>\n[1]: no relevant information\n</evidence>\n<answer> insufficient to answer</answer>"
    )
    assert (found.num_found, found.found_frac) == (2, 0.5)
    assert found.line("sft").startswith("sft: 2 of 3 trajectories") and "1 keep their pages" in found.line("sft")
    assert retriever.trajectories([told], _prompted, lambda prompt: True).prompts == (_prompted(told),)
