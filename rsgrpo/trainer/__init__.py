"""The policy: ranks that hold the weights, take optimizer steps and write checkpoints."""
