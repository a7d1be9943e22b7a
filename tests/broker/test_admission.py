"""What the broker takes from outside: one row per rule for orders, receipts with their records, and acceptances (R2,
R5, R7, R12 f).
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from broker.auction.admission import (
    EMPTY,
    MAX_AUCTION,
    Means,
    check_acceptance,
    check_cancellation,
    check_delivery,
    check_submission,
    list_delivered_blobs,
)
from broker.protocol.api import Cancellation, Delivery, Submission
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord, compute_receipt_id, compute_records_root
from tests.broker.world import (
    CHAIN,
    CODE,
    HOUSE,
    LOG,
    NOW,
    OUTPUT,
    PROVIDERS,
    REQUESTER,
    RICH,
    STRANGER,
    make_acceptance,
    make_bid,
    make_delivery,
    make_order,
    make_spec,
    sign_order,
)

ORDER = make_order(segments=3, cap=10_000_000)
BID = make_bid(ORDER)
AWARD = Award(
    order=compute_order_id(CHAIN, ORDER),
    bid=compute_bid_id(CHAIN, BID.body),
    replica=0,
    first=0,
    count=3,
    price=1_000_000,
    commission=100,
    book=bytes(32),
    start=ORDER.start,
    runner_up=None,
    valid_until=NOW + 60_000,
)
LEASE = compute_lease_id(CHAIN, AWARD)
GOOD = make_delivery(AWARD)


def refuse(rule: str, call: Any, *arguments: Any) -> None:
    if not rule:
        call(*arguments)
        return
    with pytest.raises(Refused) as refused:
        call(*arguments)
    assert refused.value.rule == rule


LATE = NOW + 10**6
ORDERS: list[tuple[str, dict[str, Any], Means, str]] = [
    ("good", {}, RICH, ""),
    ("just affordable", {"cap": 900, "deposit": 50}, Means(1_000, 50), ""),
    ("one short", {"cap": 901, "deposit": 50}, Means(1_000, 50), "R12.funds"),
    ("closed", {"closes": NOW}, RICH, "order.closes"),
    (
        "closes late",
        {"closes": NOW + MAX_AUCTION + 1, "deadline": NOW + 10**6, "expiry": NOW + 10**6},
        RICH,
        "order.closes",
    ),
    ("deadline at the close", {"deadline": NOW + 2_000}, RICH, "order.deadline"),
    ("expires before the deadline", {"expiry": NOW + 199_999}, RICH, "order.deadline"),
    ("requester is no key", {"requester": bytes(32)}, RICH, "R18.key"),
    ("another requester", {"requester": STRANGER.key}, RICH, "signature.order"),
]


@pytest.mark.parametrize(("changes", "means", "rule"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_orders(changes: dict[str, Any], means: Means, rule: str) -> None:
    submission = Submission(1, sign_order(make_order(**changes)), make_spec(), ())
    refuse(rule, check_submission, HOUSE, submission, means, NOW)


def test_a_flipped_signature_of_an_order_is_refused() -> None:
    signed = sign_order(ORDER)
    bad = Signed(signed.body, bytes([signed.signature[0] ^ 1]) + signed.signature[1:])
    refuse("signature.order", check_submission, HOUSE, Submission(1, bad, make_spec(), ()), RICH, NOW)


def rebuild(delivery: Delivery, place: int, **changes: Any) -> Delivery:
    """One record changed, everything signed anew by the provider."""
    bodies = [record.body for record in delivery.records]
    bodies[place] = replace(bodies[place], **changes)
    return sign_again(bodies, cause=bodies[-1].cause)


def sign_again(bodies: list[SegmentRecord], **changes: Any) -> Delivery:
    signer = PROVIDERS[0]
    receipt = replace(GOOD.receipt.body, count=len(bodies), records=compute_records_root(bodies))
    signed = signer.sign(Tag.RECEIPT, CHAIN, replace(receipt, **changes))
    return Delivery(signed, tuple(signer.sign(Tag.SEGMENT, CHAIN, body) for body in bodies), ())


def forge_record(delivery: Delivery) -> Delivery:
    forged = STRANGER.sign(Tag.SEGMENT, CHAIN, delivery.records[1].body)
    return replace(delivery, records=(delivery.records[0], forged, delivery.records[2]))


BODIES = [record.body for record in GOOD.records]
DELIVERIES: list[tuple[str, Any, str]] = [
    ("good", lambda: GOOD, ""),
    ("a prefix", lambda: sign_again(BODIES[:2]), ""),
    ("ended by a program that failed", lambda: rebuild(GOOD, 2, cause=Cause.PROGRAM), ""),
    ("another lease", lambda: make_delivery(AWARD, lease=bytes(32)), "R5.lease"),
    ("another provider", lambda: make_delivery(AWARD, PROVIDERS[1]), "R5.lease"),
    ("another first", lambda: make_delivery(AWARD, first=1), "R5.prefix"),
    ("nothing", lambda: sign_again([]), "R5.prefix"),
    ("too much", lambda: make_delivery(AWARD, count=4), "R5.prefix"),
    ("a record missing", lambda: replace(GOOD, records=GOOD.records[:2]), "R5.count"),
    ("a record twice", lambda: rebuild(GOOD, 1, index=0), "R5.index"),
    ("a record of another lease", lambda: rebuild(GOOD, 1, lease=bytes(32)), "R5.record"),
    ("a record of another provider", lambda: rebuild(GOOD, 1, provider=STRANGER.key), "R5.record"),
    ("another first input", lambda: rebuild(GOOD, 0, input=bytes(32)), "R5.start"),
    ("another root", lambda: make_delivery(AWARD, records=bytes(32)), "R5.root"),
    ("another cause", lambda: make_delivery(AWARD, cause=Cause.OOM), "R5.cause"),
    (
        "receipt signed by another",
        lambda: replace(GOOD, receipt=STRANGER.sign(Tag.RECEIPT, CHAIN, GOOD.receipt.body)),
        "signature.receipt",
    ),
    ("record signed by another", lambda: forge_record(GOOD), "signature.segment"),
]


@pytest.mark.parametrize(("make", "rule"), [row[1:] for row in DELIVERIES], ids=[row[0] for row in DELIVERIES])
def test_deliveries(make: Any, rule: str) -> None:
    refuse(rule, check_delivery, CHAIN, LEASE, AWARD, BID.body, make())


def test_blobs_of_a_delivery_are_all_that_it_names_but_the_empty_one() -> None:
    error = compute_digest(b"a traceback")
    failed = rebuild(GOOD, 1, error=error)
    assert set(list_delivered_blobs(failed)) == {compute_digest(OUTPUT), compute_digest(LOG), error}
    assert EMPTY not in list_delivered_blobs(GOOD)
    assert compute_digest(CODE) not in list_delivered_blobs(GOOD)


RECEIPT = compute_receipt_id(CHAIN, GOOD.receipt.body)
WATCHED = replace(ORDER, watcher=STRANGER.key)


@pytest.mark.parametrize(
    ("order", "acceptance", "rule"),
    [
        (ORDER, make_acceptance(GOOD), ""),
        (WATCHED, make_acceptance(GOOD, STRANGER), ""),
        (ORDER, make_acceptance(GOOD, STRANGER), "R7.signer"),
        (ORDER, make_acceptance(GOOD, PROVIDERS[0]), "R7.signer"),
        (ORDER, make_acceptance(GOOD, receipt=bytes(32)), "R7.receipt"),
        (ORDER, make_acceptance(GOOD, lease=bytes(32)), "R7.receipt"),
        (ORDER, STRANGER.sign(Tag.ACCEPTANCE, CHAIN, make_acceptance(GOOD).body), "signature.acceptance"),
    ],
    ids=["requester", "watcher", "stranger", "provider", "unknown receipt", "another lease", "forged"],
)
def test_acceptances(order: Any, acceptance: Any, rule: str) -> None:
    refuse(rule, check_acceptance, CHAIN, order, LEASE, (RECEIPT,), acceptance)


@pytest.mark.parametrize(
    ("body", "signer", "rule"),
    [
        (Cancellation(AWARD.order, REQUESTER.key, NOW), REQUESTER, ""),
        (Cancellation(AWARD.order, REQUESTER.key, NOW), STRANGER, "signature.cancellation"),
        (Cancellation(AWARD.order, STRANGER.key, NOW), STRANGER, "cancellation.order"),
        (Cancellation(bytes(32), REQUESTER.key, NOW), REQUESTER, "cancellation.order"),
    ],
    ids=["good", "forged", "stranger", "another order"],
)
def test_cancellations(body: Cancellation, signer: Any, rule: str) -> None:
    signed = signer.sign(Tag.CANCELLATION, CHAIN, body)
    refuse(rule, check_cancellation, CHAIN, ORDER, AWARD.order, signed)
