"""Judge answers: metrics, the field's benchmarks with their prompts, and rescoring of saved predictions."""
