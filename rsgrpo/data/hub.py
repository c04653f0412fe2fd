"""Why the hub does not give something, in one phrase."""

from __future__ import annotations

from rsgrpo.errors import shown


def hub_problem(error: Exception, kind: str) -> str:
    """The cause of a failed download, and the way out.

    Args:
        error: what ``huggingface_hub`` raised.
        kind: ``data set`` or ``model``.
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
