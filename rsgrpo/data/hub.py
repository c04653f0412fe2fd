"""Fetch from the hub, and say in one phrase why it does not give something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rsgrpo.errors import RsgrpoError, shown

HubKind = Literal["data set", "model"]
"""What a name on the hub stands for."""


class HubError(RsgrpoError):
    """The hub does not give something; the message is a phrase that says why, for a sentence that names the setting."""


def fetch_from_hub(name: str, kind: HubKind, *, revision: str = "", patterns: Sequence[str] = ()) -> Path:
    """Download a repository of the hub, or take it from the hub's cache.

    Args:
        name: the repository's name, such as ``Qwen/Qwen2.5-VL-3B-Instruct``.
        kind: what the name stands for.
        revision: the revision on the hub; empty: the newest.
        patterns: patterns of the files to fetch, such as ``*.json``; empty: all files.

    Returns:
        The folder in the hub's cache.

    Raises:
        HubError: the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                repo_type="dataset" if kind == "data set" else "model",
                revision=revision or None,
                allow_patterns=list(patterns) or None,
            )
        )
    except Exception as error:  # whatever its network library raises, the cause is the network, the name or the account
        raise HubError(hub_problem(error, kind)) from error


def hub_problem(error: Exception, kind: HubKind) -> str:
    """The cause of a failed download, and the way out.

    Args:
        error: what ``huggingface_hub`` raised.
        kind: what was asked for.
    """
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.GatedRepoError):
        return f"the hub's {kind} of this name is gated; accept its terms there and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {kind} of this name, or it is private (then log in: hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {kind} of this name has no such revision"
    if isinstance(error, errors.HFValidationError):
        return f"it is no name that the hub could have for a {kind}"
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        return f"as a {kind} of the hub it is not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch it before"
    if isinstance(error, errors.HfHubHTTPError) and status:
        return f"the hub refused it with status {status}; try again later, or log in (hf auth login)"
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_network(error):
        return f"as a {kind} of the hub it cannot be fetched: the hub cannot be reached; check the network or a proxy"
    return f"as a {kind} of the hub it cannot be fetched: {type(error).__name__}: {shown(error, 160)}"


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        name = type(error).__name__
        if isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name or "Timeout" in name:
            return True
        error = error.__cause__ or error.__context__
    return False
