"""Whether the kernel has nf_tables, found out without loading it."""

from __future__ import annotations

import os


def kernel_has_nf_tables() -> bool:
    """Say whether nf_tables is there already, so that asking it for tables loads no module."""
    try:
        with open("/proc/modules", encoding="ascii", errors="replace") as modules:
            if any(line.startswith("nf_tables ") for line in modules):
                return True
    except FileNotFoundError:
        # A kernel without loadable modules: whatever it has is there.
        return True
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.builtin", encoding="utf-8", errors="replace") as builtin:
            return any("/nf_tables.ko" in line for line in builtin)
    except OSError:
        # A container without the host's directory of modules. The kernel's own list of symbols is long,
        # so it comes last.
        with open("/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
            return any(line.split()[2:3] == ["nft_do_chain"] for line in symbols)
