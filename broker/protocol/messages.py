"""Messages on the bus, each signed under its own domain tag; the topic is only a hint (threats.md row 24).

Providers say `Offer`, `Bid`, `Decline`, `Progress`; the broker says `Announcement`, `Acknowledgement`, `Book`,
`Withdrawal`, and passes on `Award` and `Acceptance`.

An `Award` goes to its winner's own topic at once (fetch, get ready; nothing is owed yet), and to all as soon as its
lease stands in a final block: whoever bid and did not win is then free. A `Withdrawal` to all frees everybody. A
provider learns of its leases from the chain alone (R3).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from broker.protocol.jobs import JobSpec, Level, Runtime
from chain.base.codec import Record, decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Digest, Tag
from chain.base.keys import Key, Signed, Signer, verify
from chain.base.units import Amount, Count, Instant, Millis
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import Acceptance, SegmentRecord, Span

MAX_MESSAGE_BYTES = 65_536
"""Largest bus message; the MQTT server's packet limit is set a little above."""

MAX_BOOK_BYTES = 49_152
"""Bids of one order whose encodings add up to more are refused, so that the signed book fits one message."""

LOG_CHUNK_BYTES = 16_384
"""Most log bytes in one progress message."""

Words = Annotated[str, msgspec.Meta(max_length=500)]


class Tariff(Record, frozen=True, tag="tariff"):
    """List prices in micro-credits: per segment, per core and second of its wall limit, per GiB and second of it."""

    base: Amount
    core_second: Amount
    gib_second: Amount


class Offer(Record, frozen=True, tag="offer"):
    """What a provider has and can enforce: its retained presence. Stands until `valid_until`; a higher `sequence`
    replaces it (threats.md row 27). Without slots it is a farewell. `prices` is what it asks at present, for
    estimates: a bid may differ.
    """

    provider: Key
    sequence: Instant
    valid_until: Instant
    runtimes: Annotated[tuple[Runtime, ...], msgspec.Meta(max_length=64)]
    level: Level
    slots: Count
    memory_bytes: Amount
    millicores: Count
    segment_wall: Millis
    bond_free: Amount
    prices: Tariff


class Announcement(Record, frozen=True, tag="announcement"):
    """The broker offers the segments `spans` of an order to all providers; bids are taken until `closes`.

    Round 0 offers all of them; a later one what leases that are over left unserved, and then closes later than the
    order says. A bid is for any contiguous part of one span.
    """

    broker: Key
    order: Signed[Order]
    spec: JobSpec
    round: Count
    spans: Annotated[tuple[Span, ...], msgspec.Meta(min_length=1, max_length=256)]
    closes: Instant


class Reason(StrEnum):
    """Why a provider does not bid."""

    RUNTIME = "runtime"
    MEMORY = "memory"
    CORES = "cores"
    LEVEL = "level"
    WALL = "wall"
    DEADLINE = "deadline"
    BUSY = "busy"
    PRICE = "price"
    BOND = "bond"
    POLICY = "policy"


PASSING = frozenset({Reason.BUSY, Reason.BOND})
"""Reasons that pass when another lease of the provider ends: it may bid after all before the auction closes."""


class Decline(Record, frozen=True, tag="decline"):
    """A signed refusal with its reason and the nearest offer the provider could make: `nearest` is in the reason's
    own unit (bytes, millicores, ms, micro-credits per segment), `text` says it in words.
    """

    order: Digest
    provider: Key
    reason: Reason
    nearest: Amount
    text: Words


class Acknowledgement(Record, frozen=True, tag="acknowledgement"):
    """The broker has taken a bid as number `sequence` of this round of an order; `previous` is the id of the
    acknowledgement before (zeros for the first). Two with one predecessor prove equivocation (R12 b).
    """

    order: Digest
    round: Count
    sequence: Count
    bid: Digest
    previous: Digest


class Book(Record, frozen=True, tag="book"):
    """The signed book of a round at its close: all acknowledged bids in order of acknowledgement and all declines,
    under one RFC 6962 root over the bids (R12). `spans` are the segments that were offered, `last` is the id of the
    last acknowledgement; `root` is what awards name.
    """

    order: Digest
    round: Count
    spans: Annotated[tuple[Span, ...], msgspec.Meta(min_length=1, max_length=256)]
    bids: Annotated[tuple[Signed[Bid], ...], msgspec.Meta(max_length=256)]
    declines: Annotated[tuple[Signed[Decline], ...], msgspec.Meta(max_length=256)]
    last: Digest
    root: Digest
    closed: Instant


class Withdrawal(Record, frozen=True, tag="withdrawal"):
    """An order will not be awarded (any more): reserved capacity is free. `text` says why."""

    order: Digest
    text: Words


class Progress(Record, frozen=True, tag="progress"):
    """Where a lease stands: segments done, the newest records, and log bytes from `log_offset` on. `sequence` counts
    up per lease. A hint: what counts comes with a receipt.
    """

    lease: Digest
    provider: Key
    sequence: Count
    done: Count
    total: Count
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=64)]
    log_offset: Amount
    log: Annotated[bytes, msgspec.Meta(max_length=LOG_CHUNK_BYTES)]


TAGS: dict[type, Tag] = {
    Offer: Tag.OFFER,
    Announcement: Tag.ANNOUNCEMENT,
    Decline: Tag.DECLINE,
    Acknowledgement: Tag.ACKNOWLEDGEMENT,
    Book: Tag.BOOK,
    Withdrawal: Tag.WITHDRAWAL,
    Progress: Tag.PROGRESS,
    Bid: Tag.BID,
    Award: Tag.AWARD,
    Acceptance: Tag.ACCEPTANCE,
}
"""Under which tag each message is signed."""

FromProvider = Offer | Bid | Decline | Progress
"""What the broker hears on the bus."""

FromBroker = Announcement | Acknowledgement | Book | Withdrawal | Award | Acceptance
"""What a provider hears on the bus. An acceptance is signed by its requester, all else by the broker."""


def sign_message(signer: Signer, chain_id: bytes, body: Any) -> bytes:
    """Bus bytes of a message: signed under its tag, canonical, at most MAX_MESSAGE_BYTES (else `Refused`,
    `bus.size`).
    """
    data = encode(signer.sign(TAGS[type(body)], chain_id, body))
    if len(data) > MAX_MESSAGE_BYTES:
        raise Refused(f"a message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}", rule="bus.size")
    return data


def read_from_provider(data: bytes, chain_id: bytes) -> Signed[Any]:
    """Decode and verify a provider's message against the key in its own body; raises `Refused` by name."""
    signed: Signed[Any] = decode(data, Signed[FromProvider], max_bytes=MAX_MESSAGE_BYTES)
    verify(signed, TAGS[type(signed.body)], chain_id, signed.body.provider)
    return signed


def read_from_broker(data: bytes, chain_id: bytes, broker: bytes) -> Signed[Any]:
    """Decode and verify a broker's message (an acceptance against its own signer); raises `Refused` by name."""
    signed: Signed[Any] = decode(data, Signed[FromBroker], max_bytes=MAX_MESSAGE_BYTES)
    key = signed.body.signer if isinstance(signed.body, Acceptance) else broker
    verify(signed, TAGS[type(signed.body)], chain_id, key)
    return signed
