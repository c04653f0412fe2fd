"""What a reader found wrong or odd: by reason, counted, the first few shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_SHOWN = 5  # enough to see a pattern; the count says the rest

Remark = Callable[[str, str], None]
"""Called with reason and detail for an oddity of a record that is kept nevertheless."""


class BadRecordError(Exception):
    """One record cannot be used; caught where records are counted.

    Args:
        reason: a few words that records with the same defect share, such as ``markers``.
        detail: what is wrong with this one: got and expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """All records of one kind of defect.

    Attributes:
        reason: the kind.
        count: how many.
        examples: place and detail of the first few.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people: count and reason, then the examples."""
        more = self.count - len(self.examples)
        shown = [*self.examples, *([f"… and {more} more"] if more else [])]
        return [f"{self.count} × {self.reason}", *(f"  {example}" for example in shown)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadReport:
    """What was read, left out and kept with a remark.

    Attributes:
        num_records: records looked at.
        num_samples: of them, those that gave a sample.
        skipped: why records were left out, most frequent first.
        remarks: oddities of records that were kept, most frequent first.
    """

    num_records: int
    num_samples: int
    skipped: tuple[Finding, ...]
    remarks: tuple[Finding, ...]

    @property
    def num_skipped(self) -> int:
        """Records, or rests of files, that were left out."""
        return sum(finding.count for finding in self.skipped)

    def counts(self) -> dict[str, int]:
        """Number of skipped records by reason."""
        return {finding.reason: finding.count for finding in self.skipped}

    def text(self) -> str:
        """A few lines for people: counts, then examples."""
        lines = [f"{self.num_samples} of {self.num_records} records can be used"]
        for title, findings in (("left out", self.skipped), ("kept, but", self.remarks)):
            for finding in findings:
                first, *examples = finding.lines()
                lines += [f"  {title} {first}", *(f"  {example}" for example in examples)]
        return "\n".join(lines)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts findings as they come; a checkpoint keeps it.

    Attributes:
        found: by reason, in the order of coming: how many, and the first few.
    """

    found: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one."""
        count, examples = self.found.get(reason, (0, ()))
        self.found[reason] = (count + 1, examples if count >= _SHOWN else (*examples, example))

    def findings(self) -> tuple[Finding, ...]:
        """All so far, most frequent first."""
        ordered = sorted(self.found.items(), key=lambda item: -item[1][0])
        return tuple(Finding(reason=reason, count=count, examples=examples) for reason, (count, examples) in ordered)
