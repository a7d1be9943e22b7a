"""What seats sign, and the certificate that a quorum of them makes (R16 a to c).

A vote names its step, so that one signature never stands for two. Not here: counting (`tally`), who the seats are
(`seats`), what to do next (`engine`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signature, Signed
from chain.base.units import Count, Height

__all__ = ["MAX_SEATS", "NO_BLOCK", "Certificate", "SeatSignature", "SignedVote", "Step", "Vote"]

MAX_SEATS = 256
"""Most seats of an epoch: a certificate holds one signature of each, 64 bytes."""

NO_BLOCK = bytes(32)
"""The block id in a vote for the dummy."""


class Step(StrEnum):
    """What a vote says of a slot (R16 b): this block was first and valid; no block in time; I have seen it notarised
    and never voted dummy.
    """

    NOTARISE = "notarise"
    DUMMY = "dummy"
    FINALIZE = "finalize"


class Vote(Record, frozen=True, tag="vote"):
    """One seat's word on one slot, signed under `Tag.VOTE` by the seat's key. `block` is zero for the dummy."""

    step: Step
    epoch: Count
    slot: Height
    block: Digest


SignedVote = Signed[Vote]


class SeatSignature(Record, frozen=True, tag="seat"):
    """The signature of the seat at this place of the epoch's list."""

    seat: Count
    signature: Signature


class Certificate(Record, frozen=True, tag="certificate"):
    """A quorum's signatures over the same vote, in ascending order of their seats."""

    vote: Vote
    signatures: Annotated[tuple[SeatSignature, ...], msgspec.Meta(min_length=1, max_length=MAX_SEATS)]
