"""nf_tables (``iptables-nft`` and ``nft``) through netlink."""

from netsweep.firewall.nftables.transport import NftablesBackend

__all__ = ["NftablesBackend"]
