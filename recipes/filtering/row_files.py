"""Filtered rows of an EVisRAG file: the images that were kept, with their numbers; everything else as it stood."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.filtering.questions import FilteredQuestions
from rsgrpo.config import DataConfig
from rsgrpo.data.files import DataError, check_output, data_files
from rsgrpo.data.kept_pages import with_shown_gold
from rsgrpo.data.readers.fields import media_list
from rsgrpo.data.readers.records import raw_records
from rsgrpo.errors import shown
from rsgrpo.io.jsonl import write_rows
from rsgrpo.types import Sample


def check_filtered_place(file: Path, path: str, data: DataConfig) -> None:
    """Refuse a place where filtered rows cannot go, before hours of filtering.

    Args:
        file: the file to write.
        path: the data set that will be filtered.
        data: how it is read.

    Raises:
        DataError: the file would be written over the data set, or its images would not be found from there.
    """
    files = data_files(path)
    check_output(file, files, "--out")
    if file.absolute().parent != files[0].absolute().parent and not data.image_root:
        raise DataError(
            f"{shown(file)} lies in another folder than {shown(files[0])}, whose images are looked for beside it; "
            "write into that folder, or give --image-root"
        )


def write_filtered(file: Path, path: str, data: DataConfig, found: FilteredQuestions) -> None:
    """Write the rows of a data set with the pages that a filter kept.

    A response to imitate (a tagged answer in the answer's column) keeps the evidence lines of shown pages alone; a gold
    response beside plain answers stays whole, so that evidence on a page that was left out counts as missed.

    Args:
        file: the file to write, in the folder of the data set where its images are named by relative paths.
        path: the data set that was filtered.
        data: the names of its columns.
        found: what the filter did with its questions.

    Raises:
        DataError: the data set has changed since it was filtered.
    """
    files = data_files(path)
    samples = {sample.sample_id: sample for sample in found.samples}
    kept = {sample.sample_id: item.kept for sample, item in zip(found.asked, found.filtered, strict=True)}
    told = {sample.sample_id: row["probabilities"] for sample, row in zip(found.asked, found.rows(), strict=True)}
    written = []
    for source in files:
        for index, raw in enumerate(raw_records(source, prefix="item")):
            record = raw.value
            default = f"{source.stem}-{raw.line or index}"
            sample_id = str(record.get(data.id_column, default)) if isinstance(record, dict) else default
            if isinstance(record, dict) and sample_id in samples:
                row = _row(record, samples[sample_id], kept[sample_id], data)
                written.append({**row, "filter_probabilities": told[sample_id]})
    if len(written) != len(found.samples):
        raise DataError(
            f"{shown(path)} changed while it was filtered: {len(written)} of {len(found.samples)} questions are still "
            "there; filter it again"
        )
    write_rows(file, [json.loads(json.dumps(row, default=str)) for row in written])


def _row(record: Mapping[str, Any], sample: Sample, kept: Sequence[int], data: DataConfig) -> dict[str, Any]:
    row = dict(record)
    images = media_list(row[data.image_column])
    row[data.image_column] = [images[index] for index in kept]
    row["page_numbers"] = list(sample.page_numbers)
    if row.get(data.prompt_column):
        row[data.prompt_column] = sample.prompt
    if sample.gold_response and row.get(data.answer_column) == sample.gold_response:
        row[data.answer_column] = with_shown_gold(sample).gold_response
    return row
