"""Errors a user can act on: one line that names what is wrong and what to do."""

from __future__ import annotations


class AwpError(Exception):
    """Report a failure in one line; the command line prints it and exits with 1."""


class DamagedCheckpoint(AwpError):
    """Report that the files of an unfinished run are not what was written: it cannot go on."""


class UsageError(AwpError):
    """Report options that cannot be served together; the command line exits with 2."""
