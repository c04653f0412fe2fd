"""From benchmarks as they are downloaded to the prompts that a model gets: find the files, read, word.

| family | files under ``eval.data_root`` | official prompt | response tokens |
|---|---|---|---|
| evisrag | ``EVisRAG-Test-ChartQA/`` … | ``prompt.path``, then the first three pages; repetition penalty 1.05 | 2048 |
| milebench | ``MileBench/ALFRED/ALFRED.json`` … | instruction, context with the images in place, options | 512 |
| vhs | ``single_needle/VHs_large/visual_haystack_10.json`` … | images in seeded random order, then the question | 128 |
| mig_bench | ``MIG-Bench/MIG_data.json`` | images, then question and box format | 128 |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.evaluation.task_records import BenchmarkRequest, TaskRequests, checked_task
from rsgrpo.config import Config, PromptConfig, SamplingConfig
from rsgrpo.data.images.image_manifest import ImageManifest
from rsgrpo.data.images.sources import ImageError
from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.data.readers.findings import Tally
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.base import Benchmark, BenchmarkError
from rsgrpo.evaluation.benchmarks.haystack_files import needle_positions
from rsgrpo.evaluation.prompts.combine import combine_images
from rsgrpo.evaluation.prompts.grounding import grounding_text
from rsgrpo.evaluation.prompts.haystack import haystack_at, haystack_text, shuffled_haystack
from rsgrpo.evaluation.prompts.milebench import IMAGE_HERE, ContextLimit, milebench_prompt
from rsgrpo.evaluation.prompts.turns import user_prompt
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.types import ImageRef, Sample

_TOP_IMAGES = 3
_EVISRAG_PENALTY = 1.05
_POSITIONAL = "vhs/positional"
_HAYSTACK_FILE = re.compile(r"visual_haystack_(\d+|oracle)")
_ORACLE_IMAGES = 1
_COMBINED = re.compile(r"_combined_(\d+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class _DataSet:
    """A data file that belongs to a task."""

    name: str
    benchmark: Benchmark
    format: str
    path: Path
    media_root: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wording:
    """What the functions that word a benchmark family's questions need."""

    config: Config
    writer: PromptWriter
    limit: ContextLimit | None
    canvases: Path

    @property
    def is_official(self) -> bool:
        """Whether the benchmark's own words are wanted (``eval.prompt_style=official``)."""
        return self.config.eval.prompt_style == "official"

    def evidence_parts(self, sample: Sample) -> tuple[str | ImageRef, ...]:
        """Text and images in order: ``prompt.path`` with the question, images where ``prompt.image_order`` says."""
        images = iter(sample.images)
        return tuple(next(images) if part is None else part for part in self.writer.parts(sample))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """How the benchmarks of one family are found and asked."""

    find: Callable[[Benchmark, Config], list[_DataSet]]
    ask: Callable[[Sample, _Wording, str], Iterator[BenchmarkRequest]]
    response_tokens: int
    repetition_penalty: float | None = None


def load_tasks(
    config: Config, limit: ContextLimit | None, canvases: Path, names: Sequence[str] | None = None
) -> list[TaskRequests]:
    """Read and word benchmarks.

    Args:
        config: the checked settings of the run.
        limit: MileBench's context limit; None: nothing is cut.
        canvases: where combined images are drawn.
        names: the names of benchmarks and families; None: all that ``eval.tasks`` names.

    Returns:
        The requests of each task in the order named; the name of a whole family gives all of its tasks.

    Raises:
        RsgrpoError: a task is not known, data are missing or cannot be used, or an image cannot be read.
    """
    tasks = config.eval.tasks if names is None else names
    wanted = {benchmark.name: benchmark for name in tasks for benchmark in find_benchmarks(name)}
    unsupported = [name for name in wanted if _family_name(name) not in FAMILIES]
    if unsupported:
        raise BenchmarkError(
            f"eval.tasks: {', '.join(unsupported)} can be scored but not asked; the families are {', '.join(FAMILIES)}"
        )
    data_sets = [
        data_set
        for name, benchmark in wanted.items()
        for data_set in FAMILIES[_family_name(name)].find(benchmark, config)
    ]
    # Every missing file is known before the first large one is read.
    writer = PromptWriter(_prompt_settings(config))
    wording = _Wording(config=config, writer=writer, limit=limit, canvases=canvases)
    return [_load(data_set, wording) for data_set in data_sets]


def _family_name(task: str) -> str:
    return task.split("/")[0]


def _prompt_settings(config: Config) -> PromptConfig:
    """Official EVisRAG puts the text first, whatever the recipe's training data do."""
    order = "text_first" if config.eval.prompt_style == "official" else config.prompt.image_order
    return dataclasses.replace(config.prompt, image_order=order)


def _load(data: _DataSet, wording: _Wording) -> TaskRequests:
    config, family = wording.config, FAMILIES[_family_name(data.benchmark.name)]
    is_strict = config.data.on_bad_sample == "reject"
    options = ReaderOptions(
        media_root=data.media_root,
        on_bad_record="error" if is_strict else "skip",
        max_skipped_frac=config.data.max_skipped_frac,
        columns=config.data,
        media_cache=config.data.media_cache,
    )
    manifest = ImageManifest(config.data.media_cache, [data.format, str(Path(data.path).absolute())])
    samples, report = read_samples(data.format, data.path, options=options)
    task = data.benchmark.name
    if data.format == "mig_bench" and task != "mig_bench":
        samples = tuple(sample for sample in samples if sample.task == task)
    if config.eval.max_samples:
        samples = samples[: config.eval.max_samples]
    unusable = Tally()
    asked = _asked(samples, wording, task, unusable)
    if not asked and not unusable.found:
        raise BenchmarkError(f"{data.name}: {data.path} holds no question\n{report.text()}")
    manifest.keep(image for request in asked for image in request.sample.images)
    return checked_task(
        data.name, data.benchmark, asked, unusable, len(samples), _sampling(family, wording), report.counts(), config
    )


def _asked(samples: Sequence[Sample], wording: _Wording, task: str, unusable: Tally) -> list[BenchmarkRequest]:
    """The questions of the samples, without those with a damaged image that would be drawn onto a canvas."""
    family = FAMILIES[_family_name(task)]
    requests: list[BenchmarkRequest] = []
    for sample in samples:
        try:
            requests += family.ask(sample, wording, task)
        except ImageError as error:
            unusable.add("image", f"{error}")
    return requests


def _sampling(family: _Family, wording: _Wording) -> SamplingConfig:
    sampling = wording.config.eval.sampling
    if not wording.is_official:
        return sampling
    return dataclasses.replace(
        sampling,
        max_response_tokens=min(sampling.max_response_tokens, family.response_tokens),
        repetition_penalty=family.repetition_penalty or sampling.repetition_penalty,
    )


def _existing(name: str, candidates: Sequence[Path]) -> Path:
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise BenchmarkError(
            f"{name}: none of {', '.join(map(str, candidates))} exists; download the benchmark into eval.data_root"
        )
    return found


def _root(config: Config) -> Path:
    root = Path(config.eval.data_root)
    if not root.is_dir():
        raise BenchmarkError(f"eval.data_root={str(root)!r} is no folder; name the one that holds the benchmarks")
    return root.absolute()


def _find_evisrag(benchmark: Benchmark, config: Config) -> list[_DataSet]:
    folder = f"EVisRAG-Test-{benchmark.sets[0]}"
    path = _existing(benchmark.name, [_root(config) / folder, _root(config) / "EVisRAG-Test" / folder])
    return [_DataSet(name=benchmark.name, benchmark=benchmark, format="evisrag", path=path)]


def _ask_evisrag(sample: Sample, wording: _Wording, task: str) -> Iterator[BenchmarkRequest]:
    shown = dataclasses.replace(sample, images=sample.images[:_TOP_IMAGES], task=task)
    parts = wording.evidence_parts(shown)
    prompt = user_prompt(sample.sample_id, parts, system=wording.config.prompt.system)
    yield BenchmarkRequest(prompt=prompt, sample=shown)


def _find_milebench(benchmark: Benchmark, config: Config) -> list[_DataSet]:
    name, variant = benchmark.sets[0], benchmark.name.rpartition("/")[2]
    file = Path(name) / f"{variant if variant.endswith('-adv') else name}.json"
    if _num_canvases(benchmark.name, config) > 1:
        raise BenchmarkError(
            f"{benchmark.name}: MileBench's prompt for combined images shows one; name {name}_combined_1"
        )
    path = _existing(benchmark.name, [_root(config) / "MileBench" / file, _root(config) / file])
    return [_DataSet(name=benchmark.name, benchmark=benchmark, format="milebench", path=path)]


def _num_canvases(task: str, config: Config) -> int:
    """On how many canvases images are combined, by the task's name or the settings; 0: they are shown one by one."""
    variant = _COMBINED.search(task)
    return int(variant[1]) if variant else config.eval.max_canvases


def _ask_milebench(sample: Sample, wording: _Wording, task: str) -> Iterator[BenchmarkRequest]:
    canvases = _num_canvases(task, wording.config)
    images = sample.images
    if canvases:
        images = combine_images(
            sample.sample_id,
            images,
            canvases,
            wording.canvases / sample.metadata["dataset"] / f"combined_{canvases}_images",
            wording.config.data.image_rules,
        )
    built = milebench_prompt(
        dataset=sample.metadata["dataset"],
        instruction=sample.metadata["task_instruction"],
        context=sample.question,
        num_images=len(sample.images),
        choices=sample.choices or None,
        limit=wording.limit,
        # Our own prompt refers to images by number, as the combined one does.
        is_combined=bool(canvases) or not wording.is_official,
    )
    parts: tuple[str | ImageRef, ...]
    if wording.is_official:
        parts = _placed(built.prompt, [images[index] for index in built.kept_images])
    else:
        text = built.prompt.removeprefix(f"{IMAGE_HERE}\n")
        parts = wording.evidence_parts(dataclasses.replace(sample, question=text, images=images, choices=()))
    prompt = user_prompt(sample.sample_id, parts, system=wording.config.prompt.system)
    yield BenchmarkRequest(prompt=prompt, sample=dataclasses.replace(sample, task=task))


def _placed(prompt: str, images: Sequence[ImageRef]) -> tuple[str | ImageRef, ...]:
    """Text and images in order: each image mark becomes its image, a mark beyond the last image is left out."""
    parts: list[str | ImageRef] = []
    waiting = iter(images)
    for index, text in enumerate(prompt.split(IMAGE_HERE)):
        image = next(waiting, None) if index else None
        if image is not None:
            parts.append(image)
        parts.append(text)
    return tuple(parts)


def _find_haystacks(benchmark: Benchmark, config: Config) -> list[_DataSet]:
    kind = "multi_needle" if benchmark.name.endswith("/multi") else "single_needle"
    root = _root(config)
    places = [Path(kind) / config.eval.haystack_set]
    folder = _existing(benchmark.name, [base / place for place in places for base in (root, root / "visual_haystacks")])
    sizes: dict[int, Path] = {}
    for file in folder.glob("visual_haystack_*.json"):
        match = _HAYSTACK_FILE.fullmatch(file.stem)
        if match is not None:
            sizes[_ORACLE_IMAGES if match[1] == "oracle" else int(match[1])] = file
    wanted = config.eval.haystack_sizes or sorted(sizes)
    missing = [str(size) for size in wanted if size not in sizes]
    if missing or not wanted:
        raise BenchmarkError(
            f"{benchmark.name}: {folder} has the sizes {', '.join(map(str, sorted(sizes))) or 'none'}, not "
            f"{', '.join(missing) or 'a single one'}; change eval.haystack_sizes, or download the missing files"
        )
    photographs = Path(config.eval.image_root) if config.eval.image_root else root / "coco"
    if not photographs.is_dir():
        raise BenchmarkError(
            f"{benchmark.name}: COCO's photographs are not at {photographs}; set eval.image_root to the folder that "
            "holds val2017 and test2017"
        )
    return [
        _DataSet(
            name=f"{benchmark.name}@{size}",
            benchmark=benchmark,
            format="vhs",
            path=sizes[size],
            media_root=str(photographs),
        )
        for size in wanted
    ]


def _ask_haystack(sample: Sample, wording: _Wording, task: str) -> Iterator[BenchmarkRequest]:
    needles = [sample.images[index] for index in sample.positive_images]
    others = [image for index, image in enumerate(sample.images) if index not in set(sample.positive_images)]
    heaps: dict[str, tuple[ImageRef, ...]] = {}
    if task == _POSITIONAL:
        for position in needle_positions(len(sample.images)):
            heaps[f"{sample.sample_id}/{position}"] = haystack_at(needles, others, position)
    else:
        seed = f"{wording.config.seed}/{sample.metadata['file']}/{sample.sample_id}"
        heaps[sample.sample_id] = shuffled_haystack(needles, others, seed)
    found = set(needles)
    for prompt_id, heap in heaps.items():
        positions = tuple(index for index, image in enumerate(heap) if image in found)
        shown = dataclasses.replace(sample, images=heap, positive_images=positions, task=task)
        parts: tuple[str | ImageRef, ...] = (*heap, haystack_text(sample.question))
        if not wording.is_official:
            parts = wording.evidence_parts(shown)
        yield BenchmarkRequest(
            prompt=user_prompt(prompt_id, parts, system=wording.config.prompt.system),
            sample=shown,
            needle_position=positions[0] if task == _POSITIONAL else -1,
        )


def _find_mig_bench(benchmark: Benchmark, config: Config) -> list[_DataSet]:
    path = _existing(
        benchmark.name, [_root(config) / folder / "MIG_data.json" for folder in ("MIG-Bench", "MIG_Bench", "")]
    )
    return [_DataSet(name=benchmark.name, benchmark=benchmark, format="mig_bench", path=path)]


def _ask_mig_bench(sample: Sample, wording: _Wording, task: str) -> Iterator[BenchmarkRequest]:
    text = grounding_text(sample.question)
    parts: tuple[str | ImageRef, ...] = (*sample.images, text)
    if not wording.is_official:
        parts = wording.evidence_parts(dataclasses.replace(sample, question=text))
    yield BenchmarkRequest(
        prompt=user_prompt(sample.sample_id, parts, system=wording.config.prompt.system), sample=sample
    )


FAMILIES: Mapping[str, _Family] = {
    "evisrag": _Family(find=_find_evisrag, ask=_ask_evisrag, response_tokens=2048, repetition_penalty=_EVISRAG_PENALTY),
    "milebench": _Family(find=_find_milebench, ask=_ask_milebench, response_tokens=512),
    "vhs": _Family(find=_find_haystacks, ask=_ask_haystack, response_tokens=128),
    "mig_bench": _Family(find=_find_mig_bench, ask=_ask_mig_bench, response_tokens=128),
}
"""The benchmark families by the first part of their tasks' names."""
