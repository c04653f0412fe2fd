"""From a sample to the text that the model reads."""
