"""Events and effects of the work machine (`machine.py`): closed unions of small structs.

Events are canonical, since they are journaled; `durable = False` marks those whose loss changes nothing but time.
Each effect's docstring says what the host must do; all are safe to carry out again after a restart.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from broker.protocol.messages import Announcement
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import Count, Instant
from chain.ledger.terms.agreement import Bid
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, Receipt, SegmentRecord, StorageReceipt
from chain.ledger.transactions import Answer, Deliver, Extend, GiveBack, Settle

Detail = Annotated[str, msgspec.Meta(max_length=1_000)]
Label = Annotated[str, msgspec.Meta(max_length=200)]

MAX_BATCH = 256
"""Most segments in one event: what is ready together is stored by one write."""


class LeaseState(StrEnum):
    """States of a lease as the chain names them (the table of law.md)."""

    OPEN = "open"
    CALLED = "called"
    CANCELLING = "cancelling"
    DELIVERED = "delivered"
    DISPUTED = "disputed"
    SETTLED = "settled"
    SLASHED = "slashed"
    UNSTARTED = "unstarted"
    RETURNED = "returned"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    VOID = "void"

    @property
    def is_live(self) -> bool:
        """Whether anything can still happen to the lease."""
        return self in _LIVE


_LIVE = frozenset(
    {LeaseState.OPEN, LeaseState.CALLED, LeaseState.CANCELLING, LeaseState.DELIVERED, LeaseState.DISPUTED}
)


class Task(StrEnum):
    """The transactions a provider hands in for a lease."""

    SETTLE = "settle"
    DELIVER = "deliver"
    EXTEND = "extend"
    ANSWER = "answer"
    GIVE_BACK = "return"


class LeaseOpened(Record, frozen=True, tag="lease_opened"):
    """The chain has a lease on our bid (R3): from a final block, never only from the broker. `announcement` and `bid`
    are what we promised. The range is `first` .. `first + count - 1`; `start` is the digest of its first input (for a
    `map` the order's item root).
    """

    lease: Digest
    announcement: Announcement
    bid: Signed[Bid]
    first: Count
    count: Count
    start: Digest
    opened: Instant
    deadline: Instant


class LeaseMoved(Record, frozen=True, tag="lease_moved"):
    """The chain says the lease is in this live state now: `served` segments are in the receipt that stands there,
    `held` are still at stake, the last call was at `called` (0: none).
    """

    state: LeaseState
    served: Count
    held: Count
    called: Instant


class LeaseEnded(Record, frozen=True, tag="lease_ended"):
    """The chain says the lease is over. Not stored: the journal goes with it, and the chain can be asked again."""

    durable: ClassVar[bool] = False
    state: LeaseState


class BlobsFetched(Record, frozen=True, tag="blobs_fetched"):
    """Code and inputs are here, their digests checked."""

    durable: ClassVar[bool] = False


class FetchFailed(Record, frozen=True, tag="fetch_failed"):
    """Code or inputs cannot be had, or did not come in time."""

    text: Detail


class SlotGranted(Record, frozen=True, tag="slot_granted"):
    """A slot is ours from now on until `FreeSlot`."""

    durable: ClassVar[bool] = False


class SegmentRan(Record, frozen=True, tag="segment_ran"):
    """A segment is over, and its output and traceback are in the workspace under these digests."""

    index: Count
    input: Digest
    output: Digest
    error: Digest
    cause: Cause
    usage: Usage
    started: Instant
    dispatch: Label


Batch = Annotated[tuple[SegmentRan, ...], msgspec.Meta(max_length=MAX_BATCH)]
"""Segments in their order."""


class SegmentsRan(Record, frozen=True, tag="segments_ran"):
    """Segments of the `Run` of this `attempt`, all that were ready together. They ran under isolation level `level`
    with the linear algebra `blas`.
    """

    attempt: Count
    level: Label
    blas: Label
    segments: Batch


class RunEnded(Record, frozen=True, tag="run_ended"):
    """Nothing of the job runs any more. `cause` as the sandbox says (`host`: it failed, the job did not); the log is in
    the workspace under `log`. `last` are segments that ended with it and that no event of their own told of: one event
    is stored sooner than two.
    """

    attempt: Count
    cause: Cause
    detail: Detail
    level: Label
    blas: Label
    log: Digest
    finished: Instant
    last: Batch = ()


class Stored(Record, frozen=True, tag="stored"):
    """The holder keeps everything under our receipt over the first `count` segments (R8)."""

    storage: Signed[StorageReceipt]
    count: Count


class HolderLost(Record, frozen=True, tag="holder_lost"):
    """The holder no longer knows the records it signed for: they have to be handed in from the first on."""


class StoreFailed(Record, frozen=True, tag="store_failed"):
    """The receipt or a blob it names can't be handed in, and trying again would not help."""

    text: Detail


class AcceptanceArrived(Record, frozen=True, tag="acceptance_arrived"):
    """Somebody says the requester accepted; signature and content are not checked yet. Not stored: the holder can be
    asked again, and silence accepts.
    """

    durable: ClassVar[bool] = False
    acceptance: Signed[Acceptance]


class TransactionFinal(Record, frozen=True, tag="transaction_final"):
    """One of our transactions is in a final block; what it changed comes as `LeaseMoved`."""

    durable: ClassVar[bool] = False
    task: Task


class TransactionRefused(Record, frozen=True, tag="transaction_refused"):
    """The chain refuses one of our transactions for good, by this rule."""

    task: Task
    rule: Label


class Stopping(Record, frozen=True, tag="stopping"):
    """The daemon shuts down: give back what is not finished."""


class Restarted(Record, frozen=True, tag="restarted"):
    """The daemon died and lives again. Whatever ran is gone."""


WorkEvent = (
    LeaseOpened
    | LeaseMoved
    | LeaseEnded
    | BlobsFetched
    | FetchFailed
    | SlotGranted
    | SegmentsRan
    | RunEnded
    | Stored
    | HolderLost
    | StoreFailed
    | AcceptanceArrived
    | TransactionFinal
    | TransactionRefused
    | Stopping
    | Restarted
)
"""The closed union of events."""


class Effect(msgspec.Struct, frozen=True):
    """Base of all effects."""


class Fetch(Effect, frozen=True):
    """Bring code and inputs into the workspace, trying again until the Instant `until`: `BlobsFetched` or
    `FetchFailed`.
    """

    until: int


class AskSlot(Effect, frozen=True):
    """Queue for a slot: `SlotGranted` when it is our turn."""


class Run(Effect, frozen=True):
    """Run segments `first` .. `first + count - 1` in the sandbox: `SegmentsRan`, once their outputs are in the
    workspace; then `RunEnded`. With `count` 0 just close the log: `RunEnded`.
    """

    attempt: int
    first: int
    count: int


class Kill(Effect, frozen=True):
    """End the fetch or the sandbox at once; no event of it may follow."""


class Report(Effect, frozen=True):
    """Tell the broker about progress; may be coalesced with what follows."""

    done: int
    total: int
    records: tuple[SegmentRecord, ...]


class FreeSlot(Effect, frozen=True):
    """The slot and its booking are free (also where none was held)."""


class PostReceipt(Effect, frozen=True):
    """Hand in a receipt, the records from number `since` of the lease on, and the blobs they name, trying again through
    outages: `Stored`, `HolderLost` or `StoreFailed`. `provenance` is the blob that a final receipt names.
    """

    receipt: Signed[Receipt]
    since: int
    records: tuple[SegmentRecord, ...]
    provenance: bytes


class AwaitAcceptance(Effect, frozen=True):
    """Listen for the acceptance until the lease is over: `AcceptanceArrived`. Listening twice is listening once."""


class Submit(Effect, frozen=True):
    """Frame, sign and hand in a transaction, trying again through outages: `TransactionFinal` or
    `TransactionRefused`. `why` is for the log.
    """

    task: Task
    body: Settle | Deliver | Extend | Answer | GiveBack
    why: str


class Finish(Effect, frozen=True):
    """The lease is over in this state: forget everything about it."""

    state: LeaseState


WorkEffect = Fetch | AskSlot | Run | Kill | Report | FreeSlot | PostReceipt | AwaitAcceptance | Submit | Finish
"""The closed union of effects."""
