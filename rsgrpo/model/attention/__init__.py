"""Attention over packed sequences in which siblings share their prompt."""
