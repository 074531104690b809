"""libiptc through python-iptables, with handles and entries as plain addresses.

``iptc.ip4tc.iptc`` and ``iptc.ip6tc.ip6tc`` map libiptc call by call. Their ``Table`` classes are left out:
they cache tables for the whole process and commit when they are garbage-collected.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import importlib.machinery
import importlib.util
import itertools
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from netsweep.errors import ContentionError, NetsweepError, NoBackendError, NotPermittedError
from netsweep.model import Family

_SONAMES = {
    "ip4tc": ("libip4tc.so.2", "libip4tc.so.0"),
    "ip6tc": ("libip6tc.so.2", "libip6tc.so.0"),
    "xtables": ("libxtables.so.12", "libxtables.so.11", "libxtables.so.10"),
}
"""What iptables 1.6 (2016) and later install, newest first."""

_CALLS = {Family.IPV4: ("ip4tc", "iptc"), Family.IPV6: ("ip6tc", "ip6tc")}
"""Module and class of python-iptables with the calls for each family; the module is called as its library."""

_SHORTAGES = ("annot allocate memory", "failed to map segment", "Too many open files")
"""What the dynamic linker says where a library is there and something else is wanting (glibc, elf/dl-load.c)."""

_NUMBERS = itertools.count()
"""Numbers of the names under which python-iptables is loaded: a program that imports ``iptc`` gets its own, and
threads that load it at the same time do not meet. A lock would stay taken in a child that was forked meanwhile."""

_M_PERTURB = -6
"""malloc.h (mallopt(3)): whether memory is filled with a fixed byte when it is given out."""

Counters = ctypes.c_uint64 * 2
"""``struct xt_counters``: packets and bytes."""


class Library:
    """libiptc's calls.

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
        self.get_policy = bind("get_policy", text, text, Counters, handle)
        self.set_policy = bind("set_policy", ctypes.c_int, text, text, Counters, handle)
        self.first_rule = bind("first_rule", entry, text, handle)
        self.next_rule = bind("next_rule", entry, entry, handle)
        self.get_target = bind("get_target", text, entry, handle)
        self.insert_entry = bind("insert_entry", ctypes.c_int, text, ctypes.c_char_p, number, handle)
        self.delete_num_entry = bind("delete_num_entry", ctypes.c_int, text, number, handle)
        self.strerror = bind("strerror", text, ctypes.c_int)
        self._mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def open(self, table: str) -> int:
        """A handle on a snapshot of ``table``, to be given to ``free``.

        libiptc does not clear the buffer that the kernel writes the table to, and the kernel leaves gaps
        in it; filled memory gives equal rules equal bytes, so that the reading under the lock recognises
        those of the first one. Saves 1.4 of 4.9 ms of a hold with 900 orphans.
        """
        if self._mallopt:
            self._mallopt(_M_PERTURB, 1)
        try:
            handle: int = self.init(table.encode())
        finally:
            if self._mallopt:
                self._mallopt(_M_PERTURB, 0)
        if not handle:
            raise self.failure(f"reading table {table}")
        return handle

    def give_back(self) -> None:
        """Give the memory of tables that were freed back to the system: 60 of 210 MB with 90,000 orphans."""
        if self._trim:
            self._trim(0)

    def failure(self, doing: str) -> Exception:
        """The exception for what the last call that failed left in errno."""
        code = ctypes.get_errno()
        if code == errno.EAGAIN:
            return ContentionError(f"{doing}: the table changed meanwhile")
        if code in (errno.EPERM, errno.EACCES):
            return NotPermittedError(f"{doing}: not permitted; CAP_NET_ADMIN and CAP_NET_RAW are needed")
        said = self.strerror(code)
        return NetsweepError(f"{doing}: {said.decode('ascii', 'replace') if said else os.strerror(code)}")


_IMPORTING = threading.Lock()
"""What is done to warnings is done to those of all threads: of two at once, one would end it for the other."""


@cache
def libiptc(family: Family) -> Library:
    """The library for IPv4 or IPv6, loaded when it is first needed; raises :class:`NoBackendError`."""
    return Library(_import_calls(*_CALLS[family]))


def _import_calls(module: str, name: str) -> Any:
    """Import python-iptables' bindings without letting them look for their libraries.

    Left alone, python-iptables runs gcc from PATH, ldconfig and modprobe, and opens whatever the current
    directory holds under the name of a library, all as root and in 250 ms. All of that is in its module
    ``util``, which is replaced here, and behind the environment variable XTABLES_LIBDIR. Setting that
    would change the environment of programs that other threads start, so only python-iptables' own view
    of it is changed.
    """
    for library in ("ip4tc", module, "xtables"):
        if _find_library(library)[0] is None:
            raise NoBackendError(
                f"there are x_tables rules, but {_SONAMES[library][0]} cannot be loaded: install iptables "
                "(Debian: apt-get install iptables), or leave them out with --backend nft"
            )
    try:
        with _IMPORTING, warnings.catch_warnings():
            # It has escapes in strings that newer Pythons warn about on stderr.
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(f"{_private_package()}.{module}"), name)
    except Exception as error:  # python-iptables raises AttributeError and others of its own
        raise NoBackendError(
            f"python-iptables cannot be loaded ({type(error).__name__}: {error}): "
            "install it, or leave x_tables out with --backend nft"
        ) from error


@cache
def _private_package() -> str:
    """Make a package of python-iptables' modules, and return the name that it can be imported by."""
    name = f"netsweep._iptc{next(_NUMBERS)}"
    found = importlib.util.find_spec("iptc")
    if found is None or not found.submodule_search_locations:
        raise ImportError("python-iptables is not installed")
    package = types.ModuleType(name)
    package.__path__ = list(found.submodule_search_locations)
    util = types.ModuleType(f"{name}.util")
    vars(util).update(find_library=_find_library, find_libc=_find_libc, load_kernel=_load_no_module)
    sys.modules.update({name: package, util.__name__: util})
    spec = importlib.util.find_spec(f"{name}.xtables")
    if spec is None or spec.loader is None:
        raise ImportError("python-iptables has no module xtables")
    xtables = importlib.util.module_from_spec(spec)
    vars(xtables)["__builtins__"] = {**vars(builtins), "__import__": _import_with_libdir}
    sys.modules[spec.name] = xtables
    spec.loader.exec_module(xtables)
    return name


def _import_with_libdir(name: str, *arguments: Any) -> Any:
    """``import`` for python-iptables' module xtables: its ``os.getenv`` knows the directory of extensions.

    None of them is ever loaded here.
    """
    module = builtins.__import__(name, *arguments)
    if name != "os":
        return module
    answers = {"XTABLES_LIBDIR": os.environ.get("XTABLES_LIBDIR", "/usr/lib/xtables")}
    return types.SimpleNamespace(**{**vars(module), "getenv": answers.get})


def _find_library(*names: str) -> tuple[ctypes.CDLL | None, int | None]:
    """The library of one of ``names`` and the major version in its name, or ``(None, None)``.

    Looks where the dynamic linker does, and for python-iptables' own helper beside it.
    """
    for name in names:
        for soname in _SONAMES.get(name, ()):
            try:
                return ctypes.CDLL(soname, mode=ctypes.RTLD_GLOBAL), int(soname.rpartition(".")[2])
            except OSError as error:
                if any(each in str(error) for each in _SHORTAGES):
                    raise  # no installation mends that
    if "xtwrapper" in names and (package := importlib.util.find_spec("iptc")) and package.origin:
        directory = os.path.dirname(os.path.dirname(package.origin))
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = os.path.join(directory, f"libxtwrapper{suffix}")
            if os.path.exists(path):
                return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL), 0
    return None, None


def _find_libc() -> ctypes.CDLL:
    # The process has it open already.
    return ctypes.CDLL(None, mode=ctypes.RTLD_GLOBAL)


def _load_no_module(name: str, exc_if_failed: bool = False) -> None:
    """Stand in for python-iptables' modprobe: a table that exists has its module loaded."""
