"""Files that are written whole or not at all, JSON lines, records as files, and timers."""
