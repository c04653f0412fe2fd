"""The model under training: loading, packed sequences, the forward pass to log-probabilities."""
