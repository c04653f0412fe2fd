"""Supervised training on conversations as a user starts it: two phases on a mixture, killed, resumed to the bit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.engine.train_process import finish, kill_once_there, start
from tests.tiny_model import write_images

pytestmark = pytest.mark.engine


def _data(folder: Path) -> tuple[Path, Path]:
    """Grounding talks of two turns, and questions on one page each; one record of each file is bad."""
    write_images(folder / "imgs", [(28, 28), (56, 28), (28, 56), (56, 56)])
    grounding: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    for number in range(24):
        images = [f"imgs/{number % 4}.png", f"imgs/{(number + 1) % 4}.png"]
        box = f"<|box_start|>({number},10),({number + 100},400)<|box_end|>"
        texts = ["<image><image>\nWhich is it?", f"The {number % 2 + 1}.", "Where?", box]
        prompts.append({"id": number, "image": images[0], "conversations": _turns("<image>\nWhat?", "a page")})
        grounding.append({"id": str(number), "images": images, "conversations": _turns(*texts)})
    grounding[3]["images"] = ["imgs/0.png"]
    prompts[4]["image"] = "imgs/gone.png"
    (folder / "grounding.json").write_text(json.dumps(grounding))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder / "grounding.json", folder / "questions.jsonl"


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def _start(run: Path, grounding: Path, prompts: Path, *overrides: str) -> subprocess.Popen[str]:
    boxes = f"{{format: mgrounding, path: {grounding}, weight: 2.0}}"
    conversations = f"{{format: llava, path: {prompts}, distractors: {{max_images: 2, relevance: named}}}}"
    optimizer = "{learning_rate: 1.0e-3, vision_learning_rate: 1.0e-9, schedule: cosine}"
    shared = f"optimizer: {optimizer}, samples_per_step: 8"
    first = f"{{name: first, mixture: [{boxes}, {conversations}], {shared}, warmup_frac: 0.3, max_steps: 4}}"
    phases = f"[{first}, {{name: second, mixture: [{boxes}], {shared}, max_steps: 2}}]"
    settings = ["stage=sft", f"run_dir={run}", f"sft.phases={phases}", "sft.save_every_steps=3"]
    settings += ["sft.validate_every_steps=3", "data.on_bad_sample=skip", "logging.wandb_mode=disabled"]
    return start(*settings, *overrides)


def test_two_phases_on_a_mixture_learn_and_resume_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    data = _data(tmp_path / "data")
    running, process = _start(whole, *data), _start(killed, *data)
    kill_once_there(process, killed / "checkpoints" / "sft-000003")
    output = finish(running)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # the warm-up of the first phase takes ceil(0.3 · 4) = 2 steps: half the rate, then all of it
    assert [row["policy/learning_rate"] for row in rows[:2]] == [5e-4, 1e-3]
    # the second phase starts its own cosine
    assert rows[4]["policy/learning_rate"] == 1e-3
    assert rows[-1]["policy/loss"] < rows[0]["policy/loss"] - 0.5
    assert [("policy/validation_loss" in row) for row in rows] == [False, False, True, True, False, True]
    assert "1 × markers" in output
    found = json.loads((whole / "data_report.json").read_text())
    assert found["images"]["read"] == sum(found["images"]["kinds"].values()) > 0
    report = found["phases"]
    assert [(row["phase"], row["num_records"], row["num_samples"]) for row in report] == [
        ("first", 24, 23),
        ("first", 24, 23),
        ("second", 24, 23),
    ]
    assert report[1]["skipped"][0]["reason"] == "missing media"

    assert "going on from sft-00000" in finish(_start(killed, *data, "resume=auto"))
    weights = [folder / "models" / "sft" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    # six steps move a weight by about their rate each: the vision tower's by 1e-9, the others' by 1e-3
    before, after = load_file(whole / "base_model" / "model.safetensors"), load_file(weights[0])
    moved = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    assert max(change for name, change in moved.items() if "visual." in name) < 1e-7
    assert min(change for name, change in moved.items() if ".q_proj." in name) > 1e-4
