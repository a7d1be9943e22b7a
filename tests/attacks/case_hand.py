"""The forger's hand: a genuine case to change, and every hash, root and id that needs no key mended after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.protocol.messages import Acknowledgement
from chain.base.codec import decode, encode
from chain.base.hashing import Tag, compute_digest, compute_id
from chain.base.keys import Signer
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import compute_bid_id, compute_lease_id
from chain.ledger.terms.work import SegmentRecord, compute_receipt_id, compute_records_root
from requester.purchase.casefile import CaseContent, Manifest, write_case
from requester.purchase.documents import LeasePapers
from tests.attacks.case_chain import change
from tests.attacks.case_frames import join_frames, split_frames
from tests.attacks.case_world import Play, find_in

MALLORY = Signer(b"m" * 32)
OTHER = compute_digest(b"other")


class Hand:
    """What the forger holds: a genuine case, another genuine job on the same chain, and no key of theirs."""

    def __init__(self, play: Play, other: Play) -> None:
        self.play, self.other = play, other
        self.documents, self.records = play.documents, dict(play.records)
        self.blobs, self.genesis = dict(play.blobs), play.chain.genesis
        self.swapped: dict[bytes, bytes] = {}
        self.outputs = True
        self.manifest: dict[str, Any] = {}

    def set(self, **fields: Any) -> None:
        self.documents = change(self.documents, **fields)

    def get(self, place: int = 0) -> LeasePapers:
        return self.documents.leases[place]

    def put(self, place: int = 0, **fields: Any) -> None:
        leases = list(self.documents.leases)
        leases[place] = change(leases[place], **fields)
        self.set(leases=tuple(leases))

    def set_body(self, name: str, place: int = 0, **fields: Any) -> None:
        """Change a signed paper of a lease; its signature stays the old one."""
        signed = getattr(self.get(place), name)
        self.put(place, **{name: change(signed, body=change(signed.body, **fields))})

    def set_records(self, place: int, records: tuple[SegmentRecord, ...]) -> None:
        self.records[self.get(place).lease] = records

    def mend_lease(self, place: int = 0) -> None:
        """The lease's id as its award now gives it, in everything that names it."""
        old = self.get(place).lease
        new = compute_lease_id(self.documents.chain, self.get(place).award.body)
        self.put(place, lease=new)
        self.records[new] = tuple(change(record, lease=new) for record in self.records.pop(old))
        for name in ("receipt", "storage", "acceptance"):
            self.set_body(name, place, lease=new)
        self.put(place, seen=change(self.get(place).seen, lease=new))
        self.mend_receipt(place)

    def mend_receipt(self, place: int = 0) -> None:
        """The receipt over the records as they are now, and its id in all that names it."""
        papers = self.get(place)
        records = self.records[papers.lease]
        self.set_body("receipt", place, records=compute_records_root(records), count=len(records))
        self.mend_id(place)

    def mend_id(self, place: int = 0) -> None:
        """The receipt's id in storage receipt, acceptance and in what the chain is said to have shown."""
        papers = self.get(place)
        assert papers.receipt is not None
        identity = compute_receipt_id(self.documents.chain, papers.receipt.body)
        self.set_body("storage", place, receipt=identity)
        if papers.acceptance is not None:
            self.set_body("acceptance", place, receipt=identity)
        self.put(place, seen=change(papers.seen, receipt=identity))

    def mend_book(self, place: int = 0, **fields: Any) -> None:
        """A book with other members: bids under a new root, acknowledgements linked anew, awards that name it."""
        books = list(self.documents.books)
        body = change(books[place].body, **fields)
        previous = bytes(32)
        for sequence, bid in enumerate(body.bids):
            bid_id = compute_bid_id(self.documents.chain, bid.body)
            link = Acknowledgement(body.order, body.round, sequence, bid_id, previous)
            previous = compute_id(Tag.ACKNOWLEDGEMENT, self.documents.chain, link)
        root = compute_root([encode(bid) for bid in body.bids])
        books[place] = change(books[place], body=change(body, root=root, last=previous))
        self.set(books=tuple(books))

    def write(self) -> bytes:
        """The file, its digests right again. Swapped blobs stand where the genuine ones did."""
        content = CaseContent(self.documents, self.records, find_in(self.blobs), outputs=self.outputs, inputs=True)
        frames = split_frames(b"".join(write_case(content)))[:-1]
        manifest = encode(change(decode(frames[0][1], Manifest), **self.manifest))
        others = [(name, self.swapped.get(compute_digest(body), body)) for name, body in frames[1:]]
        return join_frames([("manifest", manifest), *others])


Forge = Callable[[Hand], object]
Row = tuple[str, str, Forge, int]
"""What is forged, of which job, how, and the number of the check that must fail."""


def sign_own(hand: Hand, name: str, tag: Tag, place: int = 0, **fields: Any) -> None:
    """A paper signed by the forger herself."""
    body = change(getattr(hand.get(place), name).body, **fields)
    hand.put(place, **{name: MALLORY.sign(tag, hand.documents.chain, body)})
