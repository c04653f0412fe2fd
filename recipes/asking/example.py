"""A test question of a run with its pages, to try the run's model on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.asking.model_choice import ModelChoiceError
from rsgrpo.config import DataConfig
from rsgrpo.errors import shown
from rsgrpo.run.folder import RunFolder, read_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A question of a test set.

    Attributes:
        question: the text of the question.
        pages: the files of its pages.
        answers: the answers that the test set accepts.
        is_sufficient: whether the pages hold the answer.
    """

    question: str
    pages: tuple[str, ...]
    answers: tuple[str, ...]
    is_sufficient: bool


def example_of(run: Path, number: int) -> Example:
    """A test question of a run.

    Args:
        run: the folder of the run.
        number: which one, from 1.

    Returns:
        The question.

    Raises:
        ModelChoiceError: the run has no test set here, or not so many questions.
        DataError: the test set cannot be read.
    """
    from rsgrpo.data.evisrag_files import load_samples

    folder = RunFolder(root=run)
    data = read_settings(folder.config_file).get("data") or {}
    path = str(data.get("test_path") or folder.data / "test")
    if not Path(path.partition("@")[0]).exists():
        raise ModelChoiceError(f"the run {shown(run)} has no test questions here ({shown(path)} is not there); ask one")
    names = ("id_column", "question_column", "prompt_column", "answer_column", "image_column", "image_root")
    columns = {name: data[name] for name in (*names, "max_images") if name in data}
    samples = load_samples(path, DataConfig(**columns), is_training=False, looks_at_images=False).samples
    if not 1 <= number <= len(samples):
        raise ModelChoiceError(f"there is no test question {number} in {shown(path)}; it has {len(samples)}, from 1 on")
    sample = samples[number - 1]
    question = sample.question or sample.prompt.replace("<image>", "").strip()
    pages = tuple(image.file for image in sample.images)
    if not question or not all(pages):
        raise ModelChoiceError(f"test question {number} of {shown(path)} has no pages that are files; name pages")
    return Example(
        question=question,
        pages=tuple(_near(page) for page in pages),
        answers=sample.answers,
        is_sufficient=sample.is_sufficient,
    )


def _near(page: str) -> str:
    """The path of a page as short as it can be written from here."""
    path = Path(page)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else page
