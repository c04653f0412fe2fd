"""Our benchmarks as lmms-eval's task functions see them; lmms-eval itself is not needed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from recipes.evaluation.lmms_tasks import main, task_name
from rsgrpo.evaluation.prompts.lmms_tasks import (
    aggregate_official,
    aggregate_strict,
    doc_to_messages,
    doc_to_target,
    doc_to_text,
    doc_to_visual,
    process_results,
)
from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench


def _rows(root: Path, tasks: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    main(["--tasks", tasks, "--data-root", str(root), "--out", str(root / "tasks")])
    names = capsys.readouterr().out.split()
    assert all((root / "tasks" / f"{name}.yaml").is_file() for name in names)
    return {
        name: [json.loads(line) for line in (root / "tasks" / f"{name}.jsonl").read_text().splitlines()]
        for name in names
    }


def _share(docs: list[dict[str, Any]], responses: list[str]) -> tuple[float, float]:
    items = [process_results(doc, [response]) for doc, response in zip(docs, responses, strict=True)]
    official, strict = ([item[mode] for item in items] for mode in ("official", "strict"))
    return aggregate_official(official), aggregate_strict(strict)


def test_every_family_is_asked_in_its_own_words_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (write_evisrag, write_milebench, write_haystacks, write_mig_bench):
        write(tmp_path)
    rows = _rows(tmp_path, "evisrag/chartqa,milebench/ActionSequence,vhs/single,mig_bench", capsys)
    assert list(rows) == [
        "rsgrpo_evisrag_chartqa",
        "rsgrpo_milebench_actionsequence",
        "rsgrpo_vhs_single_2",
        "rsgrpo_vhs_single_3",
        "rsgrpo_mig_bench",
    ]
    for docs in rows.values():
        assert len(docs) == 2
        for doc in docs:
            turns = doc_to_messages(doc)
            parts = [part for turn in turns for part in turn["content"]]
            files = [part["url"] for part in parts if part["type"] == "image"]
            assert files
            assert all(Path(file).is_absolute() and Path(file).is_file() for file in files)
            assert [image.mode for image in doc_to_visual(doc)] == ["RGB"] * len(files)
            assert doc_to_text(doc) == "".join(part["text"] for part in parts if part["type"] == "text")
    haystack = rows["rsgrpo_vhs_single_3"]
    assert [part["type"] for part in doc_to_messages(haystack[0])[-1]["content"]] == ["image"] * 3 + ["text"]
    assert [doc_to_target(doc) for doc in haystack] == ["yes", "no"]
    # Official reads `yes-no` as neither word; both modes count a lone yes.
    assert _share(haystack, ["Yes.", "yes-no"]) == (0.5, 0.5)
    assert doc_to_target(rows["rsgrpo_evisrag_chartqa"][0]) == "Q3"
    assert doc_to_target(rows["rsgrpo_mig_bench"][0]).startswith("(0.1, 0.2, 0.5, 0.6)")
    assert _share(rows["rsgrpo_mig_bench"], ["(100,200),(500,600)", "nothing"]) == (0.5, 0.5)


def test_pages_in_a_table_are_shown_as_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evisrag(tmp_path)
    folder = tmp_path / "EVisRAG-Test-ChartQA"
    files = sorted((folder / "imgs").iterdir())
    table = [{"image": {"bytes": file.read_bytes()}, "path": f"imgs/{file.name}"} for file in files]
    datasets.Dataset.from_list(table).to_parquet(str(folder / "images.parquet"))
    for file in files:
        file.unlink()
    (doc, _) = _rows(tmp_path, "evisrag/chartqa", capsys)["rsgrpo_evisrag_chartqa"]
    images = [part["url"] for part in doc_to_messages(doc)[-1]["content"] if part["type"] == "image"]
    assert [image.size for image in images] == [(28, 28)] * 3
    assert [image.tobytes() for image in images] == [image.tobytes() for image in doc_to_visual(doc)]


def test_task_names_are_words() -> None:
    assert task_name("vhs/single@10") == "rsgrpo_vhs_single_10"
    assert task_name("milebench/Spot-the-Diff") == "rsgrpo_milebench_spot_the_diff"


def test_a_task_file_says_which_section_holds_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evisrag(tmp_path)
    out = tmp_path / "tasks"
    arguments = ["--tasks", "evisrag/chartqa", "--data-root", str(tmp_path), "--out", str(out)]
    response = "<plan>Q2</plan><final>Q3</final>"
    shares = []
    for more in ([], ["--answer-section", "final"]):
        assert main([*arguments, *more]) == 0
        docs = [json.loads(line) for line in (out / "rsgrpo_evisrag_chartqa.jsonl").read_text().splitlines()]
        shares.append(_share(docs, [response] * len(docs)))
    # q0 is right, q1 cannot be answered
    assert [strict for _, strict in shares] == [0.0, 0.5]
    assert shares[1][0] == pytest.approx(0.5, abs=1e-6)
    assert main([*arguments, "--answer-section", "a b"]) != 0
    assert "--answer-section='a b' is no name of a tag" in capsys.readouterr().err
