"""Keeps media that do not lie in a file of their own, such as base64 text and video frames, under their content's hash.

Every reader of images then finds them as ordinary files, also in another process or after a resume. Files
are written whole or not at all, and one content has one name, so that any number of processes may write at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import replacing


class MediaStoreError(RsgrpoError):
    """The folder cannot be written; the message names it and the setting."""


def default_media_folder() -> Path:
    """The folder of media where none is set: ``$XDG_CACHE_HOME/rsgrpo/media``, or ``~/.cache/rsgrpo/media``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111, PTH117
    return cache / "rsgrpo" / "media"


class MediaStore:
    """A folder of media by content; nothing is written before something has to be kept.

    Args:
        folder: the folder of the store; empty: :func:`default_media_folder`. Runs on several nodes need one that all
            nodes see.
    """

    def __init__(self, folder: str = "") -> None:
        place = Path(os.path.expanduser(folder)) if folder else default_media_folder()  # noqa: PTH111 - may have no home
        self.folder = place.absolute()

    def keep(self, data: bytes, suffix: str) -> str:
        """Keep some content.

        Args:
            data: an image or video file.
            suffix: the suffix of the file's name, such as ``.png``; may be empty.

        Returns:
            The absolute path of the file that holds the content.

        Raises:
            MediaStoreError: the folder cannot be written.
        """
        name = hashlib.sha256(data).hexdigest()
        file = self.folder / name[:2] / f"{name}{suffix}"
        try:
            is_there = file.stat().st_size == len(data)
        except OSError:
            is_there = False
        if not is_there:
            self._write(file, data)
        return str(file)

    def keep_note(self, key: str, content: object) -> None:
        """Remember something small, such as which frames a video gave.

        Args:
            key: the text that names the note.
            content: the content of the note, which JSON can hold.

        Raises:
            MediaStoreError: the folder cannot be written.
        """
        self._write(self._note_file(key), json.dumps({"key": key, "content": content}).encode())

    def note(self, key: str) -> Any:
        """What was remembered under a key; None if nothing was, or if it cannot be read."""
        try:
            found = json.loads(self._note_file(key).read_bytes())
        except (OSError, ValueError):
            return None
        return found.get("content") if isinstance(found, dict) and found.get("key") == key else None

    def _note_file(self, key: str) -> Path:
        return self.folder / "notes" / f"{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}.json"

    def _write(self, file: Path, data: bytes) -> None:
        try:
            with replacing(file, is_cache=True) as kept:
                kept.write(data)
        except OSError as error:
            raise MediaStoreError(
                f"media of the data set cannot be kept in {shown(self.folder)}: {error.strerror or error}; set "
                "data.media_cache to a folder that can be written and has space"
            ) from error
