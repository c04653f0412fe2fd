"""Reward-Scoped GRPO for vision-language models that reason over many images from evidence."""

__version__ = "0.1.0"
