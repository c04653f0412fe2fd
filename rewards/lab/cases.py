"""Made-up questions with honest responses, and the tricks that a reward must not pay.

Four kinds of question: ``pages`` (EVisRAG: facts on one page of three), ``haystack`` (yes or no, one needle in
four pages), ``choice`` (four options) and ``grounding`` (one box). All of them can be answered, so that
"no relevant information" is never the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.types import SECTION_TAGS, Box, ImageRef, Sample

_REPEATS = 20
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A question and how a good response answers it.

    Attributes:
        kind: of question.
        sample: with its gold.
        sections: content of each section that the prompt asks for; none: the response is ``text``.
        text: an honest response: right, in its own words.
        options: everything that the answer might be.
    """

    kind: str
    sample: Sample
    sections: dict[str, str]
    text: str
    options: tuple[str, ...]

    def with_sections(self, **changed: str) -> str:
        """The response with other contents; without sections: the new answer alone."""
        if not self.sections:
            return changed.get("answer", self.text)
        return tagged({**self.sections, **{name: text for name, text in changed.items() if name in self.sections}})


def tagged(sections: dict[str, str]) -> str:
    """Sections in their order."""
    return "\n".join(f"<{name}>{text}</{name}>" for name, text in sections.items())


def _lines(texts: list[str]) -> str:
    return "\n".join(f"[{number}]: {text}" for number, text in enumerate(texts, start=1))


def _case(kind: str, sections: dict[str, str], gold: dict[str, str], sample: Sample, options: tuple[str, ...]) -> Case:
    """A question whose response has sections; the sample gets its gold response."""
    return Case(
        kind=kind,
        sample=replace(sample, gold_response=tagged(gold)),
        sections=sections,
        text=tagged(sections),
        options=options,
    )


def _images(kind: str, number: int, num_images: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(path=f"{kind}-{number}-{page}.png") for page in range(1, num_images + 1))


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


def _images_cases() -> list[Case]:
    cases = []
    for number, (what, fact, own_words, answer, others) in enumerate(_FACTS):
        place = number % 3
        gold_lines = [fact if page == place else IRRELEVANT for page in range(3)]
        lines = [own_words if page == place else IRRELEVANT for page in range(3)]
        observe = f"Three pages with charts and tables; one of them shows the {what}."
        think = f"Page {place + 1} gives the {what}, so that is the answer."
        cases.append(
            _case(
                "pages",
                {"observe": observe, "evidence": _lines(lines), "think": think, "answer": answer},
                {"observe": observe, "evidence": _lines(gold_lines), "think": think, "answer": answer},
                Sample(
                    sample_id=f"pages-{number}",
                    question=f"What is the {what}?",
                    images=_images("pages", number, 3),
                    answers=(answer,),
                ),
                (answer, *others),
            )
        )
    return cases


def _haystack_cases() -> list[Case]:
    cases = []
    for number, (place, answer) in enumerate(((1, "yes"), (3, "no"), (0, "yes"), (2, "no"))):
        seen = "a red truck and a small dog" if answer == "yes" else "a red truck, and nobody beside it"
        lines = [seen if page == place else IRRELEVANT for page in range(4)]
        sections = {"evidence": _lines(lines), "answer": answer}
        cases.append(
            _case(
                "haystack",
                sections,
                sections,
                Sample(
                    sample_id=f"haystack-{number}",
                    question="For the image with a truck, is there a dog?",
                    images=_images("haystack", number, 4),
                    answers=(answer,),
                    positive_images=(place,),
                ),
                ("yes", "no"),
            )
        )
    return cases


def _choice_cases() -> list[Case]:
    options = ("a heron", "a kingfisher", "two swans", "12 ducks")
    cases = []
    for number in range(4):
        letter = "ABCD"[number]
        sections = {"think": f"The second picture shows {options[number]} at the pond.", "answer": letter}
        cases.append(
            _case(
                "choice",
                sections,
                sections,
                Sample(
                    sample_id=f"choice-{number}",
                    question="Which bird is new in the second picture?",
                    images=_images("choice", number, 3),
                    answers=(letter,),
                    choices=options,
                ),
                ("A", "B", "C", "D"),
            )
        )
    return cases


def _grounding_cases() -> list[Case]:
    cases = []
    for number, gold in enumerate(((120, 85, 410, 390), (540, 200, 900, 760), (55, 610, 330, 940))):
        left, top, right, bottom = gold
        text = f"It is in the second image. ({left + 6},{top + 4}),({right - 5},{bottom + 3})"  # a little beside
        box = Box(left=left / 1000, top=top / 1000, right=right / 1000, bottom=bottom / 1000, image_index=1)
        cases.append(
            Case(
                kind="grounding",
                sample=Sample(
                    sample_id=f"grounding-{number}",
                    question="Find the red umbrella.",
                    images=_images("grounding", number, 2),
                    answers=(f"({left},{top}),({right},{bottom})",),
                    positive_images=(1,),
                    boxes=(box,),
                ),
                sections={},
                text=text,
                options=tuple(
                    f"({x},{y}),({x + 250},{y + 250})" for x in range(0, 1000, 250) for y in range(0, 1000, 250)
                ),
            )
        )
    return cases


CASES: dict[str, list[Case]] = {
    "pages": _images_cases(),
    "haystack": _haystack_cases(),
    "choice": _choice_cases(),
    "grounding": _grounding_cases(),
}
"""Questions by kind."""


def _nothing_relevant(case: Case) -> str:
    lines = _lines([IRRELEVANT] * len(case.sample.images))
    return case.with_sections(observe=IRRELEVANT, evidence=lines, think=IRRELEVANT, answer=IRRELEVANT)


def _repeated_contents(case: Case) -> str:
    return (
        case.with_sections(**{name: " ".join([text] * _REPEATS) for name, text in case.sections.items()})
        if (case.sections)
        else " ".join([case.text] * _REPEATS)
    )


def _reversed_numbers(case: Case) -> str:
    """Digits of the numbers in answer and evidence turned round, labels kept; of a box, x and y exchanged."""
    if not case.sections:
        return re.sub(r"\(([0-9]+),([0-9]+)\)", r"(\2,\1)", case.text)
    turned = {
        name: re.sub(r"(?<!\[)" + _NUMBER.pattern, lambda match: match.group()[::-1], text)
        for name, text in case.sections.items()
        if name in ("evidence", "answer")
    }
    return case.with_sections(**turned)


def _without_points(case: Case) -> str:
    return re.sub(r"(?<=[0-9])\.(?=[0-9])", "", case.text)


def _evidence_everywhere(case: Case) -> str:
    """One line of evidence for every page: the right one is among them."""
    lines = [line.partition(": ")[2] for line in case.sections.get("evidence", "").splitlines()]
    said = next((line for line in lines if line != IRRELEVANT), "")
    return case.with_sections(evidence=_lines([said] * len(lines)))


def _evidence_and_marker(case: Case) -> str:
    """Every page is both relevant and not."""
    lines = [line.partition(": ")[2] for line in case.sections.get("evidence", "").splitlines()]
    said = next((line for line in lines if line != IRRELEVANT), "")
    return case.with_sections(evidence=_lines([f"{said}, {IRRELEVANT}"] * len(lines)))


def _copied_question(case: Case) -> str:
    lines = _lines([case.sample.question] * len(case.sample.images))
    question = case.sample.question
    return case.with_sections(observe=question, evidence=lines, think=question, answer=question)


TRICKS: dict[str, Callable[[Case], str]] = {
    "constant: no relevant information": _nothing_relevant,
    "constant: always the first option": lambda case: (
        case.with_sections(answer=case.options[0]) if case.kind != "pages" else case.with_sections(answer="1")
    ),
    "every option listed": lambda case: case.with_sections(answer=", ".join(case.options)),
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
    "empty sections": lambda case: tagged(dict.fromkeys(case.sections, "")),
    "tag spam": lambda case: "".join(f"<{name}></{name}>" for name in SECTION_TAGS) * _REPEATS,
    "box over the whole page": lambda case: "(0,0),(1000,1000)",
}
"""What a policy might write instead of an answer. A trick that leaves a case's honest response as it is does not
apply to it."""
