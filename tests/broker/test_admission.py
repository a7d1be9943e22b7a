"""What the broker takes from outside: one row per rule for orders, acceptances and cancellations (R2, R7, R12 f)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from broker.auction.admission import (
    MAX_ACCEPTANCES,
    MAX_AUCTION,
    MAX_DEADLINE,
    MAX_SEGMENTS,
    Acceptable,
    Means,
    check_acceptance,
    check_cancellation,
    check_submission,
)
from broker.auction.book import MAX_SPANS
from broker.protocol.api import Cancellation, Submission
from broker.protocol.messages import MAX_MESSAGE_BYTES, Announcement, sign_message
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, Kind, Windows, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.work import Span, compute_receipt_id
from tests.broker.world import (
    BROKER,
    CHAIN,
    HOUSE,
    NOW,
    PROVIDERS,
    REQUESTER,
    RICH,
    STRANGER,
    WINDOWS,
    make_acceptance,
    make_bid,
    make_delivery,
    make_order,
    make_spec,
    sign_order,
)

ORDER = make_order()
BID = make_bid(ORDER)
AWARD = Award(
    order=compute_order_id(CHAIN, ORDER),
    bid=compute_bid_id(CHAIN, BID.body),
    replica=0,
    first=0,
    count=1,
    price=1_000_000,
    commission=100,
    book=bytes(32),
    start=ORDER.start,
    runner_up=None,
    closed=NOW,
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


def make_windows(keep: int) -> Windows:
    """Grace and acceptance take `keep` milliseconds behind the deadline at most."""
    return replace(WINDOWS, grace=20_000, acceptance=keep - 20_000)


LATE = NOW + 10**6
FAR = NOW + MAX_DEADLINE + 1
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
    (
        "deadline too far",
        {"deadline": NOW + MAX_DEADLINE + 1, "expiry": NOW + MAX_DEADLINE + 1},
        RICH,
        "order.deadline",
    ),
    ("acceptance as long as outputs are kept", {"windows": make_windows(HOUSE.retention)}, RICH, ""),
    (
        "nobody keeps the outputs until acceptance is over",
        {"windows": make_windows(HOUSE.retention + 1)},
        RICH,
        "order.acceptance",
    ),
    ("expires before the deadline", {"expiry": NOW + 199_999}, RICH, "order.deadline"),
    ("requester is no key", {"requester": bytes(32)}, RICH, "R18.key"),
    ("another requester", {"requester": STRANGER.key}, RICH, "signature.order"),
]


@pytest.mark.parametrize(("changes", "means", "rule"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_orders(changes: dict[str, Any], means: Means, rule: str) -> None:
    submission = Submission(2, sign_order(make_order(**changes)), make_spec(), ())
    refuse(rule, check_submission, HOUSE, submission, means, NOW)


SIZES: list[tuple[str, Kind, dict[str, Any], str]] = [
    ("a run of two", Kind.RUN, {"segments": 2}, "order.segments"),
    ("a map of many", Kind.MAP, {"segments": MAX_SEGMENTS}, ""),
    ("a map of too many", Kind.MAP, {"segments": MAX_SEGMENTS + 1}, "order.segments"),
    ("weights of a fair number", Kind.MAP, {"segments": 10_000, "weights": (9,) * 10_000}, ""),
    ("weights that fill a message", Kind.MAP, {"segments": 60_000, "weights": (9,) * 60_000}, "order.size"),
]


@pytest.mark.parametrize(("kind", "changes", "rule"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_sizes_of_orders(kind: Kind, changes: dict[str, Any], rule: str) -> None:
    spec = make_spec(kind=kind)
    submission = Submission(2, sign_order(make_order(spec=spec, **changes)), spec, ())
    refuse(rule, check_submission, HOUSE, submission, RICH, NOW)


def test_the_largest_order_is_announced_with_as_many_spans_as_there_may_be() -> None:
    """One message on the bus holds what admission let in."""
    count = 2
    spec = make_spec(kind=Kind.MAP)
    for step in (30_000, 3_000, 300, 30, 3, 1):
        while True:
            order = make_order(spec=spec, segments=count + step, weights=(9,) * (count + step))
            try:
                check_submission(HOUSE, Submission(2, sign_order(order), spec, ()), RICH, NOW)
            except Refused:
                break
            count += step
    order = make_order(spec=spec, segments=count, weights=(9,) * count)
    spans = tuple(Span(2**31 + 2 * place, 2**31) for place in range(MAX_SPANS))
    announced = Announcement(BROKER.key, sign_order(order), spec, 2**31, spans, NOW)
    assert len(sign_message(BROKER, CHAIN, announced)) > MAX_MESSAGE_BYTES - 4_096


def test_a_flipped_signature_of_an_order_is_refused() -> None:
    signed = sign_order(ORDER)
    bad = Signed(signed.body, bytes([signed.signature[0] ^ 1]) + signed.signature[1:])
    refuse("signature.order", check_submission, HOUSE, Submission(2, bad, make_spec(), ()), RICH, NOW)


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
    refuse(rule, check_acceptance, CHAIN, order, LEASE, Acceptable({RECEIPT: Span(0, 1)}, ()), acceptance)


@pytest.mark.parametrize(
    ("spans", "rule"),
    [
        ([(4, 6)], ""),
        ([], ""),
        ([(4, 1), (5, 1), (8, 2)], ""),
        ([(4, 7)], "R7.range"),
        ([(1_000_000, 1)], "R7.range"),
        ([(3, 2)], "R7.spans"),
        ([(4, 2), (5, 1)], "R7.spans"),
        ([(6, 1), (4, 1)], "R7.spans"),
        ([(4, 0)], "R7.spans"),
    ],
)
def test_only_segments_of_the_receipt_are_accepted(spans: list[tuple[int, int]], rule: str) -> None:
    """R7: what the chain would refuse is neither stored nor passed on."""
    acceptance = make_acceptance(GOOD, segments=tuple(Span(*one) for one in spans))
    refuse(rule, check_acceptance, CHAIN, ORDER, LEASE, Acceptable({RECEIPT: Span(4, 6)}, ()), acceptance)


def test_a_lease_has_so_many_acceptances_and_no_more() -> None:
    """Each stays until the job is over; one that is here may be said again."""
    made = [
        make_acceptance(GOOD, segments=tuple(Span(2 * place, 1) for place in range(number)))
        for number in range(MAX_ACCEPTANCES + 1)
    ]
    ranges = {RECEIPT: Span(0, 100)}
    refuse("", check_acceptance, CHAIN, ORDER, LEASE, Acceptable(ranges, made[:-2]), made[-2])
    refuse("", check_acceptance, CHAIN, ORDER, LEASE, Acceptable(ranges, made[:-1]), made[0])
    refuse("acceptance.many", check_acceptance, CHAIN, ORDER, LEASE, Acceptable(ranges, made[:-1]), made[-1])


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
