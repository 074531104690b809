"""Which interface names and comments are ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from netsweep.model import INTERFACE_NAME_MAX, Interface

_ROLE = r"[a-z]+(?:-[a-z]+)*"

# A letter or digit of any script. A byte that is no UTF-8 (a surrogate escape) may have been a
# letter in the encoding it was written in, so it counts as one.
_NO_WORD_AFTER = r"(?![^\W_])(?![\udc80-\udcff])"


class Names:
    """What is ours, and what must never be touched.

    ``prefixes``: a name is ours if it is one of these and hex digits, as a whole. ``protected``: names
    that begin with one of these stay. ``comments``: forms with ``{role}`` and ``{name}``; a comment that
    has one of them as a whole is ours.
    """

    def __init__(self, prefixes: Sequence[str], protected: Sequence[str], comments: Sequence[str]) -> None:
        self.prefixes = tuple(prefixes)
        self.protected = tuple(protected)
        guard = f"(?!{'|'.join(map(re.escape, protected))})" if protected else ""
        owned = f"{guard}(?:{'|'.join(map(re.escape, prefixes))})[0-9a-f]+"
        # What stands before a name is looked at last: a search for the names themselves is many times faster.
        mentioned = "|".join(rf"{each}(?<![^\W_]{each})(?<![\udc80-\udcff]{each})" for each in map(re.escape, prefixes))
        guarded = rf"(?:{'|'.join(map(re.escape, protected))})[^\s/:]*" if protected else r"(?!)"
        self._is_owned = re.compile(owned).fullmatch
        self._mentions = re.compile(rf"(?:{mentioned})[0-9a-f]+{_NO_WORD_AFTER}").findall
        self._owned_form = _any_form(comments, owned)
        self._guarded_form = _any_form(comments, guarded)

    @property
    def prefilter(self) -> tuple[bytes, ...]:
        """Byte strings one of which is in every rule that gets a verdict.

        Wildcards shorter than a prefix (``h+``) are the exception: they are in no list, and stay.
        """
        return tuple(name.encode() for name in (*self.prefixes, *self.protected))

    def owns(self, name: str) -> bool:
        """Whether an interface of this name is ours."""
        return self._is_owned(name) is not None and len(name) <= INTERFACE_NAME_MAX

    def protects(self, name: str) -> bool:
        """Whether an interface of this name must never be touched."""
        return name.startswith(self.protected)

    def overlaps(self, wildcard: Interface) -> bool:
        """Whether a wildcard may match interfaces that are ours or protected."""
        name = wildcard.name
        return any(p.startswith(name) or name.startswith(p) for p in (*self.prefixes, *self.protected))

    def mentioned(self, comment: str) -> list[str]:
        """The names of ours that stand anywhere in a comment, as words of their own."""
        return [name for name in self._mentions(comment) if len(name) <= INTERFACE_NAME_MAX]

    def owner(self, comment: str) -> str | None:
        """The interface that a comment with one of the forms belongs to, if it is ours."""
        form = self._owned_form(comment)
        name = form.group(form.lastindex or 0) if form else ""
        return name if name and len(name) <= INTERFACE_NAME_MAX else None

    def protected_owner(self, comment: str) -> str | None:
        """The interface that a comment with one of the forms belongs to, if it is protected."""
        form = self._guarded_form(comment)
        return form.group(form.lastindex or 0) if form else None

    def resembles(self, text: str) -> bool:
        """Whether a person who looks for our prefixes would find ``text``."""
        return any(prefix in text for prefix in self.prefixes)


def _any_form(comments: Sequence[str], name: str) -> Callable[[str], re.Match[str] | None]:
    forms = [re.escape(text).replace(r"\{role\}", _ROLE).replace(r"\{name\}", f"({name})", 1) for text in comments]
    return re.compile("|".join(forms) if forms else r"(?!)").fullmatch
