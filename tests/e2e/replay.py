"""Segments of a finished job, replayed alone: each from the input its record commits to, in a sandbox of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord
from provider.sandbox.executor import Sandbox
from provider.sandbox.probe import probe
from provider.sandbox.runtimes import build_image
from provider.sandbox.spec import Limits, SegmentDone, Task
from requester.purchase.documents import Documents
from requester.store.blobs import BlobFolder
from requester.store.jobs import JobStore


@dataclass(frozen=True)
class FinishedJob:
    """A job as its requester's store has it."""

    documents: Documents
    records: tuple[SegmentRecord, ...]
    blobs: BlobFolder

    def make_task(self, record: SegmentRecord, folder: Path) -> Task:
        """The segment of a record, alone, as a provider would run it."""
        spec, order = self.documents.spec, self.documents.order.body
        chained = spec.kind is Kind.TRAIN and record.index > 0
        inputs, code = self.blobs.get(record.input if chained else spec.inputs), self.blobs.get(spec.code)
        assert inputs is not None
        assert code is not None
        path = folder / "inputs"
        path.write_bytes(inputs)
        resources = spec.resources
        limits = Limits(
            memory_bytes=resources.memory_bytes, cpu_ms=resources.cpu_ms, wall_ms=order.segment_wall,
            processes=resources.processes, open_files=resources.open_files, output_bytes=resources.output_bytes,
            output_count=1, log_bytes=resources.log_bytes, tmp_bytes=resources.tmp_bytes,
            shm_bytes=resources.shm_bytes, millicores=resources.millicores,
        )  # fmt: skip
        return Task(
            kind=spec.kind, order_id=self.documents.leases[0].award.body.order, first=record.index, count=1, code=code,
            entry=spec.entry, function=spec.function, inputs=path, limits=limits, seed=spec.seed,
        )  # fmt: skip


@contextlib.contextmanager
def open_jobs(folder: Path) -> Iterator[list[FinishedJob]]:
    """All jobs of a requester's data folder, oldest first."""
    store = JobStore(folder)
    try:
        found = []
        for row in reversed(store.list_jobs()):
            documents = store.load_documents(row.id)
            kept = store.load_records(row.id, documents)
            rows = sorted((one for records in kept.values() for one in records), key=lambda one: one.index)
            found.append(FinishedJob(documents, tuple(rows), store.blobs))
        yield found
    finally:
        store.close()
        store.blobs.close()


@contextlib.asynccontextmanager
async def open_sandbox(folder: Path) -> AsyncIterator[Sandbox]:
    """A sandbox like a provider's, below a folder that its users can enter."""
    image = build_image(folder / "runtimes")
    sandbox = Sandbox(image, await probe(image), slots=1)
    try:
        yield sandbox
    finally:
        await sandbox.close()


async def replay(sandbox: Sandbox, task: Task, spool: Path) -> SegmentDone:
    """The one segment of a task."""
    spool.mkdir(exist_ok=True)
    done = [event async for event in sandbox.run(task, 0, spool) if isinstance(event, SegmentDone)]
    [segment] = done
    return segment


async def find_differences(sandbox: Sandbox, job: FinishedJob, folder: Path) -> list[str]:
    """What came out otherwise when each segment of the job was replayed alone."""
    found = []
    for record in job.records:
        segment = await replay(sandbox, job.make_task(record, folder), folder / "spool")
        wanted = (record.cause, record.input, record.output if record.cause is Cause.OK else segment.output_digest)
        if (segment.cause, segment.input_digest, segment.output_digest) != wanted:
            found.append(f"{job.documents.spec.title}: segment {record.index}")
    return found
