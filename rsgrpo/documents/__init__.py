"""From documents to page images: PDF, office and image files, rendered and stored once by content."""
