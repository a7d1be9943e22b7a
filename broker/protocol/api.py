"""Bodies of the broker's HTTP API, canonical like everything that carries signatures, and what a requester hears of
its job.

Routes (version 1; every request but `GET /v1/info` is signed by its account, RFC 9421):

| route | body -> answer | who |
|---|---|---|
| GET /v1/info | -> JSON `Info` | anyone |
| PUT /v1/blobs/{hex} | the whole blob -> 201 | any account with a balance |
| HEAD, PATCH /v1/uploads/{hex} | a piece at `Upload-Offset` -> 204 and the new offset; 201 with the last | the same |
| GET, HEAD /v1/blobs/{hex} | `Range` -> bytes | parties of a job that names the blob |
| POST /v1/blobs | `Parcel` -> 201 | any account with a balance |
| POST /v1/blobs/wanted | `Wanted` -> `Parcel` of as many as fit, in that order, unknown ones left out | as GET |
| POST /v1/estimate | `Enquiry` -> JSON `Estimate` | any account with a balance |
| POST /v1/orders | `Submission` -> JSON {"order": hex} | the requester |
| GET /v1/orders | -> JSON list of `JobSummary` | the requester's own |
| GET /v1/orders/{hex}/events?after=N&wait_ms=M | -> `Events` (long poll) | requester and watcher |
| POST /v1/orders/{hex}/cancel | `Signed[Cancellation]` -> 202 | the requester |
| GET /v1/providers | -> JSON list of `ProviderView` | anyone |
| POST /v1/leases/{hex}/receipt | `Delivery` -> `Signed[StorageReceipt]` | the lease's provider |
| POST /v1/leases/{hex}/acceptance | `Signed[Acceptance]` -> 202 | requester or watcher |
| GET /v1/leases/{hex}/acceptance?wait_ms=M | -> `Signed[Acceptance]`, or 404 | the lease's provider |

Errors are RFC 9457 problem+json (`Problem`) with `rule` as an extension member.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Book, Decline, Words
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Key, Signed
from chain.base.units import Amount, Count, Instant
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import Acceptance, Receipt, SegmentRecord, Span, StorageReceipt

PROTOCOL_VERSION = 2
"""Spoken by this release; another one is refused by name (`protocol.version`)."""

INLINE_BYTES = 262_144
"""Blobs up to this sum may ride inside a submission, delivery or event instead of a PUT or GET of their own."""

MAX_BODY_BYTES = 4 << 20
"""Largest canonical body of a request or an answer: records of a long lease and its inline blobs. Blobs of their own
have the broker's `max_blob_bytes`.
"""

MAX_WAIT_MS = 30_000
"""Longest `wait_ms` of a long poll; a larger one is cut to this."""

MAX_PIECE_BYTES = 8 << 20
"""Largest piece of an upload: what is lost with a connection."""

MAX_PARCEL_BYTES = 2 << 20
"""Blobs of one parcel together; a larger blob travels by itself."""

MAX_DELIVERED = 1_024
"""Records in one delivery; a longer range is handed in by prefixes (R5)."""

Blobs = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=2_048)]


class Info(msgspec.Struct, frozen=True):
    """What the broker says of itself, as JSON. Keys are hex; `bus` is an MQTT URL; `retention_ms` is how long outputs
    are kept; `note` says why no lease can be opened just now, where that is so.
    """

    version: int
    software: str
    chain: str
    broker: str
    bus: str
    commission_bps: int
    retention_ms: int
    max_blob_bytes: int
    providers: int
    note: str = ""


class JobSummary(msgspec.Struct, frozen=True):
    """A line of a requester's list of jobs, as JSON. `order` is hex; `state` is the kind of the newest event
    (`announced` … `accepted`), or how it ended.
    """

    order: str
    title: str
    state: str
    posted: int


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 problem details; `rule` is the name of the rule that was broken."""

    title: str
    status: int
    detail: str
    rule: str
    type: str = "about:blank"


class Submission(Record, frozen=True, tag="submission"):
    """A signed order, the job spec it names, and small blobs inline."""

    version: Count
    order: Signed[Order]
    spec: JobSpec
    blobs: Blobs


class Parcel(Record, frozen=True, tag="parcel"):
    """Small blobs that travel together, at most `MAX_PARCEL_BYTES`."""

    blobs: Blobs


class Wanted(Record, frozen=True, tag="wanted"):
    """Digests of blobs that are asked for together."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=2_048)]


class Enquiry(Record, frozen=True, tag="enquiry"):
    """What would an order like this meet? Nothing is signed and nothing comes of it."""

    order: Order
    spec: JobSpec


class Estimate(msgspec.Struct, frozen=True):
    """What the market would say to an order, as JSON, by the offers and list prices that stand now. Prices are
    micro-credits per segment; `matching` providers fit, `lowest` and `median` are 0 where none does. `advice` is the
    smallest change that would bring (more) bids.
    """

    matching: int
    providers: int
    lowest: int
    median: int
    advice: str


class ProviderView(msgspec.Struct, frozen=True):
    """A provider as it offers itself at present, as JSON; `key` is hex."""

    key: str
    pythons: list[str]
    packages: list[str]
    level: str
    slots: int
    memory_bytes: int
    millicores: int
    segment_wall_ms: int
    bond_free: int
    base: int
    core_second: int
    gib_second: int


class Cancellation(Record, frozen=True, tag="cancellation"):
    """The requester takes its order back: no lease is opened any more. Those that are open end by the chain's
    `Cancel`.
    """

    order: Digest
    requester: Key
    at: Instant


class Delivery(Record, frozen=True, tag="delivery"):
    """A provider's receipt over a prefix of its range (R5) with the records that are new since an earlier one: those
    from number `since` of the lease on. The receipt covers exactly `since + len(records)`. Small blobs (outputs,
    errors, log) ride inline; larger ones were stored before.
    """

    receipt: Signed[Receipt]
    since: Count
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=MAX_DELIVERED)]
    blobs: Blobs


class Announced(Record, frozen=True, tag="announced"):
    """Segments of the order were announced; `expected` providers are known to match; bids until `closes`."""

    at: Instant
    round: Count
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=256)]
    expected: Count
    closes: Instant


class Closed(Record, frozen=True, tag="closed"):
    """A round's auction closed with this signed book."""

    at: Instant
    book: Signed[Book]


class Unmatched(Record, frozen=True, tag="unmatched"):
    """Nobody could be awarded. `lowest` is the lowest price per segment at which someone would have bid (0: nobody at
    any price); `text` is the smallest change that would have brought a bid; one decline per provider.
    """

    at: Instant
    lowest: Amount
    text: Words
    declines: Annotated[tuple[Signed[Decline], ...], msgspec.Meta(max_length=256)]


class Awarded(Record, frozen=True, tag="awarded"):
    """A bid won a range; its lease is being opened on the chain."""

    at: Instant
    award: Signed[Award]
    bid: Signed[Bid]
    lease: Digest


class Failed(Record, frozen=True, tag="failed"):
    """The chain refused to open an award's lease, under `rule`; its range goes to another bid."""

    at: Instant
    lease: Digest
    rule: Words


class Opened(Record, frozen=True, tag="opened"):
    """The lease stands in a final block."""

    at: Instant
    lease: Digest


class Advanced(Record, frozen=True, tag="advanced"):
    """Progress and live output, as the provider sent it (see `broker.protocol.messages.Progress`)."""

    at: Instant
    lease: Digest
    done: Count
    total: Count
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=64)]
    log_offset: Amount
    log: bytes


class Delivered(Record, frozen=True, tag="delivered"):
    """A provider's receipt, of a prefix or final, arrived, and the broker holds what it names. The delivery is
    without its blobs: see `Events.blobs`.
    """

    at: Instant
    delivery: Delivery
    storage: Signed[StorageReceipt]


class Accepted(Record, frozen=True, tag="accepted"):
    """The requester's acceptance was taken and passed on."""

    at: Instant
    acceptance: Signed[Acceptance]


class Left(Record, frozen=True, tag="left"):
    """A lease is over or was cut: `state` is the chain's word, the first `served` of its segments count."""

    at: Instant
    lease: Digest
    state: Words
    served: Count


class Ended(Record, frozen=True, tag="ended"):
    """The job is over for the broker: `state` is the last state of its lease on the chain where it had one; else
    `settled` if every segment is covered, `partly` if some are; or `unmatched`, `withdrawn`, `refused`.
    """

    at: Instant
    state: Words
    text: Words


JobEvent = Announced | Closed | Unmatched | Awarded | Failed | Opened | Advanced | Delivered | Accepted | Left | Ended
"""All a requester hears of its job, in order; every number it acts on is checked against signatures or the chain."""


class Events(Record, frozen=True, tag="events"):
    """A page of a job's events; ask again with `after=next`, a cursor that means nothing to anybody but the broker.
    Progress events may be dropped by a restart, documents never. `blobs` are small ones that deliveries among the
    items name, up to `INLINE_BYTES`; what is not there is fetched.
    """

    next: Amount
    items: Annotated[tuple[JobEvent, ...], msgspec.Meta(max_length=1024)]
    blobs: Blobs = ()
