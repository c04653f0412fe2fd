"""Score saved predictions without a model, and compare two runs sample by sample."""
