"""The model under training: loading, packed rows, the forward pass to log-probabilities."""
