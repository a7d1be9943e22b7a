"""Who holds and who may read which blob, until when (rows of a database; the bytes are `broker.service.blobs`).

A *hold* keeps a blob and counts against its account; a *right* lets an account read what others hold, as long as they
do: so there is no byte that counts for nobody. Nobody gets a right by naming a digest: an order may name only what its
requester may read, a receipt only what its provider sent, and these give the right on (threats.md row 36 and its
neighbours: otherwise naming a stranger's digest would be reading it).

What a receipt names was made for its requester and counts there, in a share of its own as large as the quota, never
against its provider: so a provider's quota is there for what it has yet to hand in, and no requester can fill it. Who
has no room left in that share places no further order; what orders that were taken before still bring goes beyond it,
within the limits that deliveries keep to (decision 0009).

Rows are written without waiting for the disk: a killed process loses none, and what a power cut may lose follows from
the journals of live jobs, whose desk says it again; `flush` comes before a job's journal is dropped.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
CREATE TABLE IF NOT EXISTS rights (
    digest BLOB NOT NULL, account BLOB NOT NULL, sent INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (digest, account)
) STRICT, WITHOUT ROWID;
"""

UPLOAD, OUTPUT = 1, 2
"""What `custody.held` says: the account holds it for itself, or as what was made for it."""

MOVE_RIGHTS = """
INSERT OR IGNORE INTO rights SELECT digest, account, 1, until FROM custody WHERE held = 0;
DELETE FROM custody WHERE held = 0;
"""
"""Earlier releases had rights among the holds, by 0. Who had sent what nobody knows of them; they count as sent."""

_HOLDS = "EXISTS (SELECT 1 FROM custody WHERE digest = :digest AND account = :account)"
_READS = "EXISTS (SELECT 1 FROM rights WHERE digest = :digest AND account = :account)"
_SENT = "EXISTS (SELECT 1 FROM rights WHERE digest = :digest AND account = :account AND sent)"

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
    SELECT account, held, sum(size), count(*) FROM custody JOIN blobs USING (digest) GROUP BY account, held;
CREATE TEMP TRIGGER hold_new AFTER INSERT ON custody BEGIN {_COUNT} END;
CREATE TEMP TRIGGER hold_changed AFTER UPDATE OF held ON custody WHEN new.held <> old.held
    BEGIN {_DISCOUNT} {_COUNT} END;
CREATE TEMP TRIGGER hold_ended AFTER DELETE ON custody BEGIN {_DISCOUNT} END;
"""
"""What each account holds, kept up by triggers: it is asked for with every upload, and millions of blobs may be one
account's. Made anew with each start.
"""

MAX_BLOBS = 1 << 22
"""Blobs that one account holds at most of either sort: each is rows of some 200 bytes, however few bytes it has."""


class Custody:
    """Holds and rights. `quota` bounds in bytes what one account holds for itself; it is also the share of outputs
    behind which it places no further orders. `capacity` bounds what all hold together.
    """

    def __init__(self, connection: sqlite3.Connection, quota: int, capacity: int) -> None:
        self._connection = connection
        self._quota = quota
        self._capacity = capacity
        self._coming: Counter[bytes] = Counter()
        self._filling = 0
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(MOVE_RIGHTS)
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
        self._check_room(account, size, 1)
        self._coming[account] += size

    def _check_room(self, account: bytes, size: int, count: int) -> None:
        held, number = self._get_totals(account, UPLOAD)
        if number + count > MAX_BLOBS:
            raise Refused(f"the account may hold {MAX_BLOBS} blobs at this broker", rule="blob.quota")
        if held + self._coming.get(account, 0) + size > self._quota:
            raise Refused(f"the account may hold {self._quota} bytes at this broker", rule="blob.quota")

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
            self._keep(sizes, account, UPLOAD, until)

    def hand_over(self, sizes: Mapping[bytes, int], provider: bytes, requester: bytes, until: int) -> None:
        """Blobs that a receipt names, safely stored, are kept until an Instant and can be read by both parties. They
        count as the requester's outputs, whatever else there is of these, and no longer as the provider's uploads,
        unless the provider keeps them longer for an order of its own.
        """
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._add(sizes)
            self._keep(sizes, requester, OUTPUT, until)
            self._permit(sizes, provider, until, sent=True)
            query = "DELETE FROM custody WHERE digest = ? AND account = ? AND held = ? AND until <= ?"
            self._connection.executemany(query, [(digest, provider, UPLOAD, until) for digest in sizes])

    def check_outputs(self, account: bytes) -> None:
        """Raise `Refused` (`order.outputs`) where outputs fill the account's share: it places no further orders."""
        held, number = self._get_totals(account, OUTPUT)
        if held >= self._quota or number >= MAX_BLOBS:
            text = (
                f"{held} bytes of results of earlier orders are kept for this account, of {self._quota} that it may "
                "have here; order again once their retention has ended"
            )
            raise Refused(text, rule="order.outputs")

    def _add(self, sizes: Mapping[bytes, int]) -> None:
        for row in sizes.items():
            added = self._connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", row).rowcount
            self._total += row[1] * added

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def extend(self, digests: Iterable[bytes], account: bytes, until: int) -> None:
        """Keep what an account holds or may read at least until an Instant. What it did not hold counts against its
        quota; raises `Refused` (`blob.quota`), then nothing has changed.
        """
        named = [digest for digest in dict.fromkeys(digests) if self.get_size(digest, account) is not None]
        sizes = [size for digest in named if (size := self._find(digest, account, f"NOT {_HOLDS}")) is not None]
        if sizes:
            self._check_room(account, sum(sizes), len(sizes))
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._keep(named, account, UPLOAD, until)

    def renew(self, digest: bytes, account: bytes, until: int) -> int | None:
        """Size of a blob that the account need not send again, None where it has to: what it may only read it has not
        shown to have. What it holds is kept at least until an Instant.
        """
        size = self._find(digest, account, f"({_HOLDS} OR {_SENT})")
        if size is not None:
            query = "UPDATE custody SET until = max(until, ?) WHERE digest = ? AND account = ?"
            self._connection.execute(query, (until, digest, account))
        return size

    def grant(self, digests: Iterable[bytes], account: bytes, until: int) -> None:
        """Let an account read blobs until an Instant, while somebody holds them; this counts against no quota."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._permit(digests, account, until, sent=False)

    def get_size(self, digest: bytes, account: bytes) -> int | None:
        """Size of a blob that the account may read; None where it may not, or there is none."""
        return self._find(digest, account, f"({_HOLDS} OR {_READS})")

    def _find(self, digest: bytes, account: bytes, condition: str) -> int | None:
        query = f"SELECT size FROM blobs WHERE digest = :digest AND {condition}"
        row = self._connection.execute(query, {"digest": digest, "account": account}).fetchone()
        return int(row[0]) if row else None

    def measure_sent(self, digests: Iterable[bytes], account: bytes) -> dict[bytes, int]:
        """Sizes of blobs that this account holds or has sent; raises `Refused` (`blob.missing`) naming the first that
        it has not: else a receipt might name what its provider may only read.
        """
        sizes = {digest: self._find(digest, account, f"({_HOLDS} OR {_SENT})") for digest in digests}
        for digest, size in sizes.items():
            if size is None:
                raise Refused(f"{show_digest(digest)} was not uploaded by this account", rule="blob.missing")
        return {digest: size for digest, size in sizes.items() if size is not None}

    def sweep(self, now: int) -> list[bytes]:
        """Forget what has run out; returns digests whose bytes nobody holds any more."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM custody WHERE until < ?", (now,))
            query = "SELECT digest, size FROM blobs WHERE digest NOT IN (SELECT digest FROM custody)"
            gone = self._connection.execute(query).fetchall()
            self._connection.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest, _ in gone])
            # Rights end with the bytes: who sends these again later has not given them to anybody.
            self._connection.executemany("DELETE FROM rights WHERE digest = ?", [(digest,) for digest, _ in gone])
            self._connection.execute("DELETE FROM rights WHERE until < ?", (now,))
        self._total -= sum(size for _, size in gone)
        return [bytes(digest) for digest, _ in gone]

    def _keep(self, digests: Iterable[bytes], account: bytes, held: int, until: int) -> None:
        self._connection.executemany(
            "INSERT INTO custody VALUES (?, ?, ?, ?) ON CONFLICT (digest, account) "
            "DO UPDATE SET held = max(held, excluded.held), until = max(until, excluded.until)",
            [(digest, account, held, min(until, MAX_INT)) for digest in digests],
        )

    def _permit(self, digests: Iterable[bytes], account: bytes, until: int, *, sent: bool) -> None:
        self._connection.executemany(
            "INSERT INTO rights SELECT digest, ?, ?, ? FROM blobs WHERE digest = ? ON CONFLICT (digest, account) "
            "DO UPDATE SET sent = max(sent, excluded.sent), until = max(until, excluded.until)",
            [(account, int(sent), min(until, MAX_INT), digest) for digest in digests],
        )
