"""Errors that are the user's to mend: the command line prints their one sentence, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The work failed for a reason the user can act on; the message is one clear sentence (exit status 1)."""

    exit_status = 1


class DataError(UserError):
    """Input data that cannot be used: a missing column, a damaged file, a download that failed."""


class UsageError(UserError):
    """The call itself was wrong, such as a flag value that can never work (exit status 2)."""

    exit_status = 2
