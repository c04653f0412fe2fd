"""``rsgrpo mine-negatives``: training pairs get hard negatives, and the file that it writes is read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from recipes.indexing.mining_command import main as mine
from rsgrpo.config import DataConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.retrieval.embedders.embedder import PageImage
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import IndexedPage
from rsgrpo.retrieval.training.mined_pairs import write_training_pairs
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair, read_training_pairs
from rsgrpo.types import FloatArray
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder, sign_vectors

SIDE = 28


class PixelEmbedder(SignEmbedder):
    """Reads a page's number off the red of its first pixel, and counts the pages that it embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.num_embedded = 0

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        self.num_embedded += len(pages)
        images = [page if isinstance(page, Image.Image) else load_image(page, ImageRules()) for page in pages]
        return sign_vectors([int(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index] # of RGB


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are read leave their Arrow copies here, not in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_pairs(folder: Path, numbers: Sequence[int]) -> Path:
    """Write pairs whose page ``n`` answers the question ``Q n``."""
    (folder / "imgs").mkdir(parents=True)
    rows = []
    for number in numbers:
        image = f"imgs/{number}.png"
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(folder / image)
        rows.append({"query": f"Q {number}", "image": image, "source": "letters", "weight": 0.5})
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def call(*arguments: str | Path, embedder: PixelEmbedder | None = None) -> int:
    made = embedder or PixelEmbedder()
    return mine([*map(str, arguments), "--embedder", "m"], make_embedder=lambda config: made)


def test_pairs_are_written_with_their_best_wrong_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = write_pairs(tmp_path / "given", [7, 6, 5, 0])
    out = tmp_path / "mined" / "pairs.jsonl"
    assert call(pairs, "--out", out, "--pages", "2") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    # Signs of 7 (+++-), 6 (-++-), 5 (+-+-), 0 (----): 7·6 = 7·5 = 0.5, 7·0 = -0.5, 6·5 = 0, 6·0 = 5·0 = 0.
    assert [(row["query"], row["source"], row["weight"]) for row in rows] == [
        (f"Q {number}", "letters", 0.5) for number in (7, 6, 5, 0)
    ]
    names = [[Path(negative).stem for negative in row["negatives"]] for row in rows]
    assert set(names[0]) == {"6", "5"}
    assert names[1][0] == names[2][0] == "7"
    assert len(names[3]) == 2
    assert "4 pairs with 8 negatives, 0 without any" in capsys.readouterr().out
    read = read_training_pairs([str(out)], DataConfig(), ImageRules()).pairs
    given = read_training_pairs([str(pairs)], DataConfig(), ImageRules()).pairs
    assert [pair.page.digest for pair in read] == [pair.page.digest for pair in given]
    assert [len(pair.negatives) for pair in read] == [2, 2, 2, 2]


def test_a_page_under_two_names_is_embedded_once_and_is_no_negative_of_itself(tmp_path: Path):
    pairs = write_pairs(tmp_path, [7, 6])
    (tmp_path / "imgs/copy.png").write_bytes((tmp_path / "imgs/7.png").read_bytes())
    with pairs.open("a") as file:
        file.write(json.dumps({"query": "Another 7", "image": "imgs/copy.png"}) + "\n")
    embedder = PixelEmbedder()
    assert call(pairs, "--out", tmp_path / "out.jsonl", "--share", "none", embedder=embedder) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert embedder.num_embedded == 2
    assert [row["negatives"] for row in rows] == [["imgs/6.png"], ["imgs/7.png"], ["imgs/6.png"]]


def test_vectors_that_are_kept_are_not_made_again(tmp_path: Path):
    pairs = write_pairs(tmp_path / "given", [7, 6, 5])
    first, second = PixelEmbedder(), PixelEmbedder()
    index = tmp_path / "pages.index"
    for embedder in (first, second):
        assert call(pairs, "--out", tmp_path / "out.jsonl", "--index", index, embedder=embedder) == 0
    assert (first.num_embedded, second.num_embedded) == (3, 0)
    with open_index(index) as kept:
        assert len(kept) == 3
    # Mined again with fewer pairs, the pages that the index has beside theirs are no negatives.
    few = write_pairs(tmp_path / "few", [7, 6])
    assert call(few, "--out", tmp_path / "few.jsonl", "--index", index) == 0
    rows = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [row["negatives"] for row in rows] == [["few/imgs/6.png"], ["few/imgs/7.png"]]


def test_images_of_a_table_are_written_beside_the_pairs(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = read_training_pairs([str(write_pairs(tmp_path / "given", [7, 6]))], DataConfig(), ImageRules()).pairs
    contents = [(tmp_path / f"given/imgs/{number}.png").read_bytes() for number in (7, 6)]
    table = {
        "query": ["Q 7", "Q 6"],
        "image": [{"bytes": content, "path": "1.png"} for content in contents],
        "source": ["letters", "letters"],
    }
    (tmp_path / "visrag").mkdir()
    pq.write_table(pa.table(table), tmp_path / "visrag/train-00000-of-00001.parquet")
    out = tmp_path / "mined/pairs.jsonl"
    assert call(tmp_path / "visrag", "--out", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"imgs/{pair.page.digest}.png" for pair in given]
    assert [(out.parent / row["image"]).read_bytes() for row in rows] == contents
    assert rows[0]["negatives"] == [rows[1]["image"]]


def test_pages_that_are_texts_are_refused_by_their_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"query": "Q 1", "text": "A page of words"}) + "\n")
    assert call(file, "--out", tmp_path / "out.jsonl") != 0
    said = capsys.readouterr().err
    assert "pairs.jsonl" in said
    assert "its page is a text" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_texts_and_pairs_without_extras_are_written_as_they_are_read(tmp_path: Path):
    page = TrainingPage(image=None, text="A page", digest="0" * 32)
    write_training_pairs(tmp_path / "out.jsonl", [TrainingPair(query="Wer?", page=page)])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"query": "Wer?", "text": "A page", "weight": 1.0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "{folder}"], "is a folder"),
        (["--out", "{folder}/out.jsonl", "--pages", "0"], "0 negatives"),
        (["--out", "{folder}/out.jsonl", "--share", "most"], "argument --share: 'most' is neither a number nor 'none'"),
        (["--out", "{folder}/out.jsonl", "documents.dpi=100"], "documents.dpi"),
        (["--out", "{folder}/given/pairs.jsonl"], "is the data set itself; name another file with --out"),
        (["--out", "{folder}/given/../given/pairs.jsonl"], "is the data set itself"),
    ],
    ids=["folder", "no pages", "no number", "foreign setting", "itself", "itself by another path"],
)
def test_what_cannot_be_meant_is_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pairs = write_pairs(tmp_path / "given", [7, 6])
    before = pairs.read_text()
    try:
        status = call(pairs, *(argument.format(folder=tmp_path) for argument in arguments))
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status != 0
    assert named in capsys.readouterr().err
    assert pairs.read_text() == before


def test_rows_that_cannot_be_used_are_left_out_where_the_user_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pairs = write_pairs(tmp_path / "given", [7, 6])
    with pairs.open("a") as file:
        file.write(json.dumps({"query": "Q 5", "image": "imgs/none.png"}) + "\n")
    out = tmp_path / "out.jsonl"
    assert call(pairs, "--out", out) == 1
    assert "set data.on_bad_sample=skip" in capsys.readouterr().err  # and that is what helps
    assert call(pairs, "--out", out, "data.on_bad_sample=skip", "data.max_skipped_frac=0.5") == 0
    assert "1 rows left out" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 2
    assert call(pairs, "--out", out, "data.on_bad_sampel=skip") == 1
    assert "data.on_bad_sampel" in capsys.readouterr().err


def test_an_index_of_documents_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # Pages of pairs among its own would be found by every later search.
    with create_index(tmp_path / "manuals.index", IDENTITY) as index:
        index.add([IndexedPage(page_id="plot.pdf#1", document="plot.pdf", page_number=1)], sign_vectors([3]))
        index.save()
    pairs = write_pairs(tmp_path / "given", [7, 6])
    assert call(pairs, "--out", tmp_path / "out.jsonl", "--index", tmp_path / "manuals.index") == 1
    assert "holds pages of documents, such as 'plot.pdf#1'" in capsys.readouterr().err
    with open_index(tmp_path / "manuals.index") as index:
        assert [page.page_id for page in index.pages()] == ["plot.pdf#1"]


def test_an_embedder_of_another_index_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = write_pairs(tmp_path / "given", [7, 6])
    assert call(pairs, "--out", tmp_path / "out.jsonl", "--index", tmp_path / "pages.index") == 0
    other = PixelEmbedder()
    other.identity = dataclasses.replace(IDENTITY, revision="sha256:11")
    assert call(pairs, "--out", tmp_path / "2.jsonl", "--index", tmp_path / "pages.index", embedder=other) != 0
    assert "revision" in capsys.readouterr().err
