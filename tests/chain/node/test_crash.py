"""A real node process, killed with SIGKILL at named points: each transaction happens once, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from pathlib import Path

import pytest

from chain.base.errors import TallyError, Unavailable
from chain.base.units import MICRO
from chain.ledger.transactions import SignedTransaction
from chain.light.client import LightClient
from chain.node.folder import ChainFolder
from chain.rpc.client import ChainClient
from tests.chain.node.world import (
    TREASURY,
    Payer,
    make_folder,
    make_signer,
    name_transaction,
    run_process,
    wait_until,
)

ALICE = make_signer(1)


PRELUDE = """
import os, signal
from chain.ledger.ledger import Ledger
from chain.node.application import Application
from chain.store.database import ChainStore
from chain.store.guard import SignGuard

def die(owner, name, late):
    really = getattr(owner, name)
    def call(*args, **kwargs):
        if not late:
            os.kill(os.getpid(), signal.SIGKILL)
        really(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, call)
"""

POINTS = {
    "before the guard records": ("die(SignGuard, 'sign', False)", 0),
    "after the guard signed": ("die(SignGuard, 'sign', True)", 0),
    "after the ledger committed": ("die(Ledger, 'commit', True)", 0),
    "before the block is written": ("die(ChainStore, 'put_block', False)", 0),
    "after the block is written": ("die(ChainStore, 'put_block', True)", 0),
    "before the disk has it": ("die(ChainStore, 'flush', False)", 0),
    "between store write and reply": ("die(ChainStore, 'flush', True)", 1),
    "when told, before the reply left": ("die(Application, '_tell', True)", 1),
}
"""Where the node dies by SIGKILL, and how many transactions have happened then."""


async def submit(url: str, signed: SignedTransaction, wait_ms: int = 20_000) -> None:
    async with ChainClient(url) as client:
        await client.submit(signed, wait_ms=wait_ms)


async def check_once(folder: ChainFolder, sent: list[SignedTransaction]) -> int:
    """Start again and hand in all of `sent` again: each is final exactly once, and proved. Returns how many were."""
    with run_process(folder) as process:
        async with ChainClient(process.url) as client:
            before = (await client.account(ALICE.key)).balance // MICRO
            for signed in sent:
                await client.submit(signed)
            assert (await client.account(ALICE.key)).balance == len(sent) * MICRO
            supply = await client.supply()
            assert supply.total + supply.burned == TREASURY
            assert supply.burned == len(sent) * 10
            light = LightClient(folder.read_genesis(), client)
            for signed in sent:
                assert (await light.transaction(name_transaction(signed))).transaction == signed.body
            events = (await client.events([ALICE.key], 0)).events
            assert sorted(event.tx for event in events) == sorted(name_transaction(signed).hex() for signed in sent)
        assert process.end() == 0
    return before


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_named_point(tmp_path: Path, point: str) -> None:
    folder = make_folder(tmp_path)
    signed = Payer.of_treasury(folder).pay(ALICE.key)
    code, happened = POINTS[point]
    with run_process(folder, f"{PRELUDE}\n{code}") as process:
        with pytest.raises(Unavailable) as caught:
            await submit(process.url, signed)
        assert caught.value.rule == "chain.unreachable"
        assert process.end() == -signal.SIGKILL
    assert await check_once(folder, [signed]) == happened


async def test_killed_right_after_the_request_left(tmp_path: Path) -> None:
    """Anything between the socket and the disk."""
    folder = make_folder(tmp_path)
    signed = Payer.of_treasury(folder).pay(ALICE.key)
    with run_process(folder) as process:
        call = asyncio.create_task(submit(process.url, signed))
        await asyncio.sleep(0)
        process.kill()
        with contextlib.suppress(TallyError):
            await call
    assert await check_once(folder, [signed]) in (0, 1)


@pytest.mark.check
@pytest.mark.parametrize("round_", range(6))
async def test_killed_under_load_at_any_moment(tmp_path: Path, seed: int, round_: int) -> None:
    """While blocks follow each other; those that were answered are there, the others are made up for."""
    folder = make_folder(tmp_path)
    treasury, chance = Payer.of_treasury(folder), random.Random(seed + round_)
    sent = [treasury.pay(ALICE.key) for _ in range(200)]
    answered = []

    async def hand_in(client: ChainClient, signed: SignedTransaction) -> None:
        with contextlib.suppress(TallyError):
            await client.submit(signed)
            answered.append(signed)

    with run_process(folder) as process:
        async with ChainClient(process.url) as client:
            calls = [asyncio.create_task(hand_in(client, signed)) for signed in sent]
            enough = chance.randrange(1, 150)
            while len(answered) < enough:
                await asyncio.sleep(0)
            process.kill()
            await asyncio.gather(*calls)
    assert await check_once(folder, sent) >= len(answered)


async def test_a_second_node_on_the_folder_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with run_process(folder) as process:
        second = process.launch()
        _, errors = second.communicate(timeout=60)
        assert (second.returncode, b"folder.owned" in errors) == (3, True)
        await submit(process.url, Payer.of_treasury(folder).pay(ALICE.key))
        assert folder.address_file.exists()


async def test_sigterm_ends_it_tidily(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with run_process(folder) as process:
        await submit(process.url, Payer.of_treasury(folder).pay(ALICE.key))
        assert process.end() == 0
    assert not folder.address_file.exists()
    assert not folder.store_file.with_name("chain.db-wal").exists()


FAILING_DISK = """
from chain.store.database import ChainStore

def fail(self):
    raise OSError(28, "No space left on device")

ChainStore.flush = fail
"""


async def test_a_node_whose_disk_fails_ends_with_the_code_of_a_fault(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with run_process(folder, FAILING_DISK) as process:
        with pytest.raises(Unavailable):
            await submit(process.url, Payer.of_treasury(folder).pay(ALICE.key))
        wait_until(lambda: process.returncode is not None, "the end of the node")
        assert process.end() == 4
        assert "node.broken" in process.errors.splitlines()[-1]
    assert not folder.address_file.exists()
