"""One byte changed in what comes over HTTP: submission, delivery, acceptance, cancellation. Each is refused by name,
byte for byte."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.protocol.api import Cancellation, Delivery, Submission
from broker.protocol.messages import Announcement
from chain.base.codec import decode, encode
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.ledger.terms.agreement import compute_lease_id, compute_order_id
from chain.ledger.terms.work import Acceptance
from chain.runtime.clock import SystemClock
from tests.broker.market import open_market
from tests.broker.test_service import open_lease
from tests.broker.world import (
    CHAIN,
    CODE,
    INPUTS,
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    REQUESTER,
    make_acceptance,
    make_delivery,
    make_order,
    make_submission,
)


async def find_accepted(data: bytes, kind: Any, door: Callable[[Any], Awaitable[Any]], seed: int) -> list[int]:
    """Positions at which a changed byte was not refused."""
    chance, accepted = random.Random(seed), []
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        try:
            await door(decode(bytes(changed), kind))
        except (Refused, Unavailable) as error:
            assert error.rule
        else:
            accepted.append(position)
    return accepted


async def test_a_submission_of_which_one_byte_changed_is_refused(tmp_path: Path, seed: int) -> None:
    async with open_market(tmp_path) as market:
        desk, submission = market.node.desk, make_submission(order=make_order(SystemClock().now()), blobs=())
        for blob in (CODE, INPUTS):
            await market.client().put_blob(blob)
        data = encode(submission)
        found = await find_accepted(data, Submission, lambda one: desk.submit(REQUESTER.key, one), seed)
        assert found == []
        assert not desk.live
        assert await desk.submit(REQUESTER.key, submission) == compute_order_id(CHAIN, submission.order.body)


async def test_a_blob_of_which_one_byte_changed_is_not_the_one_that_was_ordered(tmp_path: Path, seed: int) -> None:
    async with open_market(tmp_path) as market:
        changed = bytearray(INPUTS)
        changed[seed % len(INPUTS)] ^= 1
        submission = make_submission(order=make_order(SystemClock().now()), blobs=(CODE, bytes(changed)))
        with pytest.raises(Refused) as refused:
            await market.node.desk.submit(REQUESTER.key, submission)
        assert refused.value.rule == "blob.missing"


async def test_deliveries_and_acceptances_of_which_one_byte_changed_are_refused(tmp_path: Path, seed: int) -> None:
    async with open_market(tmp_path) as market:
        desk, seller = market.node.desk, await market.add_seller()
        _, award = await open_lease(market, seller)
        lease = compute_lease_id(CHAIN, award)
        for blob in (OUTPUT, LOG, PROVENANCE):
            await market.client(PROVIDERS[0]).put_blob(blob)
        delivery = msgspec.structs.replace(make_delivery(award), blobs=())
        data, provider = encode(delivery), PROVIDERS[0].key
        assert await find_accepted(data, Delivery, lambda one: desk.deliver(provider, lease, one), seed) == []
        await desk.deliver(provider, lease, delivery)
        signed = make_acceptance(delivery)
        data = encode(signed)
        kind = Signed[Acceptance]
        assert await find_accepted(data, kind, lambda one: desk.accept(REQUESTER.key, lease, one), seed) == []
        await desk.accept(REQUESTER.key, lease, signed)


async def test_a_cancellation_of_which_one_byte_changed_is_refused(tmp_path: Path, seed: int) -> None:
    async with open_market(tmp_path) as market:
        desk, seller = market.node.desk, await market.add_seller()
        order = make_order(SystemClock().now())
        job = await desk.submit(REQUESTER.key, make_submission(order=order))
        await seller.hear(Announcement)
        signed = REQUESTER.sign(Tag.CANCELLATION, CHAIN, Cancellation(job, REQUESTER.key, order.closes))
        data = encode(signed)
        kind = Signed[Cancellation]
        assert await find_accepted(data, kind, lambda one: desk.cancel(REQUESTER.key, job, one), seed) == []
        await desk.cancel(REQUESTER.key, job, signed)
