"""What doctor finds out about the firewalls of a host, above firewalls in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from netsweep.errors import NetsweepError
from netsweep.firewall.memory import MemoryBackend
from netsweep.jobs import look
from netsweep.jobs.doctor import Diagnosis, diagnose
from netsweep.model import BackendName, Chain, Family, Table
from netsweep.profiles.options import Options
from tests.unit.jobs.host import FORWARD, POSTROUTING, Host, fail


def chain(table: str, name: str, family: Family = Family.IPV4) -> Chain:
    return Chain(Table("nft", family, table), name)


FORWARD6 = chain("filter", "FORWARD", Family.IPV6)
JOBS = chain("jobs", "FORWARD", Family.INET)
BRIDGE = chain("filter", "FORWARD", Family.BRIDGE)


@pytest.fixture(autouse=True)
def no_program_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsweep.jobs.doctor.find_program", lambda _: None)


def backends(found: Diagnosis) -> list[tuple[Any, ...]]:
    return [tuple(each[key] for key in ("name", "family", "tables", "scanned", "owned")) for each in found.backends]


def test_rules_are_counted_by_family_in_the_chains_that_a_sweep_would_look_at(host: Host) -> None:
    host.alive = {"hm1"}
    firewall = host.firewall("hm1", "hmdead", "docker0", "hm+", chains=[FORWARD, POSTROUTING, FORWARD6, JOBS, BRIDGE])
    firewall.leak("hmdead", chain=FORWARD6)
    firewall.leak("hmdead", "hmbee", chain=JOBS)
    found = diagnose(host.options())
    assert backends(found) == [
        ("legacy", "ipv4", [], 0, 0),
        ("nft", "ipv4", ["filter", "nat"], 4, 2),
        ("nft", "ipv6", ["filter"], 1, 1),
        ("nft", "inet", ["jobs"], 0, 0),
    ]
    assert [each["other_tables"] for each in found.backends] == [[], ["bridge filter"], [], []]
    assert (found.orphans, found.elsewhere, found.status) == (2, 2, 0)
    of_one_family = diagnose(host.options(family="ipv4"))
    assert [each[3:] for each in backends(of_one_family)] == [(0, 0), (4, 2), (0, 0), (0, 0)]
    assert (of_one_family.orphans, of_one_family.elsewhere) == (1, 3)
    everywhere = diagnose(host.options(all_chains=True))
    assert [each[3:] for each in backends(everywhere)] == [(0, 0), (4, 2), (1, 1), (2, 2)]
    assert (everywhere.orphans, everywhere.elsewhere) == (4, 0)


def test_what_a_profile_does_not_claim_is_not_counted_as_its_own(host: Host) -> None:
    forward, private = FORWARD, chain("filter", "DOCKER")
    firewall = host.firewall("docker0", chains=[forward, private])
    firewall.leak("docker0", "docker0", chain=private)
    found = diagnose(Options(profile="docker", settle=0))
    assert backends(found)[1] == ("nft", "ipv4", ["filter"], 3, 2)
    assert found.orphans == 2
    assert (found.leases, list(found.locks)) == (None, ["xtables"])


@pytest.mark.parametrize("given", [{}, {"profile": "docker"}, {"chain": "filter/FORWARD", "family": "ipv6"}])
@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (chain("nat", "CNI-DN-0123456789abcdef01234"), "CNI"),
        (chain("nat", "NETAVARK-1D8721804F16F"), "netavark"),
        (chain("netavark", "INPUT", Family.INET), "netavark"),
        (chain("cni_hostport", "hostports", Family.INET), "CNI"),
    ],
)
def test_rules_that_no_interface_tells_are_noted_wherever_they_stand(
    host: Host, given: dict[str, Any], theirs: Chain, said: str
) -> None:
    # They are noted though a rule of ours stands among them.
    host.firewall("hm1", chains=[FORWARD, theirs]).leak("hmdead", chain=theirs)
    (note,) = diagnose(Options(settle=0, **given)).notes
    assert said in note


def test_of_chains_that_anybody_may_have_nothing_is_noted(host: Host) -> None:
    host.firewall(chains=[FORWARD, POSTROUTING, JOBS])
    assert diagnose(host.options()).notes == []


def test_a_firewall_that_cannot_be_read_is_told_and_the_other_is_shown(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.firewall("hm1", name="nft")

    def opened(name: BackendName, prefilter: Sequence[bytes], **options: bool) -> MemoryBackend:
        if name == "legacy":
            fail(NetsweepError("no libip4tc"))()
        return host.open_backend(name, prefilter, **options)

    monkeypatch.setattr(look, "open_backend", opened)
    found = diagnose(host.options())
    assert (found.status, found.errors) == (1, ["no libip4tc"])
    assert backends(found)[0] == ("legacy", "ipv4", None, None, None)
    assert backends(found)[1][:3] == ("nft", "ipv4", ["filter", "nat"])
    assert (found.orphans, found.elsewhere) == (None, None)


def test_looking_takes_no_lock_and_makes_no_file(host: Host) -> None:
    firewall = host.firewall("hmdead")
    assert diagnose(host.options()).orphans == 1
    assert firewall.bridges() == ["hmdead"]
    assert not [event for event in host.events if "lock" in event or "commit" in event]
    assert list(host.directory.iterdir()) == []
