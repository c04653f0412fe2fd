"""Prediction files as evaluation scripts leave them: what is read, what is named, and never a score from nothing."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
from pathlib import Path

import pytest

from rsgrpo.evaluation.rescore import picture
from rsgrpo.evaluation.rescore.__main__ import main
from tests.unit.evaluation.rescoring import GOOD, Outcome, evisrag, haystack, lines, rescored

DRAW_SCORES = picture.draw_scores


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes most of the time, and says nothing here."""
    monkeypatch.setattr(picture, "draw_scores", lambda path, runs: path.write_bytes(b""))


def scored(tmp_path: Path, content: str | bytes, name: str = "preds.jsonl", *more: str) -> Outcome:
    """EVisRAG predictions of this content, scored."""
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rescored("evisrag/chartqa", evisrag(tmp_path), file, *more)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", lines(GOOD)),
        ("list.jsonl", json.dumps(GOOD, indent=1)),
        ("mapping.json", json.dumps({row["qid"]: row["pred"] for row in GOOD})),
        ("mapping_of_rows.json", json.dumps({row["qid"]: {"pred": row["pred"]} for row in GOOD})),
        ("nested.json", json.dumps({"model": "m", "results": GOOD})),
        ("nested_mapping.json", json.dumps({"predictions": {row["qid"]: row["pred"] for row in GOOD}})),
        ("beside.json", json.dumps({"meta": {"t": 0.1}, "Results": {row["qid"]: row["pred"] for row in GOOD}})),
        ("crlf.jsonl", lines(GOOD).replace("\n", "\r\n")),
        ("blank_lines.jsonl", "\n\n" + lines(GOOD).replace("\n", "\n \n")),
        ("none.txt", lines(GOOD)),
        ("utf8_mark.jsonl", codecs.BOM_UTF8 + lines(GOOD).encode()),
        ("utf16.jsonl", lines(GOOD).encode("utf-16")),
        ("utf16_be.jsonl", codecs.BOM_UTF16_BE + lines(GOOD).encode("utf-16-be")),
        ("utf16_no_mark.jsonl", lines(GOOD).encode("utf-16-le")),
        ("utf32.json", json.dumps(GOOD).encode("utf-32")),
        ("padded_with_nul.jsonl", lines(GOOD).encode() + b"\0" * 100),
        ("text_ids.jsonl", lines([row | {"qid": f" {row['qid']}\n"} for row in GOOD])),
        ("float_ids.jsonl", lines([row | {"qid": float(row["qid"])} for row in GOOD])),
        ("empty_twin.jsonl", lines([row | {"text": ""} for row in GOOD])),
        ("null_twin.jsonl", lines([{"qid": row["qid"], "pred": None, "text": row["pred"]} for row in GOOD])),
        ("other_ids.jsonl", lines([row | {"id": 99, "index": 7, "sample_id": "x"} for row in GOOD])),
    ],
)
def test_a_whole_file_is_read_by_what_it_holds(tmp_path: Path, name: str, content: str | bytes) -> None:
    outcome = scored(tmp_path, content, name)
    assert outcome.status == 0, outcome.err
    assert outcome.value("official", "em") == outcome.value("strict", "em") == 1.0
    assert outcome.anomalies("official") == {} and "warning" not in outcome.out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "is empty"),
        ("nul.jsonl", b"\0" * 4096, "is empty"),
        ("none.json", "[]", "holds no predictions"),
        ("object.json", "{}", "holds no predictions"),
        ("scalar.json", '"yes"', "got str"),
        ("table.csv", "qid,pred\n0,word0\n", "table"),
        ("table.tsv", "qid\tpred\n0\tword0\n", "table"),
        ("words.txt", "word0\nword1\n", "plain text"),
        ("pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        ("packed.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("table.parquet", b"PAR1" + b"\0" * 40, "parquet"),
        (
            "latin.jsonl",
            lines(GOOD).replace("word0", "\\u00e9").encode() + b'{"qid": 9, "pred": "\xe9t\xe9"}\n',
            "0xe9",
        ),
        ("half.json", json.dumps(GOOD)[:-10], "no whole JSON"),
        ("half_of_one.jsonl", lines(GOOD[:1])[:-10], "no whole JSON"),
        ("deep.json", "[" * 100_000, "no whole JSON"),
        ("two_lists.json", json.dumps({"a": GOOD, "b": GOOD}), "lists under a, b"),
        ("failed.json", json.dumps({"error": "out of memory"}), "seen are 'error'"),
        ("no_results.json", json.dumps({"results": []}), "keys results"),
        ("texts.json", json.dumps(["word0", "word1"]), "none of 2 rows is a prediction"),
        ("column.jsonl", lines([{"qid": row["qid"], "output": row["pred"]} for row in GOOD]), "columns: qid, output"),
        ("no_id.jsonl", lines([{"name": row["qid"], "pred": row["pred"]} for row in GOOD]), "--id-column"),
        ("fraction.jsonl", lines([row | {"qid": row["qid"] + 0.5} for row in GOOD]), "got 0.5"),
        ("zeros.jsonl", lines([row | {"qid": f"{row['qid']:03d}"} for row in GOOD]), "'000' looks like '0'; 4 such"),
        ("point.jsonl", lines([row | {"qid": f"{row['qid']}.0"} for row in GOOD]), "'0.0' looks like '0'"),
        ("prefix.jsonl", lines([row | {"qid": f"chartqa_{row['qid']}"} for row in GOOD]), "'chartqa_0' looks like '0'"),
        ("other.jsonl", lines([row | {"qid": 50 + row["qid"]} for row in GOOD]), "seen are '50', '51', '52' …, wanted"),
        ("null.jsonl", lines([row | {"pred": None} for row in GOOD]), "none of 4 answers is a text"),
        ("nan.jsonl", lines([row | {"pred": float("nan")} for row in GOOD]), "none of 4 answers is a text"),
    ],
)
def test_nothing_to_score_is_one_sentence_and_no_score(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    outcome = scored(tmp_path, content, name)
    assert outcome.status == 1
    assert message in outcome.err
    assert outcome.err.count("\n") == 1 and len(outcome.err) < 500
    assert not (tmp_path / "out" / "scores.json").exists()


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"key": row["qid"], "qid": 99, "output": row["pred"], "pred": "x"} for row in GOOD]
    outcome = scored(tmp_path, lines(rows), "p.jsonl", "--id-column", "key", "--prediction-column", "output")
    assert outcome.value("official", "em") == 1.0


def test_half_a_character_at_the_end_is_half_a_line(tmp_path: Path) -> None:
    # The writer was killed inside é, two bytes in UTF-8: row 3 is lost, the three in front of it are not.
    content = lines(GOOD[:3]).encode() + '{"qid": 3, "pred": "é'.encode()[:-1]
    outcome = scored(tmp_path, content)
    assert (outcome.status, outcome.anomalies("official")["unreadable_row"]) == (0, 1)


@pytest.mark.parametrize("value", [None, 5, ["<answer>word0</answer>"], {"text": "x"}, True, float("nan"), []])
def test_an_answer_that_is_no_text_keeps_its_place_and_is_named_above_the_table(tmp_path: Path, value: object) -> None:
    outcome = scored(tmp_path, lines([GOOD[0] | {"pred": value}, *GOOD[1:]]))
    # The original's script stops at each of these; here the item scores 0 of 4 and is counted.
    assert outcome.value("official", "em") == pytest.approx(3 / 4)
    assert {"prediction_not_text": 1, "original_raises": 1}.items() <= outcome.anomalies("official").items()
    # Strict mode reads a list of one text; a number has no answer section.
    assert outcome.value("strict", "em") == (1.0 if value == ["<answer>word0</answer>"] else 3 / 4)
    first, *_ = outcome.out.splitlines()
    assert first.startswith("warning: preds: 1 x prediction_not_text") and "id 0" in first


def test_rows_that_are_lost_stand_above_the_table_with_their_count(tmp_path: Path) -> None:
    outcome = scored(tmp_path, lines(GOOD[:2]) + "oops\n" + '{"qid": 2}\n' + lines([{"qid": 7, "pred": "x"}]))
    # Official as the original where it runs: the mean over rows, here the two that could be read.
    assert (outcome.value("official", "em"), outcome.value("strict", "em")) == (1.0, 0.5)
    above = outcome.out.partition("evisrag/chartqa: mean")[0]
    assert "2 of 4 questions without a prediction ('2', '3'); official is over 2 items, strict over 4" in above
    assert "2 rows left out that are no prediction" in above and "line 3" in above
    assert "1 prediction with an id that no question has ('7')" in above
    assert len(outcome.run["warnings"]) == 3


def test_a_few_near_misses_are_named_in_the_warning(tmp_path: Path) -> None:
    outcome = scored(tmp_path, lines([*GOOD[:3], {"qid": "3.0", "pred": "x"}]))
    assert "'3.0' looks like '3'" in outcome.out.partition("evisrag/chartqa: mean")[0]


def test_doubled_names_in_an_object_from_id_to_answer_are_counted(tmp_path: Path) -> None:
    content = '{"0": "<answer>word0</answer>", "0": "<answer>x</answer>", "1": "<answer>word1</answer>"}'
    assert scored(tmp_path, content, "p.json").run["doubled_ids"] == ["0"]


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    content = '{"qid": "0\\ud83d", "pred": "x"}\n{"qid": 0, "pred": "<answer>word0 \\ud83d</answer>"}\n' + lines(
        GOOD[1:]
    )
    outcome = scored(tmp_path, content)
    # word0 and the stand-in against word0: all of its words are there, and one more.
    assert outcome.value("official", "accuracy") == 1.0 and outcome.value("official", "em") == 3 / 4
    assert outcome.anomalies("strict")["surrogates_replaced"] == 1


def test_names_that_look_like_markup_or_formulas_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "draw_scores", DRAW_SCORES)
    outcome = scored(tmp_path, lines(GOOD), "_run[red] $1$ $ é.jsonl")
    assert outcome.status == 0 and "_run[red] $1$ $ é" in outcome.out


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 3]])
def test_a_comparison_says_what_only_one_run_answered(tmp_path: Path, rows: list[int]) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(lines([GOOD[index] for index in rows]))
    outcome = scored(tmp_path, lines(GOOD[1:]), "preds.jsonl", "--compare", str(other))
    # The first run answers 1, 2, 3.
    expected = {2: "1 questions are answered by both runs, 2 only by preds, 1 only by other", 4: "1 only by other"}
    assert expected[len(rows)] in outcome.out.partition("evisrag/chartqa: mean")[0]


def test_runs_without_a_common_question_are_not_compared(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(lines(GOOD[2:]))
    outcome = scored(tmp_path, lines(GOOD[:2]), "preds.jsonl", "--compare", str(other))
    assert outcome.status == 1 and "preds answers '0', '1', other '2', '3'" in outcome.err


def test_one_file_is_not_scored_as_every_task_of_a_family(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(lines(GOOD))
    for name, data in (("vhs", haystack(tmp_path)), ("evisrag", evisrag(tmp_path) / "top3_test.jsonl")):
        outcome = rescored(name, data, tmp_path / "p.jsonl")
        assert outcome.status == 1, outcome.out
    # A folder says which set it holds: the other four are left out.
    assert "would both be scored on" in outcome.err
    outcome = rescored("evisrag/docvqa", evisrag(tmp_path), tmp_path / "p.jsonl")
    assert outcome.status == 1 and "neither data nor predictions" in outcome.err


def test_a_terminal_without_the_letters_of_a_name_ends_no_run(tmp_path: Path) -> None:
    data, file = evisrag(tmp_path), tmp_path / "é中.jsonl"
    file.write_text(lines(GOOD[1:]))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(terminal):
        arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--predictions", str(file)]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    terminal.seek(0)
    assert terminal.read().startswith("warning: ??: 1 of 4 questions")


def test_an_output_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    data, file = evisrag(tmp_path), tmp_path / "p.jsonl"
    file.write_text(lines(GOOD))
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--predictions", str(file)]
        assert main([*arguments, "--out", str(file)]) == 1
    assert f"there already: {file};" in err.getvalue()
    assert err.getvalue().count("\n") == 1


def test_an_unusable_data_set_is_named(tmp_path: Path) -> None:
    data = evisrag(tmp_path)
    (data / "top3_test.jsonl").write_text('{"qid": 0}\n')
    (tmp_path / "p.jsonl").write_text(lines(GOOD))
    outcome = rescored("evisrag/chartqa", data, tmp_path / "p.jsonl")
    assert outcome.status == 1 and "no question that can be used" in outcome.err and len(outcome.err) < 500
