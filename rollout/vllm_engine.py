"""The only module that imports vLLM: an engine inside this process, its weights replaced in place."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from rollout.adapter_folder import AdapterFolder, adapter_settings
from rollout.completions import rollout_of
from rollout.engine import RolloutError
from rollout.engine_watch import EngineWatch, process_and_parent
from rollout.image_embeds import ImageEmbeds
from rollout.layer_loading import begin_loading, finish_loading, load_bucket, unfinished_layers
from rollout.rendering import PromptRenderer
from rollout.requests import RolloutRequest, request_seed
from rollout.token_suppression import suppress_tokens
from rollout.weight_loading import begin_update, call_pickled, finish_update, join_trainer, receive_bucket
from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.cluster.topology import engine_memory_frac, transfer_kind
from rsgrpo.config import Config
from rsgrpo.errors import shown
from rsgrpo.model.folder import check_model_type
from rsgrpo.model.image_feed import ImageFeed, decoded_images
from rsgrpo.model.suppressed_tokens import suppressed_token_ids
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import Group, RolloutGroup
from rsgrpo.weights.buckets import WeightBucket, WeightVersion, bucket_checksum, format_checksum
from rsgrpo.weights.transfer import StagedBucket

# A call returns what is answered after the first number of steps, or after the second if nothing is.
_MIN_STEPS = 8
_MAX_STEPS = 64
_MAX_READY_PROMPTS = 4
_IMAGE_BYTES = 384 * 2**20
_BACKENDS = {"cuda_ipc": "ipc", "nccl": "nccl"}
_KEPT_AWAKE: dict[OnGpu, tuple[str, ...]] = {
    OnGpu.NOTHING: (),
    OnGpu.WEIGHTS: ("weights",),
    OnGpu.ALL: ("weights", "kv_cache"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What an engine is built from.

    Attributes:
        config: the run's settings.
        model_folder: the folder of a model with its tokenizer and processor.
        device: the kind of device, ``cpu`` or ``gpu``.
        features_folder: the folder of the stored features of pages, needed for ``rollout.image_embeds``; None: there is
            none.
    """

    config: Config
    model_folder: Path
    device: str
    features_folder: Path | None = None


def _cpu_settings(spec: EngineSpec) -> dict[str, Any]:
    settings = spec.config.rollout
    if settings.num_workers == 1:
        return {"max_num_batched_tokens": settings.max_batched_tokens}
    # A request's generator cannot be rewound after a prefill that is cut, so none is (see VllmEngine.seed_call).
    return {
        "max_num_batched_tokens": max(settings.max_batched_tokens, settings.max_model_tokens),
        "enable_chunked_prefill": False,
        # States of gated delta nets are kept where a prefill is cut: vLLM wants both or neither.
        "enable_prefix_caching": not check_model_type(spec.model_folder).delta_net,
    }


def _gpu_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_num_batched_tokens": config.rollout.max_batched_tokens,
        "gpu_memory_utilization": engine_memory_frac(config),
        "enable_sleep_mode": config.cluster.topology == "colocated" and config.stage != "eval",
    }
    kind = transfer_kind(config, "gpu")
    if kind in _BACKENDS:
        settings["weight_transfer_config"] = {"backend": _BACKENDS[kind]}
    return settings


class VllmEngine:
    """vLLM with real weights, greedy or sampled, log-probabilities at the sampling temperature.

    Args:
        spec: what the engine is built from: settings, model folder, device.
    """

    def __init__(self, spec: EngineSpec) -> None:
        settings = spec.config.rollout
        # Of several engines, whichever draws a request answers it alike.
        self._has_request_seeds = spec.device == "gpu" or settings.num_workers > 1
        adapters = adapter_settings(spec.config)
        by_device = _gpu_settings(spec.config) if spec.device == "gpu" else _cpu_settings(spec)
        # On a GPU vLLM runs its engine in a process of its own, on a CPU in this one, unless the environment says so.
        self._is_in_process = spec.device == "cpu" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
        if spec.device == "cpu" and check_model_type(spec.model_folder).delta_net:
            self._prepare_delta_nets(spec.config)
        self._on_gpu = OnGpu.ALL
        self._is_updating = False
        self._is_paused = False
        self._llm = LLM(
            model=str(spec.model_folder),
            dtype=spec.config.model.dtype,
            seed=0,
            tensor_parallel_size=settings.tensor_parallel_size,
            # Else vLLM would ask Ray for GPUs again that this actor holds already.
            distributed_executor_backend="mp" if settings.tensor_parallel_size > 1 else None,
            max_model_len=settings.max_model_tokens,
            max_num_seqs=settings.max_num_sequences,
            enforce_eager=settings.enforce_eager,
            limit_mm_per_prompt={"image": spec.config.data.max_images, "video": 0},
            enable_mm_embeds=settings.image_embeds,
            # The trainer computes logits in float32; the engine's, rounded to bfloat16, would stand apart from them.
            hf_overrides={"head_dtype": "float32"} if spec.config.model.dtype == "bfloat16" else {},
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # a model's own sampling defaults would change what log-probabilities mean
            disable_log_stats=True,
            **{"enable_prefix_caching": True} | by_device,
            **adapters,
        )
        # Where adapters come alone: the folder that vLLM reads them from, and what requests name them by.
        self._adapters = AdapterFolder(spec.config.model.lora, spec.model_folder) if adapters else None
        self._adapter: LoRARequest | None = None
        self._watch = EngineWatch(self._llm.collective_rpc(process_and_parent))
        self._embeds: ImageEmbeds | None = None
        if settings.image_embeds and spec.features_folder is not None:
            self._embeds = ImageEmbeds(spec.config, spec.model_folder, spec.features_folder, spec.device)
        self._tokenizer = self._llm.get_tokenizer()
        self._settings = settings
        self._numbers = itertools.count()
        self._open: dict[str, RolloutRequest] = {}
        self._rules = spec.config.data.image_rules
        self._feeds: dict[int, ImageFeed[Image.Image]] = {}  # by ``max_pixels`` of the requests
        self._renderer = PromptRenderer(self._render, self._images, max_ahead=_MAX_READY_PROMPTS)
        self._table = TokenTable.from_tokenizer(self._tokenizer)
        vocabulary_size = self._llm.model_config.get_vocab_size()
        self._in_workers(suppress_tokens, suppressed_token_ids(self._tokenizer, vocabulary_size))
        self.policy_version = 0
        self._llm.llm_engine.set_weight_version("0")

    def _prepare_delta_nets(self, config: Config) -> None:
        """Let vLLM compute gated delta nets in float32 on a CPU, where its own kernel takes bfloat16 only."""
        if config.model.dtype == "float32" and not self._is_in_process:
            raise RolloutError(
                "vLLM computes gated delta nets on a CPU in bfloat16 only, unless it runs in the engine's own process; "
                "unset VLLM_ENABLE_V1_MULTIPROCESSING, or set model.dtype=bfloat16"
            )
        from rollout.delta_net_core import use_float32_core  # only here: no other model needs it

        use_float32_core()

    def seed_call(self, seed: int) -> None:
        """Begin a call's random numbers, where one generator serves all of its requests.

        vLLM cannot rewind a CPU generator after a cut prefill. An engine alone lives in this process and schedules by
        nothing but its requests, so that one generator gives the same responses again; of several engines on CPUs each
        request has its own, and no prefill is cut. (torch.manual_seed would also write down a stack trace for every
        kind of device that is not there: 13 ms.)
        """
        if not self._has_request_seeds:
            torch.default_generator.manual_seed(seed)

    def generate(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        """Answer requests; their groups in the same order. Raises what ``advance`` does."""
        groups = {group.sample.sample_id: group for group in self.advance(requests)}
        while len(groups) < len(requests):
            groups.update((group.sample.sample_id, group) for group in self.advance(()))
        return [groups[request.sample_id] for request in requests]

    def advance(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        """Take further requests, and sample until some are answered.

        Args:
            requests: new requests, which queue behind those that wait.

        Returns:
            The groups that are complete; empty if none is yet, or nothing is left to do.

        Raises:
            RolloutError: a prompt leaves no room for a response.
            Exception: an exception of vLLM, or one that reading a page raised.
        """
        groups: list[RolloutGroup] = []
        num_steps = 0
        self._renderer.put(requests)
        with self._engine_alive():
            while (self._open or len(self._renderer)) and num_steps < (_MIN_STEPS if groups else _MAX_STEPS):
                self._admit()
                groups.extend(self._answered(output) for output in self._llm.llm_engine.step() if output.finished)
                num_steps += 1
        return groups

    def clear(self) -> None:
        """Give up all requests."""
        self._renderer.clear()
        with self._engine_alive():
            self._llm.llm_engine.abort_request(list(self._open))
            self._llm.llm_engine.reset_mm_cache()  # its two ends must not differ by what was rendered and not sent
        self._open.clear()

    def _admit(self) -> None:
        """Hand requests to vLLM: as many as its next step can begin with, so that pages wait outside until then."""
        engine = self._llm.llm_engine
        num_tokens = 0
        while (
            len(self._renderer)
            and num_tokens < self._settings.max_batched_tokens
            and engine.get_num_unfinished_requests() < self._settings.max_num_sequences
        ):
            request, prompt = self._renderer.take()
            num_tokens += len(prompt["prompt_token_ids"])
            number = str(next(self._numbers))
            self._open[number] = request
            engine.add_request(number, prompt, self._parameters(request), lora_request=self._adapter)

    def _images(self, requests: Sequence[RolloutRequest]) -> Generator[tuple[Image.Image, ...], None, None]:
        """The decoded pages of each request; none where the engine gets stored features instead."""
        for max_pixels, members in itertools.groupby(requests, key=lambda request: request.max_pixels):
            demands = [() if self._has_features(request) else request.prompted.prompt.images for request in members]
            with closing(self._feed(max_pixels).images(demands)) as images:
                yield from images

    def _feed(self, max_pixels: int) -> ImageFeed[Image.Image]:
        """The feed of pages that are scaled down to so many pixels; 0: as the settings say."""
        if max_pixels not in self._feeds:
            self._feeds[max_pixels] = decoded_images(
                self._rules.scaled_down(max_pixels) if max_pixels else self._rules,
                max_bytes=_IMAGE_BYTES,
                num_threads=torch.get_num_threads(),
            )
        return self._feeds[max_pixels]

    def _has_features(self, request: RolloutRequest) -> bool:
        """Whether stored features stand for the request's pages; they are those of pages at full size."""
        return self._embeds is not None and not request.max_pixels

    def _render(self, request: RolloutRequest, decoded: tuple[Image.Image, ...]) -> Any:
        """Prepare a prompt for vLLM: token ids with images expanded, and the images' pixels for the model."""
        prompt = request.prompted.prompt
        ids = self._tokenizer.encode(prompt.text, add_special_tokens=False)
        tokens = TokensPrompt(prompt_token_ids=ids)
        if prompt.images:
            images = self._embeds.of(prompt.images) if self._has_features(request) else list(decoded)
            tokens["multi_modal_data"] = {"image": images}
        return self._llm.llm_engine.renderer.render_cmpl([tokens])[0]

    def _parameters(self, request: RolloutRequest) -> SamplingParams:
        sampling = request.sampling
        has_seed = self._has_request_seeds and sampling.temperature > 0
        return SamplingParams(
            n=request.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_response_tokens,
            seed=request_seed(request.seed, request.sample_id) if has_seed else None,
            logprobs=len(request.named_token_ids),  # 0: the sampled token's alone
            logprob_token_ids=list(request.named_token_ids) or None,
            flat_logprobs=True,  # numbers in lists: an object a token would cost five times as much
            detokenize=False,  # texts come from the ids' own bytes, with offsets
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _answered(self, output: Any) -> RolloutGroup:
        request = self._open.pop(output.request_id)
        num_prompt_tokens = len(output.prompt_token_ids)
        if num_prompt_tokens >= self._settings.max_model_tokens:
            raise RolloutError(
                f"the prompt of sample {request.sample_id!r} has {num_prompt_tokens} tokens, "
                f"rollout.max_model_tokens={self._settings.max_model_tokens} leaves no room for a response; raise it"
            )
        return Group(
            sample=request.prompted.sample,
            prompt=request.prompted.prompt,
            prompt_token_ids=np.asarray(output.prompt_token_ids, dtype=np.int32),
            rollouts=tuple(
                rollout_of(request, completion, self._table)
                for completion in sorted(output.outputs, key=lambda completion: completion.index)
            ),
        )

    def update_weights(self, buckets: Sequence[WeightBucket], version: WeightVersion, *, is_complete: bool) -> None:
        """Replace weights in place.

        Args:
            buckets: all buckets, or those that training changes, in checksum order.
            version: the version of the weights, and their checksum.
            is_complete: whether all of the model's parameters are in them.

        Raises:
            RolloutError: the weights that arrived are not those that were sent, or leave a layer without its weights.
        """
        checksum = 0
        for bucket in buckets:
            checksum = bucket_checksum(bucket, checksum)
        if format_checksum(checksum) != version.checksum:
            raise RolloutError(
                f"the weights of version {version.version} arrived with checksum {format_checksum(checksum)}, sent was "
                f"{version.checksum}; the transfer is broken: look for memory faults or a full object store"
            )
        self._pause()
        if self._adapters is not None:
            self._load_adapter(self._adapters.write(buckets), version.version)
            return
        self._in_workers(begin_loading)
        for bucket in buckets:
            # One call each: vLLM's messages between processes end at 4 GiB.
            self._in_workers(load_bucket, bucket)
        self._finish(finish_loading, version.version, is_complete)

    def _load_adapter(self, folder: str, version: int) -> None:
        """Let vLLM put new adapters in the place of the old: responses under way go on with them, as with weights."""
        with self._engine_alive():
            # Requests go without the flag: vLLM would read the files again for each of their steps.
            self._llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        self._adapter = LoRARequest("policy", 1, folder)
        self._take_version(version)

    def _finish(self, finish: Callable[[Any], None], version: int, is_complete: bool) -> None:
        """Close an update, also one that is refused: the next one has to find vLLM's layers in order."""
        layers = sorted({layer for found in self._in_workers(unfinished_layers, is_complete) for layer in found})
        self._in_workers(finish)
        if layers:
            raise RolloutError(
                f"the weights of version {version} leave {len(layers)} of the engine's layers without all of their "
                f"parameters ({shown(', '.join(layers), 120)}); the trainer did not send what the model needs: load a "
                "model that holds them, or report a defect"
            )
        self._take_version(version)

    def join_trainer(self, kind: str, group: str, first_member: int, num_members: int) -> None:
        """Make ready for weights from the trainer's GPUs; arguments as in ``weight_loading.join_trainer``."""
        self._in_workers(join_trainer, kind, group, first_member, num_members)

    def begin_update(self) -> None:
        """Open a weight update from the trainer's GPUs; one that was given up before its end is closed first."""
        if self._is_updating:
            self._in_workers(finish_update)
        self._pause()
        self._in_workers(begin_update)
        self._is_updating = True

    def receive_bucket(self, bucket: StagedBucket) -> list[int]:
        """Load a bucket from the trainer's GPUs.

        Args:
            bucket: the bucket that the trainer staged.

        Returns:
            The checksum of the weights that came in, one for each GPU.
        """
        return self._in_workers(receive_bucket, bucket)

    def finish_update(self, version: int, *, is_complete: bool) -> None:
        """Close a weight update from the trainer's GPUs.

        Args:
            version: the version that responses are stamped with from here on.
            is_complete: whether all of the model's parameters were sent.

        Raises:
            RolloutError: a layer did not get all of its weights.
        """
        self._is_updating = False
        self._finish(finish_update, version, is_complete)

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Keep that much on the GPU; the weights wait on the host, the cache is given up.

        vLLM's level 1: level 2 would forget the weights, of which only those that training changes come anew.

        Args:
            parts: what stays on the GPU: nothing, the weights, or all.
        """
        with self._engine_alive():
            if parts < self._on_gpu:
                self._llm.sleep(level=1)
                self._on_gpu = OnGpu.NOTHING
            missing = [tag for tag in _KEPT_AWAKE[parts] if tag not in _KEPT_AWAKE[self._on_gpu]]
            if missing:
                self._llm.wake_up(tags=missing)
        self._on_gpu = parts

    @contextmanager
    def _engine_alive(self) -> Iterator[None]:
        """Watch a call to the engine: if the engine dies in it, this process ends as well.

        The watch would see it as well, but a moment after the call's error has reached the pool.
        """
        try:
            yield
        except Exception as error:  # whatever vLLM raises: it is looked at, and raised again
            if isinstance(error, EngineDeadError) or self._watch.has_died():
                self._watch.leave()
            raise

    def _in_workers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        with self._engine_alive():
            if self._is_in_process:
                return self._llm.collective_rpc(function, args=arguments)
            return self._llm.collective_rpc(call_pickled, args=(pickle.dumps((function, arguments), protocol=5),))

    def _pause(self) -> None:
        """Pause running requests between two tokens; an engine in this process only runs during a call anyhow."""
        if self._open and not self._is_in_process:
            with self._engine_alive():
                self._llm.llm_engine.engine_core.call_utility("pause_scheduler", "keep", False)
            self._is_paused = True

    def _take_version(self, version: int) -> None:
        with self._engine_alive():
            # Features of the old vision tower and keys of the old layers must not meet the new weights: a response that
            # is under way keeps its tokens, and vLLM works through them and its prompt again.
            self._llm.reset_prefix_cache(reset_running_requests=True)
            self._llm.llm_engine.reset_encoder_cache()
            self._llm.llm_engine.set_weight_version(str(version))
            if self._is_paused:
                self._llm.llm_engine.engine_core.call_utility("resume_scheduler")
        self._is_paused = False
        self.policy_version = version
