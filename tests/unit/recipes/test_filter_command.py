"""``rsgrpo filter``: pages by the names that users give them, their numbers, what is kept, and what cannot be read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from recipes.filtering.command import main
from rsgrpo.config import DataConfig
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, PageImage
from rsgrpo.retrieval.index.flat_index import create_index
from rsgrpo.retrieval.index.page_index import IndexedPage
from rsgrpo.types import FloatArray, ImageRef
from tests.tiny_model import build_tiny_model

GREYS = (10, 90, 200)


class GreyEmbedder:
    """A page's vector is the angle of its grey; a question ends with the grey that it asks for."""

    def __init__(self, config: EmbedderConfig, folder: Path) -> None:
        self.settings = config
        self.embedded: list[str] = []
        self.identity = EmbedderIdentity(
            model=str(folder), revision="sha256:00", pooling="lasttoken", query_instruction="",
            instruction_place="text", min_pixels=0, max_pixels=1000, dpi=None, dimension=2,
        )  # fmt: skip

    def embed_queries(self, queries) -> FloatArray:
        return _vectors([int(query.split()[-1]) for query in queries])

    def embed_pages(self, pages: list[PageImage]) -> FloatArray:
        found = []
        for page in pages:
            assert isinstance(page, ImageRef)
            self.embedded.append(page.path)
            with Image.open(page.file) as image:
                found.append(int(np.asarray(image.convert("L"))[0, 0]))
        return _vectors(found)

    def image_tokens(self, page: PageImage) -> int:
        return 4


def _vectors(greys: list[int]) -> FloatArray:
    angles = np.array(greys, dtype=np.float64) / 255 * np.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for grey in GREYS:
        Image.new("RGB", (60, 40), (grey,) * 3).save(f"{grey}.png")
    return [f"{grey}.png" for grey in GREYS]


@pytest.fixture
def made(tmp_path: Path):
    """The embedders that a command made, and the function that makes them."""
    embedders: list[GreyEmbedder] = []

    def make(config: EmbedderConfig) -> GreyEmbedder:
        embedders.append(GreyEmbedder(config, tmp_path / "model"))
        return embedders[-1]

    (tmp_path / "model").mkdir()
    return embedders, make


def call(capsys: pytest.CaptureFixture[str], make, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"], make) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_pages_are_numbered_as_given_and_the_unreadable_are_named(pages, made, capsys) -> None:
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    stages = "filter.stages=[{scorer: cosine, top_k: 2, threshold: 0}]"
    found = call(capsys, made[1], "Which is 90", pages[2], "broken.png", *pages[:2], "--embedder", "m", stages)
    # Greys 200, -, 10, 90 under the numbers 1 to 4: the nearest to 90 are 90 itself and 10 (80 away, 200 is 110 away).
    assert (found["kept"], found["num_unreadable"]) == ([3, 4], 1)
    assert [page["number"] for page in found["pages"]] == [1, 2, 3, 4]
    assert [page["is_kept"] for page in found["pages"]] == [False, False, True, True]
    assert found["pages"][1]["probability"] is None
    assert "broken.png" in found["pages"][1]["problem"]
    assert found["image_tokens"] == 12
    assert main(["Which is 90", pages[0], "broken.png", "--embedder", "m", stages], made[1]) == 0
    shown = capsys.readouterr().out
    assert "[2]" in shown and "cannot be read" in shown and "1 of 2 pages kept, 1 cannot be read" in shown


def test_pages_of_documents_are_rendered_and_named_by_their_numbers(pages, made, capsys) -> None:
    document = pypdfium2.PdfDocument.new()
    for _ in range(3):
        document.new_page(60, 40)
    document.save("plain.pdf")
    stages = "filter.stages=[{scorer: cosine, top_k: 1, threshold: 0}]"
    asked = ("plain.pdf#3", pages[0], "plain.pdf", "plain.pdf#4")
    found = call(capsys, made[1], "Which is 255", *asked, "--embedder", "m", stages)
    names = [page["page"] for page in found["pages"]]
    assert names == ["plain.pdf#3", "10.png", "plain.pdf#1", "plain.pdf#2", "plain.pdf#3", "plain.pdf#4"]
    assert "has 3 pages, and page 4 is asked for" in found["pages"][5]["problem"]
    assert found["kept"] == [1]  # an empty page is white; the first of equals


def test_vectors_of_an_index_are_not_computed_again(tmp_path, pages, made, capsys) -> None:
    embedder = GreyEmbedder(EmbedderConfig(model="m"), tmp_path / "model")
    known = [
        IndexedPage(
            page_id=f"doc.pdf#{number}", document="doc.pdf", page_number=number, image_path=str(Path(name).absolute()),
            sha256=hashlib.sha256(Path(name).read_bytes()).hexdigest(),
        )
        for number, name in enumerate(pages[:2], start=1)
    ]  # fmt: skip
    with create_index(tmp_path / "index", embedder.identity, IndexConfig(), EmbedderConfig(model="m")) as index:
        index.add(known, embedder.embed_pages([ImageRef(path=name, file=name) for name in pages[:2]]))
        index.save()
    stages = "filter.stages=[{scorer: cosine, top_k: 1, threshold: 0}]"
    # A page by the index's id, one by its content under another name, and one that the index lacks.
    Path("copy.png").write_bytes(Path(pages[1]).read_bytes())
    found = call(capsys, made[1], "Which is 90", "doc.pdf#1", "copy.png", pages[2], "--index", "index", stages)
    assert found["kept"] == [2]
    assert made[0][-1].embedded == [pages[2]]
    assert found["image_tokens"] == 4


def test_each_picture_of_a_tiff_file_is_a_page(pages, made, capsys) -> None:
    first, *others = [Image.open(name) for name in pages]
    first.save("scan.tiff", save_all=True, append_images=others)
    stages = "filter.stages=[{scorer: cosine, top_k: 1, threshold: 0}]"
    found = call(capsys, made[1], f"Which is {GREYS[1]}", "scan.tiff", "--embedder", "m", stages)
    assert [page["page"] for page in found["pages"]] == ["scan.tiff#1", "scan.tiff#2", "scan.tiff#3"]
    assert found["kept"] == [2]  # the picture of that grey, and not the file's first
    found = call(capsys, made[1], f"Which is {GREYS[2]}", "scan.tiff#3", "scan.tiff#4", "--embedder", "m", stages)
    assert (found["kept"], found["num_unreadable"]) == ([1], 1)
    assert found["pages"][1]["problem"] == "it has 3 pages, and page 4 is asked for"


def test_an_image_file_has_no_second_page(pages, made, capsys) -> None:
    stages = "filter.stages=[{scorer: cosine, top_k: 1, threshold: 0}]"
    found = call(capsys, made[1], "Which is 10", f"{pages[0]}#2", f"{pages[0]}#1", "--embedder", "m", stages)
    assert found["pages"][0]["problem"] == "it has 1 pages, and page 2 is asked for"
    assert found["kept"] == [2]


def _rows(pages: list[str]) -> list[dict[str, Any]]:
    return [
        {"qid": number, "query": f"Which is {grey}", "answer": ["x"], "image": pages, "posImgs": [f"{grey}.png"],
         "year": 1999}
        for number, grey in enumerate(GREYS)
    ]  # fmt: skip


def test_rows_are_filtered_and_keep_the_numbers_of_their_pages(pages, made, capsys) -> None:
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(pages)))
    stages = "filter.stages=[{scorer: cosine, top_k: 2, threshold: 0}]"
    found = call(capsys, made[1], "--data", "q.jsonl", "--embedder", "m", stages)
    assert (found["image_recall"], found["image_precision"], found["kept_pages"]) == (1.0, 0.5, 2.0)
    samples = load_samples(found["out"], DataConfig(), is_training=False).samples
    assert [sample.page_numbers for sample in samples] == [(1, 2), (1, 2), (2, 3)]
    assert [[image.path for image in sample.images] for sample in samples][2] == pages[1:]
    assert [sample.positive_images for sample in samples] == [(0,), (1,), (1,)]
    assert samples[0].metadata["year"] == "1999"
    assert main(["--data", "q.jsonl", "--embedder", "m", stages, "--out", "q.jsonl"], made[1]) == 1
    assert "is the data set itself" in capsys.readouterr().err
    Path("elsewhere").mkdir()
    num_made = len(made[0])
    assert main(["--data", "q.jsonl", "--embedder", "m", stages, "--out", "elsewhere/q.jsonl"], made[1]) == 1
    assert "lies in another folder" in capsys.readouterr().err
    assert len(made[0]) == num_made  # before anything is judged
    assert main(["--data", "q.jsonl", "--embedder", "m", stages], made[1]) == 0
    assert "gold pages kept 100.0%, kept pages that are gold 50.0%" in capsys.readouterr().out


def test_rows_that_cannot_be_used_are_left_out_where_the_user_says_so(pages, made, capsys) -> None:
    rows = [*_rows(pages), {**_rows(pages)[0], "qid": "gone", "image": ["none.png"], "posImgs": []}]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--data", "q.jsonl", "--embedder", "m", "filter.stages=[{scorer: cosine, top_k: 1, threshold: 0}]")
    assert main(arguments, made[1]) == 1
    assert "set data.on_bad_sample=skip" in capsys.readouterr().err  # and that is what helps
    found = call(capsys, made[1], *arguments, "data.on_bad_sample=skip", "data.max_skipped_frac=0.5")
    assert (found["left_out"], found["num_questions"]) == ({"missing media": 1}, 3)
    # No model is named whose tokens could be counted: unknown, and not 0.
    assert (found["answer_ratio"], found["unfiltered_image_tokens"]) == (None, None)


def test_rows_keep_gold_pages_and_their_lines_where_nobody_is_asked(pages, capsys) -> None:
    lines = [f"[{number}]: no relevant information" for number in (1, 2, 3)]
    rows = []
    for number, row in enumerate(_rows(pages)):
        shown = [*lines[:number], f"[{number + 1}]: grey", *lines[number + 1 :]]
        rows.append({**row, "answer": "<evidence>" + "\n".join(shown) + "</evidence><answer>grey</answer>"})
    rows.append({**rows[0], "qid": "unknown", "posImgs": []})
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--data", "train.jsonl", "--out", "shown.jsonl", "--by-gold"]) == 0
    told = capsys.readouterr()
    assert told.err == "1 questions without a gold page are left out\n"
    assert "gold pages kept 100.0%" in told.out
    written = [json.loads(line) for line in Path("shown.jsonl").read_text().splitlines()]
    # Of two other pages at most round(0.15 × 2) = 0 are taken too many.
    assert [row["page_numbers"] for row in written] == [[1], [2], [3]]
    assert written[1]["answer"] == "<evidence>[2]: grey\n</evidence><answer>grey</answer>"


def test_a_calibration_is_fitted_kept_and_used(tmp_path, pages, made, capsys) -> None:
    Path("dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(pages)))
    assert main(["Which is 90", *pages, "--embedder", "m"], made[1]) == 1
    assert "fit one with rsgrpo filter --calibrate" in capsys.readouterr().err
    found = call(capsys, made[1], "--calibrate", "dev.jsonl", "--embedder", "m", "--balance")
    assert Path(found["calibration"]) == tmp_path / "model" / "filter_calibration.json"
    assert (found["relevant pairs"], found["irrelevant pairs"]) == (3, 6)
    assert (found["relevant at 0.5 and above"], found["questions without a gold page"]) == (1.0, 0)
    used = call(capsys, made[1], "Which is 200", *pages, "--embedder", "m")
    assert used["kept"] == [3]
    assert used["pages"][2]["probability"] > 0.5 > used["pages"][0]["probability"]


def test_a_model_says_yes_or_no(pages, tmp_path, capsys) -> None:
    folder = build_tiny_model(tmp_path / "policy")
    capsys.readouterr()  # what saving the model said
    found = call(capsys, None, "Who signed?", *pages, "--policy", str(folder), "filter.yes=y", "filter.no=n",
                 "filter.stages=[{scorer: yes_no, top_k: 1, threshold: 0, max_pixels: 784}]")  # fmt: skip
    probabilities = [page["probability"] for page in found["pages"]]
    assert found["kept"] == [1 + int(np.argmax(probabilities))]
    assert found["image_tokens"] == 3  # 784 pixels are one token each
    assert main(["Who signed?", *pages, "--policy", str(folder)]) == 1
    assert "filter.yes='yes' is 3 tokens of the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no question is given"),
        (["Who?"], "no page is given"),
        (["Who?", "10.png"], "no model is named that is asked; set filter.policy=MODEL"),
        (["Who?", "none.png", "--embedder", "m"], "none of 1 pages can be read (none.png: "),
        (["Who?", "10.png", "filter.stages=[{scorer: magic}]"], "choose one of cosine, yes_no, head"),
        (["Who?", "10.png", "filter.stage=[]"], "filter.stage does not fit"),
        (["Who?", "10.png", "--embedder", "m", "documents.dpi=3"], "leave them out here"),
        (["Who?", "--data", "q.jsonl"], "--data brings its own questions"),
        (["Who?", "10.png", "--by-gold"], "--by-gold filters the rows of a data set"),
        (["--data", "q.jsonl", "--by-gold", "--embedder", "m"], "--by-gold asks nobody"),
    ],
    ids=["nothing", "no page", "no model", "unreadable", "choice", "key", "group", "two sources", "gold", "both"],
)
def test_a_call_that_cannot_work_is_one_sentence(pages, made, capsys, arguments, words) -> None:
    assert main(arguments, made[1]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
