"""The one place where causes become sentences, from hydra's to Ray's, and where commands end.

A command never shows a traceback for what a user can act on. What nobody foresaw is our mistake: its traceback goes
into a file, and the sentence names that file.
"""

from rsgrpo.failures.command import CommandParser, run_command, run_program
from rsgrpo.failures.sentences import MAX_SENTENCE, Failure, explain, reason

__all__ = ["MAX_SENTENCE", "CommandParser", "Failure", "explain", "reason", "run_command", "run_program"]
