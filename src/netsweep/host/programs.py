"""Find programs of the system in directories that only root can write to: PATH may hold others."""

from __future__ import annotations

import os

DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
"""Where distributions put iptables, and where it goes when it is built from source."""


def find_program(name: str) -> str | None:
    """The full path of a program of the system, or ``None``."""
    paths = (os.path.join(directory, name) for directory in DIRECTORIES)
    return next((path for path in paths if os.access(path, os.X_OK)), None)
