"""Write ``docs/settings.md`` from the docstrings in ``rsgrpo/config``: ``python -m docs.scripts.settings_page``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.config import Config
from rsgrpo.config.distill import DistillConfig
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.index import IndexConfig

PAGE = Path(__file__).resolve().parents[1] / "settings.md"

_HEAD = """\
# Settings

<!-- Written by `python -m docs.scripts.settings_page`. Change the docstrings in rsgrpo/config, then run it again. -->

Every setting, with its default and its meaning, as the docstrings in `rsgrpo/config` have them. Recipes
(`configs/recipe`), algorithms (`configs/algorithm`) and machines (`configs/machine`) set other values;
`uv run train.py --cfg job` prints what holds for a run. On the command line a setting is `key=value`, such as
`rl.max_steps=50`; a misspelt key or a value of the wrong kind is refused before anything starts.

The sections `index` and `documents` are those of [`rsgrpo index` and `rsgrpo search`](retrieval.md), which take
`embedder.*` as well, and
`distill` is that of [`rsgrpo distill-relevance`](distill.md).

`[]` behind a name means an entry of a list, and `NAME` a name of your own: `rewards.short.weight=0.5`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One row of the page.

    Attributes:
        key: as on the command line, such as ``rl.loss.clip_low``; ``[]`` and ``NAME`` stand for entries.
        kind: its type, as annotated.
        default: as YAML has it; empty for a required value.
        meaning: the field's docstring on one line; empty where it has none.
    """

    key: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One table of the page: the settings of one dataclass, at one place.

    Attributes:
        key: where it stands, such as ``rl.loss``; empty for the top level.
        title: first line of the dataclass's docstring.
        settings: in the order of the fields; nested sections are tables of their own.
    """

    key: str
    title: str
    settings: tuple[Setting, ...]


def field_docs(kind: type) -> dict[str, tuple[str, str]]:
    """Annotation and docstring of every field of a dataclass, from its source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, tuple[str, str]] = {}
    for index, statement in enumerate(node.body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        following = node.body[index + 1] if index + 1 < len(node.body) else None
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        found[statement.target.id] = (ast.unparse(statement.annotation), text)
    return found


def sections(kind: type = Config, key: str = "", given: object = None) -> Iterator[Section]:
    """The tables of a dataclass and of all that are nested in it.

    Args:
        kind: the settings class, a dataclass.
        key: where it stands.
        given: an instance whose values are the defaults here; None: those of the class.
    """
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    written = typing.get_type_hints(kind, include_extras=True)  # with the choices of a Literal
    rows: list[Setting] = []
    nested: list[Section] = []
    for field in dataclasses.fields(kind):
        path = f"{key}.{field.name}" if key else field.name
        value = _default(field) if given is None else getattr(given, field.name)
        annotation, meaning = docs[field.name]
        if typing.get_origin(written[field.name]) is typing.Annotated:
            annotation = " | ".join(typing.get_args(written[field.name])[1:])
        inner = _inner(hints[field.name])
        if inner is None:
            rows.append(Setting(key=path, kind=annotation, default=_as_yaml(value), meaning=meaning))
            continue
        inner_kind, suffix = inner
        if suffix:
            rows.append(Setting(key=path, kind=annotation, default=_as_yaml(value), meaning=meaning))
        nested += sections(inner_kind, path + suffix, None if suffix or value is dataclasses.MISSING else value)
    title = (inspect.getdoc(kind) or "").split("\n\n")[0]
    yield Section(key=key, title=" ".join(title.split()), settings=tuple(rows))
    yield from nested


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD]
    for section in (
        *sections(),
        *sections(IndexConfig, "index"),
        *sections(RenderSettings, "documents"),
        *sections(DistillConfig, "distill"),
    ):
        lines = [f"## `{section.key}`" if section.key else "## The run", "", _markdown(section.title), ""]
        if section.settings:
            lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for row in section.settings:
            # Each choice is code of its own: a bar inside of code would keep the backslash that the table needs.
            kind = ", ".join(f"`{choice}`" for choice in row.kind.split(" | "))
            cells = (f"`{row.key}`", kind, f"`{row.default}`" if row.default else "", _markdown(row.meaning))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _inner(hint: Any) -> tuple[type, str] | None:
    """The dataclass that a field holds, and how its entries are written; None for a plain value."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint, ""
    arguments = typing.get_args(hint)
    if arguments and isinstance(arguments[-1], type) and dataclasses.is_dataclass(arguments[-1]):
        return arguments[-1], "[]" if typing.get_origin(hint) is list else ".NAME"
    return None


def _as_yaml(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(_as_yaml(entry) for entry in value)}]"
    if dataclasses.is_dataclass(value):
        set_fields = [field for field in dataclasses.fields(value) if getattr(value, field.name) != _default(field)]
        return _as_yaml({field.name: getattr(value, field.name) for field in set_fields})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_as_yaml(entry)}" for name, entry in value.items()) + "}"
    return str(value) or '""'


def _markdown(text: str) -> str:
    """Docstrings write code between two backticks, and name pages of this folder by their paths."""
    text = re.sub(r":(?:mod|func|class):(?=`)", "", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return re.sub(r"\bdocs/(\w+)\.md\b", r"[\1](\1.md)", text)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
