"""Answering a user's question from pages: what was shown, what streams back, and what came of it."""
