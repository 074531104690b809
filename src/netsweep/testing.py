"""For tests of programs that use netsweep: a firewall in memory that refuses what a kernel refuses."""

from netsweep.errors import ContentionError
from netsweep.firewall.memory import MemoryBackend

__all__ = ["ContentionError", "MemoryBackend"]
