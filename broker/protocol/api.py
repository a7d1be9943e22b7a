"""Bodies of the broker's HTTP API, canonical like everything that carries signatures, and what a requester hears of
its job.

Routes (version 1; every request but `GET /v1/info` is signed by its account, RFC 9421):

| route | body -> answer | who |
|---|---|---|
| GET /v1/info | -> JSON `Info` | anyone |
| PUT, GET, HEAD /v1/blobs/{hex} | bytes | parties of a job that names the blob; PUT: any account with a balance |
| POST /v1/orders | `Submission` -> JSON {"order": hex} | the requester |
| GET /v1/orders | -> JSON list of `JobSummary` | the requester's own |
| GET /v1/orders/{hex}/events?after=N&wait_ms=M | -> `Events` (long poll) | requester and watcher |
| POST /v1/orders/{hex}/cancel | `Signed[Cancellation]` -> 202 | the requester |
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
from chain.ledger.terms.work import Acceptance, Receipt, SegmentRecord, StorageReceipt

PROTOCOL_VERSION = 1
"""Spoken by this release; another one is refused by name (`protocol.version`)."""

INLINE_BYTES = 262_144
"""Blobs up to this sum may ride inside a submission, delivery or event instead of a PUT or GET of their own."""

MAX_BODY_BYTES = 4 << 20
"""Largest canonical body of a request or an answer: records of a long lease and its inline blobs. Blobs of their own
have the broker's `max_blob_bytes`.
"""

MAX_WAIT_MS = 30_000
"""Longest `wait_ms` of a long poll; a larger one is cut to this."""

Blobs = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=64)]


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


class Cancellation(Record, frozen=True, tag="cancellation"):
    """The requester takes its order back, as far as no lease has opened (then it is the chain's `Cancel`)."""

    order: Digest
    requester: Key
    at: Instant


class Delivery(Record, frozen=True, tag="delivery"):
    """A provider's receipt with all its records, and small blobs (outputs, errors, log) inline; larger ones were PUT
    before.
    """

    receipt: Signed[Receipt]
    records: Annotated[tuple[Signed[SegmentRecord], ...], msgspec.Meta(max_length=4096)]
    blobs: Blobs


class Announced(Record, frozen=True, tag="announced"):
    """The order was taken and announced; `expected` providers are known to match; bids until `closes`."""

    at: Instant
    expected: Count
    closes: Instant


class Closed(Record, frozen=True, tag="closed"):
    """The auction closed with this signed book."""

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
    """A bid won; the lease is being opened on the chain."""

    at: Instant
    award: Signed[Award]
    bid: Signed[Bid]
    lease: Digest


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
    records: Annotated[tuple[Signed[SegmentRecord], ...], msgspec.Meta(max_length=64)]
    log_offset: Amount
    log: bytes


class Delivered(Record, frozen=True, tag="delivered"):
    """The provider's receipt arrived and the broker holds what it names."""

    at: Instant
    delivery: Delivery
    storage: Signed[StorageReceipt]


class Accepted(Record, frozen=True, tag="accepted"):
    """The requester's acceptance was taken and passed on."""

    at: Instant
    acceptance: Signed[Acceptance]


class Ended(Record, frozen=True, tag="ended"):
    """The job is over for the broker: `state` is the lease's last state on the chain, or `unmatched`, `withdrawn`,
    `refused`.
    """

    at: Instant
    state: Words
    text: Words


JobEvent = Announced | Closed | Unmatched | Awarded | Opened | Advanced | Delivered | Accepted | Ended
"""All a requester hears of its job, in order; every number it acts on is checked against signatures or the chain."""


class Events(Record, frozen=True, tag="events"):
    """A page of a job's events; ask again with `after=next`, a cursor that means nothing to anybody but the broker.
    Progress events may be dropped by a restart, documents never.
    """

    next: Amount
    items: Annotated[tuple[JobEvent, ...], msgspec.Meta(max_length=1024)]
