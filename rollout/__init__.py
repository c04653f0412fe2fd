"""Sampling: what an engine is, the vLLM one, and the pool of workers."""
