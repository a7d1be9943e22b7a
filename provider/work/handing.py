"""Handing in as the work goes: which receipt is next, over which new records, and when (R5, R8).

One hand-in at a time. A prefix goes out once there are new records and a quarter of a second has passed since the one
before; a range whose new records do not fit one delivery takes several. What the holder signed for is never handed in
twice, unless it says that it lost it.
"""

from __future__ import annotations

from broker.protocol.api import MAX_DELIVERED
from chain.base.keys import Signed
from chain.ledger.terms.work import Receipt, StorageReceipt
from provider.work.events import PostReceipt, Stored
from provider.work.papers import Papers

PREFIX_MS = 250
"""Least time between two receipts of prefixes."""

MAX_LOSSES = 3
"""So often a holder may lose what it signed for; then it is given up."""


class Handing:
    """The hand-ins of one lease. `stored` records are with the holder; `kept` is its newest storage receipt with our
    receipt; `posted` is on its way.
    """

    def __init__(self, papers: Papers) -> None:
        self.stored = 0
        self.kept: tuple[Signed[Receipt], Signed[StorageReceipt]] | None = None
        self.posted: Signed[Receipt] | None = None
        self.is_over = False
        self._papers = papers
        self._paced_from: int | None = None
        self._losses = 0

    @property
    def is_whole(self) -> bool:
        """Whether the holder keeps the final receipt."""
        return self.kept is not None and self.kept[0] == self._papers.final

    def note(self, now: int) -> None:
        """There are new records: the first ones start the pace."""
        if self._paced_from is None:
            self._paced_from = now

    def due_at(self) -> int | None:
        """When the next prefix may go out; None while another is on its way or nothing is new."""
        if self._paced_from is None or not self._is_wanted():
            return None
        return self._paced_from + PREFIX_MS

    def post(self, now: int) -> tuple[PostReceipt, ...]:
        """The next hand-in, if there is something to hand in and nothing is on its way."""
        if not self._is_wanted():
            return ()
        papers, since, until = self._papers, self.stored, self._papers.done
        final = papers.final
        if until - since > MAX_DELIVERED:
            until, final = since + MAX_DELIVERED, None
        self.posted = final or papers.sign_prefix(until)
        self._paced_from = now
        provenance = papers.provenance if final is not None else b""
        return (PostReceipt(self.posted, since, tuple(papers.records[since:until]), provenance),)

    def take(self, event: Stored) -> bool:
        """The holder signed; False for a hand-in that is not the one on its way."""
        if self.posted is None or self.posted.body.count != event.count:
            return False
        self.stored, self.kept, self.posted = event.count, (self.posted, event.storage), None
        return True

    def lose(self) -> bool:
        """The holder lost what it had: begin again from the first record. False once that happened too often."""
        self.posted, self.stored = None, 0
        self._losses += 1
        return self._losses <= MAX_LOSSES

    def give_up(self) -> None:
        """Hand in nothing more."""
        self.posted, self.is_over = None, True

    def restart(self) -> None:
        """What was on its way may or may not have come through: it is sent again."""
        self.posted = None

    def _is_wanted(self) -> bool:
        """Whether there is something to hand in and nothing on its way. The last record of a whole range waits for the
        final receipt.
        """
        if self.posted is not None or self.is_over:
            return False
        if self._papers.is_complete:
            return self._papers.final is not None and not self.is_whole
        return self._papers.done > self.stored
