"""What is asked of the hub: whether something is in its cache, or could be fetched. The doctor fetches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recipes.doctor.check import Check, ok, problem, warning

_ASK_SECONDS = 5.0


def hub_check(
    title: str, setting: str, name: str, kind: Literal["model", "dataset"], revision: str | None = None
) -> tuple[Path | None, Check]:
    """Where a name of the hub lies in the cache; None if it does not.

    Args:
        title: name of the check.
        setting: the key and value that name it.
        name: the name on the hub, such as ``Qwen/Qwen2.5-VL-3B-Instruct``.
        kind: what the name stands for, such as a model or a data set.
        revision: the revision on the hub; None: the newest.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    advice = "check the path; if it is a name on the hub, check the name and the network"
    try:
        folder = snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
        return Path(folder), ok(title, f"{name}, in the hub's cache")
    except HFValidationError:
        return None, problem(title, f"{setting} is not here, and no name that the hub could have", advice)
    except (LocalEntryNotFoundError, OSError):
        pass
    if constants.HF_HUB_OFFLINE:
        return None, problem(title, f"{setting} is not here, and HF_HUB_OFFLINE forbids to fetch it", advice)
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_ASK_SECONDS)
    except Exception as error:  # the hub's network library has errors of its own, another one in each version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return None, problem(title, f"{setting} is not here, and the hub does not give it: {reason}", advice)
    option = " --repo-type dataset" if kind == "dataset" else ""
    return None, warning(
        title,
        f"{setting} is not on this machine yet; a run fetches it before it begins, and the doctor cannot look inside",
        f"hf download {name}{option}",
    )
