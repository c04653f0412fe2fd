"""Generated data: pages show what gold says, and honest responses earn full rewards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rewards.base import RewardCall
from rewards.functions.format import sections
from rewards.functions.grounding import box_count, iou
from rewards.functions.haystack import needle_found, needle_lines, yes_no
from rewards.functions.multiple_choice import choice
from rsgrpo.config import DataConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.synthetic.shapes import COLOURS, KINDS, draw, place
from rsgrpo.data.synthetic.tasks import TASKS, write_task
from rsgrpo.types import Sample
from tests.unit.reward_calls import make_call


def written(task: str, folder: Path, *, num_train: int = 12, seed: int = 3) -> tuple[Sample, ...]:
    write_task(task, folder, num_train=num_train, num_test=2, num_images=3, image_pixels=112, seed=seed)
    return load_samples(str(folder / "train.jsonl"), DataConfig(), is_training=True).samples


def honest(sample: Sample) -> RewardCall:
    return make_call(sample, sample.gold_response)


def test_boxes_are_exactly_the_pixels_of_their_shape() -> None:
    for seed in range(20):
        for shape in place(KINDS[:4], 112, np.random.default_rng(seed)):
            pixels = np.asarray(draw([shape], 112))
            rows, columns = np.nonzero((pixels == COLOURS[shape.colour]).all(axis=2))
            assert shape.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_grounding_gold_lies_on_its_page(tmp_path: Path) -> None:
    for sample in written("grounding", tmp_path):
        (box,) = sample.boxes
        assert sample.positive_images == (box.image_index,)
        colour = COLOURS[sample.question.split()[2]]
        image = np.asarray(load_image(sample.images[box.image_index], ImageRules()))
        inside = image[round(112 * box.top) : round(112 * box.bottom), round(112 * box.left) : round(112 * box.right)]
        assert (inside == colour).all(axis=2).mean() > 0.45  # half of its box for a triangle, pi / 4 for a circle
        assert iou(honest(sample)) == pytest.approx(1.0, abs=0.05)  # thousandths are rounded
        assert box_count(honest(sample)) == 1.0


def test_haystack_gold_is_balanced_and_earns_everything(tmp_path: Path) -> None:
    samples = written("haystack", tmp_path, num_train=40)
    assert {answer for sample in samples for answer in sample.answers} == {"yes", "no"}
    for sample in samples:
        call = honest(sample)
        assert yes_no(call) == needle_found(call) == sections(call, ["evidence", "answer"]) == 1.0
        assert needle_lines(call) == [1.0] * 3


def test_choices_are_read_with_their_gold(tmp_path: Path) -> None:
    samples = written("choice", tmp_path)
    assert all(sorted(sample.choices) == sorted(COLOURS) for sample in samples)
    assert all(choice(honest(sample)) == sections(honest(sample), ["think", "answer"]) == 1.0 for sample in samples)
    assert len({sample.answers for sample in samples}) > 1


def test_a_larger_data_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    for task in TASKS:
        few, many = written(task, tmp_path / f"{task}-few"), written(task, tmp_path / f"{task}-many", num_train=20)
        assert [sample.gold_response for sample in few] == [sample.gold_response for sample in many[:12]]
        other = written(task, tmp_path / f"{task}-other", seed=4)
        assert [sample.gold_response for sample in few] != [sample.gold_response for sample in other]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"boxes": [{"box": [0.5, 0.1, 0.2, 0.4]}]}, "no rectangle on the page"),
        ({"boxes": [{"box": [0.1, 0.1, 0.2, 1.4]}]}, "no rectangle on the page"),
        ({"boxes": [{"box": [0.1, 0.1, 0.2]}]}, "must hold objects"),
        ({"boxes": [{"box": [0.1, 0.1, 0.2, "x"]}]}, "four numbers"),
        ({"boxes": [{"box": [0.1, 0.1, 0.2, float("nan")]}]}, "no rectangle on the page"),
        ({"boxes": [{"box": [0.1, 0.1, 0.2, 0.4], "image": "imgs/9.png"}]}, "none of the item's images"),
        ({"boxes": 3}, "list of objects"),
        ({"choices": "A B"}, "list of texts"),
        ({"choices": ["a", "a"]}, "all different"),
    ],
)
def test_bad_gold_columns_are_named(tmp_path: Path, columns: dict[str, object], problem: str) -> None:
    written("grounding", tmp_path)
    file = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[4] |= columns
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=rf"1 of 12 items.*\n.*line 5: .*{problem}"):
        load_samples(str(file), DataConfig(), is_training=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>t</think>\n<answer>B</answer>", 1.0),
        (" <think>t</think><answer>B</answer>\n", 1.0),
        ("<answer>B</answer><think>t</think>", 0.0),
        ("<think>t</think> so <answer>B</answer>", 0.0),
        ("<think>t</think><answer>B</answer> done", 0.0),
        ("<think>t</think><answer>B</answer><answer>B</answer>", 0.0),
        ("<evidence>e</evidence><think>t</think><answer>B</answer>", 0.0),
        ("<think>t<answer>B</answer></think>", 0.0),
        ("", 0.0),
    ],
)
def test_some_sections_only(text: str, expected: float) -> None:
    assert sections(make_call(Sample(sample_id="q"), text), ["think", "answer"]) == expected
