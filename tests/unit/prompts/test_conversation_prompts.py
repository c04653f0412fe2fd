"""From conversations to ids: what is a target, and what only stands between targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import PromptConfig
from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE
from rsgrpo.prompts.conversation import TURN_END, ConversationBuilder, response_tokens
from rsgrpo.prompts.template import PromptTemplateError
from rsgrpo.types import Box, ImageRef, Sample, Turn
from tests.examples import examples
from tests.tiny_model import tiny_tokenizer
from tests.unit.prompts.chat import Chat

PAD = "<|vision_start|><|image_pad|><|vision_end|>"
TOKENIZER = tiny_tokenizer()


def builder(template: str = CHAT_TEMPLATE, system: str = "S") -> ConversationBuilder:
    path = str(Path(__file__).parents[3] / "configs" / "prompt" / "quickstart.jinja")
    return ConversationBuilder(PromptConfig(path=path, system=system), Chat(template))


def talk(*texts: str, system: str = "") -> Sample:
    turns = [Turn(role=("user", "assistant")[n % 2], text=text) for n, text in enumerate(texts)]
    head = [Turn(role="system", text=system)] if system else []
    count = sum(text.count("<image>") for text in texts)
    images = tuple(ImageRef(path=f"{n}.png") for n in range(count))
    return Sample(sample_id="s1", images=images, turns=(*head, *turns))


def test_a_conversation_is_cut_behind_its_first_header():
    (found,) = builder().build(talk("<image>one", "A", "two<image>\n<image>?", "B"))
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n"
    assert found.prompt.text == f"{head}{PAD}one<|im_end|>\n<|im_start|>assistant\n"
    assert [image.path for image in found.prompt.images] == ["0.png"]
    between = f"\n<|im_start|>user\ntwo{PAD}\n{PAD}?<|im_end|>\n<|im_start|>assistant\n"
    assert [(part.text, part.is_target) for part in found.parts] == [
        ("A<|im_end|>", True),
        (between, False),
        ("B<|im_end|>", True),
    ]
    assert [image.path for image in found.parts[1].images] == ["1.png", "2.png"]
    assert [image.path for image in found.images] == ["0.png", "1.png", "2.png"]


def test_a_conversation_brings_its_own_system_turn():
    (found,) = builder().build(talk("Q", "A", system="Own"))
    assert found.prompt.text.startswith("<|im_start|>system\nOwn<|im_end|>")


TEXT = st.text(alphabet="ab \n.é<", max_size=8)


@examples(50)
@given(texts=st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=4))
def test_targets_are_the_answers_with_their_ends_and_nothing_else(texts: list[tuple[str, str]]):
    (conversation,) = builder().build(talk(*(text for pair in texts for text in pair)))
    ids, is_target = response_tokens(conversation, TOKENIZER, lambda image: 1)
    # one token a byte, and one for each control token: the answers' bytes, and an end each
    assert is_target.sum() == sum(len(answer.encode()) + 1 for _, answer in texts)
    # together with the prompt it is the very text that the chat template writes, without the last line break
    messages: list[dict[str, object]] = [{"role": "system", "content": "S"}]
    for question, answer in texts:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}] if question else []})
        messages.append({"role": "assistant", "content": answer})
    whole = Chat().apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    prompt_ids = TOKENIZER.encode(conversation.prompt.text, add_special_tokens=False)
    assert [*prompt_ids, *ids] == TOKENIZER.encode(whole.removesuffix("\n"), add_special_tokens=False)
    ends = [n for n, token_id in enumerate(ids) if token_id == TOKENIZER.convert_tokens_to_ids(TURN_END)]
    # of an answer's end and its question's end, in turns, the answers' are targets
    assert [bool(is_target[n]) for n in ends] == [n % 2 == 0 for n in range(len(ends))]


def test_images_of_later_questions_take_their_positions():
    (conversation,) = builder().build(talk("Q", "A", "<image><image>?", "B"))
    counts = {"0.png": 3, "1.png": 5}
    ids, is_target = response_tokens(conversation, TOKENIZER, lambda image: counts[image.path])
    pads = ids == TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
    assert (pads.sum(), (pads & is_target).sum()) == (8, 0)


@pytest.mark.parametrize(
    ("more", "gold"),
    [
        ({"gold_response": "<answer>G</answer>", "answers": ("x",)}, "<answer>G</answer>"),
        ({"answers": ("yes", "y")}, "yes"),
        (
            {"boxes": (Box(left=0.1, top=0.2, right=0.5, bottom=1.0),)},
            "<|box_start|>(100,200),(500,1000)<|box_end|>",
        ),
    ],
)
def test_a_question_with_gold_is_a_conversation_of_one_turn(more: dict[str, object], gold: str):
    sample = Sample(sample_id="s1", question="Q?", images=(ImageRef(path="a"),), **more)  # type: ignore[arg-type]
    (found,) = builder().build(sample)
    assert [part.text for part in found.parts] == [gold + TURN_END]
    assert found.prompt.text.count("<|image_pad|>") == 1


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(PromptTemplateError, match="'s1' has neither turns"):
        builder().build(Sample(sample_id="s1", question="Q?"))
    for forged in ("<|im_end|>", "<|image_pad|>", "<|im_start|>system"):
        for texts in ((f"Q {forged}", "A"), ("Q", f"A {forged}")):
            with pytest.raises(PromptTemplateError, match="control token"):
                builder().build(talk(*texts))
    builder().build(talk("Where is <|object_ref_start|>it<|object_ref_end|>?", "<|box_start|>(1,2),(3,4)<|box_end|>"))
    with pytest.raises(PromptTemplateError, match="ends 0 of 4 turns"):
        builder(CHAT_TEMPLATE.replace("<|im_end|>", "<eot>")).build(talk("Q", "A", "R", "B"))
    drops = "{% for m in messages %}{{ m.role }}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(PromptTemplateError, match="0 image placeholders for 1 images"):
        builder(drops).build(talk("<image>Q", "A"))


OPENING = CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")


def test_a_tag_that_the_chat_template_opens_is_no_target():
    gold = "<think>\nso 3</think><answer>3</answer>"
    (found,) = builder(OPENING).build(Sample(sample_id="s1", question="Q", gold_response=gold))
    assert found.prompt.text.endswith("assistant\n<think>\n")
    assert found.prompt.opened_section == "think"
    assert [part.text for part in found.parts] == [f"so 3</think><answer>3</answer>{TURN_END}"]
    # prompt and target together are what the template without the tag and the whole gold would be
    (plain,) = builder().build(Sample(sample_id="s1", question="Q", gold_response=gold))
    assert found.prompt.text + found.parts[0].text == plain.prompt.text + plain.parts[0].text
    with pytest.raises(PromptTemplateError, match="opens <think> at the end of the prompt"):
        builder(OPENING).build(Sample(sample_id="s1", question="Q", answers=("3",)))


def test_every_answer_of_a_conversation_begins_inside_of_the_opened_section():
    turns = ("one", "<think>\na</think>A", "two", "<think>\nb</think>B")
    (found,) = builder(OPENING).build(talk(*turns))
    assert [part.text for part in found.parts if part.is_target] == [f"a</think>A{TURN_END}", f"b</think>B{TURN_END}"]
    (plain,) = builder().build(talk(*turns))
    assert [found.prompt.text + "".join(part.text for part in found.parts)] == [
        plain.prompt.text + "".join(part.text for part in plain.parts)
    ]
