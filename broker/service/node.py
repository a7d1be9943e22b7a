"""The whole broker in one process: folder, key, database, MQTT server, bus, chain, desk, HTTP; started in this order
and stopped in the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple

from broker.auction.admission import House
from broker.bus.mqtt import MqttBus
from broker.bus.protocol import Bus
from broker.bus.server import (
    BusServer,
    ServerPlan,
    choose_kind,
    find_free_port,
    plan_iotcore,
    plan_mosquitto,
)
from broker.protocol import topics
from broker.protocol.api import PROTOCOL_VERSION, Info
from broker.service import custody, jobs
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.desk import Desk, Parts
from broker.service.directory import Directory
from broker.service.jobs import Archive
from broker.service.ledgerside import Chain, LedgerSide
from broker.service.listener import Listener
from broker.service.routes import Routes
from broker.service.settings import BrokerSettings
from broker.service.uploads import Uploads
from broker.service.web import WebServer
from chain import __version__
from chain.base.errors import TallyError, Unavailable
from chain.base.keys import Signer, show_key
from chain.rpc.client import ChainClient
from chain.rpc.schema import ChainInfo
from chain.runtime import journal
from chain.runtime.addresses import is_loopback, parse_listen
from chain.runtime.clock import Clock, SystemClock
from chain.runtime.database import open_database
from chain.runtime.files import own_folder, write_atomically
from chain.runtime.gate import Gate
from chain.runtime.journal import Journal
from chain.runtime.keystore import load_or_create_key
from chain.runtime.logs import get_logger

STORE_KIND = "tallystick broker"
STORE_VERSION = 2

SCHEMA = f"{journal.SCHEMA};{jobs.SCHEMA}"

SWEEP_SECONDS = 60.0
"""Between two looks for what has run out."""

START_A_SERVER = "start an MQTT server there (mosquitto), or leave out --bus"
"""What a broker is told that finds nobody at the address of `--bus`."""

CHAIN_PAUSE = 0.5
"""Seconds between two tries to reach the chain at the start."""


class Outside(NamedTuple):
    """What lies outside of the broker's own process: chain and bus. Tests bring their own."""

    chain: Chain
    bus: Bus
    bus_url: str


class BrokerNode:
    """A broker that runs."""

    def __init__(self, settings: BrokerSettings, signer: Signer, outside: Outside, clock: Clock | None = None) -> None:
        self.url = ""
        self.desk: Desk
        self.listener: Listener
        self.parts: Parts
        self.gate: Gate
        self._settings = settings
        self._signer = signer
        self._outside = outside
        self._clock = clock or SystemClock()
        self._stack = contextlib.AsyncExitStack()
        self._log = get_logger("broker")

    async def start(self, info: ChainInfo) -> None:
        """Open everything and serve; `info` is what the chain said of itself."""
        settings, stack = self._settings, self._stack
        host, port = parse_listen(settings.listen)
        store, rows = open_stores(settings)
        stack.callback(store.close)
        stack.callback(rows.close)
        self.parts = self._make_parts(store, rows, bytes.fromhex(info.chain))
        stack.callback(self.parts.blobs.close)
        self.desk = Desk(self.parts)
        stack.push_async_callback(self.desk.close)
        await self.parts.ledger.start(info)
        stack.push_async_callback(self.parts.ledger.close)
        await self.desk.start()
        self.listener = Listener(self.parts, self.desk)
        await self.listener.start()
        stack.push_async_callback(self.listener.close)
        routes = Routes(self.parts, self.desk, self.describe)
        sweeper = asyncio.create_task(self._sweep(routes.blobs.uploads))
        stack.push_async_callback(_cancel, sweeper)
        web = WebServer(routes.make_table(), self._clock)
        self.url = await web.start(host, port)
        self.gate = web.gate
        stack.push_async_callback(web.close)
        if not is_loopback(host):
            self._log.warning("reachable from outside: whoever reaches this address may send requests", listen=host)
        write_atomically(settings.address_file, f"{self.url}\n".encode())
        self._log.info("broker serves", url=self.url, account=show_key(self._signer.key), bus=self._outside.bus_url)

    async def close(self) -> None:
        """Stop serving; what is under way goes on after the next start."""
        await self._stack.aclose()

    def describe(self) -> Info:
        """What `GET /v1/info` says."""
        parts = self.parts
        return Info(
            version=PROTOCOL_VERSION,
            software=f"tallystick {__version__}",
            chain=parts.house.chain.hex(),
            broker=self._signer.key.hex(),
            bus=self._outside.bus_url,
            commission_bps=parts.house.commission,
            retention_ms=parts.house.retention,
            max_blob_bytes=parts.blobs.max_bytes,
            providers=len(parts.directory.list_standing(self._clock.now())),
            note=parts.ledger.note,
        )

    def _make_parts(self, store: sqlite3.Connection, rows: sqlite3.Connection, chain_id: bytes) -> Parts:
        settings, outside = self._settings, self._outside
        blobs = BlobStore(settings.folder / "blobs", settings.max_blob_bytes)
        blobs.prepare()
        return Parts(
            signer=self._signer,
            house=House(chain_id, self._signer.key, settings.commission, settings.retention),
            clock=self._clock,
            journal=Journal(store),
            archive=Archive(store),
            blobs=blobs,
            custody=Custody(rows, settings.quota_bytes, settings.store_bytes),
            ledger=LedgerSide(outside.chain, self._signer, chain_id, self._clock),
            bus=outside.bus,
            directory=Directory(),
        )

    async def _sweep(self, uploads: Uploads) -> None:
        while True:
            now = self._clock.now()
            uploads.sweep(now)
            self.parts.blobs.remove(self.parts.custody.sweep(now))
            self.parts.archive.sweep(now - self.parts.house.retention)
            self.parts.directory.sweep(now)
            with contextlib.suppress(TallyError):
                await self.parts.ledger.check_funds()
            await asyncio.sleep(SWEEP_SECONDS)


async def run_broker(settings: BrokerSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set: key, MQTT server, bus, chain, then the node."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(own_folder(settings.folder))
        await _serve(settings, stop, stack)
    get_logger("broker").info("broker stopped")


async def _serve(settings: BrokerSettings, stop: asyncio.Event, stack: contextlib.AsyncExitStack) -> None:
    signer = load_or_create_key(settings.key_file, settings.passphrase or None)
    chain = ChainClient(settings.chain)
    stack.push_async_callback(chain.close)
    info = await reach_chain(chain, stop)
    if info is None:
        return
    own_url, public_url = await _start_bus_server(settings, bytes.fromhex(info.chain), stack)
    bus = MqttBus(own_url, f"broker-{signer.key.hex()[:16]}", advice=START_A_SERVER)
    await bus.start()
    stack.push_async_callback(bus.close)
    node = BrokerNode(settings, signer, Outside(chain, bus, settings.bus_public or public_url))
    stack.push_async_callback(node.close)
    await node.start(info)
    await stop.wait()
    get_logger("broker").info("broker stops")
    settings.address_file.unlink(missing_ok=True)


async def reach_chain(chain: Chain, stop: asyncio.Event) -> ChainInfo | None:
    """What the chain says of itself, waited for as long as it takes; None if we are stopped before."""
    log = get_logger("broker")
    said = False
    while not stop.is_set():
        try:
            return await chain.info()
        except Unavailable as error:
            if not said:
                log.warning("waiting for the chain", why=error.message)
                said = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHAIN_PAUSE):
                    await stop.wait()
    return None


async def _start_bus_server(
    settings: BrokerSettings, chain_id: bytes, stack: contextlib.AsyncExitStack
) -> tuple[str, str]:
    """The MQTT server as a child, unless an address is given; returns its addresses for us and for everybody."""
    if "://" in settings.bus:
        return settings.bus, strip_password(settings.bus)
    plan = plan_bus(settings, chain_id)
    server = BusServer(plan, settings.folder / "bus")
    await server.start()
    stack.push_async_callback(server.close)
    return plan.own_url, plan.public_url


def plan_bus(settings: BrokerSettings, chain_id: bytes) -> ServerPlan:
    """The server that the settings ask for; raises `Refused` (`bus.bind`) or `Unavailable` (`bus.server`)."""
    host, port = parse_listen(settings.bus_listen)
    kind = choose_kind(settings.bus)
    port = port or keep_port(settings.folder / "bus-port")
    if kind == "mosquitto":
        return plan_mosquitto(topics.root(chain_id), port, host)
    return plan_iotcore(port, host)


def keep_port(path: Path) -> int:
    """The port that an earlier life of this broker chose, else a free one: providers that know the address find the
    server again after a restart.
    """
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    port = find_free_port()
    write_atomically(path, str(port).encode())
    return port


def open_stores(settings: BrokerSettings) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """The broker's databases: journal and archive; who holds which blob."""
    folder, kind, version = settings.folder, STORE_KIND, STORE_VERSION
    store = open_database(folder / "broker.db", kind=kind, version=version, schema=SCHEMA)
    return store, open_database(folder / "blobs.db", kind=f"{kind} blobs", version=version, schema=custody.SCHEMA)


def strip_password(url: str) -> str:
    """An MQTT address without user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


__all__ = ["BrokerNode", "Outside", "run_broker"]
