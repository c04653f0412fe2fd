"""Stored features: whole or absent, bounded, shared by processes, damage noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsgrpo.config import ConfigError, ModelConfig, VisionCacheConfig
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.policy_model import load_model
from rsgrpo.model.vision_cache import FeatureStore, ImageFeatures, VisionCacheError, feature_key, tower_fingerprint
from rsgrpo.model.vision_tower import take_vision_tower
from rsgrpo.types import ImageRef
from tests.packed import Packed
from tests.tiny_model import build_tiny_model, make_group, write_images

GRID = (1, 4, 6)


def _store(folder: Path, num_bytes: int = 2**20) -> FeatureStore:
    return FeatureStore(folder, num_bytes)


@pytest.fixture(scope="module", params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), family=request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written_to_the_bit(tmp_path, dtype):
    features = torch.randn(6, 8).to(dtype)
    _store(tmp_path).write("a", features, GRID)
    other = _store(tmp_path)  # another process sees the same folder
    found = other.read("a")
    assert found is not None and found.dtype == dtype and torch.equal(found, features)
    assert other.grid("a") == GRID
    assert other.read("b") is None and other.grid("b") is None
    assert other.counts.num_corrupt == 0


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip_last_byte, _cut, _empty])
def test_a_damaged_entry_is_noticed_removed_and_counted(tmp_path, damage):
    store = _store(tmp_path)
    store.write("a", torch.randn(6, 8), GRID)
    damage(tmp_path / "a.safetensors")
    assert store.read("a") is None
    assert store.counts.num_corrupt == 1
    assert not (tmp_path / "a.safetensors").exists()
    store.write("a", torch.ones(6, 8), GRID)
    found = store.read("a")
    assert found is not None and torch.equal(found, torch.ones(6, 8))


def test_the_folder_keeps_to_its_bound_and_what_was_read_longest_ago_goes(tmp_path):
    # 1,000 bytes of features and a header of some 100: three fit into 3,600, four do not
    store = _store(tmp_path, 3600)
    for age, name in enumerate("abc"):
        store.write(name, torch.full((250,), float(age)), GRID)
        os.utime(tmp_path / f"{name}.safetensors", (age, age))
    assert store.read("a") is not None  # now b is the oldest
    store.write("d", torch.ones(250), GRID)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c", "d"]
    assert store.counts.num_evicted == 1
    store.write("e", torch.ones(2000), GRID)  # more than the folder may hold at all
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c", "d"]


def test_a_half_written_file_of_a_dead_process_goes_and_a_fresh_one_stays(tmp_path):
    for name, age in (("old", 7200.0), ("new", 0.0)):
        (tmp_path / f"{name}.partial").write_bytes(b"half")
        then = (tmp_path / f"{name}.partial").stat().st_mtime - age
        os.utime(tmp_path / f"{name}.partial", (then, then))
    _store(tmp_path).write("a", torch.ones(4), GRID)
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == ["new.partial"]


def test_processes_that_write_at_once_keep_whole_entries_and_the_bound(tmp_path):
    program = (
        "import sys, torch; from pathlib import Path; from rsgrpo.model.vision_cache import FeatureStore\n"
        "store = FeatureStore(Path(sys.argv[1]), 20_000)\n"
        "for turn in range(60):\n"
        "    for key in range(3): store.write(f'{(turn + key) % 30}', torch.full((250,), float((turn + key) % 30)), "
        "(1, 2, 2))\n"
        "    found = store.read(f'{turn % 30}')\n"
        "    assert found is None or bool((found == turn % 30).all())\n"
        "assert store.counts.num_corrupt == 0\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    entries = list(tmp_path.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in entries) <= 20_000
    assert len(entries) > 10
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VisionCacheError, match=r"model\.vision_cache\.folder=.*file.* cannot be written"):
        _store(tmp_path / "file")


def test_every_input_of_the_features_changes_the_name(model_folder):
    config = ModelConfig(dtype="float32", gradient_checkpointing=False)
    visual = take_vision_tower(load_model(model_folder, config))
    tower = tower_fingerprint(visual, "cpu")
    assert tower == tower_fingerprint(take_vision_tower(load_model(model_folder, config)), "cpu")
    assert tower_fingerprint(visual, "gpu") != tower
    names = {feature_key(image, processing, tower) for image in (b"one", b"two") for processing in ("1/9", "1/10")}
    assert len(names) == 4
    with torch.no_grad():
        next(visual.parameters())[0] += 1e-3
    assert tower_fingerprint(visual, "cpu") != tower
    assert feature_key(b"one", "1/9", tower_fingerprint(visual, "cpu")) not in names


def test_a_known_page_is_neither_decoded_nor_run_and_gives_the_same_logprobs(model_folder, tmp_path):
    images = write_images(tmp_path / "pages", [(56, 56), (84, 56)])
    group = make_group("a", images, [5, 9], seed=1)
    config = ModelConfig(dtype="float32", gradient_checkpointing=False)
    expected, _ = Packed(model_folder, config).run([group], share_prefix=True, budget=4000)

    def run() -> tuple[dict[tuple[int, int], torch.Tensor], ImageFeatures, int]:
        packed = Packed(model_folder, config)
        features = ImageFeatures(
            take_vision_tower(packed.model), _store(tmp_path / "kept"), processing="", device=torch.device("cpu")
        )
        decoded = 0

        def pixels(image):
            nonlocal decoded
            decoded += 1
            return packed.encoder.pixels(image)

        packed.keep_features(
            features.grid, lambda image: features.features(image.ref, image.grid, lambda: pixels(image))
        )
        logprobs, _ = packed.run([group], share_prefix=True, budget=4000)
        return logprobs, features, decoded

    first, features, decoded = run()
    assert (features.counts.num_misses, features.counts.num_hits, decoded) == (2, 0, 2)
    second, features, decoded = run()
    assert (features.counts.num_misses, features.counts.num_hits, decoded) == (0, 2, 0)
    for key, want in expected.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(second[key], want, atol=1e-6, rtol=0)


def test_a_page_that_left_after_it_was_counted_on_is_computed_again(model_folder, tmp_path):
    images = write_images(tmp_path / "pages", [(56, 56)])
    packed = Packed(model_folder, ModelConfig(dtype="float32", gradient_checkpointing=False))
    store = _store(tmp_path / "kept")
    features = ImageFeatures(take_vision_tower(packed.model), store, processing="", device=torch.device("cpu"))
    packed.keep_features(
        features.grid,
        lambda image: features.features(image.ref, image.grid, lambda: packed.encoder.pixels(image)),
    )
    group = make_group("a", images, [5], seed=1)
    first, _ = packed.run([group], share_prefix=True, budget=4000)
    prompts = packed.encoder.encode([group.prompt])
    image = prompts[0].images[0]
    assert image.ref == ImageRef(path="imgs/0.png", file=images[0].file)
    assert image.is_stored
    for path in (tmp_path / "kept").glob("*.safetensors"):
        path.unlink()
    second, _ = packed.run([group], share_prefix=True, budget=4000)
    assert torch.equal(first[0, 0], second[0, 0])


def test_a_trained_tower_has_no_features_to_keep():
    with pytest.raises(ConfigError, match=r"set model\.freeze_vision=true, or leave the folder empty"):
        ModelConfig(freeze_vision=False, vision_cache=VisionCacheConfig(folder="features"))
    with pytest.raises(ConfigError, match="max_gib"):
        VisionCacheConfig(max_gib=0.0)
