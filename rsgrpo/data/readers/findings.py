"""What a reader found wrong or odd: by reason, counted, the first few shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rsgrpo.errors import shown

_EXAMPLE_CHARACTERS = 300
_SHORT_CHARACTERS = 160
_MESSAGE_CHARACTERS = 490  # of a whole message, its line breaks included
_SHOWN = 5  # enough to see a pattern; the count says the rest

Remark = Callable[[str, str], None]
"""A function that is called with reason and detail for an oddity of a record that is kept nevertheless."""


TOO_DEEP = "one of its values is nested too deeply to be written as JSON; flatten it, or leave it out"
"""What a message says about a record that Python's ``json`` reads, but cannot write."""


class BadRecordError(Exception):
    """One record cannot be used; caught where records are counted.

    Args:
        reason: a few words that records with the same defect share, such as ``markers``.
        detail: what is wrong with this one: got and expected.
        num_records: how many records this stands for; an estimate where a stretch of a file cannot be read.
        is_final: whether nothing behind it can be read.
    """

    def __init__(self, reason: str, detail: str, *, num_records: int = 1, is_final: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.num_records = num_records
        self.is_final = is_final


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """All records of one kind of defect.

    Attributes:
        reason: the kind of defect, in words.
        count: how many records have it.
        examples: place and detail of the first few of them.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    def lines(self) -> list[str]:
        """Lines for people: count and reason, then the examples."""
        more = self.count - len(self.examples) if len(self.examples) == _SHOWN else 0
        shown = [*self.examples, *([f"… and {more} more"] if more else [])]
        return [f"{self.count} × {self.reason}", *(f"  {example}" for example in shown)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadReport:
    """What was read, left out and kept with a remark.

    Attributes:
        num_records: how many records were looked at.
        num_samples: how many of them gave a sample.
        skipped: the reasons why records were left out, most frequent first.
        remarks: the oddities of records that were kept, most frequent first.
    """

    num_records: int
    num_samples: int
    skipped: tuple[Finding, ...]
    remarks: tuple[Finding, ...]

    @property
    def num_skipped(self) -> int:
        """How many records were left out; those in a part of a file that cannot be read are an estimate."""
        return sum(finding.count for finding in self.skipped)

    def counts(self) -> dict[str, int]:
        """How many records were left out, by reason."""
        return {finding.reason: finding.count for finding in self.skipped}

    def text(self) -> str:
        """A few lines for people: counts, then examples."""
        lines = [f"{self.num_samples} of {self.num_records} records can be used"]
        for title, findings in (("left out", self.skipped), ("kept, but", self.remarks)):
            for finding in findings:
                first, *examples = finding.lines()
                lines += [f"  {title} {first}", *(f"  {example}" for example in examples)]
        return "\n".join(lines)


def short_report(head: str, findings: Sequence[Finding], advice: str) -> str:
    """A message about findings that a terminal shows whole: as many examples as fit into 500 characters.

    Args:
        head: what it is about, one line; how many there are of each kind goes behind it.
        findings: most frequent first; an example of each is shown before a second one of any.
        advice: the way out, the last line.
    """
    counts = ", ".join(f"{finding.count:,} × {finding.reason}" for finding in findings)
    lines = [shown(head, _MESSAGE_CHARACTERS // 2) + (f" ({shown(counts, _SHORT_CHARACTERS)})" if counts else "")]
    left = _MESSAGE_CHARACTERS - len(lines[0]) - len(advice) - len("\n  … and 1,000,000,000 more\n")
    in_turns = zip_longest(*(finding.examples for finding in findings))
    examples = [example for turn in in_turns for example in turn if example is not None]
    num_shown = 0
    for number, example in enumerate(examples):
        line = f"  {shown(example, max(_SHORT_CHARACTERS, left - 3) if number == 0 else _SHORT_CHARACTERS)}"
        if left < len(line) + 1 or num_shown == _SHOWN:
            break
        lines.append(line)
        left -= len(line) + 1
        num_shown += 1
    more = sum(finding.count for finding in findings) - num_shown
    if more and (num_shown < len(examples) or num_shown == _SHOWN):
        lines.append(f"  … and {more:,} more")
    return "\n".join([*lines, advice])


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts findings as they come; a checkpoint keeps it.

    Attributes:
        found: by reason, in the order of coming: how many records, and the first few of them.
    """

    found: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, reason: str, example: str, num_records: int = 1) -> None:
        """Count one finding, which may stand for several records."""
        count, examples = self.found.get(reason, (0, ()))
        example = shown(example, _EXAMPLE_CHARACTERS)
        self.found[reason] = (count + num_records, examples if len(examples) >= _SHOWN else (*examples, example))

    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, most frequent first."""
        ordered = sorted(self.found.items(), key=lambda item: -item[1][0])
        return tuple(Finding(reason=reason, count=count, examples=examples) for reason, (count, examples) in ordered)
