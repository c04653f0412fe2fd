"""How a response is built: which tagged sections it has, and how they may stand."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rsgrpo.config.checks import ConfigError, at_least
from rsgrpo.errors import shown

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MARKERS = ("image", "video", "audio")  # where a data set wants media
_UNPLACED = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionRule:
    """One section as the parser reads it; ``SectionConfig`` says what the fields mean.

    Attributes:
        name: the name that stands in the section's tags.
        order: the section's order: sections of a lower one stand in front of it.
        required: whether the section must stand in a response.
        repeatable: whether the section may stand several times.
        per_image_lines: whether the section holds one line ``[i]:`` per image.
    """

    name: str
    order: int
    required: bool = True
    repeatable: bool = False
    per_image_lines: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseFormat:
    """The declared sections; ``ResponseConfig.format`` makes it from the settings.

    Attributes:
        sections: the sections, in the order of the list in the settings.
        answer_section: the name of the section with the final answer.

    Example:
        ``EVISRAG.names`` is ``("observe", "evidence", "think", "answer")``, its ``lines_section`` is ``"evidence"``.
    """

    sections: tuple[SectionRule, ...]
    answer_section: str = "answer"

    @property
    def names(self) -> tuple[str, ...]:
        """The sections' names."""
        return tuple(rule.name for rule in self.sections)

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, two for each section: entry ``2 k`` opens section ``k``, entry ``2 k + 1`` closes it."""
        return tuple(tag for rule in self.sections for tag in (f"<{rule.name}>", f"</{rule.name}>"))

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the sections that must stand in a response."""
        return tuple(rule.name for rule in self.sections if rule.required)

    @property
    def lines_section(self) -> str:
        """Name of the section with one line per image; empty: there is none."""
        return next((rule.name for rule in self.sections if rule.per_image_lines), "")

    def place(self, name: str) -> int:
        """The index in ``sections`` of the section with a name.

        Raises:
            ConfigError: no section of that name is declared.
        """
        for place, rule in enumerate(self.sections):
            if rule.name == name:
                return place
        raise ConfigError(f"section {shown(name, 80)!r} is not declared; {self.declared}")

    @property
    def declared(self) -> str:
        """A phrase that lists the declared sections, for the end of a sentence."""
        return f"response.sections has {', '.join(self.names)}"


EVISRAG = ResponseFormat(
    sections=tuple(
        SectionRule(name=name, order=place, per_image_lines=name == "evidence")
        for place, name in enumerate(("observe", "evidence", "think", "answer"))
    )
)
"""The four sections of an EVisRAG response, once each, in this order."""


@dataclass(kw_only=True, slots=True)
class SectionConfig:
    """One section of a response: ``<name> … </name>``."""

    name: str
    """Name in the section's tags: letters, digits, ``_``, ``-`` and ``.``; upper and lower case differ."""
    required: bool = True
    """Whether a response without it is malformed."""
    repeatable: bool = False
    """Whether it may stand several times. Each time is a section of its own, from its opening tag to the next closing
    one; a scope on it covers all of them."""
    order: int = -1
    """Sections of a lower order stand in front of those of a higher one; sections of the same order may stand in any
    order, also in turn (think, look, think, look). -1: its place in the list, counted from 0."""
    per_image_lines: bool = False
    """Whether it holds one line per image, ``[1]: …``, ``[2]: …``: what scopes with ``evidence_line`` and rewards on
    evidence read. One section at most."""


def _evisrag_sections() -> list[SectionConfig]:
    return [SectionConfig(name=rule.name, per_image_lines=rule.per_image_lines) for rule in EVISRAG.sections]


@dataclass(kw_only=True, slots=True)
class ResponseConfig:
    """The form of a response, which parser, scopes, format reward, gold checks, lab and report go by.

    A response is well formed if every required section stands in it, none but a repeatable one stands twice, each is
    closed before the next one opens, their orders never fall from one to the next, and nothing but blanks stands
    around and between them. Where the chat template itself opens a section at the end of the prompt (``<think>``),
    a response begins inside of it.
    """

    sections: list[SectionConfig] = field(default_factory=_evisrag_sections)
    """The sections of a response, EVisRAG's four by default; a list in a recipe takes their place as a whole."""
    answer_section: str = EVISRAG.answer_section
    """Name of the section with the final answer, which stands once: what metrics, benchmarks, gold answers and rewards
    on the answer read."""

    def __post_init__(self) -> None:
        if not self.sections:
            raise ConfigError(
                "response.sections is empty; declare at least one, such as response.sections=[{name: answer}]"
            )
        for place, section in enumerate(self.sections):
            key = f"response.sections[{place}]"
            check_tag_name(f"{key}.name", section.name)
            if section.name in _MARKERS:
                raise ConfigError(
                    f"{key}.name={section.name!r} would be taken for the marker <{section.name}> of data sets; choose "
                    "another name"
                )
            at_least(f"{key}.order", section.order, _UNPLACED)
        names = [section.name for section in self.sections]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(
                f"response.sections declares {', '.join(repeated)} more than once; declare it once, with "
                "repeatable: true if it may stand several times"
            )
        lined = [section.name for section in self.sections if section.per_image_lines]
        if len(lined) > 1:
            raise ConfigError(
                f"response.sections has per_image_lines: true on {', '.join(lined)}; an image has one line, so leave "
                "it on one of them"
            )
        self._check_answer_section()

    def _check_answer_section(self) -> None:
        """Refuse settings that leave open where the final answer stands."""
        key = f"response.answer_section={shown(self.answer_section, 80)!r}"
        answers = [section for section in self.sections if section.name == self.answer_section]
        if not answers:
            raise ConfigError(
                f"{key} is not declared; {self.format.declared}: set response.answer_section to the one with the final "
                "answer"
            )
        if answers[0].repeatable:
            raise ConfigError(
                f"{key} has repeatable: true, so that it is open which of several is the final answer; take that out, "
                "or name another section"
            )

    @property
    def format(self) -> ResponseFormat:
        """The settings as a frozen record, which parsers and rewards take."""
        return ResponseFormat(
            sections=tuple(
                SectionRule(
                    name=section.name,
                    order=place if section.order == _UNPLACED else section.order,
                    required=section.required,
                    repeatable=section.repeatable,
                    per_image_lines=section.per_image_lines,
                )
                for place, section in enumerate(self.sections)
            ),
            answer_section=self.answer_section,
        )


def check_tag_name(key: str, name: str) -> None:
    """Refuse what cannot stand between ``<`` and ``>``.

    Args:
        key: of the setting.
        name: of a section.

    Raises:
        ConfigError: one sentence with what a name may be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{key}={shown(name, 80)!r} is no name of a tag; write up to 64 letters, digits, _, - and ., beginning "
            "with a letter, without < and >"
        )


def check_declared(key: str, names: Iterable[str], response_format: ResponseFormat) -> None:
    """Refuse a setting that names a section which is not declared.

    Args:
        key: the key of the setting, for the message.
        names: the names of sections that the setting holds.
        response_format: the format with the declared sections.

    Raises:
        ConfigError: a name is not declared; the message lists the declared sections.
    """
    for name in names:
        if name not in response_format.names:
            raise ConfigError(f"{key}={shown(name, 80)!r} is not declared; {response_format.declared}")
