"""Samples of what the ledger hashes: genesis, seats, beacon, places and leaves of the state, entries, results."""

from __future__ import annotations

from typing import Any

from chain.base.hashing import NO_CHAIN, Tag, compute_digest
from chain.base.units import MICRO
from chain.ledger import entries, results
from chain.ledger.genesis import Genesis, Grant, Params, Seat
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from tests.support import samples
from tests.support.samples import CHAIN, LEASE, NOW, ORDER_ID, PARTIES, PROVIDER, REQUESTER, WINDOWS, compute_filler

GENESIS = Genesis(
    version=1, name="golden", time=NOW, params=Params(private=True, fee=0),
    seats=(Seat(PARTIES["seat"].key, compute_filler("beacon head")),),
    balances=(Grant(REQUESTER.key, 1_000 * MICRO), Grant(PROVIDER.key, 50 * MICRO)),
)  # fmt: skip
ACCOUNT = entries.Account(975 * MICRO, REQUESTER.key)
ACCOUNT_KEY = entries.get_account_key(REQUESTER.key)
LEASE_RECORD = entries.LeaseRecord(
    LEASE,
    entries.LeaseTerms(
        ORDER_ID, compute_filler("award"), compute_filler("bid"), REQUESTER.key, PROVIDER.key, PARTIES["broker"].key,
        REQUESTER.key, PROVIDER.key, PARTIES["watcher"].key, (PARTIES["holder"].key,), Kind.TRAIN, "exact",
        compute_filler("start"), 0, 0, 3, (1, 2, 3), 60_000, 2, 1_700_000, 10_200_000, 100, 5_100_000, 1_000, 0,
        500_000, WINDOWS, NOW, 41, NOW + 300_000,
    ),
    entries.LeaseState.SETTLED, NOW + 300_000,
    entries.ReceiptNote(samples.RECEIPT_ID, 3, samples.RECEIPT.records, Cause.OK),
    0, NOW + 60_000, 0, 0, 0, 10_200_000, 102_000, 0, 0, 0,
)  # fmt: skip
ENTRIES: list[tuple[str, Any]] = [
    ("entry account", ACCOUNT),
    ("entry provider", entries.Provider(5 * MICRO, 1 * MICRO, 10_200_000, 1)),
    ("entry mandate", entries.OrderRecord(
        REQUESTER.key, 10_000_000, 1, 2, NOW + 900_000, NOW + 900_000, 1, (entries.Cover(0, 0, 3),),
        (compute_filler("bid"),),
    )),
    ("entry lease", LEASE_RECORD),
    ("entry totals", entries.Totals(1_000 * MICRO, 50 * MICRO, 10_200_000, 1_000)),
]  # fmt: skip
RESULT = results.Result(compute_filler("trigger"), False, (
    results.Transferred(REQUESTER.key, PROVIDER.key, 25 * MICRO),
    results.Bonded(PROVIDER.key, 5 * MICRO),
    results.LeaseMoved(LEASE, 3, entries.LeaseState.SETTLED, 10_200_000, 102_000, 0, 0, 0),
    results.OrderForgotten(ORDER_ID),
))  # fmt: skip

PLAIN: list[tuple[str, Any]] = [
    *ENTRIES,
    ("result", RESULT),
    ("segment as a leaf", samples.RECORD),
]
"""What is hashed without a tag of its own: values of the state (plain SHA-256), leaves of RFC 6962 trees."""

HASHED: list[tuple[str, Tag, bytes, Any]] = [
    *((name, tag, CHAIN, body) for name, tag, body in samples.HASHED),
    ("genesis", Tag.GENESIS, NO_CHAIN, GENESIS),
    ("seats", Tag.SEATS, CHAIN, (1, (PARTIES["seat"].key, PARTIES["holder"].key))),
    ("beacon", Tag.BEACON, CHAIN, (compute_filler("previous"), compute_filler("reveal"))),
    ("state key", Tag.STATE_KEY, CHAIN, ACCOUNT_KEY),
    ("state leaf", Tag.STATE_LEAF, CHAIN, (compute_filler("place"), compute_digest(b"value"))),
    ("state node", Tag.STATE_NODE, CHAIN, (compute_filler("left"), compute_filler("right"))),
]
"""(name, tag, chain id, body) of everything that has an id and no signature of its own."""
