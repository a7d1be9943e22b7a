"""What clients are shown: the ledger's entries and events as the views of `chain.rpc.schema`. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec
from msgspec.structs import replace

from chain.ledger.blocks import Header
from chain.ledger.entries import Account, LeaseRecord, OrderRecord, Provider
from chain.ledger.results import Bonded, LeaseMoved, OrderForgotten, Transferred
from chain.ledger.results import LedgerEvent as Happened
from chain.rpc.schema import AccountView, LeaseView, LedgerEvent, OrderView
from chain.store.database import StoredEvent

__all__ = ["view_account", "view_event", "view_lease", "view_order"]


def view_account(key: bytes, account: Account | None, provider: Provider | None) -> AccountView:
    """An account, also one the chain has never seen."""
    return AccountView(
        key=key.hex(),
        known=account is not None,
        balance=account.balance if account else 0,
        provider=provider is not None,
        bond=provider.bond if provider else 0,
        set_aside=provider.set_aside if provider else 0,
    )


def view_order(order: bytes, record: OrderRecord) -> OrderView:
    """An order's mandate."""
    return OrderView(
        id=order.hex(),
        requester=record.requester.hex(),
        cap=record.cap,
        locked=record.locked,
        paid=record.paid,
        expiry=record.expiry,
    )


def view_lease(record: LeaseRecord) -> LeaseView:
    """A lease, live or ended."""
    terms = record.terms
    return LeaseView(
        id=record.id.hex(),
        order=terms.order.hex(),
        award=terms.award.hex(),
        requester=terms.requester.hex(),
        provider=terms.provider.hex(),
        auctioneer=terms.auctioneer.hex(),
        state=record.state.value,
        replica=terms.replica,
        first=terms.first,
        count=terms.count,
        price=terms.price,
        commission_bps=terms.commission,
        locked=record.locked,
        bond=record.bond,
        paid=record.paid,
        commission=record.commission,
        refunded=record.refunded,
        burned=record.burned,
        opened=terms.opened,
        deadline=terms.deadline,
        timer=record.timer or 0,
        receipt=record.receipt.id.hex() if record.receipt else "",
        served=record.served,
        held=record.held,
        cause=record.receipt.cause.value if record.receipt else "",
        called=record.called or 0,
        damages=record.damages,
        start=terms.start.hex(),
    )


def view_event(header: Header, event: Happened) -> StoredEvent:
    """An event as the store keeps it and `chain.events` answers it."""
    tx = event.transaction.hex() if event.transaction is not None else ""
    shown = LedgerEvent(height=header.height, time=header.time, kind="", tx=tx)
    happening = event.happening
    match happening:
        case Transferred(sender, to, amount):
            shown = replace(shown, kind="transfer", sender=sender.hex(), to=to.hex(), amount=amount)
        case Bonded(provider, amount):
            shown = replace(shown, kind="bond", sender=provider.hex(), amount=amount)
        case LeaseMoved():
            shown = replace(shown, kind="lease", lease=view_lease(event.lease) if event.lease else None)
        case OrderForgotten(order):
            shown = replace(shown, kind="order", to=order.hex())
        case _:
            assert_never(happening)
    return StoredEvent(tuple(sorted(event.topics)), msgspec.json.encode(shown))
