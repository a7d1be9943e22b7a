"""Orders made to be failed: terms by which an honest provider would lose its bond, limits that no sandbox could set."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker.protocol.messages import Reason
from chain.base.hashing import Tag
from chain.base.keys import verify
from chain.base.units import BPS
from chain.ledger.terms.agreement import Kind
from provider.bidding.capacity import Pool
from provider.bidding.desk import BidMade, Declined, Desk, Funds, Rates
from provider.bidding.policy import Policy
from provider.bidding.pricing import Prices
from tests.provider.scene import CHAIN, MIB, NOW, OFFER, PROVIDER, WINDOWS, announce, make_order, make_spec

DAY = 24 * 3_600_000
TRAPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # what: changes to the order, to its job spec
    "leaving costs a hundred prices": ({"damages": 100 * BPS}, {}),
    "leaving costs the whole price": ({"damages": BPS}, {}),
    "no time to start": ({"windows": msgspec.structs.replace(WINDOWS, start=0)}, {}),
    "silence for a year": ({"windows": msgspec.structs.replace(WINDOWS, acceptance=366 * DAY)}, {}),
    "a cancel that takes a year": ({"windows": msgspec.structs.replace(WINDOWS, grace=366 * DAY)}, {}),
    "inputs larger than memory": ({}, {"input_bytes": 1 << 40}),
    "code larger than memory": ({}, {"code_bytes": 1 << 40}),
    "more files than the kernel allows": ({}, {"resources": {"open_files": 2**32 - 1}}),
    "more processes than the kernel allows": ({}, {"resources": {"processes": 2**32 - 1}}),
    "a disk in memory": ({}, {"resources": {"tmp_bytes": 1 << 50}}),
    "shared memory without end": ({}, {"resources": {"shm_bytes": 2**63 - 1}}),
    "more records than memory": ({"segments": 4_097, "segment_wall": 1}, {"kind": Kind.MAP}),
    "more records than memory, chained": ({"segments": 2**20, "segment_wall": 1}, {"kind": Kind.TRAIN}),
    "a bond for disputes": ({"panel": 5}, {"kind": Kind.MAP}),
    "a share of a core that can't be set": ({}, {"resources": {"millicores": 0}}),
}


def answer(order: dict[str, Any], spec: dict[str, Any]) -> BidMade | Declined | None:
    made = make_spec(**spec)
    desk = Desk(PROVIDER, CHAIN, Rates(Prices(), Policy(), Pool(2, 4096 * MIB, 2_000)))
    return desk.answer(announce(make_order(spec=made, **order), made), OFFER, Funds(10**12, 0, 0), NOW, bytes(16))


@pytest.mark.parametrize("trap", TRAPS)
def test_no_bid_on_an_order_that_is_made_to_be_failed(trap: str) -> None:
    """R4: whoever leaves pays `damages` of the price out of its bond; an order's writer may choose both."""
    made = answer(*TRAPS[trap])
    assert isinstance(made, Declined), trap
    decline = verify(made.decline, Tag.DECLINE, CHAIN, PROVIDER.key)
    assert decline.reason is Reason.POLICY and decline.text


@pytest.mark.parametrize("kind", Kind)
def test_the_order_without_a_trap_gets_a_bid(kind: Kind) -> None:
    terms: dict[str, Any] = {} if kind is Kind.RUN else {"segments": 4_096, "segment_wall": 1}
    assert isinstance(answer(terms, {"kind": kind}), BidMade)


@pytest.mark.parametrize("kind", [Kind.MAP, Kind.TRAIN])
def test_a_range_that_one_provider_could_not_serve_in_time_gets_no_bid(kind: Kind) -> None:
    """R3 d, R4: whoever is the only bidder is awarded everything, and pays damages for what it does not reach."""
    made = answer({"segments": 100, "segment_wall": 1_000}, {"kind": kind})
    assert isinstance(made, Declined) and made.decline.body.reason in (Reason.DEADLINE, Reason.BUSY)
