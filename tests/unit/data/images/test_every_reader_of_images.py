"""Every place that shows an image to a model or to people gets it through the one way in."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from recipes.evaluation.benchmark_requests import load_tasks
from recipes.evaluation.benchmark_tasks import run_benchmarks
from rsgrpo.config import Config, ConfigError, DataConfig, EndpointConfig, EvalConfig, LoggingConfig, ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.data.images.loading import reading_fingerprint
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.evaluation.prompts.combine import combine_images
from rsgrpo.model.folder import load_processor
from rsgrpo.model.policy_model import load_model
from rsgrpo.model.setup import open_image_features
from rsgrpo.model.vision_tower import take_vision_tower
from rsgrpo.model.vlm import PromptEncoder
from rsgrpo.run.report.pictures import embed_pictures
from rsgrpo.types import ImageRef
from tests.benchmark_data import write_evisrag
from tests.fake_server import FakeServer
from tests.tiny_model import build_tiny_model


def sideways(file: Path) -> ImageRef:
    """A photo of 60 × 90 with a red band on top, stored lying on its side."""
    image = Image.new("RGB", (60, 90), "white")
    ImageDraw.Draw(image).rectangle([0, 0, 60, 15], fill="red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=95)
    return ImageRef(path=file.name, file=str(file))


def inked(file: Path) -> ImageRef:
    """Black ink on transparent paper, 60 × 40."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle([10, 10, 30, 20], fill="black")
    image.save(file)
    return ImageRef(path=file.name, file=str(file))


def damaged(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    data = buffer.getvalue()
    file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")


def has_red_top(image: Image.Image) -> bool:
    pixels = np.asarray(image.convert("RGB")).astype(int)
    top, bottom = pixels[len(pixels) // 20, pixels.shape[1] // 2], pixels[-3, pixels.shape[1] // 2]
    return bool(top[0] > 200 and top[1] < 90 and bottom.min() > 200)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def test_tokens_are_counted_of_the_upright_page(tmp_path: Path, model_folder: Path):
    processor = load_processor(model_folder)
    rules = ImageRules(min_pixels=1, max_pixels=10**6)
    # Strips of 20 × 100: upright they are 100 × 20, which the processor rounds another way than 20 × 100.
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (20, 100)).save(tmp_path / "a.png", exif=exif)
    ref = ImageRef(path="a.png", file=str(tmp_path / "a.png"))
    (image,) = PromptEncoder(processor, rules=rules, max_prompt_tokens=100).images([ref]).values()
    assert image.grid[1] < image.grid[2]
    assert ImageTokens(processor.image_processor, rules).count(ref) == image.num_tokens


def test_another_reading_makes_another_key_of_stored_features(tmp_path: Path, model_folder: Path):
    processor = load_processor(model_folder)
    ref = inked(tmp_path / "a.png")
    found = {}
    for background in ("white", "#102030"):
        tower = take_vision_tower(load_model(model_folder, ModelConfig(dtype="float32", freeze_vision=True)))
        data = DataConfig(min_pixels=1, background=background)
        store = open_image_features(
            tower, Config(stage="eval", data=data), tmp_path / "store", processor, torch.device("cpu")
        )
        assert store.grid(ref) is None  # nothing of this background is stored yet
        encoder = PromptEncoder(processor, rules=data.image_rules, max_prompt_tokens=100)
        (image,) = encoder.images([ref]).values()
        found[background] = store.features(ref, image.grid, partial(encoder.pixels, image))
        assert store.grid(ref) == image.grid
    assert not torch.equal(found["white"], found["#102030"])
    rules = ImageRules(max_pixels=1000)
    assert reading_fingerprint(rules) != reading_fingerprint(ImageRules(max_pixels=1001))
    assert reading_fingerprint(rules) == reading_fingerprint(ImageRules(max_pixels=1000, max_megapixels=1.0))


def test_the_report_shows_what_the_model_saw(tmp_path: Path):
    recorded = sideways(tmp_path / "a.jpg")
    moved = ImageRef(path="b.png", file="/gone/imgs/b.png")
    (tmp_path / "imgs").mkdir()
    inked(tmp_path / "imgs" / "b.png")
    found = embed_pictures([recorded, moved], tmp_path, ImageRules(background=(0, 0, 255), max_pixels=10))
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in found.values()]
    assert pictures[0].size == (60, 90) and has_red_top(pictures[0])
    assert pictures[1].convert("RGB").getpixel((1, 1)) == (0, 0, 255)


def test_combined_canvases_show_upright_pictures_and_are_drawn_anew_for_another_background(tmp_path: Path):
    pictures = [sideways(tmp_path / "a.jpg"), inked(tmp_path / "b.png")]
    for background, paper in (((255, 255, 255), 255), ((0, 0, 0), 0), ((255, 255, 255), 255)):
        rules = ImageRules(background=background, min_pixels=3136, max_pixels=4000)
        (canvas,) = combine_images("7", pictures, 1, tmp_path / "canvases", rules)
        sheet = Image.open(canvas.file).convert("RGB")
        assert has_red_top(sheet.crop((0, 0, 800, 700)))
        assert np.abs(np.asarray(sheet)[40, 840].astype(int) - paper).max() < 12
    drawn_at = Path(canvas.file).stat().st_mtime_ns
    combine_images("7", pictures, 1, tmp_path / "canvases", rules)
    assert Path(canvas.file).stat().st_mtime_ns == drawn_at


def test_a_data_set_counts_its_images_and_leaves_bad_ones_out(tmp_path: Path):
    sideways(tmp_path / "a.jpg")
    inked(tmp_path / "b.png")
    damaged(tmp_path / "c.jpg")
    Image.new("RGB", (1, 199)).save(tmp_path / "d.png")  # 3 × 789 after data.min_pixels: too long for the processor
    names = ["a.jpg", "b.png", "c.jpg", "d.png"]
    rows = [{"qid": name, "query": "?", "answer": ["x"], "image": [name], "is_sufficient": True} for name in names]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"2 × image"):
        load_samples(str(tmp_path / "test.jsonl"), DataConfig(), is_training=False)
    kept = load_samples(
        str(tmp_path / "test.jsonl"), DataConfig(on_bad_sample="skip", max_skipped_frac=1.0), is_training=False
    )
    assert [sample.sample_id for sample in kept.samples] == ["a.jpg", "b.png"]
    assert kept.skipped == {"image": 2}
    assert (kept.images.read, kept.images.oriented, kept.images.composed) == (2, 1, 1)


def test_a_benchmark_names_a_damaged_image_before_it_asks_or_leaves_its_question_out(tmp_path: Path):
    root = tmp_path / "data"
    write_evisrag(root)
    folder = root / "EVisRAG-Test-ChartQA"
    damaged(folder / "imgs" / "2.png")  # q0 shows pages 0 to 2, q1 pages 0 and 1

    server = FakeServer()
    try:
        config = Config(
            stage="eval",
            run_dir=str(tmp_path / "run"),
            resume="never",
            data=DataConfig(min_pixels=784),
            eval=EvalConfig(
                tasks=["evisrag/chartqa"], data_root=str(root), endpoint=EndpointConfig(url=server.url, model="m")
            ),
            logging=LoggingConfig(wandb_mode="disabled", tensorboard=False, progress=False),
        )
        with pytest.raises(BenchmarkError, match=r"imgs/2\.png.*damaged"):
            load_tasks(config, None, tmp_path / "canvases")
        config.data.on_bad_sample = "skip"
        (task,) = load_tasks(config, None, tmp_path / "canvases")
        assert [request.sample.sample_id for request in task.requests] == ["q1"]
        assert task.skipped["image"] == 1
        run_benchmarks(config)
    finally:
        server.close()
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["images"]["read"] == 2 and report["images"]["kinds"] == {"PNG RGB": 2}


def test_settings_of_images_are_checked():
    assert DataConfig(background="#0a141e").image_rules.background == (10, 20, 30)
    assert DataConfig().image_rules == ImageRules(min_pixels=3136, max_pixels=1568000, background=(255, 255, 255))
    for wrong in ("paper", "", "#ffffff80"):
        with pytest.raises(ConfigError, match=r"data\.background"):
            DataConfig(background=wrong)
    for megapixels in (0.0, float("nan")):
        with pytest.raises(ConfigError, match=r"data\.max_image_megapixels"):
            DataConfig(max_image_megapixels=megapixels)
