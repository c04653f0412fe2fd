"""What the command lines of ``rsgrpo index`` and ``rsgrpo search`` have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from recipes.indexing.settings import GivenSettings, split_settings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.failures.command import CommandParser

if TYPE_CHECKING:  # it takes long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder

MakeEmbedder = Callable[[EmbedderConfig], "AnyEmbedder"]
"""Makes an embedder from its settings; tests make one that needs no model."""


def explain_settings(
    parser: CommandParser, taken: str = "embedder.NAME=VALUE, index.NAME=VALUE and documents.NAME=VALUE"
) -> None:
    """Add a paragraph on settings to a command's help.

    Args:
        parser: the command's parser.
        taken: the settings that the command takes, as its help calls them.
    """
    parser.add_argument_group("settings", f"{taken}; docs/settings.md lists them, such as index.num_probes=8")


def read_call(parser: CommandParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, GivenSettings]:
    """Read a command line.

    Args:
        parser: the command's parser, which knows everything but settings.
        arguments: the arguments behind the command's name; None: those of this process.

    Returns:
        The options, and the settings.

    Raises:
        ConfigError: there is no such setting.
    """
    rest, given = split_settings(sys.argv[1:] if arguments is None else arguments)
    return parser.parse_intermixed_args(rest), given
