"""The algorithms and the main job: one file for each, read from the top."""
