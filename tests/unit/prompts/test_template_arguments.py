"""Arguments of a chat template, and one that opens ``<think>`` and drops the thoughts of earlier turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.asking.chat_stream import ChatQuestion
from recipes.asking.messages import MessageWriter
from recipes.asking.opened import section_opened_by
from recipes.setup.preparation import describe_template
from rsgrpo.answering.records import AskRequest, EarlierTurn, LookedAtPage
from rsgrpo.config import EVISRAG, ConfigError, PromptConfig, QueryFilterConfig, SamplingConfig
from rsgrpo.config.prompt import template_arguments_text
from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE
from rsgrpo.evaluation.prompts.turns import chat_prompt, user_prompt
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.quickstart_model import build_processor
from rsgrpo.prompts.chat_template import template_request, template_variables, with_arguments
from rsgrpo.prompts.conversation import TURN_END, Conversation, ConversationBuilder, response_tokens
from rsgrpo.prompts.relevance import RelevancePrompts
from rsgrpo.prompts.template import PromptBuilder, PromptTemplateError
from rsgrpo.types import ImageRef, Sample, Turn
from tests.examples import examples
from tests.tiny_model import tiny_tokenizer
from tests.unit.prompts.chat import THINKING, Chat

ROOT = Path(__file__).parents[3]
QUESTION = str(ROOT / "configs" / "prompt" / "quickstart.jinja")
OFF = {"enable_thinking": False}
TOKENIZER = tiny_tokenizer()


def settings(arguments: dict[str, Any]) -> PromptConfig:
    return PromptConfig(path=QUESTION, system="S", template_arguments=arguments)


def rows_of(sample: Sample, arguments: dict[str, Any], template: str = THINKING) -> tuple[Conversation, ...]:
    return ConversationBuilder(settings(arguments), Chat(template)).build(sample)


def test_arguments_reach_the_template_of_every_prompt() -> None:
    sample = Sample(sample_id="s", question="Q?", images=(ImageRef(path="a.png"),))
    opened = PromptBuilder(settings({}), Chat(THINKING)).build(sample)
    assert (opened.text.endswith("assistant\n<think>\n"), opened.opened_section) == (True, "think")
    closed = PromptBuilder(settings(OFF), Chat(THINKING)).build(sample)
    assert closed.text == opened.text + "\n</think>\n\n"
    assert closed.opened_section == ""
    task = user_prompt("q", ("Q?",))
    asked = chat_prompt(task, with_arguments(Chat(THINKING), {"reasoning_effort": "low"}))
    assert asked.prompt.text.startswith("<|im_start|>system\nEffort: low<|im_end|>")
    judged = RelevancePrompts(str(ROOT / "configs/prompt/relevance.jinja"), Chat(THINKING), OFF)
    assert judged.build("p", "Q?", ImageRef(path="a.png")).prompt.text.endswith("</think>\n\n")


@pytest.mark.parametrize("is_processor", [False, True], ids=["tokenizer", "processor"])
def test_transformers_hands_them_on(is_processor: bool) -> None:
    chat: Any = tiny_tokenizer()
    if is_processor:
        chat = build_processor(FAMILIES["qwen2_5_vl"], chat)
    chat.chat_template = THINKING
    sample = Sample(sample_id="s", question="Q?", images=(ImageRef(path="a.png"),))
    arguments = OFF | {"reasoning_effort": "low"}
    built = PromptBuilder(settings(arguments), chat).build(sample)
    assert built.text == PromptBuilder(settings(arguments), Chat(THINKING)).build(sample).text
    assert built.text.startswith("<|im_start|>system\nEffort: low<|im_end|>\n")
    assert built.text.endswith("<think>\n\n</think>\n\n")


def test_an_argument_that_the_template_ignores_is_refused() -> None:
    for template, said in (
        (THINKING, "enable_thinking, reasoning_effort; the nearest is enable_thinking"),
        ("", "none"),
    ):
        with pytest.raises(ConfigError, match=rf"template_arguments.enable_thinkng is nothing .* \(it reads {said}\)"):
            PromptBuilder(settings({"enable_thinkng": False}), Chat(template))
    with pytest.raises(ConfigError, match=r"filter.template_arguments.enable_thinking is nothing"):
        RelevancePrompts(QUESTION, Chat(), OFF)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": []}, "prompt.template_arguments.messages is what every conversation sets itself"),
        ({"enable thinking": True}, "has the name 'enable thinking', which no template can read"),
        ({"effort": {1, 2}}, "prompt.template_arguments.effort=.* cannot be sent to a server"),
    ],
    ids=["own", "no word", "no JSON"],
)
def test_what_is_no_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(arguments)
    with pytest.raises(ConfigError, match=message.replace("prompt", "filter")):
        QueryFilterConfig(template_arguments=arguments)


def test_variables_are_found_wherever_they_are_read() -> None:
    found = template_variables(
        "{% macro m(x) %}{{ x }}{{ inner }}{% endmacro %}{% set set_here = late | default(1) %}{{ set_here }}"
        "{% generation %}{% for a in messages %}{% if a.x and given %}{% break %}{% endif %}"
        "{% endfor %}{% endgeneration %}"
    )
    assert found == {"messages", "inner", "late", "given"}


def test_the_fingerprint_and_a_request_name_them() -> None:
    described = describe_template(settings({}))
    assert describe_template(settings(OFF | {"a": "x"})) == f'{described}; a="x", enable_thinking=false'
    assert template_arguments_text({}) == ""
    assert template_request(OFF) == {"chat_template_kwargs": OFF}
    assert template_request({}) == {}


def test_a_judge_whose_first_word_is_no_answer_is_refused() -> None:
    prompts = RelevancePrompts(str(ROOT / "configs/prompt/relevance.jinja"), Chat(THINKING))
    with pytest.raises(PromptTemplateError, match=r"ends a prompt with <think>, .*filter.template_arguments="):
        prompts.build("p", "Q?", ImageRef(path="a.png"))


def test_ask_finds_the_opened_section_with_the_arguments(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    assert section_opened_by(tmp_path, EVISRAG) == "think"
    assert section_opened_by(tmp_path, EVISRAG, OFF) == ""
    with pytest.raises(ConfigError, match="is nothing that the model's chat template reads"):
        section_opened_by(tmp_path, EVISRAG, {"thinking": False})


TEXT = st.text(alphabet="ab\n.é", min_size=1, max_size=6)
TALK = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4)


def talk(turns: list[tuple[str, str, str]], *, is_tagged: bool) -> Sample:
    spoken = []
    for number, (question, thoughts, answer) in enumerate(turns):
        spoken.append(Turn(role="user", text=f"<image>{question}" if number % 2 else question))
        spoken.append(Turn(role="assistant", text=f"<think>\n{thoughts}</think>{answer}" if is_tagged else answer))
    images = tuple(ImageRef(path=f"{number}.png") for number in range(len(turns) // 2))
    return Sample(sample_id="s", images=images, turns=tuple(spoken))


@examples(25)
@given(turns=TALK, is_thinking=st.booleans())
def test_every_answer_is_learnt_behind_what_the_model_will_read(
    turns: list[tuple[str, str, str]], is_thinking: bool
) -> None:
    """The template drops earlier thoughts: each answer is a row, its prompt the template's own of the turns before."""
    sample = talk(turns, is_tagged=is_thinking)
    arguments: dict[str, Any] = {} if is_thinking else OFF
    rows = rows_of(sample, arguments)
    assert len(rows) == len(turns)
    messages: list[dict[str, object]] = [{"role": "system", "content": "S"}]
    for number, ((_, thoughts, answer), row) in enumerate(zip(turns, rows, strict=True)):
        messages.append(ConversationBuilder._message(sample.turns[2 * number]))
        written = Chat(THINKING).apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
        messages.append(ConversationBuilder._message(sample.turns[2 * number + 1]))
        assert row.prompt.text == written
        assert row.images == sample.images[: (number + 1) // 2]
        assert row.sample_id == ("s" if len(rows) == 1 else f"s#{number + 1}")
        # what the prompt wrote is not learnt again, and of the thoughts and the answer nothing is lost
        (part,) = row.parts
        assert part.text == (f"{thoughts}</think>{answer}" if is_thinking else answer) + TURN_END
        assert row.prompt.opened_section == ("think" if is_thinking else "")
        ids, is_target = response_tokens(row, TOKENIZER, lambda image: 1)
        assert is_target.all()
        assert len(ids) == len(part.text.removesuffix(TURN_END).encode()) + 1


@examples(15)
@given(turns=TALK)
def test_a_template_that_keeps_answers_as_they_are_makes_one_row(turns: list[tuple[str, str, str]]) -> None:
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")):
        (row,) = rows_of(talk(turns, is_tagged=True), {}, template)
        assert sum(part.is_target for part in row.parts) == len(turns)


def test_a_builder_says_whether_answers_become_rows_of_their_own() -> None:
    said = {
        name: ConversationBuilder(settings(arguments), Chat(template)).parts_answers
        for name, template, arguments in (
            ("plain", CHAT_TEMPLATE, {}),
            ("opened", CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n"), {}),
            ("thinking", THINKING, {}),
            ("not thinking", THINKING, OFF),
        )
    }
    assert said == {"plain": False, "opened": False, "thinking": True, "not thinking": True}


def test_a_template_that_loses_turns_is_refused() -> None:
    loses = THINKING.replace("{%- for message in messages %}", "{%- for message in messages[-2:] %}")
    with pytest.raises(PromptTemplateError, match=r"ends 2 of 4 turns with <\|im_end\|>"):
        rows_of(talk([("a", "b", "c"), ("d", "e", "f")], is_tagged=True), {}, loses)


def test_a_server_is_sent_the_arguments_and_earlier_answers_with_the_tag_that_was_opened() -> None:
    question = ChatQuestion(messages=[], sampling=SamplingConfig(), template_arguments=OFF)
    assert question.body("m")["chat_template_kwargs"] == OFF
    assert "chat_template_kwargs" not in replace(question, template_arguments={}).body("m")
    page = LookedAtPage(number=1, page_id="p", document="d", page_number=1, image=ImageRef(path="a.png"))
    earlier = EarlierTurn(question="One?", response="so</think><answer>1</answer>")
    request = AskRequest(question="Two?", pages=(page,), earlier=(earlier,))
    for opened, said in (("think", f"<think>\n{earlier.response}"), ("", earlier.response)):
        messages = MessageWriter(settings({}), EVISRAG, opened).messages(request, [page], lambda image: image.path)
        assert messages[2] == {"role": "assistant", "content": said}
