"""Predictions of other benchmarks than EVisRAG, and files as accidents leave them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsgrpo.evaluation.rescore import picture
from tests.examples import examples
from tests.unit.evaluation.rescoring import GOOD, evisrag, haystack, lines, rescored


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes most of the time, and says nothing here."""
    monkeypatch.setattr(picture, "draw_scores", lambda path, runs: path.write_bytes(b""))


def boxes(folder: Path) -> Path:
    """Three questions of one task; gold is the left upper quarter, half, three quarters."""
    file = folder / "MIG_data.json"
    item = {"task": "diff", "images": ["a.jpg", "b.jpg"], "additional_info": "", "need_format": True}
    file.write_text(json.dumps([item | {"question": f"q{n}", "answer": [0.0, 0.0, n / 4, n / 4]} for n in range(1, 4)]))
    return file


def actions(folder: Path) -> Path:
    """Four multiple-choice questions, whose answer is A."""
    place = folder / "ActionSequence"
    place.mkdir(exist_ok=True)
    instance = {"context": "{image#1}?", "images_path": ["x.png"], "choice_list": ["cat", "dog"]}
    row = {"task_instruction_id": 0, "task_instance": instance, "response": "cat"}
    meta = {"task_instruction": ["Answer."], "question_type": "multi-choice"}
    file = place / "ActionSequence.json"
    file.write_text(json.dumps({"meta_data": meta, "data": [row | {"sample_id": index} for index in range(4)]}))
    return file


def test_haystack_ids_are_numbers_with_or_without_zeros(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(lines([{"sample_id": name, "text": "yes"} for name in (0, "1", "002", 3.0)]))
    outcome = rescored("vhs/single", haystack(tmp_path), file)
    assert (outcome.value("official", "accuracy"), outcome.anomalies("official")) == (1.0, {})


def test_haystack_replies_flags_and_positions_of_other_types_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "replies"
    folder.mkdir()
    results: list[Any] = [
        {"result": {"response": "yes", "retrieval_output": [True, None], "retrieval_ground_truth": ["a", 0]}},
        {"result": {"response": None, "retrieval_output": [1, 0.0], "retrieval_ground_truth": [True, False]}},
        {"result": None},
        None,
    ]
    for number, content in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(content))
    outcome = rescored("vhs/single", haystack(tmp_path), folder)
    # One right of the two replies; records 2 and 3 hold none.
    assert outcome.value("official", "accuracy") == 0.5
    expected = {"retrieval_flags_unreadable": 2, "prediction_not_text": 1, "unreadable_row": 2, "original_raises": 1}
    assert expected.items() <= outcome.anomalies("official").items()
    file = tmp_path / "p.jsonl"
    positions = ["3", 2, "two", 1.5]
    rows = [{"sample_id": n, "text": "yes", "needle_position": position} for n, position in enumerate(positions)]
    file.write_text(lines([*rows, {"text": "yes"}, None]))
    outcome = rescored("vhs/positional", haystack(tmp_path), file)
    assert {"needle_position_odd": 3, "unreadable_row": 2}.items() <= outcome.anomalies("official").items()
    groups = outcome.run["modes"]["official"]["groups"]
    assert {group["name"] for group in groups if group["kind"] == "needle position"} == {"3", "2"}


def test_a_positional_record_needs_a_position_for_every_reply(tmp_path: Path) -> None:
    folder = tmp_path / "replies"
    folder.mkdir()
    images: dict[str, Any] = {"pos_image": ["a"], "neg_image": ["b"]}
    records = [images | {"response": ["yes", None]}, {"pos_image": None, "response": ["yes"]}]
    for number, content in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(content))
    outcome = rescored("vhs/positional", haystack(tmp_path), folder)
    # Record 0: right at position 0, null at 1. Record 1 does not say how many images there were.
    assert outcome.value("official", "accuracy") == 0.5
    assert {"prediction_not_text": 1, "unreadable_row": 1}.items() <= outcome.anomalies("official").items()


def answer(share: float) -> str:
    return f"(0,0),({round(1000 * share)},{round(1000 * share)})"


def test_a_box_answer_that_is_no_text_does_not_move_those_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "m_diff.json"
    rows: list[Any] = [{"task": "diff", "answer": None}, *({"task": "diff", "answer": answer(n / 4)} for n in (2, 3))]
    file.write_text(json.dumps([*rows, {"diff": {"TOTAL": 3}}]))
    outcome = rescored("mig_bench/diff", boxes(tmp_path), file)
    assert outcome.value("official", "iou") == pytest.approx(2 / 3)
    # A row that is no object leaves no doubt about its own place, but all about the places behind it.
    file.write_text(json.dumps([None, *rows[1:]]))
    outcome = rescored("mig_bench/diff", boxes(tmp_path), file)
    assert outcome.status == 1 and "write sample_id into every row" in outcome.err


def test_a_place_that_belongs_to_another_question_gets_no_answer(tmp_path: Path) -> None:
    # A run over questions 2 and 3 alone: its first row is not the answer to question 1.
    file = tmp_path / "m_diff.json"
    file.write_text(json.dumps([{"task": "diff", "question": f"q{n}", "answer": answer(n / 4)} for n in (2, 3)]))
    outcome = rescored("mig_bench/diff", boxes(tmp_path), file)
    assert outcome.status == 1 and "@diff#0" in outcome.err


SITES: list[tuple[str, Callable[[Path], Path], list[dict[str, Any]]]] = [
    ("evisrag/chartqa", evisrag, GOOD),
    ("vhs/single", haystack, [{"sample_id": f"{n:03d}", "text": "yes"} for n in range(4)]),
    ("mig_bench/diff", boxes, [{"task": "diff", "question": f"q{n}", "answer": answer(n / 4)} for n in range(1, 4)]),
    ("milebench/ActionSequence", actions, [{"sample_id": n, "pred_response": "A"} for n in range(4)]),
]


VALUES: list[Any] = [
    *(None, True, 0, -1, 4.0, 4.5, 1e300, float("nan"), float("inf"), 10**30, "", " 0 ", "0", "0.0", "x" * 3000),
    *("\ud83d", "\0", [], ["yes"], [None], {}, {"a": None}, [[["x"]]], "[/b]", "<answer>"),
]


CODECS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be", "latin-1", "utf-16-le"]


def odd_value(draw: random.Random) -> Any:
    """A copy: the next accident may change it, or put it into itself."""
    return copy.deepcopy(draw.choice(VALUES))


def mutated(rows: list[dict[str, Any]], draw: random.Random) -> bytes:
    """A prediction file after a few accidents."""
    changed: list[Any] = [dict(row) for row in rows]
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(changed))
        row = changed[place]
        kind = draw.randrange(7)
        if kind == 0 or not isinstance(row, dict) or not row:
            changed[place] = odd_value(draw)
        elif kind == 1:
            row[draw.choice([*row])] = odd_value(draw)
        elif kind == 2:
            row[draw.choice(["needle_position", "retrieved", "relevant", "id", "text", "question"])] = odd_value(draw)
        elif kind == 3:
            row[draw.choice(["output", "qid ", "Pred"])] = row.pop(draw.choice([*row]))
        elif kind == 4:
            changed.append(draw.choice(changed))
        elif kind == 5 and len(changed) > 1:
            del changed[place]
        else:
            for other in changed:
                if isinstance(other, dict) and other:
                    name = draw.choice([*row])
                    other[name] = odd_value(draw)
    forms = [lines(changed), lines(changed), json.dumps(changed, indent=draw.choice([None, 1]))]
    forms += [json.dumps({"results": changed}), json.dumps({str(n): record for n, record in enumerate(changed)})]
    text = draw.choice(forms)
    data = text.encode(draw.choice(CODECS), "replace")
    if draw.random() < 0.2:
        data = data[: draw.randrange(len(data) + 1)]
    if draw.random() < 0.2 and data:
        place = draw.randrange(len(data))
        data = data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    return data


@given(site=st.sampled_from(SITES), seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from([".jsonl", ".json", ".x"]))
@settings(examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_accident_gives_a_score_from_matched_predictions_or_one_sentence(
    tmp_path: Path, site: tuple[str, Callable[[Path], Path], list[dict[str, Any]]], seed: int, suffix: str
) -> None:
    benchmark, write_data, rows = site
    file = tmp_path / f"p{suffix}"
    file.write_bytes(mutated(rows, random.Random(seed)))
    outcome = rescored(benchmark, write_data(tmp_path), file)
    if outcome.status == 0:
        missing, total = len(outcome.run["missing"]), len(rows)
        assert missing < total
        # Whatever is not one clean answer to every question stands above the table.
        is_clean = outcome.out.startswith(f"{benchmark}: mean")
        assert is_clean == (not outcome.run["warnings"])
        if is_clean:
            assert not (missing or outcome.run["unknown_ids"] or outcome.run["problems"] or outcome.run["oddities"])
            assert outcome.run["modes"]["official"]["metrics"][outcome.run["modes"]["official"]["main_metric"]]["count"]
    else:
        assert outcome.status == 1
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and len(outcome.err) < 500
        assert "codec can't" not in outcome.err
