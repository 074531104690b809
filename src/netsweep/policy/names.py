"""Which interface names and comments are ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from netsweep.model import INTERFACE_NAME_MAX, Interface
from netsweep.policy.patterns import expression_of, literal_beginning

_ROLE = r"[a-z]+(?:-[a-z]+)*"

# A letter or digit of any script. A byte that is no UTF-8 (a surrogate escape) may have been a
# letter in the encoding it was written in, so it counts as one.
_NO_WORD_AFTER = r"(?![^\W_])(?![\udc80-\udcff])"


class Names:
    """What is ours, and what must never be touched.

    ``prefixes``: a name is ours if it is one of these and hex digits, as a whole; ``globs``: or if it has
    one of these. ``protected``: names that begin with one of these stay. ``comments``: forms with
    ``{role}`` and ``{name}``; a comment that has one of them as a whole is ours.
    """

    def __init__(
        self, prefixes: Sequence[str], protected: Sequence[str], comments: Sequence[str], globs: Sequence[str] = ()
    ) -> None:
        self.prefixes = tuple(prefixes)
        self.protected = tuple(protected)
        self.shape = "" if globs else ": a prefix and hex digits"
        self.beginnings = (*prefixes, *dict.fromkeys(map(literal_beginning, globs)))
        guard = f"(?!{'|'.join(map(re.escape, protected))})" if protected else ""
        by_prefix = [f"(?:{'|'.join(map(re.escape, prefixes))})[0-9a-f]+"] if prefixes else []
        owned = f"{guard}(?:{'|'.join([*by_prefix, *map(expression_of, globs)])})"
        # What comes before a name is looked at last: a search for the names themselves is many times faster.
        mentioned = "|".join(rf"{each}(?<![^\W_]{each})(?<![\udc80-\udcff]{each})" for each in map(re.escape, prefixes))
        guarded = rf"(?:{'|'.join(map(re.escape, protected))})[^\s/:]*" if protected else r"(?!)"
        self._is_owned = re.compile(owned).fullmatch
        self._mention = re.compile(rf"(?:{mentioned})[0-9a-f]+{_NO_WORD_AFTER}" if prefixes else r"(?!)").search
        self._glob_mentions = _finder(globs)
        self._owned_form = _any_form(comments, owned)
        self._guarded_form = _any_form(comments, guarded)

    @property
    def prefilter(self) -> tuple[bytes, ...]:
        """Byte strings one of which is in every rule that gets a verdict for a name in it.

        Wildcards shorter than a prefix (``h+``) are the exception: they are in no list, and stay.
        """
        return tuple(name.encode() for name in (*self.beginnings, *self.protected))

    def owns(self, name: str) -> bool:
        """Whether an interface of this name is ours."""
        return len(name) <= INTERFACE_NAME_MAX and self._is_owned(name) is not None

    def protects(self, name: str) -> bool:
        """Whether an interface of this name must never be touched."""
        return name.startswith(self.protected)

    def overlaps(self, wildcard: Interface) -> bool:
        """Whether a wildcard may match interfaces that are ours or protected."""
        name = wildcard.name
        return any(p.startswith(name) or name.startswith(p) for p in (*self.beginnings, *self.protected))

    def mentioned(self, comment: str) -> list[str]:
        """The names of ours that stand anywhere in a comment, as words of their own."""
        found = list[str]()
        mention = self._mention(comment)
        while mention:
            found.append(mention.group())
            # One name may begin within another: be-be-1.
            mention = self._mention(comment, mention.start() + 1)
        if found:
            found = [name for name in found if len(name) <= INTERFACE_NAME_MAX]
        return found + self._glob_mentions(comment) if self._glob_mentions else found

    def owner(self, comment: str) -> str | None:
        """The interface that a comment with one of the forms belongs to, if it is ours."""
        form = self._owned_form(comment)
        return form.group(form.lastindex or 0) if form else None

    def protected_owner(self, comment: str) -> str | None:
        """The interface that a comment with one of the forms belongs to, if it is protected."""
        form = self._guarded_form(comment)
        return form.group(form.lastindex or 0) if form else None

    def resembles(self, text: str) -> bool:
        """Whether a person who looks for our prefixes would find ``text``."""
        return any(beginning in text for beginning in self.beginnings)


def _finder(globs: Sequence[str]) -> Callable[[str], list[str]] | None:
    """A function that finds the names of ``globs`` in a text; ``None`` where there are none.

    What belongs to a name and what follows it cannot be told apart where a glob has wildcards, so every
    beginning of a word that could be a name is one.
    """
    if not globs:
        return None
    beginnings = tuple(dict.fromkeys(map(literal_beginning, globs)))
    is_name = re.compile("|".join(map(expression_of, globs))).fullmatch
    ends = re.compile(_NO_WORD_AFTER)
    before = re.compile(r"(?<![^\W_])(?<![\udc80-\udcff])")

    def find(text: str) -> list[str]:
        found = list[str]()
        for beginning in beginnings:
            start = text.find(beginning)
            while start >= 0:
                if before.match(text, start):
                    stops = range(start + len(beginning), min(len(text), start + INTERFACE_NAME_MAX) + 1)
                    found += [text[start:end] for end in stops if ends.match(text, end) and is_name(text, start, end)]
                start = text.find(beginning, start + 1)
        return found

    return find


def _any_form(comments: Sequence[str], name: str) -> Callable[[str], re.Match[str] | None]:
    """What matches a comment that has one of the forms as a whole; its last group is the name."""
    forms = []
    for text in comments:
        before, _, behind = re.escape(text).replace(r"\{role\}", _ROLE).partition(r"\{name\}")
        # What is longer than a name is none: without this, the time for a glob grows with the comment's length.
        forms.append(rf"{before}(?=[^\s/:]{{1,{INTERFACE_NAME_MAX}}}{behind}\Z)({name}){behind}")
    return re.compile("|".join(forms) if forms else r"(?!)").fullmatch
