"""``rsgrpo plan``: read, compute, print; refuse what cannot fit, and say what would."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from recipes.plan.estimate import Facts, estimate
from recipes.plan.gpus import GpuKind, PlanError, gpu_kind, read_gpus
from recipes.plan.memory import weight_bytes
from recipes.plan.output import document, plan_lines, refusal, write_plan
from recipes.plan.proposals import proposals
from recipes.plan.reading import ImageCounter, Reader, config_folder
from rsgrpo.config import Config
from rsgrpo.model.folder import check_limits, load_processor

_DEFAULT_GPU = "H100"


def show_plan(config: Config) -> None:
    """Print the plan of a run; nothing is started, and nothing is written but ``plan_for.file``.

    Args:
        config: the run's settings.

    Raises:
        RsgrpoError: settings, data or model cannot be used, so that the run could not start.
        PlanError: the run does not fit; the message says what would.
    """
    if config.cluster.device == "cpu":
        raise PlanError("plan=true computes for GPUs, and cluster.device=cpu uses none; leave it at auto")
    if config.stage == "retriever":
        raise PlanError(
            "plan=true computes for training and answering with a policy, not for stage=retriever; a few steps "
            "(retriever.max_steps=5) tell what a retriever's training takes"
        )
    if config.eval.tasks:
        raise PlanError(
            "plan=true computes for training and for the test questions, not for eval.tasks; leave them out"
        )
    assumed, kinds = read_gpus()
    gpu, note = _chosen_gpu(config.plan_for.gpu, kinds)
    with tempfile.TemporaryDirectory(prefix="plan-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        folder = config_folder(config, scratch)
        check_limits(folder, config)
        processor = load_processor(folder, f"model.path={config.model.path!r}")
        counter = ImageCounter(config, processor)
        stages = Reader(config, processor, scratch, counter.count).stages()
        facts = Facts(folder=folder, stages=stages, tokens_of_image=counter.count, gpu=gpu, assumed=assumed)
        found = estimate(config, facts)
        print("\n".join(plan_lines(config, facts, found, [note] if note else [])), flush=True)
        proposed = proposals(config, facts) if found.problems else ()
        if config.plan_for.file:
            write_plan(Path(config.plan_for.file), document(config, facts, found, proposed))
        if weight_bytes(config) == 4 and found.rank is not None:
            print("  float32 is computed without TF32; model.dtype=bfloat16 is several times faster")
    if found.problems:
        raise PlanError(refusal(found, proposed))


def _chosen_gpu(name: str, kinds: dict[str, GpuKind]) -> tuple[GpuKind, str]:
    """The kind of GPU that is asked for, that of this machine, or a default; and a note where it was not asked for."""
    if name:
        return gpu_kind(name, kinds), ""
    here = _gpu_here()
    for kind in kinds.values():
        words = kind.name.replace("-", " ").split()
        if here and words[0] in here and all(word in here for word in words[1:]):
            return kind, f"for this machine's GPU, {here}; plan_for.gpu names another"
    return kinds[_DEFAULT_GPU], f"no GPU of a known kind is here; plan_for.gpu names one of {', '.join(kinds)}"


def _gpu_here() -> str:
    """Name of the first GPU, as the driver says it; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(answer.stdout.splitlines()), "").replace("80GB", "80").replace("40GB", "40").replace("-", " ")
