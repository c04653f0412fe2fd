"""The numbers of an :class:`rsgrpo.documents.records.IngestReport`, while they grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.documents.records import IngestReport, Remark


@dataclass(kw_only=True, slots=True)
class Counts:
    """The fields of an ingest report while they still change; what is a tuple in the report is a list here."""

    added: int = 0
    unchanged: int = 0
    replaced: int = 0
    removed: int = 0
    refused: list[Remark] = field(default_factory=list)
    left_out_pages: list[Remark] = field(default_factory=list)
    duplicate_documents: list[Remark] = field(default_factory=list)
    pages: int = 0
    duplicate_pages: int = 0
    blank_pages: list[str] = field(default_factory=list)
    ocr_pages: int = 0
    unread_pages: list[Remark] = field(default_factory=list)
    damaged: list[Remark] = field(default_factory=list)

    def report(self, seconds: float) -> IngestReport:
        """Return the numbers as they are now, in a report that no longer changes.

        Args:
            seconds: the time that adding or removing the documents took, in seconds.
        """
        return IngestReport(
            added=self.added,
            unchanged=self.unchanged,
            replaced=self.replaced,
            removed=self.removed,
            refused=tuple(self.refused),
            left_out_pages=tuple(self.left_out_pages),
            duplicate_documents=tuple(self.duplicate_documents),
            pages=self.pages,
            duplicate_pages=self.duplicate_pages,
            blank_pages=tuple(self.blank_pages),
            ocr_pages=self.ocr_pages,
            unread_pages=tuple(self.unread_pages),
            damaged=tuple(self.damaged),
            seconds=seconds,
        )
