"""Every numbered check refuses its own row, and nothing that is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.jobs import LOG_MARGIN, MAX_LOG_BYTES
from broker.protocol.messages import Book
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Award, Bid, Kind, Order, compute_bid_id
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Receipt, SegmentRecord, StorageReceipt
from requester.purchase import checks, deliveries
from requester.purchase.checking import Blame, Check, CheckFailed, judge, require, require_told
from tests.requester.spoilers import (
    AWARD_ROWS,
    BLOB_ROWS,
    BOOK_ROWS,
    DELIVERY_ROWS,
    OTHER,
    SHARE_ROWS,
    Spoil,
    make_auction,
    make_train,
    reaward,
    relet,
    rerecord,
    swollen,
)
from tests.requester.world import CHAIN, INPUT, PROVIDER, STRANGER, World, change

FOURTH = Signer(bytes([9]) * 32)


def failing(rows: tuple[Check[Any], ...], facts: Any) -> int:
    """Number of the first check that fails, 0 where all hold."""
    try:
        require(rows, facts)
    except CheckFailed as failed:
        assert failed.rule == f"check.{failed.number}"
        return failed.number
    return 0


@pytest.mark.parametrize(("name", "number", "spoil"), AWARD_ROWS, ids=lambda value: str(value)[:60])
def test_award_checks(name: str, number: int, spoil: Spoil) -> None:
    world = World()
    spoil(world)
    assert failing(checks.AWARD_CHECKS, world.award_facts) == number, name


@pytest.mark.parametrize(("name", "number", "spoil"), BOOK_ROWS, ids=lambda value: str(value)[:60])
def test_book_checks(name: str, number: int, spoil: Spoil) -> None:
    world = make_auction()
    spoil(world)
    assert failing(checks.BOOK_CHECKS, world.book_facts) == number, name


@pytest.mark.parametrize(("name", "number", "spoil"), SHARE_ROWS, ids=lambda value: str(value)[:60])
def test_share_checks(name: str, number: int, spoil: Spoil) -> None:
    world = World()
    spoil(world)
    assert failing(checks.SHARE_CHECKS, world.share_facts) == number, name


def test_a_part_of_a_divided_map_goes_to_who_comes_after_all_that_had_one() -> None:
    """R12 a: the second part's bid did not open; neither the first part's bid nor a dearer one may take it."""
    world = World(causes=(Cause.OK,), segments=2, kind=Kind.MAP, parallelism=2, prices=(100_000, 200_000), count=1)
    third, fourth = world.make_bid(STRANGER, 300_000), world.make_bid(FOURTH, 400_000)
    world.bids = (*world.bids, third, fourth)
    failed = frozenset([compute_bid_id(CHAIN, world.bids[0].body)])
    for bid, right in ((third, True), (fourth, False), (world.bids[1], False), (world.bids[0], False)):
        used = {compute_bid_id(CHAIN, one.body) for one in (world.bids[0], world.bids[1]) if one != bid}
        award = change(world.award_body, first=1, bid=compute_bid_id(CHAIN, bid.body), price=bid.body.price)
        facts = change_facts(world.share_facts, award=award, failed=failed, used=frozenset(used))
        assert (failing(checks.SHARE_CHECKS, facts) == 0) is right


@pytest.mark.parametrize("opened", [True, False])
def test_a_part_is_not_given_to_who_had_another_in_anothers_place(opened: bool) -> None:
    """R12 a: the third bid came in for the first part, and opened its lease or not; the second part is the fourth's."""
    world = World(causes=(Cause.OK,), segments=2, kind=Kind.MAP, parallelism=2, prices=(100_000, 200_000), count=1)
    third, fourth = world.make_bid(STRANGER, 300_000), world.make_bid(FOURTH, 400_000)
    world.bids = (*world.bids, third, fourth)
    had = [compute_bid_id(CHAIN, one.body) for one in world.bids]
    failed, used = (had[:2], had[2:3]) if opened else (had[:3], [])
    for bid, right in ((third, False), (fourth, True)):
        award = change(world.award_body, first=1, bid=compute_bid_id(CHAIN, bid.body), price=bid.body.price)
        facts = change_facts(world.share_facts, award=award, failed=frozenset(failed), used=frozenset(used))
        assert (failing(checks.SHARE_CHECKS, facts) == 0) is right


def change_facts(facts: Any, **fields: Any) -> Any:
    return dataclasses.replace(facts, **fields)


@pytest.mark.parametrize(("name", "number", "spoil"), DELIVERY_ROWS, ids=lambda value: str(value)[:60])
def test_delivery_checks(name: str, number: int, spoil: Spoil) -> None:
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    spoil(world)
    assert failing(deliveries.DELIVERY_CHECKS, world.delivery_facts) == number, name


@pytest.mark.parametrize(("name", "number", "spoil"), BLOB_ROWS, ids=lambda value: str(value)[:60])
def test_blob_checks(name: str, number: int, spoil: Spoil) -> None:
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    spoil(world)
    assert failing(deliveries.BLOB_CHECKS, world.delivery_facts) == number, name


def test_each_segment_of_a_lease_may_write_its_share_of_the_log() -> None:
    """The limit is one segment's, the log is the whole lease's: an honest provider is not refused for chatty work."""
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    swollen("log", (3 << 20) + 60)(world)
    assert failing(deliveries.BLOB_CHECKS, world.delivery_facts) == 0
    assert deliveries.compute_largest(world.spec, 1_000) == max(MAX_LOG_BYTES + LOG_MARGIN, 64 << 20)


@pytest.mark.parametrize("since", [0, 1, 2])
def test_a_prefix_goes_on_from_the_one_before_it(since: int) -> None:
    """R5: root, usage, cause and chain are those of all records, of which only the new ones come."""
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    world.since = since
    assert failing(DELIVERY, world.delivery_facts) == 0


def test_records_that_were_verified_before_are_not_taken_from_a_delivery_again() -> None:
    world = make_train(Cause.OK, Cause.OK, Cause.OK)
    before = deliveries.Prefix().extend(world.record_bodies[:2])
    facts = change_facts(world.delivery_facts, before=before)
    assert facts.new == world.record_bodies[2:]
    other = deliveries.Prefix().extend([change(record, started=1) for record in world.record_bodies[:2]])
    assert failing(DELIVERY, change_facts(facts, before=other)) == 26


def test_a_prefix_that_is_not_final_needs_neither_log_nor_provenance() -> None:
    world = make_train(Cause.OK, Cause.OK)
    assert world.receipt_body.provenance == world.receipt_body.log == deliveries.EMPTY
    assert failing((*DELIVERY, *deliveries.BLOB_CHECKS), world.delivery_facts) == 0


def test_a_record_of_a_map_reads_its_own_item() -> None:
    world = make_auction()
    assert failing(DELIVERY, world.delivery_facts) == 0
    world = make_auction()
    rerecord(at=1, input=world.items[2])(world)
    assert failing(DELIVERY, world.delivery_facts) == 27


@pytest.mark.parametrize("cause", sorted(FINAL_FAILURES))
def test_a_failed_segment_is_a_segment(cause: Cause) -> None:
    """R9."""
    world = World(causes=(cause,))
    assert failing((*deliveries.DELIVERY_CHECKS, *deliveries.BLOB_CHECKS), world.delivery_facts) == 0


DELIVERY = deliveries.DELIVERY_CHECKS

ALL_ROWS: list[tuple[Any, list[tuple[str, int, Spoil]], set[int]]] = [
    (checks.AWARD_CHECKS, AWARD_ROWS, set(range(1, 13))),
    (checks.BOOK_CHECKS, BOOK_ROWS, {*range(13, 19), 47}),
    (checks.SHARE_CHECKS, SHARE_ROWS, {19, 46}),
    (DELIVERY, DELIVERY_ROWS, {*range(20, 35), 38} - {29}),
    (deliveries.BLOB_CHECKS, BLOB_ROWS, {35, 36, 37, 48}),
]


@pytest.mark.parametrize(("table", "rows", "numbers"), ALL_ROWS)
def test_each_number_stands_once_and_has_a_row(table: Any, rows: Any, numbers: set[int]) -> None:
    assert sorted(check.number for check in table) == sorted(numbers)
    assert {number for _, number, _ in rows} == {0, *numbers}
    assert len({check.name for check in table}) == len(table)


def gather_facts(table: Any, spoil: Spoil) -> Any:
    """The facts of a row in the world that its table is tried in."""
    kinds: dict[int, tuple[Callable[[], World], str]] = {
        id(checks.AWARD_CHECKS): (World, "award_facts"),
        id(checks.BOOK_CHECKS): (make_auction, "book_facts"),
        id(checks.SHARE_CHECKS): (World, "share_facts"),
    }
    make, name = kinds.get(id(table), (lambda: make_train(Cause.OK, Cause.OK, Cause.PROGRAM), "delivery_facts"))
    world = make()
    spoil(world)
    return getattr(world, name)


SWITCHES = [
    (table, number, spoil, name)
    for table, rows, _ in ALL_ROWS
    for name, number, spoil in rows
    if number and name not in {"a receipt of nothing", "a receipt beyond the range"}
]


@pytest.mark.parametrize(("table", "number", "spoil", "name"), SWITCHES, ids=[f"{row[1]}-{row[3]}" for row in SWITCHES])
def test_a_check_switched_off_lets_its_row_past(table: Any, number: int, spoil: Spoil, name: str) -> None:
    """The rows bite: each is caught by its own check, and by none that comes before."""
    facts = gather_facts(table, spoil)
    rest = tuple(check for check in table if check.number != number)
    assert failing(table, facts) == number, name
    assert failing(rest, facts) != number
    place = [check.number for check in table].index(number)
    assert failing(table[:place], facts) == 0


def test_what_its_teller_may_have_bent_comes_before_what_its_signer_answers_for() -> None:
    """A record that the broker bent is not held against the provider, whatever else is wrong with it."""
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    rerecord(at=1, root=False, input=OTHER, index=7)(world)
    with pytest.raises(CheckFailed) as failed:
        require_told(DELIVERY, world.delivery_facts)
    assert (failed.value.number, failed.value.blame) == (26, Blame.TELLER)
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM)
    rerecord(at=1, input=OTHER)(world)
    with pytest.raises(CheckFailed) as failed:
        require_told(DELIVERY, world.delivery_facts)
    assert (failed.value.number, failed.value.blame) == (27, Blame.SIGNER)


def test_judging_skips_what_follows_a_failure() -> None:
    world = World()
    relet(world)
    reaward(PROVIDER)(world)
    verdicts = judge(checks.AWARD_CHECKS, world.award_facts)
    assert [verdict.passed for verdict in verdicts[:2]] == [True, False]
    assert all(verdict.skipped for verdict in verdicts[2:])
    assert not any(verdict.passed for verdict in judge(checks.AWARD_CHECKS, None))


# ---- one byte flipped ----

SIGNED: list[tuple[str, Any, Callable[[World], Any], Callable[[World, Any], None]]] = [
    ("order", Signed[Order], lambda w: w.order, lambda w, v: setattr(w, "order", v)),
    ("award", Signed[Award], lambda w: w.award, lambda w, v: setattr(w, "award", v)),
    ("bid", Signed[Bid], lambda w: w.bid, lambda w, v: setattr(w, "bid", v)),
    ("receipt", Signed[Receipt], lambda w: w.receipt, lambda w, v: setattr(w, "receipt", v)),
    ("record", SegmentRecord, lambda w: w.records[0], lambda w, v: setattr(w, "records", (v,))),
    ("storage", Signed[StorageReceipt], lambda w: w.storage, lambda w, v: setattr(w, "storage", v)),
    ("book", Signed[Book], lambda w: w.book, lambda w, v: setattr(w, "book", v)),
]


@pytest.mark.parametrize(("name", "kind", "get", "put"), SIGNED, ids=[row[0] for row in SIGNED])
@given(data=st.data())
def test_one_flipped_bit_in_a_signed_object_is_refused(
    name: str, kind: Any, get: Any, put: Any, data: st.DataObject
) -> None:
    world = World()
    assert None not in (world.order, world.book, world.award, world.receipt, world.records, world.storage)
    raw = bytearray(encode(get(world)))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        put(world, decode(bytes(raw), kind))
    except Refused:
        return
    with pytest.raises(CheckFailed):
        require(checks.AWARD_CHECKS, world.award_facts)
        require(checks.BOOK_CHECKS, world.book_facts)
        require(checks.SHARE_CHECKS, world.share_facts)
        require(deliveries.DELIVERY_CHECKS, world.delivery_facts)


def test_needed_blobs_are_named_once_without_the_empty_one() -> None:
    world = make_train(Cause.OK, Cause.OK, Cause.OOM)
    needed = deliveries.list_needed(world.receipt_body, world.records)
    assert set(needed) == set(world.found)
    assert len(needed) == len(set(needed))
    assert deliveries.EMPTY not in needed
    assert INPUT not in needed
