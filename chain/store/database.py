"""The chain's SQLite file: one transaction per block, holding everything that follows from it.

Write-ahead log and `synchronous=FULL`: what was committed survives a power cut. Writing and reading use two
connections, so a reader sees final blocks
only, each whole or not at all. A transaction opens at the first write (as a rule the sign guard's) and is durable
after `flush`; until then nothing may
leave the node. Not here: what blocks mean (`chain.ledger`), checks of a store that is opened again
(`chain.store.check`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from chain.base.codec import encode
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest
from chain.consensus.messages import Certificate
from chain.ledger.blocks import Block
from chain.ledger.recent import BlockIds
from chain.ledger.transactions import compute_transaction_id
from chain.runtime.database import open_database

T = TypeVar("T")

__all__ = ["STORE_VERSION", "ChainStore", "CorruptStore", "FinalBlock", "StoredEvent", "compute_row_digest"]

STORE_VERSION = 1
"""Version of the schema; a store of another one is refused by name (`store.version`)."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chain (id BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS blocks (
    height INTEGER PRIMARY KEY, id BLOB NOT NULL, body BLOB NOT NULL, certificate BLOB NOT NULL,
    recent BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS transactions (
    id BLOB PRIMARY KEY, height INTEGER NOT NULL, place INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    height INTEGER NOT NULL, place INTEGER NOT NULL, payload BLOB NOT NULL, topics BLOB NOT NULL,
    PRIMARY KEY (height, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS topics (
    topic BLOB NOT NULL, height INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (topic, height, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS guard (
    epoch INTEGER NOT NULL, slot INTEGER NOT NULL, step TEXT NOT NULL, block BLOB NOT NULL,
    PRIMARY KEY (epoch, slot, step)
) STRICT, WITHOUT ROWID;
"""


class CorruptStore(Fault):
    """The store contradicts itself: `what` says where."""

    def __init__(self, path: Path, what: str) -> None:
        message = f"the chain's store {path} is damaged: {what}. Put back a copy of the folder; do not edit it"
        super().__init__(message, rule="store.corrupt")
        self.what = what


class StoredEvent(msgspec.Struct, frozen=True):
    """An event as it is kept: the ids it concerns, and its JSON as `chain.events` answers it."""

    topics: tuple[bytes, ...]
    payload: bytes


class FinalBlock(msgspec.Struct, frozen=True):
    """A final block as it is kept; `recent` is what it adds to the window of remembered transactions (R15 a)."""

    id: bytes
    block: Block
    certificate: Certificate
    recent: BlockIds


def compute_row_digest(body: bytes, recent: bytes, events: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Digest over what no header commits to: a block's signatures, its remembered ids, its events (payload, topics)."""
    return compute_digest(encode((compute_digest(body), recent, tuple(events))))


class ChainStore:
    """The store of one chain. Opening creates it, or raises `Refused` under `store.kind`, `store.version`,
    `store.chain`; `Unavailable` under `store.open`.
    """

    def __init__(self, path: Path, chain_id: bytes) -> None:
        self.path = path
        self._writer = open_database(path, kind="chain", version=STORE_VERSION, schema=_SCHEMA)
        self._reader = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()
        try:
            self._claim(chain_id)
        except TallyError:
            self.close()
            raise

    def _claim(self, chain_id: bytes) -> None:
        with self._reading():
            row = self._writer.execute("SELECT id FROM chain").fetchone()
            if row is None:
                self._writer.execute("INSERT INTO chain VALUES (?)", (chain_id,))
        if row is not None and row[0] != chain_id:
            message = f"{self.path} belongs to chain {row[0].hex()}, the genesis file to {chain_id.hex()}"
            raise Refused(message, rule="store.chain")

    def close(self) -> None:
        """Close; what was not flushed is dropped."""
        self._reader.close()
        self._writer.close()

    # ---- writing: one transaction from the first call to `flush` ----

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The open transaction, begun if need be. A failing disk raises `Unavailable` under `store.write`: stop the
        node, the block never was.
        """
        with self._lock:
            try:
                if not self._writer.in_transaction:
                    self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
            except sqlite3.Error as error:
                raise Unavailable(f"cannot write {self.path}: {error}", rule="store.write") from error

    def put_block(
        self, final: FinalBlock, changes: Mapping[bytes, bytes | None], events: Sequence[StoredEvent]
    ) -> None:
        """Add a final block, what it changes in the state (None deletes), and its events."""
        height = final.block.header.height
        ids = (compute_transaction_id(signed.body) for signed in final.block.transactions)
        with self.writing() as db:
            rows = [(event.payload, b"".join(sorted(set(event.topics)))) for event in events]
            body, recent = encode(final.block), encode(final.recent)
            digest = compute_row_digest(body, recent, rows)
            row = (height, final.id, body, encode(final.certificate), recent, digest)
            db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)
            db.executemany("INSERT INTO transactions VALUES (?, ?, ?)", ((tx, height, n) for n, tx in enumerate(ids)))
            self._put_changes(db, changes)
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", ((height, n, *row) for n, row in enumerate(rows)))
            topics = ((topic, height, n) for n, event in enumerate(events) for topic in sorted(set(event.topics)))
            db.executemany("INSERT INTO topics VALUES (?, ?, ?)", topics)

    def _put_changes(self, db: sqlite3.Connection, changes: Mapping[bytes, bytes | None]) -> None:
        gone = [(key,) for key, value in changes.items() if value is None]
        kept = [(key, value) for key, value in changes.items() if value is not None]
        db.executemany("DELETE FROM entries WHERE key = ?", gone)
        db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", kept)

    def flush(self) -> None:
        """Make everything written so far durable. May run in a thread of its own."""
        with self.writing() as db:
            db.execute("COMMIT")

    # ---- reading: final blocks only ----

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._reader
        except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CorruptStore(self.path, str(error)) from error

    def read(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Rows of a query over what is durable. Raises `CorruptStore`."""
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    def get_height(self) -> int:
        """Height of the last final block, 0 for genesis."""
        with self._reading() as db:
            row = db.execute("SELECT max(height) FROM blocks").fetchone()
        return int(row[0] or 0)

    def get_block(self, height: int) -> FinalBlock | None:
        """The final block at a height from 1, or None."""
        with self._reading() as db:
            row = db.execute("SELECT id, body, certificate, recent FROM blocks WHERE height = ?", (height,)).fetchone()
            if row is None:
                return None
            return FinalBlock(row[0], _read(row[1], Block), _read(row[2], Certificate), _read(row[3], BlockIds))

    def get_recent(self, since: int) -> list[BlockIds]:
        """What the blocks with a time from Instant `since` on add to the window of remembered transactions, oldest
        first.
        """
        found: list[BlockIds] = []
        with self._reading() as db:
            for row in db.execute("SELECT recent FROM blocks ORDER BY height DESC"):
                block = _read(row[0], BlockIds)
                if block.time < since:
                    break
                found.append(block)
        return found[::-1]

    def find_transaction(self, tx: bytes) -> tuple[int, int] | None:
        """Height and place of a final transaction, or None."""
        with self._reading() as db:
            row = db.execute("SELECT height, place FROM transactions WHERE id = ?", (tx,)).fetchone()
        return None if row is None else (int(row[0]), int(row[1]))

    def get_entries(self) -> list[tuple[bytes, bytes]]:
        """All entries of the state at the head, by key."""
        with self._reading() as db:
            return db.execute("SELECT key, value FROM entries ORDER BY key").fetchall()

    def get_events(self, topics: Sequence[bytes], after: int, limit: int) -> tuple[int, list[bytes]]:
        """Payloads of the events above height `after` on any of the topics (none named: all), and the height up to
        which they are complete.

        Whole blocks only: about `limit` events, more where one block has more.
        """
        head = self.get_height()
        with self._reading() as db:
            places = db.execute(*self._select_places(topics, after, limit + 1)).fetchall()
            last = head
            if len(places) > limit:
                last = places[-1][0] if places[0][0] == places[-1][0] else places[-1][0] - 1
                if places[0][0] == places[-1][0]:
                    places = db.execute(*self._select_places(topics, after, -1, last)).fetchall()
            query = "SELECT payload FROM events WHERE height = ? AND place = ?"
            chosen = (place for place in places if place[0] <= last)
            return max(last, after), [db.execute(query, place).fetchone()[0] for place in chosen]

    def _select_places(
        self, topics: Sequence[bytes], after: int, limit: int, last: int = 2**62
    ) -> tuple[str, tuple[object, ...]]:
        order = "ORDER BY height, place LIMIT ?"
        if not topics:
            query = f"SELECT height, place FROM events WHERE height > ? AND height <= ? {order}"
            return query, (after, last, limit)
        marks = ", ".join("?" * len(topics))
        query = (
            f"SELECT DISTINCT height, place FROM topics WHERE topic IN ({marks}) AND height > ? AND height <= ? {order}"
        )
        return query, (*topics, after, last, limit)


def _read(data: bytes, kind: type[T]) -> T:
    """Decode what this node itself wrote: without the bounds for strangers' objects, which a full block may pass."""
    return msgspec.msgpack.decode(data, type=kind)
