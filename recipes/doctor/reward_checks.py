"""Rewards: whether they load, find the gold that they need, and can judge a gold response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.doctor.check import Check, Subject, ok, problem, refused, warning
from rewards.base import RewardError
from rewards.plugins import LoadedReward, load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import Config
from rsgrpo.data.images.image_view import ImageView
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ChatPrompt, PromptedSample, Sample


def reward_checks(subject: Subject) -> Iterator[Check]:
    """Each reward by itself: one that fails does not hide the next."""
    config = subject.config
    if config is None:
        return
    loaded: list[LoadedReward] = []
    yield from _load(config, loaded)
    samples = subject.samples.get("rl", ())
    if loaded and samples:
        yield from _judge(subject, loaded, samples)


def _load(config: Config, loaded: list[LoadedReward]) -> Iterator[Check]:
    """Load the rewards into ``loaded``, and say of each one that cannot be loaded why."""
    for name, settings in config.scored_rewards.items():
        try:
            loaded += load_rewards({name: settings}, Path.cwd(), config.response.format)
        except RewardError as error:
            yield refused(f"reward {name}", error)
        except SystemExit as error:
            advice = "put what the file does as a script under if __name__ == '__main__'"
            yield problem(f"reward {name}", f"{settings.function}: loading it ends the program ({error.code})", advice)
    if loaded:
        yield ok("rewards", f"{', '.join(reward.name for reward in loaded)} can be loaded")
    elif not config.scored_rewards:
        yield ok("rewards", f"none are named, and stage={config.stage} needs none")


def _judge(subject: Subject, loaded: Sequence[LoadedReward], samples: Sequence[Sample]) -> Iterator[Check]:
    """Judge the gold of all samples, and one gold response as if it had been sampled."""
    from recipes.setup.reward_smoke_test import smoke_test_rewards  # here, because it imports transformers

    prompts = [
        PromptedSample(sample=sample, prompt=ChatPrompt(sample_id=sample.sample_id, text="", images=sample.images))
        for sample in samples
    ]
    assert subject.config is not None
    data = subject.config.data
    # Whatever the processor's own bounds, gold that is written for a page's size earns what it earns.
    view = ImageView(min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    judged = []
    for reward in loaded:
        scorer = Scorer((reward,), view, subject.config.response.format)
        try:
            scorer.check_samples(samples)
            if subject.tokenizer is not None:
                found = smoke_test_rewards(scorer, prompts, subject.tokenizer)
                if found:
                    yield warning(f"reward {reward.name}", found[0], " ".join(found[1:]).strip())
                judged.append(reward.name)
        except RsgrpoError as error:
            yield refused(f"reward {reward.name}", error)
        except (Exception, SystemExit) as error:  # whatever somebody else's reward raises past the scorer
            yield problem(f"reward {reward.name}", f"{type(error).__name__}: {error}", "fix the reward function")
    if judged:
        yield ok("gold response", f"of sample {samples[0].sample_id!r}, judged by {', '.join(judged)}")
