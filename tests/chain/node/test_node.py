"""A node in this process, spoken to by its client: submitting, events, restart continuity, what is refused at start."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog.testing
from msgspec.structs import replace

from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.units import MICRO
from chain.consensus.engine import StoreBlock, WorkSeen
from chain.ledger.genesis import make_genesis, write_genesis
from chain.ledger.transactions import RegisterProvider, SignedTransaction
from chain.node import node as node_module
from chain.node.folder import ChainFolder, ChainPlan
from chain.node.node import Node
from chain.rpc.client import ChainClient
from chain.rpc.schema import RPC_VERSION
from chain.runtime.clock import SystemClock
from chain.runtime.files import own_folder
from tests.chain.node.world import (
    TREASURY,
    Payer,
    World,
    make_folder,
    make_signer,
    name_transaction,
    run_world,
    wait_until,
)

ALICE, BOB = make_signer(1), make_signer(2)


async def test_a_transfer_is_final_when_submit_returns(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        signed = world.treasury.pay(ALICE.key, 5 * MICRO)
        outcome = await world.client.submit(signed)
        assert outcome.id == name_transaction(signed).hex()
        assert (outcome.height, (await world.client.info()).height) == (1, 1)
        account = await world.client.account(ALICE.key)
        assert (account.known, account.balance, account.provider) == (True, 5 * MICRO, False)
        assert not (await world.client.account(BOB.key)).known
        supply = await world.client.supply()
        assert (supply.genesis, supply.total + supply.burned, supply.burned) == (TREASURY, TREASURY, 10)


async def test_info_says_what_a_client_needs(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        info = await world.client.info()
        assert (info.version, info.name, info.seats, info.private) == (RPC_VERSION, "test", 1, False)
        assert info.chain == world.treasury.chain_id.hex()
        assert (info.height, info.time) == (0, world.genesis.time)
        assert (info.fee, info.deposit, info.min_bond) == (10, 10_000, MICRO)


async def test_the_same_transaction_again_has_the_same_outcome(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        signed = world.treasury.pay(ALICE.key)
        together = await asyncio.gather(*(world.client.submit(signed) for _ in range(5)))
        later = await world.client.submit(signed)
        assert len({(one.id, one.height, one.time) for one in [*together, later]}) == 1
        assert (await world.client.account(ALICE.key)).balance == MICRO


async def test_transactions_gather_while_a_block_is_written(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        signed = [world.treasury.pay(make_signer(10 + n).key) for n in range(100)]
        outcomes = await asyncio.gather(*(world.client.submit(one) for one in signed))
        assert {one.id for one in outcomes} == {name_transaction(one).hex() for one in signed}
        assert (await world.client.info()).height < 100


async def test_a_refused_transaction_names_its_rule_and_leaves_no_block(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        stranger = Payer(ALICE, world.treasury.chain_id)
        good = world.treasury.pay(BOB.key)
        rows: list[tuple[SignedTransaction, str]] = [
            (stranger.pay(BOB.key), "R15.c.account"),
            (world.treasury.pay(BOB.key, valid_for=-10_000), "R15.a.expired"),
            (world.treasury.pay(BOB.key, valid_for=300_000), "R15.a.ahead"),
            (Payer(world.treasury.signer, bytes(32)).pay(BOB.key), "R15.chain"),
            (replace(good, signature=bytes([good.signature[0] ^ 1]) + good.signature[1:]), "R15.signature"),
        ]
        for signed, rule in rows:
            with pytest.raises(Refused) as caught:
                await world.client.submit(signed)
            assert caught.value.rule == rule
        assert (await world.client.info()).height == 0
        assert (await world.client.submit(good)).height == 1


def hold_engine(world: World) -> Callable[[], None]:
    """Keep the engine from hearing of work until the returned function is called."""
    post, world.node.application.post = world.node.application.post, lambda event: None

    def release() -> None:
        world.node.application.post = post
        post(WorkSeen())

    return release


async def wait_for_pending(world: World, count: int) -> None:
    async with asyncio.timeout(20):
        while len(world.node.application.mempool) < count:
            await asyncio.sleep(0)


async def test_of_two_that_exclude_each_other_one_is_refused_and_told(tmp_path: Path) -> None:
    """Both pass `check`; only the block decides (R15 b)."""
    async with run_world(make_folder(tmp_path)) as world:
        await world.client.submit(world.treasury.pay(ALICE.key, 2 * MICRO))
        alice = Payer(ALICE, world.treasury.chain_id)
        release = hold_engine(world)
        first, second = (asyncio.create_task(world.client.submit(alice.pay(BOB.key, 3 * MICRO // 2))) for _ in range(2))
        await wait_for_pending(world, 2)
        release()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert sorted(type(one).__name__ for one in answers) == ["Refused", "TxOutcome"]
        assert (await world.client.account(BOB.key)).balance == 3 * MICRO // 2
        assert len(world.node.application.mempool) == 0


async def test_work_that_comes_to_nothing_makes_no_block(tmp_path: Path) -> None:
    """R16 (d): the only pending transaction runs out before its block: refused, told, and the chain is quiet again."""
    async with run_world(make_folder(tmp_path)) as world:
        release = hold_engine(world)
        call = asyncio.create_task(world.client.submit(world.treasury.pay(ALICE.key, valid_for=300)))
        await wait_for_pending(world, 1)
        await asyncio.to_thread(wait_until_past, SystemClock().now() + 300)
        release()
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.rule == "R15.a.expired"
        assert (await world.client.info()).height == 0
        assert (await world.client.submit(world.treasury.pay(ALICE.key))).height == 1


def wait_until_past(instant: int) -> None:
    wait_until(lambda: SystemClock().now() > instant, "a transaction to run out")


async def test_a_stopping_node_tells_those_who_wait_for_a_transaction(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        hold_engine(world)
        call = asyncio.create_task(world.client.submit(world.treasury.pay(ALICE.key)))
        await wait_for_pending(world, 1)
        world.node.application.stop()
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.rule == "node.stopping"


async def test_a_block_that_was_not_built_here_is_our_own_fault(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        with pytest.raises(Fault) as caught:
            world.node.application.perform(StoreBlock(bytes(32), b""))
        assert caught.value.rule == "node.block"


async def test_waiting_zero_milliseconds_says_pending_and_the_transaction_goes_on(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        signed = world.treasury.pay(ALICE.key)
        with pytest.raises(Unavailable) as caught:
            await world.client.submit(signed, wait_ms=0)
        assert caught.value.rule == "chain.pending"
        assert (await world.client.submit(signed)).height == 1


async def test_events_are_by_topic_in_order_and_wait_for_news(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        empty = await world.client.events([ALICE.key], 0)
        assert (empty.next, empty.events) == (0, [])
        poll = asyncio.create_task(world.client.events([ALICE.key], 0, wait_ms=20_000))
        await world.client.submit(world.treasury.pay(BOB.key))
        first = await world.client.submit(world.treasury.pay(ALICE.key, 3 * MICRO))
        page = await poll
        (event,) = page.events
        assert (event.kind, event.to, event.amount, event.tx) == ("transfer", ALICE.key.hex(), 3 * MICRO, first.id)
        assert (event.height, event.time, page.next) == (first.height, first.time, 2)
        assert (await world.client.events([ALICE.key], page.next)).events == []
        both = await world.client.events([world.treasury.signer.key, BOB.key], 0)
        assert [one.height for one in both.events] == [1, 2]


async def test_a_bond_is_an_event_and_stands_in_the_account(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        await world.client.submit(world.treasury.pay(ALICE.key, 5 * MICRO))
        await world.client.submit(Payer(ALICE, world.treasury.chain_id).sign(RegisterProvider(2 * MICRO)))
        account = await world.client.account(ALICE.key)
        assert (account.provider, account.bond, account.set_aside) == (True, 2 * MICRO, 0)
        bond = (await world.client.events([ALICE.key], 1)).events[0]
        assert (bond.kind, bond.sender, bond.amount) == ("bond", ALICE.key.hex(), 2 * MICRO)


async def test_what_is_not_there_is_none_or_empty(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        assert await world.client.lease(bytes(32)) is None
        assert await world.client.order(bytes(32)) is None
        assert await world.client.leases(provider=ALICE.key, live=True) == []
        for call in (world.client.leases(live=True), world.client.proof(bytes(32)), world.client.header(1)):
            with pytest.raises(Refused):
                await call


async def collect(client: ChainClient, topic: bytes) -> list[tuple[int, str]]:
    page = await client.events([topic], 0)
    return [(event.height, event.tx) for event in page.events]


async def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    async with run_world(folder) as world:
        signed = [world.treasury.pay(ALICE.key) for _ in range(3)]
        outcomes = [await world.client.submit(one) for one in signed]
        before = (await world.client.info(), await world.client.supply(), await collect(world.client, ALICE.key))
        state = world.node.ledger.export()
    async with run_world(folder) as world:
        after = (await world.client.info(), await world.client.supply(), await collect(world.client, ALICE.key))
        assert after == before
        assert world.node.ledger.export() == state
        assert [await world.client.submit(one) for one in signed] == outcomes
        assert (await world.client.submit(world.treasury.pay(ALICE.key))).height == 4
        assert (await world.client.account(ALICE.key)).balance == 4 * MICRO


async def test_after_a_restart_the_window_of_known_transactions_is_as_before(tmp_path: Path) -> None:
    """R15 (a): else a transaction of the last 120 s could happen twice."""
    folder = make_folder(tmp_path)
    async with run_world(folder) as world:
        signed = world.treasury.pay(ALICE.key)
        await world.client.submit(signed)
    async with run_world(folder) as world:
        with pytest.raises(Refused) as caught:
            world.node.ledger.check(signed, SystemClock().now())
        assert caught.value.rule == "R15.a.known"


async def test_closing_sends_home_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    node = Node(folder, folder.read_genesis(), SystemClock())
    waits, really_wait = asyncio.Event(), node.application.wait_for_block

    async def wait_for_block(height: int, deadline: float) -> None:
        waits.set()
        await really_wait(height, deadline)

    monkeypatch.setattr(node.application, "wait_for_block", wait_for_block)
    async with ChainClient(await node.start("127.0.0.1:0")) as client, asyncio.timeout(20):
        poll = asyncio.create_task(client.events([ALICE.key], 0, wait_ms=60_000))
        await waits.wait()
        await node.close()
        assert (await poll).events == []


class BrokenDisk(Exception):
    """Injected."""


async def test_a_disk_that_fails_stops_the_node_and_nothing_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    async with run_world(folder) as world:
        await world.client.submit(world.treasury.pay(ALICE.key))
        signed = world.treasury.pay(ALICE.key)

        def fail() -> None:
            raise BrokenDisk

        monkeypatch.setattr(world.node.store, "flush", fail)
        with pytest.raises(Unavailable):
            await world.client.submit(signed, wait_ms=300)
        await world.node.broken.wait()
        assert isinstance(world.node.fault, BrokenDisk)
        monkeypatch.undo()
    async with run_world(folder) as world:
        assert (await world.client.info()).height == 1
        assert (await world.client.submit(signed)).height == 2


class SlowClock:
    """A clock that stands at one Instant until it is set."""

    def __init__(self, now: int) -> None:
        self.instant = now

    def now(self) -> int:
        return self.instant


async def test_a_block_is_never_more_than_half_a_second_ahead_of_the_clock(tmp_path: Path) -> None:
    """R1: each block's time is greater than its parent's, and at most 500 ms ahead."""
    folder = make_folder(tmp_path)
    genesis = folder.read_genesis()
    clock = SlowClock(genesis.time - 500)
    node = Node(folder, genesis, clock)
    signed = Payer.of_treasury(folder).pay(ALICE.key, valid_for=genesis.time + 60_000 - SystemClock().now())
    async with ChainClient(await node.start("127.0.0.1:0")) as client:
        with pytest.raises(Unavailable) as caught:
            await client.submit(signed, wait_ms=200)
        assert caught.value.rule == "chain.pending"
        assert (await client.info()).height == 0
        clock.instant = genesis.time - 499
        outcome = await client.submit(signed)
        assert (outcome.height, outcome.time) == (1, genesis.time + 1)
    await node.close()


@pytest.mark.parametrize("alone", [True, False])
async def test_an_address_that_others_reach_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(node_module, "is_loopback", lambda host: alone)
    stop = asyncio.Event()
    stop.set()
    settings = node_module.NodeSettings(home=str(make_folder(tmp_path).path), listen="127.0.0.1:0")
    with structlog.testing.capture_logs() as logs:
        await node_module.run_node(settings, stop)
    assert [line["log_level"] for line in logs] == (["info", "info"] if alone else ["info", "warning", "info"])


# ---- what is refused at start ----


def open_node(folder: ChainFolder) -> None:
    Node(folder, folder.read_genesis(), SystemClock())


def set_version(folder: ChainFolder, version: int) -> None:
    with sqlite3.connect(folder.store_file) as db:
        db.execute("UPDATE identity SET version = ?", (version,))
    db.close()


async def make_used_folder(path: Path) -> ChainFolder:
    folder = make_folder(path)
    async with run_world(folder) as world:
        await world.client.submit(world.treasury.pay(ALICE.key))
    return folder


@pytest.mark.parametrize(("version", "word"), [(0, "older"), (2, "newer")])
async def test_a_store_of_another_version_is_refused_by_name(tmp_path: Path, version: int, word: str) -> None:
    folder = await make_used_folder(tmp_path)
    set_version(folder, version)
    with pytest.raises(Refused) as caught:
        open_node(folder)
    assert (caught.value.rule, word in caught.value.message) == ("store.version", True)


async def test_a_store_of_another_chain_is_refused_by_name(tmp_path: Path) -> None:
    folder, other = await make_used_folder(tmp_path), make_folder(tmp_path, "other")
    other.store_file.write_bytes(folder.store_file.read_bytes())
    with pytest.raises(Refused) as caught:
        open_node(other)
    assert caught.value.rule == "store.chain"


def use_genesis_of_two_seats(folder: ChainFolder) -> None:
    genesis = folder.read_genesis()
    second = replace(genesis.seats[0], key=ALICE.key)
    grants = [(grant.account, grant.amount) for grant in genesis.balances]
    two = make_genesis(genesis.name, genesis.time, (*genesis.seats, second), grants, genesis.params)
    folder.genesis_file.write_text(write_genesis(two))


def use_another_seat(folder: ChainFolder) -> None:
    folder.seat_file.write_bytes(folder.treasury_file.read_bytes())


def use_another_beacon(folder: ChainFolder) -> None:
    genesis = folder.read_genesis()
    changed = replace(genesis, seats=(replace(genesis.seats[0], beacon=bytes(32)),))
    folder.genesis_file.write_text(write_genesis(changed))


def use_another_version(folder: ChainFolder) -> None:
    folder.genesis_file.write_text(folder.genesis_file.read_text().replace('"version": 1', '"version": 2'))


START = [
    ("two seats", use_genesis_of_two_seats, "R16.seats-unsupported"),
    ("a key without a seat", use_another_seat, "R16.no-seat"),
    ("a beacon that is not the key's", use_another_beacon, "R17.head"),
    ("a newer genesis", use_another_version, "genesis.version"),
    ("no genesis", lambda folder: folder.genesis_file.unlink(), "chain.absent"),
    ("a genesis that is none", lambda folder: folder.genesis_file.write_text("{}"), "genesis.form"),
    ("no seat key", lambda folder: folder.seat_file.unlink(), "key.file"),
]


@pytest.mark.parametrize(("change", "rule"), [row[1:] for row in START], ids=[row[0] for row in START])
def test_a_folder_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Callable[[ChainFolder], object], rule: str
) -> None:
    folder = make_folder(tmp_path)
    change(folder)
    with pytest.raises(TallyError) as caught:
        open_node(folder)
    assert caught.value.rule == rule


def test_a_lost_or_damaged_beacon_file_is_made_anew(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    genesis, seat = folder.read_genesis(), folder.load_seat()
    file = folder.path / "beacon.bin"
    good = file.read_bytes()
    file.write_bytes(good[:-32] + bytes(32))
    assert folder.load_beacon(seat, genesis.seats[0].beacon).head == genesis.seats[0].beacon
    assert file.read_bytes() == good
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_nodes_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with own_folder(folder.path), pytest.raises(Unavailable) as caught, own_folder(folder.path):
        pass
    assert caught.value.rule == "folder.owned"


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    genesis = folder.read_genesis()
    with pytest.raises(Refused) as caught:
        folder.create(ChainPlan("again", 1, genesis.params, genesis.time))
    assert caught.value.rule == "chain.exists"
    assert folder.read_genesis() == genesis


def test_a_plan_that_breaks_a_rule_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = ChainFolder(tmp_path / "new")
    params = replace(make_folder(tmp_path).read_genesis().params, fee=0)
    with pytest.raises(Refused) as caught:
        folder.create(ChainPlan("free", 1, params, 1))
    assert caught.value.rule == "R15.c.fee"
    assert not folder.path.exists()
