"""Errors meant for the person at the keyboard: no traceback is needed to act on one."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can fix. The command line prints the message alone and exits with
    `exit_code`."""

    exit_code = 1


class ConfigError(UserError):
    """The configuration cannot run: every problem found, one a line (exit 78, sysexits
    EX_CONFIG)."""

    exit_code = 78


class DataError(UserError):
    """An input file is malformed: `file:line: reason` for every bad row (exit 65, sysexits
    EX_DATAERR)."""

    exit_code = 65


class WriteError(UserError, OSError):
    """A file could not be written: a full disk, a quota, a read-only place (exit 74, sysexits
    EX_IOERR)."""

    exit_code = 74


class LostProcess(UserError):
    """Another process of the run has ended, or does not answer."""


class GateError(UserError):
    """A run's own correctness gate failed (exit 70, sysexits EX_SOFTWARE)."""

    exit_code = 70


class Interrupted(Exception):
    """A stop was requested; the phase ended at a batch boundary, and the same command continues the
    run."""


def listed(problems: Sequence[str], most: int = 20) -> list[str]:
    """Return the lines of an error: the first problems, and how many more there are."""
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]
