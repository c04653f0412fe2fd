"""Requests that are refused: each with an HTTP status and one sentence, in which no path of the server stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from starlette.responses import JSONResponse

from rsgrpo.errors import RsgrpoError, shown

# Not the addresses of this server itself, of which visitors are told.
_ABSOLUTE_PATH = re.compile(r"(?<![\w/.~])~?(?!/(?:api|v1)\b)(?:/[^\s/'\"`,;:()<>]+)+/?")
_MAX_MESSAGE = 600
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class RefusedError(RsgrpoError):
    """A request that is refused.

    Args:
        message: a sentence that says what is wrong and what to do.
        status: the HTTP status of the reply.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class PathHider:
    """Takes the server's paths out of messages.

    Args:
        folders: the folders that messages may name; their own names stay, what they lie in goes.

    Example:
        >>> PathHider([Path("/srv/my data/manuals.index")])("no page store in /srv/my data/manuals.index/pages")
        'no page store in manuals.index/pages'
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        parents = {str(folder.absolute().parent) for folder in folders} - {"/"}
        self._parents = sorted(parents, key=len, reverse=True)

    def __call__(self, message: str) -> str:
        """Take paths out of a message.

        Args:
            message: the message.

        Returns:
            The message with the last part of each path only.
        """
        message = message.replace("file://", "")
        for parent in self._parents:
            message = message.replace(f"{parent}/", "")
        return _ABSOLUTE_PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], message)


def error_body(message: str, status: int) -> dict[str, object]:
    """Make the JSON of a refusal, in the form of OpenAI's API.

    Args:
        message: the sentence.
        status: the HTTP status.
    """
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": shown(message, _MAX_MESSAGE), "type": kind, "param": None, "code": status}}


def error_response(message: str, status: int) -> JSONResponse:
    """Make the reply to a request that is refused.

    Args:
        message: the sentence.
        status: the HTTP status.
    """
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = "5"
    return JSONResponse(error_body(message, status), status_code=status, headers=headers)
