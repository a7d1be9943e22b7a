"""The purchase machine: from a signed order to settlement, whatever is gone of broker, providers, chain (R2, R7, R9).

It believes nothing it hears: awards, books and deliveries pass the numbered checks, money is what final blocks say.
What passes is accepted at once, lease by lease, failed segments included (R9); what does not is never accepted. If an
acceptance brings no settlement, it settles by itself. `rounds` has the awards, `lots` one lease each, `outcome` what
all of them come to. Not here: dispute (orders carry panel size 0), cancelling (the owner's act; its outcome is heard
like any other), time, disk, network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
    Failed,
    JobEvent,
    Left,
    Opened,
    Submission,
    Unmatched,
)
from broker.protocol.jobs import JobSpec
from chain.base.errors import Refused
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Kind, Order, compute_order_id
from requester.purchase import events
from requester.purchase.checking import Blame, CheckFailed
from requester.purchase.documents import Documents
from requester.purchase.events import LeaseSeen, PurchaseEffect, PurchaseEvent
from requester.purchase.lots import FIRST_RETRY_MS, LAPSE_MARGIN_MS, LAST_RETRY_MS, Lot, Mandate
from requester.purchase.order import OPENING_MS
from requester.purchase.outcome import Outcome, conclude, is_covered
from requester.purchase.phases import Phase
from requester.purchase.rounds import Rounds

MAX_NOISE = 65_536
"""Events and records together that may be told in vain. A broker repeats itself after restarts, and a page may cross
with one; beyond this it tells anything to fill the journal, which grows by about a kilobyte for each.
"""

LATE = "the order did not reach the broker before its auction closed; nothing was paid; run the job again"
"""What is said of an order that is first sent when it is too late."""

LAPSED = "no lease was opened in time; nothing was paid"
"""What is said of an order that nobody took up."""


class Purchase:
    """One order's machine. Rebuilt by replay: it holds nothing that its events did not bring.

    `signer` signs the acceptances; signing is deterministic, so a replay makes the same bytes. `items` are the digests
    of a `map`'s items; raises `Refused` under `job.items` where they are not those of the order.
    """

    def __init__(
        self, chain: bytes, signer: Signer, order: Signed[Order], spec: JobSpec, items: tuple[bytes, ...] = ()
    ) -> None:
        check_items(order.body, items)
        self.chain = chain
        self.order = order
        self.spec = spec
        self.items = items
        self.order_id = compute_order_id(chain, order.body)
        self.submitted = self.announced = self.ended = self.deaf = False
        self.after = self.noise = 0
        self.unmatched: Unmatched | None = None
        self._mandate = Mandate(chain, order, self.order_id, spec, items, signer)
        self._rounds = Rounds(self._mandate)
        self._stopped: Outcome | None = None
        self._pause = FIRST_RETRY_MS
        self._retry_at: int | None = None
        self._lapse_at: int | None = order.body.closes + OPENING_MS + LAPSE_MARGIN_MS
        self._given_up = False

    # ---- what the driver calls ----

    def handle(self, event: PurchaseEvent, now: int) -> Sequence[PurchaseEffect]:
        """Take one event (see `events`)."""
        return self._watched(lambda: self._take(event, now))

    def wake_at(self) -> int | None:
        """The next deadline: a retry, a settle of our own, a lapse, a result given up."""
        deadlines = [lot.wake_at() for lot in self.lots]
        if not self.phase.is_over:
            deadlines += [self._retry_at, self._lapse_at]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def wake(self, now: int) -> Sequence[PurchaseEffect]:
        """Settle all deadlines that are due."""
        return self._watched(lambda: self._settle_deadlines(now))

    # ---- what others read ----

    @property
    def lots(self) -> list[Lot]:
        """The leases, in the order in which they were heard of."""
        return list(self._rounds.lots.values())

    @property
    def phase(self) -> Phase:
        """Where the job stands, worked out from what is known; the chain's word outweighs the broker's."""
        return self.outcome.phase

    @property
    def rule(self) -> str:
        """The rule behind the phase of a job that is over; empty where all is well."""
        return self.outcome.rule

    @property
    def text(self) -> str:
        """Why, in words."""
        return self.outcome.text

    @property
    def outcome(self) -> Outcome:
        """Phase, rule and words together."""
        lots = [lot for lot in self.lots if not lot.is_gone]
        if not lots:
            return self._stopped or Outcome(self._get_first_phase())
        if self._is_over:
            return conclude(lots, self.order.body.kind, self.order.body.segments)
        if self._stopped is not None and not any(lot.opened or lot.is_refused for lot in lots):
            return self._stopped
        return Outcome(self._find_stage(lots))

    def _find_stage(self, lots: list[Lot]) -> Phase:
        """Where the hindmost lease stands; running as long as one is, or as segments are left that nobody serves."""
        running = any(lot.opened for lot in lots)
        stages = [lot.stage for lot in lots if not lot.is_resolved]
        if running and sum(lot.taken.count for lot in lots) < self.order.body.segments:
            stages.append(Phase.RUNNING)
        hindmost = min(stages, key=lambda phase: phase.rank, default=Phase.RUNNING)
        return Phase.RUNNING if running and hindmost is Phase.AWARDED else hindmost

    @property
    def documents(self) -> Documents:
        """All that is known and signed but the records, for the store. Proofs are fetched and kept beside."""
        return Documents(
            chain=self.chain,
            order=self.order,
            spec=self.spec,
            items=self.items,
            books=self._rounds.list_books(),
            tried=self._rounds.list_tried(),
            leases=tuple(lot.papers for lot in self.lots if lot.awarded is not None and not lot.is_gone),
            unmatched=self.unmatched,
        )

    def _get_first_phase(self) -> Phase:
        if self.announced:
            return Phase.ANNOUNCED
        return Phase.SENT if self.submitted else Phase.SIGNED

    @property
    def _is_over(self) -> bool:
        """All leases are done with, and no other can follow."""
        lots = self.lots
        if not all(lot.is_resolved for lot in lots):
            return False
        return self.ended or self._given_up or is_covered(lots, self.order.body.segments)

    # ---- one funnel ----

    def _watched(self, step: Callable[[], list[PurchaseEffect]]) -> list[PurchaseEffect]:
        """Run a step; if it moved the phase, tell."""
        before = self.phase
        effects = step()
        after = self.outcome
        if after.phase is not before:
            effects.append(events.TellPhase(after.phase, after.rule, after.text[:2_000]))
        return effects

    def _take(self, event: PurchaseEvent, now: int) -> list[PurchaseEffect]:
        match event:
            case events.Restarted():
                return self._restart(now)
            case events.Heard():
                return [] if self.deaf else self._hear(event, now)
            case events.Moved():
                return [events.TellProgress(event.item)]
            case events.LeaseSeen():
                return self._see(event, now)
            case events.Submitted():
                return self._take_submitted()
            case events.SubmitFailed():
                return self._take_refusal(event, now)
            case _:
                return self._take_answer(event, now)

    def _take_answer(
        self,
        event: events.BlobsFetched
        | events.FetchFailed
        | events.AcceptancePosted
        | events.AcceptanceFailed
        | events.SettleFailed,
        now: int,
    ) -> list[PurchaseEffect]:
        """What came of an effect for one lease."""
        lot = self._rounds.lots.get(event.lease)
        if lot is None:
            return []
        match event:
            case events.BlobsFetched():
                return self._guard(lot, lambda: lot.take_blobs(event, now)) or []
            case events.FetchFailed():
                return lot.try_again(now, "broker.unavailable", event.text)
            case events.AcceptancePosted():
                lot.take_posted(now)
                return []
            case events.AcceptanceFailed():
                return [events.TellTrouble(event.rule, event.text), *lot.settle(now)]
            case events.SettleFailed():
                return [events.TellTrouble(event.rule, event.text)]
            case _:
                assert_never(event)

    def _guard(
        self, lot: Lot, step: Callable[[], list[PurchaseEffect] | None], weight: int = 1
    ) -> list[PurchaseEffect] | None:
        """Run a step of a lease. What its signer answers for refuses the lease; what its teller does is ignored."""
        try:
            return step()
        except CheckFailed as failed:
            if failed.blame is Blame.SIGNER:
                lot.refuse(failed)
            else:
                self.noise += weight
            return [events.TellTrouble(failed.rule, failed.message)]

    def _restart(self, now: int) -> list[PurchaseEffect]:
        """Ask again for all that is outstanding."""
        self._retry_at, self._pause = None, FIRST_RETRY_MS
        effects = [effect for lot in self.lots if not lot.is_refused for effect in lot.restart(now)]
        if self.phase.is_over:
            return effects
        started: list[PurchaseEffect] = [events.WatchChain()]
        if not self.submitted:
            started.append(self._submission())
        elif not self.deaf:
            started.append(events.Listen(self.after))
        return [*started, *effects]

    # ---- sending the order ----

    def _submission(self) -> events.SubmitOrder:
        return events.SubmitOrder(Submission(PROTOCOL_VERSION, self.order, self.spec, ()))

    def _take_submitted(self) -> list[PurchaseEffect]:
        self.submitted, self._retry_at, self._pause = True, None, FIRST_RETRY_MS
        return [events.Listen(self.after), events.WatchChain()]

    def _take_refusal(self, event: events.SubmitFailed, now: int) -> list[PurchaseEffect]:
        if event.again:
            self._retry_at = now + self._pause
            self._pause = min(self._pause * 2, LAST_RETRY_MS)
            return [events.TellTrouble(event.rule, event.text)]
        if now > self.order.body.closes:
            self._stop(Phase.REJECTED, "order.late", LATE)
        else:
            self._stop(Phase.REJECTED, event.rule, event.text)
        return []

    # ---- what the broker tells ----

    def _hear(self, event: events.Heard, now: int) -> list[PurchaseEffect]:
        """What changes nothing, or is ignored, counts as noise: its weight bounds what it costs to keep."""
        self.after = max(self.after, event.after)
        effects = self._hear_item(event.item, now)
        if effects is None:
            records = len(event.item.delivery.records) if isinstance(event.item, Delivered) else 0
            self.noise, effects = self.noise + 1 + records, []
        if self.noise > MAX_NOISE:
            self.deaf = True
            text = "the broker repeats itself without end; it is not listened to any more, the chain is"
            effects += [events.StopListening(), events.TellTrouble("broker.noise", text)]
        return effects

    def _hear_item(self, item: JobEvent, now: int) -> list[PurchaseEffect] | None:
        """None where it changes nothing."""
        match item:
            case Announced():
                return self._take_announced(item)
            case Closed():
                return self._take_signed(lambda: self._rounds.take_book(item.book), now)
            case Awarded():
                return self._take_signed(lambda: self._rounds.take_award(item), now)
            case Delivered():
                return self._take_delivery(item, now)
            case Failed() | Opened() | Left() | Accepted():
                return self._take_word(item, now)
            case Unmatched():
                return self._take_unmatched(item)
            case Advanced():
                return [events.TellProgress(item)]
            case Ended():
                return self._take_end(item)
            case _:
                assert_never(item)

    def _take_announced(self, item: Announced) -> list[PurchaseEffect] | None:
        """A later round needs its own time; none goes beyond the deadline (R3 d)."""
        until = min(item.closes, self.order.body.deadline) + OPENING_MS + LAPSE_MARGIN_MS
        later = self._lapse_at is not None and until > self._lapse_at
        if self.announced and not later:
            return None
        self.noise += self.announced  # an honest broker has few rounds; one that lies has a later close every time
        self.announced = True
        self._lapse_at = until if later else self._lapse_at
        return []

    def _take_signed(self, take: Callable[[], bool], now: int) -> list[PurchaseEffect] | None:
        """A book or an award: keep it if it is the auctioneer's, then check all awards that can be checked by now."""
        try:
            if not take():
                return None
        except CheckFailed as failed:
            self.noise += 1
            return [events.TellTrouble(failed.rule, failed.message)]
        return self._check_awards(now)

    def _check_awards(self, now: int) -> list[PurchaseEffect]:
        """Let awards pass in their order, as far as what they lean on is known."""
        effects: list[PurchaseEffect] = []
        for lot in self.lots:
            if not lot.checked and not lot.is_refused and lot.awarded is not None and not lot.is_gone:
                effects += self._guard(lot, partial(self._check_award, lot, now)) or []
        return effects

    def _check_award(self, lot: Lot, now: int) -> list[PurchaseEffect]:
        before = lot.waits
        lot.waits = self._rounds.check(lot)
        if not lot.waits:
            return lot.pass_award(now)
        if lot.waits in ("", before) or not lot.waits.startswith("R2"):
            return []
        text = "an award waits: it would pass what other leases leave of the segments or of the cap"
        return [events.TellTrouble(lot.waits, text)]

    def _take_delivery(self, item: Delivered, now: int) -> list[PurchaseEffect] | None:
        lot = self._rounds.lots.get(item.delivery.receipt.body.lease)
        if lot is None:
            return [] if self._rounds.keep_early(item) else None
        if lot.has_to_wait(item) and not self._rounds.has_room(item):
            return None
        effects = self._guard(lot, lambda: lot.take_delivery(item, now), 1 + len(item.delivery.records))
        return None if effects is None else [*effects, *self._check_awards(now)]

    def _take_word(self, item: Failed | Opened | Left | Accepted, now: int) -> list[PurchaseEffect] | None:
        """The broker's word on a lease, which frees or binds nothing on the chain."""
        lease = item.acceptance.body.lease if isinstance(item, Accepted) else item.lease
        lot = self._rounds.lots.get(lease)
        if lot is None:
            return None
        before = lot.failed, lot.left
        if not lot.take_word(item):
            return None
        # A word that takes the place of another is news each time: a broker could change its mind for ever.
        self.noise += (bool(before[0]) and before[0] != lot.failed) + (before[1] not in (None, lot.left))
        return self._check_awards(now)

    def _take_unmatched(self, item: Unmatched) -> list[PurchaseEffect] | None:
        if self.unmatched is not None:
            return None
        self.unmatched = item
        if all(lot.is_gone for lot in self.lots):
            self._stop(Phase.UNMATCHED, "auction.unmatched", item.text)
        return []

    def _take_end(self, item: Ended) -> list[PurchaseEffect] | None:
        """The broker's last word counts only where the chain has none."""
        if self.ended:
            return None
        self.ended = True
        phase = {"withdrawn": Phase.WITHDRAWN, "unmatched": Phase.UNMATCHED}.get(item.state, Phase.REJECTED)
        self._stop(phase, f"job.{phase.value}", item.text)
        return []

    # ---- what the chain shows ----

    def _see(self, event: LeaseSeen, now: int) -> list[PurchaseEffect]:
        """The chain's word on a lease of this order, which the broker may not have told yet."""
        lot = self._rounds.get_lot(event.lease)
        effects = None if lot is None else lot.see(event, now)
        if effects is None:
            return []
        self._lapse_at = None if self._given_up else self.order.body.deadline + LAPSE_MARGIN_MS
        return [*effects, *self._check_awards(now)]

    # ---- deadlines ----

    def _settle_deadlines(self, now: int) -> list[PurchaseEffect]:
        effects = [effect for lot in self.lots for effect in lot.wake(now)]
        if self._lapse_at is not None and self._lapse_at <= now:
            self._lapse_at, self._given_up = None, True
        if self._given_up and all(lot.is_gone for lot in self.lots):
            self._stop(Phase.LAPSED, "order.lapsed", LAPSED)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            effects += [] if self.submitted or self._stopped is not None else [self._submission()]
        return effects

    def _stop(self, phase: Phase, rule: str, text: str) -> None:
        """How the job ends where no lease of it stands on the chain."""
        if self._stopped is None:
            self._stopped = Outcome(phase, rule, text)


def check_items(order: Order, items: tuple[bytes, ...]) -> None:
    """Raise `Refused` under `job.items` unless these are the digests of the order's items; only a `map` has any."""
    if order.kind is not Kind.MAP:
        if items:
            raise Refused("only a map has items", rule="job.items")
    elif len(items) != order.segments or compute_root(items) != order.start:
        raise Refused("these are not the items that were ordered", rule="job.items")
