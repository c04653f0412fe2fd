"""Does a command that the docs show really parse? Settings are composed, options given to the programs' own parsers."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from recipes.commands.table import COMMANDS
from rewards.lab.settings import changed_settings
from rsgrpo.config import ConfigError, resolved_yaml
from rsgrpo.failures.overrides import check_call
from tests.unit.composition import composed
from tests.unit.docs.shell_blocks import REPOSITORY, Command

_MODULES = {name: command.entry.partition(":")[0] for name, command in COMMANDS.items()}
"""Where each command of ``rsgrpo`` stands."""

_MAX_CPU_RANKS = 2  # what tests and examples use on a CPU; recipes for GPUs have more
_TOOLS = ("ruff", "mypy", "lint-imports", "mkdocs")


_PLACEHOLDER = re.compile(r"=[A-Z]+$")


class CommandError(AssertionError):
    """The command that a page shows cannot be called."""


class _Parsed(BaseException):
    """Raised where a program has parsed its options, so that it does nothing."""


@functools.cache
def pyproject() -> dict[str, dict[str, object]]:
    """The repository's own."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def check(command: Command) -> None:
    """Refuse a command that does not parse, or that no test could run though it does not say so.

    Raises:
        CommandError: says what is wrong.
    """
    words = command.words
    if command.is_inline:  # `seed=S` means any
        words = [word for word in words if not _PLACEHOLDER.search(word)]
    needs_gpu = False
    if words[0] == "uv":
        words, needs_gpu = _after_uv_run(command, words)
    if not words:
        return
    program, *arguments = words
    if program in ("python", "python3"):
        program, arguments = _python(command, arguments)
    if program == "train.py":
        needs_gpu |= _check_train(arguments)
    elif program == "rsgrpo":
        needs_gpu |= _check_rsgrpo(arguments, is_mention=command.is_inline)
    elif program.startswith(("benchmarks/", "examples/")):
        _check_script(program, arguments)
    elif program == "lmms-eval":
        _check_lmms(arguments)
    elif program == "make":
        _check_make(arguments)
    elif program == "pytest":
        _check_pytest(arguments)
    elif program.startswith("-m "):
        _check_module(program.removeprefix("-m "), arguments, is_mention=command.is_inline)
    elif program not in _TOOLS:
        _marked(command, f"no check knows {program!r}")
    elif not (Path(sys.executable).parent / program).exists():
        _fail(f"{program} is not installed")
    if needs_gpu and not command.is_inline and command.marker != "needs a GPU":
        _fail('its settings ask for GPUs; mark its block: ```bash title="needs a GPU"')


def _fail(reason: str) -> NoReturn:
    raise CommandError(reason)


def _marked(command: Command, reason: str) -> None:
    if not command.marker and not command.is_inline:
        _fail(f"{reason}, and its block is not marked")


def _after_uv_run(command: Command, words: list[str]) -> tuple[list[str], bool]:
    """What ``uv run`` runs, and whether in the environment for GPUs; nothing for uv's other commands."""
    if words[1:2] == ["sync"] and len(words) == 2:
        return [], False
    if words[1:2] != ["run"]:
        _marked(command, f"no check knows {' '.join(words[:2])!r}")
        return [], False
    rest, is_gpu = words[2:], False
    groups, extras = pyproject()["dependency-groups"], pyproject()["project"]["optional-dependencies"]
    assert isinstance(extras, dict)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--no-sync":
            continue
        value = rest.pop(0)
        known = {"--no-group": groups, "--group": groups, "--extra": extras}
        if option in known and value not in known[option]:
            _fail(f"pyproject.toml has no {value!r} for {option}")
        if option not in (*known, "--with"):
            _fail(f"no check knows uv run {option}")
        is_gpu |= (option, value) == ("--extra", "gpu")
    return rest, is_gpu


def _python(command: Command, arguments: list[str]) -> tuple[str, list[str]]:
    if arguments[:2] == ["-m", "pip"]:
        return "pip", arguments[2:]
    if arguments[0] == "-m":
        return f"-m {arguments[1]}", arguments[2:]
    return arguments[0], arguments[1:]


def _check_train(arguments: Sequence[str]) -> bool:
    """Whether the settings ask for GPUs; those of a plan, or that are only printed, need none."""
    try:
        given = check_call(arguments, "train.py")
        options = [word for word in given if word.startswith("-") and word != "--config-dir"]
        overrides = tuple(word for word in given if "=" in word and not word.startswith("-"))
        if "--config-dir" in given:
            folder = REPOSITORY / given[given.index("--config-dir") + 1]
            overrides = (f"hydra.searchpath=[file://{folder}]", *overrides)
        config = composed(*overrides)
    except Exception as error:  # whatever stops it is why the command is refused
        _fail(f"train.py refuses it: {error}")
    asks = (
        config.cluster.device == "gpu" or config.cluster.gpus_per_node > 0 or config.trainer.num_ranks > _MAX_CPU_RANKS
    )
    return asks and not config.plan and not options


def _check_rsgrpo(arguments: list[str], *, is_mention: bool) -> bool:
    if arguments == ["--help"]:
        return False
    if not arguments:
        _fail("rsgrpo needs a command")
    name, *rest = arguments
    if name == "train":
        return _check_train(rest)
    if name == "plan":
        return _check_train(["plan=true", *rest])
    if name not in _MODULES:
        _fail(f"rsgrpo has no command {name!r}; it has {', '.join(_MODULES)}")
    _check_module(_MODULES[name], rest, is_mention=is_mention)
    return False


def _check_module(name: str, arguments: Sequence[str], *, is_mention: bool) -> None:
    """Give the options to the module's own parser, and what it takes as settings to what reads them.

    A sentence may mention a command without its options.
    """
    if importlib.util.find_spec(name) is None:
        _fail(f"there is no module {name}")
    if name.startswith("docs.scripts."):
        if arguments:
            _fail(f"python -m {name} takes no options")
        return
    if is_mention and not arguments:
        return
    is_package = (REPOSITORY / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    if not _parses(module, name, arguments):
        _fail(f"python -m {name} does not take {' '.join(arguments)}")
    settings = [word for word in arguments if re.match(r"[+~]?[\w.]+=", word)]
    if name.startswith("recipes.doctor"):
        _check_train(settings)
    if name.startswith("rewards.lab") and arguments[0] == "replay":
        _check_replay(settings)


def _check_replay(overrides: Sequence[str]) -> None:
    """The lab lays its overrides over the settings that a run has written: here the quickstart's."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(resolved_yaml(composed()))
        try:
            changed_settings(Path(folder), None, overrides)
        except ConfigError as error:
            _fail(f"the lab refuses it: {error}")


def _parses(module: ModuleType, name: str, arguments: Sequence[str]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, method)

            def parse(self: argparse.ArgumentParser, *args: object, original: object = original) -> NoReturn:
                assert callable(original)
                original(self, *args)
                raise _Parsed

            patch.setattr(argparse.ArgumentParser, method, parse)
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            module.main()
        except _Parsed:
            return True
        except SystemExit as end:
            return end.code in (0, None)  # --help
    return False


def _check_script(path: str, arguments: Sequence[str]) -> None:
    """A benchmark imports much: its options are looked for in its source."""
    file = REPOSITORY / path
    if not file.is_file():
        _fail(f"there is no {path}")
    sources = [file.read_text()]
    # options that several scripts share stand in a module beside them
    sources += [
        other.read_text()
        for name in re.findall(r"^(?:from|import) (\w+)", sources[0], re.MULTILINE)
        if (other := file.with_name(f"{name}.py")).is_file()
    ]
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        # f"--{name}" makes options of a tuple of names
        written = (f'"{option}"', f'"{option[2:]}"') if 'f"--{' in sources[0] else (f'"{option}"',)
        if not any(text in source for text in written for source in sources):
            _fail(f"{path} has no option {option}")


def _check_lmms(arguments: Sequence[str]) -> None:
    """Arguments of our model in lmms-eval are those of its class."""
    tree = ast.parse((REPOSITORY / "recipes/evaluation/lmms_eval_model.py").read_text())
    known = {
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        for argument in (*node.args.args, *node.args.kwonlyargs)
    }
    for option, value in pairwise(arguments):
        if option == "--model_args":
            unknown = [pair for pair in value.split(",") if pair.partition("=")[0] not in known]
            if unknown:
                _fail(f"our model in lmms-eval has no argument {unknown[0]!r}")


def _check_make(arguments: Sequence[str]) -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in arguments:
        if target not in targets:
            _fail(f"the Makefile has no target {target!r}")


def _check_pytest(arguments: Sequence[str]) -> None:
    options = pyproject()["tool"]["pytest"]
    assert isinstance(options, dict)
    markers = {line.partition(":")[0] for line in options["ini_options"]["markers"]}
    for option, value in zip(["", *arguments], arguments, strict=False):
        if option == "-m":
            unknown = set(re.findall(r"\w+", value)) - markers - {"not", "and", "or"}
            if unknown:
                _fail(f"no test is marked {unknown.pop()!r}")
        elif option == "-n":
            if not value.isdecimal():
                _fail(f"-n is followed by a number of processes, not by {value!r}")
        elif not value.startswith("-") and not (REPOSITORY / value.partition("::")[0]).exists():
            _fail(f"there is no {value}")
