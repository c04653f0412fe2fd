"""Prompts to model inputs, against the processor and the model of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.model import vlm
from rsgrpo.model.folder import load_processor
from rsgrpo.model.vlm import PromptEncoder, PromptError, check_prompt_ids, rope_positions
from rsgrpo.types import ChatPrompt, ImageRef
from tests.tiny_model import build_tiny_model, make_group, write_images

SIZES = [(56, 56), (84, 56), (112, 140)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    return write_images(tmp_path_factory.mktemp("pages"), SIZES)


def _encoder(folder: Path, *, limit: int = 1000, pixel_bytes: int = 2**20) -> PromptEncoder:
    return PromptEncoder(
        load_processor(folder),
        rules=ImageRules(min_pixels=1, max_pixels=10**7),
        max_prompt_tokens=limit,
        pixel_bytes=pixel_bytes,
    )


def _prompt(images: list[ImageRef], question: str = "What?") -> ChatPrompt:
    return make_group("q1", images, [1], question=question).prompt


def test_rope_positions_of_one_image():
    # text at 0; a 2 × 2 image starts at 1: rows 1, 1, 2, 2, columns 1, 2, 1, 2; text goes on at 1 + max(2, 2) = 3
    ids = np.array([7, 9, 9, 9, 9, 8])
    got = rope_positions(ids, [(1, 4, 4)], image_token_id=9, merge_size=2)
    assert got.tolist() == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]


def test_encoding_equals_the_processor_and_get_rope_index(folder, images):
    from transformers import Qwen2_5_VLForConditionalGeneration

    processor = load_processor(folder)
    encoder = _encoder(folder)
    encoded = encoder.encode([_prompt(images)])[0]
    opened = [Image.open(image.file).convert("RGB") for image in images]
    expected = processor(text=[_prompt(images).text], images=opened, return_tensors="pt")
    assert encoded.token_ids.tolist() == expected["input_ids"][0].tolist()
    assert torch.equal(torch.cat([encoder.pixels(image) for image in encoded.images]), expected["pixel_values"])
    assert [list(image.grid) for image in encoded.images] == expected["image_grid_thw"].tolist()
    # image tokens = t·h·w / 4
    assert [image.num_tokens for image in encoded.images] == [4, 6, 20]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    positions, _ = model.model.get_rope_index(
        expected["input_ids"], expected["mm_token_type_ids"], image_grid_thw=expected["image_grid_thw"]
    )
    assert encoded.positions.tolist() == positions[:, 0].tolist()


def test_a_page_is_decoded_when_a_row_needs_it_once_and_once_more_after_it_left_the_memory(folder, images, monkeypatch):
    decoded: list[str] = []

    def counting(ref: ImageRef, rules: ImageRules) -> Image.Image:
        decoded.append(ref.path)
        return load_image(ref, rules)

    def run(encoder: PromptEncoder, rows: list[list[ImageRef]]) -> list[str]:
        decoded.clear()
        prompts = encoder.encode([_prompt(row) for row in rows])
        assert not decoded  # ids and positions come from headers alone
        for row, pixels in zip(rows, encoder.pixel_feed([prompt.images for prompt in prompts]), strict=True):
            assert list(pixels) == row
        return sorted(decoded)

    monkeypatch.setattr(vlm, "load_image", counting)
    encoder = _encoder(folder)
    assert run(encoder, [images[:2], [images[1], images[0]]]) == ["imgs/0.png", "imgs/1.png"]
    assert run(encoder, [images[:2]]) == []
    # 56 × 56, 84 × 56 and 112 × 140 pixels are 16, 24 and 80 patches · 3 · 196 bytes = 9,408, 14,112 and 47,040:
    # the last one alone is above this bound, so that the others have to go.
    small = _encoder(folder, pixel_bytes=25_000)
    assert run(small, [images[:2], images[2:]]) == ["imgs/0.png", "imgs/1.png", "imgs/2.png"]
    assert run(small, [images[:2]]) == ["imgs/0.png", "imgs/1.png"]


def test_long_prompts_are_refused_and_named_never_cut(folder, images):
    num_tokens = len(_encoder(folder).encode([_prompt(images)])[0].token_ids)
    assert len(_encoder(folder, limit=num_tokens).encode([_prompt(images)])[0].token_ids) == num_tokens
    with pytest.raises(PromptError, match=rf"'q1'.*{num_tokens} tokens \(30 of them for 3 images\).*max_prompt_tokens"):
        _encoder(folder, limit=num_tokens - 1).encode([_prompt(images)])


def test_markers_that_do_not_match_the_images_are_named(folder, images):
    prompt = ChatPrompt(sample_id="q1", text=_prompt(images[:1]).text, images=tuple(images[:2]))
    with pytest.raises(PromptError, match=r"'q1'.*1 <\|image_pad\|> placeholders for 2 images"):
        _encoder(folder).encode([prompt])


def test_differing_engine_ids_are_refused_with_both_counts(folder, images):
    encoded = _encoder(folder).encode([_prompt(images[:1])])[0]
    ids = encoded.token_ids.astype(np.int32)
    check_prompt_ids(encoded, ids)
    changed = ids.copy()
    changed[5] += 1
    with pytest.raises(PromptError, match=r"'q1'.*differ first at token 5"):
        check_prompt_ids(encoded, changed)
    with pytest.raises(PromptError, match=rf"has {len(ids)} tokens, the engine's {len(ids) - 2}"):
        check_prompt_ids(encoded, ids[:-2])


def test_a_page_that_changed_after_its_prompt_was_encoded_is_named(folder, tmp_path):
    (image,) = write_images(tmp_path, [(56, 56)])
    encoder = _encoder(folder)
    (encoded,) = encoder.encode([_prompt([image])])
    write_images(tmp_path, [(84, 56)])
    with pytest.raises(PromptError, match=r"'imgs/0\.png' has a grid of \(1, 4, 6\) patches, but had \(1, 4, 4\)"):
        encoder.pixels(encoded.images[0])


def test_a_page_damaged_after_its_prompt_was_encoded_is_named_by_the_thread_that_reads_it(folder, tmp_path):
    images = write_images(tmp_path, [(56, 56), (84, 56)])
    encoder = _encoder(folder)
    prompts = encoder.encode([_prompt([image]) for image in images])
    file = Path(images[1].file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    feed = encoder.pixel_feed([prompt.images for prompt in prompts])
    assert list(next(feed)) == [images[0]]
    with pytest.raises(ImageError, match=r"imgs/1\.png.*truncated or damaged"):
        next(feed)
