"""The reward lab: try a reward on what was sampled already, and against known tricks, without a model."""
