"""Receipts of prefixes as the broker takes them: one row per rule, and what any honest way of handing in comes to (R5,
R8, R9).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.auction import admission
from broker.auction.admission import EMPTY, Agreed, HandedIn, check_delivery, check_sizes, list_delivered_blobs
from broker.auction.events import DeliveryArrived, StoreStorageReceipt
from broker.protocol.api import Delivered, Delivery
from broker.protocol.jobs import LOG_MARGIN, MAX_ERROR_BYTES, MAX_LOG_BYTES
from broker.protocol.provenance import compute_provenance_limit
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.ledger.terms.agreement import Award, Kind, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord, compute_records_root
from tests.broker.play import Play, start_train
from tests.broker.world import (
    BROKER,
    CHAIN,
    CODE,
    HOUSE,
    LOG,
    NOW,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    STRANGER,
    WINDOWS,
    make_bid,
    make_delivery,
    make_order,
    make_records,
    make_spec,
    sign_delivery,
)

ORDER = make_order(segments=9, cap=10_000_000)
BID = make_bid(ORDER)
AWARD = Award(
    order=compute_order_id(CHAIN, ORDER),
    bid=compute_bid_id(CHAIN, BID.body),
    replica=0,
    first=2,
    count=5,
    price=1_000_000,
    commission=100,
    book=bytes(32),
    start=ORDER.start,
    runner_up=None,
    closed=NOW,
    valid_until=NOW + 60_000,
)
LEASE = compute_lease_id(CHAIN, AWARD)
OTHER = replace(AWARD, first=0)


def records(count: int = 5, kind: Kind = Kind.MAP, **last: Any) -> list[SegmentRecord]:
    return make_records(AWARD, count=count, kind=kind, **last)


def change(place: int, count: int = 5, kind: Kind = Kind.MAP, **changes: Any) -> list[SegmentRecord]:
    """Records of which one is another."""
    made = records(count, kind)
    made[place] = replace(made[place], **changes)
    return made


def sign(made: list[SegmentRecord], since: int = 0, **changes: Any) -> Delivery:
    return sign_delivery(AWARD, made, since=since, **changes)


def make_known(count: int = 0, kind: Kind = Kind.MAP) -> HandedIn:
    """What is here after a prefix of so many records."""
    known = HandedIn()
    if count:
        known.add(sign(records(count, kind)), AWARD.count)
    return known


def refuse(rule: str, known: HandedIn, delivery: Delivery, kind: Kind = Kind.MAP) -> None:
    agreed = Agreed(LEASE, AWARD, BID.body, kind)
    if not rule:
        check_delivery(CHAIN, agreed, known, delivery, NOW)
        return
    with pytest.raises(Refused) as refused:
        check_delivery(CHAIN, agreed, known, delivery, NOW)
    assert refused.value.rule == rule


GOOD = sign(records())
FINAL: dict[str, Any] = {"log": compute_digest(LOG), "provenance": compute_digest(PROVENANCE)}
HOSTILE: list[tuple[str, int, Any, str]] = [
    # what, records that are here, the delivery, the rule
    ("whole", 0, lambda: GOOD, ""),
    ("a prefix", 0, lambda: sign(records(2)), ""),
    ("the rest", 2, lambda: sign(records(), 2), ""),
    ("a longer prefix with all its records again", 2, lambda: sign(records(4)), ""),
    ("a longer prefix with some of them again", 3, lambda: sign(records(4), 1), ""),
    ("ended by a program that failed", 2, lambda: sign(records(4, cause=Cause.PROGRAM), 2), ""),
    ("another lease", 0, lambda: sign(records(), lease=bytes(32)), "R5.lease"),
    ("another provider", 0, lambda: make_delivery(AWARD, PROVIDERS[1]), "R5.lease"),
    ("another first", 0, lambda: sign(records(), first=1), "R5.prefix"),
    ("nothing", 0, lambda: sign([]), "R5.prefix"),
    ("too much", 0, lambda: sign(records(), count=6), "R5.prefix"),
    ("a record missing", 0, lambda: replace(GOOD, records=GOOD.records[:4]), "R5.count"),
    ("since that is not so", 0, lambda: replace(GOOD, since=1), "R5.count"),
    ("records more than the receipt covers", 0, lambda: sign(records(5), count=4), "R5.count"),
    ("a hole", 2, lambda: sign(records(), 3), "R5.since"),
    ("a hole from the start", 0, lambda: sign(records(3), 1), "R5.since"),
    ("another record where one is", 2, lambda: sign(change(1, output=bytes(32))), "R5.overlap"),
    ("the same again", 2, lambda: sign(records(2)), "R5.shorter"),
    ("the same again without records", 2, lambda: sign(records(2), 2), "R5.shorter"),
    ("a shorter one", 3, lambda: sign(records(2)), "R5.shorter"),
    ("a finish a little ahead of our clock", 0, lambda: sign(records(), finished=NOW + 60_000), ""),
    ("a finish that is still to come", 0, lambda: sign(records(), finished=NOW + 60_001), "delivery.finished"),
    ("after the whole", 5, lambda: sign(records(), finished=NOW + 99), "R5.shorter"),
    ("a record twice", 0, lambda: sign(change(1, index=2)), "R5.index"),
    ("a record of another lease", 0, lambda: sign(change(1, lease=bytes(32))), "R5.record"),
    ("records of another lease", 0, lambda: sign(make_records(OTHER)), "R5.record"),
    ("a record of another provider", 0, lambda: sign(change(1, provider=STRANGER.key)), "R5.record"),
    ("a failed one amid", 0, lambda: sign(change(1, cause=Cause.OOM)), "R9.cause"),
    ("a failed one before the last", 2, lambda: sign(change(3, cause=Cause.OOM), 2), "R9.cause"),
    ("an error text of what went well", 0, lambda: sign(change(1, error=bytes(32))), "R9.error"),
    ("another cause", 0, lambda: sign(records(), cause=Cause.OOM), "R5.cause"),
    ("the host's fault", 0, lambda: sign(records(4, cause=Cause.HOST), **FINAL), "R5.cause"),
    ("a prefix that names a log", 0, lambda: sign(records(2), log=compute_digest(LOG)), "R5.log"),
    ("a prefix that names provenance", 0, lambda: sign(records(2), provenance=bytes(32)), "R5.log"),
    ("the whole without provenance", 0, lambda: sign(records(), provenance=EMPTY), "R5.provenance"),
    ("the whole with an empty log", 0, lambda: sign(records(), log=EMPTY), ""),
    ("another root", 0, lambda: sign(records(), records=bytes(32)), "R5.root"),
    ("a root over the new ones alone", 2, lambda: sign(records(), 2, records=root_of_new()), "R5.root"),
    ("a record that the root is not over", 0, lambda: replace(GOOD, records=tuple(change(4, started=7))), "R5.root"),
    (
        "signed by another",
        0,
        lambda: replace(GOOD, receipt=STRANGER.sign(Tag.RECEIPT, CHAIN, GOOD.receipt.body)),
        "signature.receipt",
    ),
]


def root_of_new() -> bytes:
    return compute_records_root(records()[2:])


@pytest.mark.parametrize(("here", "make", "rule"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_deliveries(here: int, make: Any, rule: str) -> None:
    refuse(rule, make_known(here), make())


CHAINED: list[tuple[str, int, Any, str]] = [
    ("whole", 0, lambda: sign(records(kind=Kind.TRAIN)), ""),
    ("the rest", 3, lambda: sign(records(kind=Kind.TRAIN), 3), ""),
    ("another start", 0, lambda: sign(change(0, kind=Kind.TRAIN, input=bytes(32))), "R5.start"),
    ("a step from elsewhere", 0, lambda: sign(change(2, kind=Kind.TRAIN, input=bytes(32))), "R5.chain"),
    ("the first new one from elsewhere", 3, lambda: sign(change(3, kind=Kind.TRAIN, input=bytes(32)), 3), "R5.chain"),
    ("a state that the next did not take", 0, lambda: sign(change(2, kind=Kind.TRAIN, output=bytes(32))), "R5.chain"),
    ("a map's records", 0, lambda: sign(records()), "R5.chain"),
]


@pytest.mark.parametrize(("here", "make", "rule"), [row[1:] for row in CHAINED], ids=[row[0] for row in CHAINED])
def test_a_train_goes_on_from_state_to_state(here: int, make: Any, rule: str) -> None:
    refuse(rule, make_known(here, Kind.TRAIN), make(), Kind.TRAIN)


def test_behind_a_receipt_that_ended_by_a_failure_comes_none() -> None:
    """R9: a failed segment ends its range, whatever its provider signs afterwards."""
    known, failed = HandedIn(), records(3, cause=Cause.OOM)
    known.add(sign(failed), AWARD.count)
    refuse("R5.shorter", known, sign([*failed, *records()[3:]], 3))


def test_items_of_a_map_are_the_requesters_to_check() -> None:
    refuse("", make_known(), sign(change(2, input=bytes(32))))


def test_behind_many_receipts_a_prefix_has_to_bring_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded; what is final is always taken."""
    monkeypatch.setattr(admission, "MANY_DELIVERIES", 1)
    monkeypatch.setattr(admission, "MANY_RECORDS", 2)
    refuse("", make_known(), sign(records(1)))
    refuse("delivery.many", make_known(2), sign(records(3), 2))
    refuse("", make_known(2), sign(records(4), 2))
    refuse("", make_known(4), sign(records(5), 4))
    refuse("", make_known(2), sign(records(3, cause=Cause.OOM), 2))


def test_it_is_kept_without_blobs_and_without_what_is_here() -> None:
    delivery = replace(sign(records(4), 1), blobs=(OUTPUT,))
    kept = check_delivery(CHAIN, Agreed(LEASE, AWARD, BID.body, Kind.MAP), make_known(3), delivery, NOW)
    assert (kept.since, kept.records, kept.blobs) == (3, tuple(records(4)[3:]), ())
    assert kept.receipt == delivery.receipt


@given(st.lists(st.integers(1, 5), max_size=6, unique=True), st.data())
def test_any_way_of_handing_in_ends_in_the_same_tree(ends: list[int], data: st.DataObject) -> None:
    """Prefix by prefix, with any overlap, or all at once."""
    known, agreed = HandedIn(), Agreed(LEASE, AWARD, BID.body, Kind.MAP)
    for end in sorted({*ends, 5}):
        since = data.draw(st.integers(0, len(known.records)))
        known.add(check_delivery(CHAIN, agreed, known, sign(records(end), since), NOW), AWARD.count)
    assert known.records == records()
    assert known.tree.root == compute_records_root(records())
    assert known.final == GOOD.receipt.body


def test_blobs_of_a_delivery_are_all_that_it_names_but_the_empty_one() -> None:
    error = compute_digest(b"a traceback")
    failed = sign(records(3, error=error, cause=Cause.PROGRAM))
    whole = {compute_digest(OUTPUT), compute_digest(LOG), compute_digest(PROVENANCE)}
    assert set(list_delivered_blobs(failed)) == {*whole, error}
    assert set(list_delivered_blobs(GOOD)) == whole
    assert set(list_delivered_blobs(sign(records(2)))) == {compute_digest(OUTPUT)}
    assert compute_digest(CODE) not in list_delivered_blobs(GOOD)


TRACEBACK = compute_digest(b"a traceback")
FAILED = sign(records(error=TRACEBACK, cause=Cause.PROGRAM))


@pytest.mark.parametrize(
    ("named", "limit", "rule"),
    [
        (OUTPUT, 1_000, "delivery.output"),
        (b"a traceback", MAX_ERROR_BYTES, "delivery.error"),
        (LOG, 5 * 300 + LOG_MARGIN, "delivery.log"),
        (PROVENANCE, compute_provenance_limit(5), "delivery.provenance"),
    ],
)
def test_what_is_kept_keeps_to_the_limits_of_the_order(named: bytes, limit: int, rule: str) -> None:
    """It counts as the requester's, who would refuse it: one limit for the requester's checks and the broker's."""
    limits = replace(make_spec().resources, output_bytes=1_000, log_bytes=300)
    spec, sizes = make_spec(resources=limits), dict.fromkeys(list_delivered_blobs(FAILED), 1)
    check_sizes(spec, AWARD.count, FAILED, {**sizes, compute_digest(named): limit})
    with pytest.raises(Refused, match=str(limit)) as refused:
        check_sizes(spec, AWARD.count, FAILED, {**sizes, compute_digest(named): limit + 1})
    assert refused.value.rule == rule


def test_the_log_of_a_long_lease_is_bounded_as_a_whole() -> None:
    sizes = {**dict.fromkeys(list_delivered_blobs(GOOD), 1), compute_digest(LOG): MAX_LOG_BYTES + LOG_MARGIN}
    check_sizes(make_spec(), 1_000, GOOD, sizes)
    with pytest.raises(Refused) as refused:
        check_sizes(make_spec(), 1_000, GOOD, {**sizes, compute_digest(LOG): MAX_LOG_BYTES + LOG_MARGIN + 1})
    assert refused.value.rule == "delivery.log"


def test_a_prefix_without_log_and_errors_keeps_to_its_limits() -> None:
    check_sizes(make_spec(), AWARD.count, sign(records(2)), {compute_digest(OUTPUT): 1})


# What is signed for them


def list_storage(play: Play) -> list[Any]:
    return [one.storage for one in play.auction.news if isinstance(one, Delivered)]


def test_each_prefix_gets_a_storage_receipt_over_all_so_far() -> None:
    play = start_train(20)
    for count in (3, 4, 20):
        play.hand_in(count)
    bodies = [verify(one, Tag.STORAGE, CHAIN, BROKER.key) for one in list_storage(play)]
    assert [body.size for body in bodies] == [100, 200, 300]
    assert {body.kept_until for body in bodies} == {play.order.deadline + HOUSE.retention}
    assert len({body.receipt for body in bodies}) == 3
    assert play.lot().handed.final is not None


def test_what_an_early_prefix_named_is_kept_as_long_as_the_last_receipt_promises() -> None:
    play = start_train(20)
    kept = next(one for one in play.hand_in(3) if isinstance(one, StoreStorageReceipt))
    play.now = play.order.deadline
    play.hand_in(9)
    play.now = play.order.deadline + 500
    play.hand_in(20)
    promises = [one.body.kept_until for one in list_storage(play)]
    assert promises[0] == promises[1] == promises[2] == kept.until


@pytest.mark.parametrize("days", [1, 80])
def test_every_receipt_of_a_prefix_is_one_that_the_chain_takes_however_far_the_deadline(days: int) -> None:
    """R8: a prefix on the chain may be cut as late as the deadline; its acceptance window begins only then."""
    deadline = NOW + days * 24 * 3_600_000
    windows = replace(WINDOWS, acceptance=HOUSE.retention)
    play = start_train(20, deadline=deadline, expiry=deadline + HOUSE.retention, windows=windows)
    play.hand_in(3)
    [storage] = list_storage(play)
    assert storage.body.kept_until >= deadline + windows.acceptance


def test_one_that_was_overtaken_changes_nothing() -> None:
    """Checked beside another one that came first: it does not go on from what is here now."""
    play = start_train(20)
    lot = play.lot()
    both = [sign_delivery(lot.award.body, make_records(lot.award.body, count=n, kind=Kind.TRAIN)) for n in (3, 5)]
    assert play.tell(DeliveryArrived(lot.lease, both[1], 10)) != []
    assert play.tell(DeliveryArrived(lot.lease, both[0], 10)) == []
    assert len(lot.handed.records) == 5


@pytest.mark.parametrize("state", ["delivered", "returned", "settled"])
def test_what_comes_after_the_end_of_a_lease_changes_nothing(state: str) -> None:
    play = start_train(20)
    play.hand_in(5)
    play.change(state, 5)
    assert play.hand_in(9) == []
    assert len(list_storage(play)) == 1
