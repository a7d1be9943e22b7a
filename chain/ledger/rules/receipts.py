"""Checks of receipts, acceptances and storage receipts against their lease and what stands on the chain (R5, R7, R8,
R19). They change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.base.merkle import EMPTY_ROOT, is_consistent
from chain.ledger.entries import LeaseRecord, LeaseState, ReceiptNote
from chain.ledger.rules.scope import Scope
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import (
    Acceptance,
    Receipt,
    Span,
    StorageReceipt,
    check_accepted_spans,
    compute_receipt_id,
)


def check_receipt(lease: LeaseRecord, receipt: Receipt) -> None:
    """R5: a prefix of this lease's range by its provider, as far as it is told without signatures."""
    if receipt.lease != lease.id:
        raise Refused("the receipt is for another lease", rule="R5.lease")
    if receipt.provider != lease.terms.provider:
        raise Refused("the receipt is by another provider", rule="R5.provider")
    if receipt.first != lease.terms.first:
        raise Refused("the receipt does not begin where the lease does", rule="R5.first")
    if receipt.count > lease.held:
        raise Refused(f"{receipt.count} segments where {lease.held} are held", rule="R5.count")
    if (receipt.count == 0) != (receipt.records == EMPTY_ROOT):
        raise Refused("the empty root stands for no segments and for nothing else", rule="R18.empty")
    if receipt.count == 0 and receipt.cause in FINAL_FAILURES:
        raise Refused("a segment that failed is a segment: without one there is no cause", rule="R9.cause")


def check_prefix(lease: LeaseRecord, receipt: Receipt, proof: Sequence[bytes]) -> None:
    """R5: goes on where the receipt on the chain ends, or is of the same records. The first one needs no proof."""
    note = lease.receipt
    if note is None:
        if proof:
            raise Refused("there is no receipt on the chain to be consistent with", rule="R5.proof")
        return
    if receipt.count < note.count:
        raise Refused(f"{receipt.count} segments where {note.count} are on the chain", rule="R5.shorter")
    if receipt.count == note.count and receipt.cause is not note.cause:
        raise Refused(f"the same records ended by {note.cause.value} before", rule="R5.cause")
    if not is_consistent(note.count, note.records, receipt.count, receipt.records, proof):
        raise Refused("its records do not continue those on the chain", rule="R5.proof")


def check_longer(lease: LeaseRecord, receipt: Receipt) -> None:
    """Row 2: more segments than are on the chain, all ended well. One that ends by another cause would leave the lease
    open, to be cut with the damages that R9 forgives or with a segment that is none (`host`): it is delivered, or not.
    """
    if receipt.count <= lease.served:
        raise Refused(f"{receipt.count} segments where {lease.served} are on the chain", rule="R5.longer")
    if receipt.cause is not Cause.OK:
        raise Refused("a receipt that ends by a cause goes no further: deliver it", rule="R5.ended")


def check_receipt_signature(scope: Scope, lease: LeaseRecord, signed: Signed[Receipt]) -> None:
    """R19: by the provider's operating key that the lease stored."""
    scope.check_signature(signed, Tag.RECEIPT, lease.terms.provider_key, "R5.signature")


def make_note(chain_id: bytes, receipt: Receipt) -> ReceiptNote:
    """What the lease keeps of a receipt."""
    return ReceiptNote(compute_receipt_id(chain_id, receipt), receipt.count, receipt.records, receipt.cause)


def check_acceptance(lease: LeaseRecord, receipt: Receipt, note: ReceiptNote, acceptance: Acceptance) -> None:
    """R7: names this receipt, by the requester's key or the watcher's; its spans ascend, are disjoint and lie in the
    receipt.
    """
    if acceptance.lease != lease.id:
        raise Refused("the acceptance is for another lease", rule="R7.lease")
    if acceptance.receipt != note.id:
        raise Refused("the acceptance is for another receipt", rule="R7.receipt")
    if acceptance.signer not in (lease.terms.requester_key, lease.terms.watcher):
        raise Refused("only the requester or its watcher accepts", rule="R7.signer")
    check_accepted_spans(acceptance.segments, Span(receipt.first, receipt.count))


def count_accepted(acceptance: Acceptance) -> int:
    """Segments that an acceptance accepts."""
    return sum(span.count for span in acceptance.segments)


def check_storage(lease: LeaseRecord, note: ReceiptNote, storage: StorageReceipt, begins: int) -> None:
    """R8: a holder that order or bid named keeps what this receipt commits to, at least until the acceptance window
    ends, at the latest: for a receipt on the way (row 2) that window may begin only when the lease is cut.
    """
    if storage.lease != lease.id:
        raise Refused("the storage receipt is for another lease", rule="R8.lease")
    if storage.receipt != note.id:
        raise Refused("the storage receipt is for another receipt", rule="R8.receipt")
    if storage.holder not in lease.terms.holders:
        raise Refused("neither order nor bid names this holder", rule="R8.holder")
    if storage.kept_until < begins + lease.terms.windows.acceptance:
        raise Refused("must be kept at least until the acceptance window ends", rule="R8.kept")


def find_latest_cut(lease: LeaseRecord) -> int:
    """When rows 10 and 12 cut a lease at the latest: at its deadline, or when the grace of a cancel ends."""
    if lease.state is LeaseState.CANCELLING and lease.timer is not None:
        return lease.timer
    return lease.terms.deadline
