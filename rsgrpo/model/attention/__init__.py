"""Attention over packed rows in which siblings share their prompt."""
