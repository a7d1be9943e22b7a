"""Forgeries of what comes before the end: order, award, bid, book, and the work itself."""

from __future__ import annotations

from typing import Any

from chain.base.hashing import Tag, compute_digest
from chain.ledger.terms.agreement import compute_bid_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from tests.attacks.case_chain import EMPTY, Chain, change
from tests.attacks.case_hand import MALLORY, OTHER, Hand, Row, sign_own

# ---- order, award, bid, book ----


def change_price(hand: Hand) -> None:
    hand.set_body("award", price=900_000)
    hand.mend_lease()


def change_commission(hand: Hand) -> None:
    hand.set_body("award", commission=0)
    hand.mend_lease()


def change_price_and_bid(hand: Hand) -> None:
    hand.set_body("bid", price=900_000)
    hand.set_body("award", price=900_000, bid=compute_bid_id(hand.documents.chain, hand.get().bid.body))
    hand.mend_lease()


def award_by_mallory(hand: Hand) -> None:
    sign_own(hand, "award", Tag.AWARD)


def bid_by_mallory(hand: Hand) -> None:
    sign_own(hand, "bid", Tag.BID)


def other_range(hand: Hand) -> None:
    hand.set_body("award", first=2, count=4)
    hand.mend_lease()


def other_order(hand: Hand) -> None:
    hand.set(order=hand.other.order, spec=hand.other.spec)


def other_order_and_books(hand: Hand) -> None:
    other_order(hand)
    hand.set(books=tuple(hand.other.books))


def bent_order(hand: Hand) -> None:
    order = change(hand.documents.order, body=change(hand.documents.order.body, cap=2**40))
    hand.set(order=order)
    hand.set_body("award", order=compute_order_id(hand.documents.chain, order.body))
    hand.set_body("bid", order=compute_order_id(hand.documents.chain, order.body))
    hand.set_body("award", bid=compute_bid_id(hand.documents.chain, hand.get().bid.body))
    hand.mend_lease()


def without_dearer(hand: Hand) -> None:
    hand.mend_book(bids=hand.documents.books[0].body.bids[1:])
    hand.set_body("award", book=hand.documents.books[0].body.root)
    hand.mend_lease()


def without_cheaper(hand: Hand) -> None:
    hand.mend_book(bids=hand.documents.books[0].body.bids[:1])


def reordered_bids(hand: Hand) -> None:
    hand.mend_book(bids=hand.documents.books[0].body.bids[::-1])


def dropped_acknowledgement(hand: Hand) -> None:
    book = hand.documents.books[0]
    hand.set(books=(change(book, body=change(book.body, last=OTHER)),))


def book_of_mallory(hand: Hand) -> None:
    book = hand.documents.books[0].body
    hand.set(books=(MALLORY.sign(Tag.BOOK, hand.documents.chain, book),))


def book_of_another_job(hand: Hand) -> None:
    hand.set(books=tuple(hand.other.books))


def dropped_decline(hand: Hand) -> None:
    hand.mend_book(declines=())


def another_round(hand: Hand) -> None:
    hand.put(0, round=1)


def lease_of_another_order(hand: Hand) -> None:
    (papers,) = hand.other.documents.leases
    hand.set(leases=(*hand.documents.leases, papers))
    hand.records[papers.lease] = hand.other.records[papers.lease]


AWARDS: list[Row] = [
    ("another chain", "run", lambda h: h.set(chain=OTHER), 40),
    ("a foreign genesis", "run", lambda h: setattr(h, "genesis", Chain("foreign").genesis), 40),
    ("a larger cap", "run", bent_order, 1),
    ("another spec", "run", lambda h: h.set(spec=change(h.documents.spec, seed=8)), 1),
    ("another order under the same book", "run", other_order, 14),
    ("another order under the same bid", "run", other_order_and_books, 3),
    ("another price", "run", change_price, 2),
    ("another price, also in the bid", "run", change_price_and_bid, 2),
    ("an award by the forger", "run", award_by_mallory, 2),
    ("an award to another range", "map", other_range, 2),
    ("a bid by the forger", "run", bid_by_mallory, 5),
    ("another commission", "run", change_commission, 2),
    ("a lease of another order", "run", lease_of_another_order, 3),
    ("a book without the dearer bid", "run", without_dearer, 13),
    ("a book without the cheaper bid", "run", without_cheaper, 13),
    ("bids in another order", "run", reordered_bids, 13),
    ("a dropped acknowledgement", "run", dropped_acknowledgement, 13),
    ("a dropped decline", "run", dropped_decline, 13),
    ("a book by the forger", "run", book_of_mallory, 13),
    ("the book of another job", "run", book_of_another_job, 14),
    ("a lease in a round that there was not", "run", another_round, 46),
    ("no book", "run", lambda h: h.set(books=()), 46),
    ("the books of two rounds swapped", "map", lambda h: h.set(books=h.documents.books[::-1]), 61),
]


# ---- work ----


def other_root(hand: Hand) -> None:
    hand.set_body("receipt", records=OTHER)
    hand.mend_id()


def other_output(hand: Hand) -> None:
    papers = hand.get()
    record = hand.records[papers.lease][0]
    hand.blobs[compute_digest(b"a better result")] = b"a better result"
    hand.set_records(0, (change(record, output=compute_digest(b"a better result")), *hand.records[papers.lease][1:]))


def other_output_and_root(hand: Hand) -> None:
    other_output(hand)
    hand.mend_receipt()


def receipt_of_another_job(hand: Hand) -> None:
    (papers,) = hand.other.documents.leases
    hand.put(0, receipt=papers.receipt, storage=papers.storage)
    hand.set_records(0, hand.other.records[papers.lease])
    hand.blobs |= hand.other.blobs


def receipt_of_another_lease(hand: Hand) -> None:
    papers = hand.get(2)
    hand.put(0, receipt=papers.receipt, storage=papers.storage)
    hand.set_records(0, hand.records[papers.lease])


def storage_of_another_receipt(hand: Hand) -> None:
    hand.put(0, storage=hand.get(2).storage)


def prefix_for_final(hand: Hand) -> None:
    """The provider signed it on the way, the holder kept it."""
    (lease, *_) = hand.play.leases
    assert lease.prefix is not None
    receipt, storage = lease.prefix
    hand.put(0, receipt=receipt, storage=storage)
    hand.set_records(0, tuple(lease.records[: receipt.body.count]))


def silent_prefix(hand: Hand) -> None:
    prefix_for_final(hand)
    seen = change(hand.get().seen, tx="")
    hand.put(0, acceptance=None, proof=None, seen=seen)


def storage_of_prefix(hand: Hand) -> None:
    (lease, *_) = hand.play.leases
    assert lease.prefix is not None
    hand.put(0, storage=lease.prefix[1])


def reordered_records(hand: Hand) -> None:
    hand.set_records(0, hand.records[hand.get().lease][::-1])


def records_swapped_between_leases(hand: Hand) -> None:
    one, two = hand.get(0).lease, hand.get(2).lease
    hand.records[one], hand.records[two] = hand.records[two], hand.records[one]


def records_of_another_provider(hand: Hand) -> None:
    lease = hand.get().lease
    hand.set_records(0, tuple(change(record, provider=MALLORY.key) for record in hand.records[lease]))
    hand.mend_receipt()


def dropped_record(hand: Hand) -> None:
    hand.set_records(0, hand.records[hand.get().lease][:-1])


def failed_into_fine(hand: Hand) -> None:
    (record,) = hand.records[hand.get().lease]
    hand.set_records(0, (change(record, cause=Cause.OK, error=EMPTY),))
    hand.set_body("receipt", cause=Cause.OK)
    hand.mend_receipt()


def other_items(hand: Hand) -> None:
    items = hand.documents.items
    hand.set(items=(items[1], items[0], *items[2:]))


def swap_blob(hand: Hand, digest: bytes, data: bytes = b"something else") -> None:
    hand.swapped[digest] = data


def get_receipt(hand: Hand, place: int = 0) -> Any:
    receipt = hand.get(place).receipt
    assert receipt is not None
    return receipt.body


def other_provenance(hand: Hand) -> None:
    """That of another lease, in place of this one's."""
    own, other = get_receipt(hand, 0).provenance, get_receipt(hand, 2).provenance
    hand.swapped = {own: hand.blobs[other], other: hand.blobs[own]}


def bent_provenance(hand: Hand) -> None:
    own = hand.blobs[get_receipt(hand).provenance]
    swap_blob(hand, get_receipt(hand).provenance, own.replace(b"c", b"d", 1))


def dropped_provenance(hand: Hand) -> None:
    del hand.blobs[get_receipt(hand).provenance]


def untrue_manifest(hand: Hand) -> None:
    hand.manifest = {"records": 9}


def missing_inputs(hand: Hand) -> None:
    """Inputs are said to be in the file, but are not."""
    del hand.blobs[hand.documents.spec.inputs]


def named_provenance(hand: Hand) -> None:
    """A provenance with other subjects, named by the receipt."""
    digest = compute_digest(b"{}")
    hand.blobs[digest] = b"{}"
    hand.set_body("receipt", provenance=digest)
    hand.mend_id()


WORK: list[Row] = [
    ("another root over the segments", "run", other_root, 20),
    ("another output", "run", other_output, 26),
    ("another output under another root", "run", other_output_and_root, 20),
    ("the receipt of another job", "run", receipt_of_another_job, 21),
    ("the receipt of another lease", "map", receipt_of_another_lease, 21),
    ("the storage receipt of another receipt", "map", storage_of_another_receipt, 33),
    ("the storage receipt of a prefix", "map", storage_of_prefix, 33),
    ("a prefix in place of the final receipt", "map", prefix_for_final, 42),
    ("a prefix that silence accepted", "map", silent_prefix, 53),
    ("records in another order", "map", reordered_records, 26),
    ("records of two leases swapped", "map", records_swapped_between_leases, 23),
    ("records of another provider", "map", records_of_another_provider, 20),
    ("a record less", "map", dropped_record, 23),
    ("a failure turned into a success", "failure", failed_into_fine, 20),
    ("items in another order", "map", other_items, 62),
    ("another log", "run", lambda h: swap_blob(h, get_receipt(h).log), 37),
    ("another error text", "failure", lambda h: swap_blob(h, h.records[h.get().lease][0].error), 36),
    ("another output's bytes", "run", lambda h: swap_blob(h, h.records[h.get().lease][0].output), 35),
    ("the provenance of another lease", "map", other_provenance, 91),
    ("a provenance with other bytes", "run", bent_provenance, 48),
    ("no provenance", "run", dropped_provenance, 48),
    ("a manifest that says something else", "run", untrue_manifest, 90),
    ("no inputs where there should be", "run", missing_inputs, 92),
    ("a provenance with other subjects", "run", named_provenance, 20),
]
