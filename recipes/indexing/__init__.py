"""What ``rsgrpo index`` does: documents to pages, pages to an index."""
