"""Ask a model about pages: on the command line, and behind a server."""
