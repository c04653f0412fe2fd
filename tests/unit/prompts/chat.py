from __future__ import annotations

from jinja2 import Environment

from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE

EFFORT = (
    '{%- if reasoning_effort %}{{ "<|im_start|>system\\nEffort: " + reasoning_effort + "<|im_end|>\\n" }}{% endif %}'
)


THINKING = (
    CHAT_TEMPLATE.replace(
        "{%- if message.content is string %}{{ message.content }}",
        '{%- if message.role == "assistant" %}{{ message.content.split("</think>")[-1].lstrip("\\n") }}'
        "{%- elif message.content is string %}{{ message.content }}",
    )
    .replace("{%- for message in messages %}", EFFORT + "{%- for message in messages %}")
    .replace(
        '"<|im_start|>assistant\\n" }}',
        '"<|im_start|>assistant\\n" }}'
        '{% if enable_thinking is defined and enable_thinking is false %}{{ "<think>\\n\\n</think>\\n\\n" }}'
        '{% else %}{{ "<think>\\n" }}{% endif %}',
    )
)
"""The quickstart's template with what those of Qwen3.5 do: it opens ``<think>``, or writes an empty one, drops the
thoughts of earlier turns, and reads an effort."""


class Chat:
    """The quickstart's chat template without a tokenizer around it."""

    def __init__(self, template: str = CHAT_TEMPLATE) -> None:
        self.chat_template = template
        self.template = Environment().from_string(template)

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool, **arguments: object
    ) -> str:
        assert not tokenize
        return self.template.render(messages=conversation, add_generation_prompt=add_generation_prompt, **arguments)
