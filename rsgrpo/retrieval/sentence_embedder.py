"""Embed questions and pages with models of sentence-transformers; the one module that imports it.

Three presets: what was saved with the model (``auto``), VisRAG's weighted mean (``visrag``; arXiv:2410.10594, §3.2) and
the last token (``last_token``). With hidden states ``h_t`` of the real tokens ``t = 1 … T`` the weighted mean is

    v = sum_t t · h_t / sum_t t,        e = v / |v|

and the score of a page is the inner product of its vector and the question's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.hub import hub_problem
from rsgrpo.data.images.loading import image_from_image, image_size, load_image, resized_size
from rsgrpo.errors import shown
from rsgrpo.io.ids import well_formed
from rsgrpo.retrieval.embedder import (
    EmbedderIdentity,
    EmbeddingError,
    PageImage,
    checked_vectors,
    normalised,
    weights_digest,
)
from rsgrpo.retrieval.padded_batches import padded_batches
from rsgrpo.retrieval.weight_report import watched_loading
from rsgrpo.types import FloatArray

_POOLING_OF_PRESET = {"visrag": "weightedmean", "last_token": "lasttoken"}
_MODULES_FILE = "modules.json"  # what sentence-transformers saves beside a model
_ADAPTER_FILE = "adapter_config.json"
_DECODING_THREADS = 4  # decoding leaves the interpreter free, and keeps ahead of a GPU with few
_TEMPLATE_TOKENS = 48  # more than the chat templates of Qwen and others put around an item
_PIXELS_A_TOKEN = 28 * 28  # of processors that do not say themselves; Qwen's patches of 14, merged by two
_SHOWN_QUERY = 80


class SentenceEmbedder:
    """A model of sentence-transformers as an :class:`~rsgrpo.retrieval.embedder.Embedder`.

    Args:
        config: the settings that name the model and say how it is run.

    Raises:
        EmbeddingError: the model is not there, cannot be loaded, or does not fit the settings.

    Example:
        ``SentenceEmbedder(EmbedderConfig(model="runs/embedder", preset="visrag")).embed_queries(["Who signed it?"])``
        is [1, 2048] float32.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        folder = _model_folder(config)
        self._config = _pinned(config, folder)
        self._model = _loaded(config, folder)
        self._rules = ImageRules(min_pixels=config.min_pixels or None, max_pixels=config.max_pixels)
        self._tokens_of_size: dict[tuple[int, int], int] = {}
        own = int(self._model.get_embedding_dimension() or 0)
        if config.dimension > own:
            raise EmbeddingError(
                f"embedder.dimension={config.dimension} is more than the {own} of the model {shown(folder)}; lower it, "
                "or set 0 for all of them"
            )
        is_preset = config.preset != "auto"
        self._identity = EmbedderIdentity(
            model=self._config.model,
            revision=weights_digest(folder),
            pooling=_pooling(self._model),
            query_instruction=self._instruction(),
            instruction_place="text" if is_preset else "prompt",
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            dpi=config.dpi,
            dimension=config.dimension or own,
        )

    @property
    def identity(self) -> EmbedderIdentity:
        """Everything that the vectors depend on."""
        return self._identity

    @property
    def settings(self) -> EmbedderConfig:
        """The settings that make the same embedder again, with an absolute folder or the revision that was loaded."""
        return self._config

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        """Turn questions into vectors; see :class:`~rsgrpo.retrieval.embedder.Embedder`."""
        texts = [well_formed(query)[0] for query in queries]
        names = [f"question {number} ({shown(text, _SHOWN_QUERY)!r})" for number, text in enumerate(texts, start=1)]
        lengths = [self._query_tokens(text, name) for text, name in zip(texts, names, strict=True)]
        instruction = self._identity.query_instruction
        if self._identity.instruction_place == "text":
            texts = [instruction + text for text in texts]
            prompt = ""
        else:
            prompt = instruction

        def encode(batch: Sequence[str]) -> Any:
            return self._model.encode_query(
                list(batch), prompt=prompt, batch_size=len(batch), show_progress_bar=False, convert_to_numpy=True
            )

        found = self._empty(len(texts))
        for batch in padded_batches(lengths, self._config.batch_tokens):
            found[batch] = self._shortened(_encoded(encode, [texts[i] for i in batch], [names[i] for i in batch]))
        return checked_vectors(found, names, dimension=self._identity.dimension)

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        """Turn pages into vectors; see :class:`~rsgrpo.retrieval.embedder.Embedder`."""
        names = [_page_name(page, number) for number, page in enumerate(pages, start=1)]
        lengths = [self._page_tokens(page, name) for page, name in zip(pages, names, strict=True)]
        # The preset knows no prompt for pages; a saved model may have one.
        prompts: dict[str, str] = {} if self._config.preset == "auto" else {"prompt": ""}

        def encode(batch: Sequence[Image.Image]) -> Any:
            return self._model.encode_document(
                list(batch), batch_size=len(batch), show_progress_bar=False, convert_to_numpy=True, **prompts
            )

        found = self._empty(len(pages))
        for batch, images in self._read_ahead(pages, padded_batches(lengths, self._config.batch_tokens)):
            found[batch] = self._shortened(_encoded(encode, images, [names[i] for i in batch]))
        return checked_vectors(found, names, dimension=self._identity.dimension)

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

    def _query_tokens(self, text: str, name: str) -> int:
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
        if unknown is not None and all(token == unknown for token in ids):
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
        most = self._model.get_max_seq_length()
        if most is not None:
            whole = tokenizer(self._identity.query_instruction + text, verbose=False)["input_ids"]
            if len(whole) > most:  # sentence-transformers would cut it without a word
                raise EmbeddingError(
                    f"{name} has {len(whole)} tokens with its instruction, and the model reads {most}; ask more briefly"
                )
        return len(ids) + len(self._identity.query_instruction) + _TEMPLATE_TOKENS

    def _shortened(self, vectors: Any) -> FloatArray:
        return normalised(np.asarray(vectors)[:, : self._identity.dimension])

    def _empty(self, num_items: int) -> FloatArray:
        return np.zeros((num_items, self._identity.dimension), dtype=np.float32)

    def _instruction(self) -> str:
        if self._config.query_instruction is not None:
            return self._config.query_instruction
        if self._config.preset == "visrag":
            return VISRAG_INSTRUCTION
        return "" if self._config.preset == "last_token" else (self._model.prompts.get("query") or "")


class _Float32Tokens(torch.nn.Module):
    """Convert token vectors to float32 before they are pooled: VisRAG's float32 weights promote its sum as well."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "token_embeddings": features["token_embeddings"].float()}


def _model_folder(config: EmbedderConfig) -> Path:
    if not config.model:
        raise EmbeddingError("embedder.model is empty; name a folder, or a model on the hub")
    folder = Path(config.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.model, revision=config.revision or None))
    except Exception as error:  # whatever its network library raises
        raise EmbeddingError(
            f"embedder.model={shown(config.model)!r} is neither a folder nor a model that the hub gives: "
            f"{hub_problem(error, 'model')}; give a folder, or check the name and the network"
        ) from error


def _pinned(config: EmbedderConfig, folder: Path) -> EmbedderConfig:
    if Path(config.model).is_dir():
        return dataclasses.replace(config, model=str(folder.resolve()))
    return dataclasses.replace(config, revision=folder.name)  # the hub's cache calls a snapshot by its commit


def _loaded(config: EmbedderConfig, folder: Path) -> SentenceTransformer:
    """Load the model, and put it in evaluation mode on its device.

    Raises:
        EmbeddingError: the model cannot be loaded, lacks weights, has no pooling or another one than the preset's, or
            reads no images.
    """
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmbeddingError("embedder.device=cuda, and torch finds no GPU here; set embedder.device=cpu")
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
    arguments = {"dtype": getattr(torch, dtype)}
    if (folder / _ADAPTER_FILE).exists():
        raise EmbeddingError(
            f"{shown(folder)} holds adapters, whose base model lies elsewhere and may change; merge them, and name the "
            "folder of the whole model"
        )
    is_saved = (folder / _MODULES_FILE).is_file()
    if config.preset == "auto" and not is_saved:
        raise EmbeddingError(
            f"{shown(folder)} has no {_MODULES_FILE}: it is no model of sentence-transformers, and does not say how "
            "its tokens become one vector; set embedder.preset=last_token or visrag"
        )
    try:
        with watched_loading() as missing:
            if is_saved:
                model = SentenceTransformer(str(folder), device=device, model_kwargs=arguments, local_files_only=True)
            else:
                reader = Transformer(str(folder), model_kwargs=arguments)
                pooling = Pooling(reader.get_embedding_dimension(), _POOLING_OF_PRESET[config.preset])
                model = SentenceTransformer(modules=[reader, _Float32Tokens(), pooling, Normalize()], device=device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise EmbeddingError(
            f"the embedder {shown(folder)} cannot be loaded ({shown(error, 200)}); embedder.model must be a folder "
            "with config.json, weights, tokenizer and processor"
        ) from error
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise EmbeddingError(
            f"{shown(folder)} lacks weights of the embedder: {shown(missing[0])}{more}; they would be drawn at random: "
            "copy the folder again, or name the one that holds the whole model"
        )
    wanted = _POOLING_OF_PRESET.get(config.preset, "")
    if wanted and _pooling(model) != wanted:
        raise EmbeddingError(
            f"{shown(folder)} was saved with the pooling {_pooling(model)}, embedder.preset={config.preset} is "
            f"{wanted}; set embedder.preset=auto"
        )
    if "image" not in model.modalities:
        raise EmbeddingError(
            f"{shown(folder)} reads {', '.join(map(str, model.modalities))}, not images; pages need a vision-language "
            "model, such as a Qwen3-VL-Embedding"
        )
    # With most processors the tokenizer's own side; either gives the same vectors, and one of them is tested.
    if config.preset != "auto" and model.tokenizer is not None:
        model.tokenizer.padding_side = "right"
    model.eval()
    return model


def _pooling(model: SentenceTransformer) -> str:
    """Name the way in which token vectors become one: the mode of the pooling, or the names of the modules."""
    for module in model:
        if isinstance(module, Pooling):
            modes = module.pooling_mode
            return modes if isinstance(modes, str) else "+".join(modes)
    return "+".join(type(module).__name__ for module in model)


def _image_tokens(model: SentenceTransformer, width: int, height: int) -> int:
    images: Any = getattr(model.processor, "image_processor", None)
    count = getattr(images, "get_number_of_image_patches", None)
    if count is None or not hasattr(images, "merge_size"):
        return -(-width * height // _PIXELS_A_TOKEN)
    return int(count(height, width, {})) // int(images.merge_size) ** 2


def _page_name(page: PageImage, number: int) -> str:
    return f"page {number}" if isinstance(page, Image.Image) else f"page {shown(page.path, _SHOWN_QUERY)!r}"


def _encoded(encode: Callable[[Sequence[Any]], Any], items: Sequence[Any], names: Sequence[str]) -> Any:
    """Run the model on a batch; an error names the items that the model refuses."""
    try:
        return encode(items)
    except torch.OutOfMemoryError as error:
        raise EmbeddingError(
            f"a batch of {len(items)} does not fit into the GPU's memory, the longest is {names[0]}; lower "
            "embedder.batch_tokens or embedder.max_pixels"
        ) from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise EmbeddingError(
            f"the model cannot read {names[0]}{f' or one of {len(names) - 1} others' if len(names) > 1 else ''}: "
            f"{shown(error, 200)}"
        ) from error
