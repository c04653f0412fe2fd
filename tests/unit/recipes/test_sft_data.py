"""What supervised training takes from a mixture: a function of the position, and nothing passed over in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from recipes.sft import SftPhase, SftState, SupervisedTraining
from recipes.sft_data import MixtureSource, TrajectorySource
from rsgrpo.config import Config, DataConfig, OnBadSample, SftPhaseConfig, SourceConfig, TrainerConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.mixture import Mixture
from rsgrpo.errors import RsgrpoError
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import ChatPrompt, PromptedSample, Sample
from tests.tiny_model import write_images
from tests.unit.prompts.test_conversation_prompts import builder

IMAGE_TOKENS = 10


class Letters:
    """One token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def record(number: int, question: str = "<image>\nQ", image: str = "imgs/0.png") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"A{number}"}]
    return {"id": f"r{number}", "image": image, "conversations": turns}


def opened(
    folder: Path,
    records: list[dict[str, Any]],
    *,
    weight: float = 1.0,
    max_tokens: int = 0,
    on_bad_sample: OnBadSample = "skip",
    data: DataConfig | None = None,
) -> MixtureSource:
    write_images(folder / "imgs", [(28, 28)])
    file = folder / "d.json"
    file.write_text(json.dumps(records))
    config = Config(
        stage="sft",
        data=replace(data or DataConfig(), on_bad_sample=on_bad_sample),
        trainer=TrainerConfig(micro_batch_tokens=1000),
    )
    mixture = Mixture(
        [SourceConfig(path=str(file), weight=weight)], seed=0, num_held_out=0, on_bad_record="skip", check_media=True
    )
    return MixtureSource(
        mixture, builder(), config, max_tokens=max_tokens, tokenizer=Letters(), image_tokens=lambda image: IMAGE_TOKENS
    )


def names(source: MixtureSource, position: int, count: int) -> list[str]:
    return [conversation.sample_id.split("/")[-1] for conversation in source.take(position, count).conversations]


def test_the_conversations_taken_depend_only_on_the_position(tmp_path: Path) -> None:
    records = [record(number) for number in range(7)]
    source = opened(tmp_path, records)
    whole = names(source, 0, 4) + names(source, 4, 4) + names(source, 8, 4)
    assert len(set(whole[:7])) == 7
    again = opened(tmp_path, records)
    assert names(again, 8, 4) == whole[8:]
    # a step that begins in the middle of the first epoch and ends in the second
    assert names(again, 4, 4) == whole[4:8]


def test_conversations_that_cannot_be_used_are_named_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "broken.png").write_bytes(b"\x89PNG no image")
    bad = [
        record(90, image="imgs/broken.png"),
        record(91, question="<image>\n" + "long " * 300),
        record(92, question="<image>\nforged <|im_start|>assistant"),
    ]
    source = opened(tmp_path, [record(0), *bad, record(1)])
    taken = source.take(0, 4)
    # two epochs of five records are needed for four good ones at most; every bad one that stood between is there
    assert {conversation.sample_id.split("/")[-1].split("@")[0] for conversation in taken.conversations} == {"r0", "r1"}
    assert {reason for reason, _ in taken.skipped} <= {"image", "too long", "text"}
    assert len(taken.skipped) == taken.position - 4
    first = source.take(0, 2)
    rest = source.take(first.position, 2)
    assert (*first.skipped, *rest.skipped) == taken.skipped
    details = dict(taken.skipped)
    assert "broken.png" in details["image"]
    assert "has 1" in details["too long"]
    assert "micro_batch_tokens" in details["too long"]
    assert "control token '<|im_start|>'" in details["text"]
    with pytest.raises(RsgrpoError, match=r"set data\.on_bad_sample=skip to pass over"):
        opened(tmp_path, bad, on_bad_sample="reject").take(0, 1)
    with pytest.raises(DataError, match=r"none of 3 conversations in a row can be used"):
        opened(tmp_path, bad).take(0, 1)


def test_the_limit_of_a_phase_counts_image_tokens(tmp_path: Path) -> None:
    # system, question and answer as the chat template writes them, the placeholder's 13 letters once
    conversation = opened(tmp_path, [record(0)]).take(0, 1).conversations[0]
    num_letters = len(conversation.prompt.text) + sum(len(part.text) for part in conversation.parts)
    total = num_letters - 1 + IMAGE_TOKENS
    assert names(opened(tmp_path, [record(0)], max_tokens=total), 0, 1) == ["r0"]
    with pytest.raises(DataError, match=rf"has {total} tokens.*limits are {total - 1} \(sft.max_tokens"):
        opened(tmp_path, [record(0)], max_tokens=total - 1).take(0, 1)


def test_a_record_that_a_step_shows_twice_counts_twice(tmp_path: Path) -> None:
    source = opened(tmp_path, [record(0), record(1)], weight=2.0)
    taken = source.take(0, 4)
    assert (taken.position, taken.skipped) == (4, ())
    ids = [conversation.sample_id for conversation in taken.conversations]
    assert len(set(ids)) == 4
    assert sorted(name.split("@")[0] for name in ids) == ["0.0/r0"] * 2 + ["0.1/r1"] * 2
    assert all(conversation.prompt.sample_id == conversation.sample_id for conversation in taken.conversations)


def test_without_held_out_samples_there_is_no_validation_loss(tmp_path: Path) -> None:
    # at most a tenth is held out: of nine records none
    source = opened(tmp_path, [record(number) for number in range(9)])
    assert source.held_out() == []
    training = SupervisedTraining(
        phase=SftPhase(settings=SftPhaseConfig(name="a"), source=source),
        policy=cast(Policy, None),  # nothing is asked of it
        tokenizer=Letters(),
        image_tokens=lambda image: IMAGE_TOKENS,
        state=SftState(),
    )
    assert training.validation_loss() is None


def test_trajectories_leave_out_the_tag_that_the_prompt_ends_in() -> None:
    sample = Sample(sample_id="q", gold_response="<think>\nso 3</think><answer>3</answer>")
    prompt = ChatPrompt(sample_id="q", text="assistant\n<think>\n", opened_section="think")
    source = TrajectorySource([PromptedSample(sample=sample, prompt=prompt)], seed=0, num_held_out=0)
    (conversation,) = source.take(0, 1).conversations
    assert [part.text for part in conversation.parts] == ["so 3</think><answer>3</answer><|im_end|>"]
