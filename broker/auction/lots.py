"""One award and the lease that comes of it: opening, leased, receipts of prefixes, calls, its end (R3, R5, R6, R8).

A lot covers its range until the chain says that the lease is over or was cut; from then on it covers what was served.
Whoever is responsible for the whole order (`broker.auction.machine`) offers the rest again.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from broker.auction.admission import Agreed, HandedIn, compute_delivery_id, list_delivered_blobs
from broker.auction.events import (
    AuctionEffect,
    DeliveryArrived,
    GrantInputs,
    LeaseChanged,
    PassAcceptance,
    PublishAward,
    StoreStorageReceipt,
    SubmitCall,
    SubmitExtend,
    SubmitOpen,
    WatchLease,
)
from broker.auction.rounds import Posted, Round
from broker.auction.scoring import Share, compute_cost
from broker.protocol.api import Accepted, Awarded, Delivered, Left, Opened
from chain.base.codec import encode
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.base.merkle import prove_consistency
from chain.ledger.terms.agreement import Award, compute_bid_id, compute_lease_id
from chain.ledger.terms.outcome import FINAL_FAILURES
from chain.ledger.terms.work import Acceptance, Receipt, Span, StorageReceipt
from chain.ledger.transactions import Extend, Open

AWARD_VALIDITY = 60_000
"""Milliseconds in which an award can open its lease."""

TX_VALIDITY = 30_000
"""Milliseconds for which one transaction is valid; a later try is a new transaction."""

RETRY_FIRST = 250
"""Milliseconds until an opening that the chain did not answer is tried again; doubled each time …"""

RETRY_MOST = 4_000
"""… up to this."""

CALL_PATIENCE = 5_000
"""Milliseconds that a provider may be gone before it is called: a daemon that is started again needs less."""

CALL_PAUSE = 61_000
"""Milliseconds between two calls of a lease: R6 allows one in 60 s of block time."""

ENDS = frozenset({"settled", "slashed", "unstarted", "returned", "expired", "cancelled", "void"})
"""States of a lease from which nothing follows (law.md)."""

COUNTING = frozenset({"delivered", "settled", "void"})
"""States of a lease in which the segments of its receipt count as served."""

NO_RECEIPT = bytes(32)
"""`LeaseChanged.receipt` where none is on the chain."""


class LotPhase(StrEnum):
    """Where an award stands: `failed` never opened a lease."""

    OPENING = "opening"
    LEASED = "leased"
    OVER = "over"
    FAILED = "failed"


class Newest(NamedTuple):
    """The longest receipt that was handed in, and what we signed for it."""

    receipt: Signed[Receipt]
    storage: Signed[StorageReceipt]


class Lot:
    """One award. `served` counts once the lease is `cut` or over; `state` is the chain's last word on it."""

    def __init__(self, posted: Posted, round: Round, share: Share, start: bytes, now: int) -> None:
        assert round.book is not None
        body = Award(
            order=posted.order_id,
            bid=compute_bid_id(posted.house.chain, share.bid.body),
            replica=0,
            first=share.first,
            count=share.count,
            price=share.price,
            commission=posted.house.commission,
            book=round.book.body.root,
            start=start,
            runner_up=share.runner_up,
            closed=round.book.body.closed,
            valid_until=now + AWARD_VALIDITY,
        )
        self.phase = LotPhase.OPENING
        self.round = round
        self.bid = share.bid
        self.award = posted.signer.sign(Tag.AWARD, posted.house.chain, body)
        self.lease = compute_lease_id(posted.house.chain, body)
        self.handed = HandedIn()
        self.receipts: dict[bytes, Signed[StorageReceipt]] = {}
        self.ranges: dict[bytes, Span] = {}
        self.accepted: list[Signed[Acceptance]] = []
        self.state = ""
        self.served = 0
        self.cut = False
        self.failed = False
        self.missing_since: int | None = None
        self._posted = posted
        self._kept: list[StoreStorageReceipt] = []
        self._size = 0
        self._newest: Newest | None = None
        self._there = (0, NO_RECEIPT)
        self._said = ("", 0)
        self._called_at: int | None = None
        self._tx_until = 0
        self._retry_at: int | None = None
        self._retry_after = RETRY_FIRST

    @property
    def provider(self) -> bytes:
        """Whose bid it is."""
        return self.bid.body.provider

    @property
    def part(self) -> Span:
        """The awarded range."""
        return Span(self.award.body.first, self.award.body.count)

    @property
    def agreed(self) -> Agreed:
        """What deliveries are checked against."""
        return Agreed(self.lease, self.award.body, self.bid.body, self._posted.order.kind)

    @property
    def is_live(self) -> bool:
        """Whether the chain has not said its last word."""
        return self.phase in (LotPhase.OPENING, LotPhase.LEASED)

    @property
    def is_working(self) -> bool:
        """Whether segments may still be added to it."""
        return self.is_live and not self.cut and self.handed.final is None

    @property
    def covered(self) -> Span:
        """The segments that no other lot may serve. Behind a failed segment the chain keeps the range covered until
        the lease is over.
        """
        if self.is_live and not self.cut:
            return self.part
        return Span(self.part.first, self.served)

    @property
    def acceptance(self) -> Signed[Acceptance] | None:
        """The newest that was taken."""
        return self.accepted[-1] if self.accepted else None

    @property
    def cost(self) -> int:
        """What opening it locks of the mandate."""
        body = self.award.body
        return compute_cost(self._posted.order, body.price, body.commission, self.part)

    def get_output(self, index: int) -> bytes | None:
        """The output digest of a served segment, if the receipt on the chain is one that was handed in here."""
        place = index - self.part.first
        if not 0 <= place < self.served or self._there[1] not in self.receipts:
            return None
        return self.handed.records[place].output

    # Opening

    def start(self, now: int) -> list[AuctionEffect]:
        """Tell the winner, and open."""
        news = self._posted.tell(Awarded(now, self.award, self.bid, self.lease))
        return [*self._grant(), self._submit(now), news]

    def _grant(self) -> list[AuctionEffect]:
        spec, order = self._posted.spec, self._posted.order
        state = (self.award.body.start,) if self.part.first and self.award.body.start != order.start else ()
        grant = GrantInputs(self.provider, (spec.code, spec.inputs, *state), order.expiry)
        return [grant, PublishAward(self.provider, self.award)]

    def _submit(self, now: int) -> SubmitOpen:
        """The opening, as a new transaction if the last one has run out."""
        if self._tx_until <= now:
            self._tx_until = now + TX_VALIDITY
        self._retry_at = None
        return SubmitOpen(self.lease, Open(self._posted.signed, self.award, self.bid), self._tx_until)

    def become_leased(self, now: int) -> list[AuctionEffect]:
        """The lease stands."""
        self.phase, self.state, self._retry_at = LotPhase.LEASED, "open", None
        return [self._posted.tell(Opened(now, self.lease))]

    def try_later(self, until: int, now: int) -> bool:
        """Try again, until nothing that was sent can open the lease any more; False behind that."""
        if now > until:
            return False
        self._retry_at = now + self._retry_after
        self._retry_after = min(self._retry_after * 2, RETRY_MOST)
        return True

    def fail(self) -> None:
        """It never opened."""
        self.phase, self._retry_at = LotPhase.FAILED, None

    # Work

    def take_delivery(self, event: DeliveryArrived, now: int) -> list[AuctionEffect]:
        """A receipt, checked and trimmed to what is new. All of a lease are promised the same end: a prefix may wait
        for its acceptance window until the deadline (R8), and a later receipt covers its blobs too.
        """
        posted, delivery = self._posted, event.delivery
        receipt = compute_delivery_id(posted.house.chain, delivery)
        late = not self.is_working or receipt in self.receipts
        if late or delivery.since != len(self.handed.records) or not delivery.records:
            return []
        self.handed.add(delivery, self.part.count)
        self.failed = self.failed or delivery.receipt.body.cause in FINAL_FAILURES
        self._size += event.size
        kept_until = max(posted.order.deadline, self.round.closes) + posted.house.retention
        body = StorageReceipt(
            holder=posted.house.broker,
            lease=self.lease,
            receipt=receipt,
            size=self._size,
            kept_until=kept_until,
        )
        storage = posted.signer.sign(Tag.STORAGE, posted.house.chain, body)
        self.receipts[receipt] = storage
        self.ranges[receipt] = Span(self.part.first, delivery.receipt.body.count)
        self._newest = Newest(delivery.receipt, storage)
        kept = StoreStorageReceipt(self.lease, list_delivered_blobs(delivery), kept_until)
        self._kept.append(kept)
        return [kept, posted.tell(Delivered(now, delivery, storage))]

    def take_acceptance(self, acceptance: Signed[Acceptance], now: int) -> list[AuctionEffect]:
        """Pass an acceptance on, once."""
        if acceptance.body.receipt not in self.receipts or acceptance in self.accepted:
            return []
        self.accepted.append(acceptance)
        return [PassAcceptance(self.provider, acceptance), self._posted.tell(Accepted(now, acceptance))]

    def take_change(self, event: LeaseChanged, now: int) -> list[AuctionEffect]:
        """The chain's word. `delivered` with fewer segments at stake than were awarded is a lease that was cut (rows 7,
        10 and 12): what it did not serve is free at once.
        """
        if self.phase is not LotPhase.LEASED:
            return []
        self.state, self._there = event.state, (event.served, event.receipt)
        self.failed = self.failed or event.cause in FINAL_FAILURES
        if event.state in ENDS:
            self.phase = LotPhase.OVER
        elif event.state == "delivered" and event.held < self.part.count:
            self.cut = True
        else:
            return []
        self.served = min(event.served, self.part.count) if event.state in COUNTING else 0
        if self._said == (event.state, self.served):
            return []
        self._said = (event.state, self.served)
        return [self._posted.tell(Left(now, self.lease, event.state, self.served))]

    # Calls

    def lose(self, now: int) -> None:
        """Its provider is gone."""
        if self.is_live and self.missing_since is None:
            self.missing_since = now

    def regain(self) -> None:
        """Its provider is there again."""
        self.missing_since = None

    def wake_at(self) -> int | None:
        """The next try to open, or the next call."""
        if self.phase is LotPhase.OPENING:
            return self._retry_at
        if not self._wants_call or self.missing_since is None:
            return None
        again = 0 if self._called_at is None else self._called_at + CALL_PAUSE
        return max(self.missing_since + CALL_PATIENCE, again)

    @property
    def _wants_call(self) -> bool:
        return self.phase is LotPhase.LEASED and self.is_working and self.state == "open" and bool(self.missing_since)

    def wake(self, now: int) -> Sequence[AuctionEffect]:
        """Open or call, if it is time."""
        due = self.wake_at()
        if due is None or due > now:
            return ()
        if self.phase is LotPhase.OPENING:
            return (self._submit(now),)
        self._called_at = now
        return self._call(now + TX_VALIDITY)

    def _call(self, until: int) -> list[AuctionEffect]:
        """Save what is served, then ask for a sign of life."""
        effects: list[AuctionEffect] = []
        count, there = self._there
        newest = self._newest
        if newest is not None and newest.receipt.body.count > count and (count == 0 or there in self.receipts):
            leaves = [encode(record) for record in self.handed.records]
            proof = prove_consistency(leaves, count) if count else ()
            effects.append(SubmitExtend(self.lease, Extend(newest.receipt, newest.storage, proof), until))
        return [*effects, SubmitCall(self.lease, until)]

    # Restarts

    def resume(self, now: int) -> list[AuctionEffect]:
        """Ask again for all that is outstanding, and for what custody has to know."""
        effects: list[AuctionEffect] = []
        if self.phase is LotPhase.OPENING:
            effects += [*self._grant(), self._submit(now)]
        if self.phase is LotPhase.LEASED:
            effects += self._grant()
            if self.round.told:
                effects.append(PublishAward(None, self.award))
            effects.append(WatchLease(self.lease))
        effects += self._kept
        if self.phase is LotPhase.LEASED:
            if self.acceptance is not None:
                effects.append(PassAcceptance(self.provider, self.acceptance))
            if self._wants_call and self._called_at is not None and now < self._called_at + TX_VALIDITY:
                effects += self._call(self._called_at + TX_VALIDITY)
        return effects
