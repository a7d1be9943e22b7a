"""What the node's JSON-RPC 2.0 interface answers (views as JSON; digests and keys as hex, amounts as integers of
micro-credits).

| method | params | answer |
|---|---|---|
| chain.info | - | `ChainInfo` |
| chain.submit | tx (hex of canonical bytes), wait_ms | `TxOutcome` once final; else error -32001, data {"rule"} |
| chain.account | key | `AccountView` |
| chain.lease | id | `LeaseView` or null |
| chain.order | id | `OrderView` or null |
| chain.leases | provider?, requester?, order?, live? | list of `LeaseView` |
| chain.events | topics (hex of accounts, orders, leases), after (height), wait_ms | `EventsPage`: long poll, final |
| chain.supply | - | `Supply` |
| chain.header | height | hex of canonical `Finality` (header with what makes it final) |
| chain.proof | tx | hex of canonical `TxProof` |
| chain.prove_lease | id | hex of canonical `LeaseProof`: the lease in the state of the newest final header |
"""

from __future__ import annotations

import msgspec

RPC_VERSION = 1
"""Version of this interface, in `ChainInfo.version`; another one is refused by name (`protocol.version`)."""

REFUSED = -32001
"""Error code: what was sent breaks a rule, named in `data.rule`. Sending it again will not help."""

PENDING = -32002
"""Error code: not final within the wait asked for. It may become so."""

UNAVAILABLE = -32003
"""Error code: the node can't take it now, for a reason named in `data.rule`."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all views."""


class ChainInfo(View, frozen=True, kw_only=True):
    """The node and its chain. `fee` is the flat fee of a transaction, `deposit` the least amount that makes an
    account.
    """

    version: int
    software: str
    chain: str
    name: str
    height: int
    time: int
    seats: int
    fee: int
    deposit: int
    min_bond: int
    private: bool


class TxOutcome(View, frozen=True, kw_only=True):
    """A transaction in a final block."""

    id: str
    height: int
    time: int


class AccountView(View, frozen=True, kw_only=True):
    """An account; `known` is false where the chain has never seen it. `bond` is a provider's registered bond,
    `set_aside` the part bound in live leases.
    """

    key: str
    known: bool
    balance: int
    provider: bool
    bond: int
    set_aside: int


class LeaseView(View, frozen=True, kw_only=True):
    """A lease, live or ended. `state` is a name of law.md's table; money fields are what has moved so far.

    `held` segments are still at stake, `served` are in the receipt on the chain, which ended by `cause` (empty where
    there is none). `called` is when it was last called (0: never), `start` the digest of its first input.
    """

    id: str
    order: str
    award: str
    requester: str
    provider: str
    auctioneer: str
    state: str
    replica: int
    first: int
    count: int
    price: int
    commission_bps: int
    locked: int
    bond: int
    paid: int
    commission: int
    refunded: int
    burned: int
    opened: int
    deadline: int
    timer: int
    receipt: str
    served: int
    held: int
    cause: str
    called: int
    damages: int
    start: str


class OrderView(View, frozen=True, kw_only=True):
    """An order's mandate record (R2)."""

    id: str
    requester: str
    cap: int
    locked: int
    paid: int
    expiry: int


class LedgerEvent(View, frozen=True, kw_only=True):
    """One change in a final block that concerns a topic.

    `kind` is `lease` (its state from then on), `transfer` (`sender`, `to`, `amount`), `bond` (a provider `sender` added
    `amount`) or `order` (the record of order `to` was deleted, R2). `tx` is empty where a timer did it (R1).
    """

    height: int
    time: int
    kind: str
    tx: str
    lease: LeaseView | None = None
    sender: str = ""
    to: str = ""
    amount: int = 0


class EventsPage(View, frozen=True, kw_only=True):
    """Events after a height; ask again with `after=next`."""

    next: int
    events: list[LedgerEvent]


class Supply(View, frozen=True, kw_only=True):
    """Where all credits are. `total + burned` never changes (R13)."""

    genesis: int
    total: int
    burned: int
    accounts: int
    bonds: int
    locked: int
