"""What the purchase machine hears and what it asks for: closed unions of small structs (habits.md 5).

Events are canonical records, stored in the journal before anything follows from them, unless `durable` is False.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from broker.protocol.api import Advanced, JobEvent, Submission
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import Amount, Height, Instant
from chain.ledger.terms.work import Acceptance, Receipt

Short = Annotated[str, msgspec.Meta(max_length=2_000)]
"""A message for people; whoever makes the event cuts it."""


# ---- events ----


class Submitted(Record, frozen=True, tag="submitted"):
    """The broker has taken the order."""


class SubmitFailed(Record, frozen=True, tag="submit-failed"):
    """The broker refused the order under `rule`, or (`again`) could not be reached."""

    rule: Short
    text: Short
    again: bool


class Heard(Record, frozen=True, tag="heard"):
    """One event of the job as the broker tells it; `after` is where to go on listening. Inline blobs were kept."""

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
    """All blobs asked for were tried; `found` holds those that the broker had and that match."""

    found: Annotated[tuple[Found, ...], msgspec.Meta(max_length=16_384)]


class FetchFailed(Record, frozen=True, tag="fetch-failed"):
    """The broker could not be reached for blobs; worth trying again."""

    text: Short


class AcceptancePosted(Record, frozen=True, tag="posted"):
    """The broker has taken the acceptance."""


class AcceptanceFailed(Record, frozen=True, tag="post-failed"):
    """The broker did not take the acceptance."""

    rule: Short
    text: Short


class LeaseSeen(Record, frozen=True, tag="lease-seen"):
    """The lease as a final block shows it. `tx` is the id of the transaction that changed it, empty for a timer."""

    lease: Digest
    state: Short
    paid: Amount
    commission: Amount
    refunded: Amount
    burned: Amount
    height: Height
    time: Instant
    tx: Short


class SettleFailed(Record, frozen=True, tag="settle-failed"):
    """Our own settle was refused or could not be sent."""

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
    """Keep listening to the broker's events of this order from `after` on; post `Heard` and `Moved`."""

    after: Amount


class WatchChain(Record, frozen=True, tag="do-watch"):
    """Keep watching the chain for leases of this order; post `LeaseSeen`."""


class FetchBlobs(Record, frozen=True, tag="do-fetch"):
    """Get these blobs, none larger than `max_bytes`; answer `BlobsFetched` or `FetchFailed`."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=16_384)]
    max_bytes: Amount


class PostAcceptance(Record, frozen=True, tag="do-accept"):
    """Hand the acceptance to the broker; answer `AcceptancePosted` or `AcceptanceFailed`."""

    acceptance: Signed[Acceptance]


class SubmitSettle(Record, frozen=True, tag="do-settle"):
    """Submit a settle of our own (R7: anyone may); answer `SettleFailed`, or nothing and let the chain tell."""

    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


class KeepProof(Record, frozen=True, tag="do-prove"):
    """Get the proof of transaction `tx` from the chain and keep it with the job's documents."""

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
    | WatchChain
    | FetchBlobs
    | PostAcceptance
    | SubmitSettle
    | KeepProof
    | TellPhase
    | TellProgress
    | TellTrouble
)
"""All the machine asks for. Each may be asked for again after a restart."""
