from __future__ import annotations

from jinja2 import Environment

from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE


class Chat:
    """The quickstart's chat template without a tokenizer around it."""

    def __init__(self, template: str = CHAT_TEMPLATE) -> None:
        self.template = Environment().from_string(template)

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ):
        assert not tokenize
        return self.template.render(messages=conversation, add_generation_prompt=add_generation_prompt)
