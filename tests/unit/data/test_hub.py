"""Names of the hub: a model and a data set are fetched from a server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# huggingface_hub reads the server's address when it is imported, hence processes of their own.
LOAD_DATA = """
from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.loading import load_image
from rsgrpo.config.image_rules import ImageRules
sample, = load_samples("team/pages", DataConfig(), is_training=False).samples
print(sample.question, load_image(sample.images[0], ImageRules(min_pixels=784, max_pixels=12544)).size)
"""
FIND_MODEL = """
import sys
from pathlib import Path
from rsgrpo.model.folder import ModelError
from recipes.setup.preparation import find_base_model
from rsgrpo.config import Config, ModelConfig
from rsgrpo.run.folder import RunFolder
for name in sys.argv[1:]:
    config = Config(stage="eval", model=ModelConfig(path=name))
    try:
        print(sorted(path.name for path in find_base_model(config, RunFolder(root=Path("unused"))).iterdir()))
    except ModelError as error:
        print(str(error).replace("\\n", " "))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hub")
    for name, content in {
        "models/team/good/config.json": json.dumps({"model_type": "qwen2_5_vl"}),
        "models/team/good/tokenizer_config.json": "{}",
        "models/team/other/config.json": json.dumps({"model_type": "llama"}),
        "datasets/team/pages/top3_test.jsonl": json.dumps(
            {"qid": "a", "query": "What colour?", "answer": ["red"], "image": ["imgs/1.png"], "is_sufficient": True}
        ),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "datasets/team/pages/imgs").mkdir()
    Image.new("RGB", (56, 28), "red").save(root / "datasets/team/pages/imgs/1.png")

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.split("?")[0].strip("/")
            if path.startswith("api/"):
                repository = "/".join(path.split("/")[1:4])
                files = [file for file in sorted((root / repository).rglob("*")) if file.is_file()]
                names = [(str(file.relative_to(root / repository)), file.stat().st_size) for file in files]
                tree = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in names]
                about = {
                    "id": repository.partition("/")[2],
                    "sha": COMMIT,
                    "siblings": [{"rfilename": n} for n, _ in names],
                }
                self._send(json.dumps(tree if "/tree/" in path else about).encode() if files else None)
            else:
                place, _, name = path.partition(f"/resolve/{COMMIT}/")
                file = root / (place if place.startswith("datasets/") else f"models/{place}") / name
                self._send(file.read_bytes() if name and file.is_file() else None)

        def _send(self, body: bytes | None) -> None:
            self.send_response(404 if body is None else 200)
            body = body or b""
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def _run(code: str, hub: str, home: Path, *arguments: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_data_set_is_fetched_with_its_pages(hub: str, tmp_path: Path) -> None:
    assert _run(LOAD_DATA, hub, tmp_path) == "What colour? (56, 28)\n"


def test_a_model_is_fetched_whole_and_what_is_no_qwen_refused(hub: str, tmp_path: Path) -> None:
    good, other, missing = _run(FIND_MODEL, hub, tmp_path, "team/good", "team/other", "team/none").splitlines()
    assert good == "['config.json', 'tokenizer_config.json']"
    assert "model.path='team/other' is a 'llama' model" in other
    assert "model.path='team/none' is neither a folder nor a model that the hub gives" in missing
