"""Made-up questions with honest responses, and the tricks that a reward must not pay.

Four kinds of question: ``pages`` (EVisRAG: facts on one page of three), ``haystack`` (yes or no, one needle in
four pages), ``choice`` (four options) and ``grounding`` (one box). All of them can be answered, so that
"no relevant information" is never the truth.

A case is written in roles, named after EVisRAG's sections: ``observe`` (what is seen), ``evidence`` (one line per
image), ``think`` (why) and ``answer``. With EVisRAG's sections a response has those that prompts for its kind ask for;
with others it has all that are declared, each in the role that it fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.types import Box, ImageRef, Sample

_REPEATS = 20
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A question and how a good response answers it.

    Attributes:
        kind: the kind of question, one of ``KINDS``.
        sample: the question with its gold.
        sections: the content of each section that the prompt asks for; empty: the response has no sections and is
            ``text``.
        text: an honest response: right, in its own words.
        options: all answers that the question might have.
        roles: the role of each of ``sections``: ``answer``, ``evidence``, ``think`` or ``observe``.
        format: the declared sections.
    """

    kind: str
    sample: Sample
    sections: dict[str, str]
    text: str
    options: tuple[str, ...]
    roles: dict[str, str]
    format: ResponseFormat

    def with_sections(self, changed: dict[str, str]) -> str:
        """The response with other contents of the named sections."""
        return tagged({**self.sections, **changed}, self.format)

    def with_roles(self, **changed: str) -> str:
        """The response with other contents of the sections in these roles; without sections the new answer alone."""
        if not self.sections:
            return changed.get("answer", self.text)
        return self.with_sections({name: changed[role] for name, role in self.roles.items() if role in changed})

    def lines(self) -> list[str]:
        """What the response says about each image, in order; empty where it has no lines per image."""
        text = next((self.sections[name] for name, role in self.roles.items() if role == "evidence"), "")
        return [line.partition(": ")[2] for line in text.splitlines()]


def tagged(sections: dict[str, str], response_format: ResponseFormat = EVISRAG) -> str:
    """Text of the sections in their order; a repeatable one is written once for every line of its content."""
    parts = []
    for name, content in sections.items():
        is_repeatable = response_format.sections[response_format.place(name)].repeatable
        parts += [f"<{name}>{text}</{name}>" for text in (content.split("\n") if is_repeatable else [content])]
    return "\n".join(parts)


def _lines(texts: list[str]) -> str:
    return "\n".join(f"[{number}]: {text}" for number, text in enumerate(texts, start=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A question and an honest response by role, before it is known which sections there are.

    Attributes:
        kind: the kind of question, one of ``KINDS``.
        sample: the question, without its gold response.
        contents: the content of an honest response by role.
        gold: the content of the gold response by role, for roles in which it differs.
        asked: the roles that EVisRAG's prompts of this kind ask for; empty: the response is ``think`` and ``answer``
            without tags.
        options: all answers that the question might have.
    """

    kind: str
    sample: Sample
    contents: dict[str, str]
    gold: dict[str, str]
    asked: tuple[str, ...]
    options: tuple[str, ...]

    def case(self, response_format: ResponseFormat, answer_section: str) -> Case:
        """The case written in the declared sections."""
        is_evisrag = response_format == EVISRAG
        roles = {role: role for role in self.asked} if is_evisrag else _roles(response_format, answer_section)
        sections = {name: self.contents[role] for name, role in roles.items()}
        gold = {**self.contents, **self.gold}
        gold_response = tagged({name: gold[role] for name, role in roles.items()}, response_format)
        return Case(
            kind=self.kind,
            sample=replace(self.sample, gold_response=gold_response),
            sections=sections,
            text=tagged(sections, response_format) if roles else f"{self.contents['think']} {self.contents['answer']}",
            options=self.options,
            roles=roles,
            format=response_format,
        )


def _roles(response_format: ResponseFormat, answer_section: str) -> dict[str, str]:
    """The role of each declared section, in the order in which they stand."""
    rules = sorted(response_format.sections, key=lambda rule: rule.order)
    roles: dict[str, str] = {}
    for rule in rules:
        if rule.name == answer_section:
            roles[rule.name] = "answer"
        elif rule.per_image_lines:
            roles[rule.name] = "evidence"
        else:
            roles[rule.name] = "think" if roles else "observe"
    return roles


def _images(kind: str, number: int, num_images: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(path=f"{kind}-{number}-{index}.png") for index in range(1, num_images + 1))


_FACTS = (
    # what, gold sentence, in own words, answer, what else stands on the pages
    ("share of visitors who came by train", "In 2019, 42.5 percent of visitors came by train",
     "The bar for train in 2019 stands at 42.5 percent", "42.5 percent",
     ("17.3 percent", "31.8 percent", "8.4 percent")),
    ("revenue of the northern branch", "The northern branch had a revenue of 128.4 million in the second quarter",
     "Second quarter: revenue of 128.4 million for the northern branch", "128.4 million",
     ("96.2 million", "210.7 million", "53.1 million")),
    ("height of the tower on the left", "The tower on the left is 310 metres high, finished in 1931",
     "A drawing gives 310 metres as the height of the left tower, of 1931", "310 metres",
     ("265 metres", "1931 metres", "324 metres")),
)  # fmt: skip


def _images_cases() -> list[_Draft]:
    cases = []
    for number, (what, fact, own_words, answer, others) in enumerate(_FACTS):
        place = number % 3
        gold_lines = [fact if index == place else IRRELEVANT for index in range(3)]
        lines = [own_words if index == place else IRRELEVANT for index in range(3)]
        observe = f"Three pages with charts and tables; one of them shows the {what}."
        think = f"Page {place + 1} gives the {what}, so that is the answer."
        cases.append(
            _Draft(
                kind="pages",
                contents={"observe": observe, "evidence": _lines(lines), "think": think, "answer": answer},
                gold={"evidence": _lines(gold_lines)},
                asked=EVISRAG.names,
                sample=Sample(
                    sample_id=f"pages-{number}",
                    question=f"What is the {what}?",
                    images=_images("pages", number, 3),
                    answers=(answer,),
                ),
                options=(answer, *others),
            )
        )
    return cases


def _haystack_cases() -> list[_Draft]:
    cases = []
    for number, (place, answer) in enumerate(((1, "yes"), (3, "no"), (0, "yes"), (2, "no"))):
        seen = "a red truck and a small dog" if answer == "yes" else "a red truck, and nobody beside it"
        lines = [seen if index == place else IRRELEVANT for index in range(4)]
        cases.append(
            _Draft(
                kind="haystack",
                contents={
                    "observe": "The question is about the image with a truck.",
                    "evidence": _lines(lines),
                    "think": f"Image {place + 1} is the one with a truck.",
                    "answer": answer,
                },
                gold={},
                asked=("evidence", "answer"),
                sample=Sample(
                    sample_id=f"haystack-{number}",
                    question="For the image with a truck, is there a dog?",
                    images=_images("haystack", number, 4),
                    answers=(answer,),
                    positive_images=(place,),
                ),
                options=("yes", "no"),
            )
        )
    return cases


def _choice_cases() -> list[_Draft]:
    options = ("a heron", "a kingfisher", "two swans", "12 ducks")
    cases = []
    for number in range(4):
        letter = "ABCD"[number]
        seen = f"{options[number]} at the pond"
        cases.append(
            _Draft(
                kind="choice",
                contents={
                    "observe": "The pictures are to be compared, the second one with the others.",
                    "evidence": _lines([IRRELEVANT, seen, IRRELEVANT]),
                    "think": f"The second picture shows {seen}.",
                    "answer": letter,
                },
                gold={},
                asked=("think", "answer"),
                sample=Sample(
                    sample_id=f"choice-{number}",
                    question="Which bird is new in the second picture?",
                    images=_images("choice", number, 3),
                    answers=(letter,),
                    choices=options,
                ),
                options=("A", "B", "C", "D"),
            )
        )
    return cases


def _grounding_cases() -> list[_Draft]:
    cases = []
    for number, gold in enumerate(((120, 85, 410, 390), (540, 200, 900, 760), (55, 610, 330, 940))):
        left, top, right, bottom = gold
        written = f"({left + 6},{top + 4}),({right - 5},{bottom + 3})"  # a little beside
        box = Box(left=left / 1000, top=top / 1000, right=right / 1000, bottom=bottom / 1000, image_index=1)
        cases.append(
            _Draft(
                kind="grounding",
                contents={
                    "observe": "An umbrella is looked for.",
                    "evidence": _lines([IRRELEVANT, "a red umbrella"]),
                    "think": "It is in the second image.",
                    "answer": written,
                },
                gold={"answer": f"({left},{top}),({right},{bottom})"},
                asked=(),
                sample=Sample(
                    sample_id=f"grounding-{number}",
                    question="Find the red umbrella.",
                    images=_images("grounding", number, 2),
                    answers=(f"({left},{top}),({right},{bottom})",),
                    positive_images=(1,),
                    boxes=(box,),
                ),
                options=tuple(
                    f"({x},{y}),({x + 250},{y + 250})" for x in range(0, 1000, 250) for y in range(0, 1000, 250)
                ),
            )
        )
    return cases


_DRAFTS: dict[str, list[_Draft]] = {
    "pages": _images_cases(),
    "haystack": _haystack_cases(),
    "choice": _choice_cases(),
    "grounding": _grounding_cases(),
}
KINDS = tuple(_DRAFTS)
"""The kinds of questions."""


@lru_cache(maxsize=8)
def cases_of(response_format: ResponseFormat = EVISRAG, answer_section: str | None = None) -> dict[str, list[Case]]:
    """Make questions of each kind, with responses in the declared sections.

    Args:
        response_format: the declared sections.
        answer_section: the one that holds the answer; None: ``response.answer_section``.

    Example:
        With ``plan``, ``look`` (``per_image_lines``) and ``answer`` a haystack's response says in ``plan`` what is
        looked for, in ``look`` one line per image, and in ``answer`` yes or no.
    """
    section = answer_section or response_format.answer_section
    return {kind: [draft.case(response_format, section) for draft in drafts] for kind, drafts in _DRAFTS.items()}


def _nothing_relevant(case: Case) -> str:
    lines = _lines([IRRELEVANT] * len(case.sample.images))
    return case.with_roles(observe=IRRELEVANT, evidence=lines, think=IRRELEVANT, answer=IRRELEVANT)


def _repeated_contents(case: Case) -> str:
    return (
        case.with_sections({name: " ".join([text] * _REPEATS) for name, text in case.sections.items()})
        if case.sections
        else " ".join([case.text] * _REPEATS)
    )


def _reversed_numbers(case: Case) -> str:
    """Digits of the numbers in answer and evidence turned round, labels kept; of a box, x and y exchanged."""
    if not case.sections:
        return re.sub(r"\(([0-9]+),([0-9]+)\)", r"(\2,\1)", case.text)
    turned = {
        name: re.sub(r"(?<!\[)" + _NUMBER.pattern, lambda match: match.group()[::-1], text)
        for name, text in case.sections.items()
        if case.roles[name] in ("evidence", "answer")
    }
    return case.with_sections(turned)


def _without_points(case: Case) -> str:
    return re.sub(r"(?<=[0-9])\.(?=[0-9])", "", case.text)


def _evidence_everywhere(case: Case) -> str:
    """One line of evidence for every page: the right one is among them."""
    lines = case.lines()
    said = next((line for line in lines if line != IRRELEVANT), "")
    return case.with_roles(evidence=_lines([said] * len(lines)))


def _evidence_and_marker(case: Case) -> str:
    """Every page is both relevant and not."""
    lines = case.lines()
    said = next((line for line in lines if line != IRRELEVANT), "")
    return case.with_roles(evidence=_lines([f"{said}, {IRRELEVANT}"] * len(lines)))


def _copied_question(case: Case) -> str:
    lines = _lines([case.sample.question] * len(case.sample.images))
    question = case.sample.question
    return case.with_roles(observe=question, evidence=lines, think=question, answer=question)


TRICKS: dict[str, Callable[[Case], str]] = {
    "constant: no relevant information": _nothing_relevant,
    "constant: always the first option": lambda case: (
        case.with_roles(answer=case.options[0]) if case.kind != "pages" else case.with_roles(answer="1")
    ),
    "every option listed": lambda case: case.with_roles(answer=", ".join(case.options)),
    "contents repeated": _repeated_contents,
    "response repeated": lambda case: "\n".join([case.text] * 3),
    "numbers reordered": _reversed_numbers,
    "decimal points dropped": _without_points,
    "one line of evidence for all pages": _evidence_everywhere,
    "evidence and marker on every line": _evidence_and_marker,
    "question copied": _copied_question,
    "truncated in the middle": lambda case: case.text[: len(case.text) // 2],
    "truncated before the last character": lambda case: case.text[:-1],
    "empty": lambda case: "",
    "empty sections": lambda case: tagged(dict.fromkeys(case.sections, ""), case.format),
    "tag spam": lambda case: "".join(f"<{name}></{name}>" for name in case.format.names) * _REPEATS,
    "box over the whole page": lambda case: "(0,0),(1000,1000)",
}
"""The tricks by name: each makes of a case what a policy might write instead of an answer. A trick that leaves a case's
honest response as it is does not apply to it."""
