"""What one kind of software names its interfaces and comments, and where its rules stand: data, in TOML."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from netsweep.errors import NotPermittedError, UsageError
from netsweep.policy.patterns import ChainPattern, chain_pattern, check_names
from netsweep.policy.verdicts import Claims

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from netsweep.policy.forms import Form

DEFAULT = "hypeman"

_DIRECTORY = os.path.dirname(__file__)  # importlib.resources takes 19 ms to import, and this package is always one

_SIZE_MAX = 1 << 16
"""Bytes of a profile: more than any has, and no trouble to read."""

SETTLE_MAX = 3600
"""Seconds. Owners take much less to delete the rules of a bridge that they deleted."""

_TOUCHES_NAME = re.compile(r"[^\W_]\{name\}|\{name\}[^\W_]|\}\{name\}|\{name\}\{")
"""Where a name begins and ends could not be told."""

_LISTS = ("names", "prefixes", "protected", "comments", "chains", "private", "never", "checked_with", "cannot_sweep")
_TEXTS = ("about", "lock_file", "lease_file", "min_age", "subnets")

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)
_DURATION_UNITS = (86400, 3600, 60, 1)


@dataclass(frozen=True)
class Profile:
    """One profile.

    ``names`` are globs and ``prefixes`` beginnings of interface names; interfaces that begin with one of
    ``protected`` are never touched. ``comments`` are forms with ``{role}`` and ``{name}``. ``chains`` are
    where to look, as ``[FAMILY:]TABLE/CHAIN`` with globs; ``never`` are chains whose rules stay whatever
    they are. ``settle`` and ``min_age`` are in seconds; the latter is how old a bridge without a lease has to be
    to count as leaked, and ``None`` where no age proves that. ``subnets`` are those of its networks, as
    ``FIRST-LAST``. ``lock_file`` and ``lease_file`` may begin with ``$TMPDIR``; ``None`` means that the software
    has none.
    """

    name: str
    about: str
    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    protected: tuple[str, ...]
    comments: tuple[str, ...]
    chains: tuple[str, ...]
    claims: Claims
    never: tuple[ChainPattern, ...]
    settle: float
    lock_file: str | None
    lease_file: str | None
    min_age: float | None
    subnets: str | None
    checked_with: tuple[str, ...]
    cannot_sweep: tuple[str, ...]


def duration(text: str) -> float:
    """The seconds in a time as ``90s``, ``20m``, ``1h30m`` or ``2d``, or in a number; raises :class:`ValueError`."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not text.strip():
        raise ValueError(f"{text!a} is not a time as 90s, 20m, 1h30m or 2d")
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), _DURATION_UNITS, strict=True))


def available() -> list[str]:
    """The names of the profiles that come with netsweep, the default first."""
    names = {entry.removesuffix(".toml") for entry in os.listdir(_DIRECTORY) if entry.endswith(".toml")}
    return [DEFAULT, *sorted(names - {DEFAULT})]


def source(name: str) -> str:
    """The text of the profile called ``name``, or of the TOML file at ``name`` where that holds a slash.

    Raises :class:`UsageError` where there is none, or it cannot be read, and :class:`NotPermittedError`.
    """
    path = name if "/" in name else os.path.join(_DIRECTORY, f"{name}.toml")
    if "/" not in name and name not in available():
        raise UsageError(
            f"there is no profile {name!a}: give {', '.join(available())}, or the path of a file, as ./mine.toml"
        )
    try:
        # O_NONBLOCK: a FIFO would let the open hang, and half of a profile may protect nothing.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"profile {name!a} cannot be read: it is not a regular file")
            content = file.read(_SIZE_MAX + 1)
    except PermissionError as error:
        raise NotPermittedError(f"profile {name!a} cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"profile {name!a} cannot be read: {reason}") from error
    if len(content) > _SIZE_MAX:
        raise UsageError(f"profile {name!a} is larger than {_SIZE_MAX:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"profile {name!a} is not UTF-8 text") from error


def load(name: str = DEFAULT) -> Profile:
    """The profile called ``name``, or that of the TOML file at ``name`` where that holds a slash.

    Raises :class:`UsageError` where there is none, or something is wrong in it.
    """
    return _parse(name, source(name)) if "/" in name else _included(name)


@cache
def _included(name: str) -> Profile:
    return _parse(name, source(name))


def _parse(name: str, text: str) -> Profile:
    try:
        content: dict[str, Any] = tomllib.loads(text)
        return _profile(name, content)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"profile {name!a} is not TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"profile {name!a} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"profile {name!a}: {error}") from error


def _profile(name: str, content: Mapping[str, Any]) -> Profile:
    known = (*_LISTS, *_TEXTS, "settle", "forms")
    if unknown := [key for key in content if key not in known]:
        raise ValueError(f"there is no key {unknown[0]!a}: keys are {', '.join(known)}")
    texts = {key: _text(key, content[key]) for key in _TEXTS if key in content}
    lists = {key: _texts(key, content.get(key, [])) for key in _LISTS}
    settle = content.get("settle", 0)
    if isinstance(settle, bool) or not isinstance(settle, int | float) or not 0 <= settle <= SETTLE_MAX:
        raise ValueError(f"settle has to be a number of seconds from 0 to {SETTLE_MAX}, not {settle!a}")
    if not (lists["names"] or lists["prefixes"]):
        raise ValueError("it owns no names: give names or prefixes")
    check_names(lists["prefixes"], lists["protected"], lists["names"])
    for text in lists["comments"]:
        if text.count("{name}") != 1 or text.count("{role}") > 1:
            raise ValueError(f"the comment {text!a} has to hold {{name}} once, and {{role}} at most once")
        if _TOUCHES_NAME.search(text):
            raise ValueError(f"the comment {text!a} has a letter, a digit or {{role}} next to {{name}}")
    forms = _forms(content.get("forms", {}))
    chains = lists["chains"] or (*lists["private"], *forms)
    if not chains:
        raise ValueError("it does not say where to look: give chains, private or forms")
    if not (lists["private"] or lists["comments"] or any(forms.values())):
        raise ValueError("nothing in it makes a rule ours: give private, forms or comments")
    for text in chains:
        chain_pattern(text)
    return Profile(
        name=name,
        about=texts.get("about", ""),
        names=lists["names"],
        prefixes=lists["prefixes"],
        protected=lists["protected"],
        comments=lists["comments"],
        chains=tuple(dict.fromkeys(chains)),
        claims=Claims(
            tuple(map(chain_pattern, lists["private"])),
            _parsed(forms),
        ),
        never=tuple(map(chain_pattern, lists["never"])),
        settle=float(settle),
        lock_file=texts.get("lock_file"),
        lease_file=texts.get("lease_file"),
        min_age=duration(texts["min_age"]) if "min_age" in texts else None,
        subnets=texts.get("subnets"),
        checked_with=lists["checked_with"],
        cannot_sweep=lists["cannot_sweep"],
    )


def _forms(found: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(found, dict):
        raise ValueError('forms has to be a table, as forms."filter/FORWARD" = ["-i {name} -j ACCEPT"]')
    return {chain: _texts(f"forms of {chain!a}", of_chain) for chain, of_chain in found.items()}


def _parsed(forms: Mapping[str, tuple[str, ...]]) -> tuple[tuple[ChainPattern, tuple[Form, ...]], ...]:
    if not forms:
        return ()
    from netsweep.policy.forms import form_of  # the default profile has none

    return tuple((chain_pattern(chain), tuple(map(form_of, of_chain))) for chain, of_chain in forms.items())


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key} has to be a list of texts, not {value!a}")
    return tuple(_text(key, each) for each in value)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{key} cannot be {value!a}: give a text in one line that is not blank")
    return value
