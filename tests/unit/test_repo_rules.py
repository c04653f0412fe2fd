"""Rules of the repository that no tool checks: packages, imports, sizes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("rsgrpo", "recipes", "rewards", "rollout")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
MAX_MODULE_LINES = 450
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
        ("rsgrpo.advantages", ("torch", "ray", "vllm", "deepspeed")),
        ("rsgrpo.losses", ("ray", "vllm", "deepspeed")),
        ("rewards.scorer", ("torch", "ray", "vllm", "deepspeed")),
        ("rewards.lab.__main__", ("torch", "ray", "vllm", "deepspeed", "transformers")),
        ("recipes.doctor.command", ("torch", "transformers", "ray", "vllm", "deepspeed", "datasets", "sklearn")),
        ("rsgrpo.report", ("torch", "ray", "vllm", "deepspeed")),
        ("rsgrpo.rescore.__main__", ("torch", "transformers", "ray", "vllm", "deepspeed", "scipy", "matplotlib")),
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
