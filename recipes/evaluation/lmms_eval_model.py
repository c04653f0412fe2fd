"""Our models in lmms-eval: ``--model rsgrpo``, through the entry point ``lmms_eval.models``.

lmms-eval's own adapters cut an evidence-style response off at a task's 16 or 128 tokens, and its scorers read
reasoning as an answer. This one

1. puts a task's question into the evidence prompt (``prompt_style=evidence``; ``plain`` leaves it as it is), unless
   the task brings that prompt;
2. lets a response have at least ``max_new_tokens`` tokens, whatever the task asks for;
3. returns the answer section alone (the whole text where there is none), and keeps every raw text in ``raw_log``;
4. answers with our own engines (``checkpoint=…``) or through a server (``endpoint=…,model=…``).

Only imported where lmms-eval is installed (extra ``lmms``).
"""

from __future__ import annotations

import atexit
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from recipes.evaluation.answering import Answer, Answerer, EngineAnswerer
from recipes.evaluation.endpoint import EndpointAnswerer
from rollout.pool import RolloutPool
from rsgrpo.cluster.placement import open_placement
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.cluster.topology import fit
from rsgrpo.config import (
    ClusterConfig,
    Config,
    DataConfig,
    Dtype,
    EndpointConfig,
    EvalConfig,
    ImageOrder,
    ModelConfig,
    PromptConfig,
    RolloutConfig,
    SamplingConfig,
)
from rsgrpo.config.checks import one_of
from rsgrpo.config.image_rules import MAX_MEGAPIXELS, ImageRules
from rsgrpo.config.response import check_tag_name
from rsgrpo.data.images.headers import DECODING_ERRORS
from rsgrpo.data.images.loading import check_image, image_from_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.benchmarks.base import ANSWER_SECTION
from rsgrpo.evaluation.prompts.turns import ChatTurn, TaskPrompt
from rsgrpo.io.jsonl import append_rows
from rsgrpo.model.folder import load_processor
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.text.sections import section_content
from rsgrpo.types import ImageRef, Sample

EVISRAG_TASKS = "rsgrpo_evisrag"
"""Tasks whose names begin like this bring the evidence prompt, and the whole response is scored."""

_BATCH_REQUESTS = 128


class LmmsEvalError(RsgrpoError):
    """lmms-eval asks for something that this adapter cannot give."""


def manifest() -> ModelManifest:
    """What the entry point ``lmms_eval.models`` gives lmms-eval."""
    return ModelManifest(model_id="rsgrpo", chat_class_path=f"{__name__}.{RsgrpoModel.__name__}")


class RsgrpoModel(lmms):  # type: ignore[misc]
    """The adapter; arguments come from ``--model_args``.

    Args:
        checkpoint: model folder; answered by our own engines.
        endpoint: base address of an OpenAI-compatible server instead.
        model: the server's name of the model.
        api_key_variable: environment variable with the server's key.
        concurrency: requests to the server at a time.
        prompt_style: ``evidence`` or ``plain``.
        prompt_path: the evidence template.
        answer_section: the section of a response that the task's scorer gets.
        image_order: ``text_first`` or ``images_first`` (evidence style).
        system: system turn, unless the task brings its own.
        max_new_tokens: least response limit.
        raw_log: JSON lines with every raw response; empty: none.
        max_images: images of one question at most.
        max_model_tokens: prompt and response together.
        min_pixels: smaller images are scaled up to this area.
        max_pixels: larger images are scaled down to it.
        background: what shows through where an image is transparent.
        max_image_megapixels: larger image files are refused.
        dtype: ``bfloat16`` or ``float32``.
        num_workers: how many engines answer.
        tensor_parallel_size: GPUs of an engine.
        max_num_sequences: requests an engine works on at a time.
        max_batched_tokens: tokens of one engine step.
        enforce_eager: whether engines run without CUDA graphs.
        kv_cache_gib: the size of a CPU engine's cache, in GiB.
        gpus: how many GPUs of this machine are used; 0 on a CPU.
        seed: the seed of the sampling, where a task samples.
        batch_size: ignored; the engine batches by itself.
        device: ignored as well; ``gpus`` says what is used.

    Raises:
        LmmsEvalError: neither or both of ``checkpoint`` and ``endpoint`` are given.
    """

    is_simple = False

    def __init__(
        self,
        *,
        checkpoint: str = "",
        endpoint: str = "",
        model: str = "",
        api_key_variable: str = "",
        concurrency: int = 16,
        prompt_style: str = "evidence",
        prompt_path: str = "configs/prompt/evidence.jinja",
        answer_section: str = ANSWER_SECTION,
        image_order: ImageOrder = "text_first",
        system: str = "You are a helpful assistant.",
        max_new_tokens: int = 2048,
        raw_log: str = "rsgrpo_responses.jsonl",
        max_images: int = 16,
        max_model_tokens: int = 32768,
        min_pixels: int = 3136,
        max_pixels: int = 1568000,
        background: str = "white",
        max_image_megapixels: float = MAX_MEGAPIXELS,
        dtype: Dtype = "bfloat16",
        num_workers: int = 1,
        tensor_parallel_size: int = 1,
        max_num_sequences: int = 256,
        max_batched_tokens: int = 16384,
        enforce_eager: bool = False,
        kv_cache_gib: float = 4.0,
        gpus: int = 1,
        seed: int = 0,
        batch_size: object = None,
        device: object = None,
    ) -> None:
        super().__init__()
        if bool(checkpoint) == bool(endpoint):
            raise LmmsEvalError("--model_args needs checkpoint=FOLDER, or endpoint=URL,model=NAME, and not both")
        one_of("prompt_style", prompt_style, ("evidence", "plain"))
        check_tag_name("answer_section", answer_section)
        self._answer_section = answer_section
        self._is_evidence = prompt_style == "evidence"
        self._system = system
        self._least_tokens = max_new_tokens
        self._raw_log = Path(raw_log) if raw_log else None
        self._writer = PromptWriter(PromptConfig(path=prompt_path, image_order=image_order))
        self._config = Config(
            stage="eval",
            seed=seed,
            model=ModelConfig(path=checkpoint, dtype=dtype),
            data=DataConfig(
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                background=background,
                max_image_megapixels=max_image_megapixels,
                max_images=max_images,
            ),
            rollout=RolloutConfig(
                sampling=SamplingConfig(max_response_tokens=max_new_tokens),
                num_workers=num_workers,
                tensor_parallel_size=tensor_parallel_size,
                max_model_tokens=max_model_tokens,
                max_num_sequences=max_num_sequences,
                max_batched_tokens=max_batched_tokens,
                enforce_eager=enforce_eager,
                kv_cache_gib=kv_cache_gib,
            ),
            eval=EvalConfig(),
            cluster=ClusterConfig(gpus_per_node=gpus),
        )
        self._open = ExitStack()
        atexit.register(self._open.close)
        if endpoint:
            server = EndpointConfig(
                url=endpoint, model=model, api_key_variable=api_key_variable, concurrency=concurrency
            )
            self._answerer: Answerer = EndpointAnswerer(server, self._config.data, seed)
        else:
            self._answerer = self._start_engine(Path(checkpoint))

    def _start_engine(self, checkpoint: Path) -> Answerer:
        if not (checkpoint / "config.json").is_file():
            raise LmmsEvalError(f"checkpoint={str(checkpoint)!r} is no model folder (it has no config.json)")
        processor = load_processor(checkpoint, f"checkpoint={str(checkpoint)!r}")
        cluster = self._open.enter_context(open_cluster(self._config.cluster))
        fitted = fit(self._config, gpus_per_node=cluster.gpus_per_node)
        for line in fitted.lines:
            print(line, file=sys.stderr)
        placement, threads = self._open.enter_context(open_placement(fitted.config, cluster))
        engine = RolloutPool(
            fitted.config,
            checkpoint.absolute(),
            device=fitted.config.cluster.device,
            num_threads=threads.engines,
            placement=placement,
        )
        self._open.callback(engine.close)
        return EngineAnswerer(engine, processor, self._config.seed)

    def clean(self) -> None:
        """End the engines."""
        self._open.close()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer the requests, in the order in which they are given.

        Args:
            requests: instances whose arguments are context, messages of a document, generation settings,
                document number, task and split.

        Returns:
            The text of each answer section, in the order of the requests.

        Raises:
            LmmsEvalError: a server failed on some of the requests: nothing is passed off as an answer.
        """
        texts: list[str] = []
        for start in range(0, len(requests), _BATCH_REQUESTS):
            with tempfile.TemporaryDirectory(prefix="rsgrpo-lmms-") as folder:
                texts += self._answer_batch(requests[start : start + _BATCH_REQUESTS], Path(folder))
        return texts

    def _answer_batch(self, requests: Sequence[Any], folder: Path) -> list[str]:
        prompts: dict[SamplingKey, list[TaskPrompt]] = {}
        order: list[tuple[str, str]] = []
        for index, request in enumerate(requests):
            _, doc_to_messages, settings, doc_id, task, split = request.arguments
            document = self.task_dict[task][split][doc_id]
            prompt_id = f"{task}/{split}/{doc_id}/{index}"
            is_wrapped = self._is_evidence and not task.startswith(EVISRAG_TASKS)
            prompt = self._prompt(prompt_id, doc_to_messages(document), folder / str(index), is_wrapped=is_wrapped)
            prompts.setdefault(self._sampling_key(settings or {}), []).append(prompt)
            order.append((prompt_id, task))
        answers: dict[str, Answer] = {}
        for key, some in prompts.items():
            self._answerer.answer(
                some, key.sampling(), lambda more: answers.update({answer.prompt_id: answer for answer in more})
            )
        self._log(answers.values())
        failed = [answer for answer in answers.values() if answer.failure]
        if failed:
            raise LmmsEvalError(
                f"{len(failed)} of {len(requests)} requests failed, the first, {failed[0].prompt_id}, with: "
                f"{failed[0].failure}; start again when the server is well (lmms-eval's --use_cache keeps the others)"
            )
        return [self._returned(task, answers[prompt_id].text) for prompt_id, task in order]

    def _sampling_key(self, settings: dict[str, Any]) -> SamplingKey:
        is_greedy = settings.get("do_sample") is False
        return SamplingKey(
            temperature=0.0 if is_greedy else float(settings.get("temperature") or 0.0),
            top_p=1.0 if is_greedy else float(settings.get("top_p") or 1.0),
            repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
            max_tokens=max(self._least_tokens, int(settings.get("max_new_tokens") or 0)),
        )

    def _prompt(
        self, prompt_id: str, messages: Sequence[dict[str, Any]], folder: Path, *, is_wrapped: bool
    ) -> TaskPrompt:
        turns = [
            ChatTurn(role=message["role"], parts=self._parts(prompt_id, message["content"], folder / str(index)))
            for index, message in enumerate(messages)
        ]
        if is_wrapped and turns and turns[-1].role == "user":
            turns[-1] = self._evidence_turn(turns[-1], prompt_id)
        if not any(turn.role == "system" for turn in turns):
            turns.insert(0, ChatTurn(role="system", parts=(self._system,)))
        return TaskPrompt(prompt_id=prompt_id, turns=tuple(turns))

    def _parts(self, prompt_id: str, content: Any, folder: Path) -> tuple[str | ImageRef, ...]:
        if isinstance(content, str):
            return (content,)
        parts: list[str | ImageRef] = []
        for index, part in enumerate(content):
            if part["type"] == "text":
                parts.append(part["text"])
            elif part["type"] == "image":
                parts.append(_image_file(prompt_id, part["url"], folder, index, self._config.data.image_rules))
            else:
                raise LmmsEvalError(f"{prompt_id} shows a {part['type']}; this model reads text and images")
        return tuple(parts)

    def _evidence_turn(self, turn: ChatTurn, prompt_id: str) -> ChatTurn:
        """The task's words as the question; an image in their midst leaves its number there."""
        images = tuple(part for part in turn.parts if isinstance(part, ImageRef))
        words: list[str] = []
        number = 0
        for part in turn.parts:
            if isinstance(part, ImageRef):
                number += 1
                words += [f"<image {number}>"] if words else []
            else:
                words.append(part)
        sample = Sample(sample_id=prompt_id, question="".join(words).strip(), images=images)
        waiting = iter(images)
        parts = tuple(next(waiting) if part is None else part for part in self._writer.parts(sample))
        return dataclasses.replace(turn, parts=parts)

    def _returned(self, task: str, text: str) -> str:
        if task.startswith(EVISRAG_TASKS):
            return text
        section = section_content(text, self._answer_section)
        return text if section is None else section.strip()

    def _log(self, answers: Any) -> None:
        if self._raw_log is not None:
            append_rows(self._raw_log, (dataclasses.asdict(answer) for answer in answers))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: likelihoods are not offered, as an evidence-style model is judged by what it writes."""
        raise LmmsEvalError("this model generates; choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: questions of several rounds are not offered."""
        raise LmmsEvalError("this model answers in one round; choose tasks with output_type generate_until")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingKey:
    """The generation settings of a task as a key: requests that share it are answered together."""

    temperature: float
    top_p: float
    repetition_penalty: float
    max_tokens: int

    def sampling(self) -> SamplingConfig:
        """The settings as the engine and the endpoint take them."""
        return SamplingConfig(
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_response_tokens=self.max_tokens,
        )


def _image_file(prompt_id: str, image: Any, folder: Path, index: int, rules: ImageRules) -> ImageRef:
    """An image of a task as a file: our engines read pages from disk, in whatever process they run."""
    if isinstance(image, Image.Image):
        ref = _written(prompt_id, image, folder, index, rules)
    else:
        finder = MediaFinder((Path.cwd(),), must_exist=True, store=MediaStore(str(folder)))
        try:
            ref = finder.find(image, f"image {index}")
        except BadRecordError as error:
            raise LmmsEvalError(f"{prompt_id}: {error}") from error
    try:
        check_image(ref, rules)
    except ImageError as error:
        complaint = str(error).partition(";")[0]  # its way out is a setting that lmms-eval does not have
        raise LmmsEvalError(f"{prompt_id}: {complaint}; repair the task's data") from error
    return ref


def _written(prompt_id: str, image: Image.Image, folder: Path, index: int, rules: ImageRules) -> ImageRef:
    """An image that the task opened or made, upright and without transparency in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{index}.png"
    try:
        upright = image_from_image(image, rules)
    except DECODING_ERRORS as error:
        raise LmmsEvalError(f"{prompt_id}: an image is damaged: {shown(error)}; repair the task's data") from error
    upright.save(file)
    return ImageRef(path=file.name, file=str(file))
