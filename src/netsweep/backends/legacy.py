"""x_tables (``iptables-legacy``) through python-iptables' low-level table API.

``iptc.ip4tc.iptc`` maps libiptc call by call. Its ``Table`` class is left out: it caches tables for
the whole process and commits when it is garbage-collected. A table comes as one snapshot; rules are
deleted from it by number; one commit replaces the table in the kernel. The kernel notices only a
changed *count* of rules in between, so the xtables lock is held from before the snapshot until after
the commit.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.machinery
import importlib.util
import os
import struct
import sys
import threading
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from netsweep import extensions
from netsweep.backends import Addition, Scan, Transaction
from netsweep.errors import ContentionError, NetsweepError, NoBackendError, NotPermittedError
from netsweep.rules import Interface, Rule, Undo

if TYPE_CHECKING:
    from netsweep.locks import LockTimes

TABLE_NAMES = "/proc/thread-self/net/ip_tables_names"
"""The tables that exist in this network namespace, for root's eyes only (net/netfilter/x_tables.c)."""

ENTRY = struct.Struct("=4s4s4s4s16s16s16s16sHBB4xHH")
"""``struct ipt_entry`` up to ``next_offset`` (linux/netfilter_ipv4/ip_tables.h): source, destination,
their masks, in- and out-interface, their masks, protocol, flags, inverted flags, offset of the target,
offset of the next entry (which is this one's size)."""

ENTRY_SIZE = 112
"""Bytes of ``struct ipt_entry``, counters included; the matches follow, then the target."""

_SIZE_OFFSET = 90

_EXTENSION = struct.Struct("=H29sB")
"""``struct xt_entry_match`` and ``xt_entry_target``: size with data, name, revision."""

_EXTENSION_SIZE = 32
_NAME_OFFSET, _NAME_SIZE = 2, 29
_NFCACHE_OFFSET = 84

_INVERT_IN, _INVERT_OUT, _INVERT_SOURCE, _INVERT_DESTINATION = 0x01, 0x02, 0x08, 0x10
"""IPT_INV_VIA_IN, IPT_INV_VIA_OUT, IPT_INV_SRCIP, IPT_INV_DSTIP."""

_VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
"""A standard target's verdict is ``-NF_VERDICT - 1``; RETURN is XT_RETURN (x_tables.h)."""

_M_MMAP_THRESHOLD, _M_PERTURB = -3, -6
"""malloc.h (mallopt(3)): bytes from which memory is given back to the system at once; whether memory is
filled with a fixed byte when it is given out."""

_MMAP_THRESHOLD = 128 * 1024
"""glibc's own initial value; where it is set, glibc does not raise it and keep what a large table took."""

_SONAMES = {
    "ip4tc": ("libip4tc.so.2", "libip4tc.so.0"),
    "ip6tc": ("libip6tc.so.2", "libip6tc.so.0"),
    "xtables": ("libxtables.so.12", "libxtables.so.11", "libxtables.so.10"),
}
"""What iptables 1.6 (2016) and later install, newest first."""


_UNKNOWN = Rule("", "", "", 0)


class MalformedEntryError(NetsweepError):
    """An entry's offsets or sizes contradict each other."""


def existing_tables() -> list[str]:
    """The x_tables tables that exist here; none where the kernel's support is not even loaded.

    Reading them through libiptc would create those that do not exist. Raises
    :class:`NotPermittedError` where the list may not be read.
    """
    try:
        with open(TABLE_NAMES, encoding="ascii") as names:
            return names.read().split()
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise NotPermittedError(
            "cannot read /proc/net/ip_tables_names: run as root, add CAP_DAC_READ_SEARCH, "
            "or leave x_tables out with --backend nft"
        ) from error


class LegacyBackend:
    """The x_tables rules of this network namespace.

    ``hints``: rules that hold none of these byte strings are counted, not read. ``keep_undo``: fill
    :attr:`Rule.undo`.
    """

    name = "legacy"
    family = "ipv4"

    def __init__(self, hints: Sequence[bytes], *, keep_undo: bool = False) -> None:
        self._hints = tuple(hints)
        self._keep_undo = keep_undo
        self._known: dict[tuple[str, str], dict[bytes, Rule | None]] = {}

    def tables(self) -> Collection[str]:
        return existing_tables()

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        with _open(table) as handle:
            return self._read(handle, table, chains, limit, remember=limit is not None)

    def writing(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        from netsweep import locks  # only a sweep needs it, and filelock takes long to import

        return locks.held(times, timeout, mode=0o600, what="xtables lock", option="--wait")

    @contextmanager
    def transaction(self, scan: Scan) -> Iterator[Transaction]:
        with _open(scan.table) as handle:
            yield _Transaction(handle, self._read(handle, scan.table, scan.chains, None, remember=False))

    def close(self) -> None:
        pass

    def _read(self, handle: int, table: str, chains: Sequence[str], limit: int | None, *, remember: bool) -> Scan:
        scan = Scan(table, chains)
        for chain in chains:
            if not _libiptc().is_chain(chain.encode(), handle):
                scan.missing.append(chain)
            elif self._keep_undo:
                self._read_all(scan, handle, chain)
            else:
                self._read_hinted(scan, handle, chain, limit, remember=remember)
        return scan

    def _read_all(self, scan: Scan, handle: int, chain: str) -> None:
        order = scan.order.setdefault(chain, [])
        for position, (entry, raw) in enumerate(_entries(handle, chain), 1):
            target = _libiptc().get_target(entry, handle)
            rule = parse_entry(raw, scan.table, chain, position, target)
            undo = keep_entry(raw, target, jumps=bool(target) and bool(_libiptc().is_chain(target, handle)))
            order.append(undo.identity)
            if self._is_hinted(raw):
                scan.rules.append(rule._replace(undo=undo))
        scan.scanned += len(order)

    def _read_hinted(self, scan: Scan, handle: int, chain: str, limit: int | None, *, remember: bool) -> None:
        # The second reading of a sweep, which has the lock, meets the rules of the first: equal bytes
        # are the same rule, whatever its counters and its position have become.
        lib, known, found = _libiptc(), self._known.setdefault((scan.table, chain), {}), scan.rules.append
        position, start = 0, len(scan.rules)
        for entry, raw in _entries(handle, chain):
            position += 1
            own = raw[:_NFCACHE_OFFSET] + raw[ENTRY_SIZE:]
            rule = known.get(own, _UNKNOWN)
            if rule is _UNKNOWN:
                rule = None
                lasting = True
                if self._is_hinted(raw):
                    target = lib.get_target(entry, handle)
                    rule = parse_entry(raw, scan.table, chain, position, target)
                    # The bytes of a jump hold an offset, which may mean another chain next time.
                    lasting = bool(target) and not lib.is_chain(target, handle)
                if lasting and remember:
                    known[own] = rule
            if rule is not None:
                found(rule if rule.position == position else rule._replace(position=position))
            if position == limit:
                # So long a chain is read under the lock at leisure: here a part says whether there is
                # work, and the rest is not worth its memory.
                known.clear()
                del scan.rules[start + limit // 8 :]
                scan.complete = False
                break
        scan.scanned += position

    def _is_hinted(self, raw: bytes) -> bool:
        return any(map(raw.__contains__, self._hints))


def _entries(handle: int, chain: str) -> Iterator[tuple[int, bytes]]:
    """Each rule of ``chain``: its address, and a copy of its bytes."""
    size_at, array_of, following = ctypes.c_uint16.from_address, _array_of, _libiptc().next_rule
    entry = _libiptc().first_rule(chain.encode(), handle)
    while entry:
        size = size_at(entry + _SIZE_OFFSET).value
        yield entry, array_of(size).from_address(entry).raw
        entry = following(entry, handle)


@cache  # there are few sizes, and a type is made more slowly than a rule is read
def _array_of(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * max(size, ENTRY_SIZE)


class _Transaction:
    batch: int | None = None

    def __init__(self, handle: int, scan: Scan) -> None:
        self._handle = handle
        self.scan = scan

    def delete(self, rules: Sequence[Rule]) -> None:
        lib, handle = _libiptc(), self._handle
        names = {chain: chain.encode() for chain in self.scan.chains}
        # From the back, so that no deletion moves a rule that is still to be deleted.
        for rule in reversed(rules):
            if not lib.delete_num_entry(names[rule.chain], rule.position - 1, handle):
                raise _failure(f"deleting rule {rule.position} of {rule.table}/{rule.chain}")
        self._commit()

    def insert(self, additions: Sequence[Addition]) -> None:
        lib, handle = _libiptc(), self._handle
        # From the back, so that no insertion moves the place of one that is still to come.
        for addition in sorted(additions, key=lambda a: a.place, reverse=True):
            for raw in reversed(addition.rules):
                # libiptc believes whatever the entry says of itself.
                parse_entry(raw, self.scan.table, addition.chain, addition.place + 1)
                if not lib.insert_entry(addition.chain.encode(), raw, addition.place, handle):
                    raise _failure(f"inserting a rule into {self.scan.table}/{addition.chain}")
        self._commit()

    def _commit(self) -> None:
        lib, handle = _libiptc(), self._handle
        # libiptc carries every rule's counters over but lets those of the policies begin at zero.
        chain = lib.first_chain(handle)
        while chain:
            counters = _Counters()
            if policy := lib.get_policy(chain, counters, handle):
                lib.set_policy(chain, policy, counters, handle)
            chain = lib.next_chain(handle)
        if not lib.commit(handle):
            raise _failure(f"committing table {self.scan.table}")


def parse_entry(raw: bytes, table: str, chain: str, position: int, target: bytes | None = None) -> Rule:
    """Read one ``struct ipt_entry`` with its matches and target.

    ``target`` is what libiptc calls the entry's target, for jumps, whose verdict is an offset. Only
    the matches that :mod:`netsweep.extensions` reads are looked into. Raises
    :class:`MalformedEntryError` where sizes or offsets lead outside of ``raw``.
    """
    if len(raw) < ENTRY_SIZE:
        raise MalformedEntryError(f"a rule of {table}/{chain} is cut off")
    fields = ENTRY.unpack_from(raw)
    source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask = fields[:8]
    inverted, target_offset, size = fields[10:]
    if not ENTRY_SIZE <= target_offset <= size - _EXTENSION_SIZE or size > len(raw):
        raise MalformedEntryError(f"rule {position} of {table}/{chain} has wrong offsets")
    comment = opaque = None
    ports: list[Interface] = []
    offset = ENTRY_SIZE
    while offset < target_offset:
        if target_offset - offset < _EXTENSION_SIZE:
            raise MalformedEntryError(f"rule {position} of {table}/{chain} has a match that is cut off")
        match_size, name, _ = _EXTENSION.unpack_from(raw, offset)
        if not _EXTENSION_SIZE <= match_size <= target_offset - offset:
            raise MalformedEntryError(f"rule {position} of {table}/{chain} has a match of a wrong size")
        info = slice(offset + _EXTENSION_SIZE, offset + match_size)
        if name.startswith(b"comment\0"):
            text = extensions.text(raw[info][: extensions.COMMENT_SIZE])
            comment = text if comment is None else f"{comment}\0{text}"
        elif name.startswith(b"physdev\0"):
            ports += extensions.ports(raw[info])
        elif name.startswith(b"devgroup\0"):
            opaque = extensions.GROUPS
        offset += match_size
    return Rule(
        "legacy",
        table,
        chain,
        position,
        in_interface=extensions.interface(in_name, in_mask, inverted & _INVERT_IN),
        out_interface=extensions.interface(out_name, out_mask, inverted & _INVERT_OUT),
        source=_network(source, source_mask, inverted & _INVERT_SOURCE),
        destination=_network(destination, destination_mask, inverted & _INVERT_DESTINATION),
        target=_target(raw, target_offset, size, target),
        comment=comment,
        ports=tuple(ports),
        opaque=opaque,
    )


def keep_entry(raw: bytes, target: bytes | None = None, *, jumps: bool = False) -> Undo:
    """An entry that :func:`parse_entry` has read, as libiptc wants it back, and its identity.

    libiptc takes a standard target by its name and finds out the verdict, or the offset to jump to,
    anew; ``target`` and whether it is a chain come from libiptc. Behind an extension's name the kernel
    leaves what happened to be in memory. The identity leaves out what is not the rule's own:
    ``nfcache``, ``comefrom``, counters.
    """
    target_offset, size = struct.unpack_from("=HH", raw, _SIZE_OFFSET - 2)
    entry = bytearray(raw[:size])
    kinds, offset = [], ENTRY_SIZE
    while offset < target_offset:
        kinds.append(("match", offset))
        offset += _tidy_name(entry, offset)
    kinds.append(("target", target_offset))
    _tidy_name(entry, target_offset)
    name = slice(target_offset + _NAME_OFFSET, target_offset + _NAME_OFFSET + _NAME_SIZE)
    if not entry[name.start]:
        entry[name] = (target or b"").ljust(_NAME_SIZE, b"\0")
        entry[target_offset + _EXTENSION_SIZE : target_offset + _EXTENSION_SIZE + 4] = bytes(4)
    own = bytes(entry[:_NFCACHE_OFFSET] + entry[_SIZE_OFFSET - 2 : _SIZE_OFFSET + 2] + entry[ENTRY_SIZE:])
    sets = [_sets(entry, kind, offset) for kind, offset in kinds]
    return Undo(
        bytes(entry),
        blake2b(own, digest_size=16).digest(),
        extensions.text(target) if target and jumps else None,
        tuple(number for numbers in sets for number in numbers or ()),
        "uses ipset in a way that is not known" if None in sets else None,
    )


def _sets(entry: bytearray, kind: str, offset: int) -> tuple[int, ...] | None:
    size, name, revision = _EXTENSION.unpack_from(entry, offset)
    info = bytes(entry[offset + _EXTENSION_SIZE : offset + size])
    return extensions.set_numbers(kind, extensions.text(name), revision, info)


def _tidy_name(entry: bytearray, offset: int) -> int:
    """Clear what is behind the name of the extension at ``offset``, and return the extension's size."""
    size, name, _ = _EXTENSION.unpack_from(entry, offset)
    start = offset + _NAME_OFFSET
    entry[start : start + _NAME_SIZE] = name.split(b"\0", 1)[0].ljust(_NAME_SIZE, b"\0")
    return int(size)


def _network(address: bytes, mask: bytes, negated: int) -> str | None:
    if mask == b"\0\0\0\0":
        return None
    bits = int.from_bytes(mask, "big")
    length = bits.bit_count()
    contiguous = bits == 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
    suffix = str(length) if contiguous else ".".join(map(str, mask))
    return f"{'!' if negated else ''}{'.'.join(map(str, address))}/{suffix}"


def _target(raw: bytes, offset: int, size: int, name: bytes | None) -> str | None:
    if name is None:
        _, own, _ = _EXTENSION.unpack_from(raw, offset)
        name = own.split(b"\0", 1)[0]
        if not name and size - offset >= _EXTENSION_SIZE + 4:
            return _VERDICTS.get(struct.unpack_from("=i", raw, offset + _EXTENSION_SIZE)[0])
    # There are very many rules and few targets.
    return sys.intern(extensions.text(name)) or None


@contextmanager
def _open(table: str) -> Iterator[int]:
    lib = _libiptc()
    lib.fill_memory(True)
    try:
        handle = lib.init(table.encode())
    finally:
        lib.fill_memory(False)
    if not handle:
        raise _failure(f"reading table {table}")
    try:
        yield handle
    finally:
        lib.free(handle)


def _failure(doing: str) -> Exception:
    code = ctypes.get_errno()
    if code == errno.EAGAIN:
        return ContentionError(f"{doing}: the table changed meanwhile")
    if code in (errno.EPERM, errno.EACCES):
        return NotPermittedError(f"{doing}: not permitted; CAP_NET_ADMIN and CAP_NET_RAW are needed")
    said = _libiptc().strerror(code)
    return NetsweepError(f"{doing}: {said.decode('ascii', 'replace') if said else os.strerror(code)}")


_Counters = ctypes.c_uint64 * 2
"""``struct xt_counters``: packets and bytes."""


class _Library:
    """libiptc's calls with handles and entries as plain addresses.

    python-iptables binds the same functions without argument types and with results that have to be
    unwrapped: 7 us for each rule instead of one.
    """

    def __init__(self, iptc: Any) -> None:
        text, handle, entry, number = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint

        def bind(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            address = ctypes.cast(getattr(iptc, f"iptc_{name}"), ctypes.c_void_p).value or 0
            return ctypes.CFUNCTYPE(result, *arguments, use_errno=True)(address)

        self.init = bind("init", handle, text)
        self.free = bind("free", None, handle)
        self.commit = bind("commit", ctypes.c_int, handle)
        self.is_chain = bind("is_chain", ctypes.c_int, text, handle)
        self.first_chain = bind("first_chain", text, handle)
        self.next_chain = bind("next_chain", text, handle)
        self.get_policy = bind("get_policy", text, text, _Counters, handle)
        self.set_policy = bind("set_policy", ctypes.c_int, text, text, _Counters, handle)
        self.first_rule = bind("first_rule", entry, text, handle)
        self.next_rule = bind("next_rule", entry, entry, handle)
        self.get_target = bind("get_target", text, entry, handle)
        self.insert_entry = bind("insert_entry", ctypes.c_int, text, ctypes.c_char_p, number, handle)
        self.delete_num_entry = bind("delete_num_entry", ctypes.c_int, text, number, handle)
        self.strerror = bind("strerror", text, ctypes.c_int)
        self._mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if self._mallopt:
            self._mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)

    def fill_memory(self, fill: bool) -> None:
        """Let new memory hold the same each time.

        libiptc does not clear the buffer that a table is read into, and the kernel leaves gaps in it:
        the same rule would not have the same bytes the next time.
        """
        if self._mallopt:
            self._mallopt(_M_PERTURB, int(fill))


_loaded: _Library | None = None
_loading = threading.Lock()


def _libiptc() -> _Library:
    global _loaded
    with _loading:
        if _loaded is None:
            _loaded = _Library(_import_iptc())
        return _loaded


def _import_iptc() -> Any:
    """Import python-iptables without letting it look for its libraries.

    Left alone, it runs gcc from PATH and ldconfig, opens whatever the current folder holds under the
    name of a library, and calls modprobe, all as root and in 250 ms. All of that is in ``iptc.util``
    and behind one environment variable, so it gets a ``util`` that knows where the libraries are.
    """
    for name in ("ip4tc", "xtables"):
        if _find_library(name)[0] is None:
            raise NoBackendError(
                f"there are x_tables rules, but {_SONAMES[name][0]} is missing: install iptables "
                "(Debian: apt-get install iptables), or leave them out with --backend nft"
            )
    if "iptc" not in sys.modules:
        util = types.ModuleType("iptc.util")
        util.__dict__.update(find_library=_find_library, find_libc=_find_libc, load_kernel=_load_no_module)
        sys.modules["iptc.util"] = util
    # Where this is set, ldconfig is not asked. It names the folder of match extensions, of which none
    # is ever loaded here.
    extensions = os.environ.get("XTABLES_LIBDIR")
    os.environ["XTABLES_LIBDIR"] = extensions or "/usr/lib/xtables"
    try:
        with warnings.catch_warnings():
            # It has escapes in strings that newer Pythons complain of on stderr.
            warnings.simplefilter("ignore")
            return importlib.import_module("iptc.ip4tc").iptc
    except Exception as error:  # python-iptables raises AttributeError and others of its own
        raise NoBackendError(
            f"python-iptables cannot be loaded ({type(error).__name__}: {error}): "
            "reinstall it, or leave x_tables out with --backend nft"
        ) from error
    finally:
        if extensions is None:
            del os.environ["XTABLES_LIBDIR"]


def _find_library(*names: str) -> tuple[ctypes.CDLL | None, int | None]:
    """The library of one of ``names`` and the major version in its name, or ``(None, None)``.

    Looks where the dynamic linker does, and for python-iptables' own helper beside it.
    """
    for name in names:
        for soname in _SONAMES.get(name, ()):
            try:
                return ctypes.CDLL(soname, mode=ctypes.RTLD_GLOBAL), int(soname.rpartition(".")[2])
            except (OSError, ValueError):
                continue
    if "xtwrapper" in names and (package := importlib.util.find_spec("iptc")) and package.origin:
        folder = os.path.dirname(os.path.dirname(package.origin))
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = os.path.join(folder, f"libxtwrapper{suffix}")
            if os.path.exists(path):
                return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL), 0
    return None, None


def _find_libc() -> ctypes.CDLL:
    # The process has it open already.
    return ctypes.CDLL(None, mode=ctypes.RTLD_GLOBAL)


def _load_no_module(name: str, exc_if_failed: bool = False) -> None:
    """Stand in for python-iptables' modprobe: a table that exists has its module loaded."""
