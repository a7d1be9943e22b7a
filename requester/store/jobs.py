"""Jobs on disk: the signed order is stored before it is sent, so that a killed command can be taken up again.

One SQLite file: a row per job, its documents in parts, the records of its leases in chunks, proofs from the chain, and
the journals of the machines. One process at a time drives a job (`own`); any number may read. Not here: what a job's
state means (`requester.purchase`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from broker.protocol.jobs import JobSpec
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Order, compute_order_id
from chain.ledger.terms.work import SegmentRecord
from chain.rpc.proofs import LeaseProof, TxProof
from chain.runtime import journal
from chain.runtime.database import open_database
from chain.runtime.files import own_folder
from requester.purchase.deliveries import EMPTY, list_needed
from requester.purchase.documents import (
    MAX_PART_BYTES,
    Documents,
    LeasePapers,
    RecordChunk,
    join_chunks,
    join_documents,
    split_documents,
)
from requester.store.blobs import BlobFolder

VERSION = 2
"""Version of the store's layout; another one is refused by name (`store.version`)."""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs (
    id BLOB PRIMARY KEY, title TEXT NOT NULL, signed INTEGER NOT NULL, broker TEXT NOT NULL, chain TEXT NOT NULL,
    phase TEXT NOT NULL, rule TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (signed);
CREATE TABLE IF NOT EXISTS parts (
    job BLOB NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (job, name)
) STRICT;
CREATE TABLE IF NOT EXISTS records (
    job BLOB NOT NULL, lease BLOB NOT NULL, since INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (job, lease, since)
) STRICT;
CREATE TABLE IF NOT EXISTS proofs (
    job BLOB NOT NULL, lease BLOB NOT NULL, proof BLOB, state BLOB, PRIMARY KEY (job, lease)
) STRICT;
{journal.SCHEMA};
"""

_COLUMNS = "id, title, signed, broker, chain, phase, rule, text"


class JobRow(msgspec.Struct, frozen=True):
    """One job as it is listed. `signed` is an Instant; `broker` and `chain` are the addresses it was sent to."""

    id: bytes
    title: str
    signed: int
    broker: str
    chain: str
    phase: str
    rule: str
    text: str


class JobStore:
    """All jobs of one data folder. Raises `Refused` under `store.kind` or `store.version`, `Unavailable` under
    `store.open`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._connection = open_database(folder / "jobs.db", kind="requester", version=VERSION, schema=SCHEMA)
        self.journal = journal.Journal(self._connection)
        self.blobs = BlobFolder(folder / "blobs")

    def close(self) -> None:
        """Close the databases."""
        self._connection.close()
        self.blobs.close()

    def add(
        self,
        chain: bytes,
        order: Signed[Order],
        spec: JobSpec,
        signed: int,
        urls: tuple[str, str],
        items: tuple[bytes, ...] = (),
    ) -> bytes:
        """Store a signed order before it is sent; returns its id. `urls` are those of broker and chain, `items` the
        digests of a `map`'s items.
        """
        job = compute_order_id(chain, order.body)
        row = (job, spec.title, signed, *urls, "signed", "", "")
        with self._commit():
            self._connection.execute(f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._put_parts(job, split_documents(Documents(chain=chain, order=order, spec=spec, items=items)))
        return job

    def update(self, job: bytes, phase: str, reason: tuple[str, str], documents: Documents) -> None:
        """Note where a job stands, why (rule and text), and all documents known by now; proofs are kept apart."""
        with self._commit():
            row = (phase, *reason, job)
            self._connection.execute("UPDATE jobs SET phase = ?, rule = ?, text = ? WHERE id = ?", row)
            self._put_parts(job, split_documents(documents))

    def _put_parts(self, job: bytes, parts: Mapping[str, bytes]) -> None:
        """Write the parts that changed."""
        rows = self._connection.execute("SELECT name, data FROM parts WHERE job = ?", (job,)).fetchall()
        old: dict[str, bytes] = dict(rows)
        changed = [(job, name, data) for name, data in parts.items() if old.get(name) != data]
        self._connection.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", changed)
        gone = [(job, name) for name in old.keys() - parts.keys()]
        self._connection.executemany("DELETE FROM parts WHERE job = ? AND name = ?", gone)

    @contextmanager
    def _commit(self) -> Iterator[None]:
        """All of it or nothing, in one durable commit."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def keep_records(self, job: bytes, chunk: RecordChunk) -> None:
        """Keep verified records of a lease; the same chunk again changes nothing."""
        row = (job, chunk.lease, chunk.since, encode(chunk))
        self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", row)

    def keep_proof(self, job: bytes, lease: bytes, proof: TxProof | None, state: LeaseProof | None) -> None:
        """Keep the proofs of how a lease ended; None leaves what is kept already."""
        row = (job, lease, *(None if one is None else encode(one) for one in (proof, state)))
        self._connection.execute(
            "INSERT INTO proofs VALUES (?, ?, ?, ?) ON CONFLICT (job, lease) DO UPDATE SET"
            " proof = coalesce(excluded.proof, proof), state = coalesce(excluded.state, state)",
            row,
        )

    def list_jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY signed DESC, id")
        return [JobRow(*row) for row in rows]

    def get(self, job: bytes) -> JobRow:
        """One job's row; raises `Refused` under `job.unknown`."""
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise Refused(f"no job {job.hex()[:16]} in {self.folder}; see `tally jobs`", rule="job.unknown")
        return JobRow(*row)

    def find(self, prefix: str) -> JobRow:
        """The one job whose id begins so; raises `Refused` under `job.unknown` or `job.ambiguous`."""
        found = [row for row in self.list_jobs() if row.id.hex().startswith(prefix.lower())]
        if len(found) > 1:
            raise Refused(f"{len(found)} jobs begin with {prefix[:64]!r}; give more digits", rule="job.ambiguous")
        if not found or not prefix:
            raise Refused(f"no job {prefix[:64]!r} in {self.folder}; see `tally jobs`", rule="job.unknown")
        return found[0]

    def load_documents(self, job: bytes) -> Documents:
        """Everything kept about a job but its records; raises `Refused` under `job.unknown`, or `documents.parts` or a
        `codec.` rule for spoiled rows.
        """
        self.get(job)
        rows = self._connection.execute("SELECT name, data FROM parts WHERE job = ?", (job,)).fetchall()
        documents = join_documents(dict(rows))
        return msgspec.structs.replace(
            documents, leases=tuple(self._add_proofs(job, papers) for papers in documents.leases)
        )

    def _add_proofs(self, job: bytes, papers: LeasePapers) -> LeasePapers:
        query = "SELECT proof, state FROM proofs WHERE job = ? AND lease = ?"
        proof, state = self._connection.execute(query, (job, papers.lease)).fetchone() or (None, None)
        return msgspec.structs.replace(
            papers,
            proof=None if proof is None else decode(proof, TxProof, max_bytes=MAX_PART_BYTES),
            state=None if state is None else decode(state, LeaseProof, max_bytes=MAX_PART_BYTES),
        )

    def load_records(self, job: bytes, documents: Documents) -> dict[bytes, tuple[SegmentRecord, ...]]:
        """The records of each lease that its receipt covers, by the lease's id. Raises `Refused` under
        `documents.records` or a `codec.` rule for spoiled rows.
        """
        query = "SELECT data FROM records WHERE job = ? AND lease = ? ORDER BY since"
        found: dict[bytes, tuple[SegmentRecord, ...]] = {}
        for papers in documents.leases:
            count = 0 if papers.receipt is None else papers.receipt.body.count
            rows = self._connection.execute(query, (job, papers.lease)).fetchall() if count else []
            chunks = [decode(data, RecordChunk, max_bytes=MAX_PART_BYTES) for (data,) in rows]
            found[papers.lease] = join_chunks(papers.lease, chunks)[:count]
        return found

    def load_blobs(self, documents: Documents, records: Mapping[bytes, Sequence[SegmentRecord]]) -> dict[bytes, bytes]:
        """The blobs that a job's receipts and records name, as far as they are here."""
        found: dict[bytes, bytes] = {EMPTY: b""}
        for papers in documents.leases:
            if papers.receipt is not None:
                for digest in list_needed(papers.receipt.body, records.get(papers.lease, ())):
                    data = self.blobs.get(digest)
                    found |= {} if data is None else {digest: data}
        return found

    def own(self, job: bytes) -> AbstractContextManager[None]:
        """Be the one process that drives this job; raises `Unavailable` under `folder.owned` on entering."""
        return own_folder(self.folder / "running" / job.hex()[:32])
