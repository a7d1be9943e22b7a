"""Overlay states against a plain dictionary, timers against a sorted list, remembered ids against a plain set; faults
of our own.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import BadEncoding, encode
from chain.base.errors import Fault
from chain.ledger.entries import (
    TOTALS_KEY,
    Account,
    Entry,
    LeaseState,
    OrderRecord,
    Provider,
    Totals,
    decode_entry,
    get_timer,
)
from chain.ledger.genesis import Params
from chain.ledger.recent import BlockIds, Recent, Sent
from chain.ledger.results import LeaseMoved, LedgerEvent
from chain.ledger.rules.leases import end_lease
from chain.ledger.rules.scope import Scope
from chain.ledger.signatures import SignatureMemo
from chain.ledger.state import State, check_conservation
from chain.ledger.transactions import MAX_VALIDITY
from chain.ledger.tree import StateTree
from tests.chain.ledger.world import World, digest

TREE = StateTree(bytes(32))
EMPTY = OrderRecord(bytes(32), 0, 0, 0, 0, None, 0, (), ())


def make_entry(key: bytes, value: int) -> Entry:
    """An order's record with a timer, or an account."""
    if key[:1] == b"o":
        return msgspec.structs.replace(EMPTY, paid=value, timer=value if value % 3 else None)
    return Account(value, bytes(32))


KEYS = st.tuples(st.sampled_from([b"a", b"o"]), st.integers(0, 7)).map(lambda one: one[0] + digest(one[1]))
BLOCK = st.dictionaries(KEYS, st.none() | st.integers(0, 30), max_size=6)


@given(BLOCK, st.lists(st.tuples(BLOCK, BLOCK), max_size=5), st.integers(0, 31), st.integers(0, 5))
def test_overlays_read_like_one_dictionary_and_commit_to_the_same(
    first: dict[bytes, int | None], blocks: list[tuple[dict[bytes, int | None], ...]], now: int, depth: int
) -> None:
    """Whether blocks are committed or not, entries, timers and root are the same; two children of one parent stay
    apart.
    """
    model: dict[bytes, Entry] = {key: make_entry(key, value) for key, value in first.items() if value is not None}
    state = State.load(model, TREE)
    for number, (changes, sibling_changes) in enumerate(blocks):
        sibling, child = state.child(), state.child()
        write(sibling, sibling_changes)
        sibling.seal(TREE)
        write(child, changes)
        child.seal(TREE)
        for key, value in changes.items():
            model.pop(key, None)
            if value is not None:
                model[key] = make_entry(key, value)
        if number < depth:
            child.commit()
        state = child
        fresh = State.load(model, TREE)
        assert state.root == fresh.root
        assert state.find_due(now) == fresh.find_due(now) == find_due_naively(model, now)
        for key in {*first, *changes, *sibling_changes}:
            assert state.get(key, object) == model.get(key)  # type: ignore[type-var]  # any kind will do here
    if len(blocks) <= depth:
        assert dict(state.items()) == model
        assert state.find_next() == min((timer[0] for timer in find_due_naively(model, 99)), default=None)


def write(state: State, changes: dict[bytes, int | None]) -> None:
    for key, value in changes.items():
        if value is None:
            state.delete(key)
        else:
            state.put(key, make_entry(key, value))


def find_due_naively(model: dict[bytes, Entry], now: int) -> list[tuple[int, bytes, bytes]]:
    timers = [(timer, key[1:], key) for key, entry in model.items() if (timer := get_timer(entry)) is not None]
    return sorted(timer for timer in timers if timer[0] < now)


def test_a_child_that_is_merged_or_dropped() -> None:
    state = State.load({b"a1": Account(1, bytes(32))}, TREE).child()
    child = state.child()
    child.put(b"a1", Account(2, bytes(32)))
    child.delete(b"a2")
    assert state.account(b"1") == Account(1, bytes(32))
    state.merge(child)
    assert state.account(b"1") == Account(2, bytes(32))


MOVED = LeaseMoved(bytes(32), 3, LeaseState.SETTLED, 0, 0, 0, 0, 0)


def make_scope() -> Scope:
    """A scope whose state is empty."""
    return Scope(bytes(32), Params(), SignatureMemo(), State.load({}, TREE).child(), 0, 1)


FAULTS: list[tuple[str, Any]] = [
    ("state.kind", lambda: State.load({b"a1": Account(1, bytes(32))}, TREE).get(b"a1", Provider)),
    ("state.missing", lambda: State.load({}, TREE).need(b"a1", Account)),
    ("state.commit", lambda: State.load({}, TREE).commit()),
    ("state.commit", lambda: State.load({}, TREE).child().child().commit()),
    ("recent.commit", lambda: Recent(0).commit()),
    ("recent.commit", lambda: Recent(0).child(1).child(2).commit()),
    ("lease.leftover", lambda: end_lease(make_scope(), World().open_lease(), LeaseState.SETTLED, 3)),
    ("results.lease", lambda: LedgerEvent(transaction=None, happening=MOVED).topics),
    ("state.key", lambda: decode_entry(b"x", b"")),
]


@pytest.mark.parametrize(("rule", "act"), FAULTS)
def test_our_own_faults_have_names(rule: str, act: Any) -> None:
    with pytest.raises(Fault) as caught:
        act()
    assert caught.value.rule == rule


def test_entries_are_stored_canonically() -> None:
    w = World()
    w.open_lease()
    for key, data in w.ledger.export().entries.items():
        assert encode(decode_entry(key, data)) == data
        with pytest.raises(BadEncoding):
            decode_entry(key, data + b"\x00")
    with pytest.raises(BadEncoding):
        decode_entry(b"a", encode(Totals(0, 0, 0, 0)))


BREAKS: list[tuple[str, str, Any]] = [
    ("R13.conserved", "a", lambda one: {"balance": one.balance + 1}),
    ("R13.conserved", "p", lambda one: {"bond": one.bond + 1}),
    ("R13.conserved", "l", lambda one: {"locked": one.locked - 1}),
    ("R13.conserved", "t", lambda one: {"burned": one.burned + 1}),
    ("R3.e.set-aside", "p", lambda one: {"set_aside": one.set_aside + 1}),
    ("R3.e.set-aside", "l", lambda one: {"bond": one.bond - 1}),
    ("R2.cap", "o", lambda one: {"cap": one.locked - 1}),
    ("R2.cap", "o", lambda one: {"locked": one.locked - 1}),
    ("R18.range", "o", lambda one: {"paid": -1}),
]


@pytest.mark.parametrize(("rule", "kind", "change"), BREAKS)
def test_the_audit_sees_every_credit(rule: str, kind: str, change: Any) -> None:
    """R13: the check that all other tests lean on turns red when a single unit is off."""
    w = World()
    w.open_lease()
    entries = w.ledger._head.state.entries
    key = next(key for key in entries if key[:1] == kind.encode())
    entry = entries[key]
    assert entry is not None
    entries[key] = msgspec.structs.replace(entry, **change(entry))
    with pytest.raises(Fault) as caught:
        check_conservation(w.ledger._head.state, w.genesis.supply)
    assert caught.value.rule == rule


def test_the_audit_sees_credits_that_never_were() -> None:
    w = World()
    with pytest.raises(Fault, match=r"R13\.conserved"):
        check_conservation(w.ledger._head.state, w.genesis.supply + 1)
    assert w.ledger._head.state.get(TOTALS_KEY, Totals) == w.ledger.supply()


# ---- remembered ids (R15 a) ----------------------------------------------------------------------------------------

STEP = st.sampled_from([1, 1_000, MAX_VALIDITY - 1, MAX_VALIDITY, MAX_VALIDITY + 1, 10**7])
SENDS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(1, 5)), max_size=4)


@given(st.lists(st.tuples(STEP, SENDS), min_size=1, max_size=12), st.integers(0, 3), st.booleans())
def test_the_window_forgets_by_block_time_alone(
    blocks: list[tuple[int, list[tuple[int, int, int]]]], lag: int, reload: bool
) -> None:
    """However many blocks are uncommitted, and across a restart, the same ids and quotas are remembered."""
    model: list[tuple[int, Sent]] = []
    time, recent, waiting = 0, Recent(0), list[Recent]()
    for step, sends in blocks:
        time += step
        recent = recent.child(time)
        for number, sender, signatures in sends:
            sent = Sent(digest(number, time), digest(sender), signatures)
            recent.add(sent)
            model.append((time, sent))
        waiting.append(recent)
        if len(waiting) > lag:
            waiting.pop(0).commit()
        if reload and not lag:
            recent = Recent.load(time, recent.blocks())
        live = [sent for at, sent in model if at + MAX_VALIDITY >= time]
        assert all(recent.knows(sent.id) for sent in live)
        assert not recent.knows(digest("never"))
        for sender in range(4):
            key = digest(sender)
            assert recent.count_spent(key) == sum(sent.signatures for sent in live if sent.sender == key)


def test_a_snapshot_carries_the_window_and_no_more() -> None:
    root = Recent.load(
        200_000,
        [BlockIds(79_999, (Sent(digest(1), digest("a"), 1),)), BlockIds(80_000, (Sent(digest(2), digest("a"), 2),))],
    )
    assert not root.knows(digest(1)) and root.knows(digest(2))
    assert root.count_spent(digest("a")) == 2
    assert [block.time for block in root.blocks()] == [80_000]
    later = root.child(200_001)
    assert later.count_spent(digest("a")) == 0
