"""Whose name a name is, and what a comment says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.model import Interface
from netsweep.policy.names import Names
from netsweep.policy.patterns import expression_of

OURS = Names(["hm"], ["ha"], ["hypeman-{role}-{name}"])


@pytest.mark.parametrize(
    ("name", "owned"),
    [
        ("hm1", True),
        ("hm3fa2001", True),
        ("hm0123456789abc", True),
        ("hm0123456789abcd", False),  # no interface has a name of 16 letters
        ("hm", False),
        ("hmvpn0", False),
        ("hmDEAD", False),
        ("xhm12", False),
        ("hm1\n", False),
        ("hm\N{FULLWIDTH DIGIT ONE}", False),
        ("ha1", False),
        ("", False),
    ],
)
def test_a_name_of_ours_is_a_prefix_and_hex_digits_as_a_whole(name: str, owned: bool) -> None:
    assert OURS.owns(name) is owned


@pytest.mark.parametrize(
    ("comment", "owner", "protected"),
    [
        ("hypeman-nat-hm1", "hm1", None),
        ("hypeman-fwd-out-hm1", "hm1", None),
        ("hypeman-a-b-c-d-hm1", "hm1", None),
        ("hypeman-nat-ha12", None, "ha12"),
        ("hypeman-fwd-in-haproxy0", None, "haproxy0"),
        ("hypeman-nat-hm1 ", None, None),
        ("hypeman-nat-hm1\n", None, None),
        (" hypeman-nat-hm1", None, None),
        ("hypeman-nat-hm1-old", None, None),
        ("hypeman-nat-hmvpn0", None, None),
        ("hypeman-NAT-hm1", None, None),
        ("hypeman--hm1", None, None),
        ("hypeman-hm1", None, None),
        ("hypeman-nat2-hm1", None, None),
        ("hypeman nat hm1", None, None),
        ("xhypeman-nat-hm1", None, None),
        ("hypeman-nat-hm0123456789abcd", None, None),
        ("hypeman-nat-hm1, hypeman-nat-hm1", None, None),
        ("hm1", None, None),
        ("ha1", None, None),
        ("traffic to haproxy", None, None),
        ("web tier has moved", None, None),
        ("", None, None),
    ],
)
def test_a_comment_belongs_to_an_interface_by_a_whole_form_only(
    comment: str, owner: str | None, protected: str | None
) -> None:
    assert (OURS.owner(comment), OURS.protected_owner(comment)) == (owner, protected)


@pytest.mark.parametrize(
    ("comment", "mentioned"),
    [
        ("admin UI only over hm3f2a001", ["hm3f2a001"]),
        ("hypeman-nat-hm1", ["hm1"]),
        ("hm1,hm2;(hm3)_hm4\nhm5.", ["hm1", "hm2", "hm3", "hm4", "hm5"]),
        ("hm1", ["hm1"]),
        ("xhm1 9hm2 \xe9hm3 hm4x hm5\xe9", []),
        ("\udce9hm1 hm2\udce9", []),  # a byte that is no UTF-8 may have been a letter
        ("\udcff-hm1", ["hm1"]),
        ("hm0123456789abc hm0123456789abcd", ["hm0123456789abc"]),
        ("hmvpn0 hmDEAD hm", []),
        ("hmabhm1", []),
    ],
)
def test_names_are_found_as_words_anywhere_in_a_comment(comment: str, mentioned: list[str]) -> None:
    assert OURS.mentioned(comment) == mentioned


def test_a_name_may_begin_within_another() -> None:
    assert Names(["be-"], [], []).mentioned("be-be-1") == ["be-be", "be-1"]


@pytest.mark.parametrize(
    ("wildcard", "overlaps"), [("", True), ("h", True), ("hm", True), ("hmdea", True), ("haz", True), ("eth", False)]
)
def test_a_wildcard_overlaps_where_it_may_match_one_of_ours_or_a_protected_one(wildcard: str, overlaps: bool) -> None:
    assert OURS.overlaps(Interface(wildcard, wildcard=True)) is overlaps


def test_prefixes_are_literal_and_a_protected_name_is_never_ours() -> None:
    several = Names(["hm", "br-", "v.m"], ["hmdead"], ["{name}", "[{role}] {name}"])
    assert [name for name in ("hm1", "br-3fa", "v.m1", "vxm1", "hmdead", "hmdead1") if several.owns(name)] == [
        "hm1",
        "br-3fa",
        "v.m1",
    ]
    assert [several.owner(text) for text in ("br-3fa", "[a-b] v.m1", "[] v.m1", "hmdead1")] == [
        "br-3fa",
        "v.m1",
        None,
        None,
    ]
    assert several.mentioned("on br-3fa and vxm1") == ["br-3fa"]


def test_without_protected_prefixes_and_forms_nothing_is_protected_and_no_comment_is_ours() -> None:
    bare = Names(["hm"], [], [])
    assert not bare.protects("ha1")
    assert bare.owns("hm1")
    assert (bare.owner("hypeman-nat-hm1"), bare.protected_owner("hypeman-nat-ha1")) == (None, None)
    assert bare.mentioned("hypeman-nat-hm1") == ["hm1"]


def test_every_prefix_and_every_protected_one_is_a_hint() -> None:
    assert Names(["hm", "vm"], ["ha"], []).prefilter == (b"hm", b"vm", b"ha")


def test_resembling_is_holding_a_prefix_anywhere() -> None:
    assert [text for text in ("hmvpn0", "xhm12", "HM1", "docker0") if OURS.resembles(text)] == ["hmvpn0", "xhm12"]


# Globs.

GLOBS = ("virbr[0-9]*", "wgcorp", "tap*-1c", "br-????????????", "hm-a-*", "hm-*", "a-b*", "b-c*")
GLOBBED = Names([], ["tap-x"], ["net {name}", "[{role}] {name}"], GLOBS)
BOTH = Names(["hm"], ["ha"], ["hypeman-{role}-{name}"], ["wgcorp", "hmnet*"])


@pytest.mark.parametrize(
    ("name", "owned"),
    [
        ("virbr0", True),
        ("virbr0-nic", True),
        ("virbr", False),
        ("xvirbr0", False),
        ("wgcorp", True),
        ("wgcorp0", False),
        ("tap0-1c", True),
        ("tap-x-1c", False),  # protected
        ("br-0123456789ab", True),
        ("br-0123456789a", False),
        ("virbr0123456789", True),
        ("virbr01234567890", False),  # no interface has a name of 16 letters
        ("virbr0\n", False),
        ("virbr0 1", False),
        ("virbr0/1", False),
        ("hm1", False),
        ("", False),
    ],
)
def test_a_name_of_ours_has_a_glob_as_a_whole(name: str, owned: bool) -> None:
    assert GLOBBED.owns(name) is owned


def test_prefixes_and_globs_own_side_by_side() -> None:
    names = ["hm1", "hmnet", "hmnetz", "wgcorp", "hmz", "ha1", "wgcorp1"]
    assert [name for name in names if BOTH.owns(name)] == ["hm1", "hmnet", "hmnetz", "wgcorp"]


def test_a_protected_prefix_wins_over_a_glob() -> None:
    hostile = Names([], ["docker", "vir"], ["net {name}"], ["docker_gwbridge", "virbr*"])
    assert not hostile.owns("docker_gwbridge")
    assert not hostile.owns("virbr0")
    assert hostile.protects("virbr0")
    assert (hostile.owner("net virbr0"), hostile.protected_owner("net virbr0")) == (None, "virbr0")


@pytest.mark.parametrize(
    ("comment", "owner"),
    [
        ("net virbr0", "virbr0"),
        ("[a-b] tap0-1c", "tap0-1c"),
        ("net br-0123456789ab", "br-0123456789ab"),
        ("net wgcorp", "wgcorp"),
        ("net wgcorp0", None),
        ("net virbr0 ", None),
        ("net virbr0\n", None),
        ("net virbr0 and more", None),
        ("the net virbr0", None),
        ("net virbr01234567890", None),
        ("net hm1", None),
        ("net tap-x-1c", None),
        ("virbr0", None),
    ],
)
def test_a_comment_belongs_to_a_name_of_a_glob_by_a_whole_form_only(comment: str, owner: str | None) -> None:
    assert GLOBBED.owner(comment) == owner


@pytest.mark.parametrize(
    ("comment", "mentioned"),
    [
        ("guests of virbr0", {"virbr0"}),
        ("virbr0: guests", {"virbr0"}),
        # What a wildcard takes in and what only follows cannot be told apart.
        ("(virbr0)", {"virbr0", "virbr0)"}),
        ("virbr0-nic", {"virbr0", "virbr0-nic"}),
        ("virbr0.", {"virbr0", "virbr0."}),
        ("virbr0, virbr1", {"virbr0", "virbr0,", "virbr1"}),
        ("virbr0_x", {"virbr0", "virbr0_x"}),
        ("tap0-1c", {"tap0-1c"}),
        ("tap0-1c-1c", {"tap0-1c", "tap0-1c-1c"}),
        ("tap0-1cx", set()),
        ("xvirbr0 9virbr1 \xe9virbr2", set()),
        ("wgcorp wgcorp1 1wgcorp \xe9wgcorp wgcorp\xe9", {"wgcorp"}),
        ("\udce9wgcorp", set()),  # a byte that is no UTF-8 may have been a letter
        ("wgcorp\udce9", set()),
        ("wgcorp-\udce9", {"wgcorp"}),
        ("br-0123456789ab br-0123456789abc", {"br-0123456789ab"}),
        ("virbr0123456789012", set()),
        ("virbr0-456789-0-9", {"virbr0", "virbr0-456789", "virbr0-456789-0"}),
        # Beginnings that overlap.
        ("hm-a-b", {"hm-a", "hm-a-b", "a-b"}),
        ("a-b-c1", {"a-b", "a-b-c1", "b-c1"}),
        ("hm-hm-1", {"hm-hm", "hm-hm-1", "hm-1"}),
        ("virbr", set()),
    ],
)
def test_names_of_globs_are_found_wherever_they_may_stand(comment: str, mentioned: set[str]) -> None:
    assert set(GLOBBED.mentioned(comment)) == mentioned


def test_names_of_prefixes_and_of_globs_are_mentioned_alike() -> None:
    assert set(BOTH.mentioned("hm1 and wgcorp, hmnet-2")) == {"hm1", "wgcorp", "hmnet", "hmnet-2"}


names_of_globs = st.sampled_from(GLOBS).flatmap(
    lambda glob: st.from_regex(expression_of(glob, "[0-9a-b.-]"), fullmatch=True)
)
owned_names = names_of_globs.filter(GLOBBED.owns)
outside = owned_names.map("{}-".format) | st.text("ab1-._ ,:\n\xe9\udcff", max_size=8)


def is_apart(before: str, after: str) -> bool:
    """Whether a name between these is a word of its own."""
    letter = r"[^\W_]|[\udc80-\udcff]"
    return not re.search(rf"(?:{letter})\Z", before) and not re.match(letter, after)


@given(outside, owned_names, outside)
def test_a_name_that_is_a_word_of_its_own_is_mentioned_in_any_text(before: str, name: str, after: str) -> None:
    assert (name in GLOBBED.mentioned(f"{before}{name}{after}")) or not is_apart(before, after)


@given(outside, owned_names, outside)
def test_what_is_mentioned_stands_there_as_a_word_of_its_own(before: str, name: str, after: str) -> None:
    text = f"{before}{name}{after}"
    for mentioned in GLOBBED.mentioned(text):
        places = [place.start() for place in re.finditer(f"(?={re.escape(mentioned)})", text)]
        assert any(is_apart(text[:at], text[at + len(mentioned) :]) for at in places)


@given(owned_names | st.from_regex(r"hm[0-9a-f]+", fullmatch=True) | st.text(max_size=8), st.text(max_size=4))
def test_every_name_of_ours_and_every_protected_one_holds_a_hint(name: str, more: str) -> None:
    """Backends leave out the rules that hold none."""
    for names in (GLOBBED, BOTH, OURS):
        for each in (name, *(protected + more for protected in names.protected)):
            if names.owns(each) or names.protects(each):
                assert any(hint in each.encode("utf-8", "surrogateescape") for hint in names.prefilter)


def test_beginnings_of_globs_are_hints_and_resemble() -> None:
    assert BOTH.prefilter == (b"hm", b"wgcorp", b"hmnet", b"ha")
    assert [text for text in ("virbrx", "on tap0", "br-lan", "eth0") if GLOBBED.resembles(text)] == [
        "virbrx",
        "on tap0",
        "br-lan",
    ]


@pytest.mark.parametrize(
    ("wildcard", "overlaps"), [("virb", True), ("virbr1", True), ("tap", True), ("b", True), ("", True), ("eth", False)]
)
def test_a_wildcard_overlaps_where_it_may_match_a_name_of_a_glob(wildcard: str, overlaps: bool) -> None:
    assert GLOBBED.overlaps(Interface(wildcard, wildcard=True)) is overlaps
