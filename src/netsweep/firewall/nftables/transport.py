"""Read and change nf_tables tables.

A handle does not name one rule for good: ``iptables-nft -R`` and ``nft replace rule`` put another rule
under it, and a table that is created again starts its handles again. So every batch is tied to a generation
(``NFNL_BATCH_GENID``) in which its rules are known to be what was decided on: the kernel refuses it
(ERESTART) where anything was committed since.
"""

from __future__ import annotations

import errno
import operator
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

from netsweep.errors import ContentionError, NetsweepError, NoBackendError, NotPermittedError, TableError
from netsweep.firewall import Addition, Scan, Standing, Transaction
from netsweep.firewall.extensions import text
from netsweep.firewall.nftables import messages as nft
from netsweep.firewall.nftables.codec import LOOKS_UP, MATCHES_BY_NUMBER, read_rule, spec_of
from netsweep.firewall.nftables.commits import Changed, Commits, TooLateError, is_among
from netsweep.firewall.nftables.dumps import Dump, Gathered
from netsweep.firewall.nftables.modules import kernel_has_nf_tables
from netsweep.host import netlink
from netsweep.host.netlink import NETLINK_NETFILTER, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from netsweep.model import BackendName, Chain, Family, Rule, Spec, Table, Undo
from netsweep.report import LockTimes

BATCH_MAX = 1000
"""Rules of one transaction. The kernel finds each rule by walking its chain past those deleted before it
in the same transaction, so a batch's time grows with its square: on chains of 6,000 and of 60,000 rules
twice and half as many take longer."""

SPECS_MAX = 20_000
"""How many specs are kept for the second reading: more than most sweeps delete, in 20 MB."""

_RETRY_FOR = 0.02
"""Seconds for which a batch that came too late is sent again while the locks are held. It may queue for 100 ms each
time, and one that queues before they are taken is about as likely to be in time."""

_ATTEMPTS = 100
"""How often to read a short answer again that others interrupt."""


class NftablesBackend:
    """The nf_tables tables of this network namespace; see :func:`netsweep.firewall.opening.open_backend`."""

    name: BackendName = "nft"
    batch = BATCH_MAX
    spans_tables = True

    def __init__(self, prefilter: Sequence[bytes], *, undo: bool = False, writes: bool = False) -> None:
        # Who only looks is shown rules that match interfaces otherwise than by name, too.
        self._prefilter = (*prefilter, *(() if writes or not prefilter else (*MATCHES_BY_NUMBER, LOOKS_UP)))
        self._undo = undo
        self._writes = writes
        self._socket: socket.socket | None = None
        self._commits: Commits | None = None
        self._gathered: dict[Chain, Gathered] = {}
        self._prepared = _Deletion([])
        self._stale: set[Changed] = set()
        self._owners: dict[Table, int] = {}
        self._incarnations: dict[Table, int] = {}
        self._specs: dict[tuple[Family, bytes], Spec] = {}
        # For undo: what rules look like by their content, and chains as they stood in a generation, so
        # that not every batch reads them again.
        self._identities: dict[bytes, bytes] = {}
        self._orders: dict[Chain, tuple[int, list[Standing]]] = {}

    def tables(self) -> Sequence[Table]:
        if not kernel_has_nf_tables():
            return []
        question = nft.request(nft.GETTABLE, NLM_F_REQUEST | NLM_F_DUMP)
        for _ in range(_ATTEMPTS):
            tables = []
            self._owners.clear()
            with suppress(netlink.InterruptedDumpError):
                for buffer, offset, end in netlink.dump(self._open(), question, "reading nf_tables"):
                    tables.append(self._table(buffer, offset, end))
                return tables
        raise ContentionError("the tables of nf_tables changed while they were read")

    def _table(self, buffer: bytes, offset: int, end: int) -> Table:
        found = dict(netlink.attributes(buffer, offset + nft.HEADER_SIZE, end))
        family = nft.FAMILIES.get(buffer[offset + netlink.HEADER.size])
        if family is None:
            raise netlink.MalformedError("nf_tables: a table has an unknown family")
        table = Table(self.name, family, text(found.get(nft.TABLE_NAME, b"")))
        self._incarnations[table] = int.from_bytes(found.get(nft.TABLE_HANDLE, b""), "big")
        if int.from_bytes(found.get(nft.TABLE_FLAGS, b""), "big") & nft.TABLE_OWNED:
            self._owners[table] = int.from_bytes(found.get(nft.TABLE_OWNER, b""), "big")
        return table

    def read(
        self,
        tables: Collection[Table],
        wanted: Callable[[Chain], bool],
        limit: int | None = None,
        *,
        again: bool = False,
    ) -> Scan:
        before = self._gathered if again else {}
        # Anew each time: a chain may have got another name.
        self._gathered = {chain: before.get(chain) or Gathered() for chain in filter(wanted, self._chains(tables))}
        if self._writes and self._gathered and self._following().losses:
            self._start_from_now(self._following())
        scan = Scan(chains=list(self._gathered))
        for chain, gathered in self._gathered.items():
            if not gathered.complete:
                self._read(chain, gathered, limit)
            scan.rules += sorted(gathered.rules.values(), key=operator.attrgetter("position"))
            scan.scanned[chain] = gathered.read
            scan.complete = scan.complete and gathered.complete
            scan.more = scan.more or gathered.read == limit
        if scan.complete:
            self._gathered = {}
        return scan

    def _chains(self, tables: Collection[Table]) -> list[Chain]:
        if not tables:
            return []
        # One answer for all tables: hosts have few that are not asked for.
        question = nft.request(nft.GETCHAIN, NLM_F_REQUEST | NLM_F_DUMP)
        for _ in range(_ATTEMPTS):
            chains = []
            with suppress(netlink.InterruptedDumpError):
                for buffer, offset, end in netlink.dump(self._open(), question, "reading nf_tables"):
                    found = dict(netlink.attributes(buffer, offset + nft.HEADER_SIZE, end))
                    family = nft.FAMILIES.get(buffer[offset + netlink.HEADER.size], Family.NETDEV)
                    table = Table(self.name, family, text(found.get(nft.CHAIN_TABLE, b"")))
                    bound = int.from_bytes(found.get(nft.CHAIN_FLAGS, b""), "big") & nft.CHAIN_BOUND
                    if table in tables and not bound:
                        chains.append(Chain(table, text(found.get(nft.CHAIN_NAME, b""))))
                return chains
        raise ContentionError("the chains of nf_tables changed while they were read")

    def refusal(self, table: Table) -> str | None:
        if table not in self._owners:
            return None
        return (
            f"table {table} can only be changed by the process that made it "
            f"(nft 'flags owner', netlink port {self._owners[table]})"
        )

    def ready(self, rules: Sequence[Rule]) -> None:
        self._prepared = _Deletion(rules)
        # Beside busy jobs a batch queues for the kernel's commit mutex, for 50 ms and more, and is too late then. So
        # an empty one queues first; in the moment after it the next one is likely to get the mutex at once.
        self._following().settle()

    def locked(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        # The generation keeps other writers away.
        return nullcontext()

    @contextmanager
    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        tables = list(dict.fromkeys(chain.table for chain in chains))
        for table in tables:
            if refusal := self.refusal(table):
                raise TableError(refusal)
        commits = self._following()
        with suppress(ContentionError):  # what was lost is read again
            commits.follow()
        if commits.losses:
            self._start_from_now(commits)
        # Callers hold rules as they were first read, so changed ones are read again in every transaction.
        self._stale |= commits.changed
        commits.changed.clear()
        found = (
            {chain: self._order(commits.generation, chain) for chain in chains if self._exists(chain)} if orders else {}
        )
        current = self._current(rules, lost=commits.losses > 0)
        yield _Transaction(self, commits, tables, self._incarnations.get(tables[0]), current, found)

    def _following(self) -> Commits:
        if self._commits is None:
            self._commits = Commits()
            self._start_from_now(self._commits)
        return self._commits

    def _start_from_now(self, commits: Commits) -> None:
        commits.settle()
        commits.generation = self._generation()

    def _current(self, rules: Sequence[Rule], *, lost: bool) -> Sequence[Rule]:
        """``rules`` as they are now; those that may have changed since they were first read are read again."""
        if not lost and self._stale.isdisjoint(self.deletion(rules).needed):
            return rules
        stale = [rule for rule in rules if lost or is_among(self._stale, rule.chain, rule.handle or 0)]
        again = {(rule.chain, rule.handle): rule for rule in self._again(stale)}
        gone = {(rule.chain, rule.handle) for rule in stale} - again.keys()
        return [again.get((r.chain, r.handle), r) for r in rules if (r.chain, r.handle) not in gone]

    def spec_of(self, table: Table, raw: bytes) -> Spec:
        from netsweep.firewall.nftables.undo import content_of  # most runs need none

        return spec_of(content_of(raw, nft.NUMBERS[table.family]))

    def close(self) -> None:
        self._close_socket()
        if self._commits is not None:
            self._commits.close()
            self._commits = None
        self._specs.clear()
        self._identities.clear()
        self._orders.clear()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, chain: Chain, gathered: Gathered, limit: int | None) -> None:
        """Dump a chain, or its first ``limit`` rules, and add what that shows to ``gathered``.

        The kernel starts each 32 KiB of a dump from the head of the chain, so the time for a dump grows
        with the square of its length.
        """
        undo_of = self._undo_reader(chain.table) if self._undo else None
        known, before = list(gathered.rules), self._departures(chain)
        dump, last = Dump(self._open(), chain), None
        position = 0
        for position, (handle, content, message) in enumerate(dump, 1):
            if any(map(content.__contains__, self._prefilter)):
                undo = undo_of(message) if undo_of else None
                if undo:
                    self._identities[content] = undo.identity
                gathered.rules[handle] = Rule(chain, position, handle, self._spec(chain, content, message), undo)
            elif handle in gathered.rules:
                del gathered.rules[handle]  # another rule was put under its handle since the dump before
            if position == limit:
                # The rest of the answer goes with its socket.
                self._close_socket()
                last = dump.last
                break
        else:
            # To follow commits makes others wait (Commits.settle), so who only looks relies on what the kernel says.
            proven = not self._commits or (before is not None and before == self._departures(chain))
            if proven and not dump.changed_at_end:
                dump.end()
        gathered.add(dump.runs, last)
        gathered.read = position
        if self._commits:
            for handle in gathered.rules.keys() & known:
                seen = any(handle in run for run in dump.runs)
                if not seen and is_among(self._commits.changed, chain, handle):
                    del gathered.rules[handle]

    def _departures(self, chain: Chain) -> int | None:
        """How many rules have left ``chain`` since commits are followed; ``None`` where that is not known.

        A chain of its table that changed counts too: it may have got another name. Rules leave a chain after their
        commit has counted the generation up, and before it is told.
        """
        if self._commits is None:
            return None
        generation = self._generation()
        with suppress(ContentionError):  # what was lost counts
            self._commits.follow()
        told = self._commits.generation == generation
        departures = self._commits.deletions
        return self._commits.losses + departures[chain] + departures[chain.table] if told else None

    def _order(self, generation: int, chain: Chain) -> list[Standing]:
        """All rules of ``chain``; raises :class:`ContentionError` where it changed while it was read."""
        known_at, order = self._orders.get(chain, (None, []))
        if known_at != generation:
            dump = Dump(self._open(), chain)
            order = [Standing(self._identity(content, message), handle) for handle, content, message in dump]
            if len(dump.runs) > 1 or dump.changed_at_end:
                raise ContentionError(f"{chain} changed while it was read")
            self._orders[chain] = generation, order
        return order

    def _identity(self, content: bytes, message: bytes) -> bytes:
        known = self._identities.get(content)
        if known is None:
            from netsweep.firewall.nftables.undo import undo_of  # most runs need none

            known = self._identities[content] = undo_of(message).identity
        return known

    def _spec(self, chain: Chain, content: bytes, message: bytes) -> Spec:
        """The spec of the rule in ``message``; ``content`` is the part of it that its meaning depends on."""
        known = self._specs.get((chain.table.family, content))
        if known is None:
            known = spec_of(read_rule(message)[2])
            if len(self._specs) >= SPECS_MAX:
                self._specs.clear()
            self._specs[chain.table.family, content] = known
        return known

    def _again(self, rules: Sequence[Rule]) -> Iterator[Rule]:
        """Read ``rules`` again by their handles, and leave out those that have gone."""
        # It asks on the same socket, so it comes before the questions.
        undo_of = self._undo_reader(rules[0].chain.table) if self._undo else None
        for rule in rules:
            where = nft.names(nft.RULE_TABLE, nft.RULE_CHAIN, rule.chain)
            handle = nft.attribute(nft.RULE_HANDLE, struct.pack(">Q", rule.handle or 0))
            answer = self._ask(nft.GETRULE, rule.chain.table, where + handle)
            if answer == errno.EPERM:  # it is longer than a page (nf_tables_getrule)
                found = [message for each, _, message in Dump(self._open(), rule.chain) if each == rule.handle]
                answer = found[0] if found else errno.ENOENT
            if not isinstance(answer, int):
                rest = nft.reader(rule.chain)(answer, 0, len(answer))[2]
                spec = self._spec(rule.chain, answer[rest:], answer)
                same = spec is rule.spec
                yield rule if same else rule._replace(spec=spec, undo=undo_of(answer) if undo_of else None)
            elif answer != errno.ENOENT:
                raise netlink.refused(answer, f"reading {rule}")

    def _generation(self) -> int:
        answer = self._ask(nft.GETGEN)
        if isinstance(answer, int):
            raise netlink.refused(answer, "reading the generation of nf_tables")
        return int.from_bytes(dict(netlink.attributes(answer, nft.HEADER_SIZE))[nft.GEN_ID], "big")

    def _exists(self, chain: Chain) -> bool:
        return not isinstance(
            self._ask(nft.GETCHAIN, chain.table, nft.names(nft.CHAIN_TABLE, nft.CHAIN_NAME, chain)), int
        )

    def _ask(self, kind: int, table: Table | None = None, attributes: bytes = b"") -> bytes | int:
        """The one message that answers a nft.request, or an errno."""
        sock, sequence = self._open(), next(netlink.SEQUENCES)
        sock.sendall(nft.request(kind, NLM_F_REQUEST, table, attributes, sequence))
        while True:
            answer = netlink.receive(sock)
            _, answered, _, number, _ = netlink.HEADER.unpack_from(answer)
            if number == sequence:
                return netlink.error_code(answer, 0, len(answer)) if answered == NLMSG_ERROR else answer

    def _undo_reader(self, table: Table) -> Callable[[bytes], Undo]:
        """A function that says what it takes to put a rule of ``table`` back.

        Some sets go with a rule that uses them: the kernel tells which.
        """
        from netsweep.firewall.nftables.undo import undo_of  # most runs need none

        question = nft.request(nft.GETSET, NLM_F_REQUEST | NLM_F_DUMP, table, nft.attribute(nft.SET_TABLE, table.name))
        lasting = set()
        with suppress(netlink.InterruptedDumpError):  # a set that was missed counts as going with its rule
            for buffer, offset, end in netlink.dump(self._open(), question, f"reading the sets of {table}"):
                found = dict(netlink.attributes(buffer, offset + nft.HEADER_SIZE, end))
                if not int.from_bytes(found.get(nft.SET_FLAGS, b""), "big") & nft.SET_ANONYMOUS:
                    lasting.add(text(found.get(nft.SET_NAME, b"")))
        return partial(undo_of, lasting=lasting)

    def _open(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = netlink.open_socket(NETLINK_NETFILTER)
            except OSError as error:
                if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
                    raise NoBackendError("this kernel has no nf_tables: leave it out with --backend legacy") from error
                raise netlink.refused(error.errno or errno.EIO, "opening nf_tables") from error
            # The first answer tells the kernel how much it may send at once: a dump that begins with a rule of
            # more than a page would end there.
            self._generation()
        return self._socket

    def deletion(self, rules: Sequence[Rule]) -> _Deletion:
        """What it takes to delete ``rules``."""
        return self._prepared if self._prepared.rules == rules else _Deletion(rules)

    def committed(self, generation: int, chains: Collection[Chain], rules: Collection[Rule]) -> None:
        """Note that a batch made ``generation``: it deleted ``rules``, or put some into ``chains``."""
        gone = {(rule.chain, rule.handle) for rule in rules}
        for chain, (known_at, order) in list(self._orders.items()):
            if chain in chains:
                del self._orders[chain]
            elif known_at + 1 & 0xFFFFFFFF == generation:
                self._orders[chain] = generation, [each for each in order if (chain, each.handle) not in gone]

    def suspect(self, rules: Collection[Changed]) -> None:
        """Read these again, each time."""
        self._stale.update(rules)


class _Deletion:
    """What it takes to delete ``rules``: messages, and those whose change may make one of them another rule."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.messages = list(nft.deletions(rules))
        chains = {rule.chain for rule in rules}
        self.needed: set[Changed] = {*((rule.chain, rule.handle or 0) for rule in rules), *chains}
        self.needed.update(chain.table for chain in chains)


class _Transaction:
    def __init__(
        self,
        backend: NftablesBackend,
        commits: Commits,
        tables: Sequence[Table],
        incarnation: int | None,
        rules: Sequence[Rule],
        orders: Mapping[Chain, Sequence[Standing]],
    ) -> None:
        self.incarnation = incarnation
        self.rules = rules
        self.orders = orders
        self._backend = backend
        self._commits = commits
        self._losses = commits.losses
        self._tables = " and ".join(map(str, tables))
        self._messages: list[bytes] = []
        self._deleted: Sequence[Rule] = ()
        self._filled: set[Chain] = set()
        self._needed: set[Changed] = set()

    def delete(self, rules: Sequence[Rule]) -> None:
        deletion = self._backend.deletion(rules)
        self._messages += deletion.messages
        self._deleted = rules
        self._needed |= deletion.needed

    def insert(self, additions: Sequence[Addition]) -> None:
        for chain, place, rules in additions:
            after = self.orders[chain][place - 1].handle if place else None
            self._filled.add(chain)
            self._needed.update([chain.table, chain, *([(chain, after)] if after else [])])
            # Each goes right behind the rule before the place, or to the head: so the last comes first, and
            # the kernel, which looks for that rule from the head of the chain, never passes those that are new.
            self._messages += [nft.insertion(chain, after, raw) for raw in reversed(rules)]

    def check(self) -> None:
        for start in range(0, len(self._messages), BATCH_MAX):
            self._send(self._commits.prepare(self._messages[start : start + BATCH_MAX]), commit=False)
        self._clear()

    def commit(self, confirm: Callable[[], None] = lambda: None) -> None:
        """Commit; where that comes too late and no rule that it needs was touched, again at once.

        Beside eleven busy jobs a batch that waited for the kernel's commit mutex is nearly always too late. The moment
        right after it is the best one: those that wait behind it have to be woken up first. Raises as
        :meth:`netsweep.firewall.Transaction.commit`.
        """
        if not self._messages:
            return
        prepared = self._commits.prepare(self._messages)
        give_up = time.monotonic() + _RETRY_FOR
        while True:
            self._commits.follow()
            if self._is_stale():
                raise self._changed()
            confirm()  # behind this the generation stays: rules that come with a bridge make another one
            try:
                made = self._send(prepared, commit=True)
                break
            except TooLateError:
                if time.monotonic() > give_up:
                    raise
        self._backend.committed(made, self._filled, self._deleted)
        self._clear()

    def _is_stale(self) -> bool:
        """Whether something that is needed was touched since, by what was followed."""
        return self._commits.losses > self._losses or not self._commits.changed.isdisjoint(self._needed)

    def _changed(self) -> ContentionError:
        return ContentionError(f"rules of {self._tables} changed meanwhile")

    def _clear(self) -> None:
        self._messages.clear()
        self._filled.clear()
        self._needed.clear()
        self._deleted = ()

    def _send(self, prepared: bytes, *, commit: bool) -> int:
        doing = f"changing {self._tables}"
        try:
            return self._commits.send(prepared, doing, commit=commit)
        except netlink.GoneError as error:
            if self._deleted:
                # Their chain was renamed; the kernel's message has only the new name.
                self._backend.suspect(self._needed)
                raise
            if self._is_stale():
                # Nothing ties a check to a generation.
                raise self._changed() from error
            raise NetsweepError(f"{doing}: something that the rules refer to has gone") from error
        except NotPermittedError as error:
            raise TableError(f"{error} (or another process owns the table)") from error
