"""R4 and R13 as arithmetic: every split is exact, nobody gets more than was locked or bound; coverage against plain
sets; the mempool.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import encode
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import BadSignature
from chain.base.units import BPS, MICRO
from chain.ledger.entries import Cover, LeaseRecord, LeaseState, LeaseTerms, ReceiptNote
from chain.ledger.mempool import Mempool
from chain.ledger.money import (
    Split,
    compute_cancel_fee,
    compute_commission,
    compute_prefix_weight,
    compute_spans_weight,
    split_cut,
    split_payment,
    split_unstarted,
)
from chain.ledger.rules.coverage import add_covers, is_covered, remove_cover
from chain.ledger.signatures import SignatureMemo
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from chain.ledger.transactions import Transfer
from tests.chain.ledger.world import SIGNERS, WINDOWS, World, digest


def make_lease(
    unit: int, weights: tuple[int, ...], count: int, bps: tuple[int, int, int], served: int, fee: bool
) -> LeaseRecord:
    """A lease as row 1 leaves it, perhaps with a receipt on the chain, perhaps cancelled late."""
    bond_bps, damages, commission = bps
    weight = sum(weights) or count
    price = unit * weight
    bond = price * bond_bps // BPS
    zero = bytes(32)
    terms = LeaseTerms(
        zero, zero, zero, zero, zero, zero, zero, zero, None, (), Kind.TRAIN, "exact", zero, 0, 3, count, weights, 1, 1,
        unit, price, commission, bond, damages, 0, 0, WINDOWS, 0, 1, 10**9,
    )  # fmt: skip
    note = ReceiptNote(zero, served, zero, Cause.OK) if served else None
    late = compute_cancel_fee(terms, WINDOWS.start + 1) if fee else 0
    locked = price + compute_commission(price, commission)
    return LeaseRecord(zero, terms, LeaseState.OPEN, 1, note, count, None, late, locked, bond, 0, 0, 0, 0, 0)


@st.composite
def leases(draw: st.DrawFn) -> LeaseRecord:
    count = draw(st.integers(1, 12))
    weights = draw(st.just(()) | st.lists(st.integers(1, 9), min_size=count, max_size=count).map(tuple))
    unit = draw(st.integers(0, 50) | st.integers(0, 10**12))
    damages = draw(st.integers(0, 12_000))
    bond = draw(st.integers(damages, 30_000))
    commission = draw(st.integers(0, 10_000))
    served, fee = draw(st.integers(0, count)), draw(st.booleans())
    return make_lease(unit, weights, count, (bond, damages, commission), served, fee)


def check_split(lease: LeaseRecord, split: Split, *, ends: bool) -> None:
    """No part is negative; an end leaves nothing behind, a cut leaves something only for what was served."""
    assert all(part >= 0 for part in msgspec.structs.astuple(split))
    assert split.unlocked <= lease.locked and split.unbound <= lease.bond
    if ends:
        assert (split.unlocked, split.unbound) == (lease.locked, lease.bond)


@given(leases(), st.data())
def test_a_payment_is_exact(lease: LeaseRecord, data: st.DataObject) -> None:
    """Rows 3 and 13: paid by weight, commission on it, the remainder to the requester, damages within the unserved
    share.
    """
    terms = lease.terms
    taken = data.draw(st.sets(st.integers(0, terms.count - 1)))
    weight = compute_spans_weight(terms, [Span(terms.first + one, 1) for one in sorted(taken)])
    beyond = compute_prefix_weight(terms, terms.count) - compute_prefix_weight(terms, max(taken, default=-1) + 1)
    split = split_payment(lease, weight, unserved=beyond)
    check_split(lease, split, ends=True)
    price = terms.unit * sum((terms.weights or (1,) * terms.count)[one] for one in taken)
    assert split.paid == max(price, lease.fee) and split.commission == price * terms.commission // BPS
    assert split.damages <= min(lease.bond * beyond // (sum(terms.weights) or terms.count), lease.bond)
    assert split.damages <= terms.unit * beyond * terms.damages // BPS
    assert split.forfeited == split.burned == 0


@given(leases())
def test_an_unstarted_lease_is_exact(lease: LeaseRecord) -> None:
    """Row 5: one percent of each side, nothing changes hands."""
    split = split_unstarted(lease)
    check_split(lease, split, ends=True)
    part = lease.terms.price // 100
    assert (split.burned, split.forfeited) == (part, min(part, lease.bond))
    assert split.paid == split.commission == split.damages == 0


@given(leases(), st.booleans(), st.booleans())
def test_a_cut_and_its_later_payment_are_exact(lease: LeaseRecord, damages: bool, burn: bool) -> None:
    """Rows 7, 10, 12, then 13: what stays is enough for the served part, and all of it leaves in the end."""
    split = split_cut(lease, damages=damages, burn=burn)
    check_split(lease, split, ends=lease.served == 0)
    assert split.burned == split.commission == 0 and min(split.forfeited, split.released) == 0
    assert damages or split.damages == 0
    if lease.served == 0:
        assert split.paid == lease.fee
        return
    left = msgspec.structs.replace(
        lease, held=lease.served, locked=lease.locked - split.unlocked, bond=lease.bond - split.unbound
    )
    whole, weight = (compute_prefix_weight(lease.terms, count) for count in (lease.held, lease.served))
    share = lease.bond - lease.bond * (whole - weight) // whole
    assert left.bond == min(lease.bond, max(share, lease.terms.unit * weight * lease.terms.damages // BPS))
    rest = split_payment(left, weight)
    check_split(left, rest, ends=True)
    assert split.paid == 0 and rest.paid == max(lease.fee, lease.terms.unit * weight)


@given(leases(), st.integers(0, 2 * WINDOWS.start))
def test_a_cancel_fee_never_exceeds_the_price(lease: LeaseRecord, now: int) -> None:
    """Row 6."""
    fee, terms = compute_cancel_fee(lease.terms, now), lease.terms
    dearest = terms.unit * max(terms.weights, default=1)
    assert fee == (min(dearest, terms.price // 10) if now <= WINDOWS.start else dearest) <= terms.price


# ---- coverage (R2) -------------------------------------------------------------------------------------------------

COVERS = st.builds(Cover, st.integers(0, 1), st.integers(0, 12), st.integers(1, 5))


def list_segments(*covers: Cover) -> set[tuple[int, int]]:
    return {(one.replica, index) for one in covers for index in range(one.first, one.first + one.count)}


@given(st.lists(st.tuples(st.booleans(), COVERS), max_size=12))
def test_coverage_is_a_set_of_segments(steps: list[tuple[bool, Cover]]) -> None:
    """However spans are added and freed: sorted, disjoint, merged, and the same set as one counted by hand."""
    coverage: tuple[Cover, ...] = ()
    model: set[tuple[int, int]] = set()
    for adds, cover in steps:
        assert is_covered(coverage, cover) == bool(model & list_segments(cover))
        if not adds:
            coverage, model = remove_cover(coverage, cover), model - list_segments(cover)
        elif not model & list_segments(cover):
            coverage, model = add_covers(coverage, [cover]), model | list_segments(cover)
        assert list_segments(*coverage) == model
        assert sum(one.count for one in coverage) == len(model)
        for left, right in pairwise(coverage):
            assert (left.replica, left.first + left.count) < (right.replica, right.first)
        assert all(one.count > 0 for one in coverage)


# ---- mempool and memo ----------------------------------------------------------------------------------------------


def test_the_mempool_keeps_order_and_bounds() -> None:
    """R15 b: count, bytes, per account; a transaction that waits already is not counted twice."""
    w = World(bond=0)
    txs = [w.tx(name, Transfer(w.key("broker"), 1)) for name in ("treasury", "treasury", "requester", "provider")]
    size = len(encode(txs[0]))
    for limits, taken, rule in [
        ({"max_count": 3}, 3, "mempool.full"),
        ({"max_bytes": 3 * size + size - 1}, 3, "mempool.full"),
        ({}, 4, ""),
    ]:
        pool = Mempool(**limits)
        refused = add_all(pool, txs)
        assert (len(pool), pool.pending()) == (taken, tuple(txs[:taken])), limits
        assert refused == ([rule] if rule else [])
    pool = Mempool(max_per_account=1)
    assert add_all(pool, txs) == ["mempool.account"] and len(pool) == 3
    identity = pool.add(txs[0])
    assert identity in pool and len(pool) == 3
    pool.remove([identity, digest("unknown")])
    assert identity not in pool and pool.pending() == (txs[2], txs[3])
    pool.add(txs[1])
    assert pool.pending() == (txs[2], txs[3], txs[1])


def test_a_mempool_that_was_emptied_takes_as_much_again() -> None:
    w = World(bond=0)
    txs = [w.tx("treasury", Transfer(w.key("broker"), 1)) for _ in range(4)]
    pool = Mempool(max_count=2, max_bytes=2 * len(encode(txs[0])), max_per_account=2)
    for pair in (txs[:2], txs[2:], txs[:2]):
        pool.remove([pool.add(one) for one in pair])
        assert not pool and pool.pending() == ()


def add_all(pool: Mempool, txs: list[Any]) -> list[str]:
    """Rules under which the pool refused; `Unavailable` only where it is full."""
    rules = []
    for tx in txs:
        try:
            pool.add(tx)
        except Refused as error:
            assert error.rule == "mempool.account"
            rules.append(error.rule)
        except Unavailable as error:
            assert error.rule == "mempool.full"
            rules.append(error.rule)
    return rules


def test_a_signature_is_verified_once_and_a_bad_one_is_never_remembered() -> None:
    w = World(bond=0)
    memo = SignatureMemo(limit=2)
    body = Transfer(w.key("broker"), 1)
    good = w.sign("treasury", Tag.TX, body)
    for _ in range(3):
        memo.check(good, Tag.TX, w.chain_id, w.key("treasury"), "x.rule")
    assert memo.verified == 1
    forged = msgspec.structs.replace(good, signature=bytes(64))
    for signed, tag, chain, name in [
        (forged, Tag.TX, w.chain_id, "treasury"),
        (good, Tag.BID, w.chain_id, "treasury"),
        (good, Tag.TX, digest("chain"), "treasury"),
        (good, Tag.TX, w.chain_id, "broker"),
    ]:
        for _ in range(2):
            with pytest.raises(BadSignature) as caught:
                memo.check(signed, tag, chain, w.key(name), "x.rule")
            assert caught.value.rule == "x.rule"
    assert memo.verified == 9
    others = [w.sign(name, Tag.TX, body) for name in ("broker", "provider")]
    for name, signed in zip(("broker", "treasury", "provider"), (others[0], good, others[1]), strict=True):
        memo.check(signed, Tag.TX, w.chain_id, w.key(name), "x.rule")
    before = memo.verified
    memo.check(good, Tag.TX, w.chain_id, w.key("treasury"), "x.rule")
    assert memo.verified == before, "the one used last is kept"
    memo.check(others[0], Tag.TX, w.chain_id, w.key("broker"), "x.rule")
    assert memo.verified == before + 1, "the oldest was forgotten"


def test_admission_proposal_and_application_verify_each_signature_once() -> None:
    w = World()
    order = w.order()
    bid = w.bid(order)
    tx = w.tx("broker", w.opening(order, bid, w.award(order, bid)))
    memo = w.ledger._rules.memo
    before = memo.verified
    w.ledger.check(tx, w.now + 1)
    assert memo.verified == before + 4
    w.block(tx)
    assert memo.verified == before + 4


def test_prices_of_the_default_world() -> None:
    lease = World().open_lease()
    assert (lease.terms.price, lease.locked, lease.bond) == (9 * MICRO, 9_180_000, 9 * MICRO)
    assert SIGNERS["provider"].key == lease.terms.provider
