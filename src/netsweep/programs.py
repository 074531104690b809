"""Find programs of the system where only root can have put them: PATH is anybody's."""

from __future__ import annotations

import os

FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
"""Where distributions put iptables, and where who builds it does."""


def find_program(name: str) -> str | None:
    """The full path of a program of the system, or ``None``."""
    for folder in FOLDERS:
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            return path
    return None
