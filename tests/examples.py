"""How many examples a property test draws: its own number, and ten times as many under ``HYPOTHESIS_PROFILE=deep``."""

from __future__ import annotations

from hypothesis import settings

EXAMPLES = 100
"""Of a test that does not say."""


def examples(count: int) -> settings:
    """Settings of a property test that draws ``count`` examples by default."""
    return settings(max_examples=count * settings().max_examples // EXAMPLES)
