"""Errors that a user can act on; ``train.py`` prints them without a traceback."""


class RsgrpoError(Exception):
    """Something outside the code is wrong; the message names it and the way out."""
