"""Pipes, sockets, devices and links in a circle where a file is expected: named at once, never waited for."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.setup.first_checks import check_first
from rsgrpo.config import Config, DataConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.file_bytes import check_kind
from rsgrpo.data.images.loading import check_image, image_size, load_image
from rsgrpo.data.readers.sources import source_files
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import explain
from rsgrpo.io.atomic_files import read_bytes
from rsgrpo.io.special_files import open_regular, special_kind
from rsgrpo.prompts.template import template_fingerprint
from rsgrpo.run.folder import RunFolderError, open_run_folder
from rsgrpo.types import ImageRef

KINDS = {
    "pipe": "a pipe",
    "socket": "a socket",
    "device": "a device",
    "circle": "links that lead in a circle",
    "longer circle": "links that lead in a circle",
    "folder in a circle": "links that lead in a circle",
    "dangling": "a link to nowhere, which does not exist",
}


def make(kind: str, path: Path) -> Path:
    """Something odd at a path, or below it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's path has few bytes
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path.name)
        finally:
            os.chdir(before)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path.name)
    elif kind == "longer circle":
        path.symlink_to("other")
        (path.parent / "other").symlink_to(path.name)
    elif kind == "folder in a circle":
        (path.parent / "round").symlink_to("round")
        return path.parent / "round" / path.name
    else:
        path.symlink_to("nowhere")
    return path


def told(use: Callable[[], object]) -> str:
    with pytest.raises(RsgrpoError) as raised:
        use()
    sentence = explain(raised.value).sentence
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x")
    assert KINDS[kind] in special_kind(path)
    with pytest.raises(OSError):
        open_regular(str(path))


def test_files_folders_and_nothing_are_not_special(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "nosuch", ".", "n" * 300, "a\0b"):
        assert special_kind(f"{tmp_path}/{name}") == ""
    with open_regular(str(tmp_path / "link")) as file:
        assert file.readall() == b"abc"
    with pytest.raises(IsADirectoryError):
        open_regular(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_named(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "p.png")
    ref = ImageRef(path="p.png", file=str(path))
    for read in (load_image, check_image, image_size):
        sentence = told(lambda read=read: read(ref, ImageRules()))  # type: ignore[misc]
        assert "p.png" in sentence
        assert KINDS[kind] in sentence or kind == "dangling"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"qid": "a", "query": "q", "image": [str(path)], "answer": ["x"]}) + "\n")
    assert KINDS[kind] in told(lambda: load_samples(str(data), DataConfig(), is_training=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.yaml"])
def test_a_data_path_is_named(kind: str, name: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / name)
    assert KINDS[kind] in told(lambda: source_files(str(path), "all"))
    if kind in ("pipe", "device"):  # it took a file's place after the look
        assert KINDS[kind] in told(lambda: check_kind(path))
        assert KINDS[kind] in told(lambda: read_bytes(path))


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_are_named(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x.jinja")
    assert KINDS[kind] in told(lambda: template_fingerprint(str(path)))
    (tmp_path / "model").mkdir()
    make(kind, tmp_path / "model" / "config.json")
    if kind != "folder in a circle":
        config = Config(stage="sft", run_dir=str(tmp_path / "run"))
        config.model.path = str(tmp_path / "model")
        assert KINDS[kind] in told(lambda: check_first(config))
        assert "config.json" in told(lambda: check_first(config))
    if kind != "dangling":

        def run() -> None:
            with open_run_folder(Config(stage="sft", run_dir=str(path))):
                pass

        assert KINDS[kind] in told(run)


@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "dangling"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_file_of_a_model_is_named(kind: str, name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    make("dangling", model / "notes.md")  # nobody reads it
    make(kind, model / name)
    config = Config(stage="sft", run_dir=str(tmp_path / "run"))
    config.model.path = str(model)
    sentence = told(lambda: check_first(config))
    assert name in sentence
    assert KINDS[kind] in sentence


@pytest.mark.parametrize("content", ["", "[1]", "{", "\0"])
def test_a_damaged_generation_config_is_named_before_workers_start(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(content)
    config = Config(stage="sft", run_dir=str(tmp_path / "run"))
    config.model.path = str(tmp_path)
    assert "generation_config.json" in told(lambda: check_first(config))


def test_a_file_as_run_folder_and_a_folder_as_template(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match="it is a file; choose another run_dir"),
        open_run_folder(Config(stage="sft", run_dir=str(tmp_path / "file"))),
    ):
        pass
    assert "is a folder; name a Jinja file" in told(lambda: template_fingerprint(str(tmp_path)))
    assert "does not exist; name a Jinja file" in told(lambda: template_fingerprint(""))
