"""A store that was changed refuses to start by name: a row per kind of damage, then bits flipped anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from chain.base.errors import Fault, TallyError
from chain.base.units import MICRO
from chain.consensus.seats import Seats
from chain.ledger.genesis import compute_chain_id
from chain.node.folder import ChainFolder
from chain.node.node import open_ledger
from chain.store import check
from chain.store.database import ChainStore
from tests.chain.node.world import make_folder, make_signer, run_world

BLOCKS = 5
ALICE = make_signer(1)


@cache
def _used(path: Path) -> ChainFolder:
    folder = make_folder(path)

    async def use() -> None:
        async with run_world(folder) as world:
            for _ in range(BLOCKS):
                await world.client.submit(world.treasury.pay(ALICE.key))

    asyncio.run(use())
    return folder


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ChainFolder:
    used = _used(tmp_path_factory.getbasetemp())
    shutil.copytree(used.path, tmp_path / "copy")
    return ChainFolder(tmp_path / "copy")


def open_and_read(folder: ChainFolder) -> object:
    """All that a node tells of its chain, in one value."""
    genesis = folder.read_genesis()
    store = ChainStore(folder.store_file, compute_chain_id(genesis))
    try:
        ledger = open_ledger(store, genesis, Seats(0, [seat.key for seat in genesis.seats]))
        blocks = [store.get_block(height) for height in range(1, ledger.head.height + 1)]
        return ledger.export(), blocks, store.get_events([], 0, 1000), store.get_events([ALICE.key], 0, 1000)
    finally:
        store.close()


@contextlib.contextmanager
def edit(folder: ChainFolder) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(folder.store_file, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def flip(db: sqlite3.Connection, table: str, column: str, where: str = "1") -> None:
    """Flip one bit in the middle of one value."""
    rowid, value = db.execute(f"SELECT {_KEYS[table]}, {column} FROM {table} WHERE {where} LIMIT 1").fetchone()
    changed = bytearray(value)
    changed[len(changed) // 2] ^= 4
    db.execute(f"UPDATE {table} SET {column} = ? WHERE {_KEYS[table]} = ?", (bytes(changed), rowid))


_KEYS = {"blocks": "height", "entries": "key", "events": "payload", "transactions": "id", "guard": "block"}


def sql(text: str) -> Callable[[sqlite3.Connection], object]:
    return lambda db: db.execute(text)


def cut_head(db: sqlite3.Connection) -> None:
    """The newest block gone without a trace, but for the guard's."""
    for table in ("blocks", "events", "topics", "transactions"):
        db.execute(f"DELETE FROM {table} WHERE height = ?", (BLOCKS,))


def flip_signature(db: sqlite3.Connection, column: str = "body", height: int = 3) -> None:
    """Body and certificate end in a signature, to which no header commits."""
    (value,) = db.execute(f"SELECT {column} FROM blocks WHERE height = ?", (height,)).fetchone()
    db.execute(f"UPDATE blocks SET {column} = ? WHERE height = ?", (value[:-1] + bytes([value[-1] ^ 1]), height))


DAMAGE: dict[str, tuple[Callable[[sqlite3.Connection], object], str]] = {
    "block body": (lambda db: flip(db, "blocks", "body", "height = 3"), "store.corrupt"),
    "block id": (lambda db: flip(db, "blocks", "id", "height = 3"), "store.corrupt"),
    "certificate": (lambda db: flip(db, "blocks", "certificate", "height = 3"), "store.corrupt"),
    "certificate of another block": (
        sql("UPDATE blocks SET certificate = (SELECT certificate FROM blocks WHERE height = 2) WHERE height = 3"),
        "store.corrupt",
    ),
    "recent ids": (lambda db: flip(db, "blocks", "recent", "height = 3"), "store.corrupt"),
    "last block": (lambda db: flip(db, "blocks", "body", f"height = {BLOCKS}"), "store.corrupt"),
    "a state entry": (lambda db: flip(db, "entries", "value"), "store.corrupt"),
    "a state key": (lambda db: flip(db, "entries", "key"), "store.corrupt"),
    "a state entry lost": (sql("DELETE FROM entries WHERE key = (SELECT min(key) FROM entries)"), "store.corrupt"),
    "an event": (lambda db: flip(db, "events", "payload"), "store.corrupt"),
    "an event lost": (sql("DELETE FROM events WHERE height = 2"), "store.corrupt"),
    "an index entry": (lambda db: flip(db, "transactions", "id"), "store.corrupt"),
    "an index entry moved": (sql("UPDATE transactions SET height = 4 WHERE height = 3"), "store.corrupt"),
    "a block lost": (sql("DELETE FROM blocks WHERE height = 3"), "store.corrupt"),
    "blocks swapped": (
        sql("UPDATE blocks SET body = (SELECT body FROM blocks WHERE height = 2) WHERE height = 3"),
        "store.corrupt",
    ),
    "the head cut off": (sql(f"DELETE FROM blocks WHERE height = {BLOCKS}"), "store.corrupt"),
    "the head and its events cut off": (cut_head, "R16.store-older"),
    "a signature in a block": (flip_signature, "store.corrupt"),
    "a topic": (sql("UPDATE topics SET height = 7 WHERE height = 3"), "store.corrupt"),
    "a topic lost": (sql("DELETE FROM topics WHERE height = 3"), "store.corrupt"),
    "a topic too many": (sql("INSERT INTO topics VALUES (zeroblob(32), 1, 0)"), "store.corrupt"),
    "the guard lost": (sql("DELETE FROM guard"), "R16.guard-older"),
    "the guard's block": (lambda db: flip(db, "guard", "block", "step = 'finalize'"), "R16.guard-older"),
    "an old record in the guard": (sql("INSERT INTO guard VALUES (0, 1, 'dummy', x'00')"), "store.corrupt"),
}


def test_the_control_opens(folder: ChainFolder) -> None:
    state = open_and_read(folder)
    assert isinstance(state, tuple)
    assert len(state[1]) == BLOCKS


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name_and_says_what_to_do(folder: ChainFolder, name: str) -> None:
    change, rule = DAMAGE[name]
    with edit(folder) as db:
        change(db)
    with pytest.raises(Fault) as caught:
        open_and_read(folder)
    assert caught.value.rule == rule
    assert "Put back" in caught.value.message


def test_an_older_state_under_a_newer_head_is_refused(folder: ChainFolder) -> None:
    with edit(folder) as db:
        row = db.execute("SELECT key, value FROM entries WHERE key = ?", (b"a" + ALICE.key,)).fetchone()
        assert row is not None
        older = row[1].replace(msgspec.msgpack.encode(BLOCKS * MICRO), msgspec.msgpack.encode((BLOCKS - 1) * MICRO))
        assert older != row[1]
        db.execute("UPDATE entries SET value = ? WHERE key = ?", (older, row[0]))
    with pytest.raises(Fault) as caught:
        open_and_read(folder)
    assert caught.value.rule == "store.corrupt"


@pytest.mark.parametrize("tail", [1, 2, BLOCKS, BLOCKS + 1])
def test_only_the_tail_is_read_block_by_block(folder: ChainFolder, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    """So that a long chain starts fast; damage before the tail is for those to find who read proofs."""
    monkeypatch.setattr(check, "TAIL", tail)
    before = open_and_read(folder)
    with edit(folder) as db:
        flip_signature(db, "certificate", BLOCKS - 1)
    if tail > 1:
        with pytest.raises(Fault):
            open_and_read(folder)
    else:
        assert open_and_read(folder) != before


@pytest.mark.check
@pytest.mark.parametrize("part", range(8))
def test_a_bit_flipped_anywhere_is_refused_or_changes_nothing_that_is_told(
    folder: ChainFolder, seed: int, part: int
) -> None:
    """Free space and the file's own statistics may flip unnoticed; what the node tells may not."""
    with edit(folder) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = open_and_read(folder)
    good, chance = folder.store_file.read_bytes(), random.Random(seed + part)
    for _ in range(60):
        position, bit = chance.randrange(len(good)), 1 << chance.randrange(8)
        changed = bytearray(good)
        changed[position] ^= bit
        for beside in folder.path.glob("chain.db*"):
            beside.unlink()
        folder.store_file.write_bytes(bytes(changed))
        with contextlib.suppress(TallyError):
            assert open_and_read(folder) == before, f"byte {position}, bit {bit}"
