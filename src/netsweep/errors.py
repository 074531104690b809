"""One exception for each exit status, so that callers test for kinds and never search strings.

The statuses above 63 are those of ``sysexits.h`` (EX_UNAVAILABLE, EX_TEMPFAIL, EX_NOPERM).
"""

from __future__ import annotations

from netsweep.report import Report

ORPHANS_FOUND = 3
"""Exit status of ``list --exit-code`` where there are orphans: an answer, not a failure."""


class NetsweepError(Exception):
    """Something failed; the message is one line that says what, and what to do.

    ``exit_status`` is the status of the process; ``report`` holds what had been done until then
    (``None`` where nothing had begun).
    """

    exit_status = 1
    report: Report | None = None


class UsageError(NetsweepError):
    """An option has a value that cannot be used."""

    exit_status = 2


class NoBackendError(NetsweepError):
    """A library or kernel support that the rules need is missing."""

    exit_status = 69


class BusyError(NetsweepError):
    """Timed out waiting for a lock, or for rules that kept changing; nothing was changed."""

    exit_status = 75


class NotPermittedError(NetsweepError):
    """A capability is missing, or a file may not be read."""

    exit_status = 77


class ContentionError(Exception):
    """Something changed between the decision and the commit: nothing was done; read again and retry.

    It never leaves :mod:`netsweep.jobs`, which turns it into :class:`BusyError` when time is up.
    """


class TableError(NetsweepError):
    """A table cannot be changed, for a reason that does not concern other tables."""
