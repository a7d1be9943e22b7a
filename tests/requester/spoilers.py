"""Lies of auctioneer, provider and holder, one a row: what is changed, and the number of the check that must see it.

Each changes one thing, signed again by whoever would have to be dishonest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.protocol.api import Delivery
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.base.merkle import EMPTY_ROOT
from chain.base.units import MAX_INT
from chain.ledger.terms.agreement import AwardRule, Bid, Kind, compute_bid_id, compute_lease_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Environment, Span, compute_records_root
from requester.purchase import deliveries
from tests.requester.world import BROKER, CHAIN, NOW, PROVIDER, REQUESTER, RIVAL, STRANGER, World, change

OTHER = compute_digest(b"other")
Spoil = Callable[[World], None]


def make_auction() -> World:
    """A map that is not divided, so that rounds and spans can be told apart."""
    return World(causes=(Cause.OK,) * 3, segments=3, kind=Kind.MAP, prices=(300_000, 500_000))


def make_train(*causes: Cause) -> World:
    return World(causes=causes, segments=3, kind=Kind.TRAIN, prices=(300_000, 500_000))


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


def at_any_price(price: int) -> Spoil:
    """An order that would pay anything, and a bid that asks for much."""

    def spoil(world: World) -> None:
        world.overrides = {"cap": MAX_INT, "limit": MAX_INT}
        world.prices = (price, price)

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


def regather(make: Callable[[World], tuple[Signed[Bid], ...]], winner: int = 1, failed: int | None = None) -> Spoil:
    """Another set of bids, and everything after it consistent. `failed` is the place of one that did not open."""

    def spoil(world: World) -> None:
        world.bids = make(world)
        world.bid = world.bids[winner]
        if failed is not None:
            world.failed = frozenset([compute_bid_id(CHAIN, world.bids[failed].body)])

    return spoil


def respan(*spans: tuple[int, int], round: int = 0) -> Spoil:
    """Other segments on offer."""

    def spoil(world: World) -> None:
        world.round = round
        world.spans = tuple(Span(*span) for span in spans)

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


def rerecord(at: int = 0, *, root: bool = True, **fields: Any) -> Spoil:
    """One record changed; the receipt's root follows where `root`."""

    def spoil(world: World) -> None:
        bodies = list(world.record_bodies)
        old, _ = world.receipt_body, world.provenance
        bodies[at] = change(bodies[at], **fields)
        world.record_bodies = tuple(bodies)
        if root:
            world.receipt_body = change(old, records=compute_records_root(bodies))

    return spoil


def deliver_nothing(world: World) -> None:
    redeliver(count=0, records=EMPTY_ROOT)(world)
    world.records = ()


def leave_out_a_record(world: World) -> None:
    world.records = world.record_bodies[:-1]


def leave_a_gap(world: World) -> None:
    world.delivery = Delivery(world.receipt, 1, world.record_bodies[1:], ())


def quit_as_host(world: World) -> None:
    rerecord(at=2, cause=Cause.HOST)(world)
    redeliver(cause=Cause.HOST)(world)


def restore(signer: Any = BROKER, **fields: Any) -> Spoil:
    def spoil(world: World) -> None:
        world.storage_body = change(world.storage_body, **fields)
        world.storage = signer.sign(Tag.STORAGE, CHAIN, world.storage_body)

    return spoil


def without(name: str) -> Spoil:
    def spoil(world: World) -> None:
        world.found = {digest: size for digest, size in world.found.items() if digest != get_digest(world, name)}

    return spoil


def get_digest(world: World, name: str) -> bytes:
    return compute_digest(world.blobs[name])


def swollen(name: str, size: int) -> Spoil:
    def spoil(world: World) -> None:
        world.found = {**world.found, get_digest(world, name): size}

    return spoil


def nothing(world: World) -> None:
    del world


AWARD_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("another job under the order", 1, respec(seed=8)),
    ("an order of another kind than its job", 1, reorder(kind=Kind.TRAIN)),
    ("an order of another runtime than its job", 1, reorder(runtime=OTHER)),
    ("an order signed by a stranger", 1, reorder(STRANGER)),
    ("an award signed by the provider", 2, reaward(PROVIDER)),
    ("an award of another order", 3, reaward(order=OTHER)),
    ("a range beyond the order", 4, reaward(count=2)),
    ("a range behind the order", 4, reaward(first=1)),
    ("a replica nobody ordered", 4, reaward(replica=1)),
    ("a bid signed by another", 5, rebid(RIVAL)),
    ("a bid the award does not name", 6, rebid(follow=False, salt=bytes([1] * 16))),
    ("a bid for another order", 6, rebid(order=OTHER)),
    ("a price that no sum may be reckoned with", 9, at_any_price((MAX_INT // 4) + 1)),
    ("the largest price that sums are reckoned with", 0, at_any_price(MAX_INT // 4)),
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
    ("a book of another round", 14, rebook(round=1)),
    ("a root that is not over the bids", 15, rebook(root=OTHER)),
    ("a bid left out", 15, lambda w: rebook(bids=w.bids[1:])(w)),
    ("a provider with two bids", 16, regather(lambda w: (*w.bids, w.make_bid(RIVAL, 1_600_000)))),
    ("a bid of another order", 16, regather(lambda w: (w.make_bid(RIVAL, 1_500_000, order=OTHER), w.bids[1]))),
    ("a bid nobody signed", 16, regather(lambda w: (change(w.bids[0], signature=bytes(64)), w.bids[1]))),
    ("bids in another order than acknowledged", 17, rebook(last=OTHER)),
    (
        "a decline nobody signed",
        18,
        lambda w: rebook(declines=(change(w.book_body.declines[0], signature=bytes(64)),))(w),
    ),
    ("a first round that offers only a part", 47, respan((0, 2))),
    ("a later round that offers a part", 0, respan((0, 1), (2, 1), round=1)),
    ("spans that overlap", 47, respan((0, 2), (1, 2), round=1)),
    ("an empty span", 47, respan((0, 0), round=1)),
    ("a span beyond the order", 47, respan((2, 2), round=1)),
]

SHARE_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("an award that names another book", 46, reaward(book=OTHER)),
    ("an award that names another close", 46, reaward(closed=NOW)),
    ("the dearer bid won", 19, regather(lambda w: w.bids, winner=0)),
    ("the later of two equal bids won", 19, regather(lambda w: (w.make_bid(RIVAL, 1_000_000), w.bids[1]))),
    ("another runner-up than the second-lowest", 19, bring_in_a_third),
    ("the next bid won, the first did not open", 0, regather(lambda w: w.bids, winner=0, failed=1)),
    ("the bid that did not open won again", 19, regather(lambda w: w.bids, winner=1, failed=1)),
    ("a part that nobody was to have", 19, reaward(first=0, count=2)),
    ("a cheaper bid that ran out does not count", 0, cheaper(valid_until=NOW + 999)),
    ("a cheaper bid that is valid for too long does not count", 0, cheaper(valid_until=NOW + 61_001)),
    ("a cheaper bid just valid for long enough", 19, cheaper(valid_until=NOW + 61_000)),
    ("a cheaper bid without bond does not count", 0, cheaper(bond=1)),
]

DELIVERY_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("a receipt signed by another", 20, redeliver(RIVAL)),
    ("a receipt of another lease", 21, redeliver(lease=OTHER)),
    ("a receipt by another provider", 21, redeliver(provider=RIVAL.key)),
    ("a receipt that begins elsewhere", 22, redeliver(first=1)),
    ("a receipt beyond the range", 22, redeliver(count=4)),
    ("a receipt that counts too few", 23, redeliver(count=2)),
    ("a record left out", 23, leave_out_a_record),
    ("records that do not go on where those before them end", 23, leave_a_gap),
    ("a receipt of nothing", 22, deliver_nothing),
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
    ("a finish when the order's time was over", 38, redeliver(finished=NOW + 10**13)),
    ("a storage receipt by nobody named", 32, restore(RIVAL, holder=RIVAL.key)),
    ("a storage receipt signed by another", 32, restore(RIVAL)),
    ("a storage receipt of another lease", 33, restore(lease=OTHER)),
    ("a storage receipt of another receipt", 33, restore(receipt=OTHER)),
    ("outputs kept too short", 34, restore(kept_until=NOW + 600_000)),
]

BLOB_ROWS: list[tuple[str, int, Spoil]] = [
    ("nothing is wrong", 0, nothing),
    ("an output nobody has", 35, without("1")),
    ("an output above its limit", 35, swollen("0", (64 << 20) + 1)),
    ("an error text nobody has", 36, without("trace")),
    ("an error text above its limit", 36, swollen("trace", (1 << 20) + 1)),
    ("an ok segment with an error", 36, rerecord(at=0, error=OTHER)),
    ("a log nobody has", 37, without("log")),
    ("a log above its limit", 37, swollen("log", (3 << 20) + 4_097)),
    ("a provenance nobody has", 48, without("provenance")),
    ("a provenance above its limit", 48, swollen("provenance", 1 << 20)),
    ("a final receipt without provenance", 48, redeliver(provenance=deliveries.EMPTY)),
]
