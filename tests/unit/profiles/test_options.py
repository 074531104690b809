"""Options are checked and frozen when they are made."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.model import Chain, Family, Table
from netsweep.policy.patterns import chain_pattern
from netsweep.profiles.options import LOCK_TIMEOUT, WAIT, Options, subnets


def test_what_is_not_given_is_as_the_profile_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    profile = profiles.load()
    nothing: dict[str, Any] = dict.fromkeys(set(inspect.signature(Options).parameters) - {"all_chains"})
    for options in (Options(), Options(**nothing)):
        assert vars(options) == {
            "profile": profile,
            "prefixes": profile.prefixes,
            "globs": (),
            "protected": profile.protected,
            "chains": profile.chains,
            "chains_given": False,
            "patterns": tuple(map(chain_pattern, profile.chains)),
            "family": "all",
            "include_negated": False,
            "settle": 0.0,
            "backend": "auto",
            "lock_file": "/var/tmp/hypeman-test-network.lock",
            "lease_file": "/var/tmp/hypeman-test-network-leases.json",
            "lock_timeout": LOCK_TIMEOUT,
            "wait": WAIT,
            "max_deletes": None,
            "bridges": False,
            "min_age": 3600.0,
            "journal": None,
        }


def test_what_is_not_given_is_as_another_profile_has_it() -> None:
    profile = profiles.load("docker")
    options = Options(profile="docker")
    assert (options.prefixes, options.globs, options.protected) == ((), profile.names, ())
    assert (options.chains, options.chains_given) == (profile.chains, False)
    assert (options.lock_file, options.lease_file, options.settle) == (None, None, profile.settle)
    assert options.min_age is None, "no age proves anything"


def test_what_is_given_replaces_what_the_profile_says_but_for_names() -> None:
    options = Options(
        profile="docker",
        prefix="vm",
        name=["mybr0", "docker0", "mybr0"],
        protect="docker_",
        chain="filter/FORWARD",
        settle=0,
        lock_file="/run/x",
        lease_file="/run/y",
    )
    assert (options.prefixes, options.protected, options.chains) == (("vm",), ("docker_",), ("filter/FORWARD",))
    assert options.globs == (*profiles.load("docker").names, "mybr0")  # docker_gwbridge stays, as it is protected
    assert (options.settle, options.lock_file, options.lease_file) == (0.0, "/run/x", "/run/y")
    assert options.chains_given


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
        ({"name": "virbr[0-9]*"}, "globs", ("virbr[0-9]*",)),
        ({"name": {"wgcorp": 1}}, "globs", ("wgcorp",)),
        ({"name": ()}, "globs", ()),
        ({"prefix": ["vm", "hm", "vm"]}, "prefixes", ("vm", "hm")),
        ({"prefix": {"vm": 1}}, "prefixes", ("vm",)),
        ({"protect": ()}, "protected", ()),
        ({"protect": ["ha", "hmdead"]}, "protected", ("ha", "hmdead")),
        ({"chain": "filter/INPUT"}, "chains", ("filter/INPUT",)),
        ({"chain": ["filter/INPUT", "nat/" + "x" * 99]}, "chains", ("filter/INPUT", "nat/" + "x" * 99)),
        ({"chain": ["ip6:raw/*", "libvirt_network/f"]}, "chains", ("ip6:raw/*", "libvirt_network/f")),
        ({"chain": "filter/INPUT"}, "chains_given", True),
        ({"all_chains": True}, "chains", ("*/*",)),
        ({"all_chains": True}, "chains_given", False),
        ({"all_chains": True, "chain": None}, "patterns", (chain_pattern("*/*"),)),
        ({"chain": "filter/*", "profile": "docker"}, "chains", ("filter/*",)),
        ({"family": "ipv6"}, "families", {Family.IPV6, Family.INET}),
        ({"family": "ipv4"}, "families", {Family.IPV4, Family.INET}),
        ({}, "families", {Family.IPV4, Family.IPV6, Family.INET}),
        ({"include_negated": True}, "include_negated", True),
        ({"settle": 2}, "settle", 2.0),
        ({"settle": 3600}, "settle", 3600.0),
        ({"max_deletes": 0}, "max_deletes", 0),
        ({"max_deletes": 10**9}, "max_deletes", 10**9),
        ({"bridges": True}, "bridges", True),
        ({"min_age": 0}, "min_age", 0.0),
        ({"min_age": 90.5}, "min_age", 90.5),
        ({"min_age": "1h30m"}, "min_age", 5400.0),
        ({"min_age": "20m", "profile": "docker"}, "min_age", 1200.0),
        ({"min_age": math.inf}, "min_age", math.inf),
        ({"profile": "lxc"}, "profile", profiles.load("lxc")),
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


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("prefix", "vm", "prefixes"),
        ("name", "wgcorp", "globs"),
        ("protect", "xx", "protected"),
        ("chain", "filter/INPUT", "chains"),
    ],
)
def test_an_iterator_is_read_once(option: str, value: str, field: str) -> None:
    given: dict[str, Any] = {option: iter([value])}
    options = Options(**given)
    assert [getattr(options, field), getattr(options, field)] == [(value,), (value,)]


IPV4, IPV6, INET = (Table("nft", family, "filter") for family in (Family.IPV4, Family.IPV6, Family.INET))
FORWARDS = [Chain(table, "FORWARD") for table in (IPV4, IPV6, INET)]


@pytest.mark.parametrize(
    ("given", "selected"),
    [
        ({}, [0, 1, 2]),
        ({"family": "ipv4"}, [0, 2]),
        ({"family": "ipv6"}, [1, 2]),
        ({"chain": "ip6:filter/*"}, [1]),
        ({"chain": ["inet:filter/*", "ipv4:*/FORWARD"]}, [0, 2]),
        ({"all_chains": True}, [0, 1, 2]),
        ({"all_chains": True, "family": "ipv6"}, [1, 2]),
        ({"chain": "filter/INPUT"}, []),
    ],
)
def test_chains_are_selected_by_pattern_and_family(given: dict[str, Any], selected: list[int]) -> None:
    options = Options(**given)
    assert [chain for chain in FORWARDS if options.selects(chain)] == [FORWARDS[number] for number in selected]


@pytest.mark.parametrize("family", [Family.ARP, Family.BRIDGE, Family.NETDEV])
def test_no_chain_of_another_family_is_selected(family: Family) -> None:
    assert not Options(all_chains=True).selects(Chain(Table("nft", family, "filter"), "FORWARD"))


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
        ({"prefix": "hm+"}, r"prefix 'hm\+' is a pattern.*: give --name 'hm\*'"),
        ({"prefix": "br-0123456789ab"}, r"looks like a whole name.*: give --name 'br-0123456789ab'"),
        ({"prefix": "docker_gwbridge"}, r"looks like a whole name.*: give --name 'docker_gwbridge'"),
        ({"prefix": "mpqemubr0"}, r"looks like a whole name.*: give --name 'mpqemubr0'"),
        ({"prefix": "br-*"}, r"is a pattern, and hex digits follow a prefix: give --name 'br-\*'"),
        ({"prefix": "br-[0-9a-f]{12}"}, r"is a pattern, .*: give --name 'br-(\[0-9a-f\]){12}'"),
        ({"prefix": "br"}, r"owns br0 and br1, .* give a longer one, or --name 'br-\?{12}'"),
        ({"name": "h*"}, r"name 'h\*' is too wide: at least 2 characters"),
        ({"name": ["wgcorp", "hm[0"]}, r"'hm\[0' has a bracket that is not closed"),
        ({"name": "a b"}, "cannot be the name of an interface"),
        ({"name": "br-01234567890123"}, "is longer than the 15 characters"),
        ({"name": ""}, "--name '' is not a text"),
        ({"name": 5}, "--name 5 is not a text"),
        ({"name": "ha*"}, r"name 'ha\*' is protected by 'ha', so nothing would ever be swept"),
        ({"profile": "docker", "protect": ["br-", "dock"]}, r"name 'docker0' is protected by 'dock'"),
        ({"profile": "docker", "protect": "my", "name": "mybr0"}, "name 'mybr0' is protected by 'my'"),
        ({"prefix": "h m"}, "cannot be a prefix"),
        ({"prefix": "a/b"}, "cannot be a prefix"),
        ({"prefix": "hm\n"}, r"'hm\\n' cannot be a prefix"),
        ({"prefix": "\xe9"}, r"'\\xe9' cannot be a prefix"),
        ({"prefix": "abcdefghijklmno"}, "looks like a whole name"),
        ({"prefix": "abcdefghijklmnop"}, "cannot be a prefix"),
        ({"prefix": [b"hm"]}, "--prefix b'hm' is not a text"),
        ({"prefix": 7}, "--prefix 7 is not a text"),
        ({"protect": [""]}, "--protect '' is not a text"),
        ({"protect": [None]}, "--protect None is not a text"),
        ({"protect": "h*"}, "cannot be a protected prefix"),
        ({"prefix": "ha"}, "prefix 'ha' is protected by 'ha'"),
        ({"prefix": ["hm", "ham"]}, "prefix 'ham' is protected by 'ha'"),
        ({"chain": []}, "no chain given"),
        ({"chain": ["FORWARD"]}, "invalid chain 'FORWARD': give TABLE/CHAIN"),
        ({"chain": "ip6/filter/FORWARD"}, "invalid chain 'ip6/filter/FORWARD': a family .* ip6:filter/FORWARD"),
        ({"chain": ["filter/"]}, "invalid chain"),
        ({"chain": "arp:filter/FORWARD"}, "families are ipv4, ipv6 and inet"),
        ({"chain": "raw/["}, r"'\[' has a bracket that is not closed"),
        (
            {"profile": "docker", "chain": "filter/DOCKER-USER"},
            "profile 'docker' never touches chain 'filter/DOCKER-USER'",
        ),
        ({"profile": "docker", "chain": "inet:firewalld/*"}, "profile 'docker' never touches chain 'inet:firewalld"),
        ({"all_chains": True, "chain": "filter/INPUT"}, "--all-chains means every chain: do not give --chain too"),
        ({"all_chains": True, "chain": iter(["filter/INPUT"])}, "do not give --chain too"),
        (
            {"chain": "ip6:raw/*", "family": "ipv4"},
            r"chain 'ip6:raw/\*' is not of family ipv4: change --chain or --fam",
        ),
        ({"family": "ipx"}, "there is no family 'ipx': give ipv4, ipv6, all"),
        ({"family": "inet"}, "there is no family 'inet'"),
        ({"family": ["ipv4"]}, r"there is no family \['ipv4'\]"),
        ({"family": ""}, "there is no family ''"),
        ({"settle": -1}, "--settle has to be 0 to 3600 seconds, not -1"),
        ({"settle": math.inf}, "--settle has to be 0 to 3600 seconds, not inf"),
        ({"settle": math.nan}, "--settle has to be 0 to 3600 seconds, not nan"),
        ({"settle": "2"}, "--settle has to be 0 to 3600 seconds, not '2'"),
        ({"settle": True}, "--settle has to be 0 to 3600 seconds, not True"),
        ({"max_deletes": -1}, "--max-deletes has to be a number, 0 or more, not -1"),
        ({"max_deletes": 1.5}, "--max-deletes has to be a number, 0 or more, not 1.5"),
        ({"max_deletes": True}, "--max-deletes has to be a number, 0 or more, not True"),
        ({"max_deletes": "7"}, "--max-deletes has to be a number, 0 or more, not '7'"),
        ({"min_age": "1 h"}, "--min-age has to be a time as 90s, 20m, 1h30m or 2d, not '1 h'"),
        ({"min_age": ""}, "--min-age has to be a time as 90s, 20m, 1h30m or 2d, not ''"),
        ({"min_age": "-1s"}, "--min-age has to be a time as"),
        ({"min_age": "nan"}, "--min-age has to be a time as"),
        ({"min_age": "30m1h"}, "--min-age has to be a time as"),
        ({"min_age": -1}, "--min-age has to be 0 seconds or more, not -1"),
        ({"min_age": math.nan}, "--min-age has to be 0 seconds or more"),
        ({"min_age": True}, "--min-age has to be 0 seconds or more, not True"),
        ({"min_age": ["1h"]}, "--min-age has to be 0 seconds or more"),
        ({"profile": ""}, "--profile '' is not a path"),
        ({"profile": 3}, "--profile 3 is not a path"),
        ({"profile": "nosuch"}, "there is no profile 'nosuch': give hypeman, docker"),
        ({"profile": "./nosuch.toml"}, "profile './nosuch.toml' cannot be read: No such file or directory"),
        ({"profile": "a\0/b"}, "--profile .* is not a path"),
        ({"chain": "filter/FORWARD\n"}, "invalid chain"),
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


# Options for every chain.


def test_everywhere_is_every_chain_at_once_and_all_else_stays() -> None:
    options = Options(name="vm*", chain="filter/INPUT", settle=2, protect="xx", wait=1, backend="nft", family="ipv6")
    before = dict(vars(options))
    widened = options.everywhere()
    assert vars(options) == before
    assert vars(widened) == {
        **before,
        "chains": ("*/*",),
        "chains_given": False,
        "patterns": (chain_pattern("*/*"),),
        "settle": 0.0,
    }
    assert [chain for chain in FORWARDS if widened.selects(chain)] == FORWARDS[1:], "of the families that are given"
    assert widened.selects(Chain(Table("nft", Family.INET, "mine"), "x"))


def test_chains_that_a_profile_never_touches_stay_out_of_reach() -> None:
    widened = Options(profile="docker").everywhere()
    assert not widened.allows(Chain(IPV4, "DOCKER-USER"))
    assert widened.allows(FORWARDS[0])


# Subnets.


@pytest.mark.parametrize(
    ("text", "first", "number"),
    [
        ("10.200.0.0-10.249.255.255", 0x0AC800, 12_800),
        (" 10.200.0.0 - 10.200.0.255 ", 0x0AC800, 1),
        ("10.200.0.0\N{EN DASH}10.200.1.255", 0x0AC800, 2),
        ("10.200.7.0/24", 0x0AC807, 1),
        ("10.200.0.0/16", 0x0AC800, 256),
    ],
)
def test_subnets_are_counted_by_their_first_three_bytes(text: str, first: int, number: int) -> None:
    assert subnets(text) == range(first, first + number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "10.200.0.0",
        "10.200.0.0-",
        "10.200.0.1-10.200.0.255",
        "10.200.0.0-10.200.0.254",
        "10.200.1.0-10.200.0.255",
        "10.200.0.0/25",
        "10.200.0.7/24",
        "10.200.0.0-10.200.1.255-10.200.2.255",
        "fd00::/64",
        "all",
    ],
)
def test_what_is_no_range_of_subnets_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not FIRST-LAST, as 10\.200\.0\.0-10\.249\.255\.255: .") as raised:
        subnets(text)
    assert str(raised.value).startswith(f"--subnets {text!a} ")


def test_the_subnets_of_every_profile_can_be_read() -> None:
    for name in profiles.available():
        text = profiles.load(name).subnets
        assert text is None or len(subnets(text)) > 0
    assert profiles.load().subnets
