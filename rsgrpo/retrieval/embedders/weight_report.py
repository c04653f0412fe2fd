"""Find the weights that a model's folder lacks: transformers draws them at random, and only logs it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_LOGGER = "transformers.modeling_utils"
_MARK = "LOAD REPORT"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MISSING_ROW = re.compile(r"^\s*(\S[^|\n]*?)\s*\|\s*MISSING\b", re.MULTILINE)


@contextmanager
def watched_loading() -> Iterator[list[str]]:
    """Read the report on weights while the block loads a model; neither the report nor the progress is printed.

    Yields:
        The names of the weights that the folder does not hold, as transformers groups them; the list is filled while
        the model is loaded.

    Example:
        ``with watched_loading() as missing: model = AutoModel.from_pretrained(folder)``
    """
    missing: list[str] = []

    def read_report(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _MARK not in message:
            return True
        missing.extend(_MISSING_ROW.findall(_COLOUR.sub("", message)))
        return False

    logger = logging.getLogger(_LOGGER)
    level, shows_progress = logger.level, transformers_logging.is_progress_bar_enabled()
    # hydra, as whoever configures logging anew, disables the loggers that there are: the report would not come.
    is_disabled, disabled_level = logger.disabled, logging.root.manager.disable
    logger.disabled = False
    logging.disable(logging.NOTSET)
    logger.addFilter(read_report)
    if logger.getEffectiveLevel() > logging.WARNING:  # TRANSFORMERS_VERBOSITY=error would keep the report from us
        logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield missing
    finally:
        logger.removeFilter(read_report)
        logger.setLevel(level)
        logger.disabled = is_disabled
        logging.disable(disabled_level)
        if shows_progress:
            transformers_logging.enable_progress_bar()
