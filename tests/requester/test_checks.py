"""Every numbered check refuses its own row, and nothing that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.messages import Book
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, AwardRule, Bid, Kind, Order, compute_bid_id, compute_lease_id
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause, Usage
from chain.ledger.terms.work import Environment, Receipt, SegmentRecord, StorageReceipt, compute_records_root
from requester.purchase import checks, deliveries
from requester.purchase.checking import Check, CheckFailed, judge, require
from tests.requester.world import BROKER, CHAIN, INPUT, NOW, PROVIDER, REQUESTER, RIVAL, STRANGER, World, change

OTHER = compute_digest(b"other")
Spoil = Callable[[World], None]


def failing(rows: tuple[Check[Any], ...], facts: Any) -> int:
    """Number of the first check that fails, 0 where all hold."""
    try:
        require(rows, facts)
    except CheckFailed as failed:
        assert failed.rule == f"check.{failed.number}"
        return failed.number
    return 0


# ---- spoilers: each changes one thing, signed again by whoever would have to be dishonest ----


def respec(**fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        _ = world.order
        world.spec = change(world.spec, **fields)

    return spoil


def reorder(signer: Any = REQUESTER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        world.order = signer.sign(Tag.ORDER, CHAIN, change(world.order.body, **fields))

    return spoil


def reaward(signer: Any = BROKER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        _ = world.receipt_body
        world.award = signer.sign(Tag.AWARD, CHAIN, change(world.award_body, **fields))
        world.lease = compute_lease_id(CHAIN, world.award.body)

    return spoil


def rebid(signer: Any = PROVIDER, *, follow: bool = True, **fields: Any) -> Spoil:
    """Another winning bid, with an award that names it (`follow`) or still the old one."""

    def spoil(world: World) -> None:
        old = world.award_body
        world.bid = signer.sign(Tag.BID, CHAIN, change(world.bid.body, **fields))
        if follow:
            bid = world.bid.body
            world.award_body = change(old, bid=compute_bid_id(CHAIN, bid), price=bid.price)

    return spoil


def second(runner_up: Callable[[World], Signed[Bid] | None], price: int) -> Spoil:
    def spoil(world: World) -> None:
        world.overrides = {"rule": AwardRule.SECOND}
        world.award_body = change(world.award_body, price=price, runner_up=runner_up(world))

    return spoil


def relet(world: World) -> None:
    world.lease = OTHER


def rebook(signer: Any = BROKER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        world.book = signer.sign(Tag.BOOK, CHAIN, change(world.book_body, **fields))

    return spoil


def regather(make: Callable[[World], tuple[Signed[Bid], ...]], winner: int = 1, tried: int | None = None) -> Spoil:
    """Another set of bids, and everything after it consistent."""

    def spoil(world: World) -> None:
        world.bids = make(world)
        world.bid = world.bids[winner]
        if tried is not None:
            world.tried = frozenset([compute_bid_id(CHAIN, world.bids[tried].body)])

    return spoil


def cheaper(**fields: Any) -> Spoil:
    """A rival's bid is the lower one, with some fields changed."""
    return regather(lambda world: (world.make_bid(RIVAL, 900_000, **fields), world.bids[1]))


def bring_in_a_third(world: World) -> None:
    world.overrides = {"rule": AwardRule.SECOND}
    world.bids = (*world.bids, world.make_bid(STRANGER, 1_200_000))
    world.award_body = change(world.award_body, price=1_500_000, runner_up=world.bids[0])


def redeliver(signer: Any = PROVIDER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        world.receipt_body = change(world.receipt_body, **fields)
        world.receipt = signer.sign(Tag.RECEIPT, CHAIN, world.receipt_body)

    return spoil


def rerecord(signer: Any = PROVIDER, at: int = 0, *, root: bool = True, **fields: Any) -> Spoil:
    """One record changed; the receipt's root follows where `root`."""

    def spoil(world: World) -> None:
        bodies = list(world.record_bodies)
        old = world.receipt_body
        bodies[at] = change(bodies[at], **fields)
        world.record_bodies = tuple(bodies)
        world.records = tuple(signer.sign(Tag.SEGMENT, CHAIN, body) for body in bodies)
        if root:
            world.receipt_body = change(old, records=compute_records_root(bodies))

    return spoil


def deliver_nothing(world: World) -> None:
    redeliver(count=0)(world)
    world.records = ()


def quit_as_host(world: World) -> None:
    rerecord(at=2, cause=Cause.HOST)(world)
    redeliver(cause=Cause.HOST)(world)


def restore(signer: Any = BROKER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        world.storage_body = change(world.storage_body, **fields)
        world.storage = signer.sign(Tag.STORAGE, CHAIN, world.storage_body)

    return spoil


def without(index: int) -> Spoil:
    def spoil(world: World) -> None:
        world.blobs = tuple(blob for at, blob in enumerate(world.blobs) if at != index)

    return spoil


def swollen(index: int, size: int) -> Spoil:
    def spoil(world: World) -> None:
        digest = compute_digest(world.blobs[index])
        world.found = {**world.found, digest: size}

    return spoil


def nothing(world: World) -> None:
    del world


AWARD_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("another job under the order", 1, respec(seed=8)),
    ("an order signed by a stranger", 1, reorder(STRANGER)),
    ("an award signed by the provider", 2, reaward(PROVIDER)),
    ("an award of another order", 3, reaward(order=OTHER)),
    ("a range beyond the order", 4, reaward(count=2)),
    ("a range behind the order", 4, reaward(first=1)),
    ("a replica nobody ordered", 4, reaward(replica=1)),
    ("a bid signed by another", 5, rebid(RIVAL)),
    ("a bid the award does not name", 6, rebid(follow=False, salt=bytes([1] * 16))),
    ("a bid for another order", 6, rebid(order=OTHER)),
    ("a price above the bid", 7, reaward(price=1_000_001)),
    ("a price below the bid", 7, reaward(price=999_999)),
    ("a runner-up where the lowest is paid", 7, lambda w: reaward(runner_up=w.bids[0])(w)),
    ("second price, honest", 0, second(lambda w: w.bids[0], 1_500_000)),
    ("second price above the runner-up", 7, second(lambda w: w.bids[0], 1_500_001)),
    ("second price alone, the limit", 0, second(lambda _: None, 1_960_785)),
    ("second price alone, its own", 7, second(lambda _: None, 1_000_000)),
    ("a runner-up signed by another", 8, second(lambda w: change(w.bids[0], signature=w.bid.signature), 1_500_000)),
    ("a runner-up of another order", 8, second(lambda w: w.make_bid(RIVAL, 1_500_000, order=OTHER), 1_500_000)),
    ("more than the cap", 9, rebid(price=1_970_000)),
    ("more commission than agreed", 9, reaward(commission=201)),
    ("a price that overflows", 9, rebid(price=2**63 - 1)),
    ("another start", 10, reaward(start=OTHER)),
    ("the requester as provider", 11, rebid(REQUESTER, provider=REQUESTER.key)),
    ("the auctioneer as provider", 11, rebid(BROKER, provider=BROKER.key)),
    ("a bond below the damages", 11, rebid(bond=999)),
    ("another lease", 12, relet),
]

BOOK_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("a book signed by another", 13, rebook(RIVAL)),
    ("a book of another order", 14, rebook(order=OTHER)),
    ("a root that is not over the bids", 15, rebook(root=OTHER)),
    ("a bid left out", 15, lambda w: rebook(bids=w.bids[1:])(w)),
    ("an award that names another book", 15, reaward(book=OTHER)),
    ("a provider with two bids", 16, regather(lambda w: (*w.bids, w.make_bid(RIVAL, 1_600_000)))),
    ("a bid of another order", 16, regather(lambda w: (w.make_bid(RIVAL, 1_500_000, order=OTHER), w.bids[1]))),
    ("a bid nobody signed", 16, regather(lambda w: (change(w.bids[0], signature=bytes(64)), w.bids[1]))),
    ("bids in another order than acknowledged", 17, rebook(last=OTHER)),
    (
        "a decline nobody signed",
        18,
        lambda w: rebook(declines=(change(w.book_body.declines[0], signature=bytes(64)),))(w),
    ),
    ("the dearer bid won", 19, regather(lambda w: w.bids, winner=0)),
    ("the later of two equal bids won", 19, regather(lambda w: (w.make_bid(RIVAL, 1_000_000), w.bids[1]))),
    ("another runner-up than the second-lowest", 19, bring_in_a_third),
    ("the next bid won, the first was tried", 0, regather(lambda w: w.bids, winner=0, tried=1)),
    ("a cheaper bid that ran out does not count", 0, cheaper(valid_until=NOW + 999)),
    ("a cheaper bid that is valid for too long does not count", 0, cheaper(valid_until=NOW + 62_001)),
    ("a cheaper bid just valid for long enough", 19, cheaper(valid_until=NOW + 62_000)),
    (
        "a cheaper bid without bond does not count",
        0,
        regather(lambda w: (w.make_bid(RIVAL, 900_000, bond=1), w.bids[1])),
    ),
]

DELIVERY_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("a receipt signed by another", 20, redeliver(RIVAL)),
    ("a receipt of another lease", 21, redeliver(lease=OTHER)),
    ("a receipt by another provider", 21, redeliver(provider=RIVAL.key)),
    ("a receipt that begins elsewhere", 22, redeliver(first=1)),
    ("a receipt that counts too few", 22, redeliver(count=2)),
    ("a receipt of nothing", 22, deliver_nothing),
    ("a record signed by another", 23, rerecord(RIVAL)),
    ("a record of another lease", 24, rerecord(lease=OTHER)),
    ("a record by another provider", 24, rerecord(provider=RIVAL.key)),
    ("a record with a wrong index", 25, rerecord(at=1, index=2)),
    ("a record the root is not over", 26, rerecord(root=False, started=1)),
    ("a first input that is not the start", 27, rerecord(input=OTHER)),
    ("a step that does not follow", 27, rerecord(at=1, input=OTHER)),
    ("a failure in the midst", 28, rerecord(at=0, cause=Cause.OOM)),
    ("a cause the records do not show", 28, redeliver(cause=Cause.WALL)),
    (
        "a host that claims to be final",
        28,
        quit_as_host,
    ),
    ("usage that does not add up", 30, redeliver(usage=Usage(1))),
    ("another runtime", 31, redeliver(environment=Environment("ns", OTHER, 1, ""))),
    ("a storage receipt by nobody named", 32, restore(RIVAL, holder=RIVAL.key)),
    ("a storage receipt signed by another", 32, restore(RIVAL)),
    ("a storage receipt of another lease", 33, restore(lease=OTHER)),
    ("a storage receipt of another receipt", 33, restore(receipt=OTHER)),
    ("outputs kept too short", 34, restore(kept_until=NOW + 600_000)),
]

BLOB_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("an output nobody has", 35, without(0)),
    ("an output above its limit", 35, swollen(0, (64 << 20) + 1)),
    ("an error text nobody has", 36, without(1)),
    ("an error text above its limit", 36, swollen(1, (1 << 20) + 1)),
    ("an ok segment with an error", 36, rerecord(at=0, error=OTHER)),
    ("a log nobody has", 37, without(2)),
    ("a log above its limit", 37, swollen(2, (1 << 20) + 4_097)),
]


@pytest.mark.parametrize(("name", "number", "spoil"), AWARD_ROWS, ids=lambda value: str(value)[:60])
def test_award_checks(name: str, number: int, spoil: Spoil) -> None:
    world = World()
    spoil(world)
    assert failing(checks.AWARD_CHECKS, world.award_facts) == number, name


@pytest.mark.parametrize(("name", "number", "spoil"), BOOK_ROWS, ids=lambda value: str(value)[:60])
def test_book_checks(name: str, number: int, spoil: Spoil) -> None:
    world = World()
    spoil(world)
    assert failing(checks.BOOK_CHECKS, world.book_facts) == number, name


def make_train(*causes: Cause) -> World:
    return World(causes=causes, segments=3, kind=Kind.TRAIN, prices=(300_000, 500_000))


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


def test_a_prefix_without_final_cause_is_not_accepted() -> None:
    world = make_train(Cause.OK, Cause.OK)
    assert failing(deliveries.DELIVERY_CHECKS, world.delivery_facts) == 29


def test_inputs_of_a_map_are_independent() -> None:
    world = World(causes=(Cause.OK,) * 3, segments=3, kind=Kind.MAP, prices=(300_000, 500_000))
    rerecord(at=1, input=OTHER)(world)
    assert failing(deliveries.DELIVERY_CHECKS, world.delivery_facts) == 0


@pytest.mark.parametrize("cause", sorted(FINAL_FAILURES))
def test_a_failed_segment_is_a_segment(cause: Cause) -> None:
    """R9."""
    world = World(causes=(cause,))
    assert failing((*deliveries.DELIVERY_CHECKS, *deliveries.BLOB_CHECKS), world.delivery_facts) == 0


ALL_ROWS = [
    (checks.AWARD_CHECKS, AWARD_ROWS, range(1, 13), ()),
    (checks.BOOK_CHECKS, BOOK_ROWS, range(13, 20), ()),
    (deliveries.DELIVERY_CHECKS, DELIVERY_ROWS, range(20, 35), (29,)),
    (deliveries.BLOB_CHECKS, BLOB_ROWS, range(35, 38), ()),
]


@pytest.mark.parametrize(("table", "rows", "numbers", "elsewhere"), ALL_ROWS)
def test_each_number_stands_once_and_has_a_row(
    table: Any, rows: Any, numbers: range, elsewhere: tuple[int, ...]
) -> None:
    assert [check.number for check in table] == list(numbers)
    assert {number for _, number, _ in rows} | set(elsewhere) == {0, *numbers}
    assert len({check.name for check in table}) == len(table)


def gather_facts(world: World, table: Any) -> Any:
    if table is checks.AWARD_CHECKS:
        return world.award_facts
    return world.book_facts if table is checks.BOOK_CHECKS else world.delivery_facts


SWITCHES = [
    (table, number, spoil, name)
    for table, rows, _, _ in ALL_ROWS
    for name, number, spoil in rows
    if number and name not in {"a receipt of nothing"}
]


@pytest.mark.parametrize(("table", "number", "spoil", "name"), SWITCHES, ids=[f"{row[1]}-{row[3]}" for row in SWITCHES])
def test_a_check_switched_off_lets_its_row_past(table: Any, number: int, spoil: Spoil, name: str) -> None:
    """The rows bite: each is caught by its own check, and by none that comes before."""
    train = table in (deliveries.DELIVERY_CHECKS, deliveries.BLOB_CHECKS)
    world = make_train(Cause.OK, Cause.OK, Cause.PROGRAM) if train else World()
    spoil(world)
    facts = gather_facts(world, table)
    rest = tuple(check for check in table if check.number != number)
    assert failing(table, facts) == number, name
    assert failing(rest, facts) != number
    assert failing(tuple(check for check in table if check.number < number), facts) == 0


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
    ("record", Signed[SegmentRecord], lambda w: w.records[0], lambda w, v: setattr(w, "records", (v,))),
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
        require(deliveries.DELIVERY_CHECKS, world.delivery_facts)


def test_needed_blobs_are_named_once_without_the_empty_one() -> None:
    world = make_train(Cause.OK, Cause.OK, Cause.OOM)
    assert set(deliveries.list_needed(world.delivery)) == set(world.found)
    assert deliveries.EMPTY not in deliveries.list_needed(world.delivery)
    assert INPUT not in deliveries.list_needed(world.delivery)
