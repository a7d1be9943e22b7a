"""Checks of receipts, acceptances and storage receipts against their lease (R5, R7, R8, R19). They change nothing."""

from __future__ import annotations

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.base.merkle import EMPTY_ROOT
from chain.ledger.entries import LeaseRecord, ReceiptNote
from chain.ledger.rules.scope import Scope
from chain.ledger.terms.outcome import FINAL_FAILURES
from chain.ledger.terms.work import Acceptance, Receipt, StorageReceipt, compute_receipt_id


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
    position = receipt.first
    for span in acceptance.segments:
        if span.first < position or span.count == 0:
            raise Refused("accepted spans must ascend, be disjoint and not empty", rule="R7.spans")
        position = span.first + span.count
    if position > receipt.first + receipt.count:
        raise Refused("accepts segments beyond the receipt", rule="R7.range")


def count_accepted(acceptance: Acceptance) -> int:
    """Segments that an acceptance accepts."""
    return sum(span.count for span in acceptance.segments)


def check_storage(lease: LeaseRecord, note: ReceiptNote, storage: StorageReceipt, now: int) -> None:
    """R8: a holder that order or bid named keeps what this receipt commits to, at least until the acceptance window
    ends.
    """
    if storage.lease != lease.id:
        raise Refused("the storage receipt is for another lease", rule="R8.lease")
    if storage.receipt != note.id:
        raise Refused("the storage receipt is for another receipt", rule="R8.receipt")
    if storage.holder not in lease.terms.holders:
        raise Refused("neither order nor bid names this holder", rule="R8.holder")
    if storage.kept_until < now + lease.terms.windows.acceptance:
        raise Refused("must be kept at least until the acceptance window ends", rule="R8.kept")
