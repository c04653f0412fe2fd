"""Rules of the repository that no tool checks: packages, imports, sizes."""

from __future__ import annotations

import ast
import importlib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.conftest import SLOW_FILES, WITHOUT_RAY

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


# Folders of the repository, and what its files end with: what looks like one of them has to be there.
_FILE = re.compile(
    r"(?<![\w./-])((?:benchmarks|configs|docs|examples|recipes|rewards|rollout|rsgrpo|tests)/[\w./-]+"
    r"\.(?:py|md|yaml|jinja))\b"
)
_BARE_FILE = re.compile(r"`(\w+\.(?:py|md|jinja))`")
_ROLE = re.compile(r":(?:mod|func|class|meth|data|attr):`~?((?:rsgrpo|recipes|rewards|rollout)\.[\w.]+)`")
_PLACEHOLDERS = {"file.py"}


def _texts(path: Path) -> str:
    """The prose of a file: Markdown, or docstrings and comments of Python."""
    source = path.read_text()
    if path.suffix == ".md":
        return source
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*strings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def _has_name(dotted: str) -> bool:
    """Whether a module is there and mentions the names that follow it."""
    parts = dotted.split(".")
    for number in range(len(parts), 0, -1):
        place = REPOSITORY.joinpath(*parts[:number])
        module = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if module.is_file():
            return all(re.search(rf"\b{name}\b", module.read_text()) for name in parts[number:])
    return False


def test_files_and_names_that_texts_refer_to_exist() -> None:
    tests = (REPOSITORY / "tests").rglob("*.py")
    documents = [REPOSITORY / "README.md", REPOSITORY / "BENCHMARKS.md", *(REPOSITORY / "docs").rglob("*.md")]
    bare = {path.name for path in [REPOSITORY / "train.py", *MODULES, *documents]} | {
        path.name for path in (REPOSITORY / "configs").rglob("*.jinja")
    }
    missing = set()
    for path in (*MODULES, *tests, *documents):
        text = _texts(path)
        place = path.relative_to(REPOSITORY)
        missing |= {(place, name) for name in _FILE.findall(text) if not (REPOSITORY / name).exists()}
        missing |= {(place, name) for name in _ROLE.findall(text) if not _has_name(name)}
        if path in MODULES:
            missing |= {(place, name) for name in _BARE_FILE.findall(text) if name not in bare | _PLACEHOLDERS}
    assert missing == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see ``docs/nothing.md``", ["docs/nothing.md"]),
        ("tests/unit/test_nothing.py counts it", ["tests/unit/test_nothing.py"]),
        ("runs/docs/a.md, https://x.org/docs/a.md", []),
    ],
)
def test_the_rule_of_files_sees_them(text: str, found: list[str]) -> None:
    assert _FILE.findall(text) == found
    assert not _has_name("rsgrpo.types.NoSuchRecord") and not _has_name("rsgrpo.nothing")


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


def test_no_two_test_files_have_one_name() -> None:
    # Test folders are no packages: pytest imports each file by its name alone, and refuses the second of a name.
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


_STARTS_RAY = {"ray", "vllm", "rollout", "tests.engine.local_ray", "tests.engine.train_process", "recipes.pipeline"}


def test_files_of_ranks_alone_import_nothing_that_starts_ray_or_vllm() -> None:
    for name in WITHOUT_RAY:
        nodes = list(ast.walk(ast.parse((REPOSITORY / name).read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {one for one in names if one in _STARTS_RAY or one.partition(".")[0] in _STARTS_RAY}, name
