"""Train the embedder and the answering policy of a world with the normal pipeline; what is finished is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haystack_data import Lesson, tokenizer_corpus, write_training_data
from haystack_worlds import World
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from rsgrpo.config import QuickstartConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.model.quickstart_model import build_quickstart_model

REPOSITORY = Path(__file__).resolve().parent.parent
_VOCABULARY_TOKENS = {"tickets": 768, "stamps": 1536}  # every word of a chosen caption becomes one token


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The two models of a world.

    Attributes:
        start: the folder of the random weights that they started from.
        embedder: the folder of the embedder.
        policy: the folder of the answering policy.
    """

    start: Path
    embedder: Path
    policy: Path


def train_world(
    world: World,
    folder: Path,
    *,
    embedder_steps: Sequence[int],
    lessons: Sequence[Lesson],
    num_first_lessons: int,
    threads: int,
    seed: int,
) -> Trained:
    """Write the training data, train the policy from random weights, and the embedder from the policy.

    Lessons that are left for afterwards go on from the embedder's first round: telling captions apart by a contrastive
    loss makes them known in far fewer pages than writing them does.

    Args:
        world: the world.
        folder: the folder of everything that is made; an interrupted run goes on there.
        embedder_steps: optimizer steps of 64 pairs, in rounds: each goes on from the model of the one before, with a
            warm-up and a decay of its own.
        lessons: the policy's rounds, each with data of its own.
        num_first_lessons: how many of them come before the embedder; the others go on from its weights.
        threads: CPU threads of every process.
        seed: the seed of data, weights and order.

    Returns:
        The folders of the two models.

    Raises:
        RsgrpoError: a run failed; its log is named.
    """
    data = [folder / f"data-{number}" for number in range(1, 1 + len(lessons))]
    for number, lesson in enumerate(lessons):
        write_training_data(world, data[number], lesson, seed + number)
    sizes = QuickstartConfig(vocabulary_tokens=_VOCABULARY_TOKENS[world.name])
    start = build_quickstart_model(sizes, folder / "start", seed, tokenizer_corpus(data[0]))

    def train_policy(model: Path, numbers: Sequence[int]) -> Path:
        for number in numbers:
            settings = policy_settings(data[number], model, lessons[number], seed + number)
            model = run(folder / f"policy-{number + 1}", threads, settings) / "models" / "sft"
        return model

    def train_embedder(model: Path, number: int) -> Path:
        settings = embedder_settings(data[0], model, embedder_steps[number], seed + number)
        return run(folder / f"embedder-{number + 1}", threads, settings) / "models" / "retriever"

    policy = train_policy(start, range(num_first_lessons))
    embedder = train_embedder(policy, 0)
    if num_first_lessons < len(lessons):
        policy = policy_from_embedder(embedder, policy, folder / "policy-from-embedder")
        policy = train_policy(policy, range(num_first_lessons, len(lessons)))
    for number in range(1, len(embedder_steps)):
        embedder = train_embedder(embedder, number)
    return Trained(start=start, embedder=embedder, policy=policy)


def policy_from_embedder(embedder: Path, policy: Path, folder: Path) -> Path:
    """Write a policy that has an embedder's weights: both are the same model, the head is tied to the embedding.

    Args:
        embedder: the folder of the embedder.
        policy: the folder of the policy that the embedder was trained from; its tokenizer and processor are taken.
        folder: the folder to write; a complete one is left as it is.

    Returns:
        The same ``folder``.
    """
    if not folder.exists():
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy)
        model.model.load_state_dict(Qwen2_5_VLModel.from_pretrained(embedder).state_dict())
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            AutoProcessor.from_pretrained(policy).save_pretrained(partial)
    return folder


def embedder_settings(data: Path, start: Path, steps: int, seed: int) -> list[str]:
    """Write the settings of the embedder's run."""
    return [
        "recipe=retriever_quickstart",
        f"seed={seed}",
        f"model.path={start}",
        f"retriever.data=[{data / 'pairs.jsonl'}]",
        "retriever.temperature=0.05",
        "retriever.batch_size=64",
        "retriever.micro_batch_size=64",
        "retriever.optimizer.beta2=0.95",
        "retriever.optimizer.weight_decay=0.0",
        "retriever.num_epochs=100",
        f"retriever.max_steps={steps}",
        "retriever.validate_every_steps=200",
    ]


def policy_settings(data: Path, start: Path, lesson: Lesson, seed: int) -> list[str]:
    """Write the settings of the policy's supervised run."""
    return [
        "recipe=quickstart",
        "stage=sft",
        f"seed={seed}",
        f"model.path={start}",
        f"data.mixture=[{{format: evisrag, path: {data / 'train.jsonl'}}}]",  # no test: then no engine takes memory
        "data.max_images=10",
        *PROMPT_SETTINGS,
        "sft.optimizer.schedule=cosine",
        "sft.num_epochs=100",
        f"sft.max_steps={lesson.num_steps}",
        "sft.save_every_steps=50",
        f"sft.samples_per_step={lesson.step_questions}",
    ]


PROMPT_SETTINGS = ("prompt.image_order=markers", "prompt.system=You are a helpful assistant.")
"""Prompts come ready from the data; the filter's question has the same system turn."""


def run(folder: Path, threads: int, settings: list[str]) -> Path:
    """Run ``train.py`` unless it has finished there; its output goes to a file beside the folder.

    Args:
        folder: the run folder.
        threads: CPU threads of trainer and engine.
        settings: the settings of the run.

    Returns:
        The run folder.

    Raises:
        RsgrpoError: the run failed.
    """
    if (folder / "summary.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    command = [sys.executable, "train.py", *settings, f"run_dir={folder}", f"name={folder.name}", "resume=auto"]
    command += ["logging.wandb_mode=disabled", f"rollout.num_threads={threads}", f"trainer.num_threads={threads}"]
    command += ["rollout.kv_cache_gib=0.25"]  # the small model keeps 170,000 tokens in it
    print(f"{folder.name}: {log}", flush=True)
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RsgrpoError(f"{folder.name} failed; see {log}")
    return folder
