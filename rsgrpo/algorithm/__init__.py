"""Reward-Scoped GRPO on plain numbers: advantages, token credit, selection and the loss."""
