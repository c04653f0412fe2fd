"""Training pairs in one file, so that every rank trains on what one process has read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsgrpo.data.file_bytes import DataError
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import replacing
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair
from rsgrpo.types import ImageRef

_REF_FIELDS = ("path", "file", "parquet_file", "parquet_row", "parquet_column", "parquet_index")
_PAIR_FIELDS = ("query", "source", "weight", "place")


def write_pairs(file: Path, pairs: Sequence[TrainingPair]) -> None:
    """Write pairs as a parquet table; it appears complete or not at all.

    Args:
        file: the file to write; its folder is made if need be.
        pairs: the pairs; images are written as references.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            **{name: getattr(pair, name) for name in _PAIR_FIELDS},
            "page": _plain_page(pair.page),
            "negatives": [_plain_page(page) for page in pair.negatives],
        }
        for pair in pairs
    ]
    page = pyarrow.struct(
        [
            *((name, pyarrow.int64() if name.endswith(("row", "index")) else pyarrow.string()) for name in _REF_FIELDS),
            ("is_image", pyarrow.bool_()),
            ("text", pyarrow.string()),
            ("digest", pyarrow.string()),
        ]
    )
    schema = pyarrow.schema(
        [
            *((name, pyarrow.float64() if name == "weight" else pyarrow.string()) for name in _PAIR_FIELDS),
            ("page", page),
            ("negatives", pyarrow.list_(page)),
        ]
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as target:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), target)


def read_pairs(file: Path) -> tuple[TrainingPair, ...]:
    """Read the pairs that :func:`write_pairs` wrote.

    Args:
        file: the file to read.

    Returns:
        The pairs, as they were written.

    Raises:
        DataError: the file is gone or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
        return tuple(
            TrainingPair(
                **{name: row[name] for name in _PAIR_FIELDS},
                page=_page(row["page"]),
                negatives=tuple(_page(page) for page in row["negatives"]),
            )
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{shown(file)}, the training pairs of the run, cannot be read ({shown(error, 120)}); remove it, and "
            "resume=auto reads the data anew"
        ) from error


def _plain_page(page: TrainingPage) -> dict[str, Any]:
    ref = page.image or ImageRef(path="")
    return {
        **{name: getattr(ref, name) for name in _REF_FIELDS},
        "is_image": page.image is not None,
        "text": page.text,
        "digest": page.digest,
    }


def _page(row: dict[str, Any]) -> TrainingPage:
    image = ImageRef(**{name: row[name] for name in _REF_FIELDS}) if row["is_image"] else None
    return TrainingPage(image=image, text=row["text"], digest=row["digest"])
