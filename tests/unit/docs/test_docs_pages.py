"""What the docs say of files, modules and settings is there; generated pages are up to date; README stays short."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from docs.scripts import package_picture, results_picture, scopes_picture, settings_page
from docs.scripts.no_network import fetched_addresses
from docs.scripts.plain_roles import without_roles
from rewards.lab.__main__ import main as lab
from rsgrpo.config import ClusterConfig, Config, LossConfig
from tests.unit.docs.shell_blocks import DOCUMENTS, REPOSITORY, inline_code, split_page

MAX_README_LINES = 160
PAGES = [file for file in DOCUMENTS if file.name != "BENCHMARKS.md"]  # it tells of commits long past

_FILE = re.compile(r"(?:rsgrpo|rewards|rollout|recipes|configs|tests|benchmarks|docs)/[\w./-]*")
_MODULE = re.compile(r"(?:rsgrpo|rewards|rollout|recipes)(?:\.[A-Za-z_]\w*)+")
_SECTIONS = "|".join(field.name for field in dataclasses.fields(Config))
_SETTING = re.compile(rf"[+~]?((?:{_SECTIONS})\.(?!py$)[a-z_*.]+)(?:=.*)?")
_GROUP = re.compile(r"\+?(recipe|algorithm|machine)=(\w+)")


def _known_settings() -> set[str]:
    sections = list(settings_page.sections())
    known = {row.key for section in sections for row in section.settings} | {section.key for section in sections}
    return known - {""}


KNOWN_SETTINGS = _known_settings()


def _is_setting(key: str) -> bool:
    """Whether it is a setting, a section, or a pattern of some; a reward and a list's entry have names of their own."""
    parts = key.split(".")
    if parts[0] == "rewards" and len(parts) > 1:
        key = ".".join(["rewards.NAME", *parts[2:]])
        key = "rewards.NAME.kwargs" if key.startswith("rewards.NAME.kwargs.") else key
    return bool(fnmatch.filter(KNOWN_SETTINGS, key))


def _is_in_module(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something defined in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = REPOSITORY.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            continue
        if length == len(parts):
            return True
        source = file.read_text()
        return all(re.search(rf"\b{re.escape(part)}\b", source) for part in parts[length:])
    return False


def _mentions(file: Path) -> list[tuple[int, str]]:
    return [(line, code.rstrip(":,;")) for line, code in inline_code(file)]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_files_modules_and_settings_that_the_docs_name_exist(file: Path) -> None:
    wrong = []
    for line, code in _mentions(file):
        setting, group = _SETTING.fullmatch(code), _GROUP.fullmatch(code)
        if _FILE.fullmatch(code):
            is_right = (REPOSITORY / code).exists()
        elif _MODULE.fullmatch(code) and (_is_in_module(code) or not setting):
            is_right = _is_in_module(code)
        elif setting:
            is_right = _is_setting(setting[1])
        elif group and group[2] != "NAME":
            is_right = (REPOSITORY / "configs" / group[1] / f"{group[2]}.yaml").is_file()
        else:
            continue
        wrong += [] if is_right else [f"{file.name}:{line}: {code}"]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "exists"),
    [("rl.loss.clip_low", True), ("rl.loss.clip_lower", False), ("model.lora.*", True), ("rewards.short.weight", True),
     ("rewards.short.wieght", False), ("eval.endpoint.processor_*", True), ("eval.endpoints.*", False)],
)  # fmt: skip
def test_a_setting_that_does_not_exist_is_found(name: str, exists: bool) -> None:
    assert _is_setting(name) == exists


def test_a_module_that_does_not_exist_is_found() -> None:
    assert _is_in_module("rsgrpo.data.readers.open_reader")
    assert not _is_in_module("rsgrpo.data.readers.open_readers")
    assert not _is_in_module("rsgrpo.page_view")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_outside_the_site_lead_somewhere(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            assert (REPOSITORY / path).exists(), target
            headings = re.findall(r"^#+ (.*)$", (REPOSITORY / path).read_text(), re.MULTILINE) if anchor else []
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert not anchor or anchor in slugs, target


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_python_examples_are_python(file: Path) -> None:
    for block in split_page(file)[0]:
        if block.language == "python":
            compile(block.text, str(file), "exec")


@pytest.mark.parametrize("name", ["README.md", "docs/rewards.md"])
def test_the_reward_in_ten_lines_earns_what_the_docs_print(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (reward,) = [block.text for block in split_page(REPOSITORY / name)[0] if "def short_thinking" in block.text]
    (tmp_path / "my_rewards.py").write_text(reward)
    monkeypatch.chdir(tmp_path)
    assert lab(["lint", "my_rewards.py:short_thinking"]) == 1  # a trick pays, as the page says
    printed = capsys.readouterr().out.splitlines()
    blocks = split_page(REPOSITORY / "docs" / "rewards.md")[0]
    (shown,) = [block.text for block in blocks if block.text.startswith("$ uv run rsgrpo lab lint")]
    assert [line for line in shown.splitlines()[1:] if line not in (*printed, "…")] == []


def test_the_settings_page_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "run: python -m docs.scripts.settings_page"


def test_the_settings_page_has_every_field_of_every_class() -> None:
    rows = {row.key: row for section in settings_page.sections() for row in section.settings}
    for field in dataclasses.fields(LossConfig):
        assert (f"rl.loss.{field.name}" in rows) != (field.name == "kl")
    # nested, in a list, by name, and with the default of the place instead of the class
    assert rows["rl.loss.kl.target"].default == "0"
    assert rows["sft.phases[].optimizer.schedule"].default == "constant"
    assert rows["rewards.NAME.scope.evidence_line"].default == "false"
    rates = [rows[f"{stage}.optimizer.learning_rate"].default for stage in ("sft", "rl")]
    assert rates == ["5e-07", "1e-06"]
    assert rows["rewards.NAME.function"].default == ""
    written = inspect.getsource(ClusterConfig).count('"""') // 2
    documented = [row for key, row in rows.items() if key.startswith("cluster.") and row.meaning]
    assert len(documented) == written - 1  # the class has one of its own


def test_every_setting_has_a_docstring() -> None:
    rows = [row for section in settings_page.sections() for row in section.settings]
    assert [row.key for row in rows if not row.meaning] == []


def test_the_picture_of_the_packages_is_up_to_date() -> None:
    imports = package_picture.package_imports()
    assert package_picture.PICTURE.read_text() == package_picture.picture(imports), (
        "run: python -m docs.scripts.package_picture"
    )
    assert package_picture.PAGE.read_text() == package_picture.page(imports)


def test_all_arrows_of_the_picture_point_down() -> None:
    imports = package_picture.package_imports()
    height = package_picture.levels(imports)
    assert all(height[target] < height[name] for name, targets in imports.items() for target in targets)
    centre = package_picture.places(imports)
    for arrow in package_picture.routes(imports):
        vertical = [centre[point][1] for point in arrow]
        assert vertical == sorted(set(vertical))


def test_a_circle_of_packages_is_named() -> None:
    circle = {"a": frozenset({"b"}), "b": frozenset({"a"}), "c": frozenset[str]()}
    with pytest.raises(ValueError, match="a, b"):
        package_picture.levels(circle)


def test_the_picture_leaves_out_what_follows_from_other_arrows() -> None:
    imports = {"a": frozenset({"b", "c"}), "b": frozenset({"c"}), "c": frozenset[str]()}
    assert package_picture.direct(imports) == {"a": ["b"], "b": ["c"], "c": []}


def test_imports_are_read_from_sources() -> None:
    source = "import os\nfrom rsgrpo import types\nfrom rsgrpo.io.jsonl import rows\ndef f():\n    import rewards.lab\n"
    assert package_picture.imported_modules(source, "recipes.x") == {"rsgrpo.types", "rsgrpo.io.jsonl", "rewards.lab"}


@pytest.mark.parametrize("script", [results_picture, scopes_picture])
def test_pictures_of_figures_are_up_to_date(script: ModuleType) -> None:
    assert script.PICTURE.read_text() == script.picture(), f"run: python -m {script.__name__}"


def test_files_named_in_the_five_questions_lie_at_most_two_folders_deep() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    (table,) = re.findall(r"## Five questions.*?\n(\|.*?)\n\n", text, re.DOTALL)
    rows = table.splitlines()[2:]
    assert len(rows) == 5
    for row in rows:
        names = [name for name in re.findall(r"`([^`]+)`", row.split("|")[3]) if _FILE.fullmatch(name)]
        assert names
        for name in names:
            assert (REPOSITORY / name).exists()
            assert name.rstrip("/").count("/") <= 2, f"{name} is not seen after opening two folders"


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href=//fonts.example/f.css>', ["//fonts.example/f.css"]),
        ('<link rel="canonical" href="https://here.example/"><a href="https://there.example">text</a>', []),
        ('<img src="images/method.svg">', []),
        ('<pre class="mermaid"><code>graph TD</code></pre>', ["mermaid"]),
    ],
)
def test_pages_that_would_fetch_something_are_found(html: str, found: list[str]) -> None:
    assert fetched_addresses(html) == found


def test_roles_of_docstrings_do_not_reach_the_pages() -> None:
    assert without_roles("<p>See :func:<code>f</code>, :class:<code>C</code>: x</p>") == (
        "<p>See <code>f</code>, <code>C</code>: x</p>"
    )
    assert ":mod:" not in settings_page.page()


def test_no_code_in_a_table_of_settings_holds_a_backslash_for_the_table() -> None:
    # Python-Markdown shows it: `a \| b` is printed with its backslash
    assert [code for code in re.findall(r"`[^`\n]*`", settings_page.page()) if "\\|" in code] == []
