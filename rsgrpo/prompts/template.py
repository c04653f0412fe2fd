"""From a question with pages to the text that the model reads: template, image order, chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template, TemplateError, meta

from rsgrpo.config import EVISRAG, PromptConfig, ResponseFormat
from rsgrpo.data.evisrag_files import split_markers
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.special_files import special_kind
from rsgrpo.prompts.chat_template import ChatTemplater, with_arguments
from rsgrpo.text.control_tokens import control_token
from rsgrpo.text.sections import opened_section
from rsgrpo.types import IMAGE_MARKER, ChatPrompt, PromptedSample, Sample

IMAGE_PLACEHOLDER = "<|image_pad|>"

PAGE_LABEL = "\n[{number}]:"
"""The text in front of a page that has a number of its own, as lines of evidence call it."""

PUBLISHED_TEMPLATES: Mapping[tuple[int, str], str] = {
    (1955, "7fbff7c28244"): "EVisRAG evidence",
    (5289, "fde4c872777d"): "EVisRAG one-shot",
    (496, "5631d593bf70"): "EVisRAG baseline, several images",
    (484, "afd4bc608bdb"): "EVisRAG baseline, one concatenated image",
    (761, "63354ab27101"): "EVisRAG CoCoT",
    (974, "5a87054effd9"): "EVisRAG CCoT",
    (1482, "58891327b902"): "EVisRAG DDCoT",
}
"""The names of published prompts, by length and the first twelve digits of their SHA-256, rendered with ``{query}``."""

_SHA_DIGITS = 12


class PromptTemplateError(RsgrpoError, ValueError):
    """A prompt cannot be built; the message names the template or the sample, and the way out."""


class PromptWriter:
    """Words the user's turn.

    The text is the template, rendered with the bare question; a data set that only carries ready prompts
    gives its own text instead. ``prompt.image_order`` says where the pages go:

    * ``text_first``: behind the text, as EVisRAG evaluates; ``images_first``: in front of it;
    * ``markers``: where the ready prompt's ``<image>`` markers stand, text verbatim; a sample without a
      ready prompt is built ``text_first``.

    Where pages have numbers of their own (``Sample.page_numbers``), each stands behind its number in square brackets.

    Args:
        prompt: the settings: template and image order.

    Raises:
        PromptTemplateError: the template is missing, is no Jinja, or does not use ``question``.
    """

    def __init__(self, prompt: PromptConfig) -> None:
        self._prompt = prompt
        self._template = _load_template(prompt.path)
        self._ahead: dict[tuple[object, ...], tuple[str | None, ...]] = {}

    def parts_ahead(self, sample: Sample) -> tuple[str | None, ...]:
        """As :meth:`parts`, whose next call for a question like this one gives the same back: it is rendered once."""
        parts = self._ahead[_worded(sample)] = self.parts(sample)
        return parts

    def parts(self, sample: Sample) -> tuple[str | None, ...]:
        """Word the user's turn: text, and None for each image, in the order in which they are read.

        Raises:
            PromptTemplateError: the template fails on this question.
        """
        rendered = self._ahead.pop(_worded(sample), None) if self._ahead else None
        if rendered is not None:
            return rendered
        if self._prompt.image_order == "markers" and sample.prompt:
            return _numbered(split_markers(sample.prompt), sample.page_numbers)
        text = self._render(sample) if sample.question else sample.prompt.replace(IMAGE_MARKER, "").strip()
        images = (None,) * len(sample.images)
        parts = (*images, text) if self._prompt.image_order == "images_first" else (text, *images)
        return _numbered(parts, sample.page_numbers)

    def _render(self, sample: Sample) -> str:
        try:
            return self._template.render(
                question=sample.question,
                num_images=len(sample.images),
                choices=sample.choices,
                page_numbers=sample.page_numbers,
            )
        except TemplateError as error:
            raise PromptTemplateError(
                f"prompt.path={self._prompt.path!r} fails on sample {sample.sample_id!r}: {error}; "
                "templates have the variables question and num_images (and choices, page_numbers)"
            ) from error


def _worded(sample: Sample) -> tuple[object, ...]:
    """Everything that the wording of a question depends on."""
    return sample.question, sample.prompt, len(sample.images), sample.choices, sample.page_numbers


def _numbered(parts: Sequence[str | None], page_numbers: Sequence[int]) -> tuple[str | None, ...]:
    """The parts of a user's turn with each image's number in front of it; as they are where there are no numbers."""
    if not page_numbers:
        return tuple(parts)
    numbers = iter(page_numbers)
    numbered: list[str | None] = []
    for part in parts:
        if part is None:
            numbered.append(PAGE_LABEL.format(number=next(numbers)))
        numbered.append(part)
    return tuple(numbered)


class PromptBuilder:
    """Builds chat prompts: the user's turn of :class:`PromptWriter` within the model's chat template.

    The system turn is always written out, also an empty one: chat templates add their own otherwise.

    Args:
        prompt: the settings: template, image order, system turn.
        chat: the model's tokenizer or processor.
        writer: the writer of ``prompt``, where it has rendered questions already; None: a new one.
        response_format: the declared sections, one of which the chat template may open at the end of the prompt.

    Raises:
        PromptTemplateError: the template is missing, is no Jinja, or does not use ``question``.
        ConfigError: the chat template does not read one of ``prompt.template_arguments``.
    """

    def __init__(
        self,
        prompt: PromptConfig,
        chat: ChatTemplater,
        writer: PromptWriter | None = None,
        *,
        response_format: ResponseFormat = EVISRAG,
    ) -> None:
        self._prompt = prompt
        self._chat = with_arguments(chat, prompt.template_arguments)
        self._writer = writer or PromptWriter(prompt)
        self._format = response_format

    def build(self, sample: Sample) -> ChatPrompt:
        """Build one prompt.

        Args:
            sample: the sample whose question is asked.

        Returns:
            The text up to and with the assistant header, with one ``<|image_pad|>`` for each image, and the pages in
            order.

        Raises:
            PromptTemplateError: the template fails on this question, or the text holds a control token
                such as ``<|im_end|>``, or the chat template drops an image.

        Example:
            ``images_first`` with the template ``{{ question }}`` and two pages ends in
            ``user\\n`` + 2 × ``<|vision_start|><|image_pad|><|vision_end|>`` + the question +
            ``<|im_end|>\\n<|im_start|>assistant\\n``.
        """
        parts = self._writer.parts(sample)
        for part in parts:
            if part is not None and control_token(part):
                raise PromptTemplateError(
                    f"sample {sample.sample_id!r}: its prompt text holds the control token {control_token(part)!r}; "
                    "take it out of the question or the template"
                )
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        turns: list[dict[str, object]] = [
            {"role": "system", "content": self._prompt.system},
            {"role": "user", "content": content},
        ]
        text = render_turns(self._chat, turns, sample.sample_id)
        if text.count(IMAGE_PLACEHOLDER) != len(sample.images):
            raise PromptTemplateError(
                f"sample {sample.sample_id!r}: the chat template gives {text.count(IMAGE_PLACEHOLDER)} image "
                f"placeholders for {len(sample.images)} images; use the chat template that the model came with"
            )
        return ChatPrompt(
            sample_id=sample.sample_id,
            text=text,
            images=sample.images,
            opened_section=opened_section(text, self._format),
        )

    def prompted(self, sample: Sample) -> PromptedSample:
        """The sample together with its prompt."""
        return PromptedSample(sample=sample, prompt=self.build(sample))


def render_turns(chat: ChatTemplater, turns: list[dict[str, object]], sample_id: str) -> str:
    """Turns as the model reads them, up to and with the header of its answer.

    Args:
        chat: the model's tokenizer or processor, with the arguments of its template.
        turns: the turns before the answer.
        sample_id: whose they are, for messages.

    Raises:
        PromptTemplateError: the template refuses them.
    """
    try:
        return chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise PromptTemplateError(
            f"sample {sample_id!r}: the model folder's chat template cannot be rendered: {shown(error)}; "
            "use the chat template that the model came with"
        ) from error


def response_behind(prompt: ChatPrompt, response: str) -> str:
    """What is left to write of a whole response behind a prompt that opened its first section.

    Args:
        prompt: the prompt, chat template applied.
        response: a gold response with all of its tags; may be empty.

    Returns:
        The response as given; where the prompt opened a section, without its first tag, and without blanks behind the
        tag that stand in the prompt already.

    Raises:
        PromptTemplateError: the prompt opened a section with which the response does not begin.

    Example:
        Behind a prompt that ends in ``<think>``, ``"<think>so 3</think>…"`` becomes ``"so 3</think>…"``.
    """
    if not prompt.opened_section or not response:
        return response
    tag = f"<{prompt.opened_section}>"
    begun = response.lstrip()
    if not begun.startswith(tag):
        raise PromptTemplateError(
            f"sample {prompt.sample_id!r}: the chat template opens {tag} at the end of the prompt, but the gold "
            f"response begins with {shown(begun, 40)!r}; begin it with {tag}, or have no section opened: many "
            "templates take prompt.template_arguments={enable_thinking: false}"
        )
    written = prompt.text.rpartition(tag)[2]
    return begun.removeprefix(tag).removeprefix(written)


def template_fingerprint(path: str) -> tuple[int, str]:
    """Length and SHA-256 prefix of a template rendered with the question ``{query}``.

    Args:
        path: the path of the Jinja file.

    Returns:
        The number of characters, and the first twelve hexadecimal digits; together a key of ``PUBLISHED_TEMPLATES`` for
        a published prompt.

    Raises:
        PromptTemplateError: the template is missing, is no Jinja, or does not use ``question``.

    Example:
        A file ``{{ question }}`` gives ``(7, "…")``: the seven characters of ``{query}``.
    """
    try:
        text = _load_template(path).render(question="{query}", num_images=1, choices=(), page_numbers=())
    except TemplateError as error:
        raise PromptTemplateError(
            f"prompt.path={path!r} cannot be rendered: {error}; a template may use question, num_images and choices"
        ) from error
    return len(text), hashlib.sha256(text.encode()).hexdigest()[:_SHA_DIGITS]


def find_template(path: str) -> Path:
    """Find the file of a template; a relative path is looked for here, then beside the package's ``configs``.

    Args:
        path: the path as it was given.

    Raises:
        PromptTemplateError: there is no such file.
    """
    candidates = (Path(path), Path(__file__).parents[2] / path)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        kinds = ("a folder" if path and place.is_dir() else special_kind(place) for place in candidates)
        kind = next(filter(None, kinds), "")
        raise PromptTemplateError(
            f"prompt.path={path!r} {f'is {kind}' if kind else 'does not exist'}; name a Jinja file, such as those in "
            "configs/prompt"
        )
    return file


def _load_template(path: str) -> Template:
    file = find_template(path)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        source = file.read_text(encoding="utf-8")
        variables = meta.find_undeclared_variables(environment.parse(source))
        if "question" not in variables:
            raise PromptTemplateError(
                f"prompt.path={path!r} does not use {{{{ question }}}}, so every question would look the same; "
                "put it where the question belongs (a published prompt has {query} there)"
            )
        return environment.from_string(source)
    except (TemplateError, UnicodeDecodeError, OSError) as error:
        raise PromptTemplateError(f"prompt.path={path!r} is not a Jinja template: {error}") from error
