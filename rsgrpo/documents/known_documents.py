"""The description of every document in a store, kept in one file so that not every part has to be opened.

``documents.json`` repeats what the footers of the parts say. It holds for a part as long as that has the same size and
time, and whatever is missing of it, or wrong, is read from the parts again.
"""

from __future__ import annotations

from pathlib import Path

from rsgrpo.documents.parts import StoredDocument, document_of, read_description
from rsgrpo.documents.records import Remark, StoreError
from rsgrpo.documents.stored_images import PARTS
from rsgrpo.io.atomic_files import FileError, read_json_object, write_json
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain

KNOWN_FILE = "documents.json"


def known_documents(store: Path) -> tuple[dict[str, StoredDocument], list[Remark]]:
    """Read the descriptions of all documents in a store.

    Args:
        store: the folder that the store lies in.

    Returns:
        The descriptions by the documents' names, and a remark for every document whose part is damaged.
    """
    noted = _noted(store)
    known: dict[str, StoredDocument] = {}
    damaged = []
    for part in (store / PARTS).glob("*.parquet"):
        description = _still_true(noted.get(part.name), part)
        if description is None:
            try:
                description = read_description(part)
            except StoreError as error:
                damaged.append(Remark(name=document_of(part), reason=str(error)))
                continue
        known[description.document] = description
    return known, damaged


def note_documents(store: Path) -> None:
    """Write the descriptions of all documents into ``documents.json``, where the next run reads them.

    Args:
        store: the folder that the store lies in; no other process may write to it meanwhile.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    noted = _noted(store)
    found: dict[str, object] = {}
    for part in (store / PARTS).glob("*.parquet"):
        description = _still_true(noted.get(part.name), part)
        try:
            found[part.name] = [*_stamp(part), to_plain(description or read_description(part))]
        except StoreError:
            continue
    write_json(store / KNOWN_FILE, found)


def _noted(store: Path) -> dict[str, object]:
    try:
        return read_json_object(store / KNOWN_FILE)
    except FileError:
        return {}


def _still_true(noted: object, part: Path) -> StoredDocument | None:
    if not isinstance(noted, list) or len(noted) != 3 or noted[:2] != _stamp(part):
        return None
    try:
        return from_plain(StoredDocument, noted[2])
    except RecordError:
        return None


def _stamp(part: Path) -> list[int]:
    status = part.stat()
    return [status.st_size, status.st_mtime_ns]
