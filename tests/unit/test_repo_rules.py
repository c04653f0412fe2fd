"""Rules of the repository that no tool checks: packages, imports, sizes, recipes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rsgrpo.config import ConfigError, load_config, register_schema

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("rsgrpo", "recipes", "rewards", "rollout")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
RECIPES = sorted(path.stem for path in (REPOSITORY / "configs" / "recipe").glob("*.yaml"))
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 80


def compose_recipe(*overrides: str) -> object:
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base=None):
        return load_config(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_with_common_names_are_ours(package: str) -> None:
    # `recipes` and `rewards` are names that other distributions ship too
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(REPOSITORY)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes(recipe: str) -> None:
    config = compose_recipe(f"recipe={recipe}")
    assert config.name == recipe  # type: ignore[attr-defined]


def test_published_hyper_parameters() -> None:
    # benchmarks of the public recipe: 32 questions × 8 rollouts, lr 1e-6, clip 0.2/0.28, dual clip 3, SFT batch 64
    config = compose_recipe("recipe=evisrag_7b")
    rl, sft = config.rl, config.sft  # type: ignore[attr-defined]
    assert (rl.prompts_per_step, rl.samples_per_prompt) == (32, 8)
    assert (rl.optimizer.learning_rate, rl.optimizer.weight_decay) == (1e-6, 0.01)
    assert (rl.loss.clip_low, rl.loss.clip_high, rl.loss.dual_clip) == (0.2, 0.28, 3.0)
    assert (sft.optimizer.learning_rate, sft.optimizer.warmup_steps, sft.samples_per_step) == (5e-7, 200, 64)


@pytest.mark.parametrize("override", ["+foo=1", "+rl.foo=1", "rl.samples_per_prompt=1", "rollout.sampling.top_p=0.9"])
def test_wrong_settings_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        compose_recipe(override)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rsgrpo.config", ("torch", "ray", "vllm", "deepspeed", "transformers")),
        ("rsgrpo.advantages", ("torch", "ray", "vllm", "deepspeed")),
        ("rsgrpo.losses", ("ray", "vllm", "deepspeed")),
        ("rewards.scorer", ("torch", "ray", "vllm", "deepspeed")),
        ("rsgrpo.report", ("torch", "ray", "vllm", "deepspeed")),
    ],
)
def test_light_modules_import_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_modules_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= MAX_FUNCTION_LINES, node.name
