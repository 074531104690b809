from __future__ import annotations

import asyncio
import signal

import click
import pytest

from netsweep.__main__ import Signalled


def stop() -> None:
    raise Signalled(signal.SIGTERM)


def test_a_signal_gets_through_asyncio_which_ends_most_exceptions_in_callbacks() -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.call_soon(stop)
        with pytest.raises(Signalled) as stopped:
            loop.run_forever()
    finally:
        loop.close()
    assert stopped.value.exit_status == 143


def test_a_signal_gets_through_click() -> None:
    with pytest.raises(Signalled):
        click.Command("stop", callback=stop).main([], standalone_mode=False)
