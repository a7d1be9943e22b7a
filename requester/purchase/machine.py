"""The purchase machine: from a signed order to settlement, whatever of broker, provider and chain is gone (R2, R7, R9).

It believes nothing it hears: award, book and delivery pass the numbered checks, money is what final blocks say. What
passes is accepted at once, failed segments included (R9); what does not is never accepted. If the acceptance brings no
settlement, it settles by itself. Not here: dispute (orders carry panel size 0),
cancelling (the owner's act; its outcome is heard like any other), time, disk, network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from broker.protocol.api import (
    PROTOCOL_VERSION,
    Accepted,
    Advanced,
    Announced,
    Awarded,
    Closed,
    Delivered,
    Ended,
    JobEvent,
    Opened,
    Submission,
    Unmatched,
)
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Book
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Order, compute_order_id
from chain.ledger.terms.work import Acceptance, Span, compute_receipt_id
from requester.purchase import checks, deliveries, events
from requester.purchase.checking import require
from requester.purchase.documents import Documents
from requester.purchase.events import LeaseSeen, PurchaseEffect, PurchaseEvent
from requester.purchase.order import OPENING_MS
from requester.purchase.phases import LEASE_ENDS, LEASE_WORDS, Phase, Result

SETTLE_AFTER_MS = 5_000
"""How long the provider has to settle after our acceptance was handed on, before we do it."""

RESULT_WAIT_MS = 60_000
"""How long a result is waited for after the chain has settled the lease (silence, or a broker that is gone)."""

LAPSE_MARGIN_MS = 10_000
"""Beyond the last Instant at which a lease can open (R3 c): blocks and news take a moment."""

LATE = "the order did not reach the broker before its auction closed; nothing was paid; run the job again"
"""What is said of an order that is first sent when it is too late."""

FIRST_RETRY_MS = 500
LAST_RETRY_MS = 30_000
"""Pauses between tries double from the first to the last."""


class Purchase:
    """One order's machine. Rebuilt by replay: it holds nothing that its events did not bring.

    `signer` signs the acceptance; signing is deterministic, so a replay makes the same bytes.
    """

    def __init__(self, chain: bytes, signer: Signer, order: Signed[Order], spec: JobSpec) -> None:
        self.chain = chain
        self.order = order
        self.spec = spec
        self.order_id = compute_order_id(chain, order.body)
        self.submitted = self.announced = self.opened = self.posted = False
        self.after = 0
        self.book: Signed[Book] | None = None
        self.awarded: Awarded | None = None
        self.delivered: Delivered | None = None
        self.unmatched: Unmatched | None = None
        self.found: dict[bytes, int] = {}
        self.tried: frozenset[bytes] = frozenset()
        self.result = Result.NONE
        self.acceptance: Signed[Acceptance] | None = None
        self.lease: LeaseSeen | None = None
        self.rule = self.text = ""
        self._ended: Phase | None = None
        self._retry: str = ""
        self._pause = FIRST_RETRY_MS
        self._retry_at: int | None = None
        self._settle_at: int | None = None
        self._lapse_at: int | None = order.body.closes + OPENING_MS + LAPSE_MARGIN_MS
        self._lost_at: int | None = None
        self._signer = signer

    # ---- what the driver calls ----

    def handle(self, event: PurchaseEvent, now: int) -> Sequence[PurchaseEffect]:
        """Take one event (see `events`)."""
        return self._watched(lambda: self._take(event, now))

    def wake_at(self) -> int | None:
        """The next deadline: a retry, a settle of our own, a lapse, a result given up."""
        deadlines = (self._retry_at, self._settle_at, self._lapse_at, self._lost_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def wake(self, now: int) -> Sequence[PurchaseEffect]:
        """Settle all deadlines that are due."""
        return self._watched(lambda: self._settle_deadlines(now))

    # ---- what others read ----

    @property
    def phase(self) -> Phase:
        """Where the job stands, worked out from what is known; the chain's word outweighs the broker's."""
        if self.result is Result.REFUSED:
            return Phase.REFUSED
        if self._is_lease_over:
            return self._get_last_phase()
        if self.lease is None and self._ended is not None:
            return self._ended
        steps = (
            (self.acceptance is not None, Phase.ACCEPTED),
            (self.delivered is not None, Phase.DELIVERED),
            (self.opened or self.lease is not None, Phase.RUNNING),
            (self.awarded is not None, Phase.AWARDED),
            (self.announced, Phase.ANNOUNCED),
            (self.submitted, Phase.SENT),
        )
        return next((phase for reached, phase in steps if reached), Phase.SIGNED)

    @property
    def documents(self) -> Documents:
        """All that is known and signed, for the store. The proof is fetched and kept beside."""
        award, delivered = self.awarded, self.delivered
        return Documents(
            chain=self.chain,
            order=self.order,
            spec=self.spec,
            lease=b"" if award is None else award.lease,
            award=None if award is None else award.award,
            bid=None if award is None else award.bid,
            book=self.book,
            tried=tuple(sorted(self.tried)),
            unmatched=self.unmatched,
            delivery=None if delivered is None else delivered.delivery,
            storage=None if delivered is None else delivered.storage,
            acceptance=self.acceptance,
            seen=self.lease,
        )

    @property
    def _is_lease_over(self) -> bool:
        return self.lease is not None and self.lease.state in LEASE_ENDS

    def _get_last_phase(self) -> Phase:
        assert self.lease is not None
        if self.lease.state != "settled":
            return Phase.ENDED
        if self.result is Result.GOOD:
            return Phase.SETTLED
        return Phase.LOST if self._ended is Phase.LOST else Phase.DELIVERED

    # ---- one funnel ----

    def _watched(self, step: Callable[[], list[PurchaseEffect]]) -> list[PurchaseEffect]:
        """Run a step; if it moved the phase, tell."""
        before = self.phase
        effects = step()
        if self.phase is not before:
            effects.append(events.TellPhase(self.phase, self.rule, self.text))
        return effects

    def _take(self, event: PurchaseEvent, now: int) -> list[PurchaseEffect]:
        match event:
            case events.Restarted():
                return self._restart(now)
            case events.Heard():
                self.after = max(self.after, event.after)
                return self._hear(event.item, now)
            case events.Moved():
                return [events.TellProgress(event.item)]
            case events.LeaseSeen():
                return self._see(event, now)
            case _:
                return self._take_answer(event, now)

    def _take_answer(self, event: events.Answer, now: int) -> list[PurchaseEffect]:
        """What came of an effect."""
        match event:
            case events.Submitted():
                return self._take_submitted()
            case events.SubmitFailed():
                return self._take_refusal(event, now)
            case events.BlobsFetched():
                return self._take_blobs(event, now)
            case events.FetchFailed():
                return self._try_again("fetch", now, "broker.unavailable", event.text)
            case events.AcceptancePosted():
                return self._take_posted(now)
            case events.AcceptanceFailed():
                return [events.TellTrouble(event.rule, event.text), *self._settle(now)]
            case events.SettleFailed():
                return [events.TellTrouble(event.rule, event.text)]
            case _:
                assert_never(event)

    def _restart(self, now: int) -> list[PurchaseEffect]:
        """Ask again for all that is outstanding."""
        self._retry_at, self._pause = None, FIRST_RETRY_MS
        if self.phase.is_over and self._ended is not Phase.LOST:
            return []
        effects: list[PurchaseEffect] = [events.WatchChain()]
        effects.append(events.Listen(self.after) if self.submitted else self._submission())
        if self.result is Result.FETCHING:
            effects.append(self._fetch())
        if self.acceptance is not None and not self.posted:
            effects.append(events.PostAcceptance(self.acceptance))
        if self._ended is Phase.LOST:
            self._ended, self._lost_at = None, now + RESULT_WAIT_MS
        return effects

    # ---- sending the order ----

    def _submission(self) -> events.SubmitOrder:
        return events.SubmitOrder(Submission(PROTOCOL_VERSION, self.order, self.spec, ()))

    def _take_submitted(self) -> list[PurchaseEffect]:
        self.submitted, self._retry_at, self._pause = True, None, FIRST_RETRY_MS
        return [events.Listen(self.after), events.WatchChain()]

    def _take_refusal(self, event: events.SubmitFailed, now: int) -> list[PurchaseEffect]:
        if event.again:
            return self._try_again("submit", now, event.rule, event.text)
        if now > self.order.body.closes:
            self._end(Phase.REJECTED, "order.late", LATE)
        else:
            self._end(Phase.REJECTED, event.rule, event.text)
        return []

    def _try_again(self, what: str, now: int, rule: str, text: str) -> list[PurchaseEffect]:
        self._retry, self._retry_at = what, now + self._pause
        self._pause = min(self._pause * 2, LAST_RETRY_MS)
        return [events.TellTrouble(rule, text)]

    # ---- what the broker tells ----

    def _hear(self, item: JobEvent, now: int) -> list[PurchaseEffect]:
        match item:
            case Announced():
                self.announced = True
            case Closed():
                self.book = self.book or item.book
                return self._check_award()
            case Unmatched():
                self.unmatched = item
                self._end(Phase.UNMATCHED, "auction.unmatched", item.text)
            case Awarded():
                return self._take_award(item)
            case Opened():
                self.opened = True
            case Advanced():
                return [events.TellProgress(item)]
            case Delivered():
                return self._take_delivery(item)
            case Accepted():
                self.posted = self.posted or self.acceptance is not None
            case Ended():
                self._take_end(item)
            case _:
                assert_never(item)
        return []

    def _take_end(self, item: Ended) -> None:
        """The broker's last word counts only where the chain has none."""
        if self.opened or self.lease is not None or self._ended is not None:
            return
        phase = {"withdrawn": Phase.WITHDRAWN, "unmatched": Phase.UNMATCHED}.get(item.state, Phase.REJECTED)
        self._end(phase, f"job.{phase.value}", item.text)

    def _take_award(self, item: Awarded) -> list[PurchaseEffect]:
        """A second award stands for a first one that did not open; both are signed, so both stay known. Once a lease
        is open only its own award counts, whichever of chain and broker spoke first.
        """
        if item == self.awarded:
            return []
        if self.lease is not None and item.lease != self.lease.lease:
            self.tried |= {item.award.body.bid}
            return []
        if self.awarded is not None:
            if self.opened and self.lease is None:
                return []
            self.tried |= {self.awarded.award.body.bid}
        self.awarded = item
        return self._check_award()

    def _check_award(self) -> list[PurchaseEffect]:
        """Checks 1 to 19, as far as there is something to check."""
        if self.awarded is None:
            return []
        awarded = self.awarded
        facts = checks.AwardFacts(self.chain, self.order, self.spec, awarded.award, awarded.bid, awarded.lease)
        try:
            require(checks.AWARD_CHECKS, facts)
            if self.book is not None:
                award = awarded.award.body
                book_facts = checks.BookFacts(self.chain, self.order.body, award, self.book, self.tried)
                require(checks.BOOK_CHECKS, book_facts)
        except Refused as refused:
            return self._refuse(refused)
        return self._look_at_delivery()

    # ---- the delivery ----

    def _take_delivery(self, item: Delivered) -> list[PurchaseEffect]:
        if self.delivered is not None and self.result is not Result.NONE:
            return []
        self.delivered = item
        return self._look_at_delivery()

    def _look_at_delivery(self) -> list[PurchaseEffect]:
        """Check all that needs no blob, then ask for the blobs."""
        if self.delivered is None or self.awarded is None or self.book is None or self.result is not Result.NONE:
            return []
        try:
            require(deliveries.DELIVERY_CHECKS, self._facts())
        except Refused as refused:
            return self._refuse(refused)
        self.result = Result.FETCHING
        return [self._fetch()]

    def _facts(self) -> deliveries.DeliveryFacts:
        assert self.delivered is not None
        assert self.awarded is not None
        award, bid = self.awarded.award.body, self.awarded.bid.body
        delivery, storage = self.delivered.delivery, self.delivered.storage
        return deliveries.DeliveryFacts(
            self.chain, self.order.body, self.spec, award, bid, delivery, storage, self.found
        )

    def _fetch(self) -> events.FetchBlobs:
        assert self.delivered is not None
        limits = self.spec.resources
        largest = max(limits.output_bytes, deliveries.MAX_ERROR_BYTES, limits.log_bytes + deliveries.LOG_MARGIN)
        return events.FetchBlobs(deliveries.list_needed(self.delivered.delivery), largest)

    def _take_blobs(self, event: events.BlobsFetched, now: int) -> list[PurchaseEffect]:
        if self.result is not Result.FETCHING:
            return []
        self.found = {found.digest: found.size for found in event.found}
        try:
            require(deliveries.BLOB_CHECKS, self._facts())
        except Refused as refused:
            return self._refuse(refused)
        self.result, self._retry_at, self._lost_at, self._pause = Result.GOOD, None, None, FIRST_RETRY_MS
        return [] if self._is_lease_over else self._accept(now)

    def _accept(self, now: int) -> list[PurchaseEffect]:
        """R7: every segment of a final receipt, so that anyone may submit the settle."""
        receipt = self._facts().receipt
        body = Acceptance(
            lease=receipt.lease,
            receipt=compute_receipt_id(self.chain, receipt),
            signer=self._signer.key,
            segments=(Span(receipt.first, receipt.count),),
            release=False,
        )
        self.acceptance = self._signer.sign(Tag.ACCEPTANCE, self.chain, body)
        self._settle_at = now + SETTLE_AFTER_MS
        return [events.PostAcceptance(self.acceptance)]

    def _refuse(self, refused: Refused) -> list[PurchaseEffect]:
        self.result, self.rule, self.text = Result.REFUSED, refused.rule, refused.message
        self._retry_at = self._lost_at = None
        return []

    # ---- settling ----

    def _take_posted(self, now: int) -> list[PurchaseEffect]:
        self.posted = True
        if self._settle_at is not None:
            self._settle_at = now + SETTLE_AFTER_MS
        return []

    def _settle(self, now: int) -> list[PurchaseEffect]:
        """Submit the settle ourselves, and again later, until the chain shows the lease over."""
        if self.acceptance is None or self.delivered is None or self._is_lease_over:
            self._settle_at = None
            return []
        self._settle_at = now + LAST_RETRY_MS
        return [events.SubmitSettle(self.delivered.delivery.receipt, self.acceptance)]

    def _see(self, event: LeaseSeen, now: int) -> list[PurchaseEffect]:
        """The chain's word on a lease of this order. An older view never replaces a newer one."""
        if self.lease is not None and (self._is_lease_over or event.height < self.lease.height):
            return []
        self.lease, self._lapse_at = event, None
        self.opened = True
        if self._is_lease_over:
            return self._finish(event, now)
        return []

    def _finish(self, event: LeaseSeen, now: int) -> list[PurchaseEffect]:
        self._settle_at = None
        if event.state != "settled":
            if self.result is not Result.REFUSED:
                self.rule, self.text = f"lease.{event.state}", LEASE_WORDS.get(event.state, event.state)
            self._retry_at = None
        elif self.result in (Result.NONE, Result.FETCHING):
            self._lost_at = now + RESULT_WAIT_MS
        return [events.KeepProof(event.tx)] if event.tx else []

    # ---- deadlines ----

    def _settle_deadlines(self, now: int) -> list[PurchaseEffect]:
        effects: list[PurchaseEffect] = []
        if self._lapse_at is not None and self._lapse_at <= now:
            self._lapse_at = None
            self._lapse(now)
        if self._lost_at is not None and self._lost_at <= now:
            self._lost_at = None
            self._end(Phase.LOST, "result.missing", "the lease is settled, but the result could not be had so far")
        if self._settle_at is not None and self._settle_at <= now:
            effects += self._settle(now)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            effects += self._retry_now()
        return effects

    def _lapse(self, now: int) -> None:
        """No lease on the chain in time. Where the broker says that one is open, the chain has until the expiry to
        show it: we may be the ones who do not reach it.
        """
        if self.opened and now < self.order.body.expiry:
            self._lapse_at = self.order.body.expiry
        else:
            self._end(Phase.LAPSED, "order.lapsed", "no lease was opened in time; nothing was paid")

    def _retry_now(self) -> list[PurchaseEffect]:
        if self._retry == "submit":
            return [] if self.submitted or self._ended is not None else [self._submission()]
        return [self._fetch()] if self.result is Result.FETCHING else []

    def _end(self, phase: Phase, rule: str, text: str) -> None:
        if self._ended is None and self.result is not Result.REFUSED:
            self._ended, self.rule, self.text = phase, rule, text
            self._lapse_at = None
