"""The broker as a process of its own, against a real chain and a real MQTT server: killed at four points of one job, it
is paid for all the same; commands and their exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.bus import MqttBus, Will
from broker.protocol import topics
from broker.protocol.api import PROTOCOL_VERSION, Awarded, Ended, Opened, Submission
from broker.protocol.messages import Announcement, read_from_broker
from broker.rpc.client import BrokerClient
from chain import __version__
from chain.base.codec import encode
from chain.base.errors import TallyError
from chain.base.hashing import Tag
from chain.base.keys import Signer, show_key
from chain.ledger.terms.agreement import Award, compute_lease_id, compute_order_id
from chain.ledger.transactions import RegisterProvider, Settle, Transfer, sign_transaction
from chain.rpc.client import ChainClient
from chain.runtime.clock import SystemClock
from chain.runtime.keystore import load_key
from tests.broker import world
from tests.broker.world import CODE, INPUTS, PROVIDERS, REQUESTER

PATIENCE = 40.0
BIN = Path(sys.executable).parent


def now() -> int:
    return SystemClock().now()


async def run_tool(*command: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


class Parts:
    """A chain and a broker in one folder, each startable again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.urls: dict[str, str] = {}
        self.chain: ChainClient
        self.chain_id = b""

    async def start(self, name: str, *flags: str) -> None:
        ready = self.folder / f"{name}.url"
        ready.unlink(missing_ok=True)
        listen = self.urls.get(name, "http://127.0.0.1:0").removeprefix("http://")
        command = [str(BIN / f"tally-{name}"), "run", "--home", str(self.folder / name), "--listen", listen]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = await asyncio.create_subprocess_exec(
                *command, "--ready-file", str(ready), *flags, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(PATIENCE):
            while not ready.exists():
                assert self.running[name].returncode is None, (self.folder / f"{name}.log").read_text()
                await asyncio.sleep(0.02)
        self.urls[name] = ready.read_text().strip()

    async def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.running.pop(name)
        process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await process.wait()

    async def start_broker(self) -> None:
        await self.start("broker", "--chain", self.urls["chain"], "--bus", "iotcore")

    async def kill_broker(self) -> None:
        await self.stop("broker", signal.SIGKILL)
        await self.start_broker()

    async def send(self, signer: Signer, body: Any) -> None:
        await self.chain.submit(sign_transaction(signer, self.chain_id, body, now() + 60_000, os.urandom(16)))

    def client(self, signer: Signer) -> BrokerClient:
        return BrokerClient(self.urls["broker"], signer)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    """Running and funded: 100 credits for each party, the first provider registered."""
    parts = Parts(tmp_path)
    code, _, said = await run_tool(str(BIN / "tally-chain"), "init", "--home", str(tmp_path / "chain"), "--name", "t")
    assert code == 0, said
    try:
        await parts.start("chain")
        parts.chain = ChainClient(parts.urls["chain"])
        parts.chain_id = bytes.fromhex((await parts.chain.info()).chain)
        await run_tool(str(BIN / "tally-broker"), "init", "--home", str(tmp_path / "broker"))
        treasury, broker = load_key(tmp_path / "chain" / "treasury.pem"), load_key(tmp_path / "broker" / "key.pem")
        for account in (broker.key, REQUESTER.key, PROVIDERS[0].key):
            await parts.send(treasury, Transfer(account, 100_000_000))
        await parts.send(PROVIDERS[0], RegisterProvider(10_000_000))
        await parts.start_broker()
        yield parts
    finally:
        with contextlib.suppress(AttributeError):
            await parts.chain.close()
        for name in list(parts.running):
            await parts.stop(name, signal.SIGKILL)


@pytest.fixture
def real_chain(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The makers of `tests.broker.world` speak of this chain and broker."""
    monkeypatch.setattr(world, "CHAIN", parts.chain_id)
    monkeypatch.setattr(world, "BROKER", load_key(parts.folder / "broker" / "key.pem"))
    return parts


async def patiently(call: Any) -> Any:
    """Repeat a call while a part is away."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except TallyError as error:
                if error.rule not in ("broker.unreachable", "chain.unreachable"):
                    raise
                await asyncio.sleep(0.05)


async def follow(client: BrokerClient, order_id: bytes, until: type) -> list[Any]:
    seen: list[Any] = []
    after = 0
    async with asyncio.timeout(PATIENCE):
        while not any(isinstance(one, until) for one in seen):
            page = await patiently(partial(client.events, order_id, after, 5_000))
            seen += page.items
            after = page.next
    return seen


@pytest.mark.check
@pytest.mark.parametrize("moment", ["announced", "opened", "delivered", "accepted"])
async def test_a_broker_killed_at_any_point_loses_nothing(real_chain: Parts, moment: str) -> None:
    parts, signer, chain_id = real_chain, PROVIDERS[0], real_chain.chain_id

    async def pass_by(name: str) -> None:
        if name == moment:
            await parts.kill_broker()

    requester, provider = parts.client(REQUESTER), parts.client(signer)
    bus = MqttBus((await requester.info()).bus, "provider", Will(topics.presence(chain_id, signer.key)))
    try:
        await bus.start()
        await bus.subscribe([topics.orders(chain_id), topics.down(chain_id, signer.key)])
        offer = signer.sign(Tag.OFFER, chain_id, world.make_offer(now()))
        await bus.publish(topics.presence(chain_id, signer.key), encode(offer), retain=True)
        async with asyncio.timeout(PATIENCE):
            while not (await requester.info()).providers:
                await asyncio.sleep(0.02)
        order = world.make_order(now(), closes=now() + 20_000, auctioneer=world.BROKER.key, holders=(world.BROKER.key,))
        submission = Submission(PROTOCOL_VERSION, world.sign_order(order), world.make_spec(), (CODE, INPUTS))
        order_id = await requester.submit(submission)
        assert order_id == compute_order_id(chain_id, order)
        await hear(bus, chain_id, Announcement)
        await pass_by("announced")
        if moment == "announced":
            await hear(bus, chain_id, Announcement)
        await bus.publish(topics.up(chain_id, signer.key), encode(world.make_bid(order, signer)))
        seen = await follow(requester, order_id, Opened)
        award: Award = next(one.award.body for one in seen if isinstance(one, Awarded))
        lease = compute_lease_id(chain_id, award)
        await pass_by("opened")
        delivery = world.make_delivery(award, signer)
        storage = await patiently(lambda: provider.deliver(lease, delivery))
        await pass_by("delivered")
        assert await patiently(lambda: provider.deliver(lease, delivery)) == storage
        acceptance = world.make_acceptance(delivery)
        await patiently(lambda: requester.accept(lease, acceptance))
        await pass_by("accepted")
        got = await patiently(lambda: provider.acceptance(lease, 5_000))
        assert got == acceptance
        await parts.send(signer, Settle(delivery.receipt, got))
        seen = await follow(requester, order_id, Ended)
        assert seen[-1].state == "settled"
        view = await parts.chain.lease(lease)
        assert view is not None
        assert (view.state, view.paid, view.commission) == ("settled", 1_000_000, 10_000)
        supply = await parts.chain.supply()
        assert supply.total + supply.burned == supply.genesis
    finally:
        await bus.close()
        await requester.close()
        await provider.close()


async def hear(bus: MqttBus, chain_id: bytes, kind: type) -> Any:
    """The next message of a kind."""
    async with asyncio.timeout(PATIENCE):
        async for _, data in bus.messages():
            body = read_from_broker(data, chain_id, world.BROKER.key).body
            if isinstance(body, kind):
                return body
    raise AssertionError("the bus was closed")


@pytest.mark.check
async def test_what_the_commands_say(tmp_path: Path) -> None:
    tool, home = str(BIN / "tally-broker"), str(tmp_path / "broker")
    code, out, _ = await run_tool(tool, "--version")
    assert (code, __version__ in out) == (0, True)
    for command in ([], ["init"], ["run"], ["status"]):
        code, out, _ = await run_tool(tool, *command, "--help")
        assert (code, "Examples:" in out) == (0, True)
    code, out, _ = await run_tool(tool, "init", "--home", home)
    assert (code, show_key(load_key(tmp_path / "broker" / "key.pem").key) in out) == (0, True)
    code, _, said = await run_tool(tool, "init", "--home", home)
    assert (code, show_key(load_key(tmp_path / "broker" / "key.pem").key) in said) == (1, True)
    assert (await run_tool(tool, "run", "--home", home, "--no-such-flag"))[0] == 2
    code, _, said = await run_tool(tool, "status", "--home", home, "--broker", "http://127.0.0.1:9")
    assert (code, "tally-broker run" in said) == (3, True)
    code, _, said = await run_tool(tool, "run", "--home", home, "--commission", "10001")
    assert (code, "settings.value" in said) == (1, True)


@pytest.mark.check
async def test_status_and_a_tidy_end(parts: Parts) -> None:
    code, out, _ = await run_tool(str(BIN / "tally-broker"), "status", "--json", "--broker", parts.urls["broker"])
    info = json.loads(out)["info"]
    assert (code, info["chain"], info["note"]) == (0, parts.chain_id.hex(), "")
    code, out, _ = await run_tool(str(BIN / "tally-broker"), "status", "--home", str(parts.folder / "broker"))
    assert code in (0, 3)
    assert await parts.stop("broker") == 0
    assert not (parts.folder / "broker.url").exists()
    assert [line.split()[3:5] for line in (parts.folder / "broker.log").read_text().splitlines()[-2:]] == [
        ["broker", "stops"],
        ["broker", "stopped"],
    ]
