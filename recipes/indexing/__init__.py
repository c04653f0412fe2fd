"""The commands ``rsgrpo index`` and ``rsgrpo search``: bring documents into an index, and search it."""
