"""Indexes of pages by their vectors: in a folder, or on a Qdrant server."""
