"""Row 1: each check of R2, R3, R10, R13, R14, R15 c and R18 has a row that is refused under its name, else not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chain.base.hashing import Tag
from chain.base.units import MICRO
from chain.ledger.entries import Cover, LeaseState, OrderRecord, get_order_key
from chain.ledger.rules import opening
from chain.ledger.rules.coverage import MAX_COVERAGE
from chain.ledger.rules.opening import MAX_ORDER_LEASES, MAX_WINDOW
from chain.ledger.terms.agreement import AwardRule, Kind, compute_bid_id, compute_order_id
from chain.ledger.transactions import Open, RegisterProvider
from tests.chain.ledger.world import HOUR, MINUTE, SIGNERS, WINDOWS, World, digest, make_params, salt

BAD_KEY = bytes([1]) + bytes(31)
Changes = dict[str, Any]
Values = Callable[[World], Changes]


def make_open(
    w: World, order: Changes | None = None, bid: Changes | None = None, award: Changes | None = None, **signers: str
) -> Open:
    """An `open` with fields of its three objects changed, and signed by others if told."""
    ordered = w.order(**(order or {}))
    offered = w.bid(ordered, **(bid or {}))
    awarded = w.award(ordered, offered, **(award or {}))
    return Open(
        w.sign(signers.get("order_by", "requester"), Tag.ORDER, ordered),
        w.sign(signers.get("award_by", "broker"), Tag.AWARD, awarded),
        w.sign(signers.get("bid_by", "provider"), Tag.BID, offered),
    )


def nothing(_: World) -> Changes:
    return {}


def row(rule: str, order: Values = nothing, bid: Values = nothing, award: Values = nothing, **signers: str) -> Any:
    """A row of the table; its id is what it changes."""
    return pytest.param(rule, order, bid, award, signers, id=rule or "honest")


def second(price: int, runner: int | None, **changes: Any) -> tuple[Values, Values]:
    """Order and award under `second`, with a runner-up's price and bid changed as told."""

    def order(_: World) -> Changes:
        return {"rule": AwardRule.SECOND}

    def award(w: World) -> Changes:
        if runner is None:
            return {"price": price}
        named = w.order(rule=AwardRule.SECOND)
        provider = changes.pop("by", "rival")
        bid = w.bid(named, provider, price=runner, **changes)
        return {"price": price, "runner_up": w.sign(changes.get("signed", provider), Tag.BID, bid)}

    return order, award


ROWS = [
    row(""),
    row("R10.panel", lambda w: {"panel": 1}),
    row("R10.weights", lambda w: {"weights": (1, 2, 3)}),
    row("R1.window", lambda w: {"windows": msgspec.structs.replace(WINDOWS, start=MAX_WINDOW + 1)}),
    row("R1.window", lambda w: {"segment_wall": MAX_WINDOW + 1}),
    row("R6.answer", lambda w: {"windows": msgspec.structs.replace(WINDOWS, answer=9_999)}),
    row("", lambda w: {"windows": msgspec.structs.replace(WINDOWS, answer=10_000)}),
    row("R3.a.order", award=lambda w: {"order": digest("other")}),
    row("R3.a.bid", award=lambda w: {"bid": digest("other")}),
    row("R3.a.bid-order", bid=lambda w: {"order": digest("other")}),
    row("R3.a.range", award=lambda w: {"replica": 1}),
    row("R3.a.range", award=lambda w: {"first": 1}),
    row("R3.a.range", award=lambda w: {"count": 11}),
    row("", award=lambda w: {"first": 9, "count": 1, "start": digest("resumed")}),
    row("R3.a.start", award=lambda w: {"start": digest("elsewhere")}),
    row("R3.a.start", lambda w: {"kind": Kind.MAP}, award=lambda w: {"start": digest("item")}),
    row("R3.a.start", lambda w: {"kind": Kind.MAP}, award=lambda w: {"first": 9, "count": 1, "start": digest("item")}),
    row("", lambda w: {"kind": Kind.MAP}, award=lambda w: {"first": 9, "count": 1}),
    row("R3.a.validity", award=lambda w: {"valid_until": w.now}),
    row("", award=lambda w: {"valid_until": w.now + 1}),
    row("R13.commission", award=lambda w: {"commission": 201}),
    row("R3.b.limit", lambda w: {"limit": 899_999}),
    row("R3.b.bid", award=lambda w: {"price": 899_999}),
    row("R3.b.price", award=lambda w: {"price": 900_001}),
    row("R3.b.price", award=lambda w: {"runner_up": w.sign("rival", Tag.BID, w.bid(w.order(), "rival"))}),
    row("R2.expiry", lambda w: {"expiry": w.now}),
    row("", lambda w: {"expiry": w.now + 1}),
    row("R3.c.span", bid=lambda w: {"valid_until": w.now + 60_001}),
    row("", bid=lambda w: {"valid_until": w.now + 60_000}),
    row("R3.c.span", bid=lambda w: {"valid_until": w.now + 2_002 + 60_000}, award=lambda w: {"closed": w.now + 2_001}),
    row("", bid=lambda w: {"valid_until": w.now + 2_001 + 60_000}, award=lambda w: {"closed": w.now + 2_001}),
    row("R3.c.span", bid=lambda w: {"valid_until": w.now + 2}, award=lambda w: {"closed": w.now - 59_999}),
    row("", bid=lambda w: {"valid_until": w.now + 2}, award=lambda w: {"closed": w.now - 59_998}),
    row("R3.c.closed", award=lambda w: {"closed": w.now + 1 + 10_001}),
    row("", award=lambda w: {"closed": w.now + 1 + 10_000}),
    row("R3.c.validity", bid=lambda w: {"valid_until": w.now}),
    row("", bid=lambda w: {"valid_until": w.now + 1}),
    row("R3.d.deadline", lambda w: {"deadline": w.now + 1 + 30_000 + 10 * MINUTE - 1}),
    row("", lambda w: {"deadline": w.now + 1 + 30_000 + 10 * MINUTE}),
    row("R3.d.deadline", lambda w: {"deadline": w.now + 1 + 30_000 + 4 * MINUTE - 1}, lambda w: {"lanes": 3}),
    row("", lambda w: {"deadline": w.now + 1 + 30_000 + 4 * MINUTE}, lambda w: {"lanes": 3}),
    row("R3.f.requester", lambda w: {"requester": w.key("provider")}, order_by="provider"),
    row("R3.f.auctioneer", lambda w: {"auctioneer": w.key("provider")}, award_by="provider"),
    row("R18.key", lambda w: {"auctioneer": BAD_KEY}),
    row("R18.key", lambda w: {"watcher": BAD_KEY}),
    row("R18.key", lambda w: {"holders": (BAD_KEY,)}),
    row("R18.key", bid=lambda w: {"holders": (BAD_KEY,)}),
    row("R15.c.auctioneer", lambda w: {"auctioneer": w.key("stranger")}, award_by="stranger"),
    row("", lambda w: {"auctioneer": w.key("stranger")}, award=lambda w: {"commission": 0}, award_by="stranger"),
    row("", lambda w: {"auctioneer": w.key("requester")}, award_by="requester"),
    row("R2.cap", lambda w: {"cap": 9_180_000 - 1}),
    row("", lambda w: {"cap": 9_180_000}),
    row("R2.balance", lambda w: {"requester": w.key("stranger")}, order_by="stranger"),
    row(
        "R2.balance",
        lambda w: {"cap": 10**12, "limit": 10**9},
        lambda w: {"price": 98_039_216, "bond": 1_000},
    ),
    row("R3.e.bond", lambda w: {"damages": 10_001}),
    row("", lambda w: {"damages": 10_000}),
    row("R3.e.provider", lambda w: {}, lambda w: {"provider": w.key("treasury")}, bid_by="treasury"),
    row("R3.e.set-aside", bid=lambda w: {"bond": 111_112}),
    row("", bid=lambda w: {"bond": 111_111}),
    row(
        "R14.leverage",
        lambda w: {"cap": 200 * MICRO, "limit": 20 * MICRO},
        lambda w: {"price": 10 * MICRO + 1, "bond": 5_000},
    ),
    row("", lambda w: {"cap": 200 * MICRO, "limit": 20 * MICRO}, lambda w: {"price": 10 * MICRO, "bond": 5_000}),
    row("R18.range", lambda w: {"limit": 2**62}, lambda w: {"price": 2**62}),
    row("R18.range", lambda w: {"limit": 2**62, "weights": (1,) * 10}, lambda w: {"price": 2**62}),
    row("R2.signature", order_by="stranger"),
    row("R3.a.auctioneer", award_by="provider"),
    row("R3.c.signature", bid_by="rival"),
]


@pytest.mark.parametrize(("rule", "order", "bid", "award", "signers"), ROWS)
def test_each_check_of_opening_is_refused_by_its_name(
    rule: str, order: Values, bid: Values, award: Values, signers: dict[str, str]
) -> None:
    w = World()
    body = make_open(w, order(w), bid(w), award(w), **signers)
    assert w.refusal("broker", body) == rule


SECOND_ROWS = [
    ("", 950_000, 950_000, {}),
    ("", MICRO, 2 * MICRO, {}),
    ("", MICRO, None, {}),
    ("R3.b.price", 950_001, 950_000, {}),
    ("R3.b.price", 949_999, 950_000, {}),
    ("R3.b.price", 900_000, None, {}),
    ("R3.b.bid", 899_999, 899_999, {}),
    ("R3.b.runner-up", 950_000, 950_000, {"by": "provider", "salt": salt("again")}),
    ("R3.b.runner-up", 950_000, 950_000, {"by": "treasury"}),
    ("R3.b.runner-up", 950_000, 950_000, {"order": digest("other")}),
]


@pytest.mark.parametrize(("rule", "price", "runner", "changes"), SECOND_ROWS)
def test_second_pays_the_lower_of_runner_up_and_limit(
    rule: str, price: int, runner: int | None, changes: Changes
) -> None:
    """R3 b, R12 a."""
    w = World()
    order, award = second(price, runner, **changes)
    assert w.refusal("broker", make_open(w, order(w), None, award(w))) == rule


def test_a_runner_up_that_its_provider_did_not_sign_is_refused() -> None:
    w = World()
    named = w.order(rule=AwardRule.SECOND)
    forged = w.sign("stranger", Tag.BID, w.bid(named, "rival", price=950_000))
    body = make_open(w, {"rule": AwardRule.SECOND}, None, {"price": 950_000, "runner_up": forged})
    assert w.refusal("broker", body) == "R3.b.signature"


def test_opening_locks_price_commission_and_bond_and_keeps_the_terms() -> None:
    """Row 1, R19: what the lease stores is what was signed."""
    w = World()
    before = w.balance("requester"), w.balance("broker")
    weights = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    order = w.order(weights=weights, limit=100_000, cap=10 * MICRO, watcher=w.key("watcher"))
    bid = w.bid(order, price=100_000, holders=(w.key("rival"),), lanes=2)
    award = w.award(order, bid, first=2, count=4, start=digest("state 2"))
    committed = w.send("stranger" if w.balance("stranger") else "broker", w.opening(order, bid, award))
    (event,) = committed.events
    lease = event.lease
    assert lease is not None and lease == w.lease(lease.id) and lease.state is LeaseState.OPEN
    price = 100_000 * (3 + 4 + 5 + 6)
    terms = lease.terms
    assert (terms.price, terms.unit, terms.weights, terms.bond) == (price, 100_000, weights[2:6], price)
    assert (lease.locked, lease.bond, lease.held, lease.timer) == (price * 102 // 100, price, 4, order.deadline)
    assert (terms.order, terms.bid) == (compute_order_id(w.chain_id, order), compute_bid_id(w.chain_id, bid))
    assert (terms.requester_key, terms.provider_key) == (w.key("requester"), w.key("provider"))
    assert terms.holders == (w.key("holder"), w.key("rival"))
    assert (terms.first, terms.start, terms.opened, terms.height) == (2, digest("state 2"), w.now, 2)
    assert w.balance("requester") == before[0] - lease.locked
    assert w.balance("broker") == before[1] - 1_000
    provider = w.ledger.provider(w.key("provider"))
    assert provider is not None
    assert (provider.set_aside, provider.exposed, provider.leases) == (price, price, 1)
    record = w.ledger.order(terms.order)
    assert record == OrderRecord(
        w.key("requester"), order.cap, lease.locked, 0, order.expiry, order.expiry, 1, (Cover(0, 2, 4),), (terms.bid,)
    )
    assert event.topics == {
        lease.id,
        terms.order,
        w.key("requester"),
        w.key("provider"),
        w.key("broker"),
    }


def test_a_bid_opens_one_lease_and_a_segment_has_one_provider() -> None:
    """R2, R3 c: the reused bid, and the range that is taken."""
    w = World()
    order = w.order(replicas=2)
    bid = w.bid(order)
    w.send("broker", w.opening(order, bid, w.award(order, bid, count=5)))
    again = w.award(order, bid, first=5, count=5)
    assert w.refusal("broker", w.opening(order, bid, again)) == "R3.c.used"
    other = w.bid(order, "rival")
    for first, count, replica, rule in [
        (0, 10, 0, "R2.covered"),
        (4, 1, 0, "R2.covered"),
        (5, 5, 0, ""),
        (0, 10, 1, ""),
    ]:
        award = w.award(order, other, first=first, count=count, replica=replica)
        assert w.refusal("broker", w.opening(order, other, award, "rival")) == rule, (first, count, replica)


def test_two_leases_of_an_order_share_its_cap() -> None:
    """R2: locked + paid <= cap over all leases of the order."""
    w = World()
    order = w.order(cap=9_180_000 - 1)
    bid, other = w.bid(order), w.bid(order, "rival")
    w.send("broker", w.opening(order, bid, w.award(order, bid, count=5)))
    rest = w.award(order, other, first=5, count=5)
    assert w.refusal("broker", w.opening(order, other, rest, "rival")) == "R2.cap"
    four = w.award(order, other, first=5, count=4)
    assert w.refusal("broker", w.opening(order, other, four, "rival")) == ""


def test_what_is_set_aside_or_at_risk_is_not_free_again() -> None:
    """R3 e and R14 over several leases of one provider."""
    w = World(bond=10 * MICRO)
    w.open_lease()
    rows = [(10_000, 200_000, "R3.e.set-aside"), (5_000, 200_000, "R14.leverage"), (5_000, 90_000, "")]
    for bond, price, rule in rows:
        body = make_open(w, {"salt": salt("two")}, {"price": price, "bond": bond})
        assert w.refusal("broker", body) == rule, (bond, price)
    w.send("provider", RegisterProvider(10 * MICRO))
    assert w.refusal("broker", make_open(w, {"salt": salt("two")}, {"price": 200_000})) == ""


def test_the_record_of_an_order_is_bounded() -> None:
    """R2: so many leases, so many spans, so that the record always fits its encoding."""
    w = World()
    order = w.order(segments=2**20, segment_wall=1)
    bid = w.bid(order)
    body = w.opening(order, bid, w.award(order, bid, first=2**20 - 1, count=1, start=digest("late")))
    key = get_order_key(compute_order_id(w.chain_id, order))
    empty = OrderRecord(order.requester, order.cap, 0, 0, order.expiry, order.expiry, 0, (), ())
    entries = w.ledger._head.state.entries
    entries[key] = msgspec.structs.replace(empty, bids=tuple(digest(i) for i in range(MAX_ORDER_LEASES)))
    assert w.refusal("broker", body) == "R2.leases"
    entries[key] = msgspec.structs.replace(empty, coverage=tuple(Cover(0, 2 * i, 1) for i in range(MAX_COVERAGE)))
    assert w.refusal("broker", body) == "R2.spans"
    entries[key] = msgspec.structs.replace(empty, coverage=tuple(Cover(0, 2 * i, 1) for i in range(MAX_COVERAGE - 1)))
    assert w.refusal("broker", body) == ""


def test_signatures_are_checked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """R15 d: whatever fails without a signature costs no verification of an inner one."""
    w = World()
    bodies = [
        make_open(w, order(w), bid(w), award(w), **signers)
        for rule, order, bid, award, signers in (case.values for case in ROWS)
        if rule and "signature" not in rule and rule != "R3.a.auctioneer"
    ]
    monkeypatch.setattr(opening, "check_signatures", lambda *_: pytest.fail("verified too early"))
    for body in bodies:
        assert w.refusal("broker", body)


def test_an_operating_key_signs_for_its_account() -> None:
    """R19: order, award and bid verify against the operating keys of the moment, and the lease keeps them."""
    w = World(make_params(private=True, fee=0))
    entries = w.ledger._head.state.entries
    for name, operator in (("requester", "watcher"), ("broker", "holder"), ("provider", "stranger")):
        account = w.ledger.account(w.key(name))
        assert account is not None
        entries[b"a" + w.key(name)] = msgspec.structs.replace(account, operating=SIGNERS[operator].key)
    body = make_open(w, order_by="watcher", award_by="holder", bid_by="stranger")
    assert w.refusal("rival", body) == ""
    assert w.refusal("rival", make_open(w)) == "R2.signature"
    w.send("rival", body)
    (lease,) = w.ledger.leases(live=True)
    assert (lease.terms.requester_key, lease.terms.provider_key) == (w.key("watcher"), w.key("stranger"))


def test_no_lease_opens_on_an_expired_order_whose_record_is_gone() -> None:
    """R2: the record goes only when the expiry has passed, and then nothing opens any more."""
    w = World()
    order = w.order(deadline=w.now + 30 * MINUTE, expiry=w.now + HOUR)
    bid = w.bid(order)
    body = w.opening(order, bid, w.award(order, bid))
    w.send("broker", body)
    order_id = compute_order_id(w.chain_id, order)
    w.block(time=order.expiry)
    assert w.ledger.order(order_id) is not None
    assert w.refusal("broker", body) == "R3.a.validity"
    committed = w.block(time=order.expiry + 1)
    assert w.ledger.order(order_id) is None
    assert [event.topics for event in committed.events] == [frozenset({order_id})]
    late = w.bid(order, valid_until=w.now + 30_000)
    assert w.refusal("broker", w.opening(order, late, w.award(order, late))) == "R2.expiry"
