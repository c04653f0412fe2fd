"""Recorded groups read back as they were, whatever killed the writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsgrpo.run.recorder import read_groups, record_evaluation, record_groups, truncate_after
from rsgrpo.types import CreditedGroup, ImageRef
from tests.unit.report_run import SCOPES, credited_group, make_rollout, make_sample, response


def _group(sample_id: str = "q0") -> CreditedGroup:
    rollouts = [make_rollout(response("7", well_read=True), 0), make_rollout(response("4", well_read=True), 1)]
    image = ImageRef(path="imgs/1.png", parquet_file="/data/images.parquet", parquet_row=3)
    return credited_group(make_sample(sample_id, (image,)), rollouts, {"accuracy": [1.0, 0.0], "format": [1.0, None]})


def test_a_group_reads_back_with_its_credit(tmp_path: Path) -> None:
    file, group = tmp_path / "rollouts.jsonl", _group()
    record_groups(file, "rl", 3, [group])
    (read,) = read_groups(file)
    assert (read.stage, read.step, read.sample_id, read.answers) == ("rl", 3, "q0", ("7",))
    assert read.images == group.sample.images
    for found, credited in zip(read.rollouts, group.rollouts, strict=True):
        assert found.text == credited.rollout.text
        assert found.token_char_starts == tuple(credited.rollout.token_char_starts.tolist())
        # six significant digits of a float32
        assert found.positive_weights == pytest.approx(credited.positive_weights.tolist(), rel=1e-5)
        assert found.negative_weights == pytest.approx(credited.negative_weights.tolist(), rel=1e-5)
        assert found.rewards[0].spans == credited.rewards[0].spans
    # r = [1, 0]: mean .5, unbiased std .70711, so A = +-.707107 in six digits
    assert [rollout.rewards[0].advantage for rollout in read.rollouts] == [0.707107, -0.707107]
    assert read.rollouts[1].rewards[1].value is None


def test_scope_tokens_count_all_groups_of_the_step_not_only_kept_ones(tmp_path: Path) -> None:
    file, groups = tmp_path / "rollouts.jsonl", [_group("a"), _group("b"), _group("c")]
    record_groups(file, "rl", 1, groups, num_kept=1)
    (read,) = read_groups(file)
    assert SCOPES["format"] == ("begin", "end")  # the whole response: N_k is every token of the three groups
    whole = sum(rollout.num_tokens for group in groups for rollout in group.rollouts)
    assert read.scope_tokens["format"] == whole
    assert 0 < read.scope_tokens["accuracy"] < whole


def test_a_half_written_last_line_is_left_out_and_later_lines_survive(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    record_groups(file, "rl", 1, [_group()])
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    assert [group.step for group in read_groups(file)] == [1]
    record_groups(file, "rl", 2, [_group()])
    assert [group.step for group in read_groups(file)] == [1, 2]


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    for step in (1, 2, 3):
        record_groups(straight, "rl", step, [_group()])
    for step in (1, 2):
        record_groups(resumed, "rl", step, [_group()])
    with resumed.open("a") as file:
        file.write('{"stage": "rl", "st')
    assert truncate_after(resumed, "rl", 1) == 1
    for step in (2, 3):
        record_groups(resumed, "rl", step, [_group()])
    assert resumed.read_bytes() == straight.read_bytes()


def test_truncation_leaves_other_stages_alone(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    record_evaluation(file, "after_sft", [make_sample()], [make_rollout("<answer>7</answer>")], step=9)
    record_groups(file, "rl", 5, [_group()])
    truncate_after(file, "rl", 0)
    assert [group.stage for group in read_groups(file)] == ["after_sft"]


def test_an_evaluation_has_scores_and_no_credit(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    record_evaluation(file, "after_rl", [make_sample()], [make_rollout("<answer>7</answer>")], [{"em": 1.0}])
    (group,) = read_groups(file)
    (rollout,) = group.rollouts
    assert (rollout.rewards[0].name, rollout.rewards[0].value) == ("em", 1.0)
    assert rollout.positive_weights == () and rollout.negative_weights == ()


def test_an_evaluation_that_ran_twice_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    for answer in ("4", "7"):
        record_evaluation(file, "after_rl", [make_sample()], [make_rollout(f"<answer>{answer}</answer>")])
    assert [group.rollouts[0].text for group in read_groups(file)] == ["<answer>7</answer>"]


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps({"stage": "rl", "step": 1, "sample_id": "q9"}) + "\n")
    with pytest.raises(ValueError, match="'q9'"):
        read_groups(file)
    file.write_text("{broken}\n")
    with pytest.raises(ValueError, match="line 1"):
        read_groups(file)
