"""What the state holds: typed entries, each under a key of one kind letter and an id. The state root commits to all
of them.

| letter | id | entry |
|---|---|---|
| a | account key | `Account` |
| p | account key | `Provider` |
| o | order id | `OrderRecord` (R2) |
| l | lease id | `LeaseRecord` (the table of law.md) |
| t | - | `Totals` (R13) |

Entries are frozen; a rule replaces an entry as a whole. Not here: what may change them (`chain.ledger.rules`), how
they lie in the tree.
"""

from __future__ import annotations

from enum import StrEnum

from chain.base.codec import Record, decode
from chain.base.errors import Fault
from chain.base.hashing import Digest
from chain.base.keys import Key
from chain.base.units import Amount, Bps, Count, Height, Instant, Millis
from chain.ledger.terms.agreement import Kind, Windows
from chain.ledger.terms.outcome import Cause

TOTALS_KEY = b"t"
"""Where `Totals` lies."""


class LeaseState(StrEnum):
    """The states of law.md's table; those that issues to come use are named already."""

    OPEN = "open"
    CALLED = "called"
    CANCELLING = "cancelling"
    DELIVERED = "delivered"
    DISPUTED = "disputed"
    SETTLED = "settled"
    SLASHED = "slashed"
    UNSTARTED = "unstarted"
    RETURNED = "returned"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    VOID = "void"


LIVE = frozenset({LeaseState.OPEN, LeaseState.CALLED, LeaseState.CANCELLING, LeaseState.DELIVERED, LeaseState.DISPUTED})
"""States in which money is still locked."""


class Account(Record, frozen=True, tag="account"):
    """Free micro-credits of an owner key, and the operating key that signs for it (R19; at first the same)."""

    balance: Amount
    operating: Key


class Provider(Record, frozen=True, tag="provider"):
    """A provider's registered bond, the part set aside in live leases (R3 e), and the sum of their locked prices
    (R14).
    """

    bond: Amount
    set_aside: Amount
    exposed: Amount
    leases: Count


class Cover(Record, frozen=True, tag="cover"):
    """Segments `first` .. `first + count - 1` of one replica, served by a live lease or paid for (R2)."""

    replica: Count
    first: Count
    count: Count


class OrderRecord(Record, frozen=True, tag="mandate"):
    """The mandate of an order with at least one lease (R2): always locked + paid <= cap.

    `coverage` is sorted, disjoint and merged. `timer` is the expiry until it has passed, then None.
    """

    requester: Key
    cap: Amount
    locked: Amount
    paid: Amount
    expiry: Instant
    timer: Instant | None
    live: Count
    coverage: tuple[Cover, ...]
    bids: tuple[Digest, ...]


class LeaseTerms(Record, frozen=True, tag="leaseterms"):
    """What was agreed when the lease opened; never changes.

    `unit` is the price of a segment of weight one, `price` that of the whole range, `bond` what was set aside.
    `requester_key` and `provider_key` are the operating
    keys of that moment: receipts and acceptances verify against these (R19). `holders` are those of order and bid.
    """

    order: Digest
    award: Digest
    bid: Digest
    requester: Key
    provider: Key
    auctioneer: Key
    requester_key: Key
    provider_key: Key
    watcher: Key | None
    holders: tuple[Key, ...]
    kind: Kind
    comparator: str
    start: Digest
    replica: Count
    first: Count
    count: Count
    weights: tuple[Count, ...]
    segment_wall: Millis
    lanes: Count
    unit: Amount
    price: Amount
    commission: Bps
    bond: Amount
    damages: Bps
    panel: Count
    deposit: Amount
    windows: Windows
    opened: Instant
    height: Height
    deadline: Instant


class ReceiptNote(Record, frozen=True, tag="note"):
    """The receipt a lease is judged by: its id, count, root and cause (R5, R8)."""

    id: Digest
    count: Count
    records: Digest
    cause: Cause


class LeaseRecord(Record, frozen=True, tag="lease"):
    """A lease, live or ended.

    `held` segments are still at stake (all, until a return, the deadline or a cancel cut the range to the served
    ones); `locked` of the requester's and `bond` of the provider's money are still held for them. `called` is when its
    provider was last asked for a sign of life (R6). `fee` is the least the provider gets after a cancel (row 6).
    `paid`, `commission`, `refunded`, `damages` and `burned` (of both sides) say what moved so far.
    """

    id: Digest
    terms: LeaseTerms
    state: LeaseState
    timer: Instant | None
    receipt: ReceiptNote | None
    held: Count
    called: Instant | None
    fee: Amount
    locked: Amount
    bond: Amount
    paid: Amount
    commission: Amount
    refunded: Amount
    damages: Amount
    burned: Amount

    @property
    def served(self) -> int:
        """r of the table: segments of the receipt on the chain."""
        return self.receipt.count if self.receipt else 0

    @property
    def is_live(self) -> bool:
        """Whether money is still locked."""
        return self.state in LIVE


class Totals(Record, frozen=True, tag="totals"):
    """Where all credits are (R13): free in accounts, in registered bonds, locked in leases, burned. Their sum never
    changes.
    """

    accounts: Amount
    bonds: Amount
    locked: Amount
    burned: Amount


Entry = Account | Provider | OrderRecord | LeaseRecord | Totals
"""What may stand in the state."""

_KINDS: dict[bytes, type[Entry]] = {
    b"a": Account,
    b"p": Provider,
    b"o": OrderRecord,
    b"l": LeaseRecord,
    b"t": Totals,
}


TIMED = (b"o", b"l")
"""Kinds of entries that may have a timer."""


def get_account_key(key: bytes) -> bytes:
    """State key of an account."""
    return b"a" + key


def get_provider_key(key: bytes) -> bytes:
    """State key of a provider."""
    return b"p" + key


def get_order_key(order: bytes) -> bytes:
    """State key of an order's mandate."""
    return b"o" + order


def get_lease_key(lease: bytes) -> bytes:
    """State key of a lease."""
    return b"l" + lease


def get_timer(entry: Entry | None) -> int | None:
    """The Instant after which the entry fires by itself, or None (R1)."""
    return entry.timer if isinstance(entry, OrderRecord | LeaseRecord) else None


def decode_entry(key: bytes, data: bytes) -> Entry:
    """The entry stored under `key`; raises `Fault` (`state.key`) for a key of no kind and `BadEncoding` for bytes
    that are not canonical.
    """
    kind = _KINDS.get(key[:1])
    if kind is None:
        raise Fault(f"state key {key.hex()} is of no known kind", rule="state.key")
    return decode(data, kind)
