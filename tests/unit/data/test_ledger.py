"""The ledger: gold follows from two pages, honest splits, responses of known length, a recipe with room for them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import DataConfig, QuickstartConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.synthetic.cards import COLOURS
from rsgrpo.data.synthetic.ledger import (
    HOPS,
    Account,
    Entry,
    LedgerQuestion,
    draw_ledger_page,
    make_ledger_question,
    make_ledger_questions,
    page_number,
)
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus
from rsgrpo.data.synthetic.quickstart_tokenizer import build_tokenizer
from rsgrpo.data.synthetic.scans import INK, NUMBERS, split_scans
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL
from rsgrpo.text.sections import parse_response
from tests.examples import examples
from tests.unit.composition import composed

SMALL = QuickstartConfig(task="ledger", num_sft_samples=200, num_rl_samples=40, num_test_samples=40)
MISSING = st.sampled_from(("", *HOPS))
SEEDS = st.integers(0, 2**31)
NUM_PAGES = st.integers(2, 8)


@pytest.fixture(scope="module")
def scans() -> tuple[tuple[int, ...], ...]:
    return split_scans((60, 60, 40), 0)[0]


@pytest.fixture(scope="module")
def splits() -> tuple[tuple[LedgerQuestion, ...], ...]:
    return make_ledger_questions(SMALL, 0)


def solve(question: LedgerQuestion) -> tuple[str, tuple[int, ...]]:
    """Answer and pages on the way from the words on the pages alone, by another way than the generator's."""
    asked = question.question.rstrip("?").split()[-1]
    words = [page.transcript.split() for page in question.pages]
    account = [page for page, found in enumerate(words) if found[:3] == ["ledger", "account", asked]]
    ledgers = {words[page][-1] for page in account}
    entry = [page for page, found in enumerate(words) if found[1] == "entry" and found[2] in ledgers]
    assert len(account) <= 1
    assert len(entry) <= 1
    return (words[entry[0]][-1] if entry else REFUSAL), tuple(sorted(account + entry))


@examples(150)
@given(MISSING, NUM_PAGES, SEEDS)
def test_the_answer_follows_from_two_pages_and_an_unanswerable_question_lacks_a_hop(scans, missing, num_pages, seed):
    question = make_ledger_question(missing, num_pages, scans=scans, rng=np.random.default_rng(seed))
    assert solve(question) == (question.answer, question.positive_images)
    assert question.is_sufficient == (not missing) == (question.answer != REFUSAL)
    assert len(question.positive_images) == {"": 2, "account": 0, "entry": 1}[missing]
    assert len(question.pages) == num_pages
    accounts = [page for page in question.pages if isinstance(page, Account)]
    entries = [page for page in question.pages if isinstance(page, Entry)]
    assert min(len(accounts), len(entries)) >= min(3, num_pages // 2)
    assert len({page.name for page in accounts}) == len({page.ledger for page in accounts}) == len(accounts)
    assert len({page.ledger for page in entries}) == len(entries)
    assert all(page.name != page.ledger for page in accounts)  # else one hop would do
    assert (question.asked in [page.name for page in accounts]) == (missing != "account")
    assert all(page.scan in scans[page.amount] for page in entries)


@examples(100)
@given(MISSING, NUM_PAGES, SEEDS)
def test_gold_responses_name_every_page_and_say_no_more_than_the_pages(scans, missing, num_pages, seed):
    question = make_ledger_question(missing, num_pages, scans=scans, rng=np.random.default_rng(seed))
    parsed = parse_response(question.response)
    assert parsed.is_well_formed
    observe, think, answer = (parsed.content(name) or "" for name in ("observe", "think", "answer"))
    assert answer.strip() == question.answer
    lines = parsed.first_lines()
    assert list(lines) == list(range(len(question.pages)))
    described, looked_up = (part.split(", ") for part in observe.split(". "))
    assert len(described) == len(question.pages)
    ordinals = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
    for page, (text, shown) in enumerate(zip(described, question.pages, strict=True)):
        assert text.strip() == f"{shown.transcript} {ordinals[page]}"
        assert (text.strip() in looked_up) == (page in question.positive_images)
        assert lines[page].text == (shown.transcript if page in question.positive_images else IRRELEVANT)
        assert (shown.transcript in think) == (page in question.positive_images)
    first, second = think.split(". ")  # one sentence a hop
    assert first.startswith(" accounts are ")
    assert second.startswith("entries are ")
    assert "[" not in observe
    # What is looked up stands once in front of the evidence, and again in the thoughts; the hop that fails as missing.
    assert [step.endswith(" is missing") for step in looked_up] == {
        "": [False] * 2,
        "account": [True],
        "entry": [False, True],
    }[missing]
    assert first.endswith(f": {looked_up[0]}")
    assert missing == "account" or second.endswith(f": {looked_up[1]}")


def test_responses_have_more_than_150_tokens_on_average_and_fit(splits):
    tokenizer = build_tokenizer(corpus(SMALL, 0), SMALL.vocabulary_tokens)
    texts = [question.response for question in itertools.chain(*splits)]
    lengths = [len(tokenizer.encode(text)) + 1 for text in texts]  # and the end of the turn
    num_first = len(splits[0])  # among them the short questions that supervised training begins with
    assert 60 <= min(lengths[:num_first]) <= max(lengths[:num_first]) <= 250
    assert 130 <= min(lengths[num_first:]) <= max(lengths[num_first:]) <= 250
    assert np.mean(lengths[num_first:]) >= 150
    words = {word for text in texts for word in re.findall(r"(?<= )[a-z]+\b", text)}  # behind a blank: no tags
    assert words >= {*COLOURS, *NUMBERS[:10]}
    assert [word for word in sorted(words) if len(tokenizer.encode(f" {word}")) != 1] == []


def test_a_fifth_of_the_questions_lacks_a_hop_each_hop_as_often(splits):
    # 0.2 · 200 = 40 without an answer, which lack an account and an entry by turns; 0.2 · 40 = 8 of the others.
    assert Counter(question.missing for question in splits[0]) == {"": 160, "account": 20, "entry": 20}
    for split in splits[1:]:
        assert Counter(question.missing for question in split) == {"": 32, "account": 4, "entry": 4}


def test_who_leaves_out_a_hop_is_led_to_another_page(splits):
    linked = named = 0
    for question in splits[1] + splits[2]:
        booked = {page.ledger for page in question.pages if isinstance(page, Entry)}
        others = {page.ledger for page in question.pages if isinstance(page, Account) and page.name != question.asked}
        linked += bool(booked & others)
        named += question.asked in booked
    # Three pages are entries at least. By chance alone two others of seven colours hit one of two ledgers with
    # 1 - 5/7 · 4/6 = 0.52, and the asked name with 2/7 = 0.29; three of five entries are drawn near both on purpose.
    assert linked / len(splits[1] + splits[2]) > 0.7
    assert named / len(splits[1] + splits[2]) > 0.3


def test_half_of_the_supervised_questions_are_short_and_all_others_long(splits):
    counts = [[len(question.pages) for question in split] for split in splits]
    assert set(counts[0]) == {2, 3, 4, 5, 6, 7, 8}
    # A half of 200 by chance: within four standard deviations, 4 · √(200 / 4) = 28.
    assert 72 <= sum(count <= 5 for count in counts[0]) <= 128
    assert {*counts[1], *counts[2]} == {6, 7, 8}


def test_no_scan_is_in_two_splits_and_everything_comes_from_the_seed(splits):
    used = [{page.scan for question in split for page in question.pages if isinstance(page, Entry)} for split in splits]
    for first, second in itertools.combinations(used, 2):
        assert not first & second
    assert len(used[0]) <= 10 * SMALL.sft_scans_per_digit
    assert make_ledger_questions(SMALL, 0) == splits
    assert make_ledger_questions(SMALL, 1) != splits


@pytest.mark.parametrize("side", [28, 56])
def test_a_page_shows_its_ledger_and_a_dot_or_a_number(side: int):
    account = np.asarray(draw_ledger_page(Account(name="red", ledger="blue"), side))
    entry = np.asarray(draw_ledger_page(Entry(ledger="blue", scan=5, amount=5), side))
    assert account.shape == entry.shape == (side, side, 3)
    assert np.array_equal(account[0], entry[0])  # the frame
    assert (account[0] == COLOURS["blue"]).all()
    # A dot of 0.7 of the side covers a circle of π/4 · 0.49 = 0.385 of the page; its edge is mixed with the paper.
    assert 0.30 < (account == COLOURS["red"]).all(axis=2).mean() < 0.39
    assert not (entry == COLOURS["red"]).all(axis=2).any()
    assert (np.abs(entry.astype(int) - INK).max(axis=2) < 30).any()


def test_every_page_has_a_number_of_its_own():
    accounts = [Account(name=name, ledger=ledger) for name, ledger in itertools.permutations(COLOURS, 2)]
    entries = [Entry(ledger=ledger, scan=scan, amount=0) for ledger in COLOURS for scan in range(1797)]
    numbers = [*map(page_number, accounts), *map(page_number, entries)]
    assert len(set(numbers)) == len(numbers)


def test_data_sets_are_written_in_the_public_format_and_read_back(tmp_path: Path, splits):
    config = dataclasses.replace(SMALL, num_sft_samples=8, num_rl_samples=8, num_test_samples=8)
    built = build_quickstart_data(config, tmp_path / "data", 1)
    data = DataConfig(max_images=8, min_pixels=784, max_pixels=12544)
    drawn = make_ledger_questions(config, 1)
    for path, questions in zip((built.sft_path, built.rl_path, built.test_path), drawn, strict=True):
        is_test = path == built.test_path
        samples = load_samples(path, data, is_training=not is_test).samples
        for sample, question in zip(samples, questions, strict=True):
            assert (sample.question, sample.gold_response) == (question.question, question.response)
            assert (sample.answers, sample.is_sufficient) == ((question.answer,), question.is_sufficient)
            assert sample.metadata["kind"] == (f"no {question.missing}" if question.missing else "both")
            if is_test:  # the layout of training data has no column for it
                assert sample.positive_images == question.positive_images
            for reference, page in zip(sample.images, question.pages, strict=True):
                shown = np.asarray(load_image(reference, data.image_rules))
                assert np.array_equal(shown, np.asarray(draw_ledger_page(page, 28)))
                assert Path(reference.path).stem == str(page_number(page))  # tells neither names nor amounts
    rows = [json.loads(line) for line in Path(built.sft_path).read_text().splitlines()]
    assert len({row["qid"] for row in rows}) == 8


def test_the_recipe_is_the_quickstart_with_room_for_its_responses():
    config, quickstart = composed("recipe=quickstart_ledger"), composed("recipe=quickstart")
    assert config.quickstart.task == "ledger"
    assert config.data.max_images == 8
    limit = config.rollout.sampling.max_response_tokens
    assert limit == config.eval.sampling.max_response_tokens == config.rewards["overlong"].kwargs["max_response_tokens"]
    assert limit - config.rewards["overlong"].kwargs["buffer_tokens"] > 200  # no gold response is punished
    assert config.data.max_prompt_tokens + limit <= config.rollout.max_model_tokens
    assert (config.model, config.prompt, list(config.rewards)) == (
        quickstart.model,
        quickstart.prompt,
        list(quickstart.rewards),
    )
