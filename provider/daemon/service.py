"""A whole provider as one process: opens folder and key, finds its parts, registers, works until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.bus import MqttBus, Will
from broker.protocol import topics
from broker.protocol.api import Info
from broker.rpc.client import BrokerClient
from chain.base.errors import Refused, Unavailable
from chain.base.keys import Signer, show_key
from chain.base.units import format_credits, parse_credits
from chain.rpc.client import ChainClient
from chain.runtime.clock import SystemClock
from chain.runtime.files import own_folder, write_atomically
from chain.runtime.keystore import load_key
from chain.runtime.logs import get_logger
from provider.daemon.account import ensure_registered
from provider.daemon.daemon import Daemon
from provider.daemon.host import count_warm, describe, examine, open_sandbox
from provider.daemon.links import Backoff, Gear
from provider.daemon.settings import ProviderSettings
from provider.daemon.transactions import Submitter
from provider.daemon.workspace import Workspace
from provider.work.phases import Patience

T = TypeVar("T")


async def run_provider(settings: ProviderSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set. Raises `Refused` for settings, key or account that won't do, `Unavailable` for a part
    that does not answer in time or a host that can't sandbox.
    """
    settings.check()
    signer = load_key(settings.key_file, settings.passphrase or None)
    log = get_logger("provider")
    with own_folder(settings.folder):
        async with contextlib.AsyncExitStack() as stack:
            daemon = await open_provider(settings, signer, stack)
            settings.ready_path.unlink(missing_ok=True)
            stack.push_async_callback(daemon.close)
            await daemon.start()
            write_atomically(settings.ready_path, f"{show_key(signer.key)}\n".encode())
            stack.callback(settings.ready_path.unlink, missing_ok=True)
            pool, price = settings.pool, format_credits(settings.prices.base)
            log.info("takes orders", account=show_key(signer.key), slots=pool.slots, price=price)
            await stop.wait()
            log.info("stops")
        log.info("stopped")


async def open_provider(settings: ProviderSettings, signer: Signer, stack: contextlib.AsyncExitStack) -> Daemon:
    """All parts, connected and registered; what was opened is closed by `stack`."""
    image, abilities = await examine(settings)
    slots = settings.pool.slots
    sandbox = open_sandbox(image, abilities, slots, count_warm(settings))
    stack.push_async_callback(sandbox.close)
    sandbox.warm_up()
    chain = ChainClient(settings.chain)
    stack.push_async_callback(chain.close)
    broker = BrokerClient(settings.broker, signer)
    stack.push_async_callback(broker.close)
    info = await wait_for(chain.info, settings.wait_s, f"the chain node at {settings.chain}")
    chain_id = bytes.fromhex(info.chain)
    said = await wait_for(broker.info, settings.wait_s, f"the broker at {settings.broker}")
    check_broker(said, info.chain, settings)
    clock = SystemClock()
    submitter = Submitter(signer, chain_id, chain, clock)
    await ensure_registered(signer.key, parse_credits(settings.bond), chain, submitter)
    workspace = Workspace(settings.folder)
    stack.callback(workspace.close)
    presence = topics.presence(chain_id, signer.key)
    bus = MqttBus(settings.bus or said.bus, f"provider-{signer.key.hex()[:16]}", Will(presence))
    stack.push_async_callback(bus.close)
    free: asyncio.Queue[int] = asyncio.Queue()
    for slot in range(slots):
        free.put_nowait(slot)
    gear = Gear(
        signer=signer,
        chain_id=chain_id,
        clock=clock,
        chain=chain,
        broker=broker,
        bus=bus,
        executor=sandbox,
        slots=free,
        workspace=workspace,
        host=describe(image, abilities),
        patience=Patience(),
    )
    return Daemon(gear, settings, bytes.fromhex(said.broker), said.max_blob_bytes)


def check_broker(said: Info, chain: str, settings: ProviderSettings) -> None:
    """Raise `Refused` under `broker.chain` for a broker of another chain."""
    if said.chain != chain:
        other, own = said.chain[:16], chain[:16]
        raise Refused(
            f"the broker at {settings.broker} works on chain {other}, the node at {settings.chain} on {own}",
            rule="broker.chain",
        )


async def wait_for(ask: Callable[[], Awaitable[T]], seconds: float, part: str) -> T:
    """The answer of a `part` that may still be starting, with one line of log if it is; raises its `Unavailable` after
    so many seconds.
    """
    backoff, said = Backoff(), False
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await ask()
        except Unavailable:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        if not said:
            said = True
            get_logger("provider").info(f"waits for {part}")
        await backoff.wait()
