"""The auction of one order as a machine: announced, collecting, opening, leased, ended (design.md section 4, R12).

It closes when everybody known to match has answered, at the latest at the order's `closes`; while nobody has made a
bid that could win and somebody declined for a reason that may pass, it waits for room until then. It awards; opens
the lease; on a refusal for the winner's reason tries the next bid; then relays receipt and acceptance until the chain
says that the lease is over. All it signs (acknowledgements, book, award, storage receipt) follows from stored events
alone, so that a replay signs the same bytes and a restart can't equivocate.

Not here: checks of what comes from outside (`admission`), the choice (`scoring`), the words for nobody
(`explanation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import assert_never

from broker.auction.admission import House, Means, compute_delivery_id, list_delivered_blobs
from broker.auction.book import OpenBook
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    Announce,
    AuctionEffect,
    AuctionEvent,
    BidArrived,
    Blame,
    Cancelled,
    DeclineArrived,
    DeliveryArrived,
    Finish,
    GrantInputs,
    LeaseChanged,
    Notify,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    OrderPosted,
    PassAcceptance,
    ProviderCame,
    ProviderLeft,
    PublishAward,
    PublishBook,
    Restarted,
    StoreStorageReceipt,
    SubmitOpen,
    WatchLease,
    Withdraw,
)
from broker.auction.explanation import explain
from broker.auction.matching import Survey
from broker.auction.scoring import choose, find_fault
from broker.protocol.api import (
    Accepted,
    Announced,
    Awarded,
    Closed,
    Delivered,
    Ended,
    JobEvent,
    Opened,
    Unmatched,
)
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import PASSING, Announcement, Book, Withdrawal
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Award, Bid, Order, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.ledger.transactions import Open

AWARD_VALIDITY = 60_000
"""Milliseconds in which an award can open its lease."""

TX_VALIDITY = 30_000
"""Milliseconds for which one opening transaction is valid; a later try is a new transaction."""

RETRY_FIRST = 250
"""Milliseconds until an opening that the chain did not answer is tried again; doubled each time …"""

RETRY_MOST = 4_000
"""… up to this."""

MAX_DELIVERIES = 16
"""Receipts taken for one lease."""

ENDS = frozenset({"settled", "slashed", "unstarted", "returned", "expired", "cancelled", "void"})
"""States of a lease from which nothing follows (law.md)."""


class Phase(StrEnum):
    """Where an order stands."""

    NEW = "new"
    COLLECTING = "collecting"
    OPENING = "opening"
    LEASED = "leased"
    ENDED = "ended"


class Auction:
    """Machine of one order; see `broker.auction.events` for what goes in and out."""

    def __init__(self, signer: Signer, house: House) -> None:
        self.phase = Phase.NEW
        self.news: list[JobEvent] = []
        self.order: Order
        self.order_id = bytes(32)
        self.spec: JobSpec
        self.winner: Signed[Bid] | None = None
        self.award: Signed[Award] | None = None
        self.lease = bytes(32)
        self.acceptance: Signed[Acceptance] | None = None
        self.receipts: dict[bytes, Signed[StorageReceipt]] = {}
        self.posted = 0
        self._signer = signer
        self._house = house
        self._signed: Signed[Order]
        self._survey: Survey
        self._awaited: set[bytes] = set()
        self._asked = False
        self._gone: set[bytes] = set()
        self._collected: OpenBook
        self._book: Signed[Book]
        self._tried: set[bytes] = set()
        self._refusals: set[str] = set()
        self._tx_until = 0
        self._retry_at: int | None = None
        self._retry_after = RETRY_FIRST

    @property
    def promised(self) -> int:
        """What the order may still take of the requester's free balance without the chain having locked it (R12 f)."""
        if self.phase in (Phase.COLLECTING, Phase.OPENING):
            return self.order.cap + self.order.deposit
        return 0

    def handle(self, event: AuctionEvent, now: int) -> Sequence[AuctionEffect]:
        """Take one event. What no longer fits the phase changes nothing."""
        match event:
            case OrderPosted():
                return self._post(event, now)
            case BidArrived():
                return self._take_bid(event, now)
            case DeclineArrived():
                return self._take_decline(event, now)
            case ProviderLeft():
                return self._lose(event.provider, now)
            case ProviderCame():
                return self._greet(event.provider)
            case OpenFinal() | OpenRefused() | OpenDelayed():
                return self._take_outcome(event, now)
            case LeaseChanged():
                return self._take_state(event, now)
            case DeliveryArrived():
                return self._take_delivery(event, now)
            case AcceptanceArrived():
                return self._take_acceptance(event.acceptance, now)
            case Cancelled():
                return self._cancel(now)
            case Restarted():
                return self._resume(now)
            case _:
                assert_never(event)

    def wake_at(self) -> int | None:
        """The auction's close, or the next try to open."""
        if self.phase is Phase.COLLECTING:
            return self.order.closes
        return self._retry_at if self.phase is Phase.OPENING else None

    def wake(self, now: int) -> Sequence[AuctionEffect]:
        """Close, or try again to open."""
        due = self.wake_at()
        if due is None or due > now:
            return ()
        if self.phase is Phase.COLLECTING:
            return self._close(now)
        return (self._submit(now),)

    # Collecting

    def _post(self, event: OrderPosted, now: int) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.NEW:
            return ()
        self._signed, self.order, self.spec, self._survey = event.order, event.order.body, event.spec, event.survey
        self.order_id = compute_order_id(self._house.chain, self.order)
        self.posted = now
        self._collected = OpenBook(self._signer, self._house.chain, self.order_id)
        if _exceeds(event.means, self.order):
            return self._end("refused", "the cap does not fit the requester's free balance", now)
        self.phase = Phase.COLLECTING
        matching = event.survey.matching
        self._awaited = set(matching) or {one.provider for one in event.survey.misfits}
        self._asked = bool(self._awaited)
        return (self._announcement(), self._tell(Announced(now, len(matching), self.order.closes)))

    def _announcement(self, provider: bytes | None = None) -> Announce:
        body = Announcement(self._house.broker, self._signed, self.spec, self.order.closes)
        return Announce(self._signer.sign(Tag.ANNOUNCEMENT, self._house.chain, body), provider)

    def _take_bid(self, event: BidArrived, now: int) -> Sequence[AuctionEffect]:
        bid = event.bid.body
        if bid.order != self.order_id or not event.registered or self.phase is not Phase.COLLECTING:
            return ()
        given = self._collected.take_bid(event.bid)
        if given is None:
            return ()
        return (Acknowledge(bid.provider, given), *self._answer(bid.provider, now))

    def _take_decline(self, event: DeclineArrived, now: int) -> Sequence[AuctionEffect]:
        decline = event.decline.body
        if decline.order != self.order_id or self.phase is not Phase.COLLECTING:
            return ()
        self._collected.take_decline(event.decline)
        return self._answer(decline.provider, now)

    def _lose(self, provider: bytes, now: int) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.COLLECTING:
            return ()
        self._gone.add(provider)
        return self._answer(provider, now)

    def _greet(self, provider: bytes) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.COLLECTING or provider in self._collected.answered():
            return ()
        return (self._announcement(provider),)

    def _answer(self, provider: bytes, now: int) -> Sequence[AuctionEffect]:
        """Cross a provider off; the last one closes the auction, unless only time can bring a bid. With nobody to wait
        for, the deadline closes it.
        """
        self._awaited.discard(provider)
        if self._awaited or not self._asked or self._waits_for_room(now):
            return ()
        return self._close(now)

    def _waits_for_room(self, now: int) -> bool:
        """Whether no bid could win yet, and somebody who is still there may bid once another of its leases ends."""
        bids, declines = self._collected.bids, self._collected.declines.values()
        passing = {signed.body.provider for signed in declines if signed.body.reason in PASSING}
        if passing <= self._gone | {bid.body.provider for bid in bids}:
            return False
        return choose(self.order, bids, self._house.commission, now) is None

    # Award and opening

    def _close(self, now: int) -> Sequence[AuctionEffect]:
        self.phase = Phase.OPENING
        self._book = self._collected.close(now)
        return (PublishBook(self._book), self._tell(Closed(now, self._book)), *self._award_next(now))

    def _award_next(self, now: int) -> Sequence[AuctionEffect]:
        choice = choose(self.order, self._collected.bids, self._house.commission, now, self._tried)
        if choice is None:
            return self._find_nobody(now)
        bid_id = compute_bid_id(self._house.chain, choice.bid.body)
        body = Award(
            order=self.order_id,
            bid=bid_id,
            replica=0,
            first=0,
            count=self.order.segments,
            price=choice.price,
            commission=self._house.commission,
            book=self._book.body.root,
            start=self.order.start,
            runner_up=choice.runner_up,
            valid_until=now + AWARD_VALIDITY,
        )
        self.winner = choice.bid
        self.award = self._signer.sign(Tag.AWARD, self._house.chain, body)
        self.lease = compute_lease_id(self._house.chain, body)
        self._tx_until, self._retry_after = 0, RETRY_FIRST
        news = self._tell(Awarded(now, self.award, choice.bid, self.lease))
        return (*self._grant(choice.bid, self.award), self._submit(now), news)

    def _grant(self, bid: Signed[Bid], award: Signed[Award]) -> Sequence[AuctionEffect]:
        provider = bid.body.provider
        return (GrantInputs(provider, self.order.expiry), PublishAward(provider, award))

    def _submit(self, now: int) -> SubmitOpen:
        """The opening of the present award, as a new transaction if the last one has run out."""
        assert self.award is not None and self.winner is not None
        if self._tx_until <= now:
            self._tx_until = now + TX_VALIDITY
        self._retry_at = None
        return SubmitOpen(self.lease, Open(self._signed, self.award, self.winner), self._tx_until)

    def _take_outcome(self, event: OpenFinal | OpenRefused | OpenDelayed, now: int) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.OPENING or event.lease != self.lease or self.award is None:
            return ()
        match event:
            case OpenFinal():
                return self._become_leased(now)
            case OpenDelayed():
                return self._try_later(event.text, self.order.expiry + TX_VALIDITY, now)
            case OpenRefused(blame=Blame.BROKER):
                return self._try_later(event.text, self.award.body.valid_until, now)
            case OpenRefused(blame=Blame.REQUESTER):
                withdrawal = self._withdraw(f"the chain refused the order: {event.rule}")
                return (withdrawal, *self._end("refused", event.text, now))
            case OpenRefused():
                self._tried.add(self.winner.signature if self.winner else b"")
                self._refusals.add(event.rule)
                return self._award_next(now)

    def _try_later(self, text: str, until: int, now: int) -> Sequence[AuctionEffect]:
        """Try again, until nothing that was sent can open the lease any more: behind the award's validity where the
        chain refused, behind the order's expiry where it was silent.
        """
        if now > until:
            text = f"the broker could not open the lease: {text}"
            return (self._withdraw(text), *self._end("refused", text, now))
        self._retry_at = now + self._retry_after
        self._retry_after = min(self._retry_after * 2, RETRY_MOST)
        return ()

    def _become_leased(self, now: int) -> Sequence[AuctionEffect]:
        assert self.award is not None
        self.phase, self._retry_at = Phase.LEASED, None
        news = self._tell(Opened(now, self.lease))
        return (news, PublishAward(None, self.award), WatchLease(self.lease))

    def _find_nobody(self, now: int) -> Sequence[AuctionEffect]:
        declines = tuple(self._collected.declines.values())
        bids = [signed.body for signed in self._collected.bids]
        why = explain(self.order, self.spec, self._survey, declines, bids)
        text = why.text
        if bids and not why.lowest:
            faults = {find_fault(self.order, bid, self._house.commission, now) for bid in bids} | self._refusals
            text = f"there were {len(bids)} bids, but none could open a lease: {', '.join(sorted(faults - {''}))}"[:500]
        news = Unmatched(now, why.lowest, text, declines)
        return (self._tell(news), self._withdraw(news.text), *self._end("unmatched", news.text, now))

    # Work

    def _take_delivery(self, event: DeliveryArrived, now: int) -> Sequence[AuctionEffect]:
        if self.award is None or event.lease != self.lease or self.phase not in (Phase.OPENING, Phase.LEASED):
            return ()
        receipt = compute_delivery_id(self._house.chain, event.delivery)
        if receipt in self.receipts or len(self.receipts) >= MAX_DELIVERIES:
            return ()
        until = now + self._house.retention
        body = StorageReceipt(self._house.broker, self.lease, receipt, event.size, until)
        storage = self._signer.sign(Tag.STORAGE, self._house.chain, body)
        self.receipts[receipt] = storage
        kept = StoreStorageReceipt(self.lease, list_delivered_blobs(event.delivery), until)
        return (kept, self._tell(Delivered(now, event.delivery, storage)))

    def _take_acceptance(self, acceptance: Signed[Acceptance], now: int) -> Sequence[AuctionEffect]:
        known = acceptance.body.receipt in self.receipts and acceptance.body.lease == self.lease
        if not known or self.winner is None or acceptance == self.acceptance:
            return ()
        self.acceptance = acceptance
        passed = PassAcceptance(self.winner.body.provider, acceptance)
        return (passed, self._tell(Accepted(now, acceptance)))

    def _take_state(self, event: LeaseChanged, now: int) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.LEASED or event.lease != self.lease or event.state not in ENDS:
            return ()
        return self._end(event.state, f"the lease is {event.state} on the chain", now)

    # Ends

    def _cancel(self, now: int) -> Sequence[AuctionEffect]:
        if self.phase is not Phase.COLLECTING:
            return ()
        return (self._withdraw("taken back by the requester"), *self._end("withdrawn", "taken back", now))

    def _withdraw(self, text: str) -> Withdraw:
        return Withdraw(self._signer.sign(Tag.WITHDRAWAL, self._house.chain, Withdrawal(self.order_id, text[:500])))

    def _end(self, state: str, text: str, now: int) -> Sequence[AuctionEffect]:
        self.phase, self._retry_at = Phase.ENDED, None
        return (self._tell(Ended(now, state, text[:500])), Finish())

    def _tell(self, news: JobEvent) -> Notify:
        self.news.append(news)
        return Notify(news)

    def _resume(self, now: int) -> Sequence[AuctionEffect]:
        """Ask again for all that is outstanding."""
        match self.phase:
            case Phase.NEW:
                return ()
            case Phase.COLLECTING:
                return (self._announcement(),)
            case Phase.OPENING:
                return self._resume_opening(now)
            case Phase.LEASED:
                return self._resume_lease()
            case Phase.ENDED:
                return (Finish(),)

    def _resume_opening(self, now: int) -> Sequence[AuctionEffect]:
        assert self.award is not None and self.winner is not None
        return (PublishBook(self._book), *self._grant(self.winner, self.award), self._submit(now))

    def _resume_lease(self) -> Sequence[AuctionEffect]:
        assert self.award is not None and self.winner is not None
        effects: list[AuctionEffect] = [*self._grant(self.winner, self.award), PublishAward(None, self.award)]
        effects.append(WatchLease(self.lease))
        effects += [self._keep(one) for one in self.news if isinstance(one, Delivered)]
        if self.acceptance is not None:
            effects.append(PassAcceptance(self.winner.body.provider, self.acceptance))
        return effects

    def _keep(self, one: Delivered) -> StoreStorageReceipt:
        return StoreStorageReceipt(self.lease, list_delivered_blobs(one.delivery), one.storage.body.kept_until)


def _exceeds(means: Means, order: Order) -> bool:
    return order.cap + order.deposit + means.promised > means.free
