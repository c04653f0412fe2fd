"""Asking the policy again without single pages: what is asked, and when the driver asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from recipes.counterfactuals import CounterfactualAnswers
from recipes.rs_grpo import RsGrpo, RsGrpoState
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import Config, FilterConfig, RewardConfig, RlConfig, SamplingConfig, ScopeConfig
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import ChatPrompt, Counterfactuals, ImageRef, PromptedSample, RolloutGroup, Sample
from tests.unit.recipes.rl_fakes import FakeEngine, FakePolicy, restored
from tests.unit.reward_calls import character_group

WIDE = "wide.png"
REWARD = RewardConfig(
    function="rewards.functions.counterfactual:counterfactual_evidence", scope=ScopeConfig(evidence_line=True)
)


def question(number: int) -> PromptedSample:
    """A question over two pages of its own; the second of question 3 takes more tokens than all others."""
    images = (ImageRef(path=f"{number}a.png"), ImageRef(path=WIDE if number == 3 else f"{number}b.png"))
    sample_id = f"q{number}"
    return PromptedSample(
        sample=Sample(sample_id=sample_id, images=images, answers=("7",)),
        prompt=ChatPrompt(sample_id=sample_id, text="look", images=images),
    )


QUESTIONS = [question(number) for number in range(4)]


def text(speaks_for: int, answer: str = "7") -> str:
    lines = "\n".join(f"[{index + 1}]: {'seven' if index == speaks_for else IRRELEVANT}" for index in range(2))
    return f"<observe>o</observe><evidence>{lines}</evidence><think>t</think><answer>{answer}</answer>"


@dataclass
class PageEngine(FakeEngine):
    """The answer stands on the first page: without it the greedy answer is another one."""

    asked: list[PromptedSample] = field(default_factory=list)

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        if sampling.temperature:
            return [self._sampled(asked, [text(index % 2) for index in range(num_samples)]) for asked in prompted]
        assert num_samples == 1
        self.asked += prompted
        return [
            self._sampled(
                asked, [text(0, "7" if asked.sample.images[0].path == f"{asked.sample.sample_id[1]}a.png" else "4")]
            )
            for asked in prompted
        ]

    def _sampled(self, asked: PromptedSample, texts: Sequence[str]) -> RolloutGroup:
        group = character_group(asked.sample, *texts)
        rollouts = [replace(rollout, policy_version=self.policy_version) for rollout in group.rollouts]
        return replace(group, prompt=asked.prompt).with_rollouts(rollouts)


@dataclass
class Asking:
    """Puts pages into question until the greedy answer is known, then ``later``."""

    first: Mapping[str, tuple[int, ...]]
    later: Mapping[str, tuple[int, ...]]
    taken: dict[str, Counterfactuals] = field(default_factory=dict)

    def pages_in_question(self) -> Mapping[str, tuple[int, ...]]:
        return self.later if self.taken else self.first

    def take_counterfactuals(self, counterfactuals: Mapping[str, Counterfactuals]) -> None:
        self.taken |= counterfactuals


def answers(num_exchanges: int = 2) -> CounterfactualAnswers:
    return CounterfactualAnswers(
        QUESTIONS,
        SamplingConfig(max_response_tokens=9),
        num_exchanges=num_exchanges,
        image_tokens=lambda image: 9 if image.path == WIDE else 4,
        seed=0,
    )


def ask(asking: Asking, num_exchanges: int = 2) -> tuple[PageEngine, Mapping[str, float]]:
    engine = PageEngine()
    return engine, answers(num_exchanges).ask(engine, QUESTIONS, asking, 5)


def test_only_pages_in_question_are_exchanged_for_pages_of_others_that_take_no_more_room() -> None:
    asking = Asking(first={"q0": (0, 1), "q2": (1,)}, later={"q0": (1,)})
    engine, metrics = ask(asking)
    # two greedy answers with all pages, then two exchanges of the one page that is still in question
    assert [asked.sample.sample_id for asked in engine.asked[:2]] == ["q0", "q2"]
    exchanges = engine.asked[2:]
    assert len(exchanges) == 2
    pages = set()
    for asked in exchanges:
        first, second = asked.sample.images
        assert first == QUESTIONS[0].sample.images[0]
        assert second not in QUESTIONS[0].sample.images
        assert second.path != WIDE  # it takes 9 tokens, the page that it would replace 4
        assert (asked.prompt.text, asked.prompt.images) == ("look", asked.sample.images)
        pages.add(second)
    assert len(pages) == 2
    assert asking.taken["q0"] == Counterfactuals(with_all=text(0), exchanged=((), (text(0), text(0))))
    assert asking.taken["q2"] == Counterfactuals(with_all=text(0), exchanged=((), ()))
    num_tokens = 4 * (len(text(0)) + 1)
    assert metrics == {"counterfactual/pages": 1.0, "counterfactual/tokens": num_tokens}


def test_which_pages_are_put_in_depends_on_the_question_alone() -> None:
    both, _ = ask(Asking(first={"q0": (0,), "q1": (0,)}, later={"q0": (0,), "q1": (0,)}))
    one, _ = ask(Asking(first={"q1": (0,)}, later={"q1": (0,)}))
    assert one.asked[1:] == both.asked[4:]


def test_a_page_for_which_there_are_too_few_others_is_exchanged_less_often() -> None:
    asking = Asking(first={"q0": (0,)}, later={"q0": (0,)})
    ask(asking, num_exchanges=50)
    # the five pages of other questions that are no wider
    assert [len(texts) for texts in asking.taken["q0"].exchanged] == [5, 0]


def training(engine: PageEngine, state: RsGrpoState | None = None, *, asks: bool = True) -> RsGrpo:
    settings = RlConfig(prompts_per_step=2, samples_per_prompt=2, filter=FilterConfig(keep_leftover=True))
    return RsGrpo(
        config=Config(stage="rl", rl=settings, rewards={"lines": REWARD}),
        policy=cast(Policy, FakePolicy()),
        engine=engine,
        scorer=Scorer(load_rewards({"lines": REWARD}, Path.cwd())),
        prompts=QUESTIONS,
        state=state or RsGrpoState(),
        counterfactuals=answers() if asks else None,
    )


def test_a_step_asks_before_it_selects_and_reports_what_that_took() -> None:
    driver = training(PageEngine())
    report = driver.train_step(is_last=True)
    assert report.metrics["time/counterfactual"] >= 0.0
    assert report.metrics["counterfactual/pages"] == 2.0 * len(report.credited)
    assert report.credited
    for group in report.credited:
        assert group.counterfactuals is not None
        # the first page matters, the second does not; the first sibling says so, the second the opposite
        assert [[reward.value for reward in rollout.rewards] for rollout in group.rollouts] == [[1, 1], [0, 0]]
        assert group.rollouts[0].positive_weights.any()
        assert group.rollouts[1].negative_weights.any()


def test_without_such_a_reward_nothing_is_asked() -> None:
    engine = PageEngine()
    report = training(engine, asks=False).train_step(is_last=True)
    assert not engine.asked
    assert not report.credited  # the reward applies to nothing, so that no group varies
    assert "time/counterfactual" not in report.metrics


def test_waiting_groups_keep_the_answers_in_a_checkpoint() -> None:
    driver = training(PageEngine())
    batch = driver.collect(0, trained_version=0)
    driver.state.leftover = list(batch.groups)
    (first, *_) = restored(driver.state).leftover
    assert first.counterfactuals == batch.groups[0].counterfactuals
    assert first.counterfactuals is not None
    np.testing.assert_array_equal(first.rollouts[0].rollout.token_ids, batch.groups[0].rollouts[0].rollout.token_ids)
