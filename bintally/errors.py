"""The errors that are a user's to mend; anything else is our own bug and keeps its traceback."""

from __future__ import annotations

__all__ = ["CommandError", "UsageError", "WorkError"]


class CommandError(Exception):
    """An end of a command that one line explains: what, where, and what to do."""

    exit_code = 1


class UsageError(CommandError):
    """The command cannot be carried out as it was given."""

    exit_code = 2


class WorkError(CommandError):
    """The work found damage, or could not be finished."""

    exit_code = 1
