"""The auction of one order as a machine: rounds, lots, gaps, the end (design.md section 4, R2, R3, R12).

Round 0 offers all segments; its book is divided among the cheapest bids (`scoring`), each part becomes a lot, and lots
run side by side. What the chain says a lease left unserved is a gap; gaps are offered again in a later round, with new
bids, until something stands in the way: cancelled, too many failed segments, no time, too many rounds. The job ends
when no lot is live and nothing may be offered. All that is signed (acknowledgements, books, awards, storage receipts)
follows from stored events alone, so that a replay signs the same bytes and a restart can't equivocate.

Not here: checks of what comes from outside (`admission`), one round (`rounds`), one award (`lots`), what is unserved
(`gaps`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import assert_never

from broker.auction.admission import House, Means
from broker.auction.book import MAX_SPANS
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    AuctionEffect,
    AuctionEvent,
    BidArrived,
    Blame,
    Cancelled,
    DeclineArrived,
    DeliveryArrived,
    Finish,
    Inquire,
    LeaseChanged,
    Notify,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    OrderPosted,
    ProviderBack,
    ProviderCame,
    ProviderLeft,
    PublishAward,
    PublishBook,
    Restarted,
    Surveyed,
    WatchLease,
    Withdraw,
)
from broker.auction.gaps import find_failures, find_gaps, find_obstacle, find_start, list_fruitless
from broker.auction.lots import TX_VALIDITY, Lot, LotPhase
from broker.auction.matching import Survey
from broker.auction.rounds import Posted, Round
from broker.auction.scoring import Share, compute_cost
from broker.protocol.api import Announced, Awarded, Closed, Ended, Failed, JobEvent
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Withdrawal
from chain.base.hashing import Tag
from chain.base.keys import Signer
from chain.ledger.terms.agreement import Kind, Order, compute_order_id
from chain.ledger.terms.work import Span

MAX_ROUND = 10_000
"""Milliseconds that a later round may stay open; a shorter first auction makes shorter later ones."""

PAUSE_FIRST = 1_000
"""Milliseconds between a round that brought nothing and the next; doubled each time …"""

PAUSE_MOST = 30_000
"""… up to this."""


class Phase(StrEnum):
    """Where an order stands: `collecting` while a round is open, `opening` while a lease is being opened."""

    NEW = "new"
    COLLECTING = "collecting"
    OPENING = "opening"
    LEASED = "leased"
    ENDED = "ended"


class Auction:
    """Machine of one order; see `broker.auction.events` for what goes in and out."""

    def __init__(self, signer: Signer, house: House) -> None:
        self.news: list[JobEvent] = []
        self.order: Order
        self.order_id = bytes(32)
        self.spec: JobSpec
        self.lots: dict[bytes, Lot] = {}
        self.round: Round | None = None
        self.posted = 0
        self.cancelled = False
        self._signer = signer
        self._house = house
        self._shared: Posted
        self._first: Round
        self._rounds = 0
        self._asking = False
        self._bids: set[bytes] = set()
        self._pause = 0
        self._pause_until: int | None = None
        self._no_more = ""
        self._refused = ""
        self._ended = False

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        if self._ended:
            return Phase.ENDED
        if not self.posted:
            return Phase.NEW
        if self.round is not None:
            return Phase.COLLECTING
        return Phase.OPENING if any(self._list_lots(LotPhase.OPENING)) else Phase.LEASED

    @property
    def promised(self) -> int:
        """What the order may still take of the requester's free balance without the chain having locked it (R12 f).

        The whole cap until the first lease stands. From then on openings under way, and what is still to be offered at
        the order's limit: nothing for work that is locked or done, so that nobody is refused because of it.
        """
        if self._ended or not self.posted:
            return 0
        if not any(lot.state for lot in self.lots.values()):
            return self.order.cap + self.order.deposit
        opening = sum(lot.cost for lot in self._list_lots(LotPhase.OPENING))
        gaps = () if self._no_more else self._find_gaps()
        house = self._house.commission
        return min(self.order.cap, opening + sum(compute_cost(self.order, self.order.limit, house, g) for g in gaps))

    def handle(self, event: AuctionEvent, now: int) -> Sequence[AuctionEffect]:
        """Take one event. What no longer fits changes nothing."""
        match event:
            case ProviderCame():
                return self._greet(event.provider)
            case Restarted():
                return self._resume(now)
            case _:
                effects = list(self._take(event, now))
                return [*effects, *self._advance(now)]

    def wake_at(self) -> int | None:
        """A round's close, the end of a pause, the next try to open, the next call."""
        if self.phase in (Phase.NEW, Phase.ENDED):
            return None
        due = [lot.wake_at() for lot in self.lots.values()]
        due += [self.round.closes if self.round else None, self._pause_until]
        return min((one for one in due if one is not None), default=None)

    def wake(self, now: int) -> Sequence[AuctionEffect]:
        """Settle all that is due."""
        due = self.wake_at()
        if due is None or due > now:
            return ()
        effects: list[AuctionEffect] = []
        if self.round is not None and self.round.closes <= now:
            effects += self._close(self.round, now)
        if self._pause_until is not None and self._pause_until <= now:
            self._pause_until = None
        for lot in list(self.lots.values()):
            effects += lot.wake(now)
        return [*effects, *self._advance(now)]

    def expects(self, provider: bytes) -> bool:
        """Whether it matters that a provider leaves."""
        waits = self.round is not None and provider in self.round.awaited
        return waits or any(lot.is_working and lot.missing_since is None for lot in self._list_of(provider))

    def misses(self, provider: bytes) -> bool:
        """Whether it matters that a provider is back."""
        return any(lot.is_working and lot.missing_since is not None for lot in self._list_of(provider))

    def _take(self, event: AuctionEvent, now: int) -> Sequence[AuctionEffect]:
        match event:
            case OrderPosted():
                return self._post(event, now)
            case Surveyed():
                return self._begin(event, now)
            case BidArrived() | DeclineArrived():
                return self._take_answer(event, now)
            case ProviderLeft():
                return self._lose(event.provider, now)
            case ProviderBack():
                return self._regain(event.provider)
            case OpenFinal() | OpenRefused() | OpenDelayed():
                return self._take_outcome(event, now)
            case LeaseChanged():
                return self._take_change(event, now)
            case DeliveryArrived():
                return self._take_delivery(event, now)
            case AcceptanceArrived():
                lot = self.lots.get(event.acceptance.body.lease)
                return lot.take_acceptance(event.acceptance, now) if lot is not None and not self._ended else ()
            case Cancelled():
                return self._cancel()
            case ProviderCame() | Restarted():
                return ()
            case _:
                assert_never(event)

    # Rounds

    def _post(self, event: OrderPosted, now: int) -> Sequence[AuctionEffect]:
        if self.posted:
            return ()
        self.order, self.spec = event.order.body, event.spec
        self.order_id = compute_order_id(self._house.chain, self.order)
        self.posted = now
        self._shared = Posted(self._signer, self._house, event.order, self.order_id, self.spec, self._tell)
        if _exceeds(event.means, self.order):
            return self._end("refused", "the cap does not fit the requester's free balance", now)
        self._first = self._open_round((Span(0, self.order.segments),), event.survey, self.order.closes)
        return self._announce(self._first, now)

    def _begin(self, event: Surveyed, now: int) -> Sequence[AuctionEffect]:
        """A later round: what is unserved by now."""
        if not self._asking or event.round != self._rounds:
            return ()
        self._asking = False
        gaps = self._find_gaps()
        if not gaps or self._no_more:
            return ()
        matching = tuple(one for one in event.survey.matching if one not in list_fruitless(self.lots.values()))
        found = Survey(matching, event.survey.misfits)
        return self._announce(self._open_round(gaps[:MAX_SPANS], found, now + self._round_time), now)

    @property
    def _round_time(self) -> int:
        return max(1, min(self.order.closes - self.posted, MAX_ROUND))

    def _open_round(self, spans: Sequence[Span], survey: Survey, closes: int) -> Round:
        self.round = Round(self._shared, self._rounds, spans, survey, closes)
        self._rounds += 1
        return self.round

    def _announce(self, opened: Round, now: int) -> Sequence[AuctionEffect]:
        news = Announced(now, opened.number, opened.spans, len(opened.survey.matching), opened.closes)
        return (opened.announce(), self._tell(news))

    def _take_answer(self, event: BidArrived | DeclineArrived, now: int) -> Sequence[AuctionEffect]:
        body = event.bid.body if isinstance(event, BidArrived) else event.decline.body
        if self.round is None or body.order != self.order_id:
            return ()
        self.round.count_answer(body.provider)
        effects: list[AuctionEffect] = []
        if isinstance(event, BidArrived):
            # A bid counts in the round it was made for: one of an earlier round was answered by that one's book.
            given = None
            fruitless = body.provider in list_fruitless(self.lots.values())
            if event.registered and event.bid.signature not in self._bids and not fruitless:
                given = self.round.take_bid(event)
            if given is None:
                return ()
            effects.append(Acknowledge(body.provider, given))
        else:
            self.round.take_decline(event.decline)
        if self.round.is_done(body.provider, now):
            effects += self._close(self.round, now)
        return effects

    def _lose(self, provider: bytes, now: int) -> Sequence[AuctionEffect]:
        for lot in self._list_of(provider):
            lot.lose(now)
        if self.round is None:
            return ()
        self.round.lose(provider)
        return self._close(self.round, now) if self.round.is_done(provider, now) else ()

    def _regain(self, provider: bytes) -> Sequence[AuctionEffect]:
        for lot in self._list_of(provider):
            lot.regain()
        return ()

    def _greet(self, provider: bytes) -> Sequence[AuctionEffect]:
        if self.round is None or provider in self.round.collected.answered():
            return ()
        return (self.round.announce(provider),)

    def _close(self, closing: Round, now: int) -> Sequence[AuctionEffect]:
        self.round = None
        book = closing.close(now)
        self._bids.update(bid.signature for bid in book.body.bids)
        effects: list[AuctionEffect] = [PublishBook(book), self._tell(Closed(now, book))]
        shares = () if self._no_more else closing.divide()
        for share in shares:
            effects += self._award(closing, share, now)
        if not shares:
            self._slow_down(now)
        return effects

    def _award(self, closed: Round, share: Share, now: int) -> list[AuctionEffect]:
        start = find_start(self.lots.values(), self.order, share.first)
        return [] if start is None else self._make_lot(closed, share, start, now).start(now)

    def _make_lot(self, closed: Round, share: Share, start: bytes, now: int) -> Lot:
        lot = Lot(self._shared, closed, share, start, now)
        self.lots[lot.lease] = lot
        return lot

    # Lots

    def _take_outcome(self, event: OpenFinal | OpenRefused | OpenDelayed, now: int) -> Sequence[AuctionEffect]:
        lot = self.lots.get(event.lease)
        if lot is None or lot.phase is not LotPhase.OPENING or self._ended:
            return ()
        match event:
            case OpenFinal():
                return [*lot.become_leased(now), *self._tell_round(lot.round), WatchLease(lot.lease)]
            case OpenDelayed():
                if lot.try_later(self.order.expiry + TX_VALIDITY, now):
                    return ()
            case OpenRefused(blame=Blame.BROKER):
                if not self.cancelled and lot.try_later(lot.award.body.valid_until, now):
                    return ()
            case OpenRefused(blame=Blame.REQUESTER):
                self._refused = self._refused or f"the chain refused the order: {event.rule}: {event.text}"
                self._no_more = self._no_more or self._refused
            case OpenRefused():
                lot.round.refusals.add(event.rule)
                return self._replace(lot, event.rule, now)
        if not isinstance(event, OpenRefused) or event.blame is Blame.BROKER:
            self._refused = self._refused or f"the broker could not open the lease: {event.text}"
        rule = event.rule if isinstance(event, OpenRefused) else "chain.unreachable"
        return self._drop(lot, rule, now)

    def _replace(self, lot: Lot, rule: str, now: int) -> Sequence[AuctionEffect]:
        """The next best bid of the same book takes the range; with none left it is a gap. One that can't open any more
        is awarded and fails at once: so everybody knows why the one behind it comes next.
        """
        effects: list[AuctionEffect] = []
        while rule:
            share = None if self._no_more else lot.round.replace(lot.part)
            if share is None:
                return [*effects, *self._drop(lot, rule, now)]
            lot.fail()
            effects.append(self._tell(Failed(now, lot.lease, rule)))
            lot = self._make_lot(lot.round, share, lot.award.body.start, now)
            rule = lot.round.find_fault(share, now)
            effects += [self._tell(Awarded(now, lot.award, lot.bid, lot.lease))] if rule else lot.start(now)
        return effects

    def _drop(self, lot: Lot, rule: str, now: int) -> Sequence[AuctionEffect]:
        lot.fail()
        self._slow_down(now)
        return [self._tell(Failed(now, lot.lease, rule)), *self._tell_round(lot.round)]

    def _tell_round(self, closed: Round) -> list[AuctionEffect]:
        """Once all awards of a round stand or failed: tell everybody, so that who did not win is free. Before that a
        bid without a part may still take the place of a refused one.
        """
        lots = [lot for lot in self.lots.values() if lot.round is closed]
        if closed.told or any(lot.phase is LotPhase.OPENING for lot in lots):
            return []
        standing = [lot for lot in lots if lot.phase is not LotPhase.FAILED]
        closed.told = bool(standing)
        return [PublishAward(None, lot.award) for lot in standing]

    def _take_delivery(self, event: DeliveryArrived, now: int) -> Sequence[AuctionEffect]:
        lot = self.lots.get(event.lease)
        if lot is None or self._ended:
            return ()
        effects = lot.take_delivery(event, now)
        if effects:
            self._pause = 0
        return effects

    def _take_change(self, event: LeaseChanged, now: int) -> Sequence[AuctionEffect]:
        lot = self.lots.get(event.lease)
        if lot is None or self._ended:
            return ()
        before = lot.is_working
        effects = lot.take_change(event, now)
        if event.state in ("cancelling", "cancelled"):
            self._no_more = self._no_more or "a lease was cancelled by the requester"
        if before and not lot.is_working and not lot.served:
            self._slow_down(now)
        return effects

    def _slow_down(self, now: int) -> None:
        """What brought nothing is not repeated at once."""
        self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MOST)
        self._pause_until = now + self._pause

    # What is next

    def _advance(self, now: int) -> Sequence[AuctionEffect]:
        """Offer what is unserved, or end the job."""
        if self.phase in (Phase.NEW, Phase.ENDED):
            return ()
        self._no_more = self._no_more or find_failures(self.order, self.spec, self.lots.values())
        if self.round is not None or self._asking:
            return ()
        live = [lot for lot in self.lots.values() if lot.is_live]
        if not live and not any(lot.state for lot in self.lots.values()):
            return self._give_up(now)
        gaps = self._find_gaps()
        if gaps:
            closes = now + self._round_time
            found = find_obstacle(self.order, self.lots.values(), gaps, self._rounds, closes)
            self._no_more = self._no_more or found
        if gaps and not self._no_more:
            width = self.spec.parallelism if self.order.kind is Kind.MAP else 1
            if self._pause_until is None and sum(lot.is_working for lot in live) < width:
                self._asking = True
                return (self._inquire(gaps),)
            return ()
        self._pause_until = None
        return () if live else self._finish(now)

    def _inquire(self, gaps: Sequence[Span]) -> Inquire:
        return Inquire(self._rounds, max(span.count for span in gaps))

    def _find_gaps(self) -> tuple[Span, ...]:
        return find_gaps(self.lots.values(), self.order.segments)

    def _give_up(self, now: int) -> Sequence[AuctionEffect]:
        """No lease was opened at all."""
        if self.cancelled:
            return self._end("withdrawn", "taken back", now)
        if self._refused:
            return (self._withdraw(self._refused), *self._end("refused", self._refused, now))
        news = self._first.explain(now)
        return (self._tell(news), self._withdraw(news.text), *self._end("unmatched", news.text, now))

    def _finish(self, now: int) -> Sequence[AuctionEffect]:
        """All leases are over and nothing more is offered."""
        opened = [lot for lot in self.lots.values() if lot.state]
        if len(opened) == 1:
            state = opened[0].state
            return self._end(state, f"the lease is {state} on the chain{self._why}", now)
        served = sum(lot.served for lot in opened)
        state = "settled" if served == self.order.segments else "partly" if served else opened[-1].state
        return self._end(state, f"{served} of {self.order.segments} segments are served{self._why}", now)

    @property
    def _why(self) -> str:
        return f"; {self._no_more}" if self._no_more else ""

    # Ends

    def _cancel(self) -> Sequence[AuctionEffect]:
        """No further round. A lease whose opening is under way may still open: what was sent can't be called back. It
        ends, like those that are open, by the requester's `Cancel` on the chain.
        """
        if self.cancelled or self.phase in (Phase.NEW, Phase.ENDED):
            return ()
        self.cancelled, self._asking, self._no_more = True, False, "taken back by the requester"
        if self.round is None:
            return ()
        self.round = None
        return () if any(self._list_lots(LotPhase.OPENING)) else (self._withdraw(self._no_more),)

    def _withdraw(self, text: str) -> Withdraw:
        return Withdraw(self._signer.sign(Tag.WITHDRAWAL, self._house.chain, Withdrawal(self.order_id, text[:500])))

    def _end(self, state: str, text: str, now: int) -> Sequence[AuctionEffect]:
        self._ended, self.round, self._pause_until = True, None, None
        return (self._tell(Ended(now, state, text[:500])), Finish())

    def _tell(self, news: JobEvent) -> Notify:
        self.news.append(news)
        return Notify(news)

    def _list_lots(self, phase: LotPhase) -> Iterator[Lot]:
        return (lot for lot in self.lots.values() if lot.phase is phase)

    def _list_of(self, provider: bytes) -> list[Lot]:
        return [lot for lot in self.lots.values() if lot.provider == provider]

    def _resume(self, now: int) -> Sequence[AuctionEffect]:
        """Ask again for all that is outstanding."""
        if self.phase is Phase.NEW:
            return ()
        if self.phase is Phase.ENDED:
            return (Finish(),)
        effects: list[AuctionEffect] = []
        books = {lot.round.number: lot.round.book for lot in self._list_lots(LotPhase.OPENING)}
        effects += [PublishBook(book) for book in books.values() if book is not None]
        for lot in self.lots.values():
            effects += lot.resume(now)
        if self.round is not None:
            effects.append(self.round.announce())
        if self._asking:
            effects.append(self._inquire(self._find_gaps()))
        return effects


def _exceeds(means: Means, order: Order) -> bool:
    return order.cap + order.deposit + means.promised > means.free
