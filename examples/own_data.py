"""Your own data set: from page images and a table of questions to the commands that train on it.

    uv run python examples/own_data.py                               # three made-up pages, in a temporary folder
    uv run python examples/own_data.py data/mine --pages scans --questions questions.csv

The table is a CSV file with a header and one question a line:

    question,answer,pages,gold_pages
    What is the total of invoice 1041?,310 euros,invoice.png;letter.png,invoice.png

``pages`` are file names in the folder of pages, best first; ``gold_pages`` are those that hold the answer (leave it
empty where nobody knows). Written are

    train.jsonl, test.jsonl   one question a line, as in EVisRAG's sets: for the reinforcement stage and evaluations
    chat.json                 the same training questions as conversations (ShareGPT): for the supervised stage
    imgs/                     the pages

and read again with the loader that a run uses, so that a missing page or an empty question is named here.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.readers import read_samples
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.types import Sample

_COLUMNS = ("question", "answer", "pages", "gold_pages")
_TEST_EVERY = 4  # the fourth question, the eighth, … are held out

_MADE_UP_PAGES = {
    "invoice.png": "INVOICE 1041\n\nPaper    120 euros\nInk      190 euros\n\nTotal    310 euros",
    "letter.png": "Dear Ms Lind,\n\nyour order was sent\non 14 March by train.",
    "table.png": "Visitors\n\n2022     18,400\n2023     21,150\n2024     19,700",
}
_MADE_UP_QUESTIONS = """\
question,answer,pages,gold_pages
What is the total of invoice 1041?,310 euros,invoice.png;letter.png;table.png,invoice.png
When was the order sent?,14 March,table.png;letter.png;invoice.png,letter.png
In which year were there most visitors?,2023,letter.png;table.png,table.png
How many visitors came in 2024?,"19,700",table.png;invoice.png,table.png
Which costs more on the invoice?,Ink,invoice.png;table.png,invoice.png
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the data set, and say what the loader made of it; 0 on success."""
    return run_command(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> None:
    parser = CommandParser(
        prog="own_data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="where to write; a temporary folder if left out")
    parser.add_argument("--pages", type=Path, help="folder with your page images")
    parser.add_argument("--questions", type=Path, help="your table of questions")
    options = parser.parse_args(arguments)
    if (options.pages is None) != (options.questions is None):
        parser.error("--pages and --questions go together: give both, or none to try made-up ones")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="own-data-"))
    pages, questions = options.pages, options.questions
    if pages is None:
        pages, questions = _made_up(folder / "made-up")
    write_data(folder, pages, questions)
    show(folder)


def _made_up(folder: Path) -> tuple[Path, Path]:
    """Three pages and five questions about them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _MADE_UP_PAGES.items():
        page = Image.new("RGB", (448, 448), "white")
        ImageDraw.Draw(page).multiline_text((40, 60), text, fill="black", font_size=28, spacing=12)
        page.save(folder / name)
    (folder / "questions.csv").write_text(_MADE_UP_QUESTIONS, encoding="utf-8")
    return folder, folder / "questions.csv"


def write_data(folder: Path, pages: Path, questions: Path) -> None:
    """Write train.jsonl, test.jsonl, chat.json and imgs/.

    Args:
        folder: the folder to write to.
        pages: folder with the images.
        questions: the table of questions, a CSV file.

    Raises:
        RsgrpoError: the table lacks a column.
    """
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    records: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for number, row in enumerate(_rows(questions), start=1):
        shown_pages, gold_pages = _names(row["pages"]), _names(row["gold_pages"])
        for name in shown_pages:
            if (pages / name).is_file():  # one that is missing is named by the loader
                shutil.copyfile(pages / name, folder / "imgs" / name)
        records["test" if number % _TEST_EVERY == 0 else "train"].append(
            {
                "qid": f"mine-{number}",
                "query": row["question"],
                "answer": [row["answer"]],  # every spelling that counts as right
                "image": [f"imgs/{name}" for name in shown_pages],
                "posImgs": [f"imgs/{name}" for name in gold_pages],
                "is_sufficient": True,  # False: the pages do not hold the answer, and the model should say so
            }
        )
    for split, lines in records.items():
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    chats = [_conversation(line) for line in records["train"]]
    (folder / "chat.json").write_text(json.dumps(chats, ensure_ascii=False, indent=1), encoding="utf-8")


def _rows(questions: Path) -> Iterator[dict[str, str]]:
    with questions.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark in front
        table = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise RsgrpoError(
                f"{questions} has no column {', '.join(missing)}; its first line must name {','.join(_COLUMNS)}"
            )
        for row in table:
            yield {name: (row[name] or "").strip() for name in _COLUMNS}


def _names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(";") if name.strip()]


def _conversation(record: dict[str, object]) -> dict[str, object]:
    """A question with its answer as ShareGPT writes it: one ``<image>`` for each page, in order."""
    images, answers = record["image"], record["answer"]
    assert isinstance(images, list) and isinstance(answers, list)
    return {
        "id": record["qid"],
        "images": images,
        "conversations": [
            {"from": "human", "value": "<image>" * len(images) + f"\n{record['query']}"},
            {"from": "gpt", "value": answers[0]},
        ],
    }


def show(folder: Path) -> None:
    """Read what was written as a run reads it, and print it.

    Args:
        folder: the folder of the data set.

    Raises:
        DataError: a record cannot be used; the message names its line and what is wrong.
    """
    data = DataConfig(max_images=8)
    for split in ("train", "test"):
        loaded = load_samples(str(folder / f"{split}.jsonl"), data, is_training=split == "train")
        kinds = ", ".join(f"{count} {kind}" for kind, count in loaded.images.kinds.items())
        print(f"{split}.jsonl: {len(loaded.samples)} questions, {loaded.images.read} pages ({kinds})")
        print(_sample_text(loaded.samples[0]))
    conversations, report = read_samples("sharegpt", folder / "chat.json")
    print(f"chat.json: {report.text()}")
    for turn in conversations[0].turns:
        print(f"  {turn.role}: {turn.text!r}")
    train, test, chat = (shlex.quote(str(folder / name)) for name in ("train.jsonl", "test.jsonl", "chat.json"))
    paths = f"data.rl_path={train} data.test_path={test}"
    print(
        "\nlook at everything that a run would need, then train:\n"
        f"  uv run rsgrpo doctor recipe=evisrag_3b stage=rl '~rewards.evidence' {paths}\n"
        f"  uv run rsgrpo train recipe=evisrag_3b stage=rl '~rewards.evidence' {paths}\n"
        "a supervised stage on the conversations, with a small model on a CPU:\n"
        f"  uv run rsgrpo train +machine=laptop stage=sft data.format=sharegpt data.sft_path={chat} run_dir=runs/mine"
    )


def _sample_text(sample: Sample) -> str:
    gold = [sample.images[index].path for index in sample.positive_images]
    return (
        f"  first: {sample.sample_id}  {sample.question!r}  answers {list(sample.answers)}\n"
        f"  pages {[image.path for image in sample.images]}, the answer stands on {gold}"
    )


if __name__ == "__main__":
    sys.exit(main())
