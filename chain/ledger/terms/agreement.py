"""Before the work: order, bid, award and the lease they open (R2, R3, R12).

All prices are micro-credits per segment of weight one. All windows are milliseconds, all deadlines Instants compared
with block time (R1).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest, Salt, Tag, compute_id
from chain.base.keys import Key, Signed
from chain.base.units import Amount, Bps, Count, Instant, Millis

__all__ = [
    "Award",
    "AwardRule",
    "Bid",
    "Few",
    "Kind",
    "Order",
    "Windows",
    "compute_award_id",
    "compute_bid_id",
    "compute_lease_id",
    "compute_order_id",
]

Few = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
"""A number of segments, lanes or replicas: at least one, at most 2^20."""

PanelSize = Annotated[int, msgspec.Meta(ge=0, le=5)]
"""0 (no disputes), 1, 3 or 5 (R10)."""

Comparator = Annotated[str, msgspec.Meta(max_length=256)]
"""How two outputs are compared in a dispute: `exact`, or a tolerance in units of 1e-12."""


class Kind(StrEnum):
    """How the segments of a job relate (design.md section 2)."""

    RUN = "run"
    MAP = "map"
    TRAIN = "train"


class AwardRule(StrEnum):
    """What the winner is paid: its own price, or the second-lowest (R12 a)."""

    LOWEST = "lowest"
    SECOND = "second"


class Windows(Record, frozen=True, tag="windows"):
    """The spans of a lease's life, each with an owner and a money outcome (the table of law.md)."""

    start: Millis
    answer: Millis
    acceptance: Millis
    grace: Millis
    commit: Millis
    reveal: Millis
    appeal: Millis


class Order(Record, frozen=True, tag="order"):
    """What the requester signs: its signature is the spending mandate (R2).

    `job` is the digest of the job spec, `start` the digest of the first segment's input (`run`, `train`) or the root
    over the items (`map`). `cap` bounds price and commission together; `limit` is the
    highest price per segment. `weights` is empty when all segments weigh the same. `deposit` is the sum outside the
    cap that the watcher may use for a dispute (R10).
    """

    requester: Key
    auctioneer: Key
    watcher: Key | None
    holders: Annotated[tuple[Key, ...], msgspec.Meta(max_length=8)]
    job: Digest
    runtime: Digest
    kind: Kind
    start: Digest
    segments: Few
    weights: Annotated[tuple[Few, ...], msgspec.Meta(max_length=65_536)]
    segment_wall: Millis
    replicas: Few
    cap: Amount
    limit: Amount
    commission: Bps
    rule: AwardRule
    comparator: Comparator
    panel: PanelSize
    deposit: Amount
    damages: Bps
    windows: Windows
    closes: Instant
    deadline: Instant
    expiry: Instant
    salt: Salt


class Bid(Record, frozen=True, tag="bid"):
    """What a provider signs: a price per segment for one order, with its bond in basis points of the award price (R3
    e).
    """

    order: Digest
    provider: Key
    price: Amount
    lanes: Few
    earliest: Instant
    bond: Bps
    holders: Annotated[tuple[Key, ...], msgspec.Meta(max_length=8)]
    valid_until: Instant
    salt: Salt


class Award(Record, frozen=True, tag="award"):
    """What the order's auctioneer signs: which bid serves which range at which price per segment (R3 a).

    `runner_up` is the runner-up's signed bid under `second`, else None. `start` is the digest of the first input of
    this range (for a `map` the order's item root). `closed` is when the auction closed whose book has the root `book`;
    it may be a later one than the order's first, for what an earlier lease left unserved. `commission` is in basis
    points, within the order's limit.
    """

    order: Digest
    bid: Digest
    replica: Count
    first: Count
    count: Few
    price: Amount
    commission: Bps
    book: Digest
    start: Digest
    runner_up: Signed[Bid] | None
    closed: Instant
    valid_until: Instant


def compute_order_id(chain_id: bytes, order: Order) -> bytes:
    """Id of an order: the digest of its content without the signature (R2)."""
    return compute_id(Tag.ORDER, chain_id, order)


def compute_bid_id(chain_id: bytes, bid: Bid) -> bytes:
    """Id of a bid."""
    return compute_id(Tag.BID, chain_id, bid)


def compute_award_id(chain_id: bytes, award: Award) -> bytes:
    """Id of an award."""
    return compute_id(Tag.AWARD, chain_id, award)


def compute_lease_id(chain_id: bytes, award: Award) -> bytes:
    """Id of the lease an award opens. An award names order and bid by digest, so it alone decides the id, before the
    lease is on the chain.
    """
    return compute_id(Tag.LEASE, chain_id, award)
