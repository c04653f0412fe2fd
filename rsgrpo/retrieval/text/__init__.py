"""Search the text of pages, and text and vectors together."""
