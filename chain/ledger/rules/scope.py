"""What a rule sees: the state it works on, block time, the chain's constants, who sent the transaction; and what it
reports.

A rule checks first and changes last, raising `Refused` with the rule's name; it never reads anything but its scope.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.ledger.entries import (
    TOTALS_KEY,
    Account,
    LeaseRecord,
    Provider,
    get_account_key,
    get_lease_key,
    get_provider_key,
)
from chain.ledger.genesis import Params
from chain.ledger.results import Happening, LeaseMoved, LedgerEvent
from chain.ledger.signatures import SignatureMemo
from chain.ledger.state import State


@dataclass(frozen=True, slots=True)
class Scope:
    """`state` is an overlay of its own that is dropped on a refusal; `sender` and `transaction` are empty for a timer;
    `now` is block time.
    """

    chain_id: bytes
    params: Params
    memo: SignatureMemo
    state: State
    now: int
    height: int
    sender: bytes = b""
    transaction: bytes | None = None
    events: list[LedgerEvent] = field(default_factory=list)

    def report(self, happening: Happening, lease: LeaseRecord | None = None) -> None:
        """Add to what this transaction or timer did."""
        self.events.append(LedgerEvent(transaction=self.transaction, happening=happening, lease=lease))

    def check_signature(self, signed: Signed[Any], tag: Tag, key: bytes, rule: str) -> None:
        """Raise `BadSignature` under `rule` unless `key` signed (R18)."""
        self.memo.check(signed, tag, self.chain_id, key, rule)

    def get_operating(self, key: bytes) -> bytes:
        """The key that signs for an account now: its operating key, or itself where the chain has not seen it (R19)."""
        account = self.state.account(key)
        return account.operating if account else key

    def need_lease(self, lease: bytes) -> LeaseRecord:
        """The lease a transaction names; refused under `lease.unknown`."""
        found = self.state.lease(lease)
        if found is None:
            raise Refused(f"no lease {lease.hex()} on this chain", rule="lease.unknown")
        return found


def change_account(state: State, key: bytes, amount: int) -> None:
    """Add `amount` (may be negative) to an account that exists, and to the total of accounts (R13). The caller has
    checked the balance.
    """
    account = state.need(get_account_key(key), Account)
    state.put(get_account_key(key), msgspec.structs.replace(account, balance=account.balance + amount))
    change_totals(state, accounts=amount)


def change_provider(state: State, key: bytes, **amounts: int) -> None:
    """Add to the figures of a provider that exists; `bond` goes to the totals too."""
    provider = state.need(get_provider_key(key), Provider)
    changed = {name: getattr(provider, name) + amount for name, amount in amounts.items()}
    state.put(get_provider_key(key), msgspec.structs.replace(provider, **changed))
    change_totals(state, bonds=amounts.get("bond", 0))


def change_totals(state: State, *, accounts: int = 0, bonds: int = 0, locked: int = 0, burned: int = 0) -> None:
    """Add to the totals of R13."""
    totals = state.totals
    state.put(
        TOTALS_KEY,
        msgspec.structs.replace(
            totals,
            accounts=totals.accounts + accounts,
            bonds=totals.bonds + bonds,
            locked=totals.locked + locked,
            burned=totals.burned + burned,
        ),
    )


def save_lease(scope: Scope, lease: LeaseRecord, row: int) -> None:
    """Store a lease and report that it took `row` of law.md's table."""
    scope.state.put(get_lease_key(lease.id), lease)
    moved = LeaseMoved(
        lease.id, row, lease.state, lease.paid, lease.commission, lease.refunded, lease.damages, lease.burned
    )
    scope.report(moved, lease)
