"""What happens before training: checks, data, model and workers."""
