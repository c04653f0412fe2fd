"""Rules of the repository that no tool checks: packages, imports, sizes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW_FILES

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("rsgrpo", "recipes", "rewards", "rollout")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
MAX_MODULE_LINES = 460
MAX_FUNCTION_LINES = 80


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_with_common_names_are_ours(package: str) -> None:
    # `recipes` and `rewards` are names that other distributions ship too
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(REPOSITORY)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rsgrpo.config", ("torch", "ray", "vllm", "deepspeed", "transformers")),
        ("rsgrpo.model.memory_bounds", ("torch", "transformers", "ray", "vllm", "deepspeed")),
        ("rsgrpo.algorithm.advantages", ("torch", "ray", "vllm", "deepspeed")),
        ("rsgrpo.algorithm.losses", ("ray", "vllm", "deepspeed")),
        ("rewards.scorer", ("torch", "ray", "vllm", "deepspeed")),
        ("rewards.lab.__main__", ("torch", "ray", "vllm", "deepspeed", "transformers")),
        ("recipes.doctor.command", ("torch", "transformers", "ray", "vllm", "deepspeed", "datasets", "sklearn")),
        ("rsgrpo.run.report", ("torch", "ray", "vllm", "deepspeed")),
        (
            "rsgrpo.evaluation.rescore.__main__",
            ("torch", "transformers", "ray", "vllm", "deepspeed", "scipy", "matplotlib"),
        ),
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


# Calls between processes of one run, which nobody hands to anybody.
MAY_PICKLE = {"rollout/weight_loading.py", "rollout/vllm_engine.py"}
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle")}


def _opens_pickles(tree: ast.AST) -> list[str]:
    """What in a module could read or write a pickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module and node.module.partition(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if (node.value.id, node.attr) in FORBIDDEN_CALLS else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
        elif isinstance(node, ast.Attribute) and node.attr in ("save_checkpoint", "load_checkpoint"):
            # DeepSpeed's own write what torch.save writes
            found += [node.attr] if isinstance(node.value, ast.Attribute) and node.value.attr == "_engine" else []
    return found


def test_nothing_that_a_user_may_be_handed_is_written_or_read_as_a_pickle() -> None:
    found = {str(path.relative_to(REPOSITORY)): _opens_pickles(ast.parse(path.read_text())) for path in MODULES}
    assert {name for name, uses in found.items() if uses} == MAY_PICKLE


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(path)", "np.load(path, allow_pickle=True)",
     "self._engine.save_checkpoint(folder)"],
)  # fmt: skip
def test_the_rule_against_pickles_sees_them(source: str) -> None:
    assert _opens_pickles(ast.parse(source))


def test_the_list_of_slow_test_files_names_files() -> None:
    listed = SLOW_FILES.read_text().split()
    assert listed == sorted(set(listed))
    assert [name for name in listed if not (REPOSITORY / name).is_file()] == []
