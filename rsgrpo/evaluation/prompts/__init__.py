"""How each benchmark words its questions: the originals' prompt rules, and the chat turns they become."""
