"""Whoever holds a genuine case but no key changes it in every way that helps, and mends every hash, root and id after
it. Each forgery is refused by the number of the check that it cannot mend, with no network and an empty home.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from broker.protocol.api import Unmatched
from broker.protocol.messages import Decline, Reason
from chain.base.codec import decode, encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.entries import LeaseRecord
from chain.ledger.terms.agreement import compute_bid_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from chain.ledger.transactions import compute_transaction_id
from chain.ledger.tree import StateTree, get_hash
from chain.rpc.proofs import Finality
from requester.purchase.casefile import CaseReader
from requester.purchase.caseverify import verify_case
from tests.attacks.case_chain import ALICE, EMPTY, Chain, change
from tests.attacks.case_hand import Hand
from tests.attacks.case_world import Play, play_failure, play_map, play_run, play_train

MALLORY = Signer(b"m" * 32)
OTHER = compute_digest(b"other")

PLAYS: dict[str, Callable[[], Play]] = {
    "run": cache(play_run),
    "map": cache(play_map),
    "train": cache(play_train),
    "failure": cache(play_failure),
}


@cache
def play_other(name: str) -> Play:
    """Another genuine job of the same parties on the same chain, later."""
    return play_run(PLAYS[name]().chain, b"another order...")


def take_up(name: str) -> Hand:
    return Hand(PLAYS[name](), play_other(name))


Forge = Callable[[Hand], object]
Row = tuple[str, str, Forge, int]


# ---- order, award, bid, book ----


def sign_own(hand: Hand, name: str, tag: Tag, place: int = 0, **fields: Any) -> None:
    """A paper signed by the forger herself."""
    body = change(getattr(hand.get(place), name).body, **fields)
    hand.put(place, **{name: MALLORY.sign(tag, hand.documents.chain, body)})


def change_price(hand: Hand) -> None:
    hand.set_body("award", price=900_000)
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
    ("another commission", "run", lambda h: (h.set_body("award", commission=0), h.mend_lease()), 2),
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
    ("a provenance with other subjects", "run", named_provenance, 20),
]


# ---- the end ----


def swap_acceptances(hand: Hand) -> None:
    one, two = hand.get(0).acceptance, hand.get(2).acceptance
    hand.put(0, acceptance=two)
    hand.put(2, acceptance=one)


def accept_by_mallory(hand: Hand) -> None:
    sign_own(hand, "acceptance", Tag.ACCEPTANCE, signer=MALLORY.key)


def accept_by_mallory_for_the_requester(hand: Hand) -> None:
    sign_own(hand, "acceptance", Tag.ACCEPTANCE)


def accept_less(hand: Hand) -> None:
    hand.set_body("acceptance", segments=(Span(0, 2),))


def get_proof(hand: Hand, place: int = 0) -> Any:
    proof = hand.get(place).proof
    assert proof is not None
    return proof


def bend_proof(**fields: Any) -> Forge:
    return lambda hand: hand.put(0, proof=change(get_proof(hand), **fields))


def bend_finality(**fields: Any) -> Forge:
    def forge(hand: Hand) -> None:
        proof = get_proof(hand)
        hand.put(0, proof=change(proof, finality=change(proof.finality, **fields)))

    return forge


def header_of_another_height(hand: Hand) -> None:
    other = hand.other.leases[0].proof
    assert other is not None
    bend_finality(header=other.finality.header)(hand)


def certificate_of_another_block(hand: Hand) -> None:
    other = hand.other.leases[0].proof
    assert other is not None
    bend_finality(certificate=other.finality.certificate)(hand)


def prove_by(hand: Hand, proof: Any, place: int = 0) -> None:
    """Another proof, and what was seen agrees with it."""
    tx = compute_transaction_id(proof.transaction.body).hex() if proof else ""
    hand.put(place, proof=proof, seen=change(hand.get(place).seen, tx=tx))


def settle_of_another_lease(hand: Hand) -> None:
    prove_by(hand, hand.other.leases[0].proof)


def settle_signed_by_nobody(hand: Hand) -> None:
    proof = get_proof(hand)
    hand.put(0, proof=change(proof, transaction=change(proof.transaction, signature=bytes(64))))


def state_of_another_lease(hand: Hand) -> None:
    hand.put(0, state=hand.other.leases[0].state)


def earlier_state(hand: Hand) -> None:
    hand.put(0, state=hand.play.leases[0].earlier)


def bend_state(hand: Hand) -> None:
    state = hand.get().state
    assert state is not None
    hand.put(0, state=change(state, value=encode(change(decode(state.value, LeaseRecord), paid=1))))


def say(**fields: Any) -> Forge:
    return lambda hand: hand.put(0, seen=change(hand.get().seen, **fields))


def without_lease(place: int) -> Forge:
    def forge(hand: Hand) -> None:
        gone = hand.get(place)
        hand.set(leases=tuple(one for one in hand.documents.leases if one is not gone))
        del hand.records[gone.lease]

    return forge


def silent_acceptance(hand: Hand) -> None:
    """What silence accepted is said to have been accepted by the requester."""
    genuine = hand.get(0).acceptance
    hand.put(1, acceptance=genuine)


def unsaid_acceptance(hand: Hand) -> None:
    """What the requester accepted is said to have been accepted by silence."""
    hand.put(0, acceptance=None)
    prove_by(hand, None)


def state_of_her_own(hand: Hand) -> None:
    """A state in which it cost nothing, under a header of her own."""
    state = hand.get().state
    assert state is not None
    tree = StateTree(hand.documents.chain)
    value = encode(change(decode(state.value, LeaseRecord), paid=0, commission=0))
    root = tree.update(None, {state.key: value})
    header = change(state.finality.header, state=get_hash(root))
    proof = change(state, value=value, proof=tree.prove(root, state.key), finality=certify(hand, header))
    hand.put(0, state=proof, seen=change(hand.get().seen, paid=0, commission=0))


def certify(hand: Hand, header: Header) -> Finality:
    """A certificate for any header, by the forger in the place of the seat."""
    vote = Vote(Step.FINALIZE, 0, header.slot, compute_block_id(hand.documents.chain, header))
    signature = MALLORY.sign(Tag.VOTE, hand.documents.chain, vote).signature
    return Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))


def block_of_her_own(hand: Hand) -> None:
    proof = get_proof(hand)
    hand.put(0, proof=change(proof, finality=certify(hand, proof.finality.header)))


def without_receipt(hand: Hand) -> None:
    hand.put(0, receipt=None, storage=None)


def without_work(hand: Hand) -> None:
    """Neither receipt nor records, as if nothing had been done."""
    without_receipt(hand)
    hand.set_records(0, ())
    hand.put(0, acceptance=None)


def lease_twice(hand: Hand) -> None:
    """The same lease again under another id."""
    twin = change(hand.get(0), lease=OTHER)
    hand.set(leases=(*hand.documents.leases, twin))
    hand.records[OTHER] = ()


def invented_decline(hand: Hand) -> None:
    decline = Decline(hand.play.order_id, ALICE.key, Reason.PRICE, 1, "")
    signed = MALLORY.sign(Tag.DECLINE, hand.documents.chain, decline)
    hand.set(unmatched=Unmatched(1, 1, "nobody wanted it", (signed,)))


ENDS: list[Row] = [
    ("acceptances swapped", "map", swap_acceptances, 42),
    ("an acceptance by a stranger", "run", accept_by_mallory, 41),
    ("an acceptance signed by a stranger", "run", accept_by_mallory_for_the_requester, 41),
    ("an acceptance of less", "map", accept_less, 41),
    ("an acceptance where there was silence", "map", silent_acceptance, 42),
    ("silence where there was an acceptance", "run", unsaid_acceptance, 94),
    ("no acceptance of what was settled", "run", lambda h: h.put(0, acceptance=None), 45),
    ("a truncated path", "run", bend_proof(path=()), 43),
    ("another leaf", "run", bend_proof(index=1), 43),
    ("a tree of another size", "run", bend_proof(size=2), 43),
    ("the header of another height", "run", header_of_another_height, 43),
    ("the certificate of another block", "run", certificate_of_another_block, 43),
    ("a block of her own", "run", block_of_her_own, 43),
    ("a settle that nobody signed", "run", settle_signed_by_nobody, 43),
    ("the settle of another lease", "run", settle_of_another_lease, 44),
    ("no proof of the settle", "run", lambda h: h.put(0, proof=None), 56),
    ("another transaction", "run", say(tx="00" * 32), 56),
    ("the lease as it was before", "run", earlier_state, 52),
    ("the state of another lease", "run", state_of_another_lease, 50),
    ("a state with other bytes", "run", bend_state, 50),
    ("a state of her own", "run", state_of_her_own, 50),
    ("no proof of the state", "run", lambda h: h.put(0, state=None), 50),
    ("no receipt", "run", without_receipt, 20),
    ("no work at all", "run", without_work, 53),
    ("a prefix in place of the final receipt", "map", prefix_for_final, 42),
    ("more was paid", "run", say(paid=2_000_000), 55),
    ("less was paid", "run", say(paid=1), 55),
    ("damages that were none", "run", say(damages=5), 55),
    ("an end that was none", "run", say(state="slashed"), 55),
    ("less was served", "map", say(served=1), 55),
    ("nothing was ever seen", "run", lambda h: h.put(0, seen=None), 55),
    ("another time of the end", "run", say(time=1), 94),
    ("another height of the end", "run", say(height=1), 94),
    ("a lease twice", "run", lease_twice, 60),
    ("a bid that did not open, but did", "run", lambda h: h.set(tried=(h.get().award.body.bid,)), 60),
    ("a bid that nobody made, tried", "run", lambda h: h.set(tried=(OTHER,)), 61),
    ("a decline that nobody signed", "run", invented_decline, 63),
    ("a missing lease", "map", without_lease(2), 93),
    ("a missing first lease of a train", "train", without_lease(0), 10),
    ("a missing last lease of a train", "train", without_lease(1), 93),
]

ROWS = [*AWARDS, *WORK, *ENDS]


def list_failed(hand: Hand) -> list[int]:
    """Numbers of the checks that fail, in their order; 0 where none does but the case is not verified."""
    reader = CaseReader()
    reader.feed(hand.write())
    report = verify_case(reader.close(), hand.genesis)
    failed = [one.number for one in report.verdicts if not one.passed and not one.skipped]
    assert report.passed == (not failed)
    assert report.passed or not report.leases, "nothing is said of a case that is not verified"
    return failed


@pytest.mark.parametrize("name", PLAYS)
@pytest.mark.parametrize("outputs", [False, True])
def test_the_genuine_case_is_verified(name: str, outputs: bool) -> None:
    hand = take_up(name)
    hand.outputs = outputs
    assert list_failed(hand) == []


@pytest.mark.parametrize(("name", "kind", "forge", "number"), ROWS, ids=[row[0] for row in ROWS])
def test_a_forgery_is_refused_by_the_number_of_its_check(name: str, kind: str, forge: Forge, number: int) -> None:
    hand = take_up(kind)
    forge(hand)
    assert list_failed(hand)[:1] == [number], name
