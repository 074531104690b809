"""x_tables (``iptables-legacy``) through python-iptables' bindings of libiptc."""

from netsweep.firewall.xtables.transport import XtablesBackend

__all__ = ["XtablesBackend"]
