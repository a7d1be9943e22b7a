"""The light client against an honest node and against nodes that lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.base.errors import Refused
from chain.light.client import LightClient
from chain.light.verifier import BadProof
from chain.rpc.client import ChainClient
from chain.rpc.proofs import Finality, TxProof
from tests.chain.node.world import make_folder, make_signer, name_transaction, run_world

ALICE = make_signer(1)


class Liar(ChainClient):
    """Answers every question with the proof of something else that is true."""

    def __init__(self, honest: ChainClient, tx: bytes, height: int) -> None:
        super().__init__(honest.url)
        self._honest, self._tx, self._height = honest, tx, height

    async def header(self, height: int) -> Finality:
        return await self._honest.header(self._height)

    async def proof(self, tx: bytes) -> TxProof:
        return await self._honest.proof(self._tx)


async def test_what_an_honest_node_says_is_verified(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        sent = [world.treasury.pay(ALICE.key) for _ in range(3)]
        outcomes = [await world.client.submit(signed) for signed in sent]
        light = LightClient(world.genesis, world.client)
        await light.check_chain()
        for signed, outcome in zip(sent, outcomes, strict=True):
            found = await light.transaction(name_transaction(signed))
            assert (found.transaction, found.header.height) == (signed.body, outcome.height)
            assert await light.header(outcome.height) == found.header


async def test_a_true_answer_to_another_question_is_refused(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        sent = [world.treasury.pay(ALICE.key) for _ in range(2)]
        for signed in sent:
            await world.client.submit(signed)
        light = LightClient(world.genesis, Liar(world.client, name_transaction(sent[0]), 1))
        for question in (light.transaction(name_transaction(sent[1])), light.header(2)):
            with pytest.raises(BadProof) as caught:
                await question
            assert caught.value.rule == "light.asked"


async def test_a_node_of_another_chain_is_refused(tmp_path: Path) -> None:
    genesis = make_folder(tmp_path, "other").read_genesis()
    async with run_world(make_folder(tmp_path)) as world:
        signed = world.treasury.pay(ALICE.key)
        await world.client.submit(signed)
        light = LightClient(genesis, world.client)
        with pytest.raises(Refused) as caught:
            await light.check_chain()
        assert caught.value.rule == "light.chain"
        with pytest.raises(BadProof):
            await light.transaction(name_transaction(signed))


async def test_what_no_block_holds_is_unknown(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        light = LightClient(world.genesis, world.client)
        for question in (light.transaction(bytes(32)), light.header(1)):
            with pytest.raises(Refused) as caught:
                await question
            assert caught.value.rule == "chain.unknown"
