"""Whose name a name is, and what a comment says."""

from __future__ import annotations

import pytest

from netsweep.model import Interface
from netsweep.policy.names import Names

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
