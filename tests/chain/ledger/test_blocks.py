"""The ledger's face (R16 h): propose, apply, commit; children of one parent; headers that lie; snapshots; timers in
blocks (R1).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chain.base.codec import decode, encode
from chain.base.errors import Fault, Refused
from chain.base.merkle import compute_root
from chain.base.units import MICRO
from chain.ledger import ledger as ledger_module
from chain.ledger.blocks import MAX_BLOCK_TXS, Block, Header, compute_block_id
from chain.ledger.entries import LeaseState, get_account_key, get_order_key
from chain.ledger.ledger import Ledger
from chain.ledger.results import LeaseMoved, Result, compute_results_root
from chain.ledger.terms.agreement import compute_lease_id
from chain.ledger.transactions import Body, GiveBack, Transfer, compute_transaction_id
from chain.ledger.tree import StateTree
from tests.chain.ledger.world import HOUR, MINUTE, SIGNERS, WINDOWS, World, digest, make_params, salt

ROOT = Path(__file__).resolve().parents[3]


def give(amount: int = MICRO, to: str = "stranger") -> Transfer:
    return Transfer(SIGNERS[to].key, amount)


def refusal_of(act: Any, *args: Any) -> str:
    """The rule under which a call is refused, "" if it is not."""
    try:
        act(*args)
    except Refused as error:
        return error.rule
    return ""


def test_another_node_comes_to_the_same_block() -> None:
    """What one ledger proposes, a second one that saw only bytes applies and commits to the same roots and events."""
    w = World()
    other = Ledger(w.genesis)
    catch_up(w, other)
    w.open_lease()
    catch_up(w, other)
    assert other.head == w.ledger.head and other.export() == w.ledger.export()


def catch_up(w: World, other: Ledger) -> None:
    """Carry out on `other` the blocks that `w` has made; blocks travel as bytes."""
    for block in w.history:
        if block.header.height > other.head.height:
            received = decode(encode(block), Block)
            applied = other.apply(received)
            assert applied.header == block.header and other.apply(received) == applied
            other.commit(applied.id)
            other.check_conservation()


def test_children_of_one_parent_live_side_by_side_and_one_is_committed() -> None:
    """R16 h: two blocks of one parent, a grandchild on each; the other branch's transactions come back."""
    w = World(bond=0)
    first, second = w.tx("treasury", give(MICRO)), w.tx("treasury", give(2 * MICRO))
    both = w.tx("treasury", give(4 * MICRO))
    left = w.propose(first, both)
    right = w.propose(second)
    left_id, right_id = (compute_block_id(w.chain_id, block.header) for block in (left, right))
    left_child = w.propose(second, parent=left_id)
    right_child = w.propose(first, parent=right_id)
    assert w.balance("stranger") == 0
    assert refusal_of(w.ledger.commit, compute_block_id(w.chain_id, right_child.header)) == "block.order"
    committed = w.ledger.commit(right_id)
    assert committed.block == right
    assert set(committed.abandoned) == {first, both, second}
    assert w.balance("stranger") == 2 * MICRO
    assert refusal_of(w.ledger.commit, left_id) == "block.unknown"
    assert refusal_of(w.ledger.commit, compute_block_id(w.chain_id, left_child.header)) == "block.unknown"
    assert w.ledger.commit(compute_block_id(w.chain_id, right_child.header)).abandoned == ()
    assert w.balance("stranger") == 3 * MICRO
    w.ledger.check_conservation()


def test_a_transaction_of_an_uncommitted_parent_is_known_to_its_child_only() -> None:
    w = World(bond=0)
    tx = w.tx("treasury", give())
    block = w.propose(tx)
    identity = compute_block_id(w.chain_id, block.header)
    assert refusal_of(lambda: w.propose(tx, parent=identity)) == "R15.a.known"
    assert refusal_of(lambda: w.propose(tx, time=w.now + 2)) == ""


@pytest.mark.parametrize("parent_known", [True, False])
def test_a_block_needs_an_applied_parent(parent_known: bool) -> None:
    w = World(bond=0)
    parent = w.propose(w.tx("treasury", give()))
    child = w.propose(w.tx("treasury", give()), parent=compute_block_id(w.chain_id, parent.header))
    other = Ledger(w.genesis)
    if parent_known:
        other.apply(parent)
    assert refusal_of(other.apply, child) == ("" if parent_known else "block.parent")


LIES: dict[str, tuple[str, Any]] = {
    "epoch": ("R16.seats", 1),
    "slot": ("R16.slot", 0),
    "height": ("block.height", 3),
    "time": ("R1.time", 0),
    "parent": ("block.parent", digest("no")),
    "seats": ("R16.seats", digest("no")),
    "seats_changed": ("R16.seats", 1),
    "transactions": ("block.transactions", digest("no")),
    "results": ("block.results", digest("no")),
    "state": ("block.state", digest("no")),
    "beacon": ("R17.beacon", digest("no")),
}


@pytest.mark.parametrize("field", Header.__struct_fields__)
def test_a_header_that_lies_in_any_field_is_refused_by_name(field: str) -> None:
    """R1, R16 g, R17."""
    w = World(bond=0)
    block = w.propose(w.tx("treasury", give()))
    rule, value = LIES[field]
    lie = msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, **{field: value}))
    assert refusal_of(Ledger(w.genesis).apply, lie) == rule
    assert refusal_of(Ledger(w.genesis).apply, block) == ""


def test_block_time_and_slot_must_grow() -> None:
    """R1: greater than the parent's, by one is enough."""
    w = World(bond=0)
    for time, slot, rule in [(w.now, None, "R1.time"), (w.now + 1, 0, "R16.slot"), (w.now + 1, 1, "")]:
        frame = w.frame(time=time, slot=slot)
        assert refusal_of(w.ledger.propose, w.ledger.head_id, frame, ()) == rule


def test_a_block_whose_content_is_not_its_headers_is_refused() -> None:
    w = World(bond=0)
    txs = [w.tx("treasury", give(MICRO + n)) for n in range(3)]
    block = w.propose(*txs)
    fresh = [
        (msgspec.structs.replace(block, transactions=tuple(txs[::-1])), "block.transactions"),
        (msgspec.structs.replace(block, transactions=tuple(txs[:2])), "block.transactions"),
        (msgspec.structs.replace(block, transactions=(*txs, txs[0])), "R15.a.known"),
        (msgspec.structs.replace(block, reveal=digest("other")), "R17.beacon"),
    ]
    for changed, rule in fresh:
        assert refusal_of(Ledger(w.genesis).apply, changed) == rule
        # Also where the honest block of the same id has been applied before.
        assert refusal_of(w.ledger.apply, changed) == rule


def test_a_block_holds_only_transactions_that_succeed_with_good_signatures() -> None:
    """R15 b; a signature is outside the ids that the header covers, and still counts."""
    w = World(bond=0)
    tx = w.tx("treasury", give())
    block = w.propose(tx)
    forged = msgspec.structs.replace(block, transactions=(msgspec.structs.replace(tx, signature=bytes(64)),))
    assert refusal_of(Ledger(w.genesis).apply, forged) == "R15.signature"
    assert refusal_of(w.ledger.apply, forged) == "R15.signature"
    poor = w.tx("stranger", give(1, "treasury"))
    proposal = w.ledger.propose(w.ledger.head_id, w.frame(), [poor, tx])
    assert [(one.transaction, one.error.rule) for one in proposal.refused] == [
        (compute_transaction_id(poor.body), "R15.c.account")
    ]
    assert proposal.block.transactions == (tx,)


def test_a_proposal_keeps_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World(make_params(quota=1_000), bond=0)
    txs = [w.tx("treasury", give(MICRO)) for _ in range(6)]
    size = len(encode(txs[0]))
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_BYTES", ledger_module.BLOCK_OVERHEAD + 4 * size)
    assert len(w.propose(*txs).transactions) == 4
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_TXS", 2)
    assert len(w.propose(*txs).transactions) == 2
    block = w.propose(*txs[:2])
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_TXS", 1)
    assert refusal_of(Ledger(w.genesis).apply, block) == "block.size"
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_TXS", MAX_BLOCK_TXS)
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_BYTES", len(encode(block)) - 1)
    assert refusal_of(Ledger(w.genesis).apply, block) == "block.size"
    monkeypatch.setattr(ledger_module, "MAX_BLOCK_BYTES", len(encode(block)))
    assert refusal_of(Ledger(w.genesis).apply, block) == ""


def test_the_overhead_of_a_block_holds_its_header() -> None:
    w = World(bond=0)
    largest = dict.fromkeys(("slot", "height", "time", "seats_changed"), 2**63 - 1)
    big = msgspec.structs.replace(w.ledger.head, epoch=2**32 - 1, **largest)
    assert len(encode(Block(big, bytes(32), ()))) <= ledger_module.BLOCK_OVERHEAD // 2
    assert len(encode(w.propose())) <= ledger_module.BLOCK_OVERHEAD // 2


def test_an_empty_proposal_is_not_kept_but_can_be_applied() -> None:
    """So that asking again and again on an idle chain holds no memory."""
    w = World(bond=0)
    proposal = w.ledger.propose(w.ledger.head_id, w.frame(), ())
    assert refusal_of(w.ledger.commit, proposal.id) == "block.unknown"
    assert w.ledger.apply(proposal.block).id == proposal.id
    w.ledger.commit(proposal.id)
    assert w.ledger.head == proposal.block.header


def test_roots_commit_to_ids_results_and_entries() -> None:
    """R16 g; an entry is proved to whoever holds the header."""
    w = World(bond=0)
    tx = w.tx("treasury", give())
    committed = w.block(tx)
    header = w.ledger.head
    assert header.transactions == compute_root([compute_transaction_id(tx.body)])
    assert header.results == compute_results_root(committed.results)
    (result,) = committed.results
    assert result == Result(compute_transaction_id(tx.body), False, (committed.events[0].happening,))
    tree, key = StateTree(w.chain_id), get_account_key(w.key("stranger"))
    value = committed.changes[key]
    assert value is not None
    assert tree.is_present(header.state, key, value, w.ledger.prove(key))
    missing = get_account_key(w.key("watcher"))
    assert tree.is_absent(header.state, missing, w.ledger.prove(missing))


# ---- snapshots and the store ---------------------------------------------------------------------------------------


def test_changes_of_commits_add_up_to_the_exported_state() -> None:
    """The store needs nothing but `changes` and `recent` of each commit, and goes on from there."""
    w = World()
    stored: dict[bytes, bytes] = dict(Ledger(w.genesis).export().entries)
    lease = w.open_lease()
    w.send("provider", w.settle(lease))
    w.block(time=w.now + 3 * HOUR)
    for committed in w.commits:
        for key, value in committed.changes.items():
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value
    assert get_order_key(lease.terms.order) not in stored
    assert stored == w.ledger.export().entries
    recent = [committed.recent for committed in w.commits]
    again = Ledger.load(w.genesis, stored.items(), w.ledger.head, recent)
    assert again.export() == w.ledger.export()
    assert again.leases() == w.ledger.leases() and again.supply() == w.ledger.supply()


def test_a_loaded_ledger_goes_on_like_the_one_that_stayed() -> None:
    w = World()
    lease = w.open_lease()
    snapshot = w.ledger.export()
    again = Ledger.load(w.genesis, snapshot.entries.items(), snapshot.header, snapshot.recent)
    assert again.next_timer() == w.ledger.next_timer() == lease.terms.deadline
    assert again.leases(provider=w.key("provider"), live=True) == [lease]
    for txs, time in [((w.tx("provider", w.settle(lease)),), None), ((), w.now + 3 * HOUR)]:
        block = w.propose(*txs, time=time)
        assert again.apply(block).results == w.ledger.apply(block).results
        for ledger in (again, w.ledger):
            ledger.commit(compute_block_id(w.chain_id, block.header))
    assert again.export() == w.ledger.export()


@pytest.mark.parametrize("change", ["drop", "add", "edit"])
def test_a_stored_state_that_is_not_the_headers_is_refused(change: str) -> None:
    w = World()
    snapshot = w.ledger.export()
    entries = dict(snapshot.entries)
    key = get_account_key(w.key("treasury"))
    if change == "drop":
        del entries[key]
    else:
        entries[key if change == "edit" else get_account_key(w.key("stranger"))] = entries[
            get_account_key(w.key("provider"))
        ]
    with pytest.raises(Fault, match=r"store\.root"):
        Ledger.load(w.genesis, entries.items(), snapshot.header, snapshot.recent)


def test_leases_are_found_by_their_parties() -> None:
    w = World()
    first = w.open_lease()
    order = w.order(salt=salt("second"))
    bid = w.bid(order, "rival")
    award = w.award(order, bid)
    w.send("broker", w.opening(order, bid, award, "rival"))
    second = w.lease(compute_lease_id(w.chain_id, award))
    w.send("provider", w.settle(first))
    first = w.lease(first.id)
    find = w.ledger.leases
    assert find() == [first, second] and find(live=True) == [second] and find(live=False) == [first]
    assert find(provider=w.key("provider")) == [first]
    assert find(requester=w.key("requester"), provider=w.key("rival")) == [second]
    assert find(order=first.terms.order) == [first] and find(order=digest("no")) == []
    assert find(provider=w.key("provider"), live=True) == []


# ---- time (R1) -----------------------------------------------------------------------------------------------------


def live_through(rate: int) -> tuple[Any, ...]:
    """One lease delivered and silently accepted, one expired, under blocks every `rate` ms (0: only when something is
    due).
    """
    w = World()
    start = w.now
    lease = w.open_lease()
    idle = w.open_lease(salt=salt("idle"), deadline=start + 15 * MINUTE)
    events = [(start + 10_000, w.tx("provider", w.deliver(lease), valid=start + MINUTE))]
    end = start + 20 * MINUTE
    while w.now < end:
        timer = w.ledger.next_timer()
        stops = [end, *(at for at, _ in events), *([timer + 1] if timer else []), *([w.now + rate] if rate else [])]
        at = max(min(stops), w.now + 1)
        due = [tx for when, tx in events if when <= at]
        events = [(when, tx) for when, tx in events if when > at]
        w.block(*due, time=at)
    leases = tuple(msgspec.structs.replace(w.lease(one.id), timer=None, terms=None) for one in (lease, idle))
    return (*leases, w.balance("provider"), w.bond("provider"), w.balance("requester"), w.ledger.supply())


def test_the_pushed_clock_and_the_idle_chain_end_the_same() -> None:
    """R1: heights can be pushed by spam and stall when idle; deadlines are Instants."""
    idle = live_through(0)
    assert idle[0].state is LeaseState.SETTLED and idle[1].state is LeaseState.EXPIRED
    assert live_through(10_000) == idle
    assert live_through(1_000) == idle


def open_many(w: World, count: int) -> list[bytes]:
    """Leases with the same deadline by turns of two providers, ids in the order of opening."""
    ids, deadline = [], w.now + HOUR
    for number in range(count):
        provider = ("provider", "rival")[number % 2]
        order = w.order(salt=salt("many", number), segments=1, cap=MICRO, deadline=deadline)
        bid = w.bid(order, provider)
        award = w.award(order, bid)
        w.send("broker", w.opening(order, bid, award, provider))
        ids.append(compute_lease_id(w.chain_id, award))
    return ids


def test_timers_fire_in_order_of_deadline_and_id_and_no_more_than_a_block_takes() -> None:
    """R1: the rest of a backlog fires in the next blocks, in the same order."""
    w = World(make_params(block_timers=3, quota=1_000))
    ids = open_many(w, 7)
    fired: list[bytes] = []
    for count in (3, 3, 1, 0):
        committed = w.block(time=w.now + (1 if fired else 90 * MINUTE))
        assert len(committed.results) == count
        assert all(result.timer for result in committed.results)
        fired += [result.trigger for result in committed.results]
    assert fired == sorted(ids)


def test_a_backlog_of_timers_changes_nobodys_outcome() -> None:
    """R1: a transaction that touches a lease first fires the due timers of that order's and that provider's leases."""
    w = World(make_params(block_timers=1, quota=1_000))
    ids = sorted(open_many(w, 6))
    mine = [one for one in ids[1:] if w.lease(one).terms.provider == w.key("provider")]
    late = w.lease(mine[-1]).terms.deadline + 1
    # Too late is too late, though no timer of the block has reached this lease.
    assert w.refusal("provider", GiveBack(mine[-1]), time=late) == "lease.expired.return"
    # A transfer touches nobody's lease; only the one timer of the block fires.
    committed = w.block(w.tx("treasury", give(), valid=late), time=late)
    assert [result.timer for result in committed.results] == [True, False]
    # An opening by the same provider fires all of its own, before it, and leaves the others'.
    order = w.order(salt=salt("new"), segments=1, cap=MICRO)
    bid = w.bid(order)
    committed = w.block(w.tx("broker", w.opening(order, bid, w.award(order, bid))))
    moves = [one.happening for one in committed.events if isinstance(one.happening, LeaseMoved)]
    rows = [(move.row, move.lease) for move in moves]
    left = [one for one in ids if w.lease(one).state is LeaseState.OPEN]
    assert [row for row, _ in rows[:-1]] == [10] * (len(rows) - 1) and rows[-1][0] == 1
    assert all(w.lease(one).terms.provider == w.key("rival") for one in left)
    assert {lease for _, lease in rows[:-1]} >= {one for one in mine if one != ids[0]}


@pytest.mark.parametrize("act", ["settle", "deliver", "extend", "call", "answer", "cancel"])
def test_whoever_touches_a_lease_fires_its_partys_backlog(act: str) -> None:
    """R1: nothing is done to a lease of a provider with a backlog before that backlog has fired."""
    w = World(make_params(block_timers=1, quota=1_000))
    ids = sorted(open_many(w, 4))
    mine = [one for one in ids[1:] if w.lease(one).terms.provider == w.key("provider")]
    late = w.lease(mine[0]).terms.deadline + 1
    patient = msgspec.structs.replace(WINDOWS, answer=3 * HOUR)
    fresh = w.open_lease(salt=salt("fresh"), deadline=late + HOUR, windows=patient)
    if act == "answer":
        w.send("requester", w.call(fresh))
    bodies: dict[str, Body] = {
        "settle": w.settle(fresh),
        "deliver": w.deliver(fresh),
        "extend": w.extend(fresh, 4),
        "call": w.call(fresh),
        "answer": w.answer(fresh),
        "cancel": w.cancel(fresh),
    }
    sender = "requester" if act in ("call", "cancel") else "provider"
    committed = w.block(w.tx(sender, bodies[act], valid=late), time=late)
    fired = [result.trigger for result in committed.results if result.timer]
    assert set(fired) >= set(mine) and len(set(fired)) == len(fired)
    assert [lease for lease in fired if lease in mine] == mine
    assert not committed.results[-1].timer
    assert all(w.lease(one).state is LeaseState.EXPIRED for one in mine)


def test_a_refused_transaction_leaves_the_backlog_as_it_was() -> None:
    w = World(make_params(block_timers=1, quota=1_000))
    ids = sorted(open_many(w, 4))
    late = w.lease(ids[0]).terms.deadline + 1
    refused = w.tx("provider", GiveBack(ids[-1]), valid=late)
    proposal = w.ledger.propose(w.ledger.head_id, w.frame(time=late), [refused, refused])
    assert [one.error.rule.partition(".")[0] for one in proposal.refused] == ["lease", "lease"]
    w.ledger.commit(proposal.id)
    assert sum(w.lease(one).state is LeaseState.OPEN for one in ids) == 3


def test_an_order_and_its_lease_that_fall_due_together() -> None:
    """R2: whichever timer comes first, the record is gone afterwards, once."""
    for early in (0, 1):
        w = World()
        deadline = w.now + HOUR
        lease = w.open_lease(deadline=deadline, expiry=deadline - early)
        committed = w.block(time=deadline + 1)
        assert w.ledger.order(lease.terms.order) is None
        kinds = [type(event.happening).__name__ for event in committed.events]
        assert sorted(kinds) == ["LeaseMoved", "OrderForgotten"]
        assert w.ledger.next_timer() is None


def test_a_record_outlives_its_expiry_while_a_lease_is_live() -> None:
    """R2."""
    w = World()
    lease = w.open_lease(expiry=w.now + 5_000)
    w.block(time=w.now + 6_000)
    record = w.ledger.order(lease.terms.order)
    assert record is not None and record.timer is None and record.live == 1
    w.send("provider", w.settle(lease))
    assert w.ledger.order(lease.terms.order) is None


# ---- the same everywhere -------------------------------------------------------------------------------------------

SCRIPT = """
from tests.chain.ledger.world import *
from chain.ledger.terms.work import Span
w = World()
lease = w.open_lease(weights=tuple(range(1, 11)), cap=60 * MICRO)
w.send("provider", w.settle(lease, segments=(Span(0, 3), Span(5, 2))))
other = w.open_lease(salt=salt("other"))
w.send("requester", w.cancel(other))
w.block(time=w.now + 3 * HOUR)
print(w.ledger.head.state.hex(), w.ledger.head_id.hex())
"""


def test_the_hash_seed_changes_no_root() -> None:
    """Threats: sets and dictionaries of one process must decide nothing."""
    seen = set()
    for hash_seed in ("0", "1", str(random.randrange(2, 2**32))):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        seen.add(done.stdout)
    assert len(seen) == 1 and len(seen.pop().split()) == 2
