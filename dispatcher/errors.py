"""The one error tree: every error that ends a command, with its exit status.

What happens to a single job is an outcome (`dispatcher.model`), never an exception. An error raised from here is for
the person at the terminal: its text says what is wrong, where, and what to do about it.
"""

from typing import ClassVar


class DispatcherError(Exception):
    """Base of all errors of this program; `exit_status` is what the process ends with."""

    exit_status: ClassVar[int] = 4


class UsageError(DispatcherError):
    """A flag, a setting or an input cannot be used as given."""

    exit_status = 2


class ChangedFileError(UsageError):
    """A job file is not the file that the ledger knows under this name."""


class UnreadableFileError(UsageError):
    """A job file could not be read to its end; nothing of it was accepted."""


class OutputUnreadableError(DispatcherError):
    """An output that was to be collected could not be read; the job file is not published."""

    exit_status = 1


class LedgerHeldError(DispatcherError):
    """Another process owns the ledger."""

    exit_status = 3


class SpoolHeldError(DispatcherError):
    """Another process serves the spool."""

    exit_status = 3


class LedgerFaultError(DispatcherError):
    """The ledger or its disk failed; no later write may be trusted, so the process stops."""

    exit_status = 4


class LedgerFullError(LedgerFaultError):
    """The disk is full; this call changed nothing, and can be made again when there is space."""


class LedgerCorruptError(DispatcherError):
    """The ledger's file is damaged."""

    exit_status = 5
