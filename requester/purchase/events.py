"""What the purchase machine hears and what it asks for: closed unions of small structs (habits.md 5).

Events are canonical records, stored in the journal before anything follows from them, unless `durable` is False.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from broker.protocol.api import MAX_DELIVERED, Advanced, JobEvent, Submission
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import Amount, Count, Height, Instant
from chain.ledger.terms.work import Acceptance, Receipt, SegmentRecord

Short = Annotated[str, msgspec.Meta(max_length=2_000)]
"""A message for people; whoever makes the event cuts it."""

MAX_FETCH = 2_048
"""Blobs asked for at once: as many as one request to the broker may name."""


# ---- events ----


class Submitted(Record, frozen=True, tag="submitted"):
    """The broker has taken the order."""


class SubmitFailed(Record, frozen=True, tag="submit-failed"):
    """The broker refused the order under `rule`, or (`again`) could not be reached."""

    rule: Short
    text: Short
    again: bool


class Heard(Record, frozen=True, tag="heard"):
    """One event of the job as the broker tells it; `after` is where to go on listening. Blobs that came with it
    were kept.
    """

    item: JobEvent
    after: Amount


class Moved(Record, frozen=True, tag="moved"):
    """Progress or live output. Not stored: it changes nothing."""

    durable: ClassVar[bool] = False
    item: Advanced


class Found(Record, frozen=True, tag="found"):
    """A blob that is at hand and matches its digest."""

    digest: Digest
    size: Amount


class BlobsFetched(Record, frozen=True, tag="fetched"):
    """All blobs of one `FetchBlobs` were tried; `found` holds those that the broker had and that match."""

    lease: Digest
    found: Annotated[tuple[Found, ...], msgspec.Meta(max_length=MAX_FETCH)]


class FetchFailed(Record, frozen=True, tag="fetch-failed"):
    """The broker could not be reached for blobs of a lease; worth trying again."""

    lease: Digest
    text: Short


class AcceptancePosted(Record, frozen=True, tag="posted"):
    """The broker has taken the acceptance of a lease."""

    lease: Digest


class AcceptanceFailed(Record, frozen=True, tag="post-failed"):
    """The broker did not take the acceptance of a lease."""

    lease: Digest
    rule: Short
    text: Short


class LeaseSeen(Record, frozen=True, tag="lease-seen"):
    """A lease as a final block shows it: `count` segments from `first` on. `tx` is the id of the transaction that
    changed it, empty for a timer.

    `held` segments are still at stake, `served` are in the receipt on the chain, whose id is `receipt` (empty where
    there is none).
    """

    lease: Digest
    state: Short
    first: Count
    count: Count
    held: Count
    served: Count
    receipt: Annotated[bytes, msgspec.Meta(max_length=32)]
    paid: Amount
    commission: Amount
    refunded: Amount
    damages: Amount
    burned: Amount
    height: Height
    time: Instant
    tx: Short


class SettleFailed(Record, frozen=True, tag="settle-failed"):
    """Our own settle of a lease was refused or could not be sent."""

    lease: Digest
    rule: Short
    text: Short


class Restarted(Record, frozen=True, tag="restarted"):
    """The process started (again); what is outstanding must be asked for again."""


Answer = Submitted | SubmitFailed | BlobsFetched | FetchFailed | AcceptancePosted | AcceptanceFailed | SettleFailed
"""What comes back of effects."""

PurchaseEvent = Answer | Heard | Moved | LeaseSeen | Restarted
"""All the machine hears."""


# ---- effects ----


class SubmitOrder(Record, frozen=True, tag="do-submit"):
    """Send the order; answer `Submitted` or `SubmitFailed`. The blobs it names are added by whoever sends it."""

    submission: Submission


class Listen(Record, frozen=True, tag="do-listen"):
    """Keep listening to the broker's events of this order from `after` on; post `Heard` and `Moved`. Small blobs that
    come with a page are kept before its events are posted, so that a `FetchBlobs` finds them.
    """

    after: Amount


class StopListening(Record, frozen=True, tag="do-stop-listening"):
    """Hear the broker no more: it has told more than an honest one could. The chain is watched on."""


class WatchChain(Record, frozen=True, tag="do-watch"):
    """Keep watching the chain for all leases of this order; post `LeaseSeen` for each change."""


class KeepRecords(Record, frozen=True, tag="do-keep"):
    """Keep these verified records of a lease, from its number `since` on, with the job's documents."""

    lease: Digest
    since: Count
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=MAX_DELIVERED)]


class FetchBlobs(Record, frozen=True, tag="do-fetch"):
    """Get these blobs of a lease, none larger than `max_bytes`; answer `BlobsFetched` or `FetchFailed`. What is here
    already is found at once. Few or many, small or large: whoever fetches sorts them.
    """

    lease: Digest
    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_FETCH)]
    max_bytes: Amount


class TellSegments(Record, frozen=True, tag="tell-segments"):
    """These segments of a lease are verified against the provider's signature and their blobs are here: their results
    can be used at once, though their lease is not over.
    """

    lease: Digest
    records: Annotated[tuple[SegmentRecord, ...], msgspec.Meta(max_length=MAX_DELIVERED)]


class PostAcceptance(Record, frozen=True, tag="do-accept"):
    """Hand the acceptance to the broker; answer `AcceptancePosted` or `AcceptanceFailed`."""

    acceptance: Signed[Acceptance]


class SubmitSettle(Record, frozen=True, tag="do-settle"):
    """Submit a settle of our own (R7: anyone may); answer `SettleFailed`, or nothing and let the chain tell."""

    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


class KeepProof(Record, frozen=True, tag="do-prove"):
    """A lease is over: get the proof of its state from the chain, and that of the transaction `tx` that ended it where
    there is one (a timer has none), and keep both with the lease's papers.
    """

    lease: Digest
    tx: Short


class TellPhase(Record, frozen=True, tag="tell-phase"):
    """The job has reached `phase`; `rule` and `text` say why where it ended badly. Keep both with the job."""

    phase: Short
    rule: Short
    text: Short


class TellProgress(Record, frozen=True, tag="tell-progress"):
    """Show progress and live output."""

    item: Advanced


class TellTrouble(Record, frozen=True, tag="tell-trouble"):
    """Something failed that is tried again, or that the user should know; show it."""

    rule: Short
    text: Short


PurchaseEffect = (
    SubmitOrder
    | Listen
    | StopListening
    | WatchChain
    | KeepRecords
    | FetchBlobs
    | PostAcceptance
    | SubmitSettle
    | KeepProof
    | TellPhase
    | TellProgress
    | TellSegments
    | TellTrouble
)
"""All the machine asks for. Each may be asked for again after a restart."""
