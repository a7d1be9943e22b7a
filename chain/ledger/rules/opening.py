"""Row 1: opening a lease by order, award and bid (R2, R3, R12 a, R14, R19). By anyone.

Checks stand in the order of their cost, each under the name of its rule; the three or four signatures come last. Panel
sizes above 0 are refused until disputes exist (R10), so the parts of R3 about
delegates and the panel's deposit have nothing to check yet.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import check_key
from chain.base.units import checked, compute_share
from chain.ledger.entries import (
    Cover,
    LeaseRecord,
    LeaseState,
    LeaseTerms,
    OrderRecord,
    get_order_key,
)
from chain.ledger.money import compute_commission
from chain.ledger.rules.coverage import MAX_COVERAGE, add_covers, is_covered
from chain.ledger.rules.providers import check_bond
from chain.ledger.rules.scope import Scope, change_account, change_provider, change_totals, save_lease
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Kind,
    Order,
    compute_award_id,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.transactions import Open

MAX_WINDOW = 366 * 24 * 3_600_000
"""Longest window of an order in ms; keeps every Instant of a lease in range."""

MIN_ANSWER = 10_000
"""Shortest answer window in ms (R6)."""

MAX_BID_VALIDITY = 60_000
"""Milliseconds that a bid may outlive the auction's close (R3 c)."""

CLOSE_TOLERANCE = 10_000
"""Milliseconds that an auction's close may lie ahead of block time: as far as blocks may be behind the clocks (R1)."""

MAX_ORDER_LEASES = 1_024
"""Most leases of one order: each leaves its bid's id in the order's record (R2)."""


class Deal(msgspec.Struct, frozen=True):
    """What an `open` comes to: its three objects, their ids and the money they bind."""

    order: Order
    award: Award
    bid: Bid
    order_id: bytes
    bid_id: bytes
    price: int
    commission: int
    bond: int

    @property
    def cover(self) -> Cover:
        """The segments it takes."""
        return Cover(self.award.replica, self.award.first, self.award.count)

    @property
    def cost(self) -> int:
        """What it locks of the requester's money."""
        return self.price + self.commission


def process_open(scope: Scope, body: Open) -> None:
    """Row 1: lock price and commission from the mandate and the bond from the provider. Raises `Refused` by the rule
    that is broken.
    """
    order, award, bid = body.order.body, body.award.body, body.bid.body
    check_order(order)
    order_id = compute_order_id(scope.chain_id, order)
    bid_id = compute_bid_id(scope.chain_id, bid)
    check_binding(scope, order, award, bid, (order_id, bid_id))
    check_price(scope, order, award, bid)
    deal = make_deal(order, award, bid, order_id, bid_id)
    check_times(scope.now, deal)
    check_parties(scope, deal)
    record = check_mandate(scope, deal)
    if deal.bond < compute_share(deal.price, order.damages):
        raise Refused("the bid's bond is below the full damages of the lease", rule="R3.e.bond")
    check_bond(scope, bid.provider, deal.bond, deal.price)
    check_signatures(scope, body)
    store_lease(scope, deal, record)


def check_order(order: Order) -> None:
    """What an order alone must be: R1 windows, R6 answer, R10 panel and weights."""
    if order.panel > 0:
        raise Refused("panels and disputes are not on this chain yet: panel must be 0", rule="R10.panel")
    if order.weights and len(order.weights) != order.segments:
        raise Refused(f"{len(order.weights)} weights for {order.segments} segments", rule="R10.weights")
    if max(*msgspec.structs.astuple(order.windows), order.segment_wall) > MAX_WINDOW:
        raise Refused(f"a window is longer than {MAX_WINDOW} ms", rule="R1.window")
    if order.windows.answer < MIN_ANSWER:
        raise Refused(f"the answer window is shorter than {MIN_ANSWER} ms", rule="R6.answer")


def check_binding(scope: Scope, order: Order, award: Award, bid: Bid, ids: tuple[bytes, bytes]) -> None:
    """R3 a: the award is for this order, bid, range and start. `ids` are those of order and bid."""
    if award.order != ids[0]:
        raise Refused("the award is for another order", rule="R3.a.order")
    if award.bid != ids[1]:
        raise Refused("the award is for another bid", rule="R3.a.bid")
    if bid.order != ids[0]:
        raise Refused("the bid is for another order", rule="R3.a.bid-order")
    if award.replica >= order.replicas or award.first + award.count > order.segments:
        raise Refused("the award reaches beyond the order's replicas or segments", rule="R3.a.range")
    if (order.kind is Kind.MAP or award.first == 0) and award.start != order.start:
        raise Refused("the award starts from another input than the order", rule="R3.a.start")
    if award.closed > scope.now + CLOSE_TOLERANCE:
        raise Refused("the award is of an auction that has not closed yet", rule="R3.c.closed")
    if scope.now > award.valid_until:
        raise Refused("the award is no longer valid", rule="R3.a.validity")
    if award.commission > order.commission:
        raise Refused("the award takes more commission than the order allows", rule="R13.commission")


def check_price(scope: Scope, order: Order, award: Award, bid: Bid) -> None:
    """R3 b: the bid's price, or under `second` the lower of runner-up's price and limit; bid <= award <= limit."""
    if award.price > order.limit:
        raise Refused("the award's price is above the order's limit", rule="R3.b.limit")
    if bid.price > award.price:
        raise Refused("the award's price is below the bid", rule="R3.b.bid")
    runner = award.runner_up.body if award.runner_up else None
    if order.rule is AwardRule.LOWEST:
        if runner is not None or award.price != bid.price:
            raise Refused("under `lowest` the price is the bid's and no runner-up is named", rule="R3.b.price")
        return
    if runner is not None and (
        runner.order != award.order or runner.provider == bid.provider or scope.state.provider(runner.provider) is None
    ):
        raise Refused("the runner-up is no other provider's bid for this order", rule="R3.b.runner-up")
    if award.price != min(order.limit, runner.price if runner else order.limit):
        raise Refused("under `second` the price is the lower of runner-up and limit", rule="R3.b.price")


def make_deal(order: Order, award: Award, bid: Bid, order_id: bytes, bid_id: bytes) -> Deal:
    """Price, commission and bond of the awarded range (R10 weights, R13, R3 e). Raises `R18.range` where a product
    leaves it.
    """
    weights = order.weights[award.first : award.first + award.count]
    price = checked(award.price * (sum(weights) if weights else award.count))
    commission = compute_commission(price, award.commission)
    checked(price + commission)
    return Deal(order, award, bid, order_id, bid_id, price, commission, compute_share(price, bid.bond))


def check_times(now: int, deal: Deal) -> None:
    """R2 expiry, R3 c and R3 d. In time iff block time <= deadline (R1). Each auction of an order has its own close."""
    order, bid = deal.order, deal.bid
    if now > order.expiry:
        raise Refused("the order has expired", rule="R2.expiry")
    if bid.valid_until > deal.award.closed + MAX_BID_VALIDITY:
        raise Refused(f"the bid outlives the auction by more than {MAX_BID_VALIDITY} ms", rule="R3.c.span")
    if now > bid.valid_until:
        raise Refused("the bid is no longer valid", rule="R3.c.validity")
    rounds = -(-deal.award.count // bid.lanes)
    if order.deadline - now < order.windows.start + rounds * order.segment_wall:
        raise Refused("too little time is left before the deadline for this range", rule="R3.d.deadline")


def check_parties(scope: Scope, deal: Deal) -> None:
    """R3 f and R18: whom the three objects name."""
    order, bid = deal.order, deal.bid
    if bid.provider == order.requester:
        raise Refused("a requester cannot serve its own order", rule="R3.f.requester")
    if bid.provider == order.auctioneer:
        raise Refused("an auctioneer cannot serve an order it awards", rule="R3.f.auctioneer")
    for key in _list_named(deal):
        check_key(key)
    if deal.award.commission and scope.state.account(order.auctioneer) is None:
        raise Refused("the auctioneer has no account to take its commission", rule="R15.c.auctioneer")


def _list_named(deal: Deal) -> Iterable[bytes]:
    order, bid = deal.order, deal.bid
    yield from (order.requester, order.auctioneer, bid.provider)
    yield from (*order.holders, *bid.holders)
    if order.watcher is not None:
        yield order.watcher


def check_mandate(scope: Scope, deal: Deal) -> OrderRecord:
    """R2: the order's record (made new for its first lease) has room for this lease, and the requester the money.
    Returns the record as it was.
    """
    order = deal.order
    record = scope.state.order(deal.order_id) or OrderRecord(
        order.requester, order.cap, 0, 0, order.expiry, order.expiry, 0, (), ()
    )
    if deal.bid_id in record.bids:
        raise Refused("the bid has opened a lease before", rule="R3.c.used")
    if len(record.bids) >= MAX_ORDER_LEASES:
        raise Refused(f"the order has had {MAX_ORDER_LEASES} leases", rule="R2.leases")
    if is_covered(record.coverage, deal.cover):
        raise Refused("a segment of the range is served by another lease or was paid for", rule="R2.covered")
    if len(add_covers(record.coverage, [deal.cover])) > max(MAX_COVERAGE, len(record.coverage)):
        raise Refused(f"the order's coverage would have more than {MAX_COVERAGE} spans", rule="R2.spans")
    if record.locked + record.paid + deal.cost > order.cap:
        raise Refused(
            f"{record.locked} locked + {record.paid} paid + {deal.cost} exceed the cap of {order.cap}", rule="R2.cap"
        )
    account = scope.state.account(order.requester)
    if account is None or account.balance < deal.cost:
        raise Refused(f"the requester has no {deal.cost} micro-credits to lock", rule="R2.balance")
    return record


def check_signatures(scope: Scope, body: Open) -> None:
    """The signatures of R2 (order), R3 a (award), R3 c (bid) and R3 b (runner-up), by operating keys (R19)."""
    order, award, bid = body.order.body, body.award.body, body.bid.body
    scope.check_signature(body.order, Tag.ORDER, scope.get_operating(order.requester), "R2.signature")
    scope.check_signature(body.award, Tag.AWARD, scope.get_operating(order.auctioneer), "R3.a.auctioneer")
    scope.check_signature(body.bid, Tag.BID, scope.get_operating(bid.provider), "R3.c.signature")
    runner = award.runner_up
    if runner is not None:
        scope.check_signature(runner, Tag.BID, scope.get_operating(runner.body.provider), "R3.b.signature")


def store_lease(scope: Scope, deal: Deal, record: OrderRecord) -> None:
    """The change of row 1, all checks being done."""
    state, order, award, bid = scope.state, deal.order, deal.award, deal.bid
    change_account(state, order.requester, -deal.cost)
    change_totals(state, locked=deal.cost)
    change_provider(state, bid.provider, set_aside=deal.bond, exposed=deal.price, leases=1)
    state.put(
        get_order_key(deal.order_id),
        msgspec.structs.replace(
            record,
            locked=record.locked + deal.cost,
            live=record.live + 1,
            coverage=add_covers(record.coverage, [deal.cover]),
            bids=(*record.bids, deal.bid_id),
        ),
    )
    lease = LeaseRecord(
        id=compute_lease_id(scope.chain_id, award),
        terms=make_terms(scope, deal),
        state=LeaseState.OPEN,
        timer=order.deadline,
        receipt=None,
        held=award.count,
        called=None,
        fee=0,
        locked=deal.cost,
        bond=deal.bond,
        paid=0,
        commission=0,
        refunded=0,
        damages=0,
        burned=0,
    )
    save_lease(scope, lease, row=1)


def make_terms(scope: Scope, deal: Deal) -> LeaseTerms:
    """What the lease keeps of order, award and bid."""
    order, award, bid = deal.order, deal.award, deal.bid
    return LeaseTerms(
        order=deal.order_id,
        award=compute_award_id(scope.chain_id, award),
        bid=deal.bid_id,
        requester=order.requester,
        provider=bid.provider,
        auctioneer=order.auctioneer,
        requester_key=scope.get_operating(order.requester),
        provider_key=scope.get_operating(bid.provider),
        watcher=order.watcher,
        holders=(*order.holders, *bid.holders),
        kind=order.kind,
        comparator=order.comparator,
        start=award.start,
        replica=award.replica,
        first=award.first,
        count=award.count,
        weights=order.weights[award.first : award.first + award.count],
        segment_wall=order.segment_wall,
        lanes=bid.lanes,
        unit=award.price,
        price=deal.price,
        commission=award.commission,
        bond=deal.bond,
        damages=order.damages,
        panel=order.panel,
        deposit=order.deposit,
        windows=order.windows,
        opened=scope.now,
        height=scope.height,
        deadline=order.deadline,
    )
