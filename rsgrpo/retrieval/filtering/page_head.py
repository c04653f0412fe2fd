"""A model that was trained to say whether a page helps: sentence-transformers' cross-encoder over yes and no.

    page, worded question -> the model -> z_yes - z_no at the last token -> sigmoid

The loss is binary cross-entropy whose relevant pairs weigh five times as much, as MIRAGE trains its retriever
(arXiv:2407.13766). A trained folder holds the wording of the question, so that it is asked as it was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import PrinterCallback, TrainerCallback

from rsgrpo.config.filter import HeadTrainingConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size, load_image
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import read_json_object, write_json
from rsgrpo.retrieval.embedders.weight_report import watched_loading
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, ScoredPages
from rsgrpo.types import ImageRef

HEAD_FILE = "page_head.json"
WORDING_FILE = "relevance.jinja"
_PAGES_A_BATCH = 8
_HEAD = "lm_head.weight"  # an embedder has none: it begins at random, or as the embeddings where these are tied

_TEMPLATE = """\
{%- if messages[0].role in ("query", "document") %}
{{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n" }}
{%- for role in ("document", "query") %}{% for message in messages if message.role == role %}
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == "image" %}{{ "<|vision_start|><|image_pad|><|vision_end|>" }}{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{% endfor %}{% endfor %}
{{- "<|im_end|>\\n<|im_start|>assistant\\n" }}
{%- else %}"""
"""What sentence-transformers' roles become: the prompt of ``yes_no``, page first. The model's own template follows."""


class PageHeadError(RsgrpoError, ValueError):
    """A head cannot be trained or loaded; the message names the folder and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledPage:
    """One pair of question and page to train on.

    Attributes:
        question: the question, as a user asks it.
        page: the page.
        is_relevant: whether the page helps to answer the question.
    """

    question: str
    page: ImageRef
    is_relevant: bool


class HeadScorer:
    """A :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer` over a trained head.

    Args:
        folder: the folder that :func:`train_head` wrote.
        word: words a question about a page, by the template that lies in the folder.
        rules: how pages are read, scaled down to the size at which they are judged.

    Raises:
        PageHeadError: the folder holds no head, or lacks weights of it.
    """

    def __init__(self, folder: Path, word: Callable[[str], str], rules: ImageRules) -> None:
        if not (folder / HEAD_FILE).is_file():
            raise PageHeadError(
                f"{shown(folder)} has no {HEAD_FILE}: it is no trained head; train one with rsgrpo train-filter"
            )
        read_json_object(folder / HEAD_FILE)
        with watched_loading() as missing:
            self._model = CrossEncoder(str(folder), device=_device(), local_files_only=True)
        if missing:
            raise PageHeadError(f"{shown(folder)} lacks weights: {shown(missing[0])}; copy the folder again")
        self._model.eval()
        self._word = word
        self._rules = rules

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.asarray(found.probabilities, dtype=np.float64)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        return [self._scored(item) for item in asked]

    def _scored(self, item: PagesOfQuestion) -> ScoredPages:
        text = self._word(item.question)
        probabilities: list[float] = []
        for start in range(0, len(item.pages), _PAGES_A_BATCH):
            pairs = [(text, load_image(page, self._rules)) for page in item.pages[start : start + _PAGES_A_BATCH]]
            logits = self._model.predict(
                pairs, batch_size=len(pairs), show_progress_bar=False, activation_fn=torch.nn.Identity()
            )
            probabilities += torch.sigmoid(torch.from_numpy(np.asarray(logits, dtype=np.float64))).tolist()
        image_tokens = sum(_image_tokens(self._model, *image_size(page, self._rules)) for page in item.pages)
        around = len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ScoredPages(
            probabilities=tuple(probabilities), image_tokens=image_tokens, text_tokens=around * len(item.pages)
        )


def train_head(
    pairs: Sequence[LabelledPage],
    start: Path,
    folder: Path,
    settings: HeadTrainingConfig,
    *,
    tokens: tuple[int, int],
    wording: str,
    word: Callable[[str], str],
    rules: ImageRules,
    on_step: Callable[[int, int, float], None] = lambda step, num_steps, loss: None,
) -> None:
    """Train a head, and write it.

    Args:
        pairs: the pairs to train on.
        start: the folder of the model that it starts from: an embedder or a policy.
        folder: the folder to write.
        settings: how it is trained.
        tokens: the ids of yes and no.
        wording: the template by which ``word`` words questions; it is kept with the head.
        word: words a question about a page.
        rules: how pages are read.
        on_step: is called with the number of each step, how many there will be, and its loss.

    Raises:
        PageHeadError: one of the two labels is missing, or the model lacks more than the head's own weights.
        ImageError: a page cannot be read.
    """
    num_relevant = sum(pair.is_relevant for pair in pairs)
    if not 0 < num_relevant < len(pairs):
        raise PageHeadError(
            f"{num_relevant} of {len(pairs)} pairs are relevant; a head needs relevant and irrelevant ones"
        )
    torch.manual_seed(settings.seed)
    model = _start_model(start, tokens)
    low = rules.scaled_down(settings.max_pixels)

    def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        chosen = [pairs[row] for row in batch["row"]]
        return {
            "query": [word(pair.question) for pair in chosen],
            "document": [load_image(pair.page, low) for pair in chosen],
            "label": [float(pair.is_relevant) for pair in chosen],
        }

    dataset = Dataset.from_dict({"row": list(range(len(pairs)))})
    trainer = _Trainer(
        model=model,
        args=_arguments(settings, folder, len(pairs)),
        train_dataset=dataset,
        loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(settings.positive_weight)),
        data_collator=_Collator(read),
        callbacks=[_Reporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / WORDING_FILE).write_text(wording, encoding="utf-8")
    write_json(folder / HEAD_FILE, {"training": dataclasses.asdict(settings), "num_pairs": len(pairs)}, indent=2)


class _Collator:
    """Words and reads the pairs of a batch when it is needed; nothing is decoded before."""

    valid_label_columns = ("label",)

    def __init__(self, read: Callable[[dict[str, list[Any]]], dict[str, list[Any]]]) -> None:
        self._read = read

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        found = self._read({"row": [row["row"] for row in rows]})
        return {"query": found["query"], "document": found["document"], "label": torch.tensor(found["label"])}


class _Trainer(CrossEncoderTrainer):
    """Their trainer on our batches."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no card: it would look for texts in the data."""

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[list[Any]], torch.Tensor]:
        """Hand questions and pages to the loss as they are."""
        return [inputs["query"], inputs["document"]], inputs["label"]


class _Reporter(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int, float], None]) -> None:
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Tell of a step."""
        if logs and "loss" in logs:
            self._on_step(int(state.global_step), int(state.max_steps), float(logs["loss"]))


def _arguments(settings: HeadTrainingConfig, folder: Path, num_pairs: int) -> CrossEncoderTrainingArguments:
    steps_an_epoch = max(1, num_pairs // settings.batch_size)
    num_steps = settings.max_steps or max(1, round(settings.num_epochs * steps_an_epoch))
    return CrossEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=max(1, settings.batch_size // settings.micro_batch_size),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_frac * num_steps),
        bf16=_device() == "cuda",
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_pin_memory=_device() == "cuda",
        dataloader_drop_last=num_pairs >= settings.micro_batch_size,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _start_model(start: Path, tokens: tuple[int, int]) -> CrossEncoder:
    """Load the model that training starts from, with the prompt of a page in its chat template."""
    with watched_loading() as missing:
        reader = Transformer(str(start), transformer_task="any-to-any", model_kwargs={"dtype": torch.float32})
    if any(name != _HEAD for name in missing):
        raise PageHeadError(
            f"{shown(start)} lacks weights that a head starts from: {shown(missing[0])}; name the folder of an "
            "embedder or a policy with all of its weights"
        )
    own = reader.processor.chat_template or ""
    template = own if own.startswith(_TEMPLATE) else f"{_TEMPLATE}{own}{{%- endif %}}"
    reader.processor.chat_template = template
    reader.tokenizer.chat_template = template
    return CrossEncoder(modules=[reader, LogitScore(*tokens)], device=_device())


def _image_tokens(model: CrossEncoder, width: int, height: int) -> int:
    processor: Any = model[0].processor.image_processor
    return int(processor.get_number_of_image_patches(height, width, {})) // int(processor.merge_size) ** 2


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
