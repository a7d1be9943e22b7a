"""Which orders a provider takes at all: whether an announcement is what it says, and the house's own rules.

Two kinds of no: a forged or inconsistent announcement is an error (`Refused`, nothing is answered); an order the
house does not want is a `Refusal` that becomes a signed decline. Not here: fit (`broker.auction.matching`), price,
room.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from broker.protocol.jobs import JobSpec, compute_job_digest, compute_runtime_digest
from broker.protocol.messages import Announcement, Reason
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import check_key, verify
from chain.base.units import BPS
from chain.ledger.terms.agreement import Kind, Order, compute_order_id
from chain.ledger.terms.work import Span

MAX_AUCTION_MS = 45_000
"""Longest auction waited for: a bid keeps capacity until it is answered, and may be valid for at most a minute after a
close that comes as soon as everybody has answered (R3 c).
"""


class Refusal(NamedTuple):
    """Why not, with the nearest offer that could be made, in the reason's own unit, and the same in words."""

    reason: Reason
    nearest: int
    text: str


class Policy(msgspec.Struct, frozen=True):
    """The house's rules. Keys are accounts; empty `allowed` means everybody who is not denied. `segments` is the most
    in one order: each keeps a record in memory until its lease is over.

    Most of them keep an order from being made to fail: its writer chooses what is lost for leaving (`damages` in basis
    points, `start` in milliseconds), how long the bond is bound (`binding` in milliseconds), and limits that no host
    could set.
    """

    kinds: frozenset[Kind] = frozenset(Kind)
    allowed: frozenset[bytes] = frozenset()
    denied: frozenset[bytes] = frozenset()
    segments: int = 4_096
    output_bytes: int = 1 << 30
    input_bytes: int = 1 << 30
    scratch_bytes: int = 4 << 30
    processes: int = 1_024
    open_files: int = 1_024
    millicores: int = 100
    damages: int = 2_000
    start: int = 10_000
    binding: int = 30 * 24 * 3_600_000


def check_announcement(announcement: Announcement, chain_id: bytes, now: int) -> bytes:
    """The order's id, if signatures, digests and times hold together; else raises `Refused` under `announcement.…` or
    `signature.order`.
    """
    order, spec = announcement.order.body, announcement.spec
    if order.auctioneer != announcement.broker:
        raise Refused("the order names another auctioneer than who announces it", rule="announcement.auctioneer")
    if order.job != compute_job_digest(chain_id, spec) or order.kind is not spec.kind:
        raise Refused("the job spec is not the one the order names", rule="announcement.spec")
    if order.runtime != compute_runtime_digest(chain_id, spec.runtime):
        raise Refused("the runtime is not the one the order names", rule="announcement.runtime")
    if order.kind is not Kind.MAP and order.start != spec.inputs:
        raise Refused("the job's inputs are not the first input the order names", rule="announcement.start")
    if not now < announcement.closes <= (now + MAX_AUCTION_MS if announcement.round else order.closes):
        raise Refused("its auction is over, or closes later than it may", rule="announcement.closes")
    if order.expiry <= now:
        raise Refused("the order has expired", rule="announcement.expiry")
    _check_spans(order, announcement)
    verify(announcement.order, Tag.ORDER, chain_id, check_key(order.requester))
    return compute_order_id(chain_id, order)


def _check_spans(order: Order, announcement: Announcement) -> None:
    """Round 0 offers all segments; a later one ascending disjoint parts of them, of a chained job its end. Raises
    `Refused` under `announcement.spans`.
    """
    spans, end = announcement.spans, 0
    for span in spans:
        if span.first < end or span.count == 0:
            raise Refused("its spans don't ascend, overlap, or are empty", rule="announcement.spans")
        end = span.first + span.count
    if end > order.segments:
        raise Refused(f"it offers segments beyond the order's {order.segments}", rule="announcement.spans")
    whole = spans == (Span(0, order.segments),)
    if announcement.round == 0 and not whole:
        raise Refused("a first round offers the whole order", rule="announcement.spans")
    if order.kind is not Kind.MAP and (len(spans) > 1 or end != order.segments):
        raise Refused(f"what is left of a {order.kind.value} is its end", rule="announcement.spans")


def find_refusal(policy: Policy, provider: bytes, announcement: Announcement, now: int) -> Refusal | None:
    """The first of the house's rules that the order breaks, or None."""
    order, spec = announcement.order.body, announcement.spec
    own = provider in (order.requester, order.auctioneer)
    rows = (
        (own, "a provider serves neither its own orders nor its own auctions (R3 f)"),
        (order.kind not in policy.kinds, f"this provider runs no {order.kind.value} jobs"),
        (order.kind is Kind.RUN and order.segments != 1, "a run has one segment"),
        (order.panel > 0, "this provider takes no orders with disputes yet (panel size above 0)"),
        (order.requester in policy.denied, "this requester is not served here"),
        (bool(policy.allowed) and order.requester not in policy.allowed, "only named requesters are served here"),
        (order.segments > policy.segments, f"at most {policy.segments} segments in one order"),
        (spec.resources.output_bytes > policy.output_bytes, f"at most {policy.output_bytes} bytes of output"),
        (announcement.closes - now > MAX_AUCTION_MS, f"auctions of at most {MAX_AUCTION_MS} ms"),
        *_list_traps(policy, order, spec),
    )  # fmt: skip
    return next((Refusal(Reason.POLICY, 0, text) for breaks, text in rows if breaks), None)


def _list_traps(policy: Policy, order: Order, spec: JobSpec) -> tuple[tuple[bool, str], ...]:
    """Terms under which honest work would lose the bond, and limits under which no sandbox could be set up: a `host`
    failure, for which a provider leaves and pays (R4, R9).
    """
    needs, bound = spec.resources, max(order.windows.acceptance, order.windows.grace)
    return (
        (order.damages > policy.damages, f"damages of at most {policy.damages} basis points"),
        (order.windows.start < policy.start, f"a start window of at least {policy.start} ms"),
        (bound > policy.binding, f"acceptance and grace windows of at most {policy.binding} ms"),
        (spec.code_bytes + spec.input_bytes > policy.input_bytes, f"at most {policy.input_bytes} bytes of input"),
        (needs.tmp_bytes + needs.shm_bytes > policy.scratch_bytes, f"at most {policy.scratch_bytes} bytes of scratch"),
        (needs.processes > policy.processes, f"at most {policy.processes} processes"),
        (needs.open_files > policy.open_files, f"at most {policy.open_files} open files"),
        (needs.millicores < policy.millicores, f"at least {policy.millicores} millicores"),
    )


def compute_bond(order: Order) -> int:
    """Least bond in basis points of the award price: full damages (R4) and panel deposit (R3 e, R10), rounded up."""
    weights = order.weights or (1,)
    total = sum(order.weights) if order.weights else order.segments
    deposit = -(-15 * order.panel * max(weights) * BPS // (10 * total))
    return order.damages + deposit
