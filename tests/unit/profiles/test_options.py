"""Options are checked and frozen when they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.profiles.options import LOCK_TIMEOUT, TABLES, WAIT, Options


def test_what_is_not_given_is_as_the_profile_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    profile = profiles.load()
    nothing = dict.fromkeys(("prefix", "protect", "chain", "backend", "lock_file", "lease_file", "journal"))
    for options in (Options(), Options(**nothing, lock_timeout=None, wait=None)):
        assert vars(options) == {
            "prefixes": profile.prefixes,
            "protected": profile.protected,
            "comments": profile.comments,
            "chains": profile.chains,
            "backend": "auto",
            "lock_file": "/var/tmp/hypeman-test-network.lock",
            "lease_file": "/var/tmp/hypeman-test-network-leases.json",
            "lock_timeout": LOCK_TIMEOUT,
            "wait": WAIT,
            "journal": None,
        }


@pytest.mark.parametrize(("value", "directory"), [("/var/tmp", "/var/tmp"), ("", "/tmp"), (None, "/tmp")])
def test_paths_are_below_tmpdir(monkeypatch: pytest.MonkeyPatch, value: str | None, directory: str) -> None:
    if value is None:
        monkeypatch.delenv("TMPDIR", raising=False)
    else:
        monkeypatch.setenv("TMPDIR", value)
    assert Options().lock_file == f"{directory}/hypeman-test-network.lock"
    assert Options(lock_file="$TMPDIR/x").lock_file == "$TMPDIR/x"


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"prefix": "vm"}, "prefixes", ("vm",)),
        ({"prefix": ["vm", "hm", "vm"]}, "prefixes", ("vm", "hm")),
        ({"prefix": {"vm": 1}}, "prefixes", ("vm",)),
        ({"protect": ()}, "protected", ()),
        ({"protect": ["ha", "hmdead"]}, "protected", ("ha", "hmdead")),
        ({"chain": "filter/INPUT"}, "chains", ("filter/INPUT",)),
        ({"chain": ["filter/INPUT", "nat/" + "x" * 28]}, "chains", ("filter/INPUT", "nat/" + "x" * 28)),
        ({"chain": [f"{table}/A" for table in TABLES]}, "chains", tuple(f"{table}/A" for table in TABLES)),
        ({"wait": 0}, "wait", 0.0),
        ({"lock_timeout": math.inf}, "lock_timeout", math.inf),
        ({"lock_file": PurePosixPath("/run/x")}, "lock_file", "/run/x"),
        ({"lease_file": Path("y")}, "lease_file", "y"),
        ({"journal": Path("/z")}, "journal", "/z"),
        ({"backend": "nft"}, "backend", "nft"),
    ],
)
def test_values_are_taken(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(Options(**given), field) == value


@pytest.mark.parametrize("option", ["prefix", "protect", "chain"])
def test_an_iterator_is_read_once(option: str) -> None:
    value = {"prefix": "vm", "protect": "xx", "chain": "filter/INPUT"}[option]
    given: dict[str, Any] = {option: iter([value])}
    options = Options(**given)
    field = {"prefix": "prefixes", "protect": "protected", "chain": "chains"}[option]
    assert [getattr(options, field), getattr(options, field)] == [(value,), (value,)]


def test_they_are_frozen() -> None:
    options = Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.wait = 1  # type: ignore[misc]
    assert isinstance(hash(options), int)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"prefix": []}, "no prefix given"),
        ({"prefix": ""}, "--prefix '' is not a text"),
        ({"prefix": ["hm", " "]}, "--prefix ' ' is not a text"),
        ({"prefix": "hm+"}, r"'hm\+' cannot be a prefix"),
        ({"prefix": "h m"}, "cannot be a prefix"),
        ({"prefix": "a/b"}, "cannot be a prefix"),
        ({"prefix": "hm\n"}, r"'hm\\n' cannot be a prefix"),
        ({"prefix": "\xe9"}, r"'\\xe9' cannot be a prefix"),
        ({"prefix": "abcdefghijklmno"}, "cannot be a prefix"),
        ({"prefix": [b"hm"]}, "--prefix b'hm' is not a text"),
        ({"prefix": 7}, "--prefix 7 is not a text"),
        ({"protect": [""]}, "--protect '' is not a text"),
        ({"protect": [None]}, "--protect None is not a text"),
        ({"protect": "h*"}, "cannot be a protected prefix"),
        ({"prefix": "ha"}, "prefix 'ha' is protected by 'ha'"),
        ({"prefix": ["hm", "ham"]}, "prefix 'ham' is protected by 'ha'"),
        ({"chain": []}, "no chain given"),
        ({"chain": ["FORWARD"]}, "there can be no chain 'FORWARD': give TABLE/CHAIN"),
        ({"chain": "broute/FORWARD"}, "there can be no chain"),
        ({"chain": ["filter/"]}, "there can be no chain"),
        ({"chain": ["filter/" + "x" * 29]}, "there can be no chain"),
        ({"chain": "filter/FORWARD\n"}, "there can be no chain"),
        ({"chain": [("filter", "FORWARD")]}, "--chain .* is not a text"),
        ({"backend": "ebtables"}, "there is no backend 'ebtables': give auto, legacy or nft"),
        ({"backend": ["nft"]}, "there is no backend"),
        ({"wait": -1}, "--wait has to be 0 seconds or more, not -1"),
        ({"wait": math.nan}, "--wait has to be 0 seconds or more"),
        ({"wait": "5"}, "--wait has to be 0 seconds or more, not '5'"),
        ({"lock_timeout": -0.5}, "--lock-timeout has to be 0 seconds or more"),
        ({"lock_timeout": True}, "--lock-timeout has to be 0 seconds or more, not True"),
        ({"lock_file": ""}, "--lock-file '' is not a path"),
        ({"lock_file": "  "}, "--lock-file '  ' is not a path"),
        ({"lock_file": b"/tmp/x"}, "--lock-file b'/tmp/x' is not a path"),
        ({"lease_file": "a\0b"}, "--lease-file .* is not a path"),
        ({"journal": 3}, "--journal 3 is not a path"),
    ],
)
def test_values_that_cannot_be_used_are_wrong_usage(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        Options(**given)
    assert raised.value.exit_status == 2
    assert str(raised.value).isprintable()


class Odd:
    """A path-like object whose path is bytes."""

    def __fspath__(self) -> bytes:
        return b"/tmp/x"


@pytest.mark.parametrize("make", [lambda: Options(lock_file=Odd()), lambda: Options(journal=Odd())])  # type: ignore[arg-type]
def test_a_path_of_bytes_is_wrong_usage(make: Callable[[], Options]) -> None:
    with pytest.raises(UsageError, match="is not a path"):
        make()
