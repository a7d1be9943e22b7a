"""Who holds and who may read which blob, until when (rows of a database; the bytes are `broker.service.blobs`).

A *hold* keeps a blob and counts against its account's quota; a *right* lets an account read it. Nobody gets a right by
naming a digest: an order may name only what its requester holds, a receipt only what its provider holds, and these
give the right on (threats.md row 36 and its neighbours: otherwise naming a stranger's digest would be reading it).

What a receipt names was made for its requester and counts there, in a share of its own as large as the quota: so a
provider's quota is there for what it has yet to hand in, and no provider can keep a requester from uploading. Only
where that share is full does it stay the provider's. All that an account causes to be kept is thus at most twice the
quota.

Rows are written without waiting for the disk: a killed process loses none, and what a power cut may lose follows from
the journals of live jobs, whose desk says it again; `flush` comes before a job's journal is dropped.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from chain.base.errors import Refused, Unavailable
from chain.base.hashing import show_digest
from chain.base.units import MAX_INT

SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (digest BLOB PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS custody (
    digest BLOB NOT NULL, account BLOB NOT NULL, held INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (digest, account)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS custody_account ON custody (account, held);
"""

RIGHT, UPLOAD, OUTPUT = 0, 1, 2
"""What `custody.held` says: may read it, holds it for itself, holds it as what was made for it."""

_COUNT = """
    INSERT INTO account_totals
        VALUES (new.account, new.held, coalesce((SELECT size FROM blobs WHERE digest = new.digest), 0), 1)
        ON CONFLICT (account, held) DO UPDATE SET bytes = bytes + excluded.bytes, number = number + 1;
"""

_DISCOUNT = """
    UPDATE account_totals
        SET bytes = bytes - coalesce((SELECT size FROM blobs WHERE digest = old.digest), 0), number = number - 1
        WHERE account = old.account AND held = old.held;
    DELETE FROM account_totals WHERE account = old.account AND held = old.held AND number = 0;
"""

TOTALS = f"""
CREATE TEMP TABLE account_totals (
    account BLOB NOT NULL, held INTEGER NOT NULL, bytes INTEGER NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (account, held)
) STRICT, WITHOUT ROWID;
INSERT INTO account_totals
    SELECT account, held, sum(size), count(*) FROM custody JOIN blobs USING (digest) WHERE held > 0
    GROUP BY account, held;
CREATE TEMP TRIGGER hold_new AFTER INSERT ON custody WHEN new.held > 0 BEGIN {_COUNT} END;
CREATE TEMP TRIGGER hold_begun AFTER UPDATE OF held ON custody WHEN new.held > 0 AND new.held <> old.held
    BEGIN {_COUNT} END;
CREATE TEMP TRIGGER hold_left AFTER UPDATE OF held ON custody WHEN old.held > 0 AND new.held <> old.held
    BEGIN {_DISCOUNT} END;
CREATE TEMP TRIGGER hold_ended AFTER DELETE ON custody WHEN old.held > 0 BEGIN {_DISCOUNT} END;
"""
"""What each account holds, kept up by triggers: it is asked for with every upload, and millions of blobs may be one
account's. Made anew with each start.
"""

MAX_BLOBS = 1 << 22
"""Blobs that one account holds at most of either sort: each is rows of some 200 bytes, however few bytes it has."""


class Custody:
    """Holds and rights. `quota` bounds in bytes what one account holds for itself, and apart from that what it holds as
    outputs; `capacity` bounds what all hold together.
    """

    def __init__(self, connection: sqlite3.Connection, quota: int, capacity: int) -> None:
        self._connection = connection
        self._quota = quota
        self._capacity = capacity
        self._coming: Counter[bytes] = Counter()
        self._filling = 0
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(TOTALS)
        self._total = int(connection.execute("SELECT coalesce(sum(size), 0) FROM blobs").fetchone()[0])

    @contextmanager
    def room(self, account: bytes, size: int) -> Iterator[None]:
        """Reserve `size` bytes for what is on its way; raises `Refused` (`blob.quota`) or `Unavailable` (`blob.full`)
        where they would not fit beside what is held and on its way.
        """
        self.reserve(account, size)
        try:
            self.fill(size)
            try:
                yield
            finally:
                self.drain(size)
        finally:
            self.release(account, size)

    def reserve(self, account: bytes, size: int) -> None:
        """Count bytes that an account means to send against its quota; raises `Refused` (`blob.quota`)."""
        held, number = self._get_totals(account, UPLOAD)
        if number >= MAX_BLOBS:
            raise Refused(f"the account may hold {MAX_BLOBS} blobs at this broker", rule="blob.quota")
        if held + self._coming.get(account, 0) + size > self._quota:
            raise Refused(f"the account may hold {self._quota} bytes at this broker", rule="blob.quota")
        self._coming[account] += size

    def release(self, account: bytes, size: int) -> None:
        """What was reserved came, or comes no more."""
        self._coming[account] -= size
        if not self._coming[account]:
            del self._coming[account]

    def fill(self, size: int) -> None:
        """Count bytes that lie on the disk and are no blob yet, or are just coming, against the whole store; raises
        `Unavailable` (`blob.full`). What is only announced does not count: else a few could shut out all others.
        """
        if self._total + self._filling + size > self._capacity:
            raise Unavailable("the broker's blob store is full; try later", rule="blob.full")
        self._filling += size

    def drain(self, size: int) -> None:
        """What was filled is a blob now, or gone."""
        self._filling -= size

    def take_up(self, account: bytes, size: int, stored: int) -> None:
        """After a restart: an account means to send `size` bytes, of which `stored` lie on the disk."""
        self._coming[account] += size
        self._filling += stored

    def compute_held(self, account: bytes, held: int = UPLOAD) -> int:
        """Bytes that an account holds for itself, or as `OUTPUT`."""
        return self._get_totals(account, held)[0]

    def _get_totals(self, account: bytes, held: int) -> tuple[int, int]:
        """Bytes and number of the blobs that an account holds in this way."""
        query = "SELECT bytes, number FROM account_totals WHERE account = ? AND held = ?"
        row = self._connection.execute(query, (account, held)).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def hold(self, sizes: Mapping[bytes, int], account: bytes, until: int) -> None:
        """Blobs (with their sizes) whose bytes are safely stored: `account` holds them at least until an Instant."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._add(sizes)
            self._give(sizes, account, UPLOAD, until)

    def hand_over(self, sizes: Mapping[bytes, int], provider: bytes, requester: bytes, until: int) -> None:
        """Blobs that a receipt names, safely stored, are kept until an Instant and can be read by both parties. They
        count as the requester's outputs, all of them, or where these would be too many as the provider's uploads.
        """
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._add(sizes)
            if self._has_room_for_outputs(sizes, requester):
                self._give(sizes, requester, OUTPUT, until)
                self._give(sizes, provider, RIGHT, until)
                query = "UPDATE custody SET held = 0 WHERE digest = ? AND account = ? AND held = 1"
                self._connection.executemany(query, [(digest, provider) for digest in sizes])
            else:
                self._give(sizes, provider, UPLOAD, until)
                self._give(sizes, requester, RIGHT, until)

    def _has_room_for_outputs(self, sizes: Mapping[bytes, int], account: bytes) -> bool:
        """What is held as output already does not count twice."""
        query = "SELECT 1 FROM custody WHERE digest = ? AND account = ? AND held = ?"
        new = [
            size
            for digest, size in sizes.items()
            if self._connection.execute(query, (digest, account, OUTPUT)).fetchone() is None
        ]
        held, number = self._get_totals(account, OUTPUT)
        return held + sum(new) <= self._quota and number + len(new) <= MAX_BLOBS

    def _add(self, sizes: Mapping[bytes, int]) -> None:
        for row in sizes.items():
            added = self._connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", row).rowcount
            self._total += row[1] * added

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def extend(self, digests: Iterable[bytes], account: bytes, until: int) -> None:
        """Keep what an account holds at least until an Instant."""
        self._write(digests, account, UPLOAD, until)

    def renew(self, digest: bytes, account: bytes, until: int) -> int | None:
        """Size of a blob that the account may read, None where there is none; what it holds itself is kept at least
        until an Instant.
        """
        size = self.get_size(digest, account)
        if size is not None:
            query = "UPDATE custody SET until = max(until, ?) WHERE digest = ? AND account = ? AND held > 0"
            self._connection.execute(query, (until, digest, account))
        return size

    def grant(self, digests: Iterable[bytes], account: bytes, until: int) -> None:
        """Let an account read blobs until an Instant; it does not count against its quota."""
        self._write(digests, account, RIGHT, until)

    def get_size(self, digest: bytes, account: bytes) -> int | None:
        """Size of a blob that the account may read; None where it may not, or there is none."""
        query = "SELECT size FROM custody JOIN blobs USING (digest) WHERE digest = ? AND account = ?"
        row = self._connection.execute(query, (digest, account)).fetchone()
        return int(row[0]) if row else None

    def check_held(self, digests: Sequence[bytes], account: bytes) -> int:
        """Sum of the sizes of blobs that all are there for this account; raises `Refused` (`blob.missing`) naming the
        first that is not.
        """
        total = 0
        for digest in digests:
            size = self.get_size(digest, account)
            if size is None:
                raise Refused(f"{show_digest(digest)} was not uploaded by this account", rule="blob.missing")
            total += size
        return total

    def sweep(self, now: int) -> list[bytes]:
        """Forget what has run out; returns digests whose bytes nobody needs any more."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM custody WHERE until < ?", (now,))
            query = "SELECT digest, size FROM blobs WHERE digest NOT IN (SELECT digest FROM custody)"
            gone = self._connection.execute(query).fetchall()
            self._connection.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest, _ in gone])
        self._total -= sum(size for _, size in gone)
        return [bytes(digest) for digest, _ in gone]

    def _write(self, digests: Iterable[bytes], account: bytes, held: int, until: int) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._give(digests, account, held, until)

    def _give(self, digests: Iterable[bytes], account: bytes, held: int, until: int) -> None:
        rows = [(digest, account, held, min(until, MAX_INT)) for digest in digests]
        self._connection.executemany(
            "INSERT INTO custody VALUES (?, ?, ?, ?) ON CONFLICT (digest, account) "
            "DO UPDATE SET held = max(held, excluded.held), until = max(until, excluded.until)",
            rows,
        )
