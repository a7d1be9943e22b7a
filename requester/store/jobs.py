"""Jobs on disk: the signed order is stored before it is sent, so that a killed command can be taken up again.

One SQLite file with a row per job and the journals of their machines. One process at a time drives a job (`own`); any
number may read. Not here: what a job's state means (`requester.purchase`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from broker.protocol.jobs import JobSpec
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Order, compute_order_id
from chain.rpc.proofs import TxProof
from chain.runtime import journal
from chain.runtime.database import open_database
from chain.runtime.files import own_folder
from requester.purchase.documents import MAX_DOCUMENTS_BYTES, Documents
from requester.store.blobs import BlobFolder

VERSION = 1
"""Version of the store's layout; another one is refused by name (`store.version`)."""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs (
    id BLOB PRIMARY KEY, title TEXT NOT NULL, signed INTEGER NOT NULL, broker TEXT NOT NULL, chain TEXT NOT NULL,
    phase TEXT NOT NULL, rule TEXT NOT NULL, text TEXT NOT NULL, documents BLOB NOT NULL, proof BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (signed);
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
        """Close the database."""
        self._connection.close()

    def add(self, chain: bytes, order: Signed[Order], spec: JobSpec, signed: int, urls: tuple[str, str]) -> bytes:
        """Store a signed order before it is sent; returns its id. `urls` are those of broker and chain."""
        job = compute_order_id(chain, order.body)
        documents = encode(Documents(chain=chain, order=order, spec=spec))
        row = (job, spec.title, signed, *urls, "signed", "", "", documents)
        self._connection.execute(f"INSERT INTO jobs ({_COLUMNS}, documents) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return job

    def update(self, job: bytes, phase: str, reason: tuple[str, str], documents: Documents) -> None:
        """Note where a job stands, why (rule and text), and all documents known by now."""
        row = (phase, *reason, encode(documents), job)
        self._connection.execute("UPDATE jobs SET phase = ?, rule = ?, text = ?, documents = ? WHERE id = ?", row)

    def keep_proof(self, job: bytes, proof: TxProof) -> None:
        """Keep the proof of the transaction that ended the lease."""
        self._connection.execute("UPDATE jobs SET proof = ? WHERE id = ?", (encode(proof), job))

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
        """Everything kept about a job; raises `Refused` under `job.unknown` or a `codec.` rule for spoiled rows."""
        self.get(job)
        row = self._connection.execute("SELECT documents, proof FROM jobs WHERE id = ?", (job,)).fetchone()
        documents = decode(row[0], Documents, max_bytes=MAX_DOCUMENTS_BYTES)
        if row[1] is None:
            return documents
        proof = decode(row[1], TxProof, max_bytes=MAX_DOCUMENTS_BYTES)
        return msgspec.structs.replace(documents, proof=proof)

    def load_blobs(self, documents: Documents) -> Mapping[bytes, bytes]:
        """The blobs that a job's delivery names, as far as they are here."""
        if documents.delivery is None:
            return {}
        named = [documents.delivery.receipt.body.log]
        for signed in documents.delivery.records:
            named += [signed.body.output, signed.body.error]
        found = {digest: self.blobs.get(digest) for digest in dict.fromkeys(named)}
        return {digest: data for digest, data in found.items() if data is not None}

    def own(self, job: bytes) -> AbstractContextManager[None]:
        """Be the one process that drives this job; raises `Unavailable` under `folder.owned` on entering."""
        return own_folder(self.folder / "running" / job.hex()[:32])
