"""One self-contained page with some questions, their pages, and what was decided of each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from recipes.distilling.judging import JudgedQuestion
from recipes.distilling.pairs import Distilled
from rsgrpo.config import Config
from rsgrpo.config.distill import DistillConfig
from rsgrpo.run.report.pictures import embed_pictures

_TONES = {"positive": "good", "negative": "bad"}


def choose_questions(questions: Sequence[JudgedQuestion], number: int) -> list[JudgedQuestion]:
    """Questions to look at: of each kind in turn, those that give pairs and those left out by every reason.

    Args:
        questions: all judged questions.
        number: how many to choose at most.

    Returns:
        The chosen questions, those that give pairs first; the same for the same questions.

    Example:
        Of 90 questions that give pairs, 9 that nobody answers correctly and one that is disputed, 20 are chosen: 10,
        9 and 1.
    """
    kinds: dict[str, list[JudgedQuestion]] = {"": []}
    for question in questions:
        disputed = any(label.decision == "disputed" for label in question.labels.pages)
        kind: str = question.labels.left_out or ("disputed" if disputed else "")
        kinds.setdefault(kind, []).append(question)
    taken = dict.fromkeys(kinds, 0)
    left = number
    while left and any(taken[kind] < len(found) for kind, found in kinds.items()):
        for kind, found in kinds.items():
            if left and taken[kind] < len(found):
                taken[kind] += 1
                left -= 1
    return [question for kind, found in kinds.items() for question in found[: taken[kind]]]


def sample_page(
    questions: Sequence[JudgedQuestion], distilled: Distilled, settings: DistillConfig, config: Config, run_folder: Path
) -> str:
    """Write the page; it loads nothing, runs nothing, and shows texts as texts.

    Args:
        questions: the judged questions, of which some are chosen.
        distilled: the counts.
        settings: how many questions to show.
        config: the settings of the run.
        run_folder: where moved images are looked for.

    Returns:
        The page as HTML.
    """
    chosen = choose_questions(questions, settings.sample_questions)
    pictures = embed_pictures(
        [page for question in chosen for page in question.pages], run_folder, config.data.image_rules
    )
    counts = distilled.counts()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(
        resources.files("recipes.distilling").joinpath("sample_page.html.jinja").read_text(encoding="utf-8")
    )
    style = resources.files("rsgrpo.run.report").joinpath("page.css").read_text(encoding="utf-8")
    return template.render(
        name=config.name,
        style=Markup(style),
        cards=[
            ("Questions", f"{distilled.questions:,}", f"{distilled.used_questions:,} give pairs"),
            ("Responses", f"{distilled.responses:,}", f"{counts['correct_frac'] or 0.0:.1%} correct"),
            ("Positives", f"{distilled.positives:,}", f"{len(distilled.rows):,} rows"),
            ("Hard negatives", f"{distilled.negatives:,}", "called irrelevant by correct answers"),
        ],
        facts=_facts(counts),
        questions=[_shown(question, {page: pictures.get(page, "") for page in question.pages}) for question in chosen],
    )


def _facts(counts: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("question left out: " + reason, f"{count:,}") for reason, count in counts["left_out_questions"].items()]
    facts += [("page left out: " + reason, f"{count:,}") for reason, count in counts["left_out_pages"].items()]
    facts += [
        ("against gold: " + name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else f"{value:,}")
        for name, value in counts["gold"].items()
        if value is not None and counts["gold"]["questions"]
    ]
    return facts


def _shown(question: JudgedQuestion, pictures: dict[Any, str]) -> dict[str, Any]:
    labels = question.labels
    return {
        "id": question.sample_id,
        "text": question.query or "(a ready prompt without a bare question)",
        "answers": "  ·  ".join(question.answers) or "–",
        "is_sufficient": question.is_sufficient,
        "responses": f"{labels.num_correct} of {labels.num_responses} correct, {labels.num_weighed} weighed",
        "left_out": labels.left_out,
        "pages": [
            {
                "picture": pictures[page],
                "name": f"[{number}] {page.path.rsplit('/', 1)[-1]}",
                "decision": label.decision + (f" {label.weight:.2f}" if label.weight else ""),
                "tone": "" if labels.left_out else _TONES.get(label.decision, ""),
                "votes": f"{label.num_for} for, {label.num_against} against",
                "line": line,
                "is_gold": question.gold is not None and question.gold[index],
            }
            for index, (page, label, line, number) in enumerate(
                zip(question.pages, labels.pages, question.lines, question.numbers, strict=True)
            )
        ],
    }
