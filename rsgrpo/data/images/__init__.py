"""The one way from an image file to the pixels that a model sees."""
