"""What a shell offers as root: what is there in this network namespace."""

from __future__ import annotations

import pytest

from tests.namespace import NETSWEEP, NO_NET_ADMIN, Namespace, unchanged


def offered(ns: Namespace, *words: str, before: tuple[str, ...] = ()) -> list[str]:
    """What bash gets to choose from for the last of ``words``."""
    typed = ("netsweep", *words)
    variables = {
        "_NETSWEEP_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    done = ns.run(*before, *NETSWEEP, environment=variables)
    assert done.stderr == ""
    return [value for _, comma, value in (line.partition(",") for line in done.stdout.splitlines()) if comma]


@pytest.fixture
def filled(ns: Namespace) -> Namespace:
    ns.iptables("legacy", "-N", "IN-LEGACY")
    ns.iptables("nft", "-N", "IN-NFT")
    ns.run("nft", "add table inet firewalld; add chain inet firewalld filter_INPUT")
    ns.run("nft", "add table bridge ports; add chain bridge ports FORWARD")
    ns.add_bridges("hm3fa2001", "other0", "other`id`")  # and names that a shell would run, or a terminal obey
    ns.iptables("legacy", "-N", "IN`id`;")
    ns.iptables("legacy", "-N", "IN\x1b[2J")
    return ns


def test_chains_that_exist_are_offered_beside_those_of_iptables(filled: Namespace) -> None:
    with unchanged(filled):
        assert offered(filled, "sweep", "--chain", "filter/IN") == ["filter/IN-LEGACY", "filter/IN-NFT", "filter/INPUT"]
        assert offered(filled, "list", "--chain", "fire") == ["firewalld/filter_INPUT"]
        assert offered(filled, "list", "--chain", "ports") == []
    assert not filled.lock_file.exists()


def test_without_the_capability_those_of_iptables_are_offered(filled: Namespace) -> None:
    assert offered(filled, "sweep", "--chain", "filter/IN", before=NO_NET_ADMIN) == ["filter/INPUT"]


def test_bridges_that_are_ours_are_offered_to_a_teardown(filled: Namespace) -> None:
    assert offered(filled, "teardown", "") == ["hm3fa2001"]
    assert offered(filled, "teardown", "--name", "other*", "o") == ["other0"]
