"""What is shown at a real terminal, of a real firewall; and that nothing of it is loaded elsewhere."""

from __future__ import annotations

import html
import re
import sys

import pytest

from tests import pictures
from tests.namespace import NETSWEEP, Namespace, leaks, restore_input, write_leases
from tests.terminal import at_terminal

STYLE = re.compile(r"\x1b\[[0-9;]*m")

LONGEST = ["hm0123456789abc", "hmfedcba9876543"]

COMMENT = "[red]x[/red] :smile: \x1b[31m \u6f22\u5b57 hm1"

STAYS = {
    "filter": [
        "-A FORWARD -i hmace -j ACCEPT",
        f'-A FORWARD -s 192.0.2.0/24 -m comment --comment "{COMMENT}" -j DROP',
        f"-A FORWARD ! -o {LONGEST[0]} -j RETURN",
        "-A FORWARD -i hm+ -j DROP",
        "-A FORWARD -i hm[b]x -j ACCEPT",
        "-A FORWARD -i ha12 -j ACCEPT",
    ]
}


@pytest.fixture
def mess(ns: Namespace) -> Namespace:
    """A host with leaked rules of both backends and families, a leaked bridge, and rules that look odd."""
    for flavour in ("legacy", "nft"):
        ns.restore(flavour, leaks(["hmdead", *LONGEST]))
        ns.restore(flavour, restore_input(STAYS))
    ns.restore("nft", leaks(LONGEST[:1]), "ipv6")
    ns.add_bridges("hmace", "hmbad")
    write_leases(ns, {"hmbad": 4_000_000})
    ns.environment["TERM"] = "xterm"
    return ns


def shown(ns: Namespace, columns: int, *arguments: str, **environment: str) -> str:
    status, text = at_terminal(ns.command(*NETSWEEP, *arguments), columns, {**ns.environment, **environment})
    assert status == 0, text
    return text


LISTS = [
    ["list"],
    ["list", "-v"],
    ["list", "--all", "--bridges"],
    ["list", "--all-chains"],
    ["sweep", "--dry-run"],
]


@pytest.mark.parametrize("arguments", LISTS, ids=" ".join)
def test_what_is_shown_fits_and_breaks_no_word(mess: Namespace, arguments: list[str]) -> None:
    wide = STYLE.sub("", shown(mess, 1000, *arguments)).split()
    for columns in (80, 120, 40):
        text = STYLE.sub("", shown(mess, columns, *arguments))
        assert text.replace("\n", "").replace("─", "-").isascii()
        assert text.replace("\n", "").isprintable(), "what the host holds is no control sequence"
        for line in text.splitlines():
            # Only a path that is too long itself may be longer than a line.
            assert len(line) <= columns or len(line.split()) == 1
            times = r"\(?[\d.]+"
            words = [word for word in line.split() if not re.fullmatch(rf"{times}|m?s|[a-z]+:|─+", word)]
            assert set(words) <= set(wide)
        assert "Found " in text
        assert r"[red]x[/red] :smile: \x1b[31m \u6f22\u5b57 hm1" in " ".join(text.split()) or "--all" not in arguments


def test_a_bridge_is_one_row_and_its_rules_add_up(mess: Namespace) -> None:
    text = STYLE.sub("", shown(mess, 80, "list"))
    rows = re.findall(r"^(hm\w+) +(\d+) {2}", text, re.MULTILINE)
    assert dict(rows) == {"hmdead": "6", LONGEST[0]: "9", LONGEST[1]: "6"}
    assert len(rows) == 3
    (row,) = re.findall(rf"^{LONGEST[0]} .*\n.*\n.*$", text, re.MULTILINE)
    assert [line[15:].split() for line in row.splitlines()] == [
        ["9", "legacy", "filter/FORWARD", "2,", "nat/POSTROUTING", "1"],
        ["nft", "filter/FORWARD", "2,", "nat/POSTROUTING", "1"],
        ["nft", "ipv6", "filter/FORWARD", "2,", "nat/POSTROUTING", "1"],
    ]
    assert "Found 21 orphaned rules of 3 bridges" in text


def test_a_sweep_at_a_terminal_and_the_list_after_it(mess: Namespace) -> None:
    text = shown(mess, 80, "sweep", "--bridges")
    assert "\x1b[1;31mleaked\x1b[0m: 1 bridge" in text
    assert "\x1b[1;31morphan\x1b[0m: 21 rules of 3 bridges" in text
    assert "\x1b[1;32mDeleted\x1b[0m 1 leaked bridge, 1 stale lease and 21 orphaned rules of 3 bridges" in text
    text = shown(mess, 80, "list", "--all")
    for verdict, number in (("live", 2), ("protected", 2), ("wildcard", 2), ("foreign", 4)):
        assert re.search(rf"^\x1b\[[0-9;]+m{verdict}\x1b\[0m: {number} rules", text, re.MULTILINE)
    assert text.count("hmace exists") == 1


def test_colours_at_a_terminal_as_they_are_asked_for(mess: Namespace) -> None:
    for arguments, environment, coloured in (
        ([], {}, True),
        (["--color", "never"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, True),
    ):
        text = shown(mess, 80, "list", *arguments, **environment)
        assert ("\x1b[" in text) == coloured
        assert "orphan: 21 rules of 3 bridges" in STYLE.sub("", text)
    assert shown(mess, 80, "sweep", "-q") == ""


def test_piped_output_is_plain_and_with_verbose_has_a_line_for_each_rule(mess: Namespace) -> None:
    done = mess.netsweep("list", "-v")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES"]
    assert len([line for line in lines if " -- orphan: " in line]) == 21
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("arguments", [[], ["-v"], ["--format", "json"], ["--format", "github"], ["-q"]], ids=" ".join)
def test_what_a_run_does_not_need_it_does_not_load(mess: Namespace, arguments: list[str]) -> None:
    for command in (["list", "--all"], ["sweep", "--dry-run"], ["sweep", "--bridges"], ["sweep"]):
        assert not loaded(mess, *command, *arguments) & {"rich", "prometheus_client", "jsonschema"}


def test_tables_load_rich(mess: Namespace) -> None:
    assert "rich" in loaded(mess, "list", "--color", "always")


def test_the_demo_shows_tables_that_fit(ns: Namespace) -> None:
    text = STYLE.sub("", shown(ns, 80, "demo"))
    assert max(len(line) for line in text.splitlines() if " " in line) <= 80, "longer than a path that is alone"
    assert text.count("orphan: 600 rules of 100 bridges\n") == 2
    assert "\nlive: 18 rules\n" in text


def test_the_picture_in_the_readme_is_what_is_shown_now() -> None:
    """But for the times; where it is not, ``make pictures`` makes it anew."""
    assert words_of(pictures.of_a_sweep()) == words_of(pictures.PICTURE.read_text("utf-8"))


def words_of(svg: str) -> str:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    words = " ".join(html.unescape(" ".join(texts)).split())
    return re.sub(r"[\d.]+ m?s\b", "TIME", words)


def loaded(ns: Namespace, *arguments: str) -> set[str]:
    """The packages that a run loads."""
    done = ns.run(sys.executable, "-X", "importtime", *NETSWEEP[1:], *arguments)
    found = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "netsweep" in found
    return found
