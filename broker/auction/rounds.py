"""One round of an order's auction: announced, collecting answers, closed under a signed book, divided (R3, R12).

It closes when everybody known to match has answered, at the latest at its `closes`; while nobody has made a bid that
could win and somebody declined for a reason that may pass, it waits for room until then. Whom its parts go to follows
from the book alone (`broker.auction.scoring`), so that anybody may work it out again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.auction.admission import House
from broker.auction.book import OpenBook
from broker.auction.events import Announce, BidArrived, Notify
from broker.auction.explanation import explain
from broker.auction.matching import Survey
from broker.auction.scoring import Share, choose, divide, find_fault, replace_share
from broker.protocol.api import JobEvent, Unmatched
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import PASSING, Acknowledgement, Announcement, Book, Decline
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Order
from chain.ledger.terms.work import Span

MAX_ANSWERS = 16
"""Answers of one provider to one round that are looked at: it says one, and again after each lost connection. Each is
stored before it is looked at, so that a flood of them would fill the journal.
"""


class Posted(NamedTuple):
    """What all rounds and lots of one order share; `tell` adds to its news."""

    signer: Signer
    house: House
    signed: Signed[Order]
    order_id: bytes
    spec: JobSpec
    tell: Callable[[JobEvent], Notify]

    @property
    def order(self) -> Order:
        """The order without its signature."""
        return self.signed.body


class Round:
    """A round while it collects, and its book afterwards. `spans` are the segments on offer, `used` the signatures of
    bids that got a part, `refusals` the rules under which the chain refused to open leases.
    """

    def __init__(self, posted: Posted, number: int, spans: Sequence[Span], survey: Survey, closes: int) -> None:
        self.number = number
        self.spans = tuple(spans)
        self.survey = survey
        self.closes = closes
        self.used: set[bytes] = set()
        self.refusals: set[str] = set()
        self.told = False
        self.collected = OpenBook(posted.signer, posted.house.chain, posted.order_id, number, spans)
        self.book: Signed[Book] | None = None
        self._posted = posted
        self._awaited = set(survey.matching) or {one.provider for one in survey.misfits}
        self._asked = bool(self._awaited)
        self._gone: set[bytes] = set()
        self._answers: Counter[bytes] = Counter()

    def announce(self, provider: bytes | None = None) -> Announce:
        """The announcement, to all or to one that came later."""
        posted = self._posted
        body = Announcement(posted.house.broker, posted.signed, posted.spec, self.number, self.spans, self.closes)
        return Announce(posted.signer.sign(Tag.ANNOUNCEMENT, posted.house.chain, body), provider)

    def count_answer(self, provider: bytes) -> None:
        """A bid or a decline came, whatever it is worth."""
        self._answers[provider] += 1

    def hears(self, provider: bytes) -> bool:
        """Whether one more answer of this provider is looked at."""
        return self._answers[provider] < MAX_ANSWERS

    def take_bid(self, event: BidArrived) -> Signed[Acknowledgement] | None:
        """Acknowledge a bid, unless it is not taken."""
        return self.collected.take_bid(event.bid)

    def take_decline(self, decline: Signed[Decline]) -> None:
        """Keep a decline."""
        self.collected.take_decline(decline)

    def lose(self, provider: bytes) -> None:
        """A provider is gone."""
        self._gone.add(provider)

    @property
    def awaited(self) -> frozenset[bytes]:
        """Providers whose answer, or a better one, may still come."""
        return frozenset(self._awaited | self._list_passing()) - self._gone

    def is_done(self, provider: bytes, now: int) -> bool:
        """Cross off a provider that answered or left; whether nobody is waited for any more. With nobody who was known
        to match, only the deadline closes a round.
        """
        self._awaited.discard(provider)
        return not self._awaited and self._asked and not self._waits_for_room(now)

    def _waits_for_room(self, now: int) -> bool:
        """Whether no bid could win yet, and somebody who is still there may bid once another of its leases ends."""
        bids = self.collected.bids
        if self._list_passing() <= self._gone | {bid.body.provider for bid in bids}:
            return False
        posted = self._posted
        least = Span(self.spans[0].first, min(span.count for span in self.spans))
        return choose(posted.order, bids, posted.house.commission, now, part=least, closed=self.closes) is None

    def _list_passing(self) -> set[bytes]:
        declines = self.collected.declines.values()
        return {signed.body.provider for signed in declines if signed.body.reason in PASSING}

    def close(self, now: int) -> Signed[Book]:
        """Close under the signed book."""
        self.book = self.collected.close(now)
        return self.book

    def divide(self) -> tuple[Share, ...]:
        """The parts and their winners, as at the close."""
        posted, closed = self._posted, self._closed
        shares = divide(posted.order, posted.spec, self.spans, closed.bids, posted.house.commission, closed.closed)
        self.used.update(share.bid.signature for share in shares)
        return shares

    def replace(self, part: Span) -> Share | None:
        """Who takes a part whose award was refused: the next best bid that has no part, as at the close. One that has
        run out since then has its turn too: by our clock nobody else could work out who comes next (R12 a).
        """
        posted = self._posted
        commission = posted.house.commission
        share = replace_share(posted.order, posted.spec, part, self._closed, commission, frozenset(self.used))
        if share is not None:
            self.used.add(share.bid.signature)
        return share

    def find_fault(self, share: Share, now: int) -> str:
        """The rule by which a share can't open its lease any more; empty if it can."""
        posted, part = self._posted, Span(share.first, share.count)
        commission, closed = posted.house.commission, self._closed.closed
        return find_fault(posted.order, share.bid.body, commission, now, share.price, part, closed)

    def explain(self, now: int) -> Unmatched:
        """Why nobody could be awarded."""
        posted = self._posted
        order, declines = posted.order, tuple(self.collected.declines.values())
        bids = [signed.body for signed in self.collected.bids]
        why = explain(order, posted.spec, self.survey, declines, bids)
        text = why.text
        if bids and not why.lowest:
            faults = {find_fault(order, bid, posted.house.commission, now) for bid in bids} | self.refusals
            text = f"there were {len(bids)} bids, but none could open a lease: {', '.join(sorted(faults - {''}))}"[:500]
        return Unmatched(now, why.lowest, text, declines)

    @property
    def _closed(self) -> Book:
        assert self.book is not None
        return self.book.body
