"""How failures are told: one line on stderr, and an exit status."""

from __future__ import annotations

import contextlib
import errno
import sys

from netsweep.errors import NetsweepError, NoBackendError, NotPermittedError
from netsweep.output.escape import escape
from netsweep.output.stdout import StdoutError

_NO_MEMORY = "out of memory: no table is half-changed; try again with more memory"

_NO_FILES = "too many open files: raise the limit (ulimit -n)"

_SHORTAGES = {
    "Cannot allocate memory": _NO_MEMORY,
    "cannot allocate memory": _NO_MEMORY,
    "failed to map segment": _NO_MEMORY,
    "Too many open files": _NO_FILES,
}
"""What the dynamic linker says where a library is there and cannot be loaded (glibc, elf/dl-load.c)."""


def complain(text: str) -> None:
    """Print one line on stderr, whatever ``text`` holds."""
    # Report and exit status still count where stderr takes nothing.
    with contextlib.suppress(OSError):
        print(f"netsweep: {escape(text)}", file=sys.stderr, flush=True)


def explain(error: Exception) -> NetsweepError:
    """Return ``error`` as one that has a message for people and an exit status."""
    if isinstance(error, NetsweepError):
        return error
    if isinstance(error, StdoutError):
        return NetsweepError(f"could not write to stdout: {error.strerror}")
    # CPython raises SystemError where an allocation failed and there was no memory to say so.
    if isinstance(error, (MemoryError, SystemError)):
        return NetsweepError(_NO_MEMORY)
    if isinstance(error, (OSError, ImportError)):
        for said, shortage in _SHORTAGES.items():
            if said in str(error):
                return NetsweepError(shortage)
    if isinstance(error, OSError):
        if error.errno in (errno.EACCES, errno.EPERM):
            return NotPermittedError(f"not permitted: {_reason(error)}; run as root")
        return NetsweepError(f"a system call failed: {_reason(error)}")
    if isinstance(error, ImportError):
        return NoBackendError(f"{error}: install netsweep-firewall again")
    return NetsweepError(f"unexpected {type(error).__name__}: {error}; please report this as a bug")


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename!a}" if error.filename is not None else "")
