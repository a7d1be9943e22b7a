"""Jobs that exist: followed to their end, looked at while they run, cancelled; also those of killed programs.

A job is driven by one process at a time; another one that waits for it reads the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from broker.protocol.api import Advanced, Cancellation, Delivered, Ended, Unmatched
from chain.base.errors import Refused, TallyError, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import Signer
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord
from chain.ledger.transactions import Cancel, sign_transaction
from chain.rpc.schema import LeaseView
from requester.client.board import Board, Progress
from requester.client.buying import Buying, describe_pythons
from requester.client.lines import ReportReader
from requester.client.news import NO_HOOKS, Hooks, News, NewsKind
from requester.client.outcomes import JobFailed, NoBid
from requester.client.reading import Reading, read_outcome
from requester.client.results import Finished, load_value
from requester.client.runner import VALID_MS, JobRunner, Means
from requester.client.settings import RequesterSettings
from requester.purchase.documents import Documents
from requester.purchase.phases import Phase
from requester.store.jobs import JobRow

SETTLE_SECONDS = 60.0
"""How long a result waits for the payment once everything was accepted; it is there without it."""

STORE_SECONDS = 0.2
"""How often a job that another process drives is looked up."""

OPENING_SECONDS = 5.0
"""How long a cancel waits for leases that are just being opened, so that it ends them too."""

POLL_MS = 25_000


class Following(Buying):
    """Results, live pictures, cancelling."""

    def __init__(self, settings: RequesterSettings, signer: Signer, folder: Path | None = None) -> None:
        super().__init__(settings, signer, folder)
        self._boards: dict[bytes, Board] = {}
        self._followed: dict[bytes, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Stop following, close connections and store. Jobs go on without us; see `result`."""
        tasks = list(self._followed.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()

    async def result(
        self, job: bytes | str, hooks: Hooks = NO_HOOKS, *, partial: bool = False, copy: bool = False
    ) -> Any:
        """The `JobResult`, `MapResult` or `TrainResult` of a job (see `find`), waited for and driven to its end if need
        be. Raises as `run` and `map`.
        """
        row = self.find(job)
        if not Phase(row.phase).is_over or row.phase == Phase.LOST:
            with self.get_board(row.id).listening(hooks):
                await asyncio.shield(self.follow(row.id))
        return await self.read(row.id, partial=partial, copy=copy)

    async def read(self, job: bytes, *, partial: bool, copy: bool) -> Finished:
        """The result of a job that is over."""
        row = self.store.get(job)
        try:
            return read_outcome(self.store, row, partial=partial, copy=copy)
        except NoBid as error:
            advice = await self._explain_silence(job)
            raise NoBid(f"{error.message.removeprefix('no bid: ')}{advice}", error.lowest) from None

    async def _explain_silence(self, job: bytes) -> str:
        spec = self.store.load_documents(job).spec
        try:
            text = describe_pythons(await self.providers(), spec.runtime.python, spec.entry)
        except TallyError:
            return ""
        return f"; {text}" if text else ""

    def follow(self, job: bytes) -> asyncio.Task[None]:
        """Drive a job beside the caller, until it is over or the market is closed. One task per job."""
        self.require_open()
        task = self._followed.get(job)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._follow(self.store.get(job)))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it
            self._followed[job] = task
        return task

    async def send(self, job: bytes, hooks: Hooks = NO_HOOKS) -> None:
        """Send a signed order and return once the broker has it (or refused it, see `result`)."""
        board = self.get_board(job)
        with board.listening(hooks):
            task = self.follow(job)
            while board.phase is Phase.SIGNED and not task.done():
                await _first_of(task, board)
        if task.done():
            task.result()

    # ---- looking on ----

    def get_board(self, job: bytes) -> Board:
        """The live picture of a job: what this process has seen of it, from the store where it has seen nothing."""
        board = self._boards.get(job)
        if board is None:
            documents = self.store.load_documents(job)
            board = self._boards[job] = Board(documents.order.body.segments)
            self._fill(board, self.store.get(job), documents)
        return board

    def _fill(self, board: Board, row: JobRow, documents: Documents) -> None:
        """From the store: segments whose output is here."""
        reading = Reading(self.store, row, documents)
        board.phase = Phase(row.phase)
        board.cost, board.kept_until = reading.cost.total, reading.kept_until
        board.leases |= reading.leases
        for index, record in reading.segments.items():
            if index not in board.records and (
                record.cause is not Cause.OK or self.store.blobs.open(record.output) is not None
            ):
                board.records[index] = record
        if board.phase.is_over and not board.metrics:
            board.metrics = reading.output[1]
        board.move()

    def _is_here(self, record: SegmentRecord) -> bool:
        return record.cause is not Cause.OK or self.store.blobs.open(record.output) is not None

    async def watch_results(
        self, job: bytes, *, partial: bool = False, copy: bool = False
    ) -> AsyncIterator[tuple[int, Any]]:
        """(index, value) of each segment as soon as it is verified, in the order in which they come.

        Ends once the job is over; then raises `JobFailed` where segments have no value, unless `partial`, and all that
        `result` raises where there is none at all.
        """
        task, board = self.follow(job), self.get_board(job)
        given: set[int] = set()
        while True:
            over = task.done()
            fresh = [record for index, record in board.records.items() if index not in given]
            for record in sorted(fresh, key=lambda one: one.index):
                given.add(record.index)
                if record.cause is Cause.OK:
                    yield record.index, await asyncio.to_thread(load_value, self.store.blobs, record.output, copy=copy)
            if over:
                break
            if not fresh:
                await _first_of(task, board)
        task.result()
        try:
            await self.read(job, partial=partial, copy=copy)
        except JobFailed:
            if not (partial and given):
                raise

    def get_progress(self, job: bytes) -> Progress:
        """How far a job is."""
        board, task = self.get_board(job), self._followed.get(job)
        if task is None or task.done():
            self._fill(board, self.store.get(job), self.store.load_documents(job))
        return board.show()

    def metrics(self, job: bytes) -> list[dict[str, Any]]:
        """What the job has reported so far: once it is over from its logs, before from its live output."""
        row = self.store.get(job)
        if Phase(row.phase).is_over:
            return Reading(self.store, row, self.store.load_documents(job)).output[1]
        return list(self.get_board(job).metrics)

    async def logs(self, job: bytes | str) -> AsyncIterator[bytes]:
        """What a job (see `find`) wrote, as it comes, until it is over: reports are left out. Hostile text."""
        row = self.find(job)
        if Phase(row.phase).is_over:
            yield Reading(self.store, row, self.store.load_documents(row.id)).output[0].encode()
            return
        single = self.store.load_documents(row.id).spec.kind is Kind.RUN
        ends = Ended | Unmatched | Delivered if single else Ended | Unmatched
        readers: dict[bytes, ReportReader] = {}
        shown: dict[bytes, int] = {}
        broker, after, over = self.make_means(row).broker, 0, False
        while not over:
            page = await broker.events(row.id, after, POLL_MS)
            after = page.next
            over = any(isinstance(item, ends) for item in page.items)
            for item in page.items:
                if isinstance(item, Advanced):
                    known = shown.get(item.lease, 0)
                    fresh = item.log[max(0, known - item.log_offset) :]
                    shown[item.lease] = max(known, item.log_offset + len(item.log))
                    yield readers.setdefault(item.lease, ReportReader()).feed(fresh)[0]

    # ---- driving ----

    async def _follow(self, row: JobRow) -> None:
        """Drive a job to its end; while another process does, look on, and take over if that one dies."""
        shown, board = "", self.get_board(row.id)
        while not Phase(row.phase).is_over or row.phase == Phase.LOST:
            try:
                with self.store.own(row.id):
                    return await self._drive(row, board)
            except Unavailable as error:
                if error.rule != "folder.owned":
                    raise
            if row.phase != shown:
                shown = row.phase
                board.tell(News(NewsKind.PHASE, row.id.hex(), row.phase, text=row.text, rule=row.rule))
            await asyncio.sleep(STORE_SECONDS)
            row = self.store.get(row.id)
            self._look_on(board, row)

    def _look_on(self, board: Board, row: JobRow) -> None:
        """Another process drives: what it has put into the store is news here."""
        before = set(board.records)
        self._fill(board, row, self.store.load_documents(row.id))
        fresh = tuple(sorted(board.records.keys() - before))
        if fresh:
            board.tell(
                News(
                    NewsKind.SEGMENTS,
                    row.id.hex(),
                    indices=fresh,
                    done=len(board.records),
                    total=board.total,
                    cost=board.cost,
                    kept_until=board.kept_until,
                )
            )

    async def _drive(self, row: JobRow, board: Board) -> None:
        runner = JobRunner(self.make_means(row), row.id, board)
        try:
            await runner.start()
            await runner.wait(lambda phase: phase.is_over or phase is Phase.ACCEPTED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await runner.wait(lambda phase: phase.is_over)
        finally:
            await runner.close()
            board.move()

    # ---- cancelling ----

    async def cancel(self, job: bytes | str) -> str:
        """Stop a job (see `find`): at the broker, which awards nothing of it any more, and each of its live leases on
        the chain (row 6, with its fee).

        Returns what was done, in words. Raises `Refused` under `job.over` where there is nothing to stop.
        """
        row = self.find(job)
        if Phase(row.phase).is_over or row.phase == Phase.ACCEPTED:
            raise Refused(f"job {row.id.hex()[:16]} is {row.phase}; there is nothing to cancel", rule="job.over")
        means, documents = self.make_means(row), self.store.load_documents(row.id)
        body = Cancellation(row.id, self.signer.key, self.clock.now())
        failed: TallyError | None = None
        try:
            await means.broker.cancel(self.signer.sign(Tag.CANCELLATION, documents.chain, body))
        except (Refused, Unavailable) as error:
            failed = error
        ended, waiting = await self._cancel_leases(row.id, means, documents.chain)
        if ended:
            what = "the lease" if ended == 1 else f"{ended} leases"
            grace = documents.order.body.windows.grace // 1_000
            text = (
                f"the chain is ending {what}: for {grace} s the provider may hand in what it has done, then it "
                "gets the cancelling fee and the rest comes back"
            )
            return f"{text}; the broker did not answer ({failed})" if failed else text
        if waiting:
            return "the job is being cancelled already; the provider has a moment to hand in what it has done"
        if failed is not None:
            raise failed
        return "the broker has withdrawn the order; nothing is paid"

    async def _cancel_leases(self, job: bytes, means: Means, chain: bytes) -> tuple[int, int]:
        """(leases that are cancelled now, leases that were before). One that is just being opened is waited for."""
        ended: set[str] = set()
        deadline = asyncio.get_running_loop().time() + OPENING_SECONDS
        while True:
            live = await means.chain.leases(order=job, live=True)
            for lease in live:
                if lease.state != "cancelling" and lease.id not in ended:
                    await self._cancel_lease(means, chain, lease)
                    ended.add(lease.id)
            if not self._is_opening(job, live) or asyncio.get_running_loop().time() > deadline:
                return len(ended), len(live) - len(ended & {lease.id for lease in live})
            await asyncio.sleep(STORE_SECONDS)

    async def _cancel_lease(self, means: Means, chain: bytes, lease: LeaseView) -> None:
        until, salt = self.clock.now() + VALID_MS, secrets.token_bytes(16)
        await means.chain.submit(sign_transaction(self.signer, chain, Cancel(bytes.fromhex(lease.id)), until, salt))

    def _is_opening(self, job: bytes, live: Iterable[LeaseView]) -> bool:
        """Whether an award is known whose lease the chain has not shown yet, and may still."""
        known, now = {lease.id for lease in live}, self.clock.now()
        return any(
            papers.seen is None and papers.lease.hex() not in known and papers.award.body.valid_until > now
            for papers in self.store.load_documents(job).leases
        )


async def _first_of(task: asyncio.Task[None], board: Board) -> None:
    """Until something moves on the board, or the task ends."""
    moved = asyncio.ensure_future(board.moved())
    try:
        await asyncio.wait((task, moved), return_when=asyncio.FIRST_COMPLETED)
    finally:
        moved.cancel()
