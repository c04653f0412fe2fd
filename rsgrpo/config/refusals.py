"""Hydra's, OmegaConf's and YAML's complaints about settings, as sentences that name the key and the way out."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import typing
from collections.abc import Iterator, Sequence

from hydra.errors import (
    CompactHydraException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError, YAMLError

from rsgrpo.config import Config
from rsgrpo.errors import shown

_GROUPS = ("recipe", "algorithm", "machine")
_SHOWN_NAMES = 2
_CUTOFF = 0.6  # difflib's likeness below which a name is no likely slip
_FILE = re.compile(r"^In '([^']+)':")
_MERGED = re.compile(r"Error merging override (.*)", re.DOTALL)
_KEY_IN_QUOTES = re.compile(r"'([^']*)'")
_BARE_TAG = re.compile(r"""(?<!["'])</?[\w.-]+>(?!["'])""")
_NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list such as [a, b]"}


def settings_sentence(error: BaseException) -> str:
    """What a complaint of hydra, OmegaConf or a YAML parser means; empty for other exceptions.

    Args:
        error: the error as it was raised.

    Example:
        Hydra's refusal of ``rl.max_step=3`` becomes "there is no setting rl.max_step; the nearest is rl.max_steps".
    """
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    inner = next((cause for cause in _chain(error) if isinstance(cause, (OmegaConfBaseException, YAMLError))), None)
    where = _file_of(error)
    if isinstance(inner, YAMLError):
        return _bad_yaml(inner, where)
    if isinstance(inner, OmegaConfBaseException):
        sentence = value_sentence(inner)
        merged = _MERGED.match(str(error))
        # Inside a list or braces OmegaConf knows no more than the last name.
        if merged and merged[1].partition("=")[0].lstrip("+~") not in sentence:
            return f"{shown(merged[1], 120)}: {sentence}"
        return where + sentence
    if isinstance(error, SearchPathException):
        return f"{shown(str(error))}; check the path"
    if isinstance(error, CompactHydraException):
        return _composition(str(error))
    if isinstance(error, HydraException):
        return f"hydra refuses the call: {shown(str(error))}"
    return ""


def value_sentence(error: OmegaConfBaseException) -> str:
    """What is wrong with one setting.

    Args:
        error: the error of OmegaConf, with the key.
    """
    key = error.full_key or ""
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        what = shown(str(error.msg or error).splitlines()[0])
        return (
            f"{key or 'a value'} cannot be resolved: {what}; ${{…}} stands for another setting, write it as \\${{…}} "
            "if it is meant as text"
        )
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _no_such_key(key)
    value = f"={shown(error.value, 80)}" if error.value is not None else ""
    needed = _needed(key)
    if needed:
        got = value or _got(str(error.msg or error))
        return f"{key}{got} does not fit; it must be {needed}"
    return f"{key or 'the content'}{value} does not fit: {shown(str(error.msg or error).splitlines()[0])}"


def _got(message: str) -> str:
    """The value that was given, where OmegaConf only says it in words."""
    found = re.match(r"Value '(.*?)'(?: of type| \(|$| )", message, re.DOTALL) or re.search(
        r"value: (.*)$", message, re.MULTILINE
    )
    if found:
        return f"={shown(found[1], 80)}"
    return "=null" if "not Optional" in message or "'None'" in message or "is not optional" in message else ""


def setting_keys() -> tuple[str, ...]:
    """Every key of the schema, those of whole groups such as ``rl.optimizer`` included."""
    return tuple(_keys(Config, ""))


def _keys(kind: type, prefix: str) -> Iterator[str]:
    for name, wanted in typing.get_type_hints(kind).items():
        key = f"{prefix}{name}"
        yield key
        if dataclasses.is_dataclass(wanted):
            yield from _keys(typing.cast(type, wanted), f"{key}.")


def nearest(name: str, known: Sequence[str]) -> str:
    """The likely meaning of a misspelt name, as the end of a sentence; empty if nothing is like it.

    Args:
        name: the name as it was written.
        known: the names that there are.

    Example:
        ``nearest("quickstrt", ["quickstart", "evisrag_7b"])`` is ``"; the nearest is quickstart"``.
    """
    last = name.rpartition(".")[2]
    ranked = [choice for choice in known if "." in choice and choice.rpartition(".")[2] == last]
    ranked += difflib.get_close_matches(name, known, n=_SHOWN_NAMES, cutoff=_CUTOFF)
    if not ranked:
        ends = {choice.rpartition(".")[2]: choice for choice in known}
        ranked = [ends[end] for end in difflib.get_close_matches(last, list(ends), n=_SHOWN_NAMES, cutoff=_CUTOFF)]
    found = list(dict.fromkeys(ranked))[:_SHOWN_NAMES]
    if not found:
        return ""
    return f"; the nearest {'is' if len(found) == 1 else 'are'} {' and '.join(found)}"


def _no_such_key(key: str) -> str:
    if key in (*setting_keys(), *_GROUPS):
        return (
            f"the setting {shown(key)} has no place: a file of a group such as recipe begins with the line "
            "`# @package _global_`, and one for --config-name with `defaults: [schema]`"
        )
    parent, _, last = key.rpartition(".")
    kind = _kind(parent) if parent else Config
    # A slip of the last word alone is the likeliest; then any key at all.
    siblings = list(typing.get_type_hints(kind)) if dataclasses.is_dataclass(kind) else []
    alike = difflib.get_close_matches(last, siblings, n=1, cutoff=_CUTOFF) if parent else []
    if alike:
        return f"there is no setting {shown(key)}; the nearest is {shown(parent)}.{alike[0]}"
    likely = nearest(key, (*setting_keys(), *_GROUPS)) or "; `rsgrpo train --cfg job` prints all of them"
    return f"there is no setting {shown(key)}{likely}"


def _kind(key: str) -> typing.Any:
    """The type of a setting; None if the key is not in the schema."""
    kind: typing.Any = Config
    for part in key.replace("[", ".[").split("."):
        if part.startswith("["):
            kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind


def _needed(key: str) -> str:
    """What a setting takes, in words; empty if the key is not in the schema."""
    kind = _kind(key)
    if dataclasses.is_dataclass(kind):
        return "settings of its own, key by key or in braces"
    if typing.get_origin(kind) is dict:
        return "settings in braces such as {key: value}"
    if type(None) in typing.get_args(kind):  # list[str] | None
        kind = typing.get_args(kind)[0]
    return _NEEDED.get(typing.get_origin(kind) or kind, "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _file_of(error: BaseException) -> str:
    """Which settings file the complaint is about, as the beginning of a sentence; empty for the command line."""
    found = _FILE.match(str(error))
    return f"{found[1]}.yaml: " if found and found[1] != "config" else ""


def _bad_yaml(error: YAMLError, where: str) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        place = shown(mark.name) if not mark.name.startswith("<") else where.rstrip(": ")
        return f"{place} is no YAML, line {mark.line + 1} column {mark.column + 1}: {shown(error.problem)}"
    return f"{where}it is no YAML: {shown(error)}"


def _missing_file(error: MissingConfigException) -> str:
    wanted = error.missing_cfg_file or ""
    group, _, name = wanted.rpartition("/")
    if not wanted:
        return f"{shown(str(error))}; check the path"
    if not group:
        return (
            f"--config-name names no settings file {shown(wanted)!r}: there is none of that name in configs/ or "
            "--config-dir; leave it out to start from configs/config.yaml"
        )
    options = list(error.options or ())
    if not name or name == "null":
        return f"{group}={name} chooses nothing; choose one of {shown(', '.join(options))}"
    kind, _, folder = group.partition("/")
    if folder or name.endswith((".yaml", ".yml")):
        return (
            f"{kind}={shown(wanted.partition('/')[2])} names a file; {kind} takes a name without folder and suffix: "
            f"put your file into a folder {kind}/ and add --config-dir with the folder above it, or choose one of "
            f"{shown(', '.join(options))}"
        )
    return f"there is no {group} {shown(name)!r}{nearest(name, options)}; choose one of {shown(', '.join(options))}"


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    name = key.lstrip("+~")
    if not equals:
        return f"{shown(override)!r} sets nothing; write {shown(name) or 'key'}=VALUE, without blanks around the ="
    if not re.fullmatch(r"[\w@:-]+([./][\w@:-]+)*(\[\d+\])?", name, re.ASCII):
        return f"{shown(override)!r} cannot be read: {shown(name)!r} is no key; write key=value, one argument each"
    if value.startswith("~"):
        return (
            f"{shown(override)!r} begins with ~, which only a shell expands; write {shown(key)}=$HOME{shown(value[1:])}"
        )
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "{}", "()")):
        return (
            f"{shown(override, 120)!r} cannot be read: its brackets are not balanced; where the shell has split it, "
            f"put the whole argument in quotes, such as '{shown(key, 60)}=[a, b]', and for a text write "
            f"{shown(quoted_override(key, value), 120)}"
        )
    if (value[:1], value[-1:]) in (("{", "}"), ("[", "]")) and _kind(name) is not str:
        quoted = _BARE_TAG.sub(r'"\g<0>"', value)
        way_out = (
            f"write {shown(shlex.quote(f'{key}={quoted}'), 160)}"
            if quoted != value
            else 'put quotes around it there, such as {key: "a = b"}'
        )
        return (
            f"{shown(override, 120)!r} cannot be read: inside braces and brackets a text with characters such as "
            f"< > = : $ needs quotes of its own; {way_out}"
        )
    return (
        f"{shown(override, 120)!r} cannot be read: characters such as = , : {{ }} [ ] ( ) $ ' \" in a text must be "
        f"quoted; write {shown(quoted_override(key, value), 160)}"
    )


def quoted_override(key: str, value: str) -> str:
    """How to write an override whose value is a text, for a shell: quotes for hydra inside quotes for the shell.

    Args:
        key: the key of the setting, with its ``+`` if it has one.
        value: the text that the setting shall have.

    Example:
        ``quoted_override("prompt.system", "a=b")`` is ``'prompt.system="a=b"'``.
    """
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    escaped = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', bare).replace("${", "\\${")
    if escaped.endswith("\\"):
        escaped += "\\"
    return shlex.quote(f'{key}="{escaped}"')


_COMPOSITION = (
    ("Ambiguous value for argument", "ambiguous"),
    ("No match in the defaults list", "no match"),
    ("appears more than once", "twice"),
    ("Multiple values for", "twice"),
    ("Could not delete", "delete"),
    ("Could not append to config", "append"),
    ("Could not override", "override"),
)


def _composition(message: str) -> str:
    """What hydra says in a message alone, without an exception of OmegaConf's behind it."""
    in_file = re.match(r"In '([^']+)': Could not override '([^']+)'", message)
    if in_file:
        return (
            f"{shown(in_file[1], 120)} overrides the choice of {shown(in_file[2])!r}, which nothing made before it: a "
            "recipe may `override /algorithm`, and is itself chosen by recipe=NAME, not by --config-name"
        )
    kind = next((kind for start, kind in _COMPOSITION if start in message), "")
    quoted = _KEY_IN_QUOTES.search(message)
    name = quoted[1] if quoted else message.partition(" ")[0]
    key, _, value = name.partition("=")
    if kind == "ambiguous":
        return (
            f"{shown(name, 120)!r} could be a list or a text with a comma; write "
            f"{shown(shlex.quote(f'{key}=[{value}]'), 130)} or {shown(quoted_override(key, value), 130)}"
        )
    if kind == "no match" and not name:
        return "'=' without a name in front of it sets nothing; write key=value, one argument each"
    if kind == "no match":
        return f"nothing chooses a {shown(name)} yet; write +{shown(name)}=NAME, with a plus"
    if kind == "twice":
        named = re.search(r"(?:Multiple values for )?([\w/]+)", message.replace("Multiple values for ", ""))
        group = named[1] if named else name
        return f"{group} is chosen more than once; write {group}=NAME once, without a plus"
    if kind == "delete":
        return f"~{shown(key)} takes out what is not there{nearest(key, (*setting_keys(), *_GROUPS))}"
    if kind == "append":
        return f"{shown(key)} has a value already; write {shown(key)}=VALUE, without the plus"
    if kind == "override":
        return _no_such_key(key)
    return f"hydra refuses the settings: {shown(message, 300)}"
