"""One scope in one response, for tests that look at a single one."""

from __future__ import annotations

from rewards.scopes import LocatedScope, ScopeRequest, locate_scopes
from rsgrpo.config import ScopeConfig
from rsgrpo.text.sections import ParsedResponse
from rsgrpo.types import IntArray


def locate_scope(
    scope: ScopeConfig, parsed: ParsedResponse, token_char_starts: IntArray, on_missing: str = "skip"
) -> LocatedScope:
    """Where a scope stands that has one entry, so any but ``evidence_line``."""
    request = ScopeRequest(scope=scope, on_missing=on_missing)
    ((located,),) = locate_scopes([request], parsed, token_char_starts, num_images=0)
    return located
