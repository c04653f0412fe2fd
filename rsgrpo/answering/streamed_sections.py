"""Take a response apart while it is written: which section each piece of text stands in.

    text of the model, in pieces  "<obs" "erve>two ca" "rds</observe>"
    section texts                        observe:"two ca"  observe:"rds"

What may still become a tag is held back until it is known, so that no piece of a tag is ever shown. Of a response whose
sections lie side by side every section gets the text that :func:`rsgrpo.text.sections.parse_response` finds in the
whole, wherever the text is cut. Where sections lie in one another, which only the whole response shows, text belongs to
the section that was opened last.
"""

from __future__ import annotations

from rsgrpo.answering.records import SectionText
from rsgrpo.config.response import ResponseFormat


class SectionStream:
    """Reads one response.

    Args:
        response_format: the declared sections.
        opened: the section that the prompt opened (``ChatPrompt.opened_section``); empty: none.

    Raises:
        ConfigError: the section ``opened`` is not declared.

    Example:
        ``feed("<answer>thr")`` gives ``thr`` of ``answer``, ``feed("ee</ans")`` gives ``ee``, ``feed("wer>")`` and
        ``end()`` give nothing.
    """

    def __init__(self, response_format: ResponseFormat, opened: str = "") -> None:
        self._tags = {
            tag: (rule.name, is_closing)
            for rule in response_format.sections
            for tag, is_closing in ((f"<{rule.name}>", False), (f"</{rule.name}>", True))
        }
        self._once = {rule.name for rule in response_format.sections if not rule.repeatable}
        if opened:
            response_format.place(opened)
        self._section = opened
        self._over: set[str] = set()  # what stands once, and was closed or left
        self._waiting = ""  # begins with "<" and may become a tag
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of the response so far, with its tags."""
        return "".join(self._pieces)

    def feed(self, text: str) -> list[SectionText]:
        """Take the next piece of the response.

        Args:
            text: the piece; may be empty.

        Returns:
            The text that is known to be text now, in order; neighbours are of different sections.
        """
        self._pieces.append(text)
        return self._read(self._waiting + text, is_whole=False)

    def end(self) -> list[SectionText]:
        """Say that the response is over.

        Returns:
            What was held back, because it might have become a tag.
        """
        return self._read(self._waiting, is_whole=True)

    def _read(self, text: str, *, is_whole: bool) -> list[SectionText]:
        found: list[SectionText] = []
        self._waiting = ""
        start = 0
        while start < len(text):
            bracket = text.find("<", start)
            if bracket < 0:
                self._add(found, text[start:])
                break
            self._add(found, text[start:bracket])
            tag = next((tag for tag in self._tags if text.startswith(tag, bracket)), "")
            if tag:
                self._turn(*self._tags[tag])
                start = bracket + len(tag)
            elif not is_whole and any(tag.startswith(text[bracket:]) for tag in self._tags):
                self._waiting = text[bracket:]
                break
            else:
                self._add(found, "<")
                start = bracket + 1
        return found

    def _add(self, found: list[SectionText], text: str) -> None:
        if not text:
            return
        if found and found[-1].section == self._section:
            text = found.pop().text + text
        found.append(SectionText(section=self._section, text=text))

    def _turn(self, section: str, is_closing: bool) -> None:
        """Heed a tag. The closing tag of a section that text does not stand in changes nothing."""
        if is_closing != (section == self._section):
            return
        if self._section in self._once:
            self._over.add(self._section)
        self._section = "" if is_closing or section in self._over else section
