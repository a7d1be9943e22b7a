"""Parts of the shell one by one: promises on disk, transactions, account, settings, wiring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from broker.protocol.api import Info
from broker.protocol.jobs import Level
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.keys import show_key
from chain.ledger.transactions import GiveBack, RegisterProvider, SignedTransaction, compute_transaction_id
from chain.rpc.schema import TxOutcome
from chain.runtime.keystore import create_key
from chain.runtime.logs import get_logger
from provider.bidding.desk import Funds, Promise
from provider.bidding.pricing import compute_price
from provider.daemon.account import RESERVE_FEES, ensure_registered
from provider.daemon.host import describe, find_blas, find_dispatch, find_runtimes, make_offer, open_sandbox
from provider.daemon.lease import Office
from provider.daemon.links import Host, TaskSet
from provider.daemon.service import check_broker, run_provider, wait_for
from provider.daemon.settings import ProviderSettings, read_memory
from provider.daemon.transactions import VALIDITY_MS, Submitter
from provider.daemon.workspace import Workspace
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.runtimes import RuntimeImage
from provider.work.events import LeaseState
from tests.provider import scene
from tests.provider.daemon.doubles import CREDIT, FakeChain

# Disk


def test_promises_outlive_the_daemon(tmp_path: Path) -> None:
    order = scene.make_order()
    promise = Promise(scene.announce(order), scene.make_bid(order))
    order_id = promise.bid.body.order
    workspace = Workspace(tmp_path)
    workspace.store_promise(order_id, promise, 5)
    workspace.close()
    again = Workspace(tmp_path)
    assert again.load_promises() == {order_id: promise} and again.list_leases() == []
    again.drop_promise(order_id)
    assert again.load_promises() == {}
    again.close()


# Transactions


class PlainClock:
    """A clock that the test moves."""

    def __init__(self, now: int) -> None:
        self.time = now

    def now(self) -> int:
        return self.time


class Gate(FakeChain):
    """A chain that gives the answers it is told to, then the usual ones."""

    def __init__(self, *answers: TallyError) -> None:
        super().__init__()
        self.answers = list(answers)
        self.tried: list[SignedTransaction] = []
        self.on_try: Callable[[], object] = list

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        self.tried.append(tx)
        self.on_try()
        if self.answers:
            raise self.answers.pop(0)
        return TxOutcome(id="", height=1, time=1)


AWAY = Unavailable("away", rule="chain.unreachable")


async def test_a_transaction_is_the_same_until_its_window_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provider.daemon.links.Backoff.FIRST", 0)
    chain, clock = Gate(AWAY, AWAY, AWAY), PlainClock(scene.NOW - scene.NOW % VALIDITY_MS)
    submitter = Submitter(scene.PROVIDER, scene.CHAIN, chain, clock)

    def pass_time() -> None:
        if len(chain.tried) == 3:
            clock.time += 2 * VALIDITY_MS

    chain.on_try = pass_time
    await submitter.submit(GiveBack(bytes(32)))
    ids = [compute_transaction_id(tx.body) for tx in chain.tried]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    for tx in chain.tried:
        assert tx.body.valid_until - (scene.NOW - scene.NOW % VALIDITY_MS) <= 4 * VALIDITY_MS
    again = Submitter(scene.PROVIDER, scene.CHAIN, chain, PlainClock(clock.time + 1))
    await again.submit(GiveBack(bytes(32)))
    assert compute_transaction_id(chain.tried[-1].body) == ids[3], "a restarted daemon repeats itself"


@pytest.mark.parametrize("now", [0, 1, VALIDITY_MS - 1, scene.NOW, scene.NOW + 31_234])
async def test_a_transaction_is_valid_now_and_not_too_far_ahead(now: int) -> None:
    chain = Gate()
    await Submitter(scene.PROVIDER, scene.CHAIN, chain, PlainClock(now)).submit(GiveBack(bytes(32)))
    assert now < chain.tried[0].body.valid_until <= now + 120_000


PASSING = ["R15.c.quota", "R15.c.fee", "R13.balance", "mempool.full", "R15.a.expired"]
FINAL = ["R7.sender", "lease.unknown", "R15.chain", "signature.tx"]


@pytest.mark.parametrize("rule", PASSING)
async def test_refusals_that_pass_are_waited_out(rule: str) -> None:
    chain = Gate(Refused("not now", rule=rule), Fault("misunderstood", rule="rpc.answer"))
    await Submitter(scene.PROVIDER, scene.CHAIN, chain, PlainClock(scene.NOW)).submit(GiveBack(bytes(32)))
    assert len(chain.tried) == 3


@pytest.mark.parametrize("rule", FINAL)
async def test_refusals_that_stay_are_reported(rule: str) -> None:
    chain = Gate(Refused("never", rule=rule))
    with pytest.raises(Refused) as caught:
        await Submitter(scene.PROVIDER, scene.CHAIN, chain, PlainClock(scene.NOW)).submit(GiveBack(bytes(32)))
    assert caught.value.rule == rule and len(chain.tried) == 1


# Account


@pytest.mark.parametrize(
    ("balance", "bond", "wanted", "registered", "added"),
    [
        (100 * CREDIT, 0, 10 * CREDIT, 10 * CREDIT, [10 * CREDIT]),
        (100 * CREDIT, 4 * CREDIT, 10 * CREDIT, 10 * CREDIT, [6 * CREDIT]),
        (0, 10 * CREDIT, 10 * CREDIT, 10 * CREDIT, []),
        (0, 20 * CREDIT, 10 * CREDIT, 20 * CREDIT, []),
        (5, 4 * CREDIT, 10 * CREDIT, 4 * CREDIT, []),
    ],
    ids=["new", "raised", "as it is", "more than asked", "no credits to raise it"],
)
async def test_the_bond_is_what_was_asked_for(
    balance: int, bond: int, wanted: int, registered: int, added: list[int]
) -> None:
    chain = FakeChain()
    chain.fund(scene.PROVIDER.key, balance, bond)
    submitter = Submitter(scene.PROVIDER, scene.CHAIN, chain, chain.clock)
    assert await ensure_registered(scene.PROVIDER.key, wanted, chain, submitter) == registered
    assert [body.bond for body in chain.submitted if isinstance(body, RegisterProvider)] == added


async def test_missing_credits_are_named_with_the_account() -> None:
    chain = FakeChain()
    submitter = Submitter(scene.PROVIDER, scene.CHAIN, chain, chain.clock)
    with pytest.raises(Refused) as caught:
        await ensure_registered(scene.PROVIDER.key, 2 * CREDIT, chain, submitter)
    short = f"{2 + RESERVE_FEES * chain.fee / CREDIT:g}"
    assert caught.value.rule == "provider.credits"
    assert f"tally-chain send {show_key(scene.PROVIDER.key)} {short}" in caught.value.message
    with pytest.raises(Refused) as caught:
        await ensure_registered(scene.PROVIDER.key, CREDIT - 1, chain, submitter)
    assert caught.value.rule == "provider.bond"


# Settings, host, wiring


def test_settings_mean_what_they_say(tmp_path: Path) -> None:
    settings = ProviderSettings(
        home=str(tmp_path), slots=3, cores=2, memory_mib=10, price="0.5", core_hour="0.36", gib_hour="0", factor=50,
        denied=f"{show_key(scene.REQUESTER.key)}, {scene.BROKER.key.hex()}", runtimes=str(tmp_path / "images"),
    )  # fmt: skip
    settings.check()
    pool, prices = settings.pool, settings.prices
    assert (pool.slots, pool.memory_bytes, pool.millicores) == (3, 10 << 20, 2_000)
    assert (prices.base, prices.core_second, prices.gib_second, prices.factor) == (500_000, 100, 0, 5_000)
    assert compute_price(prices, scene.RESOURCES, 10_000) == (500_000 + 1_000) // 2
    assert settings.policy.denied == {scene.REQUESTER.key, scene.BROKER.key} and not settings.policy.allowed
    assert settings.key_file == tmp_path / "key.pem" and settings.ready_path == tmp_path / "ready"
    assert find_runtimes(settings) == tmp_path / "images"
    whole = ProviderSettings()
    assert whole.pool.slots >= 1 and 0 < whole.pool.memory_bytes < read_memory()


@pytest.mark.parametrize("wrong", [{"price": "much"}, {"bond": "0"}, {"allowed": "me"}])
def test_settings_that_make_no_sense_are_refused_before_anything_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        ProviderSettings(**wrong).check()


def test_a_host_that_cannot_sandbox_takes_no_jobs() -> None:
    image = RuntimeImage("/nowhere", bytes(32), "3.11", (("numpy", "2.0"),))
    weak = HostAbilities(None, "x86_64", "", reasons=("no bubblewrap",))
    with pytest.raises(Unavailable, match="no bubblewrap"):
        open_sandbox(image, weak, 2)
    with pytest.raises(Unavailable):
        describe(image, weak)


def test_an_offer_promises_no_bond_that_is_in_use() -> None:
    host = Host(Level.NS_CGROUP, (scene.RUNTIME,), find_dispatch(), find_blas())
    for funds, free in [(Funds(10, 2, 7), 3), (Funds(10, 7, 2), 3), (Funds(5, 9, 0), 0)]:
        offer = make_offer(scene.PROVIDER.key, host, ProviderSettings(slots=1), funds, scene.NOW)
        assert offer.bond_free == free and offer.sequence == scene.NOW < offer.valid_until
    assert host.dispatch and host.blas


def test_a_broker_of_another_chain_is_refused() -> None:
    said = Info(1, "x", "aa", scene.BROKER.key.hex(), "mqtt://127.0.0.1:1", 100, 1, 1, 0)
    check_broker(said, "aa", ProviderSettings())
    with pytest.raises(Refused) as caught:
        check_broker(said, "bb", ProviderSettings())
    assert caught.value.rule == "broker.chain"


async def test_a_part_that_is_still_starting_is_waited_for() -> None:
    answers: list[int] = []

    async def ask() -> int:
        answers.append(1)
        if len(answers) < 3:
            raise Unavailable("not yet", rule="chain.unreachable")
        return 7

    with structlog.testing.capture_logs() as logs:
        assert await wait_for(ask, 20, "the broker at http://b") == 7
        assert [line["event"] for line in logs] == ["waits for the broker at http://b"]
        assert await wait_for(ask, 20, "the broker at http://b") == 7
    assert len(logs) == 1
    answers.clear()
    with pytest.raises(Unavailable):
        await wait_for(ask, 0, "the broker at http://b")


async def test_a_provider_says_when_it_is_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        async def start(self) -> None:
            get_logger("provider").info("started")

        async def close(self) -> None:
            get_logger("provider").info("closed")

    async def open_idle(*_: Any) -> Idle:
        return Idle()

    monkeypatch.setattr("provider.daemon.service.open_provider", open_idle)
    create_key(tmp_path / "key.pem")
    stop = asyncio.Event()
    stop.set()
    with structlog.testing.capture_logs() as logs:
        await run_provider(ProviderSettings(home=str(tmp_path)), stop)
    assert [line["event"] for line in logs] == ["started", "takes orders", "stops", "closed", "stopped"]


async def test_tasks_end_even_if_one_loses_a_cancellation() -> None:
    tasks, lost = TaskSet(), []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost.append(1)
        await asyncio.sleep(60)

    task = tasks.start(stubborn())
    await asyncio.sleep(0)
    await tasks.close()
    assert task.cancelled() and lost == [1]


def test_an_office_is_an_interface() -> None:
    office = Office()
    calls: list[Callable[[], None]] = [
        lambda: office.ask_slot(b"", lambda: None),
        lambda: office.free_slot(b""),
        lambda: office.retire(b"", LeaseState.SETTLED),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()
