"""The profiles that netsweep brings along, and what is said of one's own where something is wrong in it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.model import Chain, Family, Table
from netsweep.policy.names import Names
from netsweep.policy.patterns import chain_pattern
from netsweep.profiles import Profile
from netsweep.profiles.options import Options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OTHERS = ("docker", "libvirt", "lxc", "lxd")


def names_of(profile: Profile) -> Names:
    return Names(profile.prefixes, profile.protected, profile.comments, profile.names)


def test_the_default_profile_is_that_of_the_test_harness() -> None:
    profile = profiles.load()
    assert profile == profiles.load(profiles.DEFAULT)
    assert (profile.prefixes, profile.protected, profile.names) == (("hm",), ("ha",), ())
    assert profile.chains == ("filter/FORWARD", "nat/POSTROUTING")
    assert profile.lock_file == "$TMPDIR/hypeman-test-network.lock"
    assert profile.lease_file == "$TMPDIR/hypeman-test-network-leases.json"
    assert profile.settle == 0
    assert (profile.min_age, profile.subnets) == (3600.0, "10.200.0.0-10.249.255.255")


@pytest.mark.parametrize("role", ["fwd-out", "fwd-in", "nat", "gateway", "input", "output"])
def test_its_forms_are_those_of_the_comments_that_the_test_harness_writes(role: str) -> None:
    names = names_of(profiles.load())
    assert names.owner(f"hypeman-{role}-hm3fa2001") == "hm3fa2001"
    assert names.protected_owner(f"hypeman-{role}-ha12") == "ha12"


# Those of other software.


def test_the_default_is_listed_first_and_the_others_by_name() -> None:
    assert profiles.available() == [profiles.DEFAULT, *OTHERS]


@pytest.mark.parametrize("name", [profiles.DEFAULT, *OTHERS])
def test_what_a_profile_says_is_what_stands_in_its_file(name: str) -> None:
    written: dict[str, Any] = tomllib.loads(profiles.source(name))
    profile = profiles.load(name)
    for key in ("names", "prefixes", "protected", "comments", "checked_with", "cannot_sweep"):
        assert list(getattr(profile, key)) == written.pop(key, []), key
    for key in ("about", "lock_file", "lease_file", "settle", "subnets"):
        assert getattr(profile, key) == written.pop(key, None), key
    age = written.pop("min_age", None)
    assert profile.min_age == (profiles.duration(age) if age else None)
    forms = written.pop("forms", {})
    assert list(profile.chains) == written.pop("chains", list(dict.fromkeys([*written["private"], *forms])))
    assert list(map(str, profile.claims.private)) == [str(chain_pattern(text)) for text in written.pop("private")]
    assert {str(pattern): [form.text for form in each] for pattern, each in profile.claims.forms} == forms
    assert list(map(str, profile.never)) == [str(chain_pattern(text)) for text in written.pop("never", [])]
    assert written == {}


@pytest.mark.parametrize("name", [profiles.DEFAULT, *OTHERS])
def test_a_copy_of_a_profile_is_a_profile(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(profiles.source(name))
    mine = profiles.load(str(path))
    assert {**vars(mine), "name": name} == vars(profiles.load(name))


@pytest.mark.parametrize("name", [profiles.DEFAULT, *OTHERS])
def test_a_profile_gives_its_reasons_and_its_limits(name: str) -> None:
    profile = profiles.load(name)
    assert profile.about
    assert profile.checked_with
    assert profile.cannot_sweep
    lines = [line.strip() for line in profiles.source(name).splitlines() if line.strip()]
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        key = line.partition(" = ")[0]
        if re.fullmatch(r"[a-z_]+", key) and key not in ("about", "checked_with", "cannot_sweep", "lease_file"):
            assert before.startswith("#") or (line.endswith("[") and after.startswith("#")), f"no reason for {key}"


@pytest.mark.parametrize("name", OTHERS)
def test_other_software_has_no_lock_and_needs_time(name: str) -> None:
    options = Options(profile=name)
    assert (options.lock_file, options.lease_file, options.settle) == (None, None, 2.0)


@pytest.mark.parametrize(
    ("name", "owned", "others"),
    [
        (
            "docker",
            ["docker0", "docker_gwbridge", "br-0123456789ab", "br-fedcba987654"],
            ["docker1", "br-lan", "br-100", "br-0123456789a", "br-0123456789AB", "br-0123456789abc", "mybr0"],
        ),
        ("libvirt", ["virbr0", "virbr12", "vnet3"], ["virbr", "virbr-x", "vnet", "vnetx", "br-ci7f3a"]),
        ("lxd", ["lxdbr0", "incusbr0", "incusbr-x"], ["lxcbr0", "lxdb", "incusb0"]),
        ("lxc", ["lxcbr0", "lxcbr12"], ["lxdbr0", "lxc0"]),
    ],
)
def test_names_are_those_that_the_software_gives(name: str, owned: list[str], others: list[str]) -> None:
    names = names_of(profiles.load(name))
    assert [each for each in (*owned, *others) if names.owns(each)] == owned


THEIRS = [
    *(("ipv4", "filter", chain) for chain in ("DOCKER-USER", "CNI-ADMIN", "ufw-user-input", "ufw6-before-forward")),
    *(
        ("ipv4", "filter", chain)
        for chain in ("FORWARD_direct", "INPUT_ZONES", "FORWARD_IN_ZONES", "INPUT_ZONES_SOURCE")
    ),
    *(("ipv6", "filter", chain) for chain in ("FWDI_public", "FWDO_trusted", "FWD_public", "IN_public_allow")),
    ("inet", "firewalld", "filter_FORWARD"),
]
"""Chains where administrators and other firewalls keep their rules."""


@pytest.mark.parametrize("name", OTHERS)
def test_chains_of_others_are_never_looked_at(name: str) -> None:
    options = Options(profile=name, all_chains=True)
    for family, table, chain in THEIRS:
        assert not options.allows(Chain(Table("nft", Family(family), table), chain)), chain
    for text in options.profile.chains:
        pattern = chain_pattern(text.replace("*", "x"))
        own = Chain(Table("nft", pattern.family or Family.IPV4, pattern.table), pattern.chain)
        assert options.allows(own), f"it can never look at {text}"


def test_comments_of_lxd_and_incus_are_those_that_they_write() -> None:
    names = names_of(profiles.load("lxd"))
    for text, owner in {
        "generated for LXD network lxdbr0": "lxdbr0",
        "generated for Incus network-forward incusbr1": "incusbr1",
        "generated for LXD network lxdbr0 by hand": None,
        "generated for LXD network eth0": None,
    }.items():
        assert names.owner(text) == owner


# One's own.

MINE = {"names": '["br-*"]', "private": '["filter/JOBS"]'}


def write(path: Path, **lines: str | None) -> str:
    """A small profile at ``path``, but for these lines; ``None`` leaves one out."""
    path.write_text("".join(f"{key} = {value}\n" for key, value in {**MINE, **lines}.items() if value is not None))
    return str(path)


def refusal(name: str) -> str:
    """What is said of a profile that cannot be used: the same whoever asks, in one line that names it."""
    said = []
    for ask in (profiles.load, lambda name: Options(profile=name)):
        with pytest.raises(UsageError) as raised:
            ask(name)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert said[0].isprintable()
    assert said[0].isascii()
    assert ascii(name) in said[0]
    return said[0]


def test_a_profile_of_ones_own_needs_little(tmp_path: Path) -> None:
    profile = profiles.load(write(tmp_path / "mine.toml"))
    assert (profile.names, profile.chains, profile.settle) == (("br-*",), ("filter/JOBS",), 0)
    assert (profile.lock_file, profile.lease_file, profile.protected, profile.about) == (None, None, (), "")
    assert (profile.min_age, profile.subnets) == (None, None)


def test_a_profile_says_everything_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.toml",
        chains='["inet:x/*"]',
        forms='{ "filter/FORWARD" = ["-i {name} -j ACCEPT"], "inet:y/z" = [] }',
        comments='["a {role} {name}"]',
        never='["*/MINE"]',
        settle="0.5",
        lock_file='"$TMPDIR/x"',
        protected='["br-x"]',
    )
    options = Options(profile=path)
    assert options.chains == ("inet:x/*",)
    assert [str(pattern) for pattern, _ in options.profile.claims.forms] == ["filter/FORWARD", "inet:y/z"]
    assert (options.settle, options.protected) == (0.5, ("br-x",))
    assert options.lock_file
    assert options.lock_file.endswith("/x")


def test_a_path_may_come_as_such_and_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    write(path)
    monkeypatch.chdir(tmp_path)
    assert Options(profile=Path("mine.toml")).globs == ("br-*",)
    write(path, names='["veth*"]')
    assert Options(profile="./mine.toml").globs == ("veth*",)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"names": "[br-*]"}, "is not TOML: "),
        ({"names": '["br-*"'}, "is not TOML: "),
        ({"names": '["br-*"]\nnames = []'}, "is not TOML: "),
        ({"names": "[" * 5000}, "is nested too deeply"),
        # A key that is not read protects nothing.
        ({"protect": '["br-x"]'}, "there is no key 'protect': keys are names, prefixes, protected, comments"),
        ({"a.b": "1"}, "there is no key 'a'"),
        ({'"\\n"': "1"}, r"there is no key '\n'"),
        ({"names": '"br-*"'}, "names has to be a list of texts, not 'br-*'"),
        ({"names": "[1]"}, "names cannot be 1: give a text in one line that is not blank"),
        ({"names": '["br-*", " "]'}, "names cannot be ' ': give a text"),
        ({"names": '["br-*\\n"]'}, r"names cannot be 'br-*\n': give a text in one line"),
        ({"comments": '["a {name}", ["b"]]'}, "comments cannot be ['b']: give a text"),
        ({"about": "[]"}, "about cannot be []: give a text"),
        ({"about": '""'}, "about cannot be '': give a text"),
        ({"lock_file": "true"}, "lock_file cannot be True: give a text"),
        ({"lease_file": '"a\\u0000b"'}, "lease_file cannot be"),
        ({"forms": "[]"}, """forms has to be a table, as forms."filter/FORWARD" = ["-i {name} -j ACCEPT"]"""),
        ({"forms": '{ "filter/FORWARD" = "-i {name} -j X" }'}, "forms of 'filter/FORWARD' has to be a list of texts"),
        ({"forms": '{ "filter/FORWARD" = [2] }'}, "forms of 'filter/FORWARD' cannot be 2"),
        ({"forms": '{ "a\\nb" = 1 }'}, r"forms of 'a\nb' has to be a list of texts"),
        # No name at all, nowhere to look, nothing to look for.
        ({"names": None}, "it owns no names: give names or prefixes"),
        ({"names": "[]"}, "it owns no names: give names or prefixes"),
        ({"private": None}, "it does not say where to look: give chains, private or forms"),
        ({"private": None, "comments": '["a {name}"]'}, "it does not say where to look"),
        ({"private": None, "chains": '["filter/FORWARD"]'}, "nothing in it makes a rule ours"),
        ({"private": "[]", "forms": '{ "filter/FORWARD" = [] }'}, "nothing in it makes a rule ours"),
        # Names.
        ({"names": '["b*"]'}, "name 'b*' is too wide"),
        ({"names": '["br-[0-9"]'}, "'br-[0-9' has a bracket that is not closed"),
        ({"names": '["br /"]'}, "'br /' cannot be the name of an interface"),
        ({"names": '["br-01234567890123"]'}, "name 'br-01234567890123' is longer than"),
        ({"prefixes": '["br-*"]'}, "prefix 'br-*' is a pattern"),
        ({"prefixes": '["eth"]'}, "prefix 'eth' owns eth0 and eth1"),
        ({"protected": '["h*"]'}, "'h*' cannot be a protected prefix"),
        # Chains, wherever they stand.
        ({"chains": '["FORWARD"]'}, "invalid chain 'FORWARD': give TABLE/CHAIN"),
        ({"private": '["ip6/filter/X"]'}, "invalid chain 'ip6/filter/X': a family is followed by a colon"),
        ({"chains": '["a/b"]', "private": '["raw/["]'}, "'[' has a bracket that is not closed"),
        ({"never": '["arp:filter/X"]'}, "invalid chain 'arp:filter/X': families are ipv4, ipv6 and inet"),
        ({"chains": '["a/b"]', "forms": '{ "X" = ["-i {name} -j X"] }'}, "invalid chain 'X'"),
        # Forms and comments.
        ({"forms": '{ "a/b" = ["-i {name}"] }'}, "'-i {name}' is not the form of a rule: it has no target"),
        ({"forms": '{ "a/b" = ["! -i {name} -j DROP"] }'}, "'! -i {name} -j DROP' is not the form of a rule"),
        ({"comments": '["docker"]'}, "the comment 'docker' has to hold {name} once"),
        ({"comments": '["{role}-{role}-{name}"]'}, "{role} at most once"),
        ({"names": '["ab*c*d*e*"]'}, "'ab*c*d*e*' has more than 3 stars"),
        ({"comments": '["{name} {name}"]'}, "the comment '{name} {name}' has to hold {name} once"),
        ({"comments": '["{role} {role} {name}"]'}, "{role} at most once"),
        # Where the name begins and ends has to be told.
        ({"comments": '["x{name}"]'}, "has a letter, a digit or {role} next to {name}"),
        ({"comments": '["{name}0"]'}, "has a letter, a digit or {role} next to {name}"),
        ({"comments": '["{role}{name}"]'}, "has a letter, a digit or {role} next to {name}"),
        ({"comments": '["{Name}"]'}, "the comment '{Name}' has to hold {name} once"),
        # Times.
        ({"settle": '"2"'}, "settle has to be a number of seconds from 0 to 3600, not '2'"),
        ({"settle": "true"}, "settle has to be a number of seconds from 0 to 3600, not True"),
        ({"settle": "-1"}, "settle has to be a number of seconds from 0 to 3600, not -1"),
        ({"settle": "nan"}, "settle has to be a number of seconds from 0 to 3600, not nan"),
        ({"settle": "inf"}, "settle has to be a number of seconds from 0 to 3600, not inf"),
        ({"min_age": "3600"}, "min_age cannot be 3600: give a text"),
        ({"min_age": '"an hour"'}, "'an hour' is not a time as 90s, 20m, 1h30m or 2d"),
        ({"min_age": '"-1h"'}, "'-1h' is not a time as 90s"),
        ({"min_age": '" "'}, "min_age cannot be ' ': give a text"),
        ({"subnets": "[]"}, "subnets cannot be []: give a text"),
        ({"settle": "1979-05-27"}, "settle has to be a number of seconds from 0 to 3600"),
    ],
)
def test_each_thing_that_is_wrong_in_a_profile_is_told(lines: dict[str, str | None], said: str, tmp_path: Path) -> None:
    name = write(tmp_path / "mine.toml", **lines)
    refused = refusal(name)
    assert refused.startswith(f"profile {name!a}")
    assert said in refused


def test_a_name_without_a_slash_is_one_of_ours_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine.toml")
    monkeypatch.chdir(tmp_path)
    for name in ("nosuch", "mine.toml", "docker.toml", "__init__", "..", "\x1b"):
        assert refusal(name) == (
            f"there is no profile {name!a}: give hypeman, docker, libvirt, lxc, lxd, or the path of a file, "
            "as ./mine.toml"
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"names = ['\xff']", "is not UTF-8 text"),
        ("names = ['br-*']".encode("utf-16"), "is not UTF-8 text"),
        (b"#" * ((1 << 16) + 1), "is larger than 65,536 bytes"),
        (b"#" * (1 << 16), "it owns no names"),
        (b"", "it owns no names"),
        (b"\0", "is not TOML"),
    ],
    ids=["bytes", "UTF-16", "too large", "as large as may be", "empty", "NUL"],
)
def test_a_file_that_is_no_profile_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "it's\n.toml"
    path.write_bytes(content)
    assert said in refusal(str(path))


def test_a_path_where_there_is_no_regular_file_is_told_and_nothing_hangs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert refusal(str(path)).endswith("cannot be read: No such file or directory")
    assert refusal(f"{tmp_path}/").endswith("cannot be read: Is a directory")
    assert refusal("/dev/null").endswith("cannot be read: it is not a regular file")
    os.mkfifo(path)
    assert refusal(str(path)).endswith("cannot be read: it is not a regular file")
    # Somebody writes to it, and is not done.
    writer = os.open(path, os.O_RDWR)
    try:
        os.write(writer, b'names = ["br-*"]\nprivate = ["*/*"]\n')
        assert refusal(str(path)).endswith("cannot be read: it is not a regular file")
    finally:
        os.close(writer)


def test_a_link_to_a_profile_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "mine.toml")
    (tmp_path / "link").symlink_to("mine.toml")
    assert profiles.load(str(tmp_path / "link")).names == ("br-*",)


# Times.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("0", 0),
        ("0.5", 0.5),
        ("1.5s", 1.5),
        ("20m", 1200),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h30", 3630),
        ("2d", 172_800),
        ("1d2h3m4.5s", 93_784.5),
        ("90m", 5400),
        (" 1h\n", 3600),
        ("007", 7),
    ],
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert profiles.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "h", "1x", "-1", "-1h", "+1", "1 h", "1h 30m", "30m1h", "1h1h", "1.5h", "1e3", "nan", "inf", "1H", "1,5"],
)
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time as 90s, 20m, 1h30m or 2d") as raised:
        profiles.duration(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("digit", ["\u0663", "\uff13", "\u00b3"])
@pytest.mark.parametrize("text", ["{}", "{}d", "1d{}h", "{}m", "1h3{}", "0.{}", "{}.5s"])
def test_a_time_is_written_in_digits_of_ascii(text: str, digit: str) -> None:
    with pytest.raises(ValueError, match="is not a time as 90s, 20m, 1h30m or 2d"):
        profiles.duration(text.format(digit))


def test_how_old_a_bridge_has_to_be_may_stand_in_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", min_age='"1h30m"', subnets='"10.1.0.0-10.1.3.255"')
    assert (profiles.load(path).min_age, profiles.load(path).subnets) == (5400.0, "10.1.0.0-10.1.3.255")
    assert Options(profile=path).min_age == 5400.0
    assert Options(profile=path, min_age=0).min_age == 0.0
