"""A step's pixels: read ahead of its rows, bounded in memory, and to the bit those of one call of the processor."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from rsgrpo.config import ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.model import vlm
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batch_pixels import MicroBatchPixels
from rsgrpo.model.micro_batches import Segment, plan_micro_batches
from rsgrpo.model.policy_model import MicroBatchBuilder, group_sizes
from rsgrpo.model.vision_cache import FeatureStore, ImageFeatures
from rsgrpo.model.vlm import EncodedPrompt, ProcessedImage, PromptEncoder, micro_batch_images
from rsgrpo.types import ImageRef, TrainingGroup
from tests.packed import Packed
from tests.tiny_model import build_tiny_model, make_group, write_images

SIZES = [(56, 56), (84, 56), (112, 140), (56, 84), (140, 112), (84, 84)]
RULES = ImageRules(min_pixels=1, max_pixels=10**7)
BYTES = 16 * 588  # of the smallest page, packed: patches of 14 · 14 pixels, 3 channels of a byte


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small only wait for the threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    return write_images(tmp_path / "pages", SIZES)


@pytest.fixture
def groups(images: list[ImageRef]) -> list[TrainingGroup]:
    """Four groups in several rows each: pages come again in the same row, in a later one, and in another group."""
    return [
        make_group("a", [images[0], images[1], images[0]], [5, 9, 7], seed=1),
        make_group("b", images[2:5], [30, 12], seed=2),
        make_group("c", [], [6, 1], seed=3),
        make_group("d", [images[5], images[2]], [8, 3, 20], seed=4),
    ]


def _plan(groups: list[TrainingGroup], prompts: list[EncodedPrompt]) -> tuple[tuple[Segment, ...], ...]:
    """Ten responses, each with its own copy of its prompt, in rows as long as the longest of them."""
    sizes = group_sizes(groups, prompts)
    budget = max(size.num_prompt_tokens + max(size.response_lengths) for size in sizes)
    return plan_micro_batches(sizes, budget=budget, share_prefix=False)


def _gradient(packed: Packed, groups: list[TrainingGroup], encoder: PromptEncoder | None) -> list[torch.Tensor]:
    """Log-probabilities of every row and the gradient of all; None: pixels come as one call of the processor."""
    prompts = (encoder or packed.encoder).encode([group.prompt for group in groups])
    plan = _plan(groups, prompts)
    assert len(plan) > len(groups)
    found: dict[ImageRef, torch.Tensor] = {}
    if encoder is None:
        refs = list(dict.fromkeys(ref for group in groups for ref in group.prompt.images))
        images = packed.processor.image_processor(images=[load_image(ref, RULES) for ref in refs], return_tensors="pt")
        lengths = images["image_grid_thw"].prod(dim=1).tolist()
        found = dict(zip(refs, images["pixel_values"].split(lengths), strict=True))
    now = dict(found)
    rows = MicroBatchBuilder(
        image_token_id=packed.encoder.image_token_id,
        config=packed.config,
        device=torch.device("cpu"),
        dtype=torch.float32,
        image_pixels=lambda image: now[image.ref],
    )
    packed.model.zero_grad()
    results = []
    feed = encoder.pixel_feed([micro_batch_images(segments, prompts) for segments in plan]) if encoder else None
    for segments in plan:
        if encoder is not None and feed is not None:
            now = {ref: encoder.unpacked(pixels) for ref, pixels in next(feed).items()}
        batch = rows.build(segments, groups, prompts)
        logprobs, _ = packed.policy(batch)
        (logprobs * (batch.positive_weights - batch.negative_weights)).sum().backward()
        results.append(logprobs.detach())
    return results + [parameter.grad.clone() for parameter in packed.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("pixel_bytes", [1, 60_000])
def test_logprobs_and_gradients_are_to_the_bit_those_of_pixels_processed_at_once(
    folder, groups, pixel_bytes, one_thread
):
    packed = Packed(folder, ModelConfig(dtype="float32", freeze_vision=False, gradient_checkpointing=False))
    expected = _gradient(packed, groups, None)
    encoder = PromptEncoder(
        packed.processor, rules=RULES, max_prompt_tokens=1000, pixel_bytes=pixel_bytes, num_threads=4
    )
    found = _gradient(packed, groups, encoder)
    assert len(found) == len(expected)
    assert all(torch.equal(tensor, expected_tensor) for tensor, expected_tensor in zip(found, expected, strict=True))


class Counted:
    """Counts the bytes of pixels that are alive, and how often each page was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak_bytes = self._bytes = 0
        self.reads: Counter[str] = Counter()
        self._lock = threading.Lock()
        process = PromptEncoder._process

        def counting(encoder: PromptEncoder, ref: ImageRef) -> torch.Tensor:
            pixels = process(encoder, ref)
            with self._lock:
                self.reads[ref.path] += 1
                self._bytes += pixels.nbytes
                self.peak_bytes = max(self.peak_bytes, self._bytes)
            weakref.finalize(pixels, self._freed, pixels.nbytes)
            return pixels

        monkeypatch.setattr(PromptEncoder, "_process", counting)

    def _freed(self, num_bytes: int) -> None:
        with self._lock:
            self._bytes -= num_bytes


def test_a_step_of_many_pages_holds_few_of_them(folder, tmp_path, monkeypatch):
    # Of 40 pages four fit into the bound. A thread may still hold the page that it read
    # when the next one is begun: one more each.
    refs = write_images(tmp_path / "pages", [(56, 56)] * 40)
    counted = Counted(monkeypatch)
    packed = Packed(folder, ModelConfig(dtype="float32", gradient_checkpointing=False))
    encoder = PromptEncoder(packed.processor, rules=RULES, max_prompt_tokens=1000, pixel_bytes=4 * BYTES, num_threads=2)
    prompts = encoder.encode([make_group(str(n), [ref], [3]).prompt for n, ref in enumerate(refs)])
    assert counted.peak_bytes == 0
    with closing(encoder.pixel_feed([prompt.images for prompt in prompts])) as feed:
        for ref in refs:
            assert list(next(feed)) == [ref]
    assert counted.reads == Counter(ref.path for ref in refs)
    assert BYTES <= counted.peak_bytes <= (4 + 2) * BYTES


def _unpacked(encoder: PromptEncoder, pixels: Mapping[ImageRef, torch.Tensor], ref: ImageRef) -> torch.Tensor:
    return encoder.unpacked(pixels[ref])


def test_where_features_are_kept_a_page_is_read_for_its_first_row_and_not_at_all_when_they_are_stored(
    folder, groups, tmp_path, monkeypatch
):
    counted = Counted(monkeypatch)
    packed = Packed(folder, ModelConfig(dtype="float32", gradient_checkpointing=False))
    tower = packed.model.model.visual
    store = FeatureStore(tmp_path / "kept", 2**20)
    features = ImageFeatures(tower, store, processing="", device=torch.device("cpu"))
    encoder = PromptEncoder(
        packed.processor, rules=RULES, max_prompt_tokens=1000, pixel_bytes=1, stored_grid=features.grid
    )
    for is_stored in (False, True):
        counted.reads.clear()
        prompts = encoder.encode([group.prompt for group in groups])
        rows = [micro_batch_images(segments, prompts) for segments in _plan(groups, prompts)]
        shown = Counter(image.ref.path for row in rows for image in row)
        assert max(shown.values()) > 1  # pages come again in later rows
        for row, pixels in zip(rows, encoder.pixel_feed(rows), strict=True):
            for image in row:
                features.features(image.ref, image.grid, partial(_unpacked, encoder, pixels, image.ref))
        assert counted.reads == ({} if is_stored else dict.fromkeys(shown, 1))


def test_a_step_hands_out_each_rows_pixels_in_turn_and_reads_a_page_at_once_that_nobody_announced(
    folder, groups, monkeypatch
):
    counted = Counted(monkeypatch)
    encoder = PromptEncoder(load_processor(folder), rules=RULES, max_prompt_tokens=1000, pixel_bytes=1)
    prompts = encoder.encode([group.prompt for group in groups])
    plan = _plan(groups, prompts)
    pixels = MicroBatchPixels(encoder, torch.device("cpu"))
    for _ in range(2):  # a step begins anew, also after one that was left early
        counted.reads.clear()
        with pixels.of_step(plan, prompts):
            for segments in plan[:5]:
                pixels.begin_micro_batch()
                before = sum(counted.reads.values())
                for image in micro_batch_images(segments, prompts):
                    assert len(pixels.of(image)) == image.grid[1] * image.grid[2]
                assert sum(counted.reads.values()) == before
    image = prompts[0].images[0]
    assert torch.equal(pixels.of(image), encoder.pixels(image))
    pixels.begin_micro_batch()  # of no step
    assert len(pixels.of(image)) == 16


def test_a_row_shows_the_pages_of_prompts_and_of_responses_once_each():
    def processed(name: str) -> ProcessedImage:
        return ProcessedImage(ref=ImageRef(path=name), grid=(1, 2, 2), num_tokens=1)

    def prompt(images: str, responses: tuple[str, ...] = ()) -> EncodedPrompt:
        return EncodedPrompt(
            sample_id="",
            token_ids=torch.zeros(1, dtype=torch.int64).numpy(),
            positions=torch.zeros(3, 1, dtype=torch.int64).numpy(),
            images=tuple(map(processed, images)),
            response_images=tuple(tuple(map(processed, names)) for names in responses),
        )

    segments = [
        Segment(group=1, responses=(0, 2), num_prompt_tokens=1, response_lengths=(1, 1)),
        Segment(group=0, responses=(0,), num_prompt_tokens=1, response_lengths=(1,)),
    ]
    prompts = [prompt("ab"), prompt("bc", ("d", "e", "cf"))]
    # The second prompt's, the first one's, then those of the responses that the row holds: e is in another row.
    assert [image.ref.path for image in micro_batch_images(segments, prompts)] == ["b", "c", "a", "d", "f"]


def test_pages_are_read_by_as_many_threads_as_the_rank_may_use_but_no_more_than_four(folder, monkeypatch):
    used: list[int] = []
    processor = load_processor(folder)
    monkeypatch.setattr(vlm, "ImageFeed", lambda *_, num_threads, **__: used.append(num_threads))
    for given in (1, 3, 64):
        PromptEncoder(processor, rules=RULES, max_prompt_tokens=1000, num_threads=given)
    assert used == [1, 3, 4]


def test_a_page_is_processed_by_one_thread_of_torch_and_other_threads_have_theirs(folder, images, monkeypatch):
    used: set[int] = set()
    process = PromptEncoder._process

    def noting(encoder: PromptEncoder, ref: ImageRef) -> torch.Tensor:
        used.add(torch.get_num_threads())
        return process(encoder, ref)

    monkeypatch.setattr(PromptEncoder, "_process", noting)
    encoder = PromptEncoder(load_processor(folder), rules=RULES, max_prompt_tokens=1000, num_threads=2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shown = list(encoder.images(images).values())
        with closing(encoder.pixel_feed([[image] for image in shown])) as feed:
            next(feed)
            assert torch.get_num_threads() == 3
        encoder.pixels(shown[-1])
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert used == {1}
