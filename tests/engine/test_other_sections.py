"""Sections of a recipe's own, repeated, the first one opened by the chat template: one real step.

A reward asks the engines what they answer without single pages, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoProcessor

from recipes.counterfactuals import CounterfactualAnswers
from recipes.rs_grpo import RsGrpo, RsGrpoState
from recipes.setup.preparation import prepare
from recipes.setup.workers import open_workers
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.config import Config, QuickstartConfig, load_config, register_schema
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.synthetic.tasks import write_task
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.prompts.template import PromptBuilder, response_behind
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.types import Sample
from tests.engine.taught_model import teach
from tests.engine.test_generated_tasks import CONFIGS, SMALL

pytestmark = pytest.mark.engine


ASKING = """
from rewards.base import needs_counterfactuals

@needs_counterfactuals(lambda call: range(len(call.sample.images)))
def length_without_pages(call):
    known = call.counterfactuals
    return None if known is None else float(sum(len(text) for texts in known.exchanged for text in texts))
"""


def _looked(sample: Sample) -> str:
    """A gold haystack response, its lines one look each."""
    lines = sample.gold_response.partition("<evidence>")[2].partition("</evidence>")[0].splitlines()
    looks = "".join(f"<think>\nNext.</think><look>{line}</look>" for line in lines)
    return f"{looks}<answer>{sample.answers[0]}</answer>"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("looks")
    write_task("haystack", root, num_train=16, num_test=1, num_images=2, image_pixels=56, seed=0)
    places = (f"data.rl_path={root}/train.jsonl", f"data.test_path={root}/test.jsonl", f"model.path={root}/model")
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        (root / "asking.py").write_text(ASKING)
        asking = f"+rewards.asking={{function: '{root}/asking.py:length_without_pages', scope: {{section: answer}}}}"
        overrides = ["recipe=rl_looks", *SMALL, *places, f"run_dir={root}/run", "cluster.gpus_per_node=0", asking]
        config = load_config(compose("config", overrides=overrides))
    samples = load_samples(config.data.rl_path, config.data, is_training=True).samples
    size = QuickstartConfig(text_hidden=128, text_layers=2, vision_hidden=64, vision_heads=2, vocabulary_tokens=640)
    prompt = Path(config.prompt.path).read_text()
    corpus = [f"{prompt} {sample.question} {_looked(sample)}" for sample in samples]
    build_quickstart_model(size, root / "model", 0, corpus)
    template = root / "model" / "chat_template.jinja"
    header = '{{ "<|im_start|>assistant\\n" }}'
    opening = template.read_text().replace(header, header.replace('n" }}', 'n<think>\\n" }}'))
    assert opening != template.read_text()
    template.write_text(opening)
    builder = PromptBuilder(
        config.prompt, AutoProcessor.from_pretrained(root / "model"), response_format=config.response.format
    )
    prompts = [builder.build(sample) for sample in samples]
    assert {built.opened_section for built in prompts} == {"think"}
    gold = [response_behind(built, _looked(sample)) for built, sample in zip(prompts, samples, strict=True)]
    teach(root / "model", [(built.text, f"{text}<|im_end|>") for built, text in zip(prompts, gold, strict=True)])
    return config


def test_all_looks_are_credited_and_responses_begin_inside_of_think(config: Config) -> None:
    prepared = prepare(config, RunFolder(root=Path(config.run_dir)), Progress(False))
    with (
        open_cluster(config.cluster) as cluster,
        open_workers(config, prepared.base_model, cluster) as workers,
    ):
        assert workers.policy is not None and workers.engine is not None
        workers.policy.begin_stage(config.rl.optimizer, 1)
        training = RsGrpo(
            config=config,
            policy=workers.policy,
            engine=workers.engine,
            scorer=prepared.scorer,
            prompts=prepared.rl,
            state=RsGrpoState(),
            counterfactuals=CounterfactualAnswers(
                prepared.rl, config.rollout.sampling, num_exchanges=2, image_tokens=prepared.image_tokens, seed=0
            ),
        )
        report = training.train_step(is_last=True)
    assert report.metrics["policy/grad_norm"] > 0.0
    assert 0.0 < report.metrics["reward/found/mean"] < 1.0
    assert report.metrics["reward/format/mean"] > 0.0
    num_well_formed = 0
    for group in report.credited:
        assert group.prompt.opened_section == "think"
        known = group.counterfactuals
        assert known is not None and known.with_all
        # two pages, each exchanged twice; taught as it is, the model answers in its own form without them, too
        assert [len(texts) for texts in known.exchanged] == [2, 2]
        assert all(text.startswith("Next.") for texts in known.exchanged for text in texts)
        length = float(sum(len(text) for texts in known.exchanged for text in texts))
        assert {reward.value for one in group.rollouts for reward in one.rewards if reward.name == "asking"} == {length}
        for credited in group.rollouts:
            rewards = {reward.key: reward for reward in credited.rewards}
            if rewards[("format", -1)].value != 1.0:
                continue
            num_well_formed += 1
            text = credited.rollout.text
            starts = [*credited.rollout.token_char_starts.tolist(), len(text)]
            assert not text.startswith("<think>")
            spans = {name: rewards[(name, -1)].spans for name in ("found", "think_copy")}
            # as many places as there are tags; the first think has none
            assert len(spans["found"]) == text.count("<look>")
            assert len(spans["think_copy"]) == text.count("<think>") + 1
            assert spans["think_copy"][0].start == 0
            for span in spans["found"]:
                # tokens may be merged with a sign of the tags beside them
                said = text[starts[span.start] : starts[span.stop]]
                assert said.startswith(("<look", "look>")) and "</look" in said
    assert num_well_formed > 0
