"""The rounds of an order as its requester hears them: books, the awards drawn from them, and which may stand beside
which (R2, R3, R12).

A later round offers what earlier leases left unserved, so its awards lean on how those ended. Broker and chain tell
that in any order: an award whose ground is not known yet waits and is no fault. Not here: the checks (`checks`), what
follows from an award (`lots`).
"""

from __future__ import annotations

from broker.protocol.api import Awarded, Delivered
from broker.protocol.messages import Book
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, Kind
from requester.purchase import checks
from requester.purchase.checking import Blame, CheckFailed, require
from requester.purchase.lots import Lot, Mandate

MAX_BOOKS = 1_024
"""Rounds whose books are kept: each that matters has an award, and the chain opens at most 1,024 leases."""

MAX_LOTS = 2_048
"""Leases and awards that came to nothing: twice what the chain opens for one order."""

MAX_EARLY = 64
"""Deliveries kept of leases whose award was not told yet. An honest broker tells the award first."""

MAX_WAITING = 131_072
"""Deliveries and records together that wait in all leases: an order has at most half as many segments, so that only a
broker that lies comes so far, and what it makes us keep in memory stays below some hundred megabytes.
"""


class Rounds:
    """Books and lots of one order."""

    def __init__(self, mandate: Mandate) -> None:
        self.lots: dict[bytes, Lot] = {}
        self.books: dict[int, Signed[Book]] = {}
        self._mandate = mandate
        self._early: list[Delivered] = []
        self._faults: dict[int, CheckFailed] = {}

    # ---- what is heard ----

    def take_book(self, book: Signed[Book]) -> bool:
        """Keep the book of a round; the first of each counts, and False is returned for any other. Raises `CheckFailed`
        for one that the auctioneer did not sign for this order.
        """
        number = book.body.round
        if number in self.books or len(self.books) >= MAX_BOOKS:
            return False
        mandate = self._mandate
        facts = checks.BookFacts(mandate.chain, mandate.order.body, mandate.order_id, book)
        require(checks.BOOK_CHECKS, facts, Blame.TELLER)
        self.books[number] = book
        try:
            require(checks.BOOK_CHECKS, facts)
        except CheckFailed as failed:
            self._faults[number] = failed
        return True

    def take_award(self, item: Awarded) -> bool:
        """Keep an award; False for one that is known, or beyond the bounds. Raises `CheckFailed` for one that the
        auctioneer did not sign for this order, or that comes with another bid or lease.
        """
        require(checks.AWARD_CHECKS, self._gather_award(item, None), Blame.TELLER)
        lot = self.get_lot(item.lease)
        if lot is None or lot.awarded is not None:
            return False
        lot.take_award(item)
        early, self._early = self._early, []
        for one in early:
            if one.delivery.receipt.body.lease != item.lease:
                self._early.append(one)
            else:
                lot.hold(one)
        return True

    def get_lot(self, lease: bytes) -> Lot | None:
        """The lot of a lease, made where there is none; None where there are too many."""
        if lease not in self.lots:
            if len(self.lots) >= MAX_LOTS:
                return None
            self.lots[lease] = Lot(self._mandate, lease)
        return self.lots[lease]

    def keep_early(self, item: Delivered) -> bool:
        """Keep a delivery whose award was not told yet; False where it is known or there are too many."""
        if len(self._early) >= MAX_EARLY or item in self._early or not self.has_room(item):
            return False
        self._early.append(item)
        return True

    def has_room(self, item: Delivered) -> bool:
        """Whether this delivery can wait beside all that wait already."""
        waiting = [*self._early, item]
        held = sum(lot.held for lot in self.lots.values())
        return held + sum(1 + len(one.delivery.records) for one in waiting) <= MAX_WAITING

    # ---- what is read ----

    def list_books(self) -> tuple[Signed[Book], ...]:
        """All books in order of their rounds."""
        return tuple(self.books[number] for number in sorted(self.books))

    def list_tried(self) -> tuple[bytes, ...]:
        """Ids of bids whose award came to nothing, sorted."""
        return tuple(sorted(_get_bid(lot) for lot in self.lots.values() if lot.is_gone))

    # ---- checking an award ----

    def check(self, lot: Lot) -> str:
        """Check an award and its book. Returns what it waits for, empty once it passed; raises `CheckFailed`.

        It waits for its book, for the record before its range, for room among the segments (R2) and under the cap.
        """
        assert lot.awarded is not None
        award = lot.awarded.award.body
        book = next((one for one in self.books.values() if _is_drawn_from(award, one.body)), None)
        start = self._find_start(award)
        if book is None or start is None:
            return "book" if book is None else "start"
        if clash := self._find_clash(lot):
            return clash
        require(checks.AWARD_CHECKS, self._gather_award(lot.awarded, start))
        if book.body.round in self._faults:
            raise self._faults[book.body.round]
        require(checks.SHARE_CHECKS, self._gather_share(lot, award, book))
        lot.round = book.body.round
        return ""

    def _gather_award(self, item: Awarded, start: bytes | None) -> checks.AwardFacts:
        mandate = self._mandate
        return checks.AwardFacts(mandate.chain, mandate.order, mandate.spec, item.award, item.bid, item.lease, start)

    def _gather_share(self, lot: Lot, award: Award, book: Signed[Book]) -> checks.ShareFacts:
        mandate = self._mandate
        drawn = [
            one
            for one in self.lots.values()
            if one is not lot and one.awarded is not None and _is_drawn_from(one.awarded.award.body, book.body)
        ]
        return checks.ShareFacts(
            chain=mandate.chain,
            order=mandate.order.body,
            spec=mandate.spec,
            award=award,
            book=book.body,
            failed=frozenset(_get_bid(one) for one in drawn if one.is_gone),
            used=frozenset(_get_bid(one) for one in drawn),
        )

    def _find_start(self, award: Award) -> bytes | None:
        """What the range has to start from: the order's start, or the output of the record before it, once that is
        verified and its lease ends there.
        """
        order = self._mandate.order.body
        if order.kind is Kind.MAP or award.first == 0:
            return order.start
        for lot in self.lots.values():
            taken = lot.taken if lot.checked and not lot.is_refused else None
            if taken is not None and taken.count and taken.first + taken.count == award.first:
                return lot.records[taken.count - 1].output if taken.count <= len(lot.records) else None
        return None

    def _find_clash(self, lot: Lot) -> str:
        """R2: the rule by which other leases leave no room for this one; empty where they do."""
        others = [one for one in self.lots.values() if one is not lot and not one.is_gone and _stands_before(one, lot)]
        span = lot.span
        for one in others:
            taken = one.taken
            if taken.first < span.first + span.count and span.first < taken.first + taken.count:
                return "R2.covered"
        spent = sum(one.cost for one in others)
        return "" if spent + lot.cost <= self._mandate.order.body.cap else "R2.cap"


def _stands_before(one: Lot, lot: Lot) -> bool:
    """Whether `one` has a better right to its segments: it passed, or the chain shows it and not the other."""
    return one.checked or one.is_refused or (one.seen is not None and lot.seen is None)


def _is_drawn_from(award: Award, book: Book) -> bool:
    return award.book == book.root and award.closed == book.closed


def _get_bid(lot: Lot) -> bytes:
    assert lot.awarded is not None
    return lot.awarded.award.body.bid
