"""Every recipe as far as a CPU takes it in seconds: composed, data read at its own paths, prompts, one gradient.

The model is a small random one of the family that the recipe names. Whatever a recipe says about data, prompts, rewards
and pixels is as in a real run; only what needs GPUs, and what is large because models are, is set smaller.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from recipes.retriever.preparation import prepare_retriever
from recipes.setup.preparation import Prepared, prepare
from recipes.sft import training_groups
from rsgrpo.config import Config, QuickstartConfig
from rsgrpo.data.synthetic.quickstart import build_quickstart_data
from rsgrpo.data.synthetic.tasks import write_task
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.folder import load_processor
from rsgrpo.prompts.conversation import TURN_END, Conversation, ResponsePart
from rsgrpo.prompts.template import response_behind
from rsgrpo.retrieval.training.sentence_trainer import RetrieverTraining
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from tests.packed import Packed
from tests.tiny_model import build_tiny_model, write_images
from tests.unit.composition import RECIPES, composed
from tests.unit.prompts.chat import THINKING
from tests.unit.retrieval.pair_files import write_pairs_file

ONE_PROCESS = ("model.dtype=float32", "trainer.num_ranks=1", "cluster.num_nodes=1", "logging.progress=false")
SMALL_RETRIEVER = ("retriever.batch_size=4", "retriever.micro_batch_size=4", "retriever.max_steps=1",
                   "retriever.validation_samples=2")  # fmt: skip


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def _records(file: str, records: list[dict[str, Any]]) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(records))


def _evisrag() -> tuple[str, ...]:
    sizes = QuickstartConfig(num_sft_samples=4, num_rl_samples=4, num_test_samples=2)
    built = build_quickstart_data(sizes, Path("built").absolute(), 0)
    return (f"data.sft_path={built.sft_path}", f"data.rl_path={built.rl_path}", f"data.test_path={built.test_path}")


def _task(task: str) -> Callable[[], tuple[str, ...]]:
    def write() -> tuple[str, ...]:
        write_task(task, Path("data") / task, num_train=4, num_test=2, num_images=2, image_pixels=56, seed=0)
        return ()

    return write


def _mammoth_vl() -> tuple[str, ...]:
    write_images(Path("data/mammoth_vl"), [(64, 48), (48, 64)])
    talk = _turns("<image>\nWhat?", "a page", "And?", "no more")
    _records("data/mammoth_vl/mammoth_si_10M.json", [{"image": "0.png", "conversations": talk}] * 3)
    several = {"image": ["0.png", "1.png"], "conversations": _turns("<image><image>\nWhat?", "two pages")}
    _records("data/mammoth_vl/mammoth_ov_2M.json", [several, {"conversations": _turns("Hello", "you")}])
    return ()


def _mgrounding() -> tuple[str, ...]:
    root = "data/MGrounding-630k"
    write_images(Path(root) / "imgs", [(64, 48), (48, 64)])
    images = [f"./MGrounding-630k/imgs/{number}.png" for number in range(2)]
    box = "It's in the second image. <|box_start|>(100,20),(300,400)<|box_end|>"
    talk = _turns("<image>\n<image>\nWhere is <|object_ref_start|>it<|object_ref_end|>?", box, "And?", "Nowhere.")
    for name in (
        "Common_Object/common_train_70k",
        "Difference/diff_train_70k",
        "Group_Grounding/gg_train_120k",
        "Group_Grounding/_gg_reg_40k",
        "Object_Tracking/ot_train_130k",
        "Referring_Grounding/refer_train_70k",
        "Region_Locating/region_train_70k",
        "Free-Form/free_form_grounding_130k",
    ):
        _records(f"{root}/{name}.json", [{"id": name, "images": images, "conversations": talk}] * 2)
    return ()


def _mirage() -> tuple[str, ...]:
    write_images(Path("data/mirage"), [(48, 48)] * 6)
    records = [
        {"id": number, "image": [f"{number}.png"], "conversations": _turns("<image>\nWhat?", f"page {number}")}
        for number in range(6)
    ]
    _records("data/mirage/llava_v1_5_mix665k.json", records)
    return ()


def _pairs() -> tuple[str, ...]:
    file = write_pairs_file(Path("pairs").absolute(), 6, negatives=2)
    return (f"retriever.data=[{file}]", *SMALL_RETRIEVER)


def _modern() -> tuple[str, ...]:
    return (*_pairs(), "retriever.matryoshka_dimensions=[16,8]", "model.lora.rank=4")  # the small model has 32 numbers


def _quickstart() -> tuple[str, ...]:
    few = [f"quickstart.num_{name}_samples={count}" for name, count in (("sft", 4), ("rl", 4), ("test", 2))]
    return (*few, "quickstart.text_hidden=64", "quickstart.text_layers=2", "quickstart.vision_layers=1")


def _small_retriever() -> tuple[str, ...]:
    return (
        *SMALL_RETRIEVER,
        "quickstart.text_hidden=64",
        "quickstart.text_layers=2",
        "quickstart.vision_layers=1",
        "quickstart.num_retriever_samples=24",
        "quickstart.num_test_pages=12",
    )


DATA: Mapping[str, Callable[[], tuple[str, ...]]] = {
    "quickstart": _quickstart,
    "quickstart_ledger": _quickstart,
    "retriever_modern": _modern,
    "retriever_quickstart": _small_retriever,
    "retriever_visrag": _pairs,
    "rl_grounding": _task("grounding"),
    "rl_haystack": _task("haystack"),
    "rl_looks": _task("haystack"),
    "rl_multiple_choice": _task("choice"),
    "rl_plan_look": _task("haystack"),
    "sft_mammoth_vl": _mammoth_vl,
    "sft_mgrounding": _mgrounding,
    "sft_mirage": lambda: (*_mirage(), "model.lora.rank=8"),
}
"""Writes a recipe's data where the recipe looks for it; gives further settings. The others read EVisRAG's."""


THINKING_FAMILIES = ("qwen3_5",)
"""Those whose published chat templates think; the small models' do as well."""


def _family(config: Config) -> str:
    """The family that a recipe's model is of, by the model's name on the hub."""
    if not config.model.path:
        return config.quickstart.family
    return next(kind for kind, family in FAMILIES.items() if f"/{family.name}-" in config.model.path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def model(family: str) -> Path:
        folder = root / family
        if folder.exists():
            return folder
        build_tiny_model(folder, family=family)
        if family in THINKING_FAMILIES:
            processor = load_processor(folder)
            processor.chat_template = THINKING
            processor.save_pretrained(folder)
        return folder

    return model


def _as_embedder(model: Path, folder: Path) -> Path:
    """A model as sentence-transformers saves one."""
    reader = Transformer(str(model))
    modules = [reader, Pooling(reader.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules).save(str(folder))
    return folder


def _conversations(prepared: Prepared) -> list[list[Conversation]]:
    """What each phase, and reinforcement learning with gold in the place of samples, trains on first."""
    steps = [phase.source.take(0, 1).conversations for phase in prepared.sft]
    if prepared.rl:
        golds = [
            Conversation(
                sample_id=prompted.sample.sample_id,
                prompt=prompted.prompt,
                parts=(
                    ResponsePart(
                        text=response_behind(prompted.prompt, prompted.sample.gold_response) + TURN_END, is_target=True
                    ),
                ),
            )
            for prompted in prepared.rl[:1]
        ]
        steps.append(golds)
    return steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reads_its_data_and_takes_a_gradient(
    recipe: str, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family = _family(composed(f"recipe={recipe}"))
    overrides = [f"recipe={recipe}", *ONE_PROCESS, f"run_dir={tmp_path / 'run'}", *DATA.get(recipe, _evisrag)()]
    if "Embedding" in composed(f"recipe={recipe}").model.path:
        overrides.append(f"model.path={_as_embedder(models(family), tmp_path / 'embedder')}")
    elif not recipe.endswith("quickstart"):
        overrides.append(f"model.path={models(family)}")
    config = composed(*overrides)
    (tmp_path / "run").mkdir()
    folder = RunFolder(root=tmp_path / "run")
    if config.stage == "retriever":
        _retriever_step(config, folder)
        return
    prepared = prepare(config, folder, Progress(False))
    packed = Packed(
        prepared.base_model,
        config.model,
        rules=config.data.image_rules,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    steps = _conversations(prepared)
    assert len(steps) == len(prepared.sft) + bool(prepared.rl)
    for conversations in steps:
        groups = training_groups(conversations, prepared.tokenizer, prepared.image_tokens)
        found, gradient = packed.run(
            groups, share_prefix=config.trainer.share_prefix, budget=config.trainer.micro_batch_tokens
        )
        assert len(found) == len(groups) == 1
        assert all(values.isfinite().all() and (values < 0).all() for values in found.values())
        assert gradient.isfinite().all()
        assert gradient.norm() > 0
    shutil.rmtree(tmp_path / "run")


def _retriever_step(config: Config, folder: RunFolder) -> None:
    prepared = prepare_retriever(config, folder, Progress(False))
    losses: list[float] = []

    class Hooks:
        def on_step(self, step: int, values: Mapping[str, float], embedder: object) -> None:
            losses.append(values["retriever/loss"])

        def on_checkpoint(self, step: int, folder: Path) -> None:
            pass

    training = RetrieverTraining(
        config,
        start_model=prepared.start_model,
        pairs=prepared.pairs,
        batches=prepared.plan.batches[:1],
        scratch=folder.root / "scratch",
        hooks=Hooks(),
    )
    training.train()
    assert len(losses) == 1
    assert torch.tensor(losses).isfinite().all()
