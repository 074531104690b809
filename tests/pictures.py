"""Pictures of what netsweep shows at a terminal, made of its real output.

``python -m tests.pictures`` writes docs/sweep.svg; with a directory, it writes pictures of every screen there, at 80
and 120 columns, dark and light, to be looked at. Runs as root: the commands run in a network namespace that is made
for them.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.namespace import NETSWEEP, Namespace, leaks, new_namespace, restore_input, write_leases
from tests.terminal import at_terminal

PICTURE = Path(__file__).parents[1] / "docs" / "sweep.svg"

_NORMAL = [(23, 20, 33), (192, 28, 40), (38, 162, 105), (162, 115, 76)]
_NORMAL += [(18, 72, 139), (163, 71, 186), (42, 161, 179), (208, 207, 204)]
_BRIGHT = [(94, 92, 100), (246, 97, 81), (51, 209, 122), (233, 173, 12)]
_BRIGHT += [(42, 123, 222), (192, 97, 203), (51, 199, 222), (255, 255, 255)]
DARK = TerminalTheme((23, 20, 33), (208, 207, 204), _NORMAL, _BRIGHT)
LIGHT = TerminalTheme((255, 255, 255), (23, 20, 33), _NORMAL, _BRIGHT)
"""The colours of GNOME Terminal."""

MESS = {
    "filter": [
        "-A FORWARD -i hm3fa2000 -o eth0 -m comment --comment hypeman-fwd-out-hm3fa2000 -j ACCEPT",
        "-A FORWARD -i eth0 -o hm3fa2000 -m comment --comment hypeman-fwd-in-hm3fa2000 -j ACCEPT",
        "-A FORWARD -i ha12 -o eth0 -m comment --comment hypeman-fwd-out-ha12 -j ACCEPT",
        "-A FORWARD -i hm+ -p tcp -m tcp --dport 22 -j DROP",
        '-A FORWARD -s 192.0.2.0/24 -m comment --comment "keep guests off hm3fa2001" -j DROP',
    ],
    "nat": ["-A POSTROUTING -s 10.200.0.0/24 -o eth0 -m comment --comment hypeman-nat-hm3fa2000 -j MASQUERADE"],
}
"""Rules that stay: of a live bridge, of a real hypeman, of the host's administrator."""

DEAD = [f"hm3fa200{number}" for number in range(1, 5)]


@contextmanager
def mess() -> Iterator[Namespace]:
    """A host with dead and live networks of tests."""
    with tempfile.TemporaryDirectory(prefix="netsweep-") as directory, new_namespace(Path(directory)) as ns:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            ns.environment.pop(name, None)
        ns.environment["TERM"] = "xterm-256color"
        ns.add_bridges("hm3fa2000", "hm3fa2006", "ha12", "eth0")
        ns.run("ip", "address", "add", "10.200.0.1/24", "dev", "hm3fa2000")
        ns.run("ip", "address", "add", "10.200.6.1/24", "dev", "hm3fa2006")
        write_leases(ns, {"hm3fa2000": 1, "hm3fa2006": 4_000_000})
        ns.restore("nft", leaks(DEAD))
        ns.restore("nft", restore_input(MESS))
        ns.restore("legacy", leaks(DEAD[:2]))
        ns.restore("legacy", leaks(DEAD[1:2]), "ipv6", check=False)
        yield ns


def shown(ns: Namespace, columns: int, *arguments: str, status: int = 0) -> Text:
    """What is at the terminal when netsweep has run there."""
    ended, output = at_terminal(ns.command(*NETSWEEP, *arguments), columns, ns.environment)
    if ended != status:
        raise SystemExit(f"netsweep {' '.join(arguments)} exited {ended}: {output}")
    screen = Text().append(f"$ sudo netsweep {' '.join(arguments)}\n", "bold")
    return screen.append_text(Text.from_ansi(output.rstrip("\n")))


def picture(screens: Sequence[Text], columns: int, theme: TerminalTheme) -> str:
    """An SVG of ``screens``; the same for the same screens."""
    console = Console(record=True, width=columns, file=io.StringIO(), legacy_windows=False, color_system="truecolor")
    for number, screen in enumerate(screens):
        console.print("\n" * bool(number), end="")
        for line in screen.split("\n", allow_blank=True):
            # As a terminal breaks a line that is too long.
            for row in line.divide(range(columns, len(line), columns)):
                console.print(row, soft_wrap=True, highlight=False)
    svg = console.export_svg(title="netsweep", theme=theme, unique_id="netsweep")
    # Nothing is to be loaded from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    # Some programs other than browsers drop even no-break spaces.
    return svg.replace("<svg ", '<svg xml:space="preserve" ', 1)


def of_a_sweep() -> str:
    """The picture in the README."""
    with mess() as ns:
        taken = [shown(ns, 80, "list"), shown(ns, 80, "sweep")]
    return picture(taken, 80, DARK)


def screens(columns: int) -> Iterator[tuple[str, list[Text]]]:
    """Every screen with its name."""
    with mess() as ns:
        ns.iptables("nft", "-A", "FORWARD", "!", "-o", DEAD[0], "-j", "RETURN")
        yield "doctor", [shown(ns, columns, "doctor")]
        for arguments in (
            ["list"],
            ["list", "-v"],
            ["list", "--all"],
            ["list", "--bridges"],
            ["list", "--bridges", "--all"],
            ["sweep", "--dry-run"],
        ):
            yield "-".join(arguments).replace("---", "-"), [shown(ns, columns, *arguments)]
        yield "list-plain", [shown(ns, columns, "list", "--color", "never")]
        yield "sweep-wrong", [shown(ns, columns, "sweep", "--prefix", "ha", status=2)]
        yield "teardown", [shown(ns, columns, "teardown", DEAD[0])]
        journal = str(ns.directory / "journal")
        yield "sweep", [shown(ns, columns, "sweep", "--bridges", "--journal", journal)]
        yield "nothing", [shown(ns, columns, "sweep")]
        yield "restore", [shown(ns, columns, "restore", journal)]


def main() -> None:
    """Write the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="where to write pictures of every screen")
    directory = parser.parse_args().directory
    if directory is None:
        PICTURE.write_text(of_a_sweep(), "utf-8")
        return
    directory.mkdir(parents=True, exist_ok=True)
    for columns in (80, 120):
        for name, taken in screens(columns):
            for theme, of in (("dark", DARK), ("light", LIGHT)):
                (directory / f"{name}-{columns}-{theme}.svg").write_text(picture(taken, columns, of), "utf-8")


if __name__ == "__main__":
    main()
