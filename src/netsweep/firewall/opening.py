"""Open a backend by its name."""

from __future__ import annotations

from collections.abc import Sequence

from netsweep.errors import NoBackendError
from netsweep.firewall import Backend


def open_backend(name: str, prefilter: Sequence[bytes], *, undo: bool = False, writes: bool = False) -> Backend:
    """Open the backend called ``name``.

    ``prefilter``: rules that hold none of these byte strings are counted, not shown. ``undo``: fill
    :attr:`netsweep.model.Rule.undo`. ``writes``: what is read is to be changed then. Each backend is
    imported only here: what a run does not need takes most of its time. Raises :class:`NoBackendError`.
    """
    if name == "legacy":
        from netsweep.firewall.xtables import XtablesBackend

        return XtablesBackend(prefilter, undo=undo)
    if name == "nft":
        from netsweep.firewall.nftables import NftablesBackend

        return NftablesBackend(prefilter, undo=undo, writes=writes)
    raise NoBackendError(f"there is no backend {name!a}")
