"""Make text from the host safe to print."""

from __future__ import annotations

_NAMED = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str) -> str:
    """Return ``text`` with all but printable ASCII replaced by escapes.

    Bytes that are not UTF-8 become ``\\xff``. GitHub's runner takes ``##[`` anywhere in a line for a
    command, so the second ``#`` of it is escaped too.
    """
    if not (text.isascii() and text.isprintable() and "\\" not in text):
        text = "".join(c if " " <= c <= "~" and c != "\\" else _escape_character(c) for c in text)
    return text.replace("##[", "#\\x23[")


def shell_word(text: str) -> str:
    """``text`` as one word for a shell, safe to print; where it is not plain, in the quotes of bash, ksh and zsh."""
    import shlex  # most runs need none

    quoted = shlex.quote(text)
    if escape(quoted) == quoted:
        return quoted
    data = text.encode("utf-8", "surrogateescape")
    shown = (chr(byte) if 0x20 < byte < 0x7F and byte not in b"\\'#" else f"\\x{byte:02x}" for byte in data)
    return f"$'{''.join(shown)}'"


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a surrogate escape (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return _NAMED.get(
        character, f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
