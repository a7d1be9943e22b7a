"""The desk: one driver per order, and everything that requesters and providers ask of an order.

It turns what comes in into events and carries out effects; every decision is the auction's. What must survive is in the
machine's journal or in the blob store before anybody hears of it. A job that is over is put into the archive, then its
journal is dropped: in this order, so that a kill between the two only repeats the first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, assert_never

from broker.auction.admission import (
    EMPTY,
    Acceptable,
    House,
    Means,
    check_acceptance,
    check_cancellation,
    check_delivery,
    check_sizes,
    check_submission,
    compute_delivery_id,
    list_delivered_blobs,
)
from broker.auction.estimate import estimate, show_provider
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    Announce,
    AuctionEffect,
    AuctionEvent,
    Cancelled,
    DeliveryArrived,
    Finish,
    GrantInputs,
    Inquire,
    LeaseChanged,
    Notify,
    OrderPosted,
    PassAcceptance,
    PublishAward,
    PublishBook,
    Restarted,
    StoreStorageReceipt,
    SubmitCall,
    SubmitExtend,
    SubmitOpen,
    Surveyed,
    WatchLease,
    Withdraw,
)
from broker.auction.lots import Lot
from broker.auction.machine import Auction, Phase
from broker.auction.matching import survey
from broker.bus.protocol import Bus
from broker.protocol import topics
from broker.protocol.api import (
    INLINE_BYTES,
    PROTOCOL_VERSION,
    Cancellation,
    Delivery,
    Enquiry,
    Estimate,
    JobSummary,
    ProviderView,
    Submission,
)
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Offer
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.directory import Directory
from broker.service.jobs import Archive, Job, LiveJob
from broker.service.ledgerside import LedgerSide
from broker.service.settings import HOUR, MAX_LIVE, MAX_LIVE_EACH, UPLOAD_GRACE
from chain.base.codec import encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import compute_digest, show_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import compute_order_id
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.runtime.clock import Clock
from chain.runtime.driver import Driver
from chain.runtime.journal import Journal
from chain.runtime.logs import get_logger, show_job

ANNOUNCE_EXPIRY_S = 10
"""Seconds after which the MQTT server forgets what it could not deliver of an auction."""

LONGEST_HOLD = 90 * 24 * HOUR
"""Code and inputs are kept until the order's expiry, but no longer than this."""

MAX_RECORDS = 1_000_000
"""Segment records of all live jobs together, about one gigabyte in memory; deliveries beyond wait."""

LISTED = 500
"""Jobs in a requester's list."""


@dataclass(frozen=True)
class Parts:
    """What the desk works with."""

    signer: Signer
    house: House
    clock: Clock
    journal: Journal
    archive: Archive
    blobs: BlobStore
    custody: Custody
    ledger: LedgerSide
    bus: Bus
    directory: Directory


class Desk:
    """All jobs of this broker."""

    def __init__(self, parts: Parts) -> None:
        self.live: dict[bytes, LiveJob] = {}
        self._parts = parts
        self._leases: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("desk")
        parts.ledger.report = self._report

    async def start(self) -> None:
        """Rebuild every job from its journal; each then asks again for what is outstanding."""
        for name in self._parts.journal.names():
            job = self._make(bytes.fromhex(name))
            job.driver.replay()
            job.refresh()
            self._index(job)
            self._hold_inputs(job)
        for job in list(self.live.values()):
            job.driver.post(Restarted())

    async def close(self) -> None:
        """Stop all machines; nothing is lost."""
        for job in list(self.live.values()):
            await job.driver.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What requesters ask

    async def submit(self, account: bytes, submission: Submission) -> bytes:
        """Take an order and announce it; returns its id. Once taken, the same order again is no error."""
        parts, order = self._parts, submission.order.body
        if submission.version != PROTOCOL_VERSION:
            raise Refused(
                f"version {submission.version}; this broker speaks {PROTOCOL_VERSION}", rule="protocol.version"
            )
        if order.requester != account:
            raise Refused("the request is not signed by the order's requester", rule="order.requester")
        order_id = compute_order_id(parts.house.chain, order)
        if self.find(order_id) is not None:
            return order_id
        self._check_load(account)
        await self._check_funds()
        balance = await parts.ledger.get_balance(account)
        if balance == 0:
            raise Refused("only an account with a balance places orders; get some credits first", rule="order.account")
        means = Means(balance, self._compute_promised(account))
        check_submission(parts.house, submission, means, parts.clock.now())
        wanted = _list_inputs(submission.spec)
        await self.store_inline(account, submission.blobs, wanted)
        self._check_inputs(submission.spec, account)
        now = parts.clock.now()
        until = min(order.expiry, now + LONGEST_HOLD) + parts.house.retention
        parts.custody.extend(wanted, account, until)
        if order.watcher is not None:
            parts.custody.grant(wanted, order.watcher, until)
        if order_id not in self.live:
            found = survey(self.list_offers(), order, submission.spec, now)
            means = Means(balance, self._compute_promised(account))
            job = self._make(order_id)
            self._post(job, OrderPosted(submission.order, submission.spec, found, means))
        return order_id

    async def cancel(self, account: bytes, order_id: bytes, signed: Signed[Cancellation]) -> None:
        """Take an order back: nothing more of it is awarded. Leases that stand end by the chain's `Cancel`."""
        job = self._get(order_id, account)
        if not isinstance(job, LiveJob):
            raise Refused("the job is over", rule="auction.open")
        check_cancellation(self._parts.house.chain, job.auction.order, order_id, signed)
        if not job.auction.cancelled:
            self._post(job, Cancelled(signed))

    async def accept(self, account: bytes, lease: bytes, signed: Signed[Acceptance]) -> None:
        """Pass an acceptance on."""
        job = self.get_lease(lease)
        if account not in (job.requester, job.watcher):
            raise Refused("not your lease", rule="lease.party")
        job, lot = _get_live(job, lease)
        acceptable = Acceptable(lot.ranges, lot.accepted)
        check_acceptance(self._parts.house.chain, job.auction.order, lease, acceptable, signed)
        if signed not in lot.accepted:
            self._post(job, AcceptanceArrived(signed))

    async def estimate(self, account: bytes, enquiry: Enquiry) -> Estimate:
        """What the market would say to an order, for an account with a balance."""
        if not await self._parts.ledger.is_known(account):
            raise Refused("only an account with a balance asks for estimates; get some credits", rule="order.account")
        return estimate(self.list_offers(), enquiry.order, enquiry.spec, self._parts.clock.now())

    def list_providers(self) -> list[ProviderView]:
        """Providers that offer now."""
        return [show_provider(offer) for offer in self.list_offers()]

    def list_offers(self) -> list[Offer]:
        """Offers of registered providers that stand now."""
        parts = self._parts
        standing = parts.directory.list_standing(parts.clock.now())
        return [one for one in standing if parts.ledger.knows_provider(one.provider)]

    def list_jobs(self, account: bytes) -> list[JobSummary]:
        """A requester's jobs, newest first."""
        live = [job.summarize() for job in self.live.values() if job.requester == account]
        known = {one.order for one in live}
        old = [one for one in self._parts.archive.summarize(account, LISTED) if one.order not in known]
        return sorted([*live, *old], key=lambda one: one.posted, reverse=True)[:LISTED]

    def get_job(self, account: bytes, order_id: bytes) -> Job:
        """A job whose requester or watcher asks; raises `Refused` (`job.unknown`), whether it is a stranger's or not
        there.
        """
        return self._get(order_id, account)

    # What providers ask

    async def deliver(self, account: bytes, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        """Take a receipt; returns our storage receipt once all that it names lies on our disk. The same receipt again
        gets the same answer.
        """
        chain, job = self._parts.house.chain, self.get_lease(lease)
        if account != job.leases[lease]:
            raise Refused("only the lease's provider delivers", rule="lease.party")
        receipt = compute_delivery_id(chain, delivery)
        given = job.find_storage(receipt)
        if given is not None:
            return given
        job, lot = _get_live(job, lease)
        if lot.cut or not lot.is_live:
            raise Refused("the lease is over, or its rest is offered to others", rule="lease.over")
        kept = check_delivery(chain, lot.agreed, lot.handed, delivery, self._parts.clock.now())
        if sum(one.count_records() for one in self.live.values()) + len(kept.records) > MAX_RECORDS:
            raise Unavailable(f"{MAX_RECORDS} records are in memory; try later", rule="delivery.busy")
        named = list_delivered_blobs(kept)
        await self.store_inline(account, delivery.blobs, named)
        sizes = self._parts.custody.measure_sent(named, account)
        check_sizes(job.auction.spec, lot.part.count, kept, sizes)
        self._post(job, DeliveryArrived(lease, kept, sum(sizes.values())))
        storage = lot.receipts.get(receipt)
        if storage is None:
            raise Refused("the lease ended, or another receipt came first", rule="lease.over")
        return storage

    async def store_inline(self, account: bytes, blobs: Iterable[bytes], wanted: Iterable[bytes]) -> None:
        """Store blobs that came inside a message, as far as it names them."""
        given = {compute_digest(blob): blob for blob in blobs}
        if sum(map(len, given.values())) > INLINE_BYTES:
            raise Refused(f"at most {INLINE_BYTES} bytes ride inside a message", rule="blob.inline")
        parts = self._parts
        sizes = {digest: len(given[digest]) for digest in set(wanted) & set(given)}
        if sizes:
            with parts.custody.room(account, sum(sizes.values())), parts.blobs.arriving(sizes):
                await parts.blobs.write_many({digest: given[digest] for digest in sizes})
                parts.custody.hold(sizes, account, parts.clock.now() + UPLOAD_GRACE)

    # Lookups

    def find(self, order_id: bytes) -> Job | None:
        """A job, live or over."""
        return self.live.get(order_id) or self._parts.archive.find(order_id)

    def get_lease(self, lease: bytes) -> Job:
        """The job of a lease, live or over; raises `Refused` (`lease.unknown`)."""
        found = self.find_live_lease(lease) or self._parts.archive.find_lease(lease)
        if found is None:
            raise Refused("this broker knows no such lease", rule="lease.unknown")
        return found

    def find_live_lease(self, lease: bytes) -> LiveJob | None:
        """The live job whose lease this is."""
        order_id = self._leases.get(lease)
        return self.live.get(order_id) if order_id else None

    def get_live(self, order_id: bytes) -> LiveJob | None:
        """A job that is not over."""
        return self.live.get(order_id)

    def post(self, order_id: bytes, event: AuctionEvent) -> None:
        """Tell a live job something; what is over hears nothing."""
        job = self.live.get(order_id)
        if job is not None and job.driver.failed is None:
            job.driver.post(event)

    def collecting(self) -> Iterator[LiveJob]:
        """Jobs whose auction is open."""
        return (job for job in list(self.live.values()) if job.auction.phase is Phase.COLLECTING)

    def _get(self, order_id: bytes, account: bytes) -> Job:
        job = self.find(order_id)
        if job is None or account not in (job.requester, job.watcher):
            raise Refused("this broker knows no such job of yours", rule="job.unknown")
        return job

    # Checks that need more than the order

    def _check_load(self, account: bytes) -> None:
        if len(self.live) >= MAX_LIVE:
            raise Unavailable(f"{MAX_LIVE} orders are live; try later", rule="order.busy")
        if sum(job.requester == account for job in self.live.values()) >= MAX_LIVE_EACH:
            raise Unavailable(f"{MAX_LIVE_EACH} orders of this account are live; try later", rule="order.busy")
        self._parts.custody.check_outputs(account)

    async def _check_funds(self) -> None:
        ledger = self._parts.ledger
        if ledger.note:
            await ledger.check_funds()
        if ledger.note:
            raise Unavailable(ledger.note, rule="broker.funds")

    def _compute_promised(self, account: bytes) -> int:
        return sum(job.auction.promised for job in self.live.values() if job.requester == account)

    def _check_inputs(self, spec: JobSpec, account: bytes) -> None:
        custody = self._parts.custody
        for digest, size in ((spec.code, spec.code_bytes), (spec.inputs, spec.input_bytes)):
            held = 0 if digest == EMPTY else custody.get_size(digest, account)
            if held is None:
                raise Refused(f"{show_digest(digest)} was not uploaded by this account", rule="blob.missing")
            if held != size:
                why = f"{show_digest(digest)} has {held} bytes, the job spec says {size}"
                raise Refused(why, rule="order.blobs")

    # Machines

    def _make(self, order_id: bytes) -> LiveJob:
        parts = self._parts
        auction = Auction(parts.signer, parts.house)
        driver: Driver[AuctionEvent, AuctionEffect] = Driver(
            order_id.hex(),
            auction,
            lambda effect: self._perform(order_id, effect),
            journal=parts.journal,
            events=AuctionEvent,
            restarted=Restarted(),
            clock=parts.clock,
        )
        job = LiveJob(order_id, auction, driver)
        self.live[order_id] = job
        return job

    def _post(self, job: LiveJob, event: AuctionEvent) -> None:
        job.driver.post(event)
        if job.driver.failed is not None:
            raise Fault("the machine of this order has stopped; see the broker's log", rule="auction.failed")

    def _report(self, lease: bytes, event: LeaseChanged) -> None:
        order_id = self._leases.get(lease)
        if order_id is not None:
            self.post(order_id, event)

    def _index(self, job: LiveJob) -> None:
        for lease in job.leases:
            self._leases[lease] = job.order_id

    def _perform(self, order_id: bytes, effect: AuctionEffect) -> Coroutine[Any, Any, AuctionEvent | None] | None:
        ledger, job = self._parts.ledger, self.live[order_id]
        match effect:
            case Announce() | PublishBook() | Withdraw() | PublishAward() | Acknowledge() | PassAcceptance():
                return self._publish(*self._address(effect))
            case SubmitOpen() | SubmitExtend() | SubmitCall():
                return ledger.submit(effect)
            case Inquire():
                return self._answer(job, effect)
            case WatchLease(lease=lease):
                ledger.watch(lease)
            case GrantInputs(provider=provider, digests=digests, until=until):
                self._parts.custody.grant([one for one in digests if one != EMPTY], provider, until)
            case StoreStorageReceipt():
                self._keep(job, effect)
            case Notify():
                job.refresh()
                self._index(job)
                self._log.info("job", job=show_job(order_id), state=job.state)
            case Finish():
                task = asyncio.get_running_loop().create_task(self._put_away(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                assert_never(effect)
        return None

    def _address(
        self, effect: Announce | PublishBook | Withdraw | PublishAward | Acknowledge | PassAcceptance
    ) -> tuple[str, Any]:
        """Topic and message."""
        chain = self._parts.house.chain
        match effect:
            case Announce(announcement=signed, provider=provider) | PublishAward(award=signed, provider=provider):
                return topics.orders(chain) if provider is None else topics.down(chain, provider), signed
            case PublishBook(book=signed) | Withdraw(withdrawal=signed):
                return topics.orders(chain), signed
            case Acknowledge(acknowledgement=signed, provider=to) | PassAcceptance(acceptance=signed, provider=to):
                return topics.down(chain, to), signed
            case _:
                assert_never(effect)

    def _hold_inputs(self, job: LiveJob) -> None:
        """Say again who holds code and inputs, in case a power cut took it."""
        auction, parts = job.auction, self._parts
        if auction.phase is not Phase.NEW:
            order, spec = auction.order, auction.spec
            until = min(order.expiry, auction.posted + LONGEST_HOLD) + parts.house.retention
            sizes = {digest: parts.blobs.measure(digest) for digest in _list_inputs(spec)}
            there = {digest: size for digest, size in sizes.items() if size is not None}
            parts.custody.hold(there, order.requester, until)

    def _keep(self, job: LiveJob, effect: StoreStorageReceipt) -> None:
        """Outputs are kept for the requester, whose watcher may read them too."""
        custody, auction = self._parts.custody, job.auction
        sizes = {digest: self._parts.blobs.measure(digest) or 0 for digest in effect.blobs}
        custody.hand_over(sizes, auction.lots[effect.lease].provider, auction.order.requester, effect.until)
        if auction.order.watcher is not None:
            custody.grant(effect.blobs, auction.order.watcher, effect.until)

    async def _answer(self, job: LiveJob, effect: Inquire) -> Surveyed:
        """Who fits the next round."""
        auction = job.auction
        found = survey(self.list_offers(), auction.order, auction.spec, self._parts.clock.now(), effect.segments)
        return Surveyed(effect.round, found)

    async def _publish(self, topic: str, signed: Any) -> None:
        with contextlib.suppress(Unavailable):
            try:
                await self._parts.bus.publish(topic, encode(signed), expiry_s=ANNOUNCE_EXPIRY_S)
            except Refused as error:
                self._log.error("a message could not be sent", rule=error.rule, why=error.message)

    async def _put_away(self, job: LiveJob) -> None:
        parts = self._parts
        for lease in job.leases:
            parts.ledger.unwatch(lease)
        parts.custody.flush()
        parts.archive.add(job, parts.clock.now())
        parts.journal.drop(job.driver.name)
        self.live.pop(job.order_id, None)
        for lease in [one for one, order_id in self._leases.items() if order_id == job.order_id]:
            del self._leases[lease]
        job.refresh()
        await job.driver.close()


def _get_live(job: Job, lease: bytes) -> tuple[LiveJob, Lot]:
    """The lot of a lease whose job is not over; raises `Refused` (`lease.over`)."""
    if not isinstance(job, LiveJob):
        raise Refused("the lease is over", rule="lease.over")
    return job, job.auction.lots[lease]


def _list_inputs(spec: JobSpec) -> tuple[bytes, ...]:
    return tuple(digest for digest in (spec.code, spec.inputs) if digest != EMPTY)
