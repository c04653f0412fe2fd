"""Load reward functions that the settings name, and check that they can be called as configured."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rewards.base import GOLD_FIELDS, IMAGE_LINES, DeclaredReward, RewardCallable, RewardError
from rsgrpo.config import EVISRAG, ResponseFormat, RewardConfig
from rsgrpo.errors import shown


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedReward:
    """A reward that is ready to be called.

    Attributes:
        name: the key of the reward under ``rewards`` in the settings.
        config: the settings of the reward: scope, weight, keyword arguments, timeout.
        function: the function, called as ``function(call, **config.kwargs)``.
        is_async: whether a call of the function gives an awaitable.
        is_batch: whether the function takes the list of all calls.
        gold_sections: the sections that the gold response must hold, and the fields that the sample must hold.
        exact_answer: writes the response that must earn 1; None: the reward does not say.
        answer_section: the one of ``gold_sections`` in whose place ``Sample.answers`` will do.
        pages_in_question: says which pages are to be exchanged; None: the reward reads no counterfactuals.
    """

    name: str
    config: RewardConfig
    function: RewardCallable
    is_async: bool
    is_batch: bool
    gold_sections: tuple[str, ...]
    exact_answer: Callable[..., str] | None = None
    answer_section: str = EVISRAG.answer_section
    pages_in_question: Callable[..., Sequence[int]] | None = None


def load_rewards(
    configs: Mapping[str, RewardConfig], base_folder: Path, response_format: ResponseFormat = EVISRAG
) -> tuple[LoadedReward, ...]:
    """Load every configured reward.

    Args:
        configs: the settings of each reward, by its name.
        base_folder: what ``path/to/file.py:function`` is relative to.
        response_format: the declared sections.

    Returns:
        The rewards, in the order of ``configs``.

    Raises:
        RewardError: a module, file or function does not exist, keyword arguments do not fit the function, or a section
            is not declared.
    """
    return tuple(_load(name, config, base_folder, response_format) for name, config in configs.items())


def _load(name: str, config: RewardConfig, base_folder: Path, response_format: ResponseFormat) -> LoadedReward:
    source, _, function_name = config.function.partition(":")
    is_file = source.endswith(".py")
    module = _module_from_file(name, base_folder / source) if is_file else _module_by_name(name, source)
    declared = vars(module).get(function_name)
    if not callable(declared):
        public = sorted(key for key, value in vars(module).items() if _is_own(module, value) and key[0] != "_")
        raise RewardError(
            f"rewards.{name}.function={config.function!r}: {source} has no function {function_name!r}; "
            f"it has {', '.join(public) or 'none'}"
        )
    reward = declared if isinstance(declared, DeclaredReward) else DeclaredReward(function=declared)
    problem = reward.argument_problem(config.kwargs) if reward.argument_problem else ""
    if problem:
        raise RewardError(f"rewards.{name}.kwargs: {problem}")
    arguments = _bound_arguments(name, config, reward.function)
    named = arguments[reward.answer_in] if reward.answer_in else None
    answer_section = str(named or response_format.answer_section)
    gold = tuple(_section_name(gold_section, response_format) for gold_section in reward.gold_sections)
    _check_sections(name, config, reward, arguments, response_format)
    return LoadedReward(
        name=name,
        config=config,
        function=reward.function,
        is_async=_is_async(reward.function),
        is_batch=reward.is_batch,
        gold_sections=(*gold, answer_section) if reward.answer_in else gold,
        exact_answer=reward.exact_answer,
        answer_section=answer_section,
        pages_in_question=reward.pages_in_question,
    )


def _section_name(name: str, response_format: ResponseFormat) -> str:
    return response_format.lines_section if name == IMAGE_LINES else name


def _check_sections(
    name: str,
    config: RewardConfig,
    reward: DeclaredReward,
    arguments: Mapping[str, object],
    response_format: ResponseFormat,
) -> None:
    """Refuse a reward that reads a section which is not declared."""
    for argument in dict.fromkeys((*reward.section_arguments, *filter(None, [reward.answer_in]))):
        for section in _named_sections(arguments[argument]):
            if section not in response_format.names:
                raise RewardError(
                    f"rewards.{name}.kwargs.{argument}={shown(section, 80)!r} is not declared; "
                    f"{response_format.declared}"
                )
    for section in (
        *reward.sections,
        *(gold_section for gold_section in reward.gold_sections if gold_section not in GOLD_FIELDS),
    ):
        if section == IMAGE_LINES and not response_format.lines_section:
            raise RewardError(
                f"rewards.{name}: {config.function} reads one line per image; {response_format.declared}: set "
                "per_image_lines: true on one of them"
            )
        if section != IMAGE_LINES and section not in response_format.names:
            raise RewardError(
                f"rewards.{name}: {config.function} reads the section {shown(section, 80)!r}, which is not declared; "
                f"{response_format.declared}"
            )


def _named_sections(value: object) -> Sequence[object]:
    """The section names that a keyword argument holds: one or a list; None and an empty text name none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    return [value] if value else []


def _is_own(module: ModuleType, value: object) -> bool:
    """Whether a module's value may be a reward that is defined there, not an import."""
    function = value.function if isinstance(value, DeclaredReward) else value
    return inspect.isfunction(function) and function.__module__ == module.__name__


def _is_async(function: RewardCallable) -> bool:
    """Whether calling gives an awaitable, for functions and for objects with an async ``__call__``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _bound_arguments(name: str, config: RewardConfig, function: RewardCallable) -> Mapping[str, object]:
    """The arguments that a call of the function gets, by name, defaults included."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:  # Python's own functions written in C may not say what they take
        raise RewardError(
            f"rewards.{name}.function: {config.function} does not say what arguments it takes; name a function written "
            "in Python, whose first argument is the call"
        ) from error
    try:
        bound = signature.bind(None, **config.kwargs)
    except TypeError as error:
        raise RewardError(
            f"rewards.{name}.kwargs={config.kwargs} do not fit {config.function}{signature}: {error}; "
            "the first argument is the call, the others come from kwargs"
        ) from error
    bound.apply_defaults()
    return bound.arguments


def _module_by_name(name: str, module_name: str) -> ModuleType:
    if not module_name or module_name.startswith("."):
        raise RewardError(
            f"rewards.{name}.function: {shown(module_name)!r} is no whole name of a module; write "
            "package.module:function, or a file as path/to/file.py:function"
        )
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise RewardError(
            f"rewards.{name}.function: cannot import {shown(module_name)} ({shown(error)}); name a module on the "
            "Python path, or a file as path/to/file.py:function"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _load_error(name, module_name, error) from error


def _module_from_file(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise RewardError(f"rewards.{name}.function: there is no file {file}; paths are relative to the run's start")
    # One module object a file, under a name that nothing else can have: two files may share a stem.
    module_name = f"_rewards_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise RewardError(f"rewards.{name}.function: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _load_error(name, str(file), error) from error
    return module


def _load_error(name: str, source: str, error: BaseException) -> RewardError:
    """The error for a module or file that raises while it is loaded."""
    way_out = "; take the exit out of it" if isinstance(error, SystemExit) else ""
    return RewardError(
        f"rewards.{name}.function: cannot load {shown(source)}: {type(error).__name__}: {shown(error)}"
        f"{_line_in(source, error)}{way_out}"
    )


def _line_in(source: str, error: BaseException) -> str:
    """The line of the file that an exception came from, for a message; empty if it came from no line of it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f" (line {lines[-1]})" if lines else ""
