"""Jobs as the API sees them: documents and progress behind a cursor, people who wait for more, and the archive of those
that are over.

Documents are `Auction.news`, rebuilt by replay; progress lives in memory alone and is bounded. A cursor counts both, so
that a restart, which loses progress, never makes a reader miss a document.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from broker.auction.events import AuctionEffect, AuctionEvent
from broker.auction.machine import Auction
from broker.protocol.api import Accepted, Advanced, Delivered, Ended, Events, JobEvent, JobSummary
from chain.base.codec import encode
from chain.base.keys import Signed
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.runtime.driver import Driver

PAGE_BYTES = 256 << 10
"""Bytes behind which a page of events ends. Eight bytes or more make one element of what stands there, so that a page
with its last item stays below the codec's 65,536.
"""

PAGE_ITEMS = 256

PROGRESS_BYTES = 2 << 20
"""Log bytes and records of one job's progress kept in memory; the oldest give way. The whole log is a blob of the
receipt, and records come with receipts.
"""

RECORD_BYTES = 1_024
"""What a record in memory counts for, about."""

PROGRESS_ITEMS = 2_000

_PROGRESS_BITS = 32
"""A cursor is documents x 2^32 + progress."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS archive (
    job BLOB PRIMARY KEY, requester BLOB NOT NULL, watcher BLOB,
    title TEXT NOT NULL, state TEXT NOT NULL, posted INTEGER NOT NULL, ended INTEGER NOT NULL, documents BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    lease BLOB PRIMARY KEY, job BLOB NOT NULL, provider BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_job ON leases (job);
CREATE TABLE IF NOT EXISTS papers (
    name BLOB PRIMARY KEY, job BLOB NOT NULL, paper BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS papers_job ON papers (job);
CREATE INDEX IF NOT EXISTS archive_requester ON archive (requester, posted);
"""
"""`papers` are what providers of jobs that are over ask for: a storage receipt by the id of its receipt, the newest
acceptance by its lease. Both are in the documents too, which may be 65,536 records to decode.
"""


class Job:
    """One order, live or over: who its parties are, who has which lease of it, and what happened."""

    def __init__(self, order_id: bytes) -> None:
        self.order_id = order_id
        self.documents: Sequence[JobEvent] = ()
        self.leases: dict[bytes, bytes] = {}
        self.requester = b""
        self.watcher: bytes | None = None
        self.title = ""
        self.posted = 0

    @property
    def state(self) -> str:
        """How it ended, or the kind of the newest document."""
        return name_state(self.documents)

    def find_storage(self, receipt: bytes) -> Signed[StorageReceipt] | None:
        """Our storage receipt for a receipt (its id) that was delivered before; goes through no documents."""
        raise NotImplementedError

    def find_acceptance(self, lease: bytes) -> Signed[Acceptance] | None:
        """The newest acceptance of a lease; goes through no documents."""
        raise NotImplementedError

    def read(self, after: int) -> Events:
        """A page of what lies behind the cursor."""
        return page(self.documents, (), 0, after)

    def summarize(self) -> JobSummary:
        """Its line in the requester's list."""
        return JobSummary(self.order_id.hex(), self.title, self.state, self.posted)


class LiveJob(Job):
    """A job with its machine, and those who wait for something to happen to it."""

    def __init__(self, order_id: bytes, auction: Auction, driver: Driver[AuctionEvent, AuctionEffect]) -> None:
        super().__init__(order_id)
        self.auction = auction
        self.driver = driver
        self.documents = auction.news
        self._progress: list[tuple[int, Advanced]] = []
        self._dropped = 0
        self._bytes = 0
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Take over from the machine what may have changed, and wake those who wait."""
        auction = self.auction
        if auction.posted and not self.posted:
            order = auction.order
            self.requester, self.watcher = order.requester, order.watcher
            self.title, self.posted = auction.spec.title, auction.posted
        self.leases = {lot.lease: lot.provider for lot in auction.lots.values()}
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def find_storage(self, receipt: bytes) -> Signed[StorageReceipt] | None:
        """Our storage receipt for a receipt that was delivered before."""
        found = (lot.receipts.get(receipt) for lot in self.auction.lots.values())
        return next((storage for storage in found if storage is not None), None)

    def find_acceptance(self, lease: bytes) -> Signed[Acceptance] | None:
        """The newest acceptance of a lease."""
        lot = self.auction.lots.get(lease)
        return lot.acceptance if lot is not None else None

    def count_records(self) -> int:
        """Segment records in memory."""
        return sum(len(lot.handed.records) for lot in self.auction.lots.values())

    def list_providers(self) -> frozenset[bytes]:
        """Providers on whom something depends: awaited by a round, or at work."""
        awaited = self.auction.round.awaited if self.auction.round is not None else frozenset()
        return awaited | {lot.provider for lot in self.auction.lots.values() if lot.is_working}

    def add_progress(self, one: Advanced) -> None:
        """Take progress; the oldest gives way."""
        self._progress.append((len(self.documents), one))
        self._bytes += _measure(one)
        while len(self._progress) > PROGRESS_ITEMS or self._bytes > PROGRESS_BYTES:
            _, gone = self._progress.pop(0)
            self._bytes -= _measure(gone)
            self._dropped += 1
        self.refresh()

    def read(self, after: int) -> Events:
        """A page of what lies behind the cursor."""
        return page(self.documents, self._progress, self._dropped, after)

    async def wait(self, deadline: float) -> bool:
        """Whether something happened before `deadline`, in the loop's time."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True


def _measure(one: Advanced) -> int:
    return len(one.log) + RECORD_BYTES * len(one.records)


def name_state(documents: Sequence[JobEvent]) -> str:
    """`JobSummary.state` of a job with these documents."""
    if not documents:
        return "new"
    last = documents[-1]
    return last.state if isinstance(last, Ended) else type(last).__name__.lower()


def page(documents: Sequence[JobEvent], progress: Sequence[tuple[int, Advanced]], dropped: int, after: int) -> Events:
    """Documents and progress behind a cursor, in the order in which they came; `progress` says behind how many
    documents each came, `dropped` how many gave way before the first of them.
    """
    at, seen = after >> _PROGRESS_BITS, after & (2**_PROGRESS_BITS - 1)
    end = dropped + len(progress)
    at, seen = min(at, len(documents)), (max(seen, dropped) if seen <= end else dropped)
    items: list[JobEvent] = []
    size = 0
    while len(items) < PAGE_ITEMS and size < PAGE_BYTES:
        coming = progress[seen - dropped] if seen < end else None
        if coming is not None and (coming[0] <= at or at >= len(documents)):
            items.append(coming[1])
            seen += 1
        elif at < len(documents):
            items.append(documents[at])
            at += 1
        else:
            break
        size += len(encode(items[-1]))
    return Events(at << _PROGRESS_BITS | seen, tuple(items))


class OldJob(Job):
    """A job that is over. Its documents are read once they are asked for: who may not have them costs nothing, though
    ids of orders and leases stand on the chain for everybody.
    """

    def __init__(
        self, order_id: bytes, load: Callable[[], Sequence[JobEvent]], find_paper: Callable[[bytes], bytes | None]
    ) -> None:
        self._load = load
        self._find_paper = find_paper
        self._loaded: Sequence[JobEvent] | None = None
        super().__init__(order_id)

    @property
    def documents(self) -> Sequence[JobEvent]:
        """What happened."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @documents.setter
    def documents(self, _: Sequence[JobEvent]) -> None:
        """They are the archive's."""
        self._loaded = None

    def find_storage(self, receipt: bytes) -> Signed[StorageReceipt] | None:
        """One row is looked up, whether it is there or not."""
        paper = self._find_paper(receipt)
        return msgspec.msgpack.decode(paper, type=Signed[StorageReceipt]) if paper else None

    def find_acceptance(self, lease: bytes) -> Signed[Acceptance] | None:
        """As `find_storage`."""
        paper = self._find_paper(lease)
        return msgspec.msgpack.decode(paper, type=Signed[Acceptance]) if paper else None


class Archive:
    """Documents of jobs that are over."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder(tuple[JobEvent, ...])
        self._fill_papers()

    def _fill_papers(self) -> None:
        """Once after an earlier release, which kept them in the documents alone."""
        if self._connection.execute("SELECT 1 FROM papers LIMIT 1").fetchone() is not None:
            return
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for (order_id,) in self._connection.execute("SELECT job FROM archive").fetchall():
                self._add_papers(order_id, self._load(order_id))

    def _add_papers(self, order_id: bytes, documents: Sequence[JobEvent]) -> None:
        rows = [(name, order_id, encode(paper)) for name, paper in _list_papers(documents)]
        self._connection.executemany("INSERT OR REPLACE INTO papers VALUES (?, ?, ?)", rows)

    def add(self, job: Job, now: int) -> None:
        """Put a job away; again is no error."""
        row = (job.order_id, job.requester, job.watcher, job.title, job.state, job.posted, now)
        leases = [(lease, job.order_id, provider) for lease, provider in job.leases.items()]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            query = "INSERT OR REPLACE INTO archive VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            self._connection.execute(query, (*row, encode(tuple(job.documents))))
            self._connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", leases)
            self._add_papers(job.order_id, job.documents)

    def find(self, order_id: bytes) -> Job | None:
        """A job by its order."""
        names = "requester, watcher, title, posted"
        row = self._connection.execute(f"SELECT {names} FROM archive WHERE job = ?", (order_id,)).fetchone()
        if row is None:
            return None
        job = OldJob(order_id, partial(self._load, order_id), partial(self._find_paper, order_id))
        job.requester, job.watcher, job.title, job.posted = row
        query = "SELECT lease, provider FROM leases WHERE job = ?"
        job.leases = dict(self._connection.execute(query, (order_id,)).fetchall())
        return job

    def _load(self, order_id: bytes) -> tuple[JobEvent, ...]:
        row = self._connection.execute("SELECT documents FROM archive WHERE job = ?", (order_id,)).fetchone()
        return self._decoder.decode(row[0]) if row else ()

    def _find_paper(self, order_id: bytes, name: bytes) -> bytes | None:
        query = "SELECT paper FROM papers WHERE name = ? AND job = ?"
        row = self._connection.execute(query, (name, order_id)).fetchone()
        return bytes(row[0]) if row else None

    def find_lease(self, lease: bytes) -> Job | None:
        """A job by one of its leases."""
        row = self._connection.execute("SELECT job FROM leases WHERE lease = ?", (lease,)).fetchone()
        return self.find(bytes(row[0])) if row else None

    def summarize(self, requester: bytes, limit: int) -> list[JobSummary]:
        """A requester's newest jobs that are over."""
        query = "SELECT job, title, state, posted FROM archive WHERE requester = ? ORDER BY posted DESC LIMIT ?"
        rows = self._connection.execute(query, (requester, limit)).fetchall()
        return [JobSummary(bytes(job).hex(), title, state, posted) for job, title, state, posted in rows]

    def sweep(self, ended_before: int) -> None:
        """Forget what ended before an Instant."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM archive WHERE ended < ?", (ended_before,))
            for table in ("leases", "papers"):
                self._connection.execute(f"DELETE FROM {table} WHERE job NOT IN (SELECT job FROM archive)")


def _list_papers(documents: Sequence[JobEvent]) -> Iterator[tuple[bytes, Signed[StorageReceipt] | Signed[Acceptance]]]:
    """By their names, the newest last."""
    for one in documents:
        if isinstance(one, Delivered):
            yield one.storage.body.receipt, one.storage
        if isinstance(one, Accepted):
            yield one.acceptance.body.lease, one.acceptance
