"""What the daemon needs of the other parts, as interfaces: real clients in operation, doubles in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from broker.bus import Bus
from broker.protocol.api import Delivery
from broker.protocol.jobs import Level, Runtime
from chain.base.keys import Signed, Signer
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.ledger.transactions import SignedTransaction
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, TxOutcome
from chain.runtime.clock import Clock
from provider.daemon.workspace import Workspace
from provider.sandbox.spec import SandboxEvent, Task
from provider.work.phases import Patience


class ChainLink(Protocol):
    """What is asked of a node: see `chain.rpc.client.ChainClient`."""

    async def info(self) -> ChainInfo:
        """The node and its chain."""
        ...

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        """Hand in a transaction and wait until it is final."""
        ...

    async def account(self, key: bytes) -> AccountView:
        """An account."""
        ...

    async def lease(self, lease: bytes) -> LeaseView | None:
        """A lease, live or ended."""
        ...

    async def leases(
        self,
        provider: bytes | None = None,
        requester: bytes | None = None,
        order: bytes | None = None,
        live: bool | None = None,
    ) -> list[LeaseView]:
        """Leases that fit."""
        ...

    async def events(self, topics: Sequence[bytes], after: int, wait_ms: int = 0) -> EventsPage:
        """Events of final blocks."""
        ...


class BrokerLink(Protocol):
    """What is asked of a broker over HTTP: see `broker.rpc.client.BrokerClient`."""

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        """A blob."""
        ...

    async def get_file(
        self, digest: bytes, path: Path, max_bytes: int, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """A blob as a file, which is there whole or not at all."""
        ...

    async def put_many(self, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
        """Store small blobs together."""
        ...

    async def put_file(
        self, path: Path, digest: bytes, size: int, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Store a file."""
        ...

    async def deliver(self, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        """Hand in a receipt."""
        ...

    async def acceptance(self, lease: bytes, wait_ms: int) -> Signed[Acceptance] | None:
        """The acceptance of a lease."""
        ...


class Executor(Protocol):
    """What runs tasks: see `provider.sandbox.executor.Sandbox`."""

    def batches(self, task: Task, slot: int, spool: Path) -> AsyncGenerator[list[SandboxEvent], None]:
        """Events of a task's stay, all that are ready at once; closing the generator ends the job."""
        ...

    async def close(self) -> None:
        """Remove what the daemon itself made."""
        ...


class Host(msgspec.Struct, frozen=True):
    """What this machine offers: isolation level, runtimes, and the labels that records and receipts carry (threats.md
    trap 8).
    """

    level: Level
    runtimes: tuple[Runtime, ...]
    dispatch: str
    blas: str


class Gear(msgspec.Struct, frozen=True):
    """What every lease works with."""

    signer: Signer
    chain_id: bytes
    clock: Clock
    chain: ChainLink
    broker: BrokerLink
    bus: Bus
    executor: Executor
    slots: asyncio.Queue[int]
    workspace: Workspace
    host: Host
    patience: Patience


class Backoff:
    """Pauses that grow from a tenth of a second to two, between tries of something that must come through."""

    FIRST, MOST = 0.1, 2.0

    def __init__(self) -> None:
        self._pause = self.FIRST

    async def wait(self) -> None:
        """Wait, and wait longer the next time."""
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, self.MOST)


class TaskSet:
    """Tasks that are cancelled together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel all and wait for them."""
        while tasks := [task for task in self._tasks if not task.done()]:
            for task in tasks:
                task.cancel()
            # once more after a while: a library may lose a cancellation that meets its own end of waiting
            await asyncio.wait(tasks, timeout=1)
