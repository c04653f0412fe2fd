"""``rewards.NAME``: a reward and the tokens that it trains."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import MAX_SECONDS, ConfigError, Literal, at_most, between, check_choices, more_than, one_of
from rsgrpo.config.response import ResponseFormat, check_declared
from rsgrpo.errors import shown

_TAG = re.compile(r"</?([^<>/]+)>")
_MAX_REWARD_WEIGHT = 1.0e6
_KEPT_KEYS = (
    "; a scope that is set over a recipe's keeps the recipe's keys: empty the old ones beside the new, such as "
    '{section: think, start: "", stop: ""}'
)


@dataclass(kw_only=True, slots=True)
class ScopeConfig:
    """Which response tokens a reward may touch: either start and stop, or one of the named forms.

    Sections and tags are those that ``response.sections`` declares.
    """

    start: str = ""
    """Where the scope starts: ``begin``, or a tag such as ``<think>``, its first one; the start tag belongs to the
    scope."""
    stop: str = ""
    """Where the scope stops: ``end``, or a tag, its first one; the stop tag does not belong to the scope."""
    section: str = ""
    """Name of a section that is the scope: ``think`` is ``<think>`` up to and with ``</think>``; of a repeatable one
    all of them."""
    evidence_line: bool = False
    """Whether the scope of each image is its own ``[i]:`` line in the section with ``per_image_lines``, or, where that
    is left out, the tag that closes the section; the reward then returns one value per image."""
    pattern: str = ""
    """Kind of text that is the scope: ``box`` is every box such as ``(x1,y1),(x2,y2)``, bracket to bracket; with
    ``section``: in that one only."""

    def __post_init__(self) -> None:
        forms = [bool(self.start or self.stop), bool(self.section or self.pattern), self.evidence_line]
        if sum(forms) != 1:
            raise ConfigError(
                "a scope needs exactly one of {start, stop}, {section}, {pattern} or {evidence_line: true}; "
                f"got start={shown(self.start, 40)!r} stop={shown(self.stop, 40)!r} "
                f"section={shown(self.section, 40)!r} "
                f"pattern={shown(self.pattern, 40)!r} evidence_line={str(self.evidence_line).lower()}"
                + (_KEPT_KEYS if sum(forms) > 1 else "")
            )
        if self.pattern:
            one_of("pattern", self.pattern, ("box",))
        if self.start or self.stop:
            for key, value, edge in (("start", self.start, "begin"), ("stop", self.stop, "end")):
                if value != edge and not _TAG.fullmatch(value):
                    raise ConfigError(f"{key}={shown(value, 80)!r} is no edge; write {edge}, or a tag such as <think>")

    def check(self, key: str, response_format: ResponseFormat) -> None:
        """Refuse what the declared sections do not have.

        Args:
            key: the key of this scope, such as ``rewards.accuracy.scope``.
            response_format: the format with the declared sections.

        Raises:
            ConfigError: the scope names a section that is not declared, or lines per image that no section holds.
        """
        for name, value in (("section", self.section), ("start", self.start), ("stop", self.stop)):
            tag = _TAG.fullmatch(value)
            if value and (name == "section" or tag):
                check_declared(f"{key}.{name}", [tag[1] if tag else value], response_format)
        if self.evidence_line and not response_format.lines_section:
            raise ConfigError(
                f"{key}.evidence_line=true needs a section with one line per image; {response_format.declared}: set "
                "per_image_lines: true on one of them"
            )


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """One reward: a Python function, the tokens it may touch, and how much it weighs."""

    function: str
    """The function: ``package.module:function`` or ``path/to/file.py:function``."""
    scope: ScopeConfig
    weight: float = 1.0
    """How much its advantage counts beside those of others; 0: it is only logged."""
    on_missing: Literal["skip", "whole"] = "skip"
    """What happens where the scope is absent: ``skip`` (no credit) or ``whole`` (the whole response, as the public
    code)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""
    timeout_seconds: float = 60.0
    """Seconds that a call may take; one that takes longer stops the run, and the message names the sample."""

    def __post_init__(self) -> None:
        check_choices(self, "")
        more_than("timeout_seconds", self.timeout_seconds, 0.0)
        at_most("timeout_seconds", self.timeout_seconds, MAX_SECONDS)
        between("weight", self.weight, 0.0, _MAX_REWARD_WEIGHT)
        if self.function.count(":") != 1:
            raise ConfigError(
                f"function={shown(self.function, 120)!r} must be package.module:function or path/to/file.py:function"
            )
