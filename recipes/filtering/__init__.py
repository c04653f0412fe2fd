"""The query-aware filter: who judges pages, and the command and the evaluation that use it."""
