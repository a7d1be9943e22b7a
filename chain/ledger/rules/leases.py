"""The lease from opening to its end: longer receipts, settle, deliver, cancel, return, and the timers (R4, R5, R7 to
R9; rows 2, 3, 5 to 7, 10 to 13).

Each function checks first and changes last. Who gets how much is `chain.ledger.money`; opening is
`chain.ledger.rules.opening`, calls are `chain.ledger.rules.calls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from chain.base.errors import Fault, Refused
from chain.base.hashing import Tag
from chain.base.units import checked
from chain.ledger.entries import Cover, LeaseRecord, LeaseState, OrderRecord, get_order_key
from chain.ledger.money import (
    Split,
    compute_cancel_fee,
    compute_prefix_weight,
    compute_spans_weight,
    split_cut,
    split_payment,
    split_unstarted,
)
from chain.ledger.results import OrderForgotten
from chain.ledger.rules.coverage import MAX_COVERAGE, add_covers, remove_cover
from chain.ledger.rules.receipts import (
    check_acceptance,
    check_longer,
    check_prefix,
    check_receipt,
    check_receipt_signature,
    check_storage,
    count_accepted,
    find_latest_cut,
    make_note,
)
from chain.ledger.rules.scope import Scope, change_account, change_provider, change_totals, save_lease
from chain.ledger.rules.table import Event, check_row
from chain.ledger.terms.outcome import FINAL_FAILURES
from chain.ledger.terms.work import is_final
from chain.ledger.transactions import Cancel, Deliver, Extend, GiveBack, Settle


def process_extend(scope: Scope, body: Extend) -> None:
    """Row 2 (R5): a receipt of a longer prefix that a holder keeps. What it serves is safe whatever comes (rows 7, 10,
    12).
    """
    receipt, storage = body.receipt.body, body.storage.body
    lease = scope.need_lease(receipt.lease)
    check_row(lease, Event.RECEIPT)
    check_receipt(lease, receipt)
    check_longer(lease, receipt)
    check_prefix(lease, receipt, body.proof)
    note = make_note(scope.chain_id, receipt)
    check_storage(lease, note, storage, find_latest_cut(lease))
    check_receipt_signature(scope, lease, body.receipt)
    scope.check_signature(body.storage, Tag.STORAGE, storage.holder, "R8.signature")

    save_lease(scope, _replace(lease, receipt=note), row=2)


def process_settle(scope: Scope, body: Settle) -> None:
    """Row 3 (R7): accepted segments are paid, the rest is refunded. Wins in every live state.

    The receipt need not follow from the one on the chain: both parties signed this one, and it ends the lease, so that
    nothing is paid twice.
    """
    receipt, acceptance = body.receipt.body, body.acceptance.body
    lease = scope.need_lease(receipt.lease)
    check_row(lease, Event.SETTLE)
    check_receipt(lease, receipt)
    note = make_note(scope.chain_id, receipt)
    check_acceptance(lease, receipt, note, acceptance)
    whole = is_final(receipt, lease.held) and count_accepted(acceptance) == receipt.count
    if not whole and scope.sender != lease.terms.provider:
        raise Refused("what is not final and wholly accepted only its provider may settle", rule="R7.sender")
    paid = [Cover(lease.terms.replica, span.first, span.count) for span in acceptance.segments]
    check_spans(scope, lease, paid)
    check_receipt_signature(scope, lease, body.receipt)
    scope.check_signature(body.acceptance, Tag.ACCEPTANCE, acceptance.signer, "R7.signature")

    # R7: beyond the receipt a return (R4), unless released or ended by a cause of R9; nobody is harmed by a cancel (row
    # 12).
    free = acceptance.release or receipt.cause in FINAL_FAILURES or lease.state is LeaseState.CANCELLING
    beyond = compute_prefix_weight(lease.terms, lease.held) - compute_prefix_weight(lease.terms, receipt.count)
    split = split_payment(lease, compute_spans_weight(lease.terms, acceptance.segments), unserved=0 if free else beyond)
    end_lease(scope, carry_out(scope, lease, split, receipt=note), LeaseState.SETTLED, 3, paid)


def process_deliver(scope: Scope, body: Deliver) -> None:
    """Row 11 (R8): a final receipt that a holder keeps; the acceptance clock starts."""
    receipt, storage = body.receipt.body, body.storage.body
    lease = scope.need_lease(receipt.lease)
    check_row(lease, Event.DELIVER)
    check_receipt(lease, receipt)
    if not is_final(receipt, lease.held):
        raise Refused("only a receipt for the whole range or with a final exit cause is delivered", rule="R8.final")
    check_prefix(lease, receipt, body.proof)
    note = make_note(scope.chain_id, receipt)
    check_storage(lease, note, storage, scope.now)
    check_receipt_signature(scope, lease, body.receipt)
    scope.check_signature(body.storage, Tag.STORAGE, storage.holder, "R8.signature")

    timer = checked(scope.now + lease.terms.windows.acceptance)
    save_lease(scope, _replace(lease, state=LeaseState.DELIVERED, timer=timer, receipt=note), row=11)


def process_cancel(scope: Scope, body: Cancel) -> None:
    """Row 6: the requester wants the work stopped; all stays locked until the grace passes."""
    lease = scope.need_lease(body.lease)
    check_row(lease, Event.CANCEL)
    if scope.sender != lease.terms.requester:
        raise Refused("only the requester cancels", rule="lease.cancel.sender")

    timer = checked(scope.now + lease.terms.windows.grace)
    fee = compute_cancel_fee(lease.terms, scope.now)
    save_lease(scope, _replace(lease, state=LeaseState.CANCELLING, timer=timer, fee=fee), row=6)


def process_return(scope: Scope, body: GiveBack) -> None:
    """Rows 5 and 7 (R4): the provider cannot go on."""
    lease = scope.need_lease(body.lease)
    check_row(lease, Event.RETURN)
    if scope.sender != lease.terms.provider:
        raise Refused("only the provider returns", rule="lease.return.sender")

    if lease.served == 0 and scope.now <= lease.terms.opened + lease.terms.windows.start:
        end_lease(scope, carry_out(scope, lease, split_unstarted(lease)), LeaseState.UNSTARTED, 5)
    else:
        cut_lease(scope, lease, split_cut(lease, damages=True, burn=False), LeaseState.RETURNED, 7)


def process_lease_timer(scope: Scope, lease: LeaseRecord) -> None:
    """Rows 10, 12 and 13: the deadline, the grace or the acceptance window has passed (R1)."""
    match lease.state:
        case LeaseState.OPEN | LeaseState.CALLED:
            cut_lease(scope, lease, split_cut(lease, damages=True, burn=True), LeaseState.EXPIRED, 10)
        case LeaseState.CANCELLING:
            cut_lease(scope, lease, split_cut(lease, damages=False, burn=False), LeaseState.CANCELLED, 12)
        case LeaseState.DELIVERED:
            split = split_payment(lease, compute_prefix_weight(lease.terms, lease.served))
            served = Cover(lease.terms.replica, lease.terms.first, lease.served)
            end_lease(scope, carry_out(scope, lease, split), LeaseState.SETTLED, 13, [served])
        case _:
            raise Fault(f"a timer in state {lease.state.value}", rule="lease.timer")


def process_order_timer(scope: Scope, order: bytes, record: OrderRecord) -> None:
    """R2: the expiry has passed; the record goes once no lease is live."""
    store_order(scope, order, msgspec.structs.replace(record, timer=None))


def cut_lease(scope: Scope, lease: LeaseRecord, split: Split, ended: LeaseState, row: int) -> None:
    """Rows 7, 10, 12: with nothing served the lease ends; else the unserved part moves and the served part is
    delivered.
    """
    lease = carry_out(scope, lease, split)
    if lease.served == 0:
        end_lease(scope, lease, ended, row)
        return
    terms = lease.terms
    record = scope.state.need(get_order_key(terms.order), OrderRecord)
    freed = Cover(terms.replica, terms.first + lease.served, lease.held - lease.served)
    store_order(scope, terms.order, _replace(record, coverage=remove_cover(record.coverage, freed)))
    timer = checked(scope.now + terms.windows.acceptance)
    save_lease(scope, _replace(lease, state=LeaseState.DELIVERED, timer=timer, held=lease.served), row)


def check_spans(scope: Scope, lease: LeaseRecord, paid: Iterable[Cover]) -> None:
    """R2: what stays covered must not break the order's record into too many spans; else an acceptance could make it
    unreadable.
    """
    coverage = scope.state.need(get_order_key(lease.terms.order), OrderRecord).coverage
    spans = len(_settle_coverage(coverage, lease, paid))
    if spans > max(MAX_COVERAGE, len(coverage)):
        raise Refused(f"the order's coverage would have {spans} spans", rule="R2.spans")


def carry_out(scope: Scope, lease: LeaseRecord, split: Split, **changes: Any) -> LeaseRecord:
    """Move the money of a split (R4, R13) in all entries but the lease, which is returned as it is to be stored."""
    terms, state = lease.terms, scope.state
    for key, amount in (
        (terms.provider, split.paid),
        (terms.auctioneer, split.commission),
        (terms.requester, split.refunded + split.damages),
    ):
        if amount:
            change_account(state, key, amount)
    lost = split.damages + split.forfeited
    change_provider(state, terms.provider, bond=-lost, set_aside=-split.unbound)
    change_totals(state, locked=-split.unlocked, burned=split.burned + split.forfeited)
    record = state.need(get_order_key(terms.order), OrderRecord)
    spent = split.paid + split.commission + split.burned
    changed = _replace(record, locked=record.locked - split.unlocked, paid=record.paid + spent)
    state.put(get_order_key(terms.order), changed)
    return _replace(
        lease,
        locked=checked(lease.locked - split.unlocked, "locked"),
        bond=checked(lease.bond - split.unbound, "bond"),
        paid=lease.paid + split.paid,
        commission=lease.commission + split.commission,
        refunded=lease.refunded + split.refunded,
        damages=lease.damages + split.damages,
        burned=lease.burned + split.burned + split.forfeited,
        **changes,
    )


def end_lease(scope: Scope, lease: LeaseRecord, ended: LeaseState, row: int, paid: Iterable[Cover] = ()) -> None:
    """Enter a last state: nothing stays locked, segments not paid for become free again (R2), the provider has room
    again (R14).
    """
    if lease.locked or lease.bond:
        raise Fault(f"ends with {lease.locked} locked and {lease.bond} bound", rule="lease.leftover")
    terms = lease.terms
    change_provider(scope.state, terms.provider, exposed=-terms.price, leases=-1)
    record = scope.state.need(get_order_key(terms.order), OrderRecord)
    coverage = _settle_coverage(record.coverage, lease, paid)
    store_order(scope, terms.order, _replace(record, live=record.live - 1, coverage=coverage))
    save_lease(scope, _replace(lease, state=ended, timer=None), row)


def store_order(scope: Scope, order: bytes, record: OrderRecord) -> None:
    """Keep the record, or delete it once expiry has passed and no lease is live (R2)."""
    if record.live == 0 and scope.now > record.expiry:
        scope.state.delete(get_order_key(order))
        scope.report(OrderForgotten(order))
    else:
        scope.state.put(get_order_key(order), record)


def _settle_coverage(coverage: tuple[Cover, ...], lease: LeaseRecord, paid: Iterable[Cover]) -> tuple[Cover, ...]:
    held = Cover(lease.terms.replica, lease.terms.first, lease.held)
    return add_covers(remove_cover(coverage, held), paid)


_replace = msgspec.structs.replace
