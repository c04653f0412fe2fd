"""What every embedder does with pages and questions before its model sees them: names, refusals, batches, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_from_image, image_size, load_image, resized_size
from rsgrpo.errors import shown
from rsgrpo.io.ids import well_formed
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, EmbeddingError, PageImage, checked_vectors, normalised
from rsgrpo.retrieval.embedders.padded_batches import padded_batches
from rsgrpo.types import FloatArray

_DECODING_THREADS = 4  # decoding leaves the interpreter free, and keeps ahead of a GPU with few
_TEMPLATE_TOKENS = 48  # more than the chat templates of Qwen and others put around an item
_PIXELS_A_TOKEN = 28 * 28  # of processors that do not say themselves; Qwen's patches of 14, merged by two
_SHOWN_QUERY = 80


class ReadingModel(Protocol):
    """What a model says about how it reads; models of sentence-transformers do."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""

    @property
    def processor(self) -> Any:
        """The processor of transformers."""

    def get_max_seq_length(self) -> int | None:
        """The most tokens that the model reads; None: it does not say."""


class Embedded(NamedTuple):
    """What a model gave for some items.

    Attributes:
        names: the name of each item, for messages.
        vectors: the output of the model for each item.
    """

    names: list[str]
    vectors: list[NDArray[Any]]


class EmbedderInputs:
    """Prepares pages and questions for a model, and hands them to it in batches.

    Args:
        config: the settings of the embedder.
        identity: the identity of the embedder, which says what stands in front of a question.
        model: the model, which says how it reads.
        query_length: the most tokens of a question, where the model cuts questions sooner than pages; None: it does
            not.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        identity: EmbedderIdentity,
        model: ReadingModel,
        *,
        query_length: int | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._model = model
        self._query_length = query_length
        self._rules = ImageRules(min_pixels=config.min_pixels or None, max_pixels=config.max_pixels)
        self._tokens_of_size: dict[tuple[int, int], int] = {}

    def embed_queries(
        self, queries: Sequence[str], encode: Callable[[list[str], str], Sequence[NDArray[Any]]]
    ) -> Embedded:
        """Check questions, and run the model on them in batches.

        Args:
            queries: the questions, without an instruction.
            encode: the function that runs the model on texts, with the prompt where the model's own prompts go.

        Returns:
            The names and what the model gave, in the order of the questions.

        Raises:
            EmbeddingError: a question says nothing to the model, or the model refuses it.
        """
        texts = [well_formed(query)[0] for query in queries]
        names = [f"question {number} ({shown(text, _SHOWN_QUERY)!r})" for number, text in enumerate(texts, start=1)]
        lengths = [self.query_tokens(text, name) for text, name in zip(texts, names, strict=True)]
        prompt = instruction = self._identity.query_instruction
        if self._identity.instruction_place == "text":
            texts, prompt = [instruction + text for text in texts], ""
        found: dict[int, NDArray[Any]] = {}
        for batch in padded_batches(lengths, self._config.batch_tokens):
            with _named([names[i] for i in batch]):
                found |= zip(batch, encode([texts[i] for i in batch], prompt), strict=True)
        return Embedded(names, [found[i] for i in range(len(texts))])

    def embed_pages(
        self, pages: Sequence[PageImage], encode: Callable[[list[Image.Image]], Sequence[NDArray[Any]]]
    ) -> Embedded:
        """Read pages, and run the model on them in batches.

        Args:
            pages: the images of the pages.
            encode: the function that runs the model on images.

        Returns:
            The names and what the model gave, in the order of the pages.

        Raises:
            EmbeddingError: a page is too long for the model, or the model refuses it.
            ImageError: the image of a page cannot be read.
        """
        names = [_page_name(page, number) for number, page in enumerate(pages, start=1)]
        lengths = [self._page_tokens(page, name) for page, name in zip(pages, names, strict=True)]
        found: dict[int, NDArray[Any]] = {}
        for batch, images in self._read_ahead(pages, padded_batches(lengths, self._config.batch_tokens)):
            with _named([names[i] for i in batch]):
                found |= zip(batch, encode(images), strict=True)
        return Embedded(names, [found[i] for i in range(len(pages))])

    def _read_ahead(
        self, pages: Sequence[PageImage], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """Give every batch with its images; the next batch is decoded while the model works on this one."""
        with ThreadPoolExecutor(_DECODING_THREADS) as threads:

            def begin(batch: list[int]) -> list[Future[Image.Image]]:
                return [threads.submit(self._read, pages[i]) for i in batch]

            waiting = begin(batches[0]) if batches else []
            for number, batch in enumerate(batches):
                images = [future.result() for future in waiting]
                waiting = begin(batches[number + 1]) if number + 1 < len(batches) else []
                yield batch, images

    def _read(self, page: PageImage) -> Image.Image:
        if not isinstance(page, Image.Image):
            return load_image(page, self._rules)
        image = image_from_image(page, self._rules)
        size = self._size(page)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def _size(self, page: PageImage) -> tuple[int, int]:
        if isinstance(page, Image.Image):
            return resized_size(*page.size, self._rules.min_pixels, self._rules.max_pixels)
        return image_size(page, self._rules)

    def image_tokens(self, page: PageImage) -> int:
        """Count the tokens of a page, from its size alone.

        Args:
            page: the image of the page.

        Raises:
            ImageError: the image of the page cannot be read.
        """
        return _image_tokens(self._model, *self._size(page))

    def _page_tokens(self, page: PageImage, name: str) -> int:
        """Count the tokens of a page, template included, from its size alone.

        Raises:
            EmbeddingError: the page has more tokens than the model reads; sentence-transformers would not cut it.
        """
        size = self._size(page)
        if size not in self._tokens_of_size:
            self._tokens_of_size[size] = _image_tokens(self._model, *size) + _TEMPLATE_TOKENS
        num_tokens = self._tokens_of_size[size]
        most = self._model.get_max_seq_length()
        if most is not None and num_tokens > most:
            raise EmbeddingError(
                f"{name} is {size[0]}×{size[1]} pixels and takes about {num_tokens} tokens, and the model reads "
                f"{most}; lower embedder.max_pixels={self._rules.max_pixels}"
            )
        return num_tokens

    def query_tokens(self, text: str, name: str) -> int:
        """Count the tokens of a question, template included.

        Raises:
            EmbeddingError: the question is empty, contains a special token of the model, has no character that the
                model knows, or more tokens than it reads: its vector would be that of any other such question.
        """
        tokenizer = self._model.tokenizer
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text.strip() else []
        if not ids:
            raise EmbeddingError(f"{name} is empty; ask something")
        unknown = tokenizer.unk_token_id
        # What parts words is known everywhere: SentencePiece writes it before an unknown word, too.
        if unknown is not None and not any(token != unknown and tokenizer.decode([token]).strip() for token in ids):
            raise EmbeddingError(
                f"{name} has no character that the model's tokenizer knows; ask in another script, or take an embedder "
                "that was trained on this one"
            )
        added = tokenizer.added_tokens_decoder
        special = [str(added[token]) for token in ids if token in added and added[token].special and token != unknown]
        if special:
            raise EmbeddingError(
                f"{name} contains {special[0]}, which means something else than text to the model; take it out"
            )
        most = self._query_length or self._model.get_max_seq_length()
        if most is not None:
            whole = tokenizer(self._identity.query_instruction + text, verbose=False)["input_ids"]
            if len(whole) > most:  # sentence-transformers would cut it without a word
                raise EmbeddingError(
                    f"{name} has {len(whole)} tokens with its instruction, and the model reads {most}; ask more briefly"
                )
        return len(ids) + len(self._identity.query_instruction) + _TEMPLATE_TOKENS


def stacked_vectors(embedded: Embedded, dimension: int) -> FloatArray:
    """Make the vectors of items that have one each: cut to the dimension, scaled to length 1, and checked.

    Args:
        embedded: what the model gave; for each item [at least ``dimension``] of any float type.
        dimension: how many numbers a vector keeps, from the first.

    Returns:
        The vectors, [items, dimension] float32.

    Raises:
        EmbeddingError: a vector is not finite, or zero.
    """
    found = np.zeros((len(embedded.names), dimension), dtype=np.float32)
    if embedded.names:
        found = normalised(np.stack([vector[:dimension] for vector in embedded.vectors]))
    return checked_vectors(found, embedded.names, dimension=dimension)


def _image_tokens(model: ReadingModel, width: int, height: int) -> int:
    images: Any = getattr(model.processor, "image_processor", None)
    count = getattr(images, "get_number_of_image_patches", None)
    if count is None or not hasattr(images, "merge_size"):
        return -(-width * height // _PIXELS_A_TOKEN)
    return int(count(height, width, {})) // int(images.merge_size) ** 2


def _page_name(page: PageImage, number: int) -> str:
    return f"page {number}" if isinstance(page, Image.Image) else f"page {shown(page.path, _SHOWN_QUERY)!r}"


@contextmanager
def _named(names: Sequence[str]) -> Iterator[None]:
    """Raise what the model refuses in the block as an error that names the items of the batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EmbeddingError(
            f"a batch of {len(names)} does not fit into the GPU's memory, the longest is {names[0]}; lower "
            "embedder.batch_tokens or embedder.max_pixels"
        ) from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise EmbeddingError(
            f"the model cannot read {names[0]}{f' or one of {len(names) - 1} others' if len(names) > 1 else ''}: "
            f"{shown(error, 200)}"
        ) from error
