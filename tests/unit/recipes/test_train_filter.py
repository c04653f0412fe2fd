"""``rsgrpo train-filter``: labelled pairs with distractors, and a head that the filter can use."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from PIL import Image

from recipes.filtering.command import main as filter_pages
from recipes.filtering.train_command import main
from rsgrpo.run.logger import read_metrics
from tests.tiny_model import build_tiny_model

SMALL = (
    "filter.yes=y",
    "filter.no=n",
    "filter.head_training.max_pixels=784",
    "filter.head_training.held_out_frac=0.34",
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(3):
        for page in range(2):
            Image.new("RGB", (30, 30), (80 * number + page,) * 3).save(f"{number}-{page}.png")
        images = [f"{number}-{page}.png" for page in range(2)]
        rows.append({"query": f"Which is {number}?", "answer": ["x"], "image": images, "posImgs": images[:1]})
    rows.append({**rows[0], "posImgs": []})
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "q.jsonl"


def test_pairs_name_every_page_once_and_gold_pages_alone_are_relevant(data, capsys) -> None:
    assert main([data, "--pairs-out", "pairs.jsonl", "--min-distractors", "2", "--max-distractors", "2"]) == 0
    assert "questions without a gold page: 1" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 4
    for number in range(3):
        own = {Path(row["image"]).name: row["label"] for row in rows if row["query"] == f"Which is {number}?"}
        assert len(own) == 4
        assert [name for name, label in own.items() if label] == [f"{number}-0.png"]


def test_a_trained_head_judges_pages(data, tmp_path, capsys) -> None:
    folder = build_tiny_model(tmp_path / "model")
    settings = (*SMALL, "filter.head_training.max_steps=1", "filter.head_training.batch_size=2",
                "filter.head_training.micro_batch_size=2")  # fmt: skip
    capsys.readouterr()
    assert main([data, "--model", str(folder), "--out", "head", "--max-distractors", "1", *settings]) == 0
    told = capsys.readouterr()
    assert "held-out AUC: " in told.out and "step 1/1  loss " in told.err
    assert main([data, "--model", str(folder), "--out", "head"]) == 2
    settings_read = yaml.safe_load(Path("head/config.yaml").read_text())
    assert (settings_read["data"], settings_read["max_distractors"]) == (data, 1)
    assert settings_read["filter"]["head_training"]["max_steps"] == 1  # given
    assert settings_read["filter"]["head_training"]["positive_weight"] == 5.0  # a default
    (row,) = read_metrics(Path("head/metrics.jsonl"))
    summary = json.loads(Path("head/summary.json").read_text())
    assert row.values == {"head/loss": summary["last_loss"]} and math.isfinite(summary["last_loss"])
    # Three questions with two pages, one of them gold, and none or one distractor; one of three is held out.
    assert 6 <= summary["num_pairs"] <= 9
    assert (summary["num_questions"], summary["num_relevant_pairs"], summary["num_steps"]) == (3, 3, 1)
    assert summary["held_out"]["num_questions"] == 1 and 0.0 <= summary["held_out"]["auc"] <= 1.0
    stages = "filter.stages=[{scorer: head, top_k: 1, threshold: 0, max_pixels: 784}]"
    capsys.readouterr()
    assert filter_pages(["Which is 1?", "0-0.png", "1-0.png", "--json", "filter.head=head", stages]) == 0
    assert len(json.loads(capsys.readouterr().out)["kept"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["q.jsonl"], "--model and --out belong together"),
        (["q.jsonl", "--model", "m"], "--model and --out belong together"),
        (["q.jsonl", "--model", "nowhere", "--out", "h"], "nowhere is no folder"),
        (["q.jsonl", "--pairs-out", "q.jsonl"], "q.jsonl is the data set itself; name another file with --pairs-out"),
        (["q.jsonl", "--pairs-out", "p", "--min-distractors", "2", "--max-distractors", "1"], "--max-distractors 1"),
        (["q.jsonl", "--pairs-out", "p", "--min-distractors", "-1"], "--min-distractors -1"),
        (["q.jsonl", "--pairs-out", "p", "filter.head_training.batch_size=3"], "is no multiple of micro_batch_size"),
    ],
    ids=["nothing", "no out", "no model", "itself", "fewer", "below 0", "batch"],
)
def test_a_call_that_cannot_work_is_one_sentence(data, capsys, arguments, words) -> None:
    before = Path(data).read_text()
    assert main(arguments) in (1, 2)
    assert words in capsys.readouterr().err
    assert Path(data).read_text() == before
