"""The model's own yes or no about a page: equal to its logits, at the size and with the tokens that are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from recipes.filtering.forward_judge import ForwardJudge
from recipes.filtering.yes_no import YesNoScorer
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.data.images.loading import load_image
from rsgrpo.model.folder import load_processor
from rsgrpo.prompts.relevance import RelevancePrompts, answer_tokens
from rsgrpo.prompts.template import PromptTemplateError
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion
from tests.tiny_model import build_tiny_model, tiny_tokenizer, write_images

TEMPLATE = "configs/prompt/relevance.jinja"
RULES = ImageRules(min_pixels=784, max_pixels=10**6)
LOW = RULES.scaled_down(84 * 84)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory):
    return write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (224, 168), (168, 84)])


@pytest.fixture(scope="module")
def scorer(folder: Path) -> YesNoScorer:
    judge = ForwardJudge(folder, RULES, "filter.policy=tiny")
    tokens = answer_tokens(judge.processor.tokenizer, "y", "n")  # the tiny model's tokens are bytes
    return YesNoScorer(
        judge,
        RelevancePrompts(TEMPLATE, judge.processor),
        tokens,
        max_pixels=84 * 84,
        image_tokens=ImageTokens(judge.processor.image_processor, LOW),
    )


def test_the_probability_is_the_sigmoid_of_the_two_logits(folder: Path, pages, scorer: YesNoScorer) -> None:
    processor = load_processor(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    yes, no = (processor.tokenizer.encode(text)[0] for text in "yn")
    expected = []
    for page in pages:
        content = [
            {"type": "image"},
            {"type": "text", "text": Path(TEMPLATE).read_text().replace("{{ question -}}", "Who signed?").strip()},
        ]
        turns = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        encoded = processor(text=[text], images=[load_image(page, LOW)], return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0, -1].double()
        expected.append(float(torch.sigmoid(logits[yes] - logits[no])))
    found = scorer.score("Who signed?", pages)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len({round(value, 4) for value in expected}) == 3  # the pages are told apart


def test_tokens_of_images_are_those_at_the_low_resolution(pages, scorer: YesNoScorer) -> None:
    # At 84 × 84 pixels: 56 × 56 stays, 2 × 2 tokens of 28 pixels; 224 × 168 becomes 96 × 72, rounded to 84 × 84: 9;
    # 168 × 84 becomes 118 × 59, rounded to 112 × 56: 8.
    found = scorer.score_all([PagesOfQuestion(question="Who?", pages=tuple(pages))])
    assert found[0].image_tokens == 4 + 9 + 8
    longer = scorer.score_all([PagesOfQuestion(question="Who??", pages=tuple(pages))])
    assert longer[0].text_tokens == found[0].text_tokens + 3  # one byte more, for each of three pages


def test_several_questions_at_once_score_as_each_alone(pages, scorer: YesNoScorer) -> None:
    asked = [PagesOfQuestion(question="a", pages=tuple(pages[:2])), PagesOfQuestion(question="b", pages=(pages[2],))]
    assert scorer.score_all(asked) == [scorer.score_all([item])[0] for item in asked]
    assert scorer.score_all([]) == []


def test_answers_that_are_no_single_known_token_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(PromptTemplateError, match=r"filter.yes='yes' is 3 tokens"):
        answer_tokens(tokenizer, "yes", "no")
    with pytest.raises(PromptTemplateError, match="the same token"):
        answer_tokens(tokenizer, "y", "y")
    tokenizer.unk_token = "n"
    with pytest.raises(PromptTemplateError, match=r"filter.no='n' is not known"):
        answer_tokens(tokenizer, "y", "n")
    assert answer_tokens(tiny_tokenizer(), "y", "n") == (tokenizer.encode("y")[0], tokenizer.encode("n")[0])


def test_a_question_with_a_control_token_is_refused(pages, scorer: YesNoScorer) -> None:
    with pytest.raises(PromptTemplateError, match=r"<\|im_end\|>"):
        scorer.score("Who<|im_end|>?", pages)
