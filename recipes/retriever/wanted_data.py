"""What the retriever's stage needs to be told, refused without reading anything; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from rsgrpo.config import Config, ConfigError
from rsgrpo.data.files import DataError, data_files
from rsgrpo.errors import shown

START_MODEL = "model.path is empty; name the model to start from, such as model.path=Qwen/Qwen3-VL-Embedding-2B"


def check_retriever_data(config: Config) -> None:
    """Refuse a run that names no training pairs or no start model, or names files that are not there.

    Args:
        config: the settings of the run, with ``stage=retriever``.

    Raises:
        DataError: there is no data set of a name that is given, or none is named.
        ConfigError: no start model is named.
    """
    settings = config.retriever
    if not settings.data:
        raise DataError(
            "stage=retriever needs training pairs; set retriever.data=[FILE], JSON lines with query and image, or "
            "VisRAG's parquet"
        )
    if not config.model.path:
        raise ConfigError(START_MODEL)
    for index, path in enumerate(settings.data):
        try:
            data_files(path)
        except DataError as error:
            raise DataError(f"retriever.data[{index}]: {error}") from error
    if settings.test_path and not Path(settings.test_path).is_dir():
        raise DataError(
            f"retriever.test_path={shown(settings.test_path)} is no folder; name one with corpus, queries and qrels"
        )
