"""What an auction is told and what it wants done: two closed unions of small structs.

Events are stored before they are handled (`chain.runtime.driver`); effects say what the shell must do, each may be
asked for again after a restart and must then change nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from broker.auction.admission import Means
from broker.auction.matching import Survey
from broker.protocol.api import Cancellation, Delivery, JobEvent
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Acknowledgement, Announcement, Book, Decline, Withdrawal
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Key, Signed
from chain.base.units import Count, Height, Instant
from chain.ledger.terms.agreement import Award, Bid, Few, Order
from chain.ledger.terms.work import Acceptance
from chain.ledger.transactions import Extend, Open

Text = Annotated[str, msgspec.Meta(max_length=500)]


class Blame(StrEnum):
    """Whose reason it is that a lease was not opened."""

    WINNER = "winner"
    REQUESTER = "requester"
    BROKER = "broker"


REQUESTERS_RULES = ("R1.", "R2.", "R6.", "R10.")
"""Rules of the chain that only another order would meet."""

WINNERS_RULES = ("R3.", "R14.", "R18.")
"""Rules of the chain that another bid may meet."""


def find_blame(rule: str) -> Blame:
    """Whose reason a refusal by the chain is: what is neither the order's nor the bid's is the sender's, which is us
    (fee, quota, validity of the transaction).
    """
    if rule.startswith(REQUESTERS_RULES):
        return Blame.REQUESTER
    return Blame.WINNER if rule.startswith(WINNERS_RULES) else Blame.BROKER


# Events


class OrderPosted(Record, frozen=True, tag="order-posted"):
    """An admitted order, who is known to fit it, and what its requester can pay."""

    order: Signed[Order]
    spec: JobSpec
    survey: Survey
    means: Means


class BidArrived(Record, frozen=True, tag="bid-arrived"):
    """A bid whose signature holds. `registered`: the chain knows its key as a provider."""

    bid: Signed[Bid]
    registered: bool


class DeclineArrived(Record, frozen=True, tag="decline-arrived"):
    """A decline whose signature holds."""

    decline: Signed[Decline]


class Surveyed(Record, frozen=True, tag="surveyed"):
    """The answer to `Inquire`: who is known to fit what a later round is going to offer."""

    round: Count
    survey: Survey


class ProviderLeft(Record, frozen=True, tag="provider-left"):
    """A provider is gone, by its own farewell or because its offer ran out: nobody needs to wait for its answer, and
    its leases are in doubt.
    """

    provider: Key


class ProviderBack(Record, frozen=True, tag="provider-back"):
    """A provider that had gone and has leases of this order offers again."""

    provider: Key


class ProviderCame(Record, frozen=True, tag="provider-came"):
    """A provider that was not there offers: it may have missed the announcement. Changes nothing, so it is not
    stored.
    """

    durable: ClassVar[bool] = False
    provider: Key


class OpenFinal(Record, frozen=True, tag="open-final"):
    """The lease stands in a final block."""

    lease: Digest
    height: Height


class OpenRefused(Record, frozen=True, tag="open-refused"):
    """The chain refused to open the lease under a rule."""

    lease: Digest
    blame: Blame
    rule: Text
    text: Text


class OpenDelayed(Record, frozen=True, tag="open-delayed"):
    """The chain did not answer, or not in time; the transaction may be final or not."""

    lease: Digest
    text: Text


class LeaseChanged(Record, frozen=True, tag="lease-changed"):
    """The chain's word on a lease: its state by the name of law.md's table; how many segments the receipt there covers
    (`receipt`: its id, 32 zeros where there is none), the cause it ended by, and how many segments are still at stake.
    """

    lease: Digest
    state: Text
    height: Height
    served: Count
    held: Count
    cause: Text
    receipt: Digest


class DeliveryArrived(Record, frozen=True, tag="delivery-arrived"):
    """A checked delivery, trimmed to what is new and without its blobs, all of which (`size` bytes) lie safely on our
    disk.
    """

    lease: Digest
    delivery: Delivery
    size: Annotated[int, msgspec.Meta(ge=0)]


class AcceptanceArrived(Record, frozen=True, tag="acceptance-arrived"):
    """A checked acceptance."""

    acceptance: Signed[Acceptance]


class Cancelled(Record, frozen=True, tag="cancelled"):
    """A checked cancellation."""

    cancellation: Signed[Cancellation]


class Restarted(Record, frozen=True, tag="restarted"):
    """The process began anew and the journal was replayed."""


AuctionEvent = (
    OrderPosted
    | BidArrived
    | DeclineArrived
    | Surveyed
    | ProviderLeft
    | ProviderBack
    | ProviderCame
    | OpenFinal
    | OpenRefused
    | OpenDelayed
    | LeaseChanged
    | DeliveryArrived
    | AcceptanceArrived
    | Cancelled
    | Restarted
)
"""All an auction is told."""


# Effects


class Announce(Record, frozen=True, tag="announce"):
    """Publish the announcement to all providers, or send it to one that came later."""

    announcement: Signed[Announcement]
    provider: Key | None = None


class Acknowledge(Record, frozen=True, tag="acknowledge"):
    """Send an acknowledgement to the bidder."""

    provider: Key
    acknowledgement: Signed[Acknowledgement]


class PublishBook(Record, frozen=True, tag="publish-book"):
    """Publish the closed book to all providers."""

    book: Signed[Book]


class PublishAward(Record, frozen=True, tag="publish-award"):
    """Send an award to its winner, who may fetch code and inputs from now on; to everybody once the lease is final
    (`provider` is None).
    """

    provider: Key | None
    award: Signed[Award]


class GrantInputs(Record, frozen=True, tag="grant-inputs"):
    """Let a provider read code, inputs and the state it begins with until an Instant."""

    provider: Key
    digests: tuple[Digest, ...]
    until: Instant


class SubmitOpen(Record, frozen=True, tag="submit-open"):
    """Ask the chain whether the lease stands, else submit the opening; its outcome comes back as `OpenFinal`,
    `OpenRefused` or `OpenDelayed`. The same `valid_until` makes the same transaction.
    """

    lease: Digest
    body: Open
    valid_until: Instant


class SubmitExtend(Record, frozen=True, tag="submit-extend"):
    """Put the newest prefix of a provider that is gone on the chain. A refusal changes nothing: what follows is heard
    as `LeaseChanged`. The same `valid_until` makes the same transaction.
    """

    lease: Digest
    body: Extend
    valid_until: Instant


class SubmitCall(Record, frozen=True, tag="submit-call"):
    """Call a provider that is gone (R6). As with `SubmitExtend`."""

    lease: Digest
    valid_until: Instant


class Inquire(Record, frozen=True, tag="inquire"):
    """Say as `Surveyed` who fits a part of so many segments: round `round` is about to begin."""

    round: Count
    segments: Few


class WatchLease(Record, frozen=True, tag="watch-lease"):
    """Report each change of the lease as `LeaseChanged`, beginning with its present state."""

    lease: Digest


class Notify(Record, frozen=True, tag="notify"):
    """There is a new document for the requester in `Auction.news`."""

    news: JobEvent


class StoreStorageReceipt(Record, frozen=True, tag="store-storage-receipt"):
    """Keep the blobs until this Instant, readable by the parties: we have signed for it."""

    lease: Digest
    blobs: tuple[Digest, ...]
    until: Instant


class PassAcceptance(Record, frozen=True, tag="pass-acceptance"):
    """Send an acceptance on to the provider."""

    provider: Key
    acceptance: Signed[Acceptance]


class Withdraw(Record, frozen=True, tag="withdraw"):
    """Publish that the order is off."""

    withdrawal: Signed[Withdrawal]


class Finish(Record, frozen=True, tag="finish"):
    """The job is over: put its documents away and forget the machine."""


AuctionEffect = (
    Announce
    | Acknowledge
    | PublishBook
    | PublishAward
    | GrantInputs
    | SubmitOpen
    | SubmitExtend
    | SubmitCall
    | Inquire
    | WatchLease
    | Notify
    | StoreStorageReceipt
    | PassAcceptance
    | Withdraw
    | Finish
)
"""All an auction wants done."""
