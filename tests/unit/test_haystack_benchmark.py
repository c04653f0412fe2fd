"""The benchmark of haystacks: which pages a question gets, what training asks, and how accuracies are compared."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from rsgrpo.config import QuickstartConfig
from rsgrpo.model.quickstart_model import build_quickstart_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Squares:
    """Six grey squares; the digit does not show."""

    name = "stamps"
    page_pixels, low_pixels, num_looked_at = 56, 28, 2
    train_items: Sequence[int] = range(6)
    held_out_items: Sequence[int] = range(6)
    test_items: Sequence[int] = range(6)

    def question(self, item: int) -> str:
        return f"Which number is beside square {item}?"

    def transcript(self, item: int) -> str:
        return f"square {item}"

    def near(self, item: int, rng: np.random.Generator) -> int:
        return (item + 1) % 6

    def nearest(self, item: int, rng: np.random.Generator) -> int:
        return (item + 1) % 6

    def draw(self, item: int, scan: int, rng: np.random.Generator) -> Image.Image:
        return Image.new("RGB", (self.page_pixels, self.page_pixels), (40 * item,) * 3)


@pytest.fixture(scope="module")
def questions() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("haystack_questions")


@pytest.fixture(scope="module")
def data() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("haystack_data")


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("haystack_training")


@pytest.fixture(scope="module")
def worlds() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("haystack_worlds")


@pytest.fixture(scope="module")
def stamps() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("haystack_stamps")


@given(page=st.integers(0, 19), seed=st.integers(0, 99))
def test_every_haystack_holds_the_page_once_and_those_of_smaller_ones(questions: ModuleType, page: int, seed: int):
    piles = questions.haystacks(page, 20, [1, 5, 20], np.random.default_rng(seed))
    assert {size: len(set(pages)) for size, pages in piles.items()} == {1: 1, 5: 5, 20: 20}
    assert all(page in pages for pages in piles.values())
    assert set(piles[5]) < set(piles[20])


def test_a_haystack_larger_than_the_pool_is_refused(questions: ModuleType):
    with pytest.raises(ValueError, match="21 pages cannot be drawn from 20"):
        questions.haystacks(0, 20, [21], np.random.default_rng(0))


@given(best=st.permutations(range(8)), gold=st.integers(0, 7), num_kept=st.integers(1, 8))
def test_the_oracle_changes_one_page_at_most(questions: ModuleType, best: list[int], gold: int, num_kept: int):
    shown = questions.oracle_pages(best, gold, num_kept)
    assert gold in shown
    assert len(shown) == num_kept
    assert list(shown) == sorted(shown)
    assert len(set(shown) - set(best[:num_kept])) == (gold not in best[:num_kept])


def test_recalls_count_the_questions_whose_page_is_among_the_best(questions: ModuleType):
    # none, one and five pages are ranked before the right one: among the best 1 one of three, among the best 2 two
    assert questions.recalls_at([0, 1, 5], 3) == [1 / 3, 2 / 3, 2 / 3]


def test_differences_are_paired(questions: ModuleType):
    # differences 1, -1, 1, 0: mean 0.25; squares of deviations 0.5625 + 1.5625 + 0.5625 + 0.0625 = 2.75, so the
    # deviation is sqrt(2.75 / 3) = 0.957427, over sqrt(4) 0.478714, times 1.959964 = 0.938261
    found = questions.paired_difference([True, False, True, True], [False, True, False, True])
    assert (found.mean, found.num_gained, found.num_lost) == (25.0, 2, 1)
    assert found.half_width == pytest.approx(93.8261, abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_a_difference_turns_its_sign_when_both_change_places(questions: ModuleType, pairs: list[tuple[bool, bool]]):
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    there, back = questions.paired_difference(first, second), questions.paired_difference(second, first)
    assert there.mean == -back.mean
    assert there.half_width == pytest.approx(back.half_width)
    assert (there.num_gained, there.num_lost) == (back.num_lost, back.num_gained)


def test_training_asks_about_pages_that_are_there_and_gives_their_digits(data: ModuleType, tmp_path: Path):
    world = Squares()
    shares = {"locate": 0.6, "relevance": 0.3, "digit": 0.1}
    counts = {1: 0.2, 2: 0.3, 3: 0.5}
    lesson = data.Lesson(num_steps=1, num_questions=200, shares=shares, page_counts=counts)
    data.write_training_data(world, tmp_path / "data", lesson, seed=3)
    pages = data.TrainingPages(world, 48, seed=3)
    digit_of = {path: data.NUMBERS[digit] for views in pages.views.values() for path, digit in views}
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    kinds = {row["qid"].split("-")[0] for row in rows}
    assert kinds == {"locate", "relevance", "digit"}
    for row in rows:
        assert row["prompt"].count("<image>") == len(row["image"])
        assert all((tmp_path / "data" / path).is_file() for path in row["image"])
        shown = [path.removeprefix("imgs/").split("-")[0] for path in row["image"]]
        if row["qid"].startswith("locate"):
            asked = row["prompt"].split("square ")[1].split("?")[0]
            number = shown.index(asked)
            digit = digit_of[row["image"][number]]
            assert f"[{number + 1}]: square {asked} {digit}\n" in row["gold_response"]
            read = [f"square {item} {digit_of[path]}" for item, path in zip(shown, row["image"], strict=True)]
            assert row["gold_response"].startswith(f"<observe> {', '.join(read)}</observe>\n")
            assert row["gold_response"].endswith(f"<answer> {digit}</answer>")
            assert len(set(shown)) == len(shown)
        if row["qid"].startswith("digit"):
            assert row["gold_response"] == f" {digit_of[row['image'][0]]}"
        if row["qid"].startswith("relevance"):
            is_low = "-low" in row["image"][0]
            with Image.open(tmp_path / "data" / row["image"][0]) as page:
                assert page.size == ((28, 28) if is_low else (56, 56))
            assert row["gold_response"] == ("yes" if f"square {shown[0]}?" in row["prompt"] else "no")
    pairs = [json.loads(line) for line in (tmp_path / "data" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 6 * 48  # pictures, views


def test_no_ticket_is_trained_on_and_asked_for(worlds: ModuleType):
    tickets = worlds.Tickets(0)
    parts = [set(tickets.train_items), set(tickets.held_out_items), set(tickets.test_items)]
    # 64 marks make 64 · 63 / 2 = 2016 pairs, 1000 of the test and 200 held out
    assert [len(part) for part in parts] == [816, 200, 1000]
    assert len(set.union(*parts)) == 2016
    rng = np.random.default_rng(0)
    assert all(tickets.near(item, rng) in tickets.train_items for item in tickets.train_items)
    for item in tickets.train_items:
        other = tickets.nearest(item, rng)
        words, other_words = tickets.transcript(item).split(), tickets.transcript(other).split()
        assert other in tickets.train_items and other != item
        # "red circle blue star" and "red circle blue ring" have three of four words in common, in any order
        assert len(words) - sum((Counter(words) - Counter(other_words)).values()) >= 3


def test_a_policy_gets_an_embedders_weights_and_a_tied_head(training: ModuleType, tmp_path: Path):
    sizes = QuickstartConfig(text_hidden=16, text_layers=1, text_heads=2, vision_hidden=16, vision_heads=2)
    start = build_quickstart_model(sizes, tmp_path / "start", 0, ["one two"])
    other = build_quickstart_model(sizes, tmp_path / "other", 1, ["one two"])
    embedder = Qwen2_5_VLModel.from_pretrained(other)
    embedder.save_pretrained(tmp_path / "embedder")  # as an embedder lies there: without a head
    folder = training.policy_from_embedder(tmp_path / "embedder", start, tmp_path / "policy")
    policy = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    expected = embedder.state_dict()
    assert all(torch.equal(weights, expected[name]) for name, weights in policy.model.state_dict().items())
    assert policy.lm_head.weight is policy.get_input_embeddings().weight
    assert policy.generation_config.eos_token_id is not None
    assert (folder / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()


def test_captions_are_taken_that_a_word_of_their_own_tells_apart(stamps: ModuleType):
    captions = [
        "A dolphin.",  # its word is in the third too
        "Two dolphins.",
        "A dolphin jumping.",
        "The letter q.",  # "q" is too short to count
        "The letter r.",
        "A crow on its nest.",  # five words
        "Une âne.",
        "The pig, the dog.",
        "THE PIG.",
    ]
    # A word of its own: two and dolphins, jumping, (crow, nest), une and âne, dog.
    assert stamps.told_apart(captions) == [1, 2, 6]


@given(st.lists(st.sampled_from(["cat", "dog", "ox", "red"]).map(lambda word: f"A {word}."), max_size=6))
def test_a_caption_that_comes_twice_is_never_taken(stamps: ModuleType, captions: list[str]):
    taken = stamps.told_apart(captions)
    assert all(captions.count(captions[index]) == 1 and "ox" not in captions[index] for index in taken)
