"""The ledger's face to consensus and store (R16 h): check, propose, apply, commit; several uncommitted children may
exist.

The ledger sees blocks of transactions and returns results and roots; it knows nothing of votes or of who may propose.
Header fields that belong to consensus (epoch, slot, seats, reveal)
come in with the `Frame`. Nothing here reads a clock: block time is in the header, and `check` takes the time as an
argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from chain.base.codec import encode
from chain.base.errors import Fault, Refused
from chain.base.merkle import EMPTY_ROOT, compute_root
from chain.consensus.beacon import compute_beacon
from chain.ledger.blocks import MAX_BLOCK_BYTES, MAX_BLOCK_TXS, Block, Header, compute_block_id
from chain.ledger.entries import (
    TOTALS_KEY,
    Account,
    Entry,
    LeaseRecord,
    OrderRecord,
    Provider,
    Totals,
    decode_entry,
    get_account_key,
)
from chain.ledger.genesis import Genesis, check_genesis, compute_chain_id, compute_seats_digest
from chain.ledger.index import LeaseIndex
from chain.ledger.recent import BlockIds, Recent
from chain.ledger.results import LedgerEvent, Result, compute_results_root
from chain.ledger.signatures import SignatureMemo
from chain.ledger.state import State, check_conservation
from chain.ledger.transactions import SignedTransaction, compute_transaction_id
from chain.ledger.transition import Execution, Rules
from chain.ledger.tree import MapProof, StateTree

BLOCK_OVERHEAD = 1_024
"""Bytes kept free for header and frame of a block; they need about 400."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What consensus decides about a header before its transactions are known (R16 g). `beacon` is `compute_beacon` of
    the parent's and `reveal` (R17).
    """

    epoch: int
    slot: int
    time: int
    reveal: bytes
    beacon: bytes
    seats: bytes
    seats_changed: int


class Refusal(msgspec.Struct, frozen=True):
    """A transaction that was left out of a proposal, and why."""

    transaction: bytes
    error: Refused


class Proposal(msgspec.Struct, frozen=True):
    """A block made here, already applied unless nothing at all happens in it. `refused` may be sent again until their
    valid_until (R15 b).
    """

    id: bytes
    block: Block
    refused: tuple[Refusal, ...]


class Applied(msgspec.Struct, frozen=True):
    """A block that holds: its id, header and the results its header commits to."""

    id: bytes
    header: Header
    results: tuple[Result, ...]


class Committed(msgspec.Struct, frozen=True):
    """What committing a block brings: what the store writes in one transaction (`changes`: state key -> bytes or None;
    `recent`), and what listeners hear.

    `abandoned` are transactions of branches that can no longer be committed; those not in the block go back to the
    mempool (R16 h).
    """

    id: bytes
    block: Block
    results: tuple[Result, ...]
    events: tuple[LedgerEvent, ...]
    changes: Mapping[bytes, bytes | None]
    recent: BlockIds
    abandoned: tuple[SignedTransaction, ...]


class Snapshot(msgspec.Struct, frozen=True):
    """All that a node needs to go on from its head: entries by key, header, remembered ids (R15 a)."""

    header: Header
    entries: Mapping[bytes, bytes]
    recent: tuple[BlockIds, ...]


@dataclass(frozen=True, slots=True)
class _Tip:
    """A header, and state and window after its block: what a block can be built on."""

    id: bytes
    header: Header
    state: State
    recent: Recent


@dataclass(frozen=True, slots=True)
class _Node:
    """An applied block that is not committed."""

    tip: _Tip
    block: Block
    results: tuple[Result, ...]
    events: tuple[LedgerEvent, ...]
    changes: Mapping[bytes, bytes | None]


class Ledger:
    """One chain's ledger, from genesis or from a snapshot."""

    def __init__(self, genesis: Genesis) -> None:
        """The ledger at height 0; raises `Refused` for a genesis that breaks a rule."""
        self.genesis = check_genesis(genesis)
        self.chain_id = compute_chain_id(genesis)
        self._tree = StateTree(self.chain_id)
        self._rules = Rules(self.chain_id, genesis.params, SignatureMemo())
        self._pending: dict[bytes, _Node] = {}
        entries = make_genesis_entries(genesis)
        self._head = self._make_tip(make_genesis_header(genesis), entries, Recent(genesis.time))
        self._leases = LeaseIndex(())

    @classmethod
    def load(
        cls, genesis: Genesis, entries: Iterable[tuple[bytes, bytes]], header: Header, recent: Iterable[BlockIds]
    ) -> Ledger:
        """The ledger at a stored head; raises `Fault` (`store.root`) if its entries are not what the header says."""
        ledger = cls(genesis)
        loaded = {key: decode_entry(key, data) for key, data in entries}
        ledger._head = ledger._make_tip(header, loaded, Recent.load(header.time, recent))
        ledger._leases = LeaseIndex(entry for entry in loaded.values() if isinstance(entry, LeaseRecord))
        if ledger._head.state.root != header.state:
            raise Fault(f"stored state is not that of block {header.height}", rule="store.root")
        return ledger

    def export(self) -> Snapshot:
        """The committed head as `load` takes it."""
        entries = {key: encode(entry) for key, entry in self._head.state.items()}
        return Snapshot(self.head, entries, self._head.recent.blocks())

    @property
    def head(self) -> Header:
        """Header of the last committed block."""
        return self._head.header

    @property
    def head_id(self) -> bytes:
        """Id of the last committed block."""
        return self._head.id

    def check(self, transaction: SignedTransaction, now: int) -> bytes:
        """Try a transaction on the last committed state as if in a block at `now`; returns its id, raises `Refused`.
        Changes nothing.
        """
        time = max(now, self.head.time + 1)
        return Execution(self._rules, self._head.state, self._head.recent, time, self.head.height + 1).run(transaction)

    def propose(self, parent: bytes, frame: Frame, pending: Iterable[SignedTransaction]) -> Proposal:
        """Make a block on `parent` of those pending transactions that succeed and fit, in their order (R15 b)."""
        tip = self._get_tip(parent)
        self._check_frame(tip.header, frame)
        execution = self._start(tip, frame.time)
        taken, refused, size = list[SignedTransaction](), list[Refusal](), BLOCK_OVERHEAD
        for transaction in pending:
            size_after = size + len(encode(transaction))
            if len(taken) == MAX_BLOCK_TXS or size_after > MAX_BLOCK_BYTES:
                break
            try:
                execution.run(transaction)
            except Refused as error:
                refused.append(Refusal(compute_transaction_id(transaction.body), error))
            else:
                taken.append(transaction)
                size = size_after
        sealed = self._seal(tip, frame, execution, tuple(taken))
        if taken or execution.results:
            self._pending[sealed.tip.id] = sealed
        return Proposal(sealed.tip.id, sealed.block, tuple(refused))

    def apply(self, block: Block) -> Applied:
        """Carry out a block on its parent, which may be uncommitted. Raises `Refused` if anything in header or
        transactions is off.
        """
        header = block.header
        identity = compute_block_id(self.chain_id, header)
        known = self._pending.get(identity)
        if known is not None and known.block == block:
            return Applied(identity, header, known.results)
        tip = self._get_tip(header.parent)
        frame = Frame(
            epoch=header.epoch,
            slot=header.slot,
            time=header.time,
            reveal=block.reveal,
            beacon=header.beacon,
            seats=header.seats,
            seats_changed=header.seats_changed,
        )
        self._check_frame(tip.header, frame)
        if len(block.transactions) > MAX_BLOCK_TXS or len(encode(block)) > MAX_BLOCK_BYTES:
            raise Refused(
                f"a block of more than {MAX_BLOCK_TXS} transactions or {MAX_BLOCK_BYTES} bytes", rule="block.size"
            )
        execution = self._start(tip, header.time)
        for transaction in block.transactions:
            execution.run(transaction)
        sealed = self._seal(tip, frame, execution, block.transactions)
        check_header(sealed.tip.header, header)
        self._pending[identity] = sealed
        return Applied(identity, header, sealed.results)

    def commit(self, block: bytes) -> Committed:
        """Make an applied child of the head the new head; its siblings and their descendants are gone. Raises `Refused`
        (`block.unknown`, `block.order`).
        """
        node = self._pending.get(block)
        if node is None:
            raise Refused(f"no applied block {block.hex()}", rule="block.unknown")
        tip = node.tip
        if tip.header.parent != self._head.id:
            raise Refused("only a child of the head can be committed", rule="block.order")
        recent = tip.recent.export()
        tip.state.commit()
        tip.recent.commit()
        self._head = tip
        del self._pending[block]
        abandoned = self._prune()
        self._leases.update(node.events)
        return Committed(block, node.block, node.results, node.events, node.changes, recent, tuple(abandoned))

    def next_timer(self) -> int | None:
        """The earliest deadline in the committed state; a block whose time is greater fires it, and is worth proposing
        for it (R1).
        """
        return self._head.state.find_next()

    def account(self, key: bytes) -> Account | None:
        """A committed account."""
        return self._head.state.account(key)

    def provider(self, key: bytes) -> Provider | None:
        """A committed provider."""
        return self._head.state.provider(key)

    def order(self, order: bytes) -> OrderRecord | None:
        """A committed order's mandate, None before its first lease and after its record was deleted."""
        return self._head.state.order(order)

    def lease(self, lease: bytes) -> LeaseRecord | None:
        """A committed lease, live or ended."""
        return self._head.state.lease(lease)

    def leases(
        self,
        *,
        provider: bytes | None = None,
        requester: bytes | None = None,
        order: bytes | None = None,
        live: bool | None = None,
    ) -> list[LeaseRecord]:
        """Committed leases of all the parties named, oldest first; `live` chooses those still live or those ended."""
        found = self._leases.find([party for party in (provider, requester, order) if party is not None])
        leases = (lease for one in found if (lease := self.lease(one)) is not None)
        chosen = (lease for lease in leases if live is None or lease.is_live == live)
        return sorted(chosen, key=lambda lease: (lease.terms.opened, lease.id))

    def supply(self) -> Totals:
        """Where all committed credits are; `genesis.supply` is their sum (R13)."""
        return self._head.state.totals

    def prove(self, key: bytes) -> MapProof:
        """Proof of what the head's state holds under a state key."""
        return self._tree.prove(self._head.state.tree, key)

    def check_conservation(self) -> None:
        """Raise `Fault` unless every credit of genesis is accounted for in the committed state (R13). Walks all
        entries.
        """
        check_conservation(self._head.state, self.genesis.supply)

    def _make_tip(self, header: Header, entries: Mapping[bytes, Entry], recent: Recent) -> _Tip:
        return _Tip(compute_block_id(self.chain_id, header), header, State.load(entries, self._tree), recent)

    def _get_tip(self, block: bytes) -> _Tip:
        if block == self._head.id:
            return self._head
        node = self._pending.get(block)
        if node is None:
            raise Refused(f"the parent {block.hex()} is neither the head nor applied", rule="block.parent")
        return node.tip

    def _start(self, parent: _Tip, time: int) -> Execution:
        return Execution(self._rules, parent.state, parent.recent, time, parent.header.height + 1)

    def _check_frame(self, parent: Header, frame: Frame) -> None:
        """R1 and R16 g, R17: what a header must be whatever its transactions are. No transaction changes seats yet, so
        they stay.
        """
        if frame.time <= parent.time:
            raise Refused("block time must be greater than the parent's", rule="R1.time")
        if frame.slot <= parent.slot:
            raise Refused("the slot must be greater than the parent's", rule="R16.slot")
        if (frame.epoch, frame.seats, frame.seats_changed) != (parent.epoch, parent.seats, parent.seats_changed):
            raise Refused("epoch and seats are not the parent's", rule="R16.seats")
        if frame.beacon != compute_beacon(self.chain_id, parent.beacon, frame.reveal):
            raise Refused("the beacon does not follow from the parent's and the reveal", rule="R17.beacon")

    def _seal(
        self, parent: _Tip, frame: Frame, execution: Execution, transactions: tuple[SignedTransaction, ...]
    ) -> _Node:
        changes = execution.state.seal(self._tree)
        header = Header(
            epoch=frame.epoch,
            slot=frame.slot,
            height=parent.header.height + 1,
            time=frame.time,
            parent=parent.id,
            seats=frame.seats,
            seats_changed=frame.seats_changed,
            transactions=compute_root([compute_transaction_id(one.body) for one in transactions]),
            results=compute_results_root(execution.results),
            state=execution.state.root,
            beacon=frame.beacon,
        )
        tip = _Tip(compute_block_id(self.chain_id, header), header, execution.state, execution.recent)
        return _Node(
            tip,
            Block(header, frame.reveal, transactions),
            tuple(execution.results),
            tuple(execution.events),
            changes,
        )

    def _prune(self) -> list[SignedTransaction]:
        """Keep the head's descendants; return the transactions of all others."""
        kept, abandoned = dict[bytes, _Node](), list[SignedTransaction]()
        for identity, node in sorted(self._pending.items(), key=lambda item: item[1].tip.header.height):
            parent = node.tip.header.parent
            if parent == self._head.id or parent in kept:
                kept[identity] = node
            else:
                abandoned += node.block.transactions
        self._pending = kept
        return abandoned


def check_header(expected: Header, header: Header) -> None:
    """Raise `Refused` by the first field in which a block's header differs from what its content comes to."""
    for name in Header.__struct_fields__:
        if getattr(header, name) != getattr(expected, name):
            raise Refused(f"the header's {name} is not what the block comes to", rule=f"block.{name}")


def make_genesis_entries(genesis: Genesis) -> dict[bytes, Entry]:
    """The state at height 0."""
    entries: dict[bytes, Entry] = {
        get_account_key(grant.account): Account(grant.amount, grant.account) for grant in genesis.balances
    }
    entries[TOTALS_KEY] = Totals(genesis.supply, 0, 0, 0)
    return entries


def make_genesis_header(genesis: Genesis) -> Header:
    """The header at height 0: slot 0 and a zero parent. Anyone can compute it from the genesis file."""
    chain_id = compute_chain_id(genesis)
    tree = StateTree(chain_id)
    return Header(
        epoch=0,
        slot=0,
        height=0,
        time=genesis.time,
        parent=bytes(32),
        seats=compute_seats_digest(chain_id, 0, (seat.key for seat in genesis.seats)),
        seats_changed=0,
        transactions=EMPTY_ROOT,
        results=EMPTY_ROOT,
        state=State.load(make_genesis_entries(genesis), tree).root,
        beacon=compute_beacon(chain_id, bytes(32), chain_id),
    )
