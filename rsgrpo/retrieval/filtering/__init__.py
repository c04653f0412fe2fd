"""Decide which of the pages that were found are shown."""
