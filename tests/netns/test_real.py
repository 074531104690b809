"""Rule sets that real software left behind, each in a namespace: what is dead goes, and nothing else.

The rule sets are in tests/real. What is dead there is told by regular expressions on the text of rules, which have
nothing in common with how netsweep decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import netsweep
from netsweep import profiles
from tests.namespace import FLAVOURS, Namespace, in_process, new_namespace
from tests.rulesets import OF_IPTABLES, Snapshot, found, gone, is_rule, restored, snapshot, swept

REAL = Path(__file__).parent.parent / "real"

THEIRS = r"table inet firewalld|-A (?:ufw|\w+_ZONES|\w+_direct|FWD\w*_|IN_)"
"""Tables and chains of firewalld and ufw."""


class Software(NamedTuple):
    """The profile for one kind of software, the names that its user chose, and which rules are dead.

    ``dead`` is searched for in a rule's text, and ``alive`` in its place and text; LIVE is the only bridge that
    Docker has left.
    """

    profile: str
    names: tuple[str, ...] = ()
    dead: str = r"(?!)"
    alive: str = r"(?!)"


BESIDE_DOCKER = Software(
    "docker", (), r"docker0|br-(?!LIVE|0123456789ab|100)[0-9a-f]|172\.(17|18|19|20)\.0\.", rf"LIVE|{THEIRS}"
)
LXD = Software("lxd", ("incusbr-ci",), r"lxdbr[01]|incusbr|10\.3[345]\.|fd00:33", r"lxdbr9|10\.39|fd00:39")
OF: dict[str, Software] = {
    "docker": Software(
        "docker",
        ("mybr0",),
        r"docker0|mybr0|br-(?!LIVE)|172\.(17|19|2[0-9]|3[01])\.0\.|fd00:",
        r"LIVE|172\.18\.0\.",
    ),
    "libvirt": Software(
        "libvirt",
        ("br-ci7f3a",),
        r"virbr[0-8]|br-ci7f3a|192\.168\.(122|10[1-5]|121)\.|fd00:|vnet[12]",
        r"virbr9|192\.168\.109|vnet0",
    ),
    "lxd": LXD,
    "incus": LXD,
    "lxc": Software("lxc", (), r"lxcbr[01]|10\.0\.[34]\.|fd00:[34]", r"lxcbr9|10\.0\.9|fd00:9"),
    "firewalld": BESIDE_DOCKER,
    "ufw": BESIDE_DOCKER,
    # These tie their rules to containers and subnets, not to interfaces.
    "podman": Software("docker"),
    "cni": Software("docker"),
}


class Dump(NamedTuple):
    """One directory of tests/real, how many of its rules are dead, and how many of these have to go at least.

    ``lost``: a journal could not bring them back, as some have sets without a name.
    """

    name: str
    dead: int = 0
    goes: int = 0
    lost: bool = False


DUMPS = (
    Dump("cni-1.1-legacy"),
    Dump("cni-1.9-nft"),
    # Hairpin rules match addresses only.
    Dump("docker-20.10-legacy", 122, 109),
    Dump("docker-28.5-nft", 156, 156),
    Dump("firewalld-1.3-legacy-iptables", 43, 40),
    Dump("firewalld-1.3-nft-nftables", 43, 40),
    # NAT rules match subnets, and some of them a set.
    Dump("incus-7.0-nft", 70, 59, lost=True),
    # NAT rules match subnets. In the second one a guest lives whose rules count as dead.
    Dump("libvirt-9.0-legacy", 123, 99),
    Dump("libvirt-12.8-nft", 133, 99),
    # Its own tables match by number, which tells no name: here these count as dead where they name a subnet.
    Dump("libvirt-12.8-nft-nftables", 46, 4),
    Dump("lxc-5.0-nft-usenft-false", 18, 14),
    Dump("lxc-7.0-nft-usenft-true", 6, 4, lost=True),
    Dump("lxd-5.0-nft-xtables", 142, 140),
    Dump("podman-5.4-netavark-iptables-nft"),
    Dump("podman-5.8-netavark-nftables-nft"),
    Dump("ufw-0.36.2-10-nft", 27, 27),
)


TABLE = re.compile(r"^table .*?^\}\n", re.MULTILINE | re.DOTALL)


class Host:
    """A namespace with the interfaces of a dump, and its rules in one of the two firewalls."""

    def __init__(self, ns: Namespace, dump: Dump, flavour: str) -> None:
        self.ns = ns
        self.dump = dump
        self.flavour = flavour
        self.software = OF[dump.name.partition("-")[0]]
        directory = REAL / dump.name
        addresses = (directory / "ip-addr.txt").read_text()
        self.interfaces = [re.split("[ @]", line)[0] for line in addresses.splitlines()[1:]]
        self.saves = {path.name.partition("-")[0]: path.read_text() for path in sorted(directory.glob("*-save.txt"))}
        native = [table for path in directory.glob("nft-*") for table in TABLE.findall(path.read_text())]
        # nft 1.0.6 takes that name at prerouting only.
        self.native = "".join(table for table in native if not OF_IPTABLES.match(table)).replace(
            "hook output priority dstnat", "hook output priority -100"
        )
        bridges = set(re.findall(r"\bbr-[0-9a-f]{12}\b", addresses))
        self.live = next(iter(bridges), "nothing")

    def load(self) -> Snapshot:
        """Put the rules of the dump in the place of those that are there."""
        self.ns.run("nft", "-f", "-", input=f"flush ruleset\n{self.native}")
        for tool, rules in self.saves.items():
            self.ns.run(f"{tool}-{self.flavour}-restore", "--counters", input=rules)
        return snapshot(self.ns)

    @property
    def own(self) -> dict[str, Any]:
        """The options for this software, with the names that its user chose."""
        return {"profile": self.software.profile, "name": self.software.names, "settle": 0}

    def is_dead(self, line: str) -> bool:
        """Whether a line that has its place in front is a dead rule."""
        place, _, text = line.partition(": ")
        alive = self.software.alive.replace("LIVE", self.live)
        return bool(
            is_rule(line)
            and not OF_IPTABLES.match(place)
            and re.search(self.software.dead.replace("LIVE", self.live.removeprefix("br-")), text)
            and not re.search(alive, line)
        )


def loads(*, both: bool) -> Iterator[Any]:
    """Every dump in the firewall that it is from; with ``both``, where all of it is iptables', in the other one too."""
    for dump in DUMPS:
        own = "legacy" if "legacy" in dump.name else "nft"
        yield pytest.param((dump, own), id=dump.name)
        if both and not any((REAL / dump.name).glob("nft-*")):
            other = FLAVOURS[FLAVOURS.index(own) - 1]
            yield pytest.param((dump, other), id=f"{dump.name}-in-{other}")


EACH = pytest.mark.parametrize("loaded", list(loads(both=False)), indirect=True)
EACH_IN_BOTH = pytest.mark.parametrize("loaded", list(loads(both=True)), indirect=True)


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    dump, flavour = request.param
    with new_namespace(tmp_path_factory.mktemp(dump.name)) as ns:
        host = Host(ns, dump, flavour)
        ns.add_bridges(*host.interfaces)
        yield host


@pytest.fixture
def host(loaded: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    in_process(loaded.ns, monkeypatch)
    return loaded


WIDEST = {"all_chains": True, "include_negated": True}


@EACH_IN_BOTH
@pytest.mark.parametrize("options", [{}, WIDEST], ids=["as it is", "with the widest options"])
def test_under_its_profile_what_is_dead_goes_and_all_else_stays_as_it_was(host: Host, options: dict[str, bool]) -> None:
    before = host.load()
    assert sum(map(is_rule, before.saved)) == sum(text.count("] -A ") for text in host.saves.values())
    assert sum(map(host.is_dead, (*before.saved, *before.listed))) == host.dump.dead

    report = swept(host.ns, **host.own, **options)
    after = snapshot(host.ns)
    saved, listed = gone(before.saved, after.saved), gone(before.listed, after.listed)
    # nft shows the rules of iptables-nft too, with no more than their handles here.
    native = [line for line in listed if not OF_IPTABLES.match(line)]
    assert [line for line in (*saved, *native) if not host.is_dead(line)] == []
    assert all(map(is_rule, listed))
    assert len(saved) + len(native) == report.deleted == len(report.orphans) >= host.dump.goes
    assert len(listed) == sum(backend.deleted for backend in report.backends if backend.name == "nft")
    assert report.warnings == []


@EACH
def test_what_its_profile_sweeps_stands_in_the_chains_that_it_looks_at(host: Host) -> None:
    host.load()
    report, everywhere = found(host.ns, **host.own), found(host.ns, **host.own, all_chains=True)
    assert (len(report.orphans), report.elsewhere) == (len(everywhere.orphans), 0)


@EACH
def test_a_journal_brings_back_all_that_went_where_it_stood(host: Host, tmp_path: Path) -> None:
    before = host.load()
    journal = tmp_path / "journal"
    if host.dump.lost:
        with pytest.raises(netsweep.NetsweepError, match=r"uses the set __set\d+, which is deleted with"):
            swept(host.ns, **host.own, journal=journal)
        assert snapshot(host.ns) == before
        return
    report = swept(host.ns, **host.own, journal=journal)
    assert report.deleted >= host.dump.goes
    if report.deleted:
        assert snapshot(host.ns).without_counters != before.without_counters
        assert restored(host.ns, journal) == report.deleted
    assert snapshot(host.ns).without_counters == before.without_counters


@EACH
def test_the_default_profile_finds_nothing_and_changes_nothing(host: Host) -> None:
    before = host.load()
    for options in dict[str, bool](), {"all_chains": True}, WIDEST:
        report = swept(host.ns, **options)
        assert (report.deleted, report.orphans) == (0, [])
    assert snapshot(host.ns) == before


@EACH
def test_profiles_for_other_software_find_nothing_and_change_nothing(host: Host) -> None:
    before = host.load()
    others = set(profiles.available()) - {profiles.DEFAULT, host.software.profile}
    assert len(others) == 3
    for profile in others:
        report = swept(host.ns, profile=profile, settle=0, **WIDEST)
        assert (report.deleted, report.orphans) == (0, [])
    assert snapshot(host.ns) == before


NAMED = re.compile(r"(?:-[io]|--physdev-(?:in|out)|[io]ifname(?: !=)?) \"?([\w.-]+)")
"""An interface that a rule matches by name."""


@pytest.mark.parametrize("dump", [dump for dump in DUMPS if dump.goes], ids=lambda dump: str(dump.name))
def test_where_all_of_its_networks_live_nothing_goes(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, dump: Dump
) -> None:
    in_process(ns, monkeypatch)
    host = Host(ns, dump, "legacy" if "legacy" in dump.name else "nft")
    rules = "\n".join([*host.saves.values(), host.native])
    ns.add_bridges(*{*NAMED.findall(rules), *host.interfaces} - {"lo"})
    before = host.load()
    report = swept(host.ns, **host.own, **WIDEST)
    assert (report.deleted, report.orphans) == (0, [])
    assert snapshot(host.ns) == before
