"""What one kind of software names its interfaces and comments, and where its rules stand: data, in TOML."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from netsweep.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "hypeman"


@dataclass(frozen=True)
class Profile:
    """One profile.

    ``prefixes`` and ``protected`` are beginnings of interface names; ``comments`` are forms with
    ``{role}`` and ``{name}``; ``chains`` are ``TABLE/CHAIN``. ``lock_file`` and ``lease_file`` may begin
    with ``$TMPDIR``.
    """

    prefixes: tuple[str, ...]
    protected: tuple[str, ...]
    comments: tuple[str, ...]
    chains: tuple[str, ...]
    lock_file: str
    lease_file: str


@cache
def load(name: str = DEFAULT) -> Profile:
    """The profile called ``name`` that netsweep brings along; raises :class:`UsageError` where there is none."""
    try:
        # importlib.resources takes 19 ms to import, and this package is always a directory.
        with open(os.path.join(os.path.dirname(__file__), f"{name}.toml"), "rb") as file:
            content: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"there is no profile {name!a}") from None
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return Profile(**values)
