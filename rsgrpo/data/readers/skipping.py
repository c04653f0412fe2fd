"""How much of a data set may be left out without stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.readers.findings import Finding, short_report
from rsgrpo.errors import shown


def max_skipped(num_records: int, max_skipped_frac: float) -> int:
    """How many records may be left out: a share of them, rounded down, but one at least.

    Example:
        ``max_skipped(1000, 0.01) == 10`` and ``max_skipped(3, 0.01) == 1``
    """
    return max(1, math.floor(num_records * max_skipped_frac + 1e-9))  # 0.07 * 100 is a hair above 7, others below


def check_skipped(name: str, skipped: Sequence[Finding], num_records: int, max_skipped_frac: float) -> None:
    """Stop where too much was left out.

    Args:
        name: the name of the data set.
        skipped: what was left out, one finding for each reason.
        num_records: the number of all records, also of those that were left out.
        max_skipped_frac: the largest share that may be left out, 0 to 1.

    Raises:
        DataError: more records were left out than :func:`max_skipped` allows.
    """
    num_skipped = sum(finding.count for finding in skipped)
    allowed = max_skipped(num_records, max_skipped_frac)
    if num_skipped > allowed:
        raise DataError(
            short_report(
                f"{shown(name, 150)}: {num_skipped:,} of {num_records:,} records would be left out, more than the "
                f"{allowed:,} that max_skipped_frac={max_skipped_frac:g} allows",
                skipped,
                "repair them, or raise data.max_skipped_frac",
            )
        )
