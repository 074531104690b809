"""Which x_tables tables exist, found out without making any."""

from __future__ import annotations

from netsweep.errors import NotPermittedError
from netsweep.model import Family, Table

TABLE_NAMES = {
    Family.IPV4: "/proc/thread-self/net/ip_tables_names",
    Family.IPV6: "/proc/thread-self/net/ip6_tables_names",
    Family.ARP: "/proc/thread-self/net/arp_tables_names",
}
"""The tables of this network namespace, readable by root (net/netfilter/x_tables.c). Where the kernel's
support is not loaded there is no such file. Reading a table through libiptc would make it instead."""


def existing_tables() -> list[Table]:
    """The tables that exist here; raises :class:`NotPermittedError` where the list may not be read."""
    tables = []
    for family, path in TABLE_NAMES.items():
        try:
            with open(path, encoding="ascii") as names:
                tables += [Table("legacy", family, name) for name in names.read().split()]
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise NotPermittedError(
                f"cannot read {path.replace('thread-self/', '')}: run as root, add CAP_DAC_READ_SEARCH, "
                "or leave x_tables out with --backend nft"
            ) from error
    return tables
