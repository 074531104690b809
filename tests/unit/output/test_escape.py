from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.output.escape import escape

# Runs of what the runner looks for are unlikely to come up by chance.
host_text = st.lists(
    st.sampled_from(["##[", "##[error]", "::", "::error::", "#", "[", ":", "\n", "\r", "%0A", "\\", "`", "|", "<b>"])
    | st.text(max_size=3)
    | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=2),
    max_size=8,
).map("".join)


@given(host_text)
def test_escaped_text_is_printable_and_holds_no_command(text: str) -> None:
    escaped = escape(text)
    assert escaped.isascii()
    assert escaped == "" or escaped.isprintable()
    assert "##[" not in escaped


def unescaped(text: str) -> str:
    """The text that :func:`escape` was given, where all its bytes were UTF-8."""
    names = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(
        r"\\(?:x(..)|u(.{4})|U(.{8})|(.))",
        lambda m: names[m[4]] if m[4] else chr(int(m[1] or m[2] or m[3], 16)),
        text,
    )


@given(host_text.map(lambda text: re.sub("[\udc80-\udcff]", "", text)))
def test_no_two_texts_look_the_same(text: str) -> None:
    assert unescaped(escape(text)) == text


control_characters = st.text(st.characters(categories=["Cc"]), max_size=4)


@given(control_characters, control_characters)
def test_texts_that_differ_by_control_characters_only_look_different(one: str, other: str) -> None:
    assert (escape(f"a{one}b") == escape(f"a{other}b")) == (one == other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hypeman-nat-hm1", "hypeman-nat-hm1"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\0\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        (r"\n", r"\\n"),
        ("\N{SNOWMAN}\N{PILE OF POO}", r"\u2603\U0001f4a9"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}\N{NO-BREAK SPACE}", r"\u202e\u2028\u00a0"),
        ("\ud800", r"\ud800"),
        ("##[error]", r"#\x23[error]"),
        ("###[error]", r"##\x23[error]"),
        ("##[##[", r"#\x23[#\x23["),
    ],
)
def test_escapes_are_those_of_a_string_literal(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_bytes_that_are_not_utf_8_are_shown_as_bytes() -> None:
    for byte in range(0x80, 0x100):
        assert escape(bytes([byte]).decode("utf-8", "surrogateescape")) == f"\\x{byte:02x}"
