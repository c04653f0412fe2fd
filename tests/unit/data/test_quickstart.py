"""The quickstart's task and model: honest splits, correct gold, EVisRAG's format, Qwen's token rules."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import ConfigError, DataConfig, QuickstartConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.synthetic.cards import COLOURS, KINDS, Card, CardQuestion, draw_image, make_question
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus, make_questions
from rsgrpo.data.synthetic.quickstart_tokenizer import SPECIAL_TOKENS, build_tokenizer
from rsgrpo.data.synthetic.scans import NUMBERS, split_scans
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL, is_refusal
from rsgrpo.text.sections import parse_response
from tests.examples import examples

SMALL = QuickstartConfig(num_sft_samples=60, num_rl_samples=60, num_test_samples=30)


@pytest.fixture(scope="module")
def scans() -> tuple[tuple[int, ...], ...]:
    return split_scans((60, 60, 40), 0)[0]


def solve(question: CardQuestion) -> str:
    """Answer from the pages alone, by another way than the generator's."""
    words = question.question.rstrip("?").split()
    digit_of = {card.colour: card.digit for card in question.cards}
    if question.kind == "which":
        shown = [card.colour for card in question.cards if card.digit == NUMBERS.index(words[-1])]
        assert len(shown) <= 1
        return shown[0] if shown else REFUSAL
    asked = [word for word in words if word in COLOURS]
    assert len(asked) == (2 if question.kind == "add" else 1)
    return NUMBERS[sum(digit_of[colour] for colour in asked)] if set(asked) <= set(digit_of) else REFUSAL


@examples(150)
@given(st.sampled_from(KINDS), st.booleans(), st.integers(0, 2**31))
def test_gold_is_right_well_formed_and_says_no_more_than_the_pages(scans, kind, is_sufficient, seed):
    question = make_question(kind, is_sufficient=is_sufficient, scans=scans, rng=np.random.default_rng(seed))
    assert question.is_sufficient == is_sufficient
    assert solve(question) == question.answer
    assert is_refusal(question.answer) == (not is_sufficient)
    assert 2 <= len(question.cards) <= 4
    assert len({card.colour for card in question.cards}) == len(question.cards)
    parsed = parse_response(question.response)
    assert parsed.is_well_formed
    observe, think, answer = parsed.content("observe"), parsed.content("think"), parsed.content("answer")
    assert observe is not None and think is not None and answer is not None
    assert answer.strip() == question.answer
    assert think.strip() != question.answer
    assert "[" not in observe
    lines = parsed.first_lines()
    assert list(lines) == list(range(len(question.cards)))
    for page, card in enumerate(question.cards):
        words = (card.colour, NUMBERS[card.digit])
        transcript = " ".join(reversed(words) if kind == "which" else words)  # what is asked by comes first
        assert transcript in observe
        assert lines[page].text == (transcript if page in question.positive_images else IRRELEVANT)
    if kind == "add" and is_sufficient:
        assert len(set(question.positive_images)) == 2  # two different pages


def test_no_scan_is_in_two_splits_and_the_last_takes_what_is_left():
    splits = split_scans((60, 70, 40), 3)
    sets = [{scan for digit in split for scan in digit} for split in splits]
    assert [len(scans) for scans in sets] == [600, 700, 1797 - 1300]  # scikit-learn has 1,797 scans
    assert len(set.union(*sets)) == 1797
    assert splits != split_scans((60, 70, 40), 4)
    with pytest.raises(ValueError, match="want 180 scans of the digit 0, there are 178"):
        split_scans((60, 60, 60), 0)
    with pytest.raises(ConfigError, match="rarest digit"):
        QuickstartConfig(sft_scans_per_digit=100, rl_scans_per_digit=50, test_scans_per_digit=25)


def test_questions_of_different_splits_share_no_handwriting():
    used = [{card.scan for question in split for card in question.cards} for split in make_questions(SMALL, 0)]
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]


def test_kinds_and_unanswerable_questions_have_their_exact_shares():
    config = QuickstartConfig(num_sft_samples=300, num_rl_samples=30, num_test_samples=30, unanswerable_frac=0.2)
    sft = make_questions(config, 0)[0]
    counts = Counter((question.kind, question.is_sufficient) for question in sft)
    # Of five questions two read, two add and one finds; a fifth of each kind has no answer.
    shares = {"read": 120, "add": 120, "which": 60}
    assert counts == {
        (kind, sufficient): n * (4 if sufficient else 1) // 5
        for kind, n in shares.items()
        for sufficient in (True, False)
    }
    assert {len(question.cards) for question in sft} == {2, 3, 4}
    answerable = make_questions(dataclasses.replace(config, unanswerable_frac=0), 0)[0]
    assert all(question.is_sufficient for question in answerable)


def test_everything_comes_from_the_seed():
    assert make_questions(SMALL, 5) == make_questions(SMALL, 5)
    assert make_questions(SMALL, 5) != make_questions(SMALL, 6)


@pytest.mark.parametrize("side", [28, 56])
def test_a_page_shows_the_frame_the_paper_and_the_digit(side: int):
    image = np.asarray(draw_image(Card(colour="green", scan=0, digit=0), side)).astype(int)
    assert image.shape == (side, side, 3)
    assert tuple(image[0, 0]) == tuple(image[-1, side // 2]) == COLOURS["green"]
    paper = image[side // 8 : -side // 8, side // 8 : -side // 8]
    assert paper.min() < 60  # ink
    # A quarter of green (30, 150, 60) in white: 255 - 0.25 * (225, 105, 195) = (198.75, 228.75, 206.25).
    brightest = paper.reshape(-1, 3)[paper.sum(axis=2).argmax()]
    assert tuple(brightest) == (199, 229, 206)
    other = np.asarray(draw_image(Card(colour="green", scan=1, digit=1), side)).astype(int)
    assert np.abs(image - other).max() > 100  # another scan, another page


def test_data_sets_are_written_in_the_public_format_and_read_back(tmp_path: Path):
    paths = build_quickstart_data(SMALL, tmp_path / "data", 1)
    questions = make_questions(SMALL, 1)
    assert (tmp_path / "data/sft/images.parquet").is_file()
    assert not (tmp_path / "data/test/images.parquet").exists()
    line = json.loads((tmp_path / "data/test/top3_test.jsonl").read_text().splitlines()[0])
    assert {"qid", "query", "answer", "image", "posImgs", "is_sufficient"} <= set(line)
    train = json.loads((tmp_path / "data/rl/train.jsonl").read_text().splitlines()[0])
    assert train["prompt"].count("<image>") == len(train["image"])
    data = DataConfig(max_images=4, min_pixels=784, max_pixels=12544)
    for path, split in zip((paths.sft_path, paths.rl_path, paths.test_path), questions, strict=True):
        loaded = load_samples(path, data, is_training=path != paths.test_path)
        assert not loaded.skipped
        for sample, question in zip(loaded.samples, split, strict=True):
            assert (sample.question, sample.gold_response) == (question.question, question.response)
            assert (sample.answers, sample.is_sufficient) == ((question.answer,), question.is_sufficient)
            assert sample.metadata["kind"] == question.kind
            for ref, card in zip(sample.images, question.cards, strict=True):
                image = load_image(ref, data.image_rules)
                assert np.array_equal(np.asarray(image), np.asarray(draw_image(card, SMALL.image_pixels)))


def test_a_complete_data_folder_is_left_alone_and_an_unfinished_one_is_not_taken_for_it(tmp_path: Path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial/left_over").touch()
    paths = build_quickstart_data(SMALL, tmp_path / "data", 1)
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["rl", "sft", "test"]
    stamp = Path(paths.sft_path).stat().st_mtime_ns
    assert build_quickstart_data(SMALL, tmp_path / "data", 2) == paths
    assert Path(paths.sft_path).stat().st_mtime_ns == stamp


def test_paths_of_pages_do_not_give_the_answer_away(tmp_path: Path):
    paths = build_quickstart_data(SMALL, tmp_path / "data", 1)
    for sample in load_samples(paths.test_path, DataConfig(), is_training=False).samples:
        assert not any(colour in ref.path for colour in COLOURS for ref in sample.images)


def test_tokens_merge_with_their_neighbours_as_in_the_full_tokenizer():
    tokenizer = build_tokenizer(corpus(SMALL, 0), 512)
    ids = tokenizer.encode("<evidence>\n[1]: red 12\n</evidence>\n<answer> insufficient")
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    # Qwen2's rules: "<" takes the name, ">" the line break behind it, "</" stands alone, digits come one by one.
    assert pieces[:3] == ["<evidence", ">\n", "["]
    assert pieces[5:10] == [" red", " ", "1", "2", "\n"]
    assert pieces[10:] == ["</", "evidence", ">\n", "<answer", ">", " insufficient"]
    assert tokenizer.decode(tokenizer.encode("Ärger 😀 \t x")) == "Ärger 😀 \t x"  # bytes: nothing is unknown


def test_special_tokens_follow_the_vocabulary_in_qwens_order():
    tokenizer = build_tokenizer(corpus(SMALL, 0), 512)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[token_id] for token_id in ids]
    assert tokenizer.decode([*tokenizer.encode("hi"), *ids], skip_special_tokens=True) == "hi"
    with pytest.raises(ValueError, match="must be at least 270"):
        build_tokenizer([], 269)


def test_the_model_folder_loads_like_any_qwen(tmp_path: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = build_quickstart_model(SMALL, tmp_path / "model", 0, corpus(SMALL, 0))
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which card shows 7?"}]}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>Which card shows 7?<|im_end|>\n<|im_start|>assistant\n"
    )
    image = draw_image(Card(colour="red", scan=0, digit=0), SMALL.image_pixels)
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    num_image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert num_image_tokens == (SMALL.image_pixels // 28) ** 2  # the page is read as it is, not rescaled
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], SMALL.vocabulary_tokens)
    assert torch.isfinite(logits).all()
    # Drawn by width: 1/sqrt(text_hidden) for what reads the text stream, the full model's 0.02 for embeddings.
    query = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert float(query.detach().std()) == pytest.approx(SMALL.text_hidden**-0.5, rel=0.05)
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_model_comes_from_the_seed_and_a_complete_folder_is_left_alone(tmp_path: Path):
    texts = corpus(SMALL, 0)
    state = torch.random.get_rng_state()
    first, again, other = (
        (build_quickstart_model(SMALL, tmp_path / name, seed, texts) / "model.safetensors").read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers stay as they were
    build_quickstart_model(SMALL, tmp_path / "a", 1, texts)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == first
