"""What a requester keeps of one job: enough to check it again without any network.

One job has papers of each of its leases, the books of its rounds, and for a `map` the digests of its items. Together
they can pass what the codec takes for one object, so they are kept and carried in *parts*, each a canonical object of
its own within the codec's bounds (`split_documents`, `join_documents`). The records of a lease lie beside its papers
in chunks of at most `MAX_CHUNK`: rows (job, lease, since, data) of the store, where data is an encoded `RecordChunk`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from broker.protocol.api import Unmatched
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Book
from chain.base.codec import Record, decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import Count
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import Acceptance, Receipt, SegmentRecord, StorageReceipt
from chain.rpc.proofs import LeaseProof, TxProof
from requester.purchase.events import LeaseSeen

MAX_CHUNK = 1_024
"""Records in one chunk: as many as one delivery brings. A record has some 20 elements, the codec takes 65,536."""

MAX_ITEM_DIGESTS = 16_384
"""Digests of items in one part."""

MAX_PARTS = 4_096
"""Parts of one job: its head, up to 1,024 leases (the chain takes no more of one order) and as many books, items."""

MAX_PART_BYTES = 4 << 20
"""Largest encoding of one part or chunk: a lease with two proofs of 1,024 headers each is the largest."""

T = TypeVar("T")


class LeasePapers(Record, frozen=True, kw_only=True, tag="lease-papers"):
    """Everything signed about one lease but its records. What never came is None.

    `round` is that of the award's book; `seen` is the lease as the chain last showed it, `proof` proves the
    transaction that ended it (a timer has none), `state` the lease as it then stood in the chain's state.
    """

    lease: Digest
    round: Count
    award: Signed[Award]
    bid: Signed[Bid]
    receipt: Signed[Receipt] | None = None
    storage: Signed[StorageReceipt] | None = None
    acceptance: Signed[Acceptance] | None = None
    seen: LeaseSeen | None = None
    proof: TxProof | None = None
    state: LeaseProof | None = None


class Documents(msgspec.Struct, frozen=True, kw_only=True):
    """Everything signed about one job but the records of its leases. A job that is not over lacks some of them.

    `items` are the digests of a `map`'s items, in order. `books` are in order of their rounds, `leases` in order of
    their award. `tried` are ids of bids whose award did not open a lease.
    """

    chain: Digest
    order: Signed[Order]
    spec: JobSpec
    items: tuple[Digest, ...] = ()
    books: tuple[Signed[Book], ...] = ()
    tried: tuple[Digest, ...] = ()
    leases: tuple[LeasePapers, ...] = ()
    unmatched: Unmatched | None = None


class RecordChunk(Record, frozen=True, tag="record-chunk"):
    """Records of a lease from number `since` of that lease on."""

    lease: Digest
    since: Count
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=MAX_CHUNK)]


class _Head(Record, frozen=True, tag="documents-head"):
    chain: Digest
    order: Signed[Order]
    spec: JobSpec
    tried: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=2_048)]
    unmatched: Unmatched | None


class _Items(Record, frozen=True, tag="documents-items"):
    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_ITEM_DIGESTS)]


def split_documents(documents: Documents) -> dict[str, bytes]:
    """The documents in parts by name: `head`, `items/NNNN`, `book/NNNN`, `lease/NNNN`, each number counting from 0.

    Sorted by name; the same documents give the same parts, and a change changes few of them.
    """
    head = _Head(documents.chain, documents.order, documents.spec, documents.tried, documents.unmatched)
    parts: dict[str, bytes] = {"head": encode(head)}
    starts = range(0, len(documents.items), MAX_ITEM_DIGESTS)
    chunks = [_Items(documents.items[start : start + MAX_ITEM_DIGESTS]) for start in starts]
    for kind, rows in (("items", chunks), ("book", documents.books), ("lease", documents.leases)):
        parts |= {f"{kind}/{number:04}": encode(row) for number, row in enumerate(rows)}
    return dict(sorted(parts.items()))


def join_documents(parts: Mapping[str, bytes]) -> Documents:
    """The documents of these parts, and of none but these.

    Raises `Refused` under a `codec.` rule for a part that is spoiled, under `documents.parts` where a part is missing,
    too many, or has a name that `split_documents` gives to none.
    """
    if len(parts) > MAX_PARTS:
        raise Refused(f"{len(parts)} parts where at most {MAX_PARTS} are taken", rule="documents.parts")
    head = _read(parts, "head", _Head)
    chunks = _read_all(parts, "items", _Items)
    books = _read_all(parts, "book", Signed[Book])
    leases = _read_all(parts, "lease", LeasePapers)
    if len(parts) != 1 + len(chunks) + len(books) + len(leases):
        raise Refused("a part of the documents is missing, or is none", rule="documents.parts")
    if any(len(chunk.digests) != MAX_ITEM_DIGESTS for chunk in chunks[:-1]):
        raise Refused("a part of the items is not full, but others follow", rule="documents.parts")
    return Documents(
        chain=head.chain,
        order=head.order,
        spec=head.spec,
        items=tuple(digest for chunk in chunks for digest in chunk.digests),
        books=tuple(books),
        tried=head.tried,
        leases=tuple(leases),
        unmatched=head.unmatched,
    )


def make_chunks(lease: bytes, records: Sequence[SegmentRecord], since: int = 0) -> list[RecordChunk]:
    """Records of a lease in chunks, the first of them being number `since`."""
    return [
        RecordChunk(lease, since + start, tuple(records[start : start + MAX_CHUNK]))
        for start in range(0, len(records), MAX_CHUNK)
    ]


def join_chunks(lease: bytes, chunks: Iterable[RecordChunk]) -> tuple[SegmentRecord, ...]:
    """The records of a lease from its chunks in order of `since`.

    Raises `Refused` under `documents.records` for chunks of another lease, or that leave a gap or overlap.
    """
    records: list[SegmentRecord] = []
    for chunk in chunks:
        if chunk.lease != lease or chunk.since != len(records):
            raise Refused(f"records from {chunk.since} on where {len(records)} follow", rule="documents.records")
        records += chunk.records
    return tuple(records)


def _read_all(parts: Mapping[str, bytes], kind: str, form: type[T]) -> list[T]:
    count = sum(name.startswith(f"{kind}/") for name in parts)
    return [_read(parts, f"{kind}/{number:04}", form) for number in range(count)]


def _read(parts: Mapping[str, bytes], name: str, form: type[T]) -> T:
    if name not in parts:
        raise Refused(f"the part {name} of the documents is missing", rule="documents.parts")
    return decode(parts[name], form, max_bytes=MAX_PART_BYTES)
