"""Data sets and their images: whether they are there, how many items can be used, what is wrong with the others."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.doctor.check import Check, Subject, ok, problem, refused, warning
from recipes.doctor.hub import hub_check
from recipes.evaluation.answer_sets import read_answer_set
from recipes.retriever.wanted_data import check_retriever_data
from recipes.setup.wanted_data import WANTED, builds_quickstart_data, default_sources, sample_check, uses_mixture
from rsgrpo.config import Config, QuickstartConfig, SourceConfig
from rsgrpo.config.eval import is_pipeline_task
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.images.loading import MAX_ASPECT_RATIO, image_facts
from rsgrpo.data.images.sources import ImageError
from rsgrpo.errors import RsgrpoError
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.visrag_gen import is_visrag_gen
from rsgrpo.evaluation.retrieval_sets import find_retrieval_tasks, split_tasks
from rsgrpo.prompts.template import PromptTemplateError, PromptWriter
from rsgrpo.retrieval.measuring.relevance_files import read_retrieval_set
from rsgrpo.retrieval.training.training_pairs import pair_files

if TYPE_CHECKING:
    from rsgrpo.types import ImageRef, Sample

_BUILT_SAMPLES = 24  # of each of the quickstart's data sets: every kind of question comes several times
_READ_SECONDS = 15.0  # for one source of a mixture; train.py reads all of it
_KEPT_SAMPLES = 512  # of such a source, for the checks behind this one
_LOOKED_AT_IMAGES = 1000
_LOOK_SECONDS = 5.0
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_UPRIGHT = 1  # EXIF's orientation

Clock = Callable[[], float]


def data_checks(subject: Subject) -> Iterator[Check]:
    """Every data set that the stage wants; what can be used is left for later checks."""
    config = subject.config
    if config is None:
        return
    if config.eval.tasks:
        yield from _task_checks(subject, config)
        return
    if config.stage == "retriever":
        yield _retriever_check(config)
        return
    if builds_quickstart_data(config):
        yield from _quickstart_checks(subject, config)
        return
    data = config.data
    paths = {"sft": data.sft_path, "rl": data.rl_path, "test": data.test_path}
    for name in WANTED[config.stage]:
        if name == "sft" and uses_mixture(config):
            yield from _mixture_checks(subject, config)
        elif _is_hub_name(paths[name]):
            found, check = hub_check(f"{name} data", f"data.{name}_path={paths[name]!r}", paths[name], "dataset")
            yield check
            if found is not None:
                yield from _set_checks(subject, config, name, str(found))
        elif paths[name]:
            yield from _set_checks(subject, config, name, paths[name])
        elif not (name == "test" and config.stage == "sft" and uses_mixture(config)):
            yield problem(
                f"data.{name}_path", f"empty, and stage={config.stage} needs it", "set it, or choose another stage"
            )


def _retriever_check(config: Config) -> Check:
    """Look for the files of training pairs and the test set of a retriever; the run itself reads every row."""
    settings = config.retriever
    try:
        check_retriever_data(config)
        test = read_retrieval_set(Path(settings.test_path)) if settings.test_path else None
        num_files = sum(len(pair_files(path)) for path in settings.data)
    except RsgrpoError as error:
        return refused("training pairs", error)
    if not num_files:
        return ok("training pairs", "built by the run, with a test set")
    tested = f"; test set: {len(test.queries)} questions, {len(test.pages)} pages" if test else "; no test set"
    return ok("training pairs", f"{num_files} files{tested}")


def _is_hub_name(path: str) -> bool:
    """Whether the path names a data set of the hub, which a run would fetch from there, however large it is."""
    return not Path(path).exists() and bool(_HUB_NAME.fullmatch(path)) and not Path(path).suffix


def _quickstart_checks(subject: Subject, config: Config) -> Iterator[Check]:
    """Check the data that the run builds: a few samples of each data set are built in the same way and read back."""
    from rsgrpo.data.synthetic.quickstart import build_quickstart_data

    few: Mapping[str, Any] = {
        name: min(getattr(config.quickstart, name), _BUILT_SAMPLES)
        for name in ("num_sft_samples", "num_rl_samples", "num_test_samples")
    }
    settings: QuickstartConfig = dataclasses.replace(config.quickstart, **few)
    built = build_quickstart_data(settings, subject.scratch / "data", config.seed)
    paths = {"sft": built.sft_path, "rl": built.rl_path, "test": built.test_path}
    for name in WANTED[config.stage]:
        for set_check in _set_checks(subject, config, name, paths[name]):
            is_good = set_check.status == "ok"
            yield (
                ok(f"{name} data", f"built by the run; of a few built for this check: {set_check.found}")
                if is_good
                else set_check
            )


def _set_checks(subject: Subject, config: Config, name: str, path: str) -> Iterator[Check]:
    """Check a data set that is held in memory, read as the run reads it."""
    title = f"{name} data"
    try:
        check = sample_check(config, name, PromptWriter(config.prompt).parts)
    except PromptTemplateError as error:
        yield refused(title, error)
        return
    read = partial(load_samples, path, is_training=name != "test", check=check)
    try:
        loaded = read(data=config.data)
    except RsgrpoError as error:
        yield refused(title, error)
        if config.data.on_bad_sample == "skip":
            return
        # What is whole still shows whether prompts and rewards work.
        try:
            loaded = read(data=dataclasses.replace(config.data, on_bad_sample="skip"))
        except RsgrpoError:
            return
        subject.samples[name] = loaded.samples
        return
    subject.samples[name] = loaded.samples
    left_out = sum(loaded.skipped.values())
    found = f"{len(loaded.samples)} samples with {sum(len(sample.images) for sample in loaded.samples)} images"
    if left_out:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in loaded.skipped.items())
        yield warning(title, f"{found}; left out {reasons}", "data.on_bad_sample=reject shows which they are")
    else:
        yield ok(title, found)


def _mixture_checks(subject: Subject, config: Config) -> Iterator[Check]:
    """Check the sources of supervised training, each once."""
    try:
        phases = [phase.mixture or default_sources(config) for phase in config.sft.phases] or [default_sources(config)]
    except DataError as error:
        yield refused("sft data", error)
        return
    sources = list(
        {(source.format, source.path, source.sampling): source for phase in phases for source in phase}.values()
    )
    kept: list[Sample] = []
    for source in sources:
        check, samples = _read_source(source, config)
        kept += samples
        yield check
    subject.samples["sft"] = tuple(kept)


def _read_source(source: SourceConfig, config: Config, clock: Clock = time.monotonic) -> tuple[Check, list[Sample]]:
    from rsgrpo.data.readers import ReaderOptions, open_reader

    title = f"sft data ({source.format})"
    options = ReaderOptions(
        media_root=source.media_root,
        check_media=config.data.check_media,
        sampling=source.sampling,
        seed=config.seed,
        on_bad_record="skip",
        box_coordinates=source.box_coordinates or config.data.box_coordinates,
        columns=config.data,
        is_training=True,
    )
    kept: list[Sample] = []
    deadline = clock() + _READ_SECONDS
    is_whole = True
    try:
        reader = open_reader(source.format, source.path, options=options)
        for sample in reader:
            if len(kept) < _KEPT_SAMPLES:
                kept.append(sample)
            if clock() > deadline:
                is_whole = False
                break
    except RsgrpoError as error:
        return refused(title, error), kept
    report = reader.report
    found = f"{source.path}: {report.num_samples} of {report.num_records} records can be used"
    if not is_whole:
        found += f" (read for {_READ_SECONDS:g} s; the run reads all)"
    findings = [*report.skipped, *report.remarks]
    if not report.num_samples:
        first = f": {findings[0].examples[0]}" if findings else ""
        return problem(title, found + first, "name the right data.format and path, or fix the records"), kept
    if not findings:
        return ok(title, found), kept
    found += (
        "; " + ", ".join(f"{finding.count} × {finding.reason}" for finding in findings) + f"; {findings[0].examples[0]}"
    )
    if not report.skipped:
        return ok(title, found), kept
    if config.data.on_bad_sample == "skip":
        return warning(title, found, "fix the records that are left out, if they are many"), kept
    return problem(title, found, "fix the records, or set data.on_bad_sample=skip"), kept


def _retrieval_checks(config: Config, names: Sequence[str]) -> Iterator[Check]:
    """Check the data sets that an embedder searches; those of the hub are fetched when the run starts."""
    for name in names:
        try:
            for task in find_retrieval_tasks(name, config.eval.data_root):
                if task.folder is None:
                    yield ok(task.name, f"mteb's {task.official_name}, at the revision that mteb pins")
                else:
                    data = read_retrieval_set(task.folder)
                    yield ok(task.name, f"{len(data.relevant)} queries, {len(data.pages)} pages")
        except RsgrpoError as error:
            yield refused(name, error)


def _answer_set_checks(config: Config, names: Sequence[str]) -> Iterator[Check]:
    """Check the data sets of tasks that are searched and answered; the search itself is left to the run."""
    for name in names:
        try:
            tasks = {"": name.partition("/")[2]}
            if is_visrag_gen(name):
                tasks = {found.sets[0]: found.name.split("/")[1] for found in find_benchmarks(name)}
            for official_name, short in tasks.items():
                source = read_answer_set(short, official_name, config)
                queries = source.data.queries
                lacking = sum(query.answer in (None, ()) for query in queries)
                found = f"{len(queries)} queries, {len(source.pages)} pages"
                if lacking:
                    yield warning(name, f"{found}; {lacking} queries have no answer", "they cannot be asked")
                else:
                    yield ok(name, found)
        except RsgrpoError as error:
            yield refused(name, error)


def _task_checks(subject: Subject, config: Config) -> Iterator[Check]:
    """Check the benchmarks, read and worded as the run does it."""
    from recipes.evaluation.benchmark_requests import load_tasks

    answered, searched = split_tasks(config.eval.tasks)
    yield from _retrieval_checks(config, searched)
    both = [name for name in answered if is_pipeline_task(name) or is_visrag_gen(name)]
    yield from _answer_set_checks(config, both)
    try:
        tasks = load_tasks(config, None, subject.scratch / "canvases", [name for name in answered if name not in both])
    except RsgrpoError as error:
        yield refused("eval.tasks", error)
        return
    for task in tasks:
        subject.samples[task.name] = tuple(request.sample for request in task.requests)
        found = f"{len(task.requests)} questions"
        if task.skipped:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in task.skipped.items())
            yield warning(task.name, f"{found}; left out {reasons}", "data.on_bad_sample=reject shows which they are")
        else:
            yield ok(task.name, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What an image's header says.

    Attributes:
        format: the format of the image file, such as ``JPEG``.
        mode: Pillow's name of the pixel mode, such as ``RGBA``; ``transparency`` is added to a mode without an alpha
            channel.
        size: width and height as a viewer shows the image, in pixels.
        orientation: the EXIF orientation, 1 to 8; 1 is upright.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int


def read_header(ref: ImageRef) -> ImageHeader:
    """Look at an image without decoding it.

    Raises:
        ImageError: the file is missing or no image.
    """
    facts = image_facts(ref, ImageRules(max_megapixels=math.inf))
    has_transparency = facts.has_transparency and not facts.mode.upper().endswith("A")
    return ImageHeader(
        format=facts.format,
        mode=f"{facts.mode} with transparency" if has_transparency else facts.mode,
        size=(facts.width, facts.height),
        orientation=facts.orientation,
    )


def image_checks(subject: Subject) -> Iterator[Check]:
    """Images by format, mode, size and orientation, from their headers."""
    refs = list({ref: None for samples in subject.samples.values() for sample in samples for ref in sample.images})
    if refs:
        yield from headers_checks(refs)


def headers_checks(refs: Sequence[ImageRef], clock: Clock = time.monotonic) -> Iterator[Check]:
    """What the headers of images say; of many images some, evenly spread.

    Args:
        refs: the images to look at.
        clock: gives the time in seconds; looking ends after a few of them.
    """
    step = max(1, len(refs) // _LOOKED_AT_IMAGES)
    deadline = clock() + _LOOK_SECONDS
    headers: list[ImageHeader] = []
    broken: list[ImageError] = []
    for ref in refs[::step]:
        try:
            headers.append(read_header(ref))
        except ImageError as error:
            broken.append(error)
        if clock() > deadline:
            break
    num_seen = len(headers) + len(broken)
    seen = f"{num_seen} of {len(refs)} looked at" if num_seen < len(refs) else f"{num_seen}"
    if broken:
        yield problem(
            "broken images", f"{len(broken)} of {num_seen}, such as: {broken[0]}", "replace them, or leave them out"
        )
    if not headers:
        return
    smallest = min((header.size for header in headers), key=lambda size: size[0] * size[1])
    largest = max((header.size for header in headers), key=lambda size: size[0] * size[1])
    yield ok(
        "images",
        f"{seen}; {_counted(header.format for header in headers)}; {_counted(header.mode for header in headers)}; "
        f"{smallest[0]}×{smallest[1]} to {largest[0]}×{largest[1]} pixels",
    )
    turned = Counter(header.orientation for header in headers if header.orientation != _UPRIGHT)
    if turned:
        kinds = ", ".join(f"{count} × {orientation}" for orientation, count in sorted(turned.items()))
        yield ok("orientation", f"{sum(turned.values())} images are stored turned (EXIF {kinds})")
    strips = [size for size in (header.size for header in headers) if max(size) > MAX_ASPECT_RATIO * min(size)]
    if strips:
        yield problem(
            "strips",
            f"{len(strips)} images are longer than {MAX_ASPECT_RATIO} to 1, such as {strips[0][0]}×{strips[0][1]}, "
            "which no model here reads",
            "cut them into pages, or set data.on_bad_sample=skip",
        )


def _counted(values: Iterator[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())
