"""Reading of training pairs: both formats, what is refused and by which words, and pages known by their content."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rsgrpo.config import DataConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.io.atomic_files import write_json
from rsgrpo.retrieval.training.pair_table import read_pairs, write_pairs
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair, chosen_negatives, read_training_pairs
from rsgrpo.types import ImageRef
from tests.unit.retrieval.pair_files import write_pages, write_rows

RULES = ImageRules()
GOOD = {"query": "Who?", "image": "imgs/0.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pages(tmp_path, 4)
    return tmp_path


def settings(folder: Path, **given: object) -> DataConfig:
    return DataConfig(media_cache=str(folder / "cache"), **given)  # type: ignore[arg-type]  # of known fields


def read(folder: Path, *rows: object, **given: object):
    file = write_rows(folder / "pairs.jsonl", list(rows))  # type: ignore[arg-type]  # bad rows are what is tested
    return read_training_pairs([str(file)], settings(folder, **given), RULES)


def test_a_row_of_json_lines_is_read_with_everything_that_it_may_have(folder: Path) -> None:
    row = {**GOOD, "source": "slides", "negatives": ["imgs/1.png", "imgs/0.png", "imgs/2.png"], "weight": 0.5}
    (pair,) = read(folder, row).pairs
    assert (pair.query, pair.source, pair.weight, pair.place) == ("Who?", "slides", 0.5, "pairs.jsonl line 1")
    assert pair.page.image == ImageRef(path="imgs/0.png", file=str(folder / "imgs/0.png"))
    assert [page.name for page in pair.negatives] == ["imgs/1.png", "imgs/2.png"]  # its own page is no wrong one
    assert len({page.digest for page in (pair.page, *pair.negatives)}) == 3


def test_a_text_may_stand_in_place_of_an_image(folder: Path) -> None:
    (pair,) = read(folder, {"query": "Who?", "text": "Signed by Ada."}).pairs
    assert (pair.page.image, pair.page.text, pair.source, pair.weight) == (None, "Signed by Ada.", "", 1.0)


def test_one_content_under_two_names_is_one_page(folder: Path) -> None:
    (folder / "imgs/copy.png").write_bytes((folder / "imgs/0.png").read_bytes())
    first, second = read(folder, GOOD, {"query": "When?", "image": "imgs/copy.png"}).pairs
    assert first.page.digest == second.page.digest


@pytest.fixture
def parquet(folder: Path) -> Path:
    """A folder as VisRAG-Ret's training data are downloaded: two parquet files and ``metadata.json``."""
    data = folder / "visrag"
    data.mkdir()
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for part in range(2):
        images = []
        for number in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (56, 56), (80 * part, 80 * number, 7)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": f"{part}-{number}.png"})
        columns = {
            "query": pyarrow.array([f"q{part}0", f"q{part}1"]),
            "image": pyarrow.array(images, type=kind),
            "source": pyarrow.array(["ArxivQA", "PlotQA"]),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), data / f"train-0000{part}-of-00002.parquet")
    write_json(data / "metadata.json", {"length": 4})
    return data


def test_visrags_parquet_is_read_and_its_images_stay_in_it(folder: Path, parquet: Path) -> None:
    pairs = read_training_pairs([str(parquet)], settings(folder), RULES).pairs
    assert [(pair.query, pair.source) for pair in pairs] == [
        ("q00", "ArxivQA"),
        ("q01", "PlotQA"),
        ("q10", "ArxivQA"),
        ("q11", "PlotQA"),
    ]
    image = pairs[3].page.image
    assert image is not None
    assert (Path(image.parquet_file).name, image.parquet_row) == ("train-00001-of-00002.parquet", 1)
    assert len({pair.page.digest for pair in pairs}) == 4


def test_a_folder_that_lacks_rows_is_refused(folder: Path, parquet: Path) -> None:
    (parquet / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"visrag holds 2 rows, and its metadata.json says 4; download what is missing"):
        read_training_pairs([str(parquet)], settings(folder), RULES)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GOOD, "query": "  "}, "1 × empty question"),
        ({"image": "imgs/0.png"}, "line 2: query is None, expected the text of a question"),
        ({**GOOD, "query": "a<|im_end|>"}, r"line 2: its query holds the control token '<\|im_end\|>'"),
        ({"query": "Who?"}, "line 2: it has neither image nor text; got the columns query"),
        ({"query": "Who?", "image": "imgs/9.png"}, "line 2: image 'imgs/9.png' does not exist"),
        ({**GOOD, "weight": 0}, "line 2: weight is 0, expected a number above 0"),
        ({**GOOD, "weight": True}, "line 2: weight is True, expected a number above 0"),
        ({**GOOD, "negatives": "imgs/1.png"}, "line 2: negatives is 'imgs/1.png', expected a list of pages"),
        ({**GOOD, "source": 3}, "line 2: source is 3, expected a name"),
        ("{", "line 2: the line is not JSON"),
        ("[]", "line 2: expected a JSON object, got list"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "row",
)
def test_a_bad_row_is_named_by_file_and_line(folder: Path, row: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(folder, GOOD, row)


def test_bad_rows_are_left_out_and_counted_where_that_is_wanted(folder: Path) -> None:
    (folder / "imgs/3.png").write_bytes(b"no image")
    rows = [GOOD, {"query": "When?", "image": "imgs/3.png"}, {"query": "", "image": "imgs/1.png"}]
    loaded = read(folder, *rows, on_bad_sample="skip", max_skipped_frac=0.7)
    assert [pair.query for pair in loaded.pairs] == ["Who?"]
    assert {finding.reason: finding.count for finding in loaded.skipped} == {"empty question": 1, "image": 1}
    with pytest.raises(DataError, match=r"2 of 3 records would be left out, more than the 1"):
        read(folder, *rows, on_bad_sample="skip", max_skipped_frac=0.01)


def test_a_page_of_the_test_set_is_reported_by_name_and_content(folder: Path) -> None:
    digest = read(folder, GOOD).pairs[0].page.digest
    file = write_rows(folder / "more.jsonl", [GOOD, {"query": "When?", "image": "imgs/1.png"}])
    with pytest.raises(DataError, match=rf"its page 'imgs/0.png' \(content {digest[:8]}\) is 'page-7' of the test set"):
        read_training_pairs([str(file)], settings(folder), RULES, tested_pages={digest: "page-7"})


def test_a_question_that_the_model_cannot_read_counts_as_bad(folder: Path) -> None:
    def check(query: str) -> None:
        raise BadRecordError("long question", f"{query} is too long")

    file = write_rows(folder / "pairs.jsonl", [GOOD])
    with pytest.raises(DataError, match=r"line 1: Who\? is too long"):
        read_training_pairs([str(file)], settings(folder), RULES, check_query=check)


def test_pairs_come_back_from_their_table_as_they_were(folder: Path) -> None:
    rows = [{**GOOD, "negatives": ["imgs/1.png"], "weight": 2}, {"query": "中?", "text": "seite", "source": "s"}]
    pairs = read(folder, *rows).pairs
    write_pairs(folder / "data" / "table.parquet", pairs)
    assert read_pairs(folder / "data" / "table.parquet") == pairs


def test_a_damaged_table_says_how_to_go_on(folder: Path) -> None:
    (folder / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"table\.parquet, the training pairs of the run, cannot be read .*remove it"):
        read_pairs(folder / "table.parquet")


def test_every_pair_gets_as_many_negatives_as_are_asked_for() -> None:
    def page(name: str) -> TrainingPage:
        return TrainingPage(image=None, text=name, digest=name)

    pair = TrainingPair(query="q", page=page("right"), negatives=(page("a"), page("b")))
    assert [found.digest for found in chosen_negatives(pair, 3)] == ["a", "b", "a"]
    alone = TrainingPair(query="q", page=page("right"))
    assert [found.digest for found in chosen_negatives(alone, 2)] == ["right", "right"]
    assert chosen_negatives(alone, 0) == ()
