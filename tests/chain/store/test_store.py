"""The store: what it keeps, in which order it gives it back, and the sign guard on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer, verify
from chain.base.merkle import EMPTY_ROOT
from chain.consensus.guard import SignedTwice
from chain.consensus.messages import NO_BLOCK, Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Block, Header
from chain.ledger.recent import BlockIds, Sent
from chain.ledger.transactions import Transfer, compute_transaction_id, sign_transaction
from chain.store.database import ChainStore, FinalBlock, StoredEvent
from chain.store.guard import SignGuard, check_guard

CHAIN = compute_digest(b"chain")
SIGNER = Signer(b"k" * 32)
A, B, C = (compute_digest(name) for name in (b"a", b"b", b"c"))


def make_block(height: int, transactions: int = 0, time: int | None = None) -> FinalBlock:
    """A block that has the form of one; the store asks no more."""
    zero = bytes(32)
    time = 1_000 * height if time is None else time
    header = Header(0, height, height, time, zero, zero, 0, EMPTY_ROOT, EMPTY_ROOT, zero, zero)
    body = Transfer(SIGNER.key, 1)
    signed = tuple(
        sign_transaction(SIGNER, CHAIN, body, 1, (1000 * height + n).to_bytes(16, "big")) for n in range(transactions)
    )
    vote = Vote(Step.FINALIZE, 0, height, compute_digest(b"%d" % height))
    certificate = Certificate(vote, (SeatSignature(0, SIGNER.sign(Tag.VOTE, CHAIN, vote).signature),))
    recent = BlockIds(time, tuple(Sent(compute_transaction_id(one.body), SIGNER.key, 1) for one in signed))
    return FinalBlock(vote.block, Block(header, zero, signed), certificate, recent)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChainStore]:
    made = ChainStore(tmp_path / "chain.db", CHAIN)
    yield made
    made.close()


def test_a_new_store_is_empty(store: ChainStore) -> None:
    assert store.get_height() == 0
    assert store.get_block(1) is None
    assert store.find_transaction(A) is None
    assert list(store.get_entries()) == []
    assert store.get_events([], 0, 10) == (0, [])
    assert store.get_recent(0) == []


def test_what_is_written_is_read_after_the_flush_and_not_before(store: ChainStore) -> None:
    final = make_block(1, transactions=2)
    store.put_block(final, {A: b"1", B: b"2"}, [StoredEvent((A,), b"{}")])
    assert (store.get_height(), store.get_block(1), list(store.get_entries())) == (0, None, [])
    store.flush()
    assert (store.get_height(), store.get_block(1)) == (1, final)
    assert dict(store.get_entries()) == {A: b"1", B: b"2"}
    ids = [compute_transaction_id(signed.body) for signed in final.block.transactions]
    assert [store.find_transaction(tx) for tx in ids] == [(1, 0), (1, 1)]
    assert store.get_events([A], 0, 10) == (1, [b"{}"])


def test_what_was_not_flushed_is_gone_after_a_restart(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.db", CHAIN)
    store.put_block(make_block(1), {A: b"1"}, [])
    store.flush()
    store.put_block(make_block(2), {A: b"2", B: b"3"}, [])
    store.close()
    again = ChainStore(tmp_path / "chain.db", CHAIN)
    assert again.get_height() == 1
    assert dict(again.get_entries()) == {A: b"1"}
    again.close()


@given(st.lists(st.dictionaries(st.sampled_from([A, B, C]), st.none() | st.binary(max_size=4)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_entries_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[dict[bytes, bytes | None]]
) -> None:
    store = ChainStore(tmp_path_factory.mktemp("store") / "chain.db", CHAIN)
    model: dict[bytes, bytes] = {}
    for height, changes in enumerate(blocks, 1):
        store.put_block(make_block(height), changes, [])
        store.flush()
        model = {key: value for key, value in {**model, **changes}.items() if value is not None}
        assert dict(store.get_entries()) == model
    store.close()


def test_two_blocks_of_one_height_or_one_transaction_twice_cannot_be(store: ChainStore) -> None:
    store.put_block(make_block(1, transactions=1), {}, [])
    with pytest.raises(Unavailable) as caught:
        store.put_block(make_block(1), {}, [])
    assert caught.value.rule == "store.write"
    with pytest.raises(Unavailable):
        final = make_block(1, transactions=1)
        store.put_block(FinalBlock(final.id, make_block_at(2, final), final.certificate, final.recent), {}, [])


def make_block_at(height: int, final: FinalBlock) -> Block:
    return Block(make_block(height).block.header, final.block.reveal, final.block.transactions)


@pytest.mark.parametrize(("since", "heights"), [(0, [1, 2, 3]), (2_000, [2, 3]), (2_001, [3]), (4_000, [])])
def test_recent_ids_are_those_of_the_window_oldest_first(store: ChainStore, since: int, heights: list[int]) -> None:
    for height in (1, 2, 3):
        store.put_block(make_block(height, transactions=1), {}, [])
    store.flush()
    assert store.get_recent(since) == [make_block(height, transactions=1).recent for height in heights]


# ---- events ----


def fill_events(store: ChainStore, blocks: list[list[tuple[bytes, ...]]]) -> None:
    for height, topics in enumerate(blocks, 1):
        events = [StoredEvent(topic, b"%d/%d" % (height, n)) for n, topic in enumerate(topics)]
        store.put_block(make_block(height), {}, events)
    store.flush()


TOPICS = st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3).map(tuple)


@given(
    st.lists(st.lists(TOPICS, max_size=4), max_size=6),
    st.sets(st.sampled_from([A, B, C])),
    st.integers(0, 6),
    st.integers(1, 4),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_reading_pages_on_gives_each_event_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[list[tuple[bytes, ...]]],
    wanted: set[bytes],
    after: int,
    limit: int,
) -> None:
    store = ChainStore(tmp_path_factory.mktemp("store") / "chain.db", CHAIN)
    fill_events(store, blocks)
    expected = [
        b"%d/%d" % (height, n)
        for height, events in enumerate(blocks, 1)
        for n, topics in enumerate(events)
        if height > after and (not wanted or wanted & set(topics))
    ]
    got: list[bytes] = []
    position = after
    while True:
        following, page = store.get_events(sorted(wanted), position, limit)
        assert following >= position
        got += page
        assert following > position or not page
        position = following
        if not page:
            break
    store.close()
    assert got == expected
    assert position == max(after, len(blocks))


# ---- the guard ----


def sign_twice(store: ChainStore, first: Vote, second: Vote) -> None:
    guard = SignGuard(store, SIGNER, CHAIN, 0)
    guard.sign(first)
    guard.sign(second)


def test_a_signature_of_the_guard_is_good_and_recorded(store: ChainStore) -> None:
    vote = Vote(Step.NOTARISE, 0, 1, A)
    signed = SignGuard(store, SIGNER, CHAIN, 0).sign(vote)
    assert verify(signed, Tag.VOTE, CHAIN, SIGNER.key) == vote
    assert store.read("SELECT * FROM guard") == []
    store.flush()
    assert store.read("SELECT epoch, slot, step, block FROM guard") == [(0, 1, "notarise", A)]


def test_the_guard_gives_the_same_signature_for_the_same_vote(store: ChainStore) -> None:
    guard, vote = SignGuard(store, SIGNER, CHAIN, 0), Vote(Step.NOTARISE, 0, 1, A)
    assert guard.sign(vote) == guard.sign(vote)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Vote(Step.NOTARISE, 0, 1, A), Vote(Step.NOTARISE, 0, 1, B)),
        (Vote(Step.FINALIZE, 0, 1, A), Vote(Step.FINALIZE, 0, 1, B)),
        (Vote(Step.FINALIZE, 0, 1, A), Vote(Step.DUMMY, 0, 1, NO_BLOCK)),
        (Vote(Step.DUMMY, 0, 1, NO_BLOCK), Vote(Step.FINALIZE, 0, 1, A)),
    ],
)
def test_the_guard_never_contradicts_itself_also_after_a_restart(
    tmp_path: Path, store: ChainStore, first: Vote, second: Vote
) -> None:
    with pytest.raises(SignedTwice):
        sign_twice(store, first, second)
    store.flush()
    store.close()
    again = ChainStore(tmp_path / "chain.db", CHAIN)
    with pytest.raises(SignedTwice):
        SignGuard(again, SIGNER, CHAIN, 0).sign(second)
    assert SignGuard(again, SIGNER, CHAIN, 0).sign(first).body == first
    again.close()


def test_a_second_copy_on_the_same_store_is_caught_by_the_first_ones_record(tmp_path: Path, store: ChainStore) -> None:
    SignGuard(store, SIGNER, CHAIN, 0).sign(Vote(Step.NOTARISE, 0, 1, A))
    store.flush()
    copy = ChainStore(tmp_path / "chain.db", CHAIN)
    with pytest.raises(SignedTwice):
        SignGuard(copy, SIGNER, CHAIN, 0).sign(Vote(Step.NOTARISE, 0, 1, B))
    copy.close()


def test_decided_slots_are_closed_and_their_records_go(store: ChainStore) -> None:
    guard = SignGuard(store, SIGNER, CHAIN, 0)
    for slot in (1, 2):
        guard.sign(Vote(Step.FINALIZE, 0, slot, A))
        guard.decide(slot)
    store.flush()
    assert store.read("SELECT slot FROM guard") == [(2,)]
    for slot in (1, 2):
        with pytest.raises(SignedTwice):
            guard.sign(Vote(Step.FINALIZE, 0, slot, A))


@pytest.mark.parametrize(
    ("signed", "slot", "rule"),
    [
        ([], 0, None),
        ([Vote(Step.FINALIZE, 0, 3, A)], 3, None),
        ([], 3, "R16.guard-older"),
        ([Vote(Step.NOTARISE, 0, 3, A)], 3, "R16.guard-older"),
        ([Vote(Step.FINALIZE, 0, 3, B)], 3, "R16.guard-older"),
        ([Vote(Step.FINALIZE, 0, 2, A)], 3, "R16.guard-older"),
        ([Vote(Step.FINALIZE, 0, 3, A), Vote(Step.NOTARISE, 0, 4, B)], 3, "R16.store-older"),
        ([Vote(Step.NOTARISE, 0, 1, B)], 0, "R16.store-older"),
    ],
)
def test_a_seat_alone_runs_only_if_guard_and_store_are_of_one_age(
    store: ChainStore, signed: list[Vote], slot: int, rule: str | None
) -> None:
    """R16 (f)."""
    guard = SignGuard(store, SIGNER, CHAIN, 0)
    for vote in signed:
        guard.sign(vote)
    store.flush() if signed else None
    if rule is None:
        check_guard(store, 0, slot, A)
        return
    with pytest.raises(Fault) as caught:
        check_guard(store, 0, slot, A)
    assert caught.value.rule == rule


# ---- opening ----


def test_a_store_of_another_chain_is_refused(tmp_path: Path, store: ChainStore) -> None:
    with pytest.raises(Refused) as caught:
        ChainStore(tmp_path / "chain.db", A)
    assert caught.value.rule == "store.chain"


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "chain.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(Unavailable) as caught:
        ChainStore(tmp_path / "chain.db", CHAIN)
    assert caught.value.rule == "store.open"


def test_commits_survive_a_power_cut_by_setting(store: ChainStore) -> None:
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_readers_cannot_write(store: ChainStore) -> None:
    with pytest.raises(sqlite3.OperationalError):
        store._reader.execute("DELETE FROM blocks")
