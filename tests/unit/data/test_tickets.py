"""The tickets: pages that pairs of marks name, honest splits, correct gold, one relevant page for each query."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.config import ConfigError, DataConfig, QuickstartConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.synthetic.__main__ import main as make_data
from rsgrpo.data.synthetic.cards import COLOURS
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus
from rsgrpo.data.synthetic.quickstart_tokenizer import build_tokenizer
from rsgrpo.data.synthetic.scans import NUMBERS
from rsgrpo.data.synthetic.ticket_sets import build_retriever_data, make_pools, make_ticket_questions
from rsgrpo.data.synthetic.tickets import FORMS, PHRASINGS, Mark, Ticket, draw_ticket, mark_pairs, ticket_query
from rsgrpo.retrieval.measuring.relevance_files import read_retrieval_set
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL
from rsgrpo.text.sections import parse_response
from tests.examples import examples

SMALL = QuickstartConfig(
    task="tickets",
    image_pixels=56,
    num_sft_samples=50,
    num_rl_samples=50,
    num_test_samples=50,
    num_retriever_samples=40,
    num_test_pages=30,
)


@given(st.integers(0, 2**32 - 1))
@examples(5)
def test_every_two_marks_name_one_ticket(seed: int):
    pairs = mark_pairs(seed)
    # 8 colours and 8 forms are 64 marks, of which 64 · 63 / 2 = 2016 pairs can be made.
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 2016
    assert all(left != right for left, right in pairs)


def test_pools_share_neither_handwriting_nor_a_tested_pair():
    sft, rl, test = make_pools(SMALL, 3)
    for first, second in itertools.combinations((sft, rl, test), 2):
        assert not {ticket.scan for ticket in first.tickets} & {ticket.scan for ticket in second.tickets}
    tested = {frozenset(ticket.marks) for ticket in test.tickets}
    assert len(tested) == len(test.tickets) == 30
    for pool in (sft, rl):
        trained = {frozenset(ticket.marks) for ticket in pool.tickets}
        assert not trained & tested
        assert len(trained | tested) == 2016  # nothing is left unused
        # A page never seen can be named only because each of its marks was.
        assert {mark for marks in trained for mark in marks} >= {mark for marks in tested for mark in marks}


def test_the_same_seed_gives_the_same_questions_and_another_seed_others():
    assert make_ticket_questions(SMALL, 5) == make_ticket_questions(SMALL, 5)
    assert make_ticket_questions(SMALL, 5) != make_ticket_questions(SMALL, 6)


def _solved(question: str, tickets: tuple[Ticket, ...]) -> tuple[str, tuple[int, ...]]:
    """Answer from the pages alone, by another way than the generator's."""
    words = question.rstrip("?").split()
    named = {f"{a} {b}" for a, b in itertools.pairwise(words) if a in COLOURS}
    found = [index for index, ticket in enumerate(tickets) if {mark.name for mark in ticket.marks} == named]
    assert len(named) == 2
    assert len(found) <= 1
    return (NUMBERS[tickets[found[0]].digit] if found else REFUSAL), tuple(found)


def test_gold_answers_follow_from_the_pages_and_gold_responses_parse():
    for question in itertools.chain.from_iterable(make_ticket_questions(SMALL, 0)):
        answer, positive = _solved(question.question, question.tickets)
        assert (question.answer, question.positive_images) == (answer, positive)
        assert question.is_sufficient == bool(positive)
        assert len({ticket.pair for ticket in question.tickets}) == len(question.tickets) in (1, 2, 3, 4)
        parsed = parse_response(question.response)
        assert parsed.is_well_formed
        assert (parsed.content("answer") or "").strip() == answer
        assert [line.text for line in parsed.evidence_lines] == [
            ticket.transcript if index in positive else IRRELEVANT for index, ticket in enumerate(question.tickets)
        ]


def test_a_fifth_of_the_questions_has_no_answer_and_other_pages_look_like_the_one_asked_for():
    config = dataclasses.replace(SMALL, num_sft_samples=200, num_test_pages=500)
    questions = make_ticket_questions(config, 0)[0]
    assert Counter(question.is_sufficient for question in questions) == {True: 160, False: 40}
    others = near = 0
    for question in questions:
        for index, ticket in enumerate(question.tickets):
            if question.positive_images and index not in question.positive_images:
                others += 1
                near += bool(set(ticket.marks) & set(question.tickets[question.positive_images[0]].marks))
    # Half share a mark by choice, and of the rest 2 · 62 of 2,015 pairs do by chance: 0.5 + 0.5 · 0.06 = 0.53. With
    # some 240 pages the standard deviation is sqrt(0.53 · 0.47 / 240) = 0.03; five of them are left on either side.
    assert 0.38 < near / others < 0.68


@pytest.mark.parametrize("side", [56, 112])
def test_each_form_and_colour_is_drawn_where_its_mark_stands(side: int):
    drawn = {}
    for colour, form in itertools.product(COLOURS, FORMS):
        marks = (Mark(colour=colour, form=form), Mark(colour="red", form="ring"))
        page = draw_ticket(Ticket(pair=0, marks=marks, scan=0, digit=0), side)
        assert (page.mode, page.size) == ("RGB", (side, side))
        drawn[colour, form] = np.asarray(page).astype(int)
    quarter = side // 2
    for (colour, _), pixels in drawn.items():
        mark = pixels[:quarter, :quarter].reshape(-1, 3)
        assert (mark == COLOURS[colour]).all(axis=1).sum() > 0.1 * quarter**2  # pixels of the pure colour
        assert np.array_equal(pixels[:, quarter:], drawn["red", "ring"][:, quarter:])  # the rest does not depend on it
        assert pixels[quarter:, quarter:].min() < 60  # ink
    quarters = {key: pixels[:quarter, :quarter] for key, pixels in drawn.items()}
    for first, second in itertools.combinations(quarters, 2):
        different = (np.abs(quarters[first] - quarters[second]).max(axis=2) > 40).mean()
        assert different > 0.05, (first, second)


def test_a_drawing_depends_on_the_ticket_alone():
    ticket = make_pools(SMALL, 0)[2].tickets[0]
    assert draw_ticket(ticket, 56).tobytes() == draw_ticket(ticket, 56).tobytes()


def test_retriever_data_hold_one_page_for_each_query(tmp_path: Path):
    paths = build_retriever_data(SMALL, tmp_path / "retriever", 1)
    test = read_retrieval_set(Path(paths.test_path))
    assert len(test.queries) == len(test.pages) == 30
    assert test.unjudged_query_ids == ()
    pool = make_pools(SMALL, 1)[2]
    ticket_of = {ticket.page_id: ticket for ticket in pool.tickets}
    assert len({query.text for query in test.queries}) == 30
    for query in test.queries:
        (page_id,) = test.relevant[query.query_id]
        ticket = ticket_of[page_id]
        assert query.text in [ticket_query(ticket.marks, number) for number in range(len(PHRASINGS))]
        assert query.answer == NUMBERS[ticket.digit]
    for page in test.pages:
        assert page.image is not None
        shown = np.asarray(load_image(page.image, DataConfig(min_pixels=784).image_rules))
        assert np.array_equal(shown, np.asarray(draw_ticket(ticket_of[page.page_id], 56)))


def test_training_pairs_name_the_page_that_they_point_to(tmp_path: Path):
    paths = build_retriever_data(SMALL, tmp_path / "retriever", 1)
    rows = [json.loads(line) for line in Path(paths.train_path).read_text().splitlines()]
    assert len(rows) == 40
    ticket_of = {f"imgs/{ticket.page_id}.png": ticket for ticket in make_pools(SMALL, 1)[1].tickets}
    for row in rows:
        ticket = ticket_of[row["image"]]
        assert row["query"] in [ticket_query(ticket.marks, number) for number in range(len(PHRASINGS))]
        assert row["source"] == "quickstart"
        with Image.open(Path(paths.train_path).parent / row["image"]) as image:
            assert image.convert("RGB").tobytes() == draw_ticket(ticket, 56).tobytes()


def test_a_complete_folder_of_retriever_data_is_left_alone(tmp_path: Path):
    paths = build_retriever_data(SMALL, tmp_path / "retriever", 1)
    stamp = Path(paths.train_path).stat().st_mtime_ns
    assert build_retriever_data(SMALL, tmp_path / "retriever", 2) == paths
    assert Path(paths.train_path).stat().st_mtime_ns == stamp


def test_held_out_questions_show_pages_of_the_test_corpus(tmp_path: Path):
    built = build_quickstart_data(SMALL, tmp_path / "data", 1)
    test = read_retrieval_set(Path(build_retriever_data(SMALL, tmp_path / "retriever", 1).test_path))
    corpus_ids = {page.page_id for page in test.pages}
    data = DataConfig(max_images=4, min_pixels=784, max_pixels=12544)
    for path, questions in zip(
        (built.sft_path, built.rl_path, built.test_path), make_ticket_questions(SMALL, 1), strict=True
    ):
        samples = load_samples(path, data, is_training=path != built.test_path).samples
        for sample, question in zip(samples, questions, strict=True):
            assert (sample.question, sample.gold_response) == (question.question, question.response)
            assert (sample.answers, sample.is_sufficient) == ((question.answer,), question.is_sufficient)
            assert sample.metadata == {"kind": "read", "asked_page": question.asked.page_id}
            if path == built.test_path:  # the layout of training data has no column for it
                assert sample.positive_images == question.positive_images
            shown = {Path(ref.path).stem for ref in sample.images}
            assert shown == {ticket.page_id for ticket in question.tickets}
            assert (shown <= corpus_ids) == (path == built.test_path)


def test_every_word_of_queries_and_responses_is_one_token():
    texts = corpus(dataclasses.replace(SMALL, num_sft_samples=400), 0)
    tokenizer = build_tokenizer(texts, SMALL.vocabulary_tokens)
    words = {word for text in texts for word in text.replace("?", " ").split() if word.isalpha()}
    assert words >= {*COLOURS, *FORMS}
    assert [word for word in sorted(words) if len(tokenizer.encode(f" {word}")) != 1 and word[0].islower()] == []


def test_pages_too_small_for_marks_are_refused():
    with pytest.raises(ConfigError, match=r"image_pixels=28 is too small for quickstart.task=tickets"):
        QuickstartConfig(task="tickets", image_pixels=28)
    with pytest.raises(ConfigError, match=r"quickstart.num_test_pages=4"):
        QuickstartConfig(num_test_pages=4)


def test_the_command_writes_what_the_quickstart_of_the_retriever_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    assert make_data(["tickets", str(folder), "--train", "40", "--test", "30", "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"'retriever.data=[{folder}/train.jsonl]' retriever.test_path={folder}/test\n"
    build_retriever_data(SMALL, tmp_path / "built", 7)
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
    assert names == sorted(str(file.relative_to(tmp_path / "built")) for file in (tmp_path / "built").rglob("*"))
    for name in names:
        if (folder / name).is_file():
            assert (folder / name).read_bytes() == (tmp_path / "built" / name).read_bytes(), name
