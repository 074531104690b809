"""The profile that netsweep brings along."""

from __future__ import annotations

import pytest

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.policy.names import Names


def test_the_default_profile_is_that_of_the_test_harness() -> None:
    profile = profiles.load()
    assert profile == profiles.load(profiles.DEFAULT)
    assert (profile.prefixes, profile.protected) == (("hm",), ("ha",))
    assert profile.chains == ("filter/FORWARD", "nat/POSTROUTING")
    assert profile.lock_file == "$TMPDIR/hypeman-test-network.lock"
    assert profile.lease_file == "$TMPDIR/hypeman-test-network-leases.json"


@pytest.mark.parametrize("role", ["fwd-out", "fwd-in", "nat", "gateway", "input", "output"])
def test_its_forms_are_those_of_the_comments_that_the_test_harness_writes(role: str) -> None:
    profile = profiles.load()
    names = Names(profile.prefixes, profile.protected, profile.comments)
    assert names.owner(f"hypeman-{role}-hm3fa2001") == "hm3fa2001"
    assert names.protected_owner(f"hypeman-{role}-ha12") == "ha12"


def test_a_profile_that_is_not_there_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"there is no profile 'nosuch'"):
        profiles.load("nosuch")
