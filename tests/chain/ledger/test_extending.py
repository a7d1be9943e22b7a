"""Row 2: receipts of longer prefixes, what proves that they go on, and what is safe after them (R5, R7, R8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.base.hashing import Tag
from chain.base.merkle import EMPTY_ROOT, compute_root, prove_consistency
from chain.ledger.entries import Cover, LeaseRecord, LeaseState, ReceiptNote
from chain.ledger.results import LeaseMoved
from chain.ledger.rules.receipts import make_note
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Receipt, Span
from chain.ledger.transactions import Body, Deliver, Extend
from tests.chain.ledger.world import HOUR, MINUTE, SIGNERS, WINDOWS, World, digest, make_leaves, salt

RIVAL, STRANGER = SIGNERS["rival"].key, SIGNERS["stranger"].key
Make = Callable[[World, LeaseRecord], Body]


def extend(
    count: int,
    receipt: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    *,
    proof: tuple[bytes, ...] | None = None,
    receipt_by: str = "provider",
    stored_by: str = "holder",
    kind: type[Extend] | type[Deliver] = Extend,
) -> Make:
    """An extension (or delivery) with fields of receipt, storage and proof changed, signed by others if told."""

    def make(w: World, lease: LeaseRecord) -> Body:
        changed = w.receipt(lease, count, **(receipt or {}))
        kept = w.storage(lease, changed, **(storage or {}))
        shown = (w.prove(lease, changed) if changed.lease == lease.id else ()) if proof is None else proof
        return kind(w.sign(receipt_by, Tag.RECEIPT, changed), w.sign(stored_by, Tag.STORAGE, kept), shown)

    return make


def make_other_leaves(count: int) -> list[bytes]:
    """Records of another history."""
    return [b"other %d" % index for index in range(count)]


FIRST_ROWS: list[tuple[str, Make]] = [
    ("", extend(1)),
    ("", extend(10)),
    ("lease.unknown", extend(4, {"lease": digest("no")})),
    ("R5.provider", extend(4, {"provider": RIVAL})),
    ("R5.first", extend(4, {"first": 1})),
    ("R5.count", extend(11)),
    ("R18.empty", extend(4, {"records": EMPTY_ROOT})),
    ("R5.longer", extend(0)),
    *(("R5.ended", extend(4, {"cause": cause})) for cause in sorted(set(Cause) - {Cause.OK})),
    ("R5.proof", extend(4, proof=(digest("node"),))),
    ("R8.lease", extend(4, storage={"lease": digest("no")})),
    ("R8.receipt", extend(4, storage={"receipt": digest("no")})),
    ("R8.holder", extend(4, storage={"holder": STRANGER}, stored_by="stranger")),
    ("R5.signature", extend(4, receipt_by="rival")),
    ("R8.signature", extend(4, stored_by="stranger")),
]
LATER_ROWS: list[tuple[str, Make]] = [
    ("", extend(5)),
    ("", extend(8)),
    ("R5.longer", extend(4)),
    ("R5.longer", extend(3)),
    ("R5.longer", extend(0)),
    ("R5.proof", extend(5, proof=())),
    ("R5.proof", extend(5, proof=tuple(prove_consistency(make_leaves(6), 4)))),
    ("R5.proof", extend(5, proof=tuple(prove_consistency(make_leaves(5), 3)))),
    ("R5.proof", extend(5, {"records": compute_root(make_other_leaves(5))})),
    (
        "R5.proof",
        extend(5, {"records": compute_root(make_other_leaves(5))}, proof=prove_consistency(make_other_leaves(5), 4)),
    ),
    ("", extend(10, kind=Deliver)),
    ("", extend(5, {"cause": Cause.OOM}, kind=Deliver)),
    ("R8.final", extend(5, kind=Deliver)),
    ("R8.final", extend(5, {"cause": Cause.HOST}, kind=Deliver)),
    ("R5.proof", extend(10, kind=Deliver, proof=())),
    ("R5.proof", extend(10, {"records": compute_root(make_other_leaves(10))}, kind=Deliver)),
    ("R5.shorter", extend(3, {"cause": Cause.OOM}, kind=Deliver)),
    ("R5.cause", extend(4, {"cause": Cause.OOM}, kind=Deliver)),
]


@pytest.mark.parametrize(("rule", "make"), FIRST_ROWS)
def test_each_check_of_a_first_receipt_is_refused_by_its_name(rule: str, make: Make) -> None:
    w = World()
    lease = w.open_lease()
    assert w.refusal("rival", make(w, lease)) == rule


@pytest.mark.parametrize(("rule", "make"), LATER_ROWS)
def test_a_later_receipt_must_go_on_from_the_one_on_the_chain(rule: str, make: Make) -> None:
    w = World()
    lease = w.open_lease()
    w.send("rival", w.extend(lease, 4))
    assert w.refusal("rival", make(w, w.lease(lease.id))) == rule


def test_a_delivery_of_the_same_records_needs_no_proof_and_takes_none() -> None:
    """R5, row 11: the last prefix may be on the chain before the receipt with log and provenance."""
    w = World()
    lease = w.open_lease()
    w.send("broker", w.extend(lease, 10, log=digest("no log yet")))
    assert w.refusal("broker", extend(10, kind=Deliver, proof=(digest("node"),))(w, lease)) == "R5.proof"
    other = extend(10, {"records": digest("other")}, kind=Deliver)
    assert w.refusal("broker", other(w, lease)) == "R5.proof"
    w.send("broker", w.deliver(lease))
    delivered = w.lease(lease.id)
    assert delivered.receipt == make_note(w.chain_id, w.receipt(lease, finished=w.history[-1].header.time - 1))


def test_the_note_on_the_chain_is_the_receipts_and_nothing_else_moves() -> None:
    w = World()
    lease = w.open_lease()
    supply, bond = w.ledger.supply(), w.bond("provider")
    body = w.extend(lease, 4)
    committed = w.send("rival", body)
    (event,) = committed.events
    assert isinstance(event.happening, LeaseMoved) and event.happening.row == 2
    note = make_note(w.chain_id, body.receipt.body)
    assert note == ReceiptNote(note.id, 4, compute_root(make_leaves(4)), Cause.OK)
    assert w.lease(lease.id) == msgspec.structs.replace(lease, receipt=note)
    assert w.ledger.supply().locked == supply.locked and w.bond("provider") == bond


@pytest.mark.parametrize("state", [LeaseState.OPEN, LeaseState.CALLED, LeaseState.CANCELLING])
@pytest.mark.parametrize(("short", "rule"), [(1, "R8.kept"), (0, ""), (-1, "")])
def test_a_receipt_on_the_way_is_kept_until_the_last_acceptance_window_ends(
    state: LeaseState, short: int, rule: str
) -> None:
    """R8: silence may accept it as late as one acceptance window after the deadline, or after the grace of a cancel."""
    w = World()
    lease = w.open_lease()
    if state is LeaseState.CALLED:
        w.send("broker", w.call(lease))
    if state is LeaseState.CANCELLING:
        w.send("requester", w.cancel(lease))
    begins = (w.lease(lease.id).timer or 0) if state is LeaseState.CANCELLING else lease.terms.deadline
    make = extend(4, storage={"kept_until": begins + WINDOWS.acceptance - short})
    assert w.refusal("rival", make(w, lease)) == rule


def test_an_inner_signature_with_a_flipped_bit_is_refused_by_its_name() -> None:
    """R15 d."""
    w = World()
    lease = w.open_lease()
    good = w.extend(lease, 4)
    for name, rule in (("receipt", "R5.signature"), ("storage", "R8.signature")):
        signed = getattr(good, name)
        broken = msgspec.structs.replace(signed, signature=bytes([signed.signature[0] ^ 1]) + signed.signature[1:])
        assert w.refusal("provider", msgspec.structs.replace(good, **{name: broken})) == rule


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_two_prefixes_in_their_order_are_taken_and_no_altered_proof_is(count: int, data: st.DataObject) -> None:
    w = World()
    lease = w.open_lease(segments=count, segment_wall=1_000, cap=100_000_000)
    first = data.draw(st.integers(1, count))
    w.send("rival", w.extend(lease, first))
    second = data.draw(st.integers(1, count))
    body = w.extend(lease, second)
    if second <= first:
        assert w.refusal("rival", body) == "R5.longer"
        return
    assert w.refusal("rival", body) == ""
    cut = msgspec.structs.replace(body, proof=body.proof[:-1])
    assert w.refusal("rival", cut) == "R5.proof"
    grown = msgspec.structs.replace(body, proof=(*body.proof, digest("node")))
    assert w.refusal("rival", grown) == "R5.proof"
    at = data.draw(st.integers(0, len(body.proof) - 1))
    altered = (*body.proof[:at], digest("node"), *body.proof[at + 1 :])
    assert w.refusal("rival", msgspec.structs.replace(body, proof=altered)) == "R5.proof"


# ---- what is safe afterwards ---------------------------------------------------------------------------------------


def cut(w: World, lease: LeaseRecord, way: str) -> None:
    """End the work of a lease by row 7, 10 (by deadline or by silence) or 12."""
    match way:
        case "return":
            w.send("provider", w.give_back(lease))
        case "deadline":
            w.block(time=lease.terms.deadline + 1)
        case "silence":
            w.send("broker", w.call(lease))
            w.block(time=w.now + WINDOWS.answer + 1)
        case _:
            w.send("requester", w.cancel(lease))
            w.block(time=w.now + WINDOWS.grace + 1)


WAYS = ["return", "silence", "grace", "deadline"]


@pytest.mark.parametrize("way", WAYS)
def test_after_a_cut_anyone_settles_the_served_segments_once_accepted(way: str) -> None:
    """R7 after rows 7, 10 and 12: exactly the r segments, once; commission on them, no more damages."""
    w = World()
    lease = w.open_lease()
    body = w.extend(lease, 4)
    w.send("rival", body)
    cut(w, lease, way)
    after = w.lease(lease.id)
    assert (after.state, after.held, after.served) == (LeaseState.DELIVERED, 4, 4)
    assert w.refusal("rival", w.settle(lease, w.receipt(lease, 3))) == "R7.sender"
    assert w.refusal("rival", w.settle(lease, w.receipt(lease, 5))) == "R5.count"
    balance = w.balance("provider")
    w.send("rival", w.settle(lease, body.receipt.body))
    ended = w.lease(lease.id)
    assert (ended.state, ended.paid, ended.commission) == (LeaseState.SETTLED, 4 * 900_000, 4 * 18_000)
    assert (ended.damages, ended.burned) == (after.damages, after.burned)
    assert w.balance("provider") == balance + 4 * 900_000
    assert w.refusal("rival", w.settle(lease, body.receipt.body)) == "lease.settled.settle"


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("served", [0, 4])
def test_what_a_cut_leaves_unserved_is_served_by_a_later_auction(way: str, served: int) -> None:
    """R2, R3 c: free at once, long after the first auction; the served part stays covered."""
    w = World()
    order = w.order()
    bid = w.bid(order)
    w.send("broker", w.opening(order, bid, w.award(order, bid)))
    (lease,) = w.ledger.leases(order=bid.order)
    w.block(time=w.now + 20 * MINUTE)
    if served:
        w.send("rival", w.extend(lease, served))
    again = w.bid(order, "rival", valid_until=w.now + MINUTE)
    award = w.award(order, again, first=served, count=10 - served, start=order.start if not served else digest("s"))
    assert w.refusal("broker", w.opening(order, again, award, "rival")) == "R2.covered"
    cut(w, lease, way)
    if served:
        early = w.award(order, again, first=served - 1, count=1, start=digest("s"))
        assert w.refusal("broker", w.opening(order, again, early, "rival")) == "R2.covered"
    w.send("broker", w.opening(order, again, award, "rival"))
    (later,) = w.ledger.leases(order=bid.order, provider=again.provider)
    assert (later.terms.first, later.held) == (served, 10 - served)
    w.send("broker", w.settle(later))
    record = w.ledger.order(bid.order)
    assert record is not None and record.coverage == (Cover(0, 0, 10),)
    assert record.locked == w.lease(lease.id).locked and record.locked + record.paid <= order.cap


@pytest.mark.parametrize(("late", "rule"), [(-1, ""), (0, ""), (1, "R3.c.span")])
def test_a_bid_outlives_its_own_auction_by_at_most_a_minute(late: int, rule: str) -> None:
    """R3 c: the hole of decision 0008, at its edges, an hour after the order's own close."""
    w = World()
    order = w.order(deadline=w.now + 3 * HOUR, expiry=w.now + 4 * HOUR)
    w.block(time=w.now + HOUR)
    closed = w.now
    bid = w.bid(order, valid_until=closed + MINUTE + late)
    award = w.award(order, bid, closed=closed)
    assert w.refusal("broker", w.opening(order, bid, award)) == rule


def test_a_failed_segment_frees_what_lies_behind_it_when_the_lease_settles() -> None:
    """R9, R2: the rest is refunded without damages; until then it is locked and covered."""
    w = World()
    order = w.order()
    bid = w.bid(order)
    w.send("broker", w.opening(order, bid, w.award(order, bid)))
    (lease,) = w.ledger.leases(order=bid.order)
    w.send("rival", w.extend(lease, 2))
    failed = w.receipt(lease, 4, cause=Cause.PROGRAM)
    w.send("broker", w.deliver(lease, failed))
    again = w.bid(order, "rival", salt=salt("again"))
    opening = w.opening(order, again, w.award(order, again, first=4, count=6, start=digest("s")), "rival")
    assert w.refusal("broker", opening) == "R2.covered"
    w.send("broker", w.settle(lease, failed))
    ended = w.lease(lease.id)
    assert (ended.paid, ended.damages) == (4 * 900_000, 0)
    assert w.refusal("broker", opening) == ""


def settle_other(w: World, lease: LeaseRecord, receipt: Receipt, **acceptance: Any) -> str:
    """The refusal of a settle by its provider."""
    return w.refusal("provider", w.settle(lease, receipt, **acceptance))


def test_a_settle_is_about_the_receipt_it_names_whatever_stands_on_the_chain() -> None:
    """R7: both parties signed it, and the lease ends: nothing is paid twice (SPEC, reading 17)."""
    w = World()
    lease = w.open_lease()
    w.send("rival", w.extend(lease, 6))
    other = w.receipt(lease, 4, records=digest("another history"))
    assert w.refusal("broker", w.settle(lease, other)) == "R7.sender"
    assert settle_other(w, lease, other) == ""
    assert settle_other(w, lease, w.receipt(lease, 8), segments=(Span(0, 8),)) == ""
    balance = w.balance("provider")
    w.send("provider", w.settle(lease, other))
    ended = w.lease(lease.id)
    assert (ended.state, ended.paid, ended.locked, ended.served) == (LeaseState.SETTLED, 4 * 900_000, 0, 4)
    assert w.balance("provider") == balance + 4 * 900_000 - 1_000
    w.block(time=w.now + 3 * HOUR)
    assert w.lease(lease.id) == ended


def test_a_receipt_in_the_start_window_makes_a_return_a_return() -> None:
    """Row 5 is for r = 0 only: whoever served a segment has started."""
    w = World()
    lease = w.open_lease()
    w.send("provider", w.extend(lease, 1))
    w.send("provider", w.give_back(lease))
    after = w.lease(lease.id)
    assert (after.state, after.held, after.damages) == (LeaseState.DELIVERED, 1, 9 * 90_000)
