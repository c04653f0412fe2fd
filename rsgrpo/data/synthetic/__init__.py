"""The quickstart: a task with real handwriting, and a small Qwen2.5-VL that can learn it on a laptop."""
