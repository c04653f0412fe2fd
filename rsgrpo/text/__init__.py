"""Text of responses: sections, words, tokens and written boxes."""
