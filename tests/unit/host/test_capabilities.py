from __future__ import annotations

from pathlib import Path

import pytest

from netsweep.errors import NetsweepError, NotPermittedError
from netsweep.host import capabilities
from netsweep.host.capabilities import CAP_NET_ADMIN, CAP_NET_RAW, effective_capabilities, require_net_admin


@pytest.mark.parametrize(("bits", "allowed"), [(1 << CAP_NET_ADMIN, True), (1 << CAP_NET_RAW, False), (0, False)])
def test_what_the_kernel_says_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, allowed: bool) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tCapEff:\t1\nCapPrm:\tffff\nCapEff:\t{bits:016x}\n")
    monkeypatch.setattr(capabilities, "_STATUS", str(status))
    assert effective_capabilities() == bits
    if allowed:
        require_net_admin()
    else:
        with pytest.raises(NotPermittedError, match="CAP_NET_ADMIN is missing: run as root"):
            require_net_admin()


def test_without_proc_the_error_says_that_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "_STATUS", str(tmp_path / "none"))
    with pytest.raises(NetsweepError, match="No such file or directory; netsweep needs /proc: mount it"):
        require_net_admin()
