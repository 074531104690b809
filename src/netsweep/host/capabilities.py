"""What the kernel lets this process do."""

from __future__ import annotations

from netsweep.errors import NetsweepError, NotPermittedError

CAP_CHOWN = 0
CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
CAP_SYS_PTRACE = 19
"""Bits of linux/capability.h."""

_STATUS = "/proc/thread-self/status"


def effective_capabilities() -> int:
    """The capabilities that this thread has in effect, one bit each (proc(5), status, CapEff).

    Raises :class:`NetsweepError` where /proc cannot be read.
    """
    try:
        with open(_STATUS, encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except OSError as error:
        raise NetsweepError(f"cannot read {_STATUS}: {error.strerror}; netsweep needs /proc: mount it") from error


def require_net_admin() -> None:
    """Raise :class:`NotPermittedError` where CAP_NET_ADMIN is not in effect, whatever the user is."""
    if not effective_capabilities() >> CAP_NET_ADMIN & 1:
        raise NotPermittedError("CAP_NET_ADMIN is missing: run as root, or give this process the capability")
