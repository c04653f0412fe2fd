"""Ray, and where ranks and engines run on it."""
