"""The server of ``rsgrpo serve``: a page in the browser, an API as OpenAI has it, and tools for agents (MCP)."""
