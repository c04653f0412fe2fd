"""What the retriever's stage needs to be told: slips are refused before anything is read, without torch."""

from __future__ import annotations

from pathlib import Path

from rsgrpo.config import Config, ConfigError
from rsgrpo.data.file_bytes import naming
from rsgrpo.data.files import DataError
from rsgrpo.errors import shown
from rsgrpo.retrieval.training.training_pairs import pair_files

START_MODEL = "model.path is empty; name the model to start from, such as model.path=Qwen/Qwen3-VL-Embedding-2B"


def check_retriever_data(config: Config) -> None:
    """Refuse a run that names no training pairs or no start model, or names files that are not there.

    Args:
        config: the settings of the run, with ``stage=retriever``.

    Raises:
        DataError: there is no data set of a name that is given, or only a test set is named.
        ConfigError: data are named, and no start model.
    """
    settings = config.retriever
    if not settings.data:
        if settings.test_path:
            raise DataError(
                "retriever.test_path is set and retriever.data is empty, so that the run would make its own pages; set "
                "retriever.data=[FILE], JSON lines with query and image or VisRAG's parquet, or leave both out"
            )
        return
    if not config.model.path:
        raise ConfigError(START_MODEL)
    for index, path in enumerate(settings.data):
        with naming(f"retriever.data[{index}]"):
            pair_files(path)
    if settings.test_path and not Path(settings.test_path).is_dir():
        raise DataError(
            f"retriever.test_path={shown(settings.test_path)} is no folder; name one with corpus, queries and qrels"
        )
