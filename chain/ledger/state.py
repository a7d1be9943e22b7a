"""Overlay states: a committed base, and any number of uncommitted children that hold only what they changed.

A child reads through its ancestors. A block is one child of its parent's state; each transaction is tried on a child
of its own, merged if it succeeds and dropped if it
is refused (R15 b), so a refusal leaves no trace. Timers (R1) are an index over the entries' `timer` fields, overlaid
in the same way. Committing folds a child into the base.

Not here: the remembered transaction ids (`chain.ledger.recent`), which lie outside the state tree by R15 a.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
from sortedcontainers import SortedSet

from chain.base.codec import encode
from chain.base.errors import Fault
from chain.ledger.entries import (
    TIMED,
    TOTALS_KEY,
    Account,
    Entry,
    LeaseRecord,
    OrderRecord,
    Provider,
    Totals,
    get_account_key,
    get_lease_key,
    get_order_key,
    get_provider_key,
    get_timer,
)
from chain.ledger.tree import Node, StateTree, get_hash

EntryT = TypeVar("EntryT", bound=Entry)
Timer = tuple[int, bytes, bytes]
"""(deadline, id, state key): timers fire in this order (R1)."""


class State:
    """One state. Make the base by `State.load`, children by `child`.

    A base holds all entries and the sorted `timers`; a child the entries it changed (None: deleted) and the timers that
    `moved` with them.
    """

    __slots__ = ("entries", "moved", "parent", "timers", "tree")

    def __init__(self, parent: State | None = None) -> None:
        self.parent = parent
        self.entries: dict[bytes, Entry | None] = {}
        self.moved: dict[bytes, int | None] = {}
        self.timers: SortedSet[Timer] = SortedSet()
        self.tree: Node = parent.tree if parent else None

    @classmethod
    def load(cls, entries: Mapping[bytes, Entry], tree: StateTree) -> State:
        """A base that holds `entries`, with its tree."""
        state = cls()
        state.entries.update(entries)
        state.timers.update(
            (timer, key[1:], key) for key, entry in entries.items() if (timer := get_timer(entry)) is not None
        )
        state.tree = tree.update(None, {key: encode(entry) for key, entry in entries.items()})
        return state

    @property
    def root(self) -> bytes:
        """Root over all entries, as of the last `seal`."""
        return get_hash(self.tree)

    def child(self) -> State:
        """An overlay without changes."""
        return State(self)

    def get(self, key: bytes, kind: type[EntryT]) -> EntryT | None:
        """The entry under `key`, or None. Raises `Fault` (`state.kind`) if it is of another kind."""
        layer: State | None = self
        while layer is not None:
            if key in layer.entries:
                entry = layer.entries[key]
                if entry is not None and not isinstance(entry, kind):
                    raise Fault(f"{key.hex()} holds a {type(entry).__name__}", rule="state.kind")
                return entry
            layer = layer.parent
        return None

    def need(self, key: bytes, kind: type[EntryT]) -> EntryT:
        """The entry under `key`; its absence is our own `Fault` (`state.missing`)."""
        entry = self.get(key, kind)
        if entry is None:
            raise Fault(f"no {kind.__name__} under {key.hex()}", rule="state.missing")
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Set an entry, and its timer."""
        self.entries[key] = entry
        if key[:1] in TIMED:
            self.moved[key] = get_timer(entry)

    def delete(self, key: bytes) -> None:
        """Remove an entry and its timer."""
        self.entries[key] = None
        if key[:1] in TIMED:
            self.moved[key] = None

    def account(self, key: bytes) -> Account | None:
        """An account, or None where the chain has never seen it."""
        return self.get(get_account_key(key), Account)

    def provider(self, key: bytes) -> Provider | None:
        """A provider's bond, or None."""
        return self.get(get_provider_key(key), Provider)

    def order(self, order: bytes) -> OrderRecord | None:
        """An order's mandate, or None."""
        return self.get(get_order_key(order), OrderRecord)

    def lease(self, lease: bytes) -> LeaseRecord | None:
        """A lease, live or ended, or None."""
        return self.get(get_lease_key(lease), LeaseRecord)

    @property
    def totals(self) -> Totals:
        """Where all credits are."""
        return self.need(TOTALS_KEY, Totals)

    def merge(self, child: State) -> None:
        """Take over what `child` changed; it must be a direct child and is not to be used any more."""
        self.entries.update(child.entries)
        self.moved.update(child.moved)

    def seal(self, tree: StateTree) -> dict[bytes, bytes | None]:
        """Bring the tree up to this overlay's changes; returns them as bytes (None: deleted)."""
        changes = {key: None if entry is None else encode(entry) for key, entry in self.entries.items()}
        parent = self.parent.tree if self.parent else None
        self.tree = tree.update(parent, changes)
        return changes

    def commit(self) -> None:
        """Fold this child into its parent, which must be the base; this object is the base from now on."""
        base = self.parent
        if base is None or base.parent is not None:
            raise Fault("only a child of the base can be committed", rule="state.commit")
        for key, entry in self.entries.items():
            old = get_timer(base.entries.get(key))
            if old is not None:
                base.timers.discard((old, key[1:], key))
            new = get_timer(entry)
            if new is not None:
                base.timers.add((new, key[1:], key))
            if entry is None:
                base.entries.pop(key, None)
            else:
                base.entries[key] = entry
        self.entries, self.timers, self.moved = base.entries, base.timers, {}
        self.parent = None

    def find_due(self, now: int) -> list[Timer]:
        """Timers with deadline < `now`, in (deadline, id) order (R1)."""
        return sorted(self._scan(now))

    def find_next(self) -> int | None:
        """The earliest deadline in a base, or None."""
        return self.timers[0][0] if self.timers else None

    def items(self) -> Iterable[tuple[bytes, Entry]]:
        """All entries of a base, in no particular order."""
        return ((key, entry) for key, entry in self.entries.items() if entry is not None)

    def _overlay(self) -> dict[bytes, int | None]:
        """Timers changed since the base, the youngest change of each."""
        moved: dict[bytes, int | None] = {}
        layer: State | None = self
        while layer is not None:
            moved = {**layer.moved, **moved}
            layer = layer.parent
        return moved

    def _scan(self, now: int) -> Iterator[Timer]:
        moved = self._overlay()
        for timer in self._base().timers:
            if timer[0] >= now:
                break
            if timer[2] not in moved:
                yield timer
        for key, deadline in moved.items():
            if deadline is not None and deadline < now:
                yield (deadline, key[1:], key)

    def _base(self) -> State:
        layer = self
        while layer.parent is not None:
            layer = layer.parent
        return layer


def check_conservation(state: State, supply: int) -> None:
    """Raise `Fault` (`R13.conserved`) unless accounts + bonds + locked + burned is `supply`, each as counted one by
    one.

    For a base only; costs a walk over all entries. Also checks that no order exceeds its cap and that what providers
    set aside is what their live leases hold (R2, R3 e).
    """
    accounts = bonds = locked = 0
    set_aside: dict[bytes, int] = {}
    mandates: dict[bytes, int] = {}
    entries = dict(state.items())
    for entry in entries.values():
        match entry:
            case Account():
                accounts += entry.balance
            case Provider():
                bonds += entry.bond
            case LeaseRecord():
                locked += entry.locked
                set_aside[entry.terms.provider] = set_aside.get(entry.terms.provider, 0) + entry.bond
                mandates[entry.terms.order] = mandates.get(entry.terms.order, 0) + entry.locked
            case _:
                continue
    totals = state.totals
    if (accounts, bonds, locked) != (totals.accounts, totals.bonds, totals.locked):
        raise Fault(f"counted {(accounts, bonds, locked)}, kept {totals}", rule="R13.conserved")
    if accounts + bonds + locked + totals.burned != supply:
        raise Fault(f"{totals} is not {supply} in all", rule="R13.conserved")
    for key, entry in entries.items():
        _check_entry(key, entry, set_aside, mandates)


def _check_entry(key: bytes, entry: Entry, set_aside: Mapping[bytes, int], mandates: Mapping[bytes, int]) -> None:
    if any(value < 0 for value in msgspec.structs.astuple(entry) if isinstance(value, int)):
        raise Fault(f"a negative figure in {entry}", rule="R18.range")
    if isinstance(entry, Provider) and not entry.bond >= entry.set_aside == set_aside.get(key[1:], 0):
        raise Fault(f"{entry} sets aside {set_aside.get(key[1:], 0)}", rule="R3.e.set-aside")
    if isinstance(entry, OrderRecord) and not (
        entry.locked + entry.paid <= entry.cap and entry.locked == mandates.get(key[1:], 0)
    ):
        raise Fault(f"{entry} holds {mandates.get(key[1:], 0)}", rule="R2.cap")
