"""The book of one round of an order: bids acknowledged in a hash chain, closed under a signed root (R12 b, c).

Whoever holds an acknowledgement can show that its bid is missing from the book, or stands in another place:
`check_book` recomputes the chain from the bids alone. Leaves of the root are the canonical encodings of the signed
bids, in order of acknowledgement.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.messages import MAX_BOOK_BYTES, Acknowledgement, Book, Decline
from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_id
from chain.base.keys import Signed, Signer, verify
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Bid, compute_bid_id
from chain.ledger.terms.work import Span

MAX_BIDS = 256
"""Bids of one round; with longer ones `MAX_BOOK_BYTES` binds first."""

MAX_DECLINES = 256
"""Declines kept for the requester."""

MAX_DECLINE_BYTES = 8_192
"""Bytes of declines that go into the signed book, which with its spans has to fit one message; the requester gets all
of them in `Unmatched`.
"""

MAX_SPANS = 256
"""Spans that one round offers; what is beyond them waits for a later one."""

NOTHING = bytes(32)
"""`previous` of the first acknowledgement, `last` of an empty book."""


class OpenBook:
    """Bids and declines of one round of an order while it collects them. One bid and one decline per provider."""

    def __init__(self, signer: Signer, chain_id: bytes, order: bytes, number: int, spans: Sequence[Span]) -> None:
        self.bids: list[Signed[Bid]] = []
        self.declines: dict[bytes, Signed[Decline]] = {}
        self._signer = signer
        self._chain = chain_id
        self._order = order
        self._round = number
        self._spans = tuple(spans)
        self._given: dict[bytes, Signed[Acknowledgement]] = {}
        self._bidders: set[bytes] = set()
        self._last = NOTHING
        self._size = 0

    def answered(self) -> set[bytes]:
        """Providers that bid or declined."""
        return self._bidders | set(self.declines)

    def take_bid(self, bid: Signed[Bid]) -> Signed[Acknowledgement] | None:
        """Acknowledge a bid; the same bid again gets the same acknowledgement. None if it is not taken: a second one of
        its provider, or the book is full.
        """
        bid_id = compute_bid_id(self._chain, bid.body)
        if bid_id in self._given:
            return self._given[bid_id]
        size = len(encode(bid))
        if bid.body.provider in self._bidders or len(self.bids) >= MAX_BIDS or self._size + size > MAX_BOOK_BYTES:
            return None
        body = Acknowledgement(self._order, self._round, len(self.bids), bid_id, self._last)
        given = self._signer.sign(Tag.ACKNOWLEDGEMENT, self._chain, body)
        self.bids.append(bid)
        self._bidders.add(bid.body.provider)
        self._given[bid_id] = given
        self._last = compute_id(Tag.ACKNOWLEDGEMENT, self._chain, body)
        self._size += size
        return given

    def take_decline(self, decline: Signed[Decline]) -> None:
        """Keep a provider's first decline."""
        if len(self.declines) < MAX_DECLINES:
            self.declines.setdefault(decline.body.provider, decline)

    def close(self, now: int) -> Signed[Book]:
        """The signed book as it stands."""
        declines, size = [], 0
        for decline in self.declines.values():
            size += len(encode(decline))
            if size > MAX_DECLINE_BYTES:
                break
            declines.append(decline)
        root = compute_book_root(self.bids)
        body = Book(self._order, self._round, self._spans, tuple(self.bids), tuple(declines), self._last, root, now)
        return self._signer.sign(Tag.BOOK, self._chain, body)


def compute_book_root(bids: Sequence[Signed[Bid]]) -> bytes:
    """RFC 6962 root over the signed bids in order of acknowledgement: what awards name as `book`."""
    return compute_root([encode(bid) for bid in bids])


def check_book(chain_id: bytes, broker: bytes, signed: Signed[Book]) -> Book:
    """A book whose every signature, root and hash chain hold; raises `Refused` under `signature.book`,
    `signature.bid`, `signature.decline`, `R12.order`, `R12.spans`, `R12.root` or `R12.chain`.
    """
    # 1. Signed by the broker.
    book = verify(signed, Tag.BOOK, chain_id, broker)
    # 2. Bids and declines are of this order, each by its own provider.
    for bid in book.bids:
        verify(bid, Tag.BID, chain_id, bid.body.provider)
    for decline in book.declines:
        verify(decline, Tag.DECLINE, chain_id, decline.body.provider)
    orders = {bid.body.order for bid in book.bids} | {decline.body.order for decline in book.declines}
    if orders - {book.order}:
        raise Refused("the book holds a bid or decline of another order", rule="R12.order")
    # 3. What was offered is in order, disjoint and not empty.
    end = 0
    for span in book.spans:
        if span.count == 0 or span.first < end:
            raise Refused("the spans of the book are not ascending, disjoint and not empty", rule="R12.spans")
        end = span.first + span.count
    # 4. The root is over these bids.
    if compute_book_root(book.bids) != book.root:
        raise Refused("the root of the book is not over its bids", rule="R12.root")
    # 5. Acknowledging them in this order ends in `last`.
    last = NOTHING
    for sequence, bid in enumerate(book.bids):
        body = Acknowledgement(book.order, book.round, sequence, compute_bid_id(chain_id, bid.body), last)
        last = compute_id(Tag.ACKNOWLEDGEMENT, chain_id, body)
    if last != book.last:
        raise Refused("the acknowledgements of these bids do not end in the book's last one", rule="R12.chain")
    return book


def is_equivocation(first: Acknowledgement, second: Acknowledgement) -> bool:
    """Whether two acknowledgements of one round of an order prove a fault: different ones with one predecessor or one
    number (R12 b).
    """
    if (first.order, first.round) != (second.order, second.round) or first == second:
        return False
    return first.previous == second.previous or first.sequence == second.sequence


def find_hidden_bid(book: Book, acknowledgement: Acknowledgement, chain_id: bytes) -> bool:
    """Whether the book hides or moves the bid that was acknowledged (R12 c); false for one of another round."""
    if (acknowledgement.order, acknowledgement.round) != (book.order, book.round):
        return False
    place = acknowledgement.sequence
    if place >= len(book.bids):
        return True
    return compute_bid_id(chain_id, book.bids[place].body) != acknowledgement.bid
