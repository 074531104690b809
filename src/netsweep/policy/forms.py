"""Forms of whole rules, written as iptables writes rules. Pure.

``-s {net} ! -o {name} -j MASQUERADE`` is a form. It tells which interfaces a rule matches and whether these
matches are negated, whether there is a source, a destination, a protocol and ports, the match extensions by
name, and the target. A rule has the form where all of these are the same and nothing else is in it.
``{name}`` is the same name of ours everywhere; ``{other}`` is any interface; ``{ip}`` is a single address;
``{proto}`` is any protocol, and as a match its extension. Ports are one port of the destination. Other words in
braces only tell readers what is there.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netsweep.model import Interface, Spec

_NAME, _OTHER, _PROTOCOL, _ADDRESS = "{name}", "{other}", "{proto}", "{ip}"
_ONE_PORT = ("--dport", "--destination-port")
_SEVERAL_PORTS = ("--dports", "--sports", "--ports", "--destination-ports", "--source-ports")
"""Options of multiport."""
_OTHER_PORTS = ("--sport", "--source-port", "--tcp-flags", "--syn", "--tcp-option")
"""Options of matches that readers of rules do not tell apart from each other."""
_PHYSDEV_OPTIONS = ("--physdev-in", "--physdev-out")
_PROTOCOL_ALIASES = {"icmpv6": "ipv6-icmp"}


class Form(NamedTuple):
    """One form. Interfaces and networks are as in the form's text, with ``!`` in front where negated."""

    text: str
    in_interface: str | None = None
    out_interface: str | None = None
    physdev: tuple[str, ...] = ()
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None
    ports: bool = False
    matches: frozenset[str] = frozenset()
    comment: bool = False
    target: str | None = None

    @property
    def negated(self) -> bool:
        """Whether every match of the name is negated, so that a rule of this form matches live traffic."""
        return _NAME not in (self.in_interface, self.out_interface, *self.physdev)

    def name_in(self, spec: Spec, owns: Callable[[str], bool]) -> str | None:
        """The name of ours that a rule has in the place of ``{name}``; ``None`` where it has not this form."""
        names = set[str]()
        if not (
            _fits(self.in_interface, spec.in_interface, names)
            and _fits(self.out_interface, spec.out_interface, names)
            and len(self.physdev) == len(spec.physdev)
            and all(_fits(*pair, names) for pair in zip(self.physdev, spec.physdev, strict=True))
            and _is_such(self.source, spec.source)
            and _is_such(self.destination, spec.destination)
            and self.ports == spec.ports
            and self.comment == bool(spec.comments)
            and (self.protocol == spec.protocol or (self.protocol == _PROTOCOL and _sign(spec.protocol) is False))
            and {each if each != _PROTOCOL else spec.protocol for each in self.matches} == set(spec.matches)
            and not (spec.devices or spec.device_indexes or spec.by_number or spec.by_set or spec.unreadable)
        ):
            return None
        if len(names) != 1 or not owns(name := names.pop()):
            return None
        return name if spec.target == (self.target and self.target.replace(_NAME, name)) else None


def _fits(wanted: str | None, found: Interface | None, names: set[str]) -> bool:
    if wanted is None or found is None:
        return wanted is None and found is None
    if found.wildcard or found.after_effect or found.negated != wanted.startswith("!"):
        return False
    wanted = wanted.removeprefix("!")
    if wanted == _NAME:
        names.add(found.name)
    return wanted in (_NAME, _OTHER, found.name)


def _is_such(wanted: str | None, found: str | None) -> bool:
    if _sign(wanted) != _sign(found):
        return False
    return wanted is None or found is None or wanted.lstrip("!") != _ADDRESS or found.endswith(("/32", "/128"))


def _sign(network: str | None) -> bool | None:
    """Whether a network is negated; ``None`` where there is none."""
    return network if network is None else network.startswith("!")


def form_of(text: str) -> Form:
    """Read a form; raises :class:`ValueError`."""
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    found: dict[str, object] = {}
    physdev, matches = list[str](), set[str]()
    negated, argued = False, False
    for word in words:
        word = _LONG.get(word, word)
        if word == "!" and not negated:
            negated = True
            continue
        if word in _SLOTS:
            _set(found, _SLOTS[word], ("!" if negated else "") + _argument(text, word, words), text)
            argued = argued or word == "-p"
        elif word in ("-m", "-j", "-g", "-f"):
            if negated:
                raise _wrong(text, f"'!' cannot come before {word}")
            if word in ("-f", "-g"):
                matches.add(word)
            if word != "-f":
                value, argued = _argument(text, word, words), True
                if word == "-m":
                    matches.add(value)
                else:
                    _set(found, "target", value, text)
        elif word.startswith("--") and argued:
            if word in _PHYSDEV_OPTIONS:
                physdev.append(("!" if negated else "") + _argument(text, word, words))
            if word in _OTHER_PORTS or (word in _ONE_PORT and negated):
                raise _wrong(text, f"with {word}, a form can only have '--dport {{port}}', for one destination port")
            found["ports"] = bool(found.get("ports")) or word in (*_ONE_PORT, *_SEVERAL_PORTS)
        elif word.startswith("-") or not argued or negated:
            raise _wrong(text, f"{word!a} is not known, or not allowed there")
        negated = False
    if negated:
        raise _wrong(text, "nothing follows '!'")
    protocol = found.get("protocol")
    if isinstance(protocol, str):
        found["protocol"] = _PROTOCOL_ALIASES.get(protocol, protocol)
    form = Form(
        text,
        physdev=tuple(physdev),
        matches=frozenset(matches - {"comment"}),
        comment="comment" in matches,
        **found,  # type: ignore[arg-type]
    )
    _check(form)
    return form


_LONG = {
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--protocol": "-p",
    "--proto": "-p",
    "--match": "-m",
    "--jump": "-j",
    "--goto": "-g",
    "--fragment": "-f",
}
_SLOTS = {"-s": "source", "-d": "destination", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}


def _check(form: Form) -> None:
    interfaces = [each for each in (form.in_interface, form.out_interface, *form.physdev) if each]
    if not any(each.removeprefix("!") == _NAME for each in interfaces):
        raise _wrong(form.text, f"no interface in it is {_NAME}")
    if form.target is None:
        raise _wrong(form.text, "it has no target")
    positive = [each for each in (form.source, form.destination) if each and not each.startswith("!")]
    if form.negated and not positive and not form.ports:
        raise _wrong(
            form.text,
            "a rule whose only match of the name is negated matches live traffic: "
            "it needs a source, a destination or ports as well",
        )


def _set(found: dict[str, object], slot: str, value: str, text: str) -> None:
    if slot in found:
        raise _wrong(text, f"{value!a} is the second {slot.replace('_', '-')}")
    found[slot] = value


def _argument(text: str, word: str, words: Iterator[str]) -> str:
    value = next(words, "")
    if not value or value.startswith("-") or value == "!":
        raise _wrong(text, f"nothing follows {word}")
    return value


def _wrong(text: str, reason: str) -> ValueError:
    return ValueError(f"{text!a} is not the form of a rule: {reason}")
