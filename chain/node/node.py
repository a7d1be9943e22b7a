"""A whole node: opens the folder, checks what it finds, runs engine, ledger, store and server until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from chain.base.errors import Fault, TallyError
from chain.consensus.engine import Engine, EngineEffect, EngineEvent
from chain.consensus.seats import Seats, check_supported
from chain.ledger.genesis import Genesis, compute_chain_id
from chain.ledger.ledger import Ledger, make_genesis_header
from chain.ledger.transactions import MAX_VALIDITY
from chain.node.application import Application, Seat
from chain.node.folder import ChainFolder
from chain.node.jsonrpc import Dispatcher
from chain.node.methods import Methods
from chain.node.server import RpcServer
from chain.runtime.addresses import is_loopback, parse_listen
from chain.runtime.clock import Clock, SystemClock
from chain.runtime.driver import Driver
from chain.runtime.files import own_folder, write_atomically
from chain.runtime.journal import Journal
from chain.runtime.logs import get_logger
from chain.store.check import check_store
from chain.store.database import ChainStore, CorruptStore
from chain.store.guard import SignGuard

__all__ = ["DEFAULT_LISTEN", "Node", "NodeSettings", "run_node"]

DEFAULT_LISTEN = "127.0.0.1:7001"
"""Where a node listens unless told otherwise."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the disk."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set: `home` (folder of `tally-chain init`), `listen` (host:port, port 0 for any free one),
    `ready_file` (a second place for the URL).
    """

    home: str
    listen: str = DEFAULT_LISTEN
    ready_file: str = ""
    passphrase: str = ""
    log_json: bool = False
    log_level: str = "info"


class NoJournal(Journal):
    """The engine's events are not kept: the store is its memory, and its first event brings it back."""

    def __init__(self) -> None:
        """Needs no database."""

    def append(self, machine: str, now: int, event: bytes) -> None:
        """Keep nothing."""

    def load(self, machine: str) -> list[tuple[int, bytes]]:
        """Nothing was kept."""
        return []


class Node:
    """A node on an owned folder. `start` gives the URL; `broken` is set once the node can't go on, `fault` says why."""

    def __init__(self, folder: ChainFolder, genesis: Genesis, clock: Clock, passphrase: str | None = None) -> None:
        """Open and check everything. Raises as `open_ledger`, and for keys and beacon that don't fit genesis."""
        chain_id = compute_chain_id(genesis)
        seats = check_supported(Seats(0, [seat.key for seat in genesis.seats]))
        signer = folder.load_seat(passphrase)
        place = seats.find(signer.key)
        beacon = folder.load_beacon(signer, genesis.seats[place].beacon)
        self.store = ChainStore(folder.store_file, chain_id)
        try:
            self.ledger = open_ledger(self.store, genesis, seats)
        except TallyError:
            self.store.close()
            raise
        self.broken = asyncio.Event()
        self.fault: BaseException | None = None
        guard = SignGuard(self.store, signer, chain_id, self.ledger.head.slot)
        self.application = Application(self.ledger, self.store, Seat(seats, guard, beacon), clock)
        self.server = RpcServer(Dispatcher(Methods(self.application, genesis).make_table()))
        self._driver: Driver[EngineEvent, EngineEffect] = Driver(
            "engine",
            Engine(seats, place),
            self.application.perform,
            journal=NoJournal(),
            events=EngineEvent,
            restarted=self.application.make_started(),
            clock=clock,
        )
        self._driver.on_fault = self._break
        self.application.post = self._driver.post

    async def start(self, listen: str) -> str:
        """Begin to listen and to make blocks; returns the URL."""
        url = await self.server.start(*parse_listen(listen))
        await self._driver.start()
        return url

    async def close(self) -> None:
        """Stop answering, let the block that is being written reach the disk, stop."""
        self.application.stop()
        await self.server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self.fault is None:
                    await self.application.settle()
        await self._driver.close()
        self.store.close()

    def _break(self, error: BaseException) -> None:
        self.fault = error
        self.broken.set()


def open_ledger(store: ChainStore, genesis: Genesis, seats: Seats) -> Ledger:
    """The ledger at the store's head. Raises `CorruptStore` or `Fault` for a store that contradicts itself."""
    origin, chain_id = make_genesis_header(genesis), compute_chain_id(genesis)
    head = check_store(store, chain_id, origin, tuple(seat.beacon for seat in genesis.seats), seats)
    if head.height == 0:
        return Ledger(genesis)
    try:
        return Ledger.load(genesis, store.get_entries(), head, store.get_recent(head.time - MAX_VALIDITY))
    except TallyError as error:
        raise CorruptStore(store.path, f"the state: {error.message}") from error


async def run_node(settings: NodeSettings, stop: asyncio.Event) -> None:
    """Run the node of a folder until `stop` is set. Raises `Fault` under `node.broken` if it can't go on, else as
    `Node`.
    """
    folder = ChainFolder(Path(settings.home))
    log = get_logger("node")
    genesis = folder.read_genesis()
    with own_folder(folder.path):
        node = Node(folder, genesis, SystemClock(), settings.passphrase or None)
        files = [folder.address_file, *([Path(settings.ready_file)] if settings.ready_file else [])]
        try:
            url = await node.start(settings.listen)
            _write_address(files, url)
            head = node.ledger.head
            log.info("chain runs", url=url, name=genesis.name, chain=node.ledger.chain_id.hex(), height=head.height)
            if not is_loopback(parse_listen(settings.listen)[0]):
                log.warning("anyone who reaches this address can read the chain and submit transactions", url=url)
            await _wait_any(stop, node.broken)
        finally:
            await node.close()
            for file in files:
                file.unlink(missing_ok=True)
        if node.fault is not None:
            raise Fault(f"the node stopped: {node.fault}", rule="node.broken") from node.fault
        log.info("chain stopped", height=node.ledger.head.height)


def _write_address(files: Iterable[Path], url: str) -> None:
    for file in files:
        write_atomically(file, f"{url}\n".encode())


async def _wait_any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
