"""An answer on a terminal: sections as they come, in their colours; at the end what it rests on and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsgrpo.answering.records import Answered, AnswerEvent, LookedAtPage, PagesChosen, SectionText, Spent
from rsgrpo.config import ResponseFormat
from rsgrpo.errors import shown
from rsgrpo.io.ids import well_formed

_PIPE_COLUMNS = 160  # rich takes 80 where there is no terminal, too few for names
_SHOWN_NAME = 4096
_SHOWN_TITLE = 60
_STYLES: Mapping[str, str] = {"observe": "bright_black", "evidence": "cyan", "think": "magenta"}
_ANSWER_STYLE = "bold green"
_INSUFFICIENT = "the pages do not say it"


def plain(text: str) -> str:
    """Make a text of a model or a page safe for a terminal: no control character but line breaks and tabs is left.

    Args:
        text: the text.

    Example:
        ``plain("a\\x1b[2Jb") == "a�[2Jb"``
    """
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\ufffd" for character in well_formed(text)[0]
    )


def page_told(page: LookedAtPage) -> str:
    """The name of a page for people: its document, and its number where the document has more than one.

    Args:
        page: the page.

    Example:
        ``manual.pdf page 3``; of an image file its name alone.
    """
    name = shown(plain(page.document), _SHOWN_NAME)
    return name if page.page_id == page.document else f"{name} page {page.page_number}"


class AnswerView:
    """Shows one answer as its events come.

    Args:
        console: where it is shown; colours only where it is a terminal.
        response_format: the declared sections.
    """

    def __init__(self, console: Console, response_format: ResponseFormat) -> None:
        self._console = console
        self._answer_section = response_format.answer_section
        self._lines_section = response_format.lines_section
        self._section: str | None = None
        self._blanks = ""  # at the end of the text so far: shown when more text follows
        self._has_text = False

    def show(self, event: AnswerEvent) -> None:
        """Show an event.

        Args:
            event: the event.
        """
        if isinstance(event, PagesChosen):
            self.show_pages(event)
        elif isinstance(event, SectionText):
            self.show_text(event)
        else:
            self.show_answer(event)

    def show_question(self, question: str, pages: Sequence[str]) -> None:
        """Show a question that the user has not typed.

        Args:
            question: the text of the question.
            pages: the files of its pages.
        """
        self._print(Text.assemble(("question: ", "bold"), plain(question)))
        self._print(Text(f"pages: {' '.join(shown(page, _SHOWN_NAME) for page in pages)}", style="bright_black"))

    def show_accepted(self, answers: Sequence[str], *, is_sufficient: bool) -> None:
        """Show which answers a test set accepts.

        Args:
            answers: the accepted answers.
            is_sufficient: whether the pages hold the answer.
        """
        told = " or ".join(plain(answer) for answer in answers) if is_sufficient else "that the pages do not say it"
        self._print(Text(f"the test set accepts: {told}", style="bright_black"))

    def show_pages(self, event: PagesChosen) -> None:
        """Show what was found, before the model says a word."""
        for remark in event.remarks:
            self._print(Text(plain(remark), style="yellow"))
        if any(page.score is not None for page in event.pages):
            for page in event.pages:
                self._print(Text(f"[{page.number}] {page_told(page)}{_told_of(page)}", style="bright_black"))

    def show_text(self, event: SectionText) -> None:
        """Show text as it comes: each section on lines of its own behind its name; blanks around it are left out."""
        if event.section != self._section:
            if not event.section and not event.text.strip():
                return  # line breaks between sections
            self._begin(event.section)
        text = self._blanks + event.text
        text = text if self._has_text else text.lstrip()
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        self._has_text = self._has_text or bool(kept)
        self._console.print(Text(plain(kept), style=self._style(event.section)), end="", soft_wrap=True)

    def _begin(self, section: str) -> None:
        if self._section is not None:
            self._console.print()
        style = self._style(section)
        name = Text(f"{section or 'outside of the sections'}:", style=f"{style} underline".strip())
        self._console.print(name, end="\n" if section == self._lines_section and section else " ")
        self._section, self._blanks, self._has_text = section, "", False

    def show_answer(self, event: Answered) -> None:
        """Show the end: answer, evidence by page, pages, tokens and seconds."""
        if self._section is not None:
            self._console.print("\n")
        style = "bold yellow" if event.is_insufficient else _ANSWER_STYLE
        answer = f"{plain(event.answer)}{f' ({_INSUFFICIENT})' if event.is_insufficient else ''}"
        self._print(Text.assemble(("answer: ", "bold"), (answer or "none", style)))
        pages = {page.number: page for page in event.pages}
        if event.evidence:
            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            table.add_column(overflow="fold")
            for line in event.evidence:
                page = pages.get(line.number)
                name = page_told(page) if page is not None else "no page that it was shown"
                style = "" if line.is_relevant else "bright_black"
                number = f"[{line.number}]" if line.number else "[?]"
                table.add_row(Text(number, style), Text(name, style), Text(plain(line.text), style))
            self._print(Text("evidence", style="bold"))
            self._console.print(table)
        self._show_looked_at(event.pages)
        for told in _problems(event):
            self._print(Text(told, style="yellow"))
        self._print(Text(spent_told(event.spent), style="bright_black"))

    def _show_looked_at(self, pages: Sequence[LookedAtPage]) -> None:
        left_out = [page for page in pages if not page.is_shown]
        seen = ", ".join(f"[{page.number}] {page_told(page)}" for page in pages if page.is_shown)
        self._print(Text.assemble(("pages looked at: ", "bold"), seen))
        if left_out:
            self._print(Text(f"left out by the filter: {', '.join(f'[{page.number}]' for page in left_out)}"))

    def _style(self, section: str) -> str:
        return _ANSWER_STYLE if section == self._answer_section else _STYLES.get(section, "")

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _told_of(page: LookedAtPage) -> str:
    """Title, score and relevance of a page that was found."""
    told = [f"{page.score:.3f}"] if page.score is not None else []
    if page.relevance is not None:
        told.append(f"relevant {page.relevance:.2f}")
    if not page.is_shown:
        told.append("left out")
    title = f" · {shown(plain(page.title), _SHOWN_TITLE)}" if page.title else ""
    return f"{title} ({', '.join(told)})" if told else title


def _problems(event: Answered) -> list[str]:
    told = []
    if event.is_cut:
        told.append("the response was cut at its largest number of tokens (eval.sampling.max_response_tokens)")
    if event.problems:
        told.append(f"the response is not well formed: {'; '.join(event.problems)}")
    return told


def spent_told(spent: Spent) -> str:
    """What an answer cost, in one line.

    Args:
        spent: the tokens and seconds.

    Example:
        ``1,204 prompt tokens (1,136 of them cached), 96 response tokens; pages 0.21 s, first token after 0.35 s, 3.10 s
        in all``
    """
    cached = f" ({spent.cached_tokens:,} of them cached)" if spent.cached_tokens else ""
    return (
        f"{spent.prompt_tokens:,} prompt tokens{cached}, {spent.response_tokens:,} response tokens; pages "
        f"{spent.choose_seconds:.2f} s, first token after {spent.first_token_seconds:.2f} s, "
        f"{spent.total_seconds:.2f} s in all"
    )


def view_console(*, is_terminal: bool) -> Console:
    """A console for answers on standard output.

    Args:
        is_terminal: whether standard output is a terminal; without one there are no colours, and lines are long.
    """
    return Console(
        width=None if is_terminal else _PIPE_COLUMNS,
        no_color=None if is_terminal else True,
        force_terminal=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
