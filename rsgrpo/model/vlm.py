"""From a chat prompt with page images to what the model reads: ids, pixels, 3-D positions.

The pages come from ``images.load_image``, which the rollout engines use as well, so that both sides see
the same pixels; the ids are checked against those that the engine reports. A prompt is encoded from its pages'
headers alone: pixels, 24 bytes for one of the page's, come when a sequence needs them, and are kept packed until then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ProcessorMixin

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size, load_image
from rsgrpo.errors import RsgrpoError
from rsgrpo.model.image_feed import ImageFeed
from rsgrpo.model.memory_bounds import IMAGE_BYTES
from rsgrpo.model.micro_batches import Segment
from rsgrpo.model.packed_pixels import PixelPacker
from rsgrpo.text.coordinates import smart_resize
from rsgrpo.types import ChatPrompt, ImageRef, IntArray, TrainingResponse

_MAX_IMAGE_THREADS = 4  # of a rank: each takes some 100 MB while it works, and reads ten pages a second


class PromptError(RsgrpoError, ValueError):
    """A prompt cannot be encoded, or not as the engine did."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProcessedImage:
    """A page as the processor will make it; its pixels come from :class:`PromptEncoder`.

    Attributes:
        ref: the page's image.
        grid: frames, rows and columns of its patches.
        num_tokens: how many positions it takes in the prompt.
        is_stored: whether the page's features are stored, so that nobody needs its pixels.
    """

    ref: ImageRef
    grid: tuple[int, int, int]
    num_tokens: int
    is_stored: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt ready for the model.

    Attributes:
        sample_id: the id of the question.
        token_ids: [P] int64, the ids of the prompt, with one image placeholder for each image token.
        positions: [3, P] int64, rotary positions (frame, row, column).
        images: the pages, in the order of their placeholders.
        response_images: the pages that each response of the group shows; empty where none shows any.
    """

    sample_id: str
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    images: tuple[ProcessedImage, ...]
    response_images: tuple[tuple[ProcessedImage, ...], ...] = ()


def shown_in(prompt: EncodedPrompt, response: int) -> tuple[ProcessedImage, ...]:
    """The pages that a response of the prompt's group shows by itself."""
    return prompt.response_images[response] if prompt.response_images else ()


def micro_batch_images(segments: Sequence[Segment], prompts: Sequence[EncodedPrompt]) -> list[ProcessedImage]:
    """The pages that a sequence of these segments shows, each once.

    Args:
        segments: the segments of one micro-batch.
        prompts: the encoded prompts, by segment.group.
    """
    shown = [image for segment in segments for image in prompts[segment.group].images]
    shown += [
        image
        for segment in segments
        for index in segment.responses
        for image in shown_in(prompts[segment.group], index)
    ]
    return list({image.ref: image for image in shown}.values())


def rope_positions(
    token_ids: NDArray[np.int64],
    grids: Sequence[tuple[int, int, int]],
    *,
    image_token_id: int,
    merge_size: int,
) -> NDArray[np.int64]:
    """3-D rotary positions of a prompt (Qwen2-VL, arXiv 2409.12191 §2.1).

    Text counts up by one on all three axes. An image of ``t × h × w`` merged patches that starts at
    position s has positions ``(s + frame, s + row, s + column)``, and what follows it goes on at
    ``s + max(h, w)``.

    Args:
        token_ids: [P], with every image's placeholders in one run.
        grids: (frames, rows, columns) of each image, in patches before merging.
        image_token_id: the id of the placeholder.
        merge_size: how many patches are merged into one token, per side.

    Returns:
        [3, P] int64, the positions of frame, row and column.

    Raises:
        PromptError: the placeholders do not fit the grids.

    Example:
        Ids ``[7, I, I, I, I, 8]`` with one grid (1, 4, 4) and merge 2 give
        ``[[0,1,1,1,1,3], [0,1,1,2,2,3], [0,1,2,1,2,3]]``.
    """
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    is_image = token_ids == image_token_id
    expected = sum(frames * rows * columns // merge_size**2 for frames, rows, columns in grids)
    if int(is_image.sum()) != expected:
        raise PromptError(f"{int(is_image.sum())} image placeholders, but {len(grids)} images with {expected} tokens")
    cursor, position = 0, 0
    for frames, patch_rows, patch_columns in grids:
        rows, columns = patch_rows // merge_size, patch_columns // merge_size
        start = cursor + int(np.argmax(is_image[cursor:]))
        positions[:, cursor:start] = np.arange(position, position + start - cursor)
        position += start - cursor
        stop = start + frames * rows * columns
        positions[:, start:stop] = position + np.indices((frames, rows, columns)).reshape(3, -1)
        position += max(rows, columns)
        cursor = stop
    positions[:, cursor:] = np.arange(position, position + len(token_ids) - cursor)
    return positions


def check_prompt_ids(encoded: EncodedPrompt, engine_ids: IntArray) -> None:
    """Refuse a prompt whose token ids are not those that the engine sampled from.

    Raises:
        PromptError: the ids differ; the message names the sample, both lengths and the first difference.
    """
    if np.array_equal(encoded.token_ids, engine_ids):
        return
    common = min(len(encoded.token_ids), len(engine_ids))
    differs = np.flatnonzero(encoded.token_ids[:common] != engine_ids[:common])
    first = int(differs[0]) if len(differs) else common
    raise PromptError(
        f"sample {encoded.sample_id!r}: the trainer's prompt has {len(encoded.token_ids)} tokens, the engine's "
        f"{len(engine_ids)}, and they differ first at token {first}; both must use the tokenizer, the processor and "
        "the image sizes of the same model folder"
    )


class PromptEncoder:
    """Turns prompts into model inputs, and images into pixels when they are needed.

    Args:
        processor: the processor of the model that is trained.
        rules: how pages are read (``DataConfig.image_rules``).
        max_prompt_tokens: a longer prompt is an error, never cut.
        pixel_bytes: how much memory the pixels of pages may take, those that are kept for later steps included.
        num_threads: how many pages are read at once.
        stored_grid: gives the grid of an image whose features are stored, None for others; None: no image is stored.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        rules: ImageRules,
        max_prompt_tokens: int,
        pixel_bytes: int = IMAGE_BYTES,
        num_threads: int = 1,
        stored_grid: Callable[[ImageRef], tuple[int, int, int] | None] | None = None,
    ) -> None:
        self._processor = processor
        self._images = processor.image_processor
        self._rules = rules
        self._max_prompt_tokens = max_prompt_tokens
        self._num_threads = min(num_threads, _MAX_IMAGE_THREADS)
        self._stored_grid = stored_grid
        self._grids: dict[ImageRef, tuple[int, int, int]] = {}
        self.image_token_id = int(processor.image_token_id)
        self._merge_size = int(self._images.merge_size)
        self._patch_size = int(self._images.patch_size)
        self._packer = PixelPacker(self._images)
        self._feed = ImageFeed(
            self._process,
            self._num_bytes,
            max_bytes=pixel_bytes,
            num_threads=self._num_threads,
            # Pages side by side need no threads within each; torch would start as many as the rank has, for each.
            begin_thread=partial(torch.set_num_threads, 1),
        )

    def encode(self, prompts: Sequence[ChatPrompt]) -> list[EncodedPrompt]:
        """Encode prompts; a page that several of them show is processed once.

        Args:
            prompts: the prompts, chat template applied, one placeholder per image.

        Returns:
            One encoded prompt for each prompt, in order.

        Raises:
            PromptError: markers and images do not match, or the prompt is longer than the limit.
        """
        known = self.images([ref for prompt in prompts for ref in prompt.images])
        return [self._encode_one(prompt, known) for prompt in prompts]

    def with_response_images(self, encoded: EncodedPrompt, responses: Sequence[TrainingResponse]) -> EncodedPrompt:
        """The prompt together with the pages that its responses show.

        Args:
            encoded: the encoded prompt.
            responses: the responses of its group.

        Raises:
            PromptError: a response's image placeholders do not fit its pages.
        """
        if not any(response.images for response in responses):
            return encoded
        known = self.images([ref for response in responses for ref in response.images])
        for response in responses:
            expected = sum(known[ref].num_tokens for ref in response.images)
            found = int((response.token_ids == self.image_token_id).sum())
            if found != expected:
                raise PromptError(
                    f"sample {encoded.sample_id!r}: response {response.response_index} has {found} image placeholders "
                    f"for {len(response.images)} images with {expected} tokens; driver and trainer must use the same "
                    "processor and image sizes"
                )
        shown = tuple(tuple(known[ref] for ref in response.images) for response in responses)
        return replace(encoded, response_images=shown)

    def _encode_one(self, prompt: ChatPrompt, known: dict[ImageRef, ProcessedImage]) -> EncodedPrompt:
        images = tuple(known[ref] for ref in prompt.images)
        marker = self._processor.image_token
        parts = prompt.text.split(marker)
        if len(parts) != len(images) + 1:
            raise PromptError(
                f"sample {prompt.sample_id!r}: the prompt has {len(parts) - 1} {marker} placeholders for "
                f"{len(images)} images; it needs one placeholder per image"
            )
        text = "".join(part + marker * image.num_tokens for part, image in zip(parts[:-1], images, strict=True))
        ids = self._processor.tokenizer(text + parts[-1], add_special_tokens=False)["input_ids"]
        if len(ids) > self._max_prompt_tokens:
            raise PromptError(
                f"sample {prompt.sample_id!r}: its prompt has {len(ids)} tokens "
                f"({sum(image.num_tokens for image in images)} of them for {len(images)} images), the limit is "
                f"data.max_prompt_tokens={self._max_prompt_tokens}; raise it, lower data.max_pixels, or leave the "
                "sample out with data.on_bad_sample=skip"
            )
        token_ids = np.asarray(ids, dtype=np.int64)
        try:
            positions = rope_positions(
                token_ids,
                [image.grid for image in images],
                image_token_id=self.image_token_id,
                merge_size=self._merge_size,
            )
        except PromptError as error:
            raise PromptError(f"sample {prompt.sample_id!r}: {error}") from None
        return EncodedPrompt(sample_id=prompt.sample_id, token_ids=token_ids, positions=positions, images=images)

    def images(self, refs: Sequence[ImageRef]) -> dict[ImageRef, ProcessedImage]:
        """What is known of every page from its header, or from the store of features.

        Args:
            refs: the images; one may stand there more than once.

        Raises:
            ImageError: a page is missing or no image.
        """
        unique = list(dict.fromkeys(refs))
        with ThreadPoolExecutor(self._num_threads) as threads:
            return dict(zip(unique, threads.map(self._image, unique), strict=True))

    def pixels(self, image: ProcessedImage) -> Tensor:
        """A page's pixels [patches, 3 channels · 2 frames · pixels of a patch] float32: 1176 numbers for 14 × 14.

        Args:
            image: the image as it stands in an encoded prompt.

        Raises:
            ImageError: the page is damaged.
            PromptError: the page is not what it was when the prompt was encoded.
        """
        with self._reading([[image.ref]]) as feed:
            return self.unpacked(next(feed)[0])

    def unpacked(self, pixels: Tensor) -> Tensor:
        """Pixels [patches, 1176] float32 of what :meth:`pixel_feed` gives, on its device."""
        return self._packer.unpacked(pixels)

    def pixel_feed(
        self, sequences: Sequence[Sequence[ProcessedImage]]
    ) -> Generator[Mapping[ImageRef, Tensor], None, None]:
        """The packed pixels of sequence after sequence, read by threads ahead of need. Close it.

        Let go of a sequence's pixels before asking for those of the next: the bound counts them until then.

        Args:
            sequences: the images of each sequence.

        Yields:
            The pixels of each sequence by page, as :meth:`unpacked` takes them. Stored pages are left out; where
            features are kept, so are those that an earlier sequence brought: their features are stored by then.

        Raises:
            ImageError: a page of the sequence is damaged.
            PromptError: a page of the sequence is not what it was when the prompt was encoded.
        """
        demands: list[list[ImageRef]] = []
        seen: set[ImageRef] = set()
        for images in sequences:
            demands.append([image.ref for image in images if not image.is_stored and image.ref not in seen])
            if self._stored_grid is not None:
                seen.update(demands[-1])
        with self._reading(demands) as feed:
            for refs in demands:
                yield dict(zip(refs, next(feed), strict=True))

    @contextmanager
    def _reading(self, demands: Sequence[Sequence[ImageRef]]) -> Iterator[Iterator[tuple[Tensor, ...]]]:
        try:
            with closing(self._feed.images(demands)) as feed:
                yield feed
        finally:
            # What one thread sets becomes what others begin with: those after us shall begin with what this one has.
            torch.set_num_threads(torch.get_num_threads())

    def _image(self, ref: ImageRef) -> ProcessedImage:
        stored = self._stored_grid(ref) if self._stored_grid is not None else None
        grid = stored or self._grid(ref)
        num_tokens = grid[0] * grid[1] * grid[2] // self._merge_size**2
        return ProcessedImage(ref=ref, grid=grid, num_tokens=num_tokens, is_stored=stored is not None)

    def _grid(self, ref: ImageRef) -> tuple[int, int, int]:
        """The grid of a page, from the size that its header names."""
        if ref not in self._grids:
            width, height = smart_resize(
                *image_size(ref, self._rules),
                min_pixels=self._images.size["shortest_edge"],
                max_pixels=self._images.size["longest_edge"],
                factor=self._patch_size * self._merge_size,
            )
            self._grids[ref] = (1, height // self._patch_size, width // self._patch_size)
        return self._grids[ref]

    def _num_bytes(self, ref: ImageRef) -> int:
        frames, rows, columns = self._grid(ref)
        return self._packer.num_bytes(frames * rows * columns)

    def _process(self, ref: ImageRef) -> Tensor:
        pixels, found = self._packer.packed(load_image(ref, self._rules))
        if found != self._grid(ref):
            raise PromptError(
                f"image {ref.path!r} has a grid of {found} patches, but had {self._grid(ref)} when its prompt was "
                "encoded: it was changed during the run; put it back and go on with resume=auto"
            )
        return pixels
