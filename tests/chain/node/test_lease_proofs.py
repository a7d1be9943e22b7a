"""A lease's life as a node shows it, and the proofs of its state: true at every moment, also while blocks are made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from chain.base.errors import Refused
from chain.light.client import LightClient
from chain.light.verifier import BadProof, verify_lease
from chain.rpc.client import ChainClient
from chain.rpc.proofs import LeaseProof
from chain.rpc.schema import LeaseView
from tests.chain.ledger.world import MINUTE, WINDOWS
from tests.chain.node.test_leases import LiveMarket, follow
from tests.chain.node.world import World, make_folder, make_signer, run_world

PATIENT = replace(WINDOWS, answer=10 * MINUTE)
"""An answer window that no slow machine misses."""

ROUNDS = 25
"""Blocks made while proofs are asked for."""


async def open_lease(world: World) -> tuple[LiveMarket, bytes]:
    """A market with one lease."""
    market = LiveMarket(world)
    await market.fund(world.treasury)
    opening, lease, _ = market.agree(windows=PATIENT)
    await market.submit("broker", opening)
    return market, lease


async def see(world: World, lease: bytes) -> LeaseView:
    """The node's view, once it is the same as what it proves."""
    view = await world.client.lease(lease)
    assert view is not None
    record = verify_lease(world.genesis, await world.client.prove_lease(lease))
    assert (view.state, view.held, view.called) == (record.state.value, record.held, record.called or 0)
    assert (view.served, view.damages, view.start) == (record.served, record.damages, record.terms.start.hex())
    assert view.cause == (record.receipt.cause.value if record.receipt else "")
    return view


async def test_the_views_of_a_lease_that_is_extended_called_answered_and_returned(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        market, lease = await open_lease(world)
        record = market.lease(lease)
        view = await see(world, lease)
        assert (view.state, view.held, view.served, view.cause, view.called) == ("open", 10, 0, "", 0)
        await market.submit("broker", market.extend(record, 4))
        view = await see(world, lease)
        assert (view.state, view.held, view.served, view.cause) == ("open", 10, 4, "ok")
        await market.submit("requester", market.call(record))
        called = await see(world, lease)
        assert called.state == "called" and called.timer == called.called + PATIENT.answer
        await market.submit("provider", market.answer(record))
        view = await see(world, lease)
        assert (view.state, view.called, view.timer) == ("open", called.called, view.deadline)
        await market.submit("provider", market.give_back(record))
        view = await see(world, lease)
        assert (view.state, view.held, view.served, view.damages) == ("delivered", 4, 4, 540_000)
        events = await follow(world.client, lease, "delivered")
        assert [event.lease.state for event in events if event.lease] == ["open", "open", "called", "open", "delivered"]


async def test_every_proof_holds_while_blocks_are_made(tmp_path: Path) -> None:
    """Header and state belong together, whenever it is asked; the proofs only ever move on."""
    async with run_world(make_folder(tmp_path)) as world:
        _, lease = await open_lease(world)
        to = make_signer(1).key
        proofs: list[LeaseProof] = []

        async def make_blocks() -> None:
            for _ in range(ROUNDS):
                await world.client.submit(world.treasury.pay(to))

        async def ask(maker: asyncio.Task[None]) -> None:
            while not maker.done():
                proofs.append(await world.client.prove_lease(lease))

        async with asyncio.timeout(60):
            maker = asyncio.create_task(make_blocks())
            await asyncio.gather(maker, ask(maker), ask(maker))
        records = {verify_lease(world.genesis, proof) for proof in proofs}
        assert records == {world.node.ledger.lease(lease)}
        heights = {proof.finality.header.height for proof in proofs}
        assert len(heights) > 1 and max(heights) <= world.node.ledger.head.height
        last = await world.client.prove_lease(lease)
        assert last.finality.header == world.node.ledger.head


async def test_a_proof_is_the_same_after_a_restart(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    async with run_world(folder) as world:
        _, lease = await open_lease(world)
        before = await world.client.prove_lease(lease)
    async with run_world(folder) as world:
        after = await world.client.prove_lease(lease)
        assert verify_lease(world.genesis, after) == verify_lease(world.genesis, before)
        assert after.finality.header.height >= before.finality.header.height


async def test_what_is_no_lease_has_no_proof(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        _, lease = await open_lease(world)
        other = world.node.ledger.leases()[0].terms.order
        for unknown in (bytes(32), other):
            with pytest.raises(Refused) as caught:
                await world.client.prove_lease(unknown)
            assert caught.value.rule == "chain.unknown"
        assert (await world.client.prove_lease(lease)).key == b"l" + lease


class Liar(ChainClient):
    """Answers every question with the proof of one lease."""

    def __init__(self, honest: ChainClient, lease: bytes) -> None:
        super().__init__(honest.url)
        self._honest, self._lease = honest, lease

    async def prove_lease(self, lease: bytes) -> LeaseProof:
        return await self._honest.prove_lease(self._lease)


async def test_the_light_client_takes_the_lease_it_asked_for_and_no_other(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        _, lease = await open_lease(world)
        found = await LightClient(world.genesis, world.client).lease(lease)
        assert found.lease == world.node.ledger.lease(lease)
        assert found.header == world.node.ledger.head
        with pytest.raises(BadProof) as caught:
            await LightClient(world.genesis, Liar(world.client, lease)).lease(bytes(32))
        assert caught.value.rule == "light.asked"
