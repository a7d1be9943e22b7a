"""One lease of a job as its requester follows it: award, receipts, blobs, acceptance, end (R5, R7, R9).

A delivery that its provider did not sign, or that does not fit, is the teller's doing: it raises `CheckFailed` with
that blame and changes nothing, so that the genuine one can still come. One that its provider signed and that is wrong
refuses the lease for good. Not here: whether the award was right (`machine`), what the job comes to (`outcome`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from broker.protocol.api import Accepted, Awarded, Delivered, Failed, Left, Opened
from broker.protocol.jobs import JobSpec
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.base.units import compute_share
from chain.ledger.terms.agreement import Order
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import (
    Acceptance,
    Receipt,
    SegmentRecord,
    Span,
    StorageReceipt,
    compute_receipt_id,
    is_final,
)
from requester.purchase import deliveries, events
from requester.purchase.checking import Blame, CheckFailed, require, require_told
from requester.purchase.deliveries import DeliveryFacts, Prefix
from requester.purchase.documents import LeasePapers
from requester.purchase.events import LeaseSeen, PurchaseEffect
from requester.purchase.order import OPENING_MS
from requester.purchase.phases import LEASE_ENDS, Phase

SETTLE_AFTER_MS = 5_000
"""How long the provider has to settle after our acceptance was handed on, before we do it."""

RESULT_WAIT_MS = 60_000
"""How long a result is waited for after the chain has settled the lease (silence, or a broker that is gone)."""

LAPSE_MARGIN_MS = 10_000
"""Beyond the last Instant at which a lease can open (R3 c): blocks and news take a moment."""

FIRST_RETRY_MS = 500
LAST_RETRY_MS = 30_000
"""Pauses between tries double from the first to the last."""

MAX_HELD = 64
"""Deliveries of one lease kept until its award is checked, or until those before them have come. An honest broker
tells them in their order, so that more wait only if it leaves one out.
"""


@dataclass(frozen=True)
class Mandate:
    """What was ordered, and the key that accepts. `items` are the digests of a `map`'s items."""

    chain: bytes
    order: Signed[Order]
    order_id: bytes
    spec: JobSpec
    items: tuple[bytes, ...]
    signer: Signer = field(compare=False)


class Lot:
    """One lease. It may be heard of first from the chain: then `awarded` is None until the broker tells its award."""

    def __init__(self, mandate: Mandate, lease: bytes) -> None:
        self.mandate = mandate
        self.lease = lease
        self.awarded: Awarded | None = None
        self.round = 0
        self.checked = self.opened = self.lapsed = self.lost = self.posted = self.cancelled = False
        self.failed = self.waits = self.rule = self.text = ""
        self.left: Left | None = None
        self.seen: LeaseSeen | None = None
        self.prefix = Prefix()
        self.receipts: dict[int, tuple[Signed[Receipt], Signed[StorageReceipt]]] = {}
        self.failures: dict[int, Cause] = {}
        self.records: list[SegmentRecord] = []
        self.good = 0
        self.acceptance: Signed[Acceptance] | None = None
        self.retry_at: int | None = None
        self.settle_at: int | None = None
        self.lapse_at: int | None = None
        self.lost_at: int | None = None
        self._steps: list[DeliveryFacts] = []
        self._found: dict[bytes, int] = {}
        self._held: list[Delivered] = []
        self._pause = FIRST_RETRY_MS

    # ---- what others read ----

    @property
    def is_refused(self) -> bool:
        """Whether a check failed that its signer answers for: nothing of this lease is ever accepted."""
        return bool(self.rule)

    @property
    def is_over(self) -> bool:
        """Whether the chain says that the lease has ended."""
        return self.seen is not None and self.seen.state in LEASE_ENDS

    @property
    def is_gone(self) -> bool:
        """Whether the award came to nothing: the chain refused it, or never showed its lease in time."""
        return self.seen is None and not self.is_refused and (bool(self.failed) or self.lapsed)

    @property
    def is_settled(self) -> bool:
        """Whether segments of it were paid for."""
        return self.seen is not None and self.seen.state == "settled"

    @property
    def is_good(self) -> bool:
        """Whether it was paid for and every result that was is here."""
        return self.seen is not None and self.is_settled and self.good >= self.seen.served

    @property
    def is_resolved(self) -> bool:
        """Whether nothing more is waited for."""
        if self.is_gone or self.is_refused:
            return True
        return self.is_over and (not self.is_settled or self.is_good or self.lost)

    @property
    def span(self) -> Span:
        """Its range as awarded."""
        if self.awarded is not None:
            return Span(self.awarded.award.body.first, self.awarded.award.body.count)
        assert self.seen is not None
        return Span(self.seen.first, self.seen.count)

    @property
    def taken(self) -> Span:
        """The segments that it keeps from others at present (R2): by the chain, or by what the broker said of it."""
        span = self.span
        if self.is_gone:
            return Span(span.first, 0)
        count = span.count if self.seen is None else self.seen.held
        if self.seen is not None and self.is_over:
            count = self.seen.served if self.is_settled else 0
        if self.left is not None:
            count = min(count, self.left.served)
        return Span(span.first, count)

    @property
    def cost(self) -> int:
        """What it has of the mandate at present: locked or spent (R2), price and commission."""
        if self.awarded is None or self.is_gone:
            return 0
        award = self.awarded.award.body
        price = award.price * (award.count if self.seen is not None else self.taken.count)
        return price + compute_share(price, award.commission) - (self.seen.refunded if self.seen is not None else 0)

    @property
    def final(self) -> tuple[Signed[Receipt], Signed[StorageReceipt]] | None:
        """The verified receipt that nothing can follow: of the whole range, by a cause of R9, or of just what the chain
        still holds after the lease was cut (rows 7, 10, 12).
        """
        held = self.span.count if self.seen is None else self.seen.held
        for count in (held, self.prefix.count):
            if count in self.receipts and is_final(self.receipts[count][0].body, held):
                return self.receipts[count]
        return None

    @property
    def stage(self) -> Phase:
        """Where it stands while it is not resolved."""
        steps = (
            (self.acceptance is not None, Phase.ACCEPTED),
            (self.is_settled or bool(self.receipts and self.final), Phase.DELIVERED),
            (self.opened or self.seen is not None, Phase.RUNNING),
        )
        return next((phase for reached, phase in steps if reached), Phase.AWARDED)

    @property
    def papers(self) -> LeasePapers:
        """All that is known and signed, for the store. Needs an award. Proofs are fetched and kept beside."""
        assert self.awarded is not None
        receipt, storage = self._choose_receipt() or (None, None)
        return LeasePapers(
            lease=self.lease,
            round=self.round,
            award=self.awarded.award,
            bid=self.awarded.bid,
            receipt=receipt,
            storage=storage,
            acceptance=self.acceptance,
            seen=self.seen,
        )

    def _choose_receipt(self) -> tuple[Signed[Receipt], Signed[StorageReceipt]] | None:
        """The accepted receipt, else the one on the chain, else the shortest that covers what was paid for, else the
        longest. None where the lease ended unpaid: then no receipt counts.
        """
        if self.is_over and not self.is_settled:
            return None
        wanted = self.acceptance.body.receipt if self.acceptance else self.seen.receipt if self.seen else b""
        for receipt, storage in self.receipts.values():
            if compute_receipt_id(self.mandate.chain, receipt.body) == wanted:
                return receipt, storage
        served = self.seen.served if self.seen is not None and self.is_settled else 0
        covering = [count for count in self.receipts if served and count >= served]
        return self.receipts.get(min(covering, default=max(self.receipts, default=0)))

    # ---- the award ----

    def take_award(self, item: Awarded) -> None:
        """Its award, signed by the auctioneer (checked before)."""
        self.awarded = item
        if self.seen is None:
            award = item.award.body
            self.lapse_at = min(award.valid_until, award.closed + OPENING_MS) + LAPSE_MARGIN_MS

    def pass_award(self, now: int) -> list[PurchaseEffect]:
        """The award is right: what was delivered so far can be looked at."""
        self.checked, self.waits = True, ""
        return self._look_again(now)

    def refuse(self, refused: Refused) -> None:
        """Never accept anything of this lease, whatever becomes of it."""
        self.rule, self.text = refused.rule, refused.message
        self.retry_at = self.lost_at = self.settle_at = self.lapse_at = None
        self._steps, self._held = [], []

    def take_word(self, item: Failed | Opened | Left | Accepted) -> bool:
        """What the broker says of the lease; whether it is news."""
        before = (self.failed, self.opened, self.left, self.posted)
        match item:
            case Failed():
                self.failed = item.rule or "refused"
            case Opened():
                self.opened = True
            case Left():
                self.left = item
            case Accepted():
                self.posted = self.posted or self.acceptance is not None
            case _:
                assert_never(item)
        return before != (self.failed, self.opened, self.left, self.posted)

    # ---- deliveries ----

    @property
    def held(self) -> int:
        """Deliveries that wait, and the records they bring."""
        return sum(1 + len(item.delivery.records) for item in self._held)

    def has_to_wait(self, item: Delivered) -> bool:
        """Whether a delivery can't be looked at before its award is checked, or those before it have come."""
        return not self.checked or item.delivery.since > self.prefix.count

    def take_delivery(self, item: Delivered, now: int) -> list[PurchaseEffect] | None:
        """A prefix, or the whole: check all that needs no blob, then ask for the blobs. None where it brings nothing.

        Raises `CheckFailed`: by its blame the delivery is to be ignored or the lease to be refused.
        """
        if self.is_refused or self._is_known(item) or (self.is_over and not self.is_settled):
            return None
        if self.has_to_wait(item):
            return [] if self.hold(item) else None
        effects = self._take_prefix(item)
        return [*effects, *self._look_again(now)]

    def _is_known(self, item: Delivered) -> bool:
        """Whether a receipt this long or longer is here already, and this one is no better."""
        receipt = item.delivery.receipt.body
        if receipt.count != self.prefix.count or receipt.count not in self.receipts:
            return receipt.count < self.prefix.count
        present = self.receipts[receipt.count][0].body
        if receipt == present:
            return True
        on_chain = self.seen is not None and self.seen.receipt == compute_receipt_id(self.mandate.chain, receipt)
        return not on_chain and is_final(receipt, self.span.count) <= is_final(present, self.span.count)

    def hold(self, item: Delivered) -> bool:
        """Keep a delivery until it can be looked at; False where it is known or there are too many."""
        if len(self._held) >= MAX_HELD or item in self._held:
            return False
        self._held.append(item)
        return True

    def _take_prefix(self, item: Delivered) -> list[PurchaseEffect]:
        facts = self._gather(item)
        require_told(deliveries.DELIVERY_CHECKS, facts)
        receipt, since = facts.body, self.prefix.count
        self.prefix = facts.after
        self.receipts[receipt.count] = (facts.receipt, facts.storage)
        self.failures |= {record.index: record.cause for record in facts.new if record.cause is not Cause.OK}
        self.records += facts.new
        self._steps.append(facts)
        kept: list[PurchaseEffect] = [events.KeepRecords(self.lease, since, facts.new)] if facts.new else []
        return [*kept, *(self.fetch() if len(self._steps) == 1 else [])]

    def _gather(self, item: Delivered) -> DeliveryFacts:
        assert self.awarded is not None
        mandate, delivery = self.mandate, item.delivery
        return DeliveryFacts(
            chain=mandate.chain,
            order=mandate.order.body,
            spec=mandate.spec,
            award=self.awarded.award.body,
            bid=self.awarded.bid.body,
            receipt=delivery.receipt,
            storage=item.storage,
            since=delivery.since,
            records=delivery.records,
            items=mandate.items,
            before=self.prefix,
            found=self._found,
        )

    def _look_again(self, now: int) -> list[PurchaseEffect]:
        """What was held back may fit by now."""
        effects: list[PurchaseEffect] = []
        held, self._held = self._held, []
        for item in held:
            try:
                effects += self.take_delivery(item, now) or []
            except CheckFailed as failed:
                if failed.blame is Blame.SIGNER:
                    raise
                effects.append(events.TellTrouble(failed.rule, failed.message))
        return effects

    # ---- blobs ----

    def fetch(self) -> list[PurchaseEffect]:
        """Ask for blobs of the earliest delivery that lacks some, as many as go into one request."""
        if not self._steps:
            return []
        needed = self._list_missing()[: events.MAX_FETCH]
        largest = deliveries.compute_largest(self.mandate.spec, self.span.count)
        return [events.FetchBlobs(self.lease, tuple(needed), largest)]

    def _list_missing(self) -> list[bytes]:
        step = self._steps[0]
        return [digest for digest in deliveries.list_needed(step.body, step.new) if digest not in self._found]

    def take_blobs(self, event: events.BlobsFetched, now: int) -> list[PurchaseEffect]:
        """Once all blobs of a delivery are here its segments can be used. What the broker does not give, though it
        signed that it holds it, is asked for again. Raises `CheckFailed` for a blob that is not as agreed.
        """
        if not self._steps:
            return []
        asked = self._list_missing()[: events.MAX_FETCH]
        self._found |= {found.digest: found.size for found in event.found if found.digest in asked}
        if any(digest not in self._found for digest in asked):
            text = f"the broker does not give {sum(one not in self._found for one in asked)} blobs that it holds"
            return self.try_again(now, "blob.missing", text)
        self.retry_at, self._pause = None, FIRST_RETRY_MS
        if self._list_missing():
            return self.fetch()
        return self._finish_step(now)

    def _finish_step(self, now: int) -> list[PurchaseEffect]:
        step = self._steps[0]
        require(deliveries.BLOB_CHECKS, step)
        del self._steps[0]
        self.good, self._found = step.body.count, ({} if not self._steps else self._found)
        effects: list[PurchaseEffect] = [events.TellSegments(self.lease, step.new)] if step.new else []
        self.lost_at = None if self.is_good else self.lost_at
        return [*effects, *self.fetch(), *self.accept(now)]

    def try_again(self, now: int, rule: str, text: str) -> list[PurchaseEffect]:
        """Fetch later, after a growing pause."""
        if not self._steps:
            return []
        self.retry_at = now + self._pause
        self._pause = min(self._pause * 2, LAST_RETRY_MS)
        return [events.TellTrouble(rule, text)]

    # ---- accepting and settling ----

    def accept(self, now: int) -> list[PurchaseEffect]:
        """R7: every segment of a final receipt whose blobs are all here, so that anyone may submit the settle."""
        final = self.final if self.receipts else None
        if final is None or self.acceptance is not None or self.is_refused or self.is_over:
            return []
        receipt = final[0].body
        if self.good < receipt.count or any(step.receipt == final[0] for step in self._steps):
            return []
        body = Acceptance(
            lease=receipt.lease,
            receipt=compute_receipt_id(self.mandate.chain, receipt),
            signer=self.mandate.signer.key,
            segments=(Span(receipt.first, receipt.count),),
            release=False,
        )
        self.acceptance = self.mandate.signer.sign(Tag.ACCEPTANCE, self.mandate.chain, body)
        self.settle_at = now + SETTLE_AFTER_MS
        return [events.PostAcceptance(self.acceptance)]

    def take_posted(self, now: int) -> None:
        """The broker has our acceptance: the provider may settle."""
        self.posted = self.acceptance is not None
        if self.settle_at is not None:
            self.settle_at = now + SETTLE_AFTER_MS

    def settle(self, now: int) -> list[PurchaseEffect]:
        """Submit the settle ourselves, and again later, until the chain shows the lease over."""
        chosen = self._choose_receipt()
        if self.acceptance is None or chosen is None or self.is_over:
            self.settle_at = None
            return []
        self.settle_at = now + LAST_RETRY_MS
        return [events.SubmitSettle(chosen[0], self.acceptance)]

    # ---- the chain's word ----

    def see(self, event: LeaseSeen, now: int) -> list[PurchaseEffect] | None:
        """The chain's word. An older view never replaces a newer one: then None."""
        if self.seen is not None and (self.is_over or event.height < self.seen.height or event == self.seen):
            return None
        self.seen, self.opened, self.lapsed, self.lapse_at = event, True, False, None
        self.cancelled |= event.state in ("cancelling", "cancelled")
        if not self.is_over:
            return self.accept(now)
        self.settle_at = None
        if not self.is_settled:
            self.retry_at = None
            self._steps = []
        elif not self.is_good and not self.is_refused:
            self.lost_at = now + RESULT_WAIT_MS
        return [events.KeepProof(self.lease, event.tx)]

    # ---- time ----

    def wake_at(self) -> int | None:
        """The next deadline: a retry, a settle of our own, a lapse, a result given up."""
        deadlines = (self.retry_at, self.settle_at, self.lapse_at, self.lost_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def wake(self, now: int) -> list[PurchaseEffect]:
        """Settle all deadlines that are due."""
        effects: list[PurchaseEffect] = []
        if self.lapse_at is not None and self.lapse_at <= now:
            self._lapse(now)
        if self.lost_at is not None and self.lost_at <= now:
            self.lost_at, self.lost = None, True
        if self.settle_at is not None and self.settle_at <= now:
            effects += self.settle(now)
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None
            effects += self.fetch()
        return effects

    def _lapse(self, now: int) -> None:
        """No lease on the chain in time. Where the broker says that it is open, the chain has until the expiry to show
        it: we may be the ones who do not reach it.
        """
        expiry = self.mandate.order.body.expiry
        if self.opened and now < expiry:
            self.lapse_at = expiry
        else:
            self.lapse_at, self.lapsed = None, True

    def restart(self, now: int) -> list[PurchaseEffect]:
        """Ask again for all that is outstanding, and tell again what a process that was killed may not have kept."""
        self.retry_at, self._pause = None, FIRST_RETRY_MS
        effects = self._tell_again()
        if not self.is_over or self.seen is None:
            posted = [] if self.acceptance is None or self.posted else [events.PostAcceptance(self.acceptance)]
            return [*effects, *self.fetch(), *posted]
        if self.lost:
            self.lost, self.lost_at = False, now + RESULT_WAIT_MS
        effects.append(events.KeepProof(self.lease, self.seen.tx))
        return [*effects, *(self.fetch() if self.lost_at is not None else [])]

    def _tell_again(self) -> list[PurchaseEffect]:
        """The records in the same chunks as they were kept before."""
        effects: list[PurchaseEffect] = []
        since = 0
        for count in sorted(self.receipts):
            records = tuple(self.records[since:count])
            if records:
                effects.append(events.KeepRecords(self.lease, since, records))
            if records and count <= self.good:
                effects.append(events.TellSegments(self.lease, records))
            since = count
        return effects
