"""Evaluate a model: the data's own questions, benchmarks and lmms-eval."""
