"""One requester at one broker and one chain: connections, store, account, and who is there."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from broker.protocol.api import Info, ProviderView
from broker.rpc.client import BrokerClient
from chain.base.errors import Refused
from chain.base.keys import Signer, show_key
from chain.ledger.genesis import compute_chain_id
from chain.rpc.schema import AccountView, ChainInfo
from chain.runtime.clock import SystemClock
from requester.client.runner import Means
from requester.client.settings import RequesterSettings, get_folder, load_genesis
from requester.store.jobs import JobRow, JobStore

if TYPE_CHECKING:
    from chain.rpc.client import ChainClient


class Connection:
    """What all calls of a market stand on."""

    def __init__(self, settings: RequesterSettings, signer: Signer, folder: Path | None = None) -> None:
        self.settings = settings
        self.signer = signer
        self.store = JobStore(folder or get_folder())
        self.clock = SystemClock()
        self.chain = make_chain_client(settings.chain)
        self.broker = make_broker_client(settings.broker, signer)
        self._others: list[BrokerClient | ChainClient] = []
        self._info: tuple[Info, ChainInfo] | None = None
        self._closed = False

    async def close(self) -> None:
        """Close connections and store. Jobs go on without us; further calls raise `Refused` under `market.closed`."""
        self._closed = True
        for client in (self.broker, self.chain, *self._others):
            await client.close()
        self.store.close()
        self.store.blobs.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check(self) -> tuple[Info, ChainInfo]:
        """Ask both parts who they are, once."""
        self.require_open()
        if self._info is None:
            chain, broker = await self.chain.info(), await self.broker.info()
            if broker.chain != chain.chain:
                message = (
                    f"the broker at {self.settings.broker} serves chain {broker.chain[:16]}, the node at "
                    f"{self.settings.chain} is of chain {chain.chain[:16]}; name parts of one chain"
                )
                raise Refused(message, rule="chain.other")
            self._check_genesis(chain)
            self._info = broker, chain
        return self._info

    def find(self, job: bytes | str) -> JobRow:
        """A job by its id, or by the beginning of its id as text; raises `Refused` under `job.unknown` or
        `job.ambiguous`.
        """
        self.require_open()
        return self.store.find(job) if isinstance(job, str) else self.store.get(job)

    def list_jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        self.require_open()
        return self.store.list_jobs()

    def require_open(self) -> None:
        """Raise `Refused` under `market.closed` once the market was closed."""
        if self._closed:
            raise Refused("this market is closed; open another one by `connect`", rule="market.closed")

    def _check_genesis(self, chain: ChainInfo) -> None:
        """Where a genesis file is at hand, the node has to be of its chain."""
        path = self.settings.genesis_path
        if path is None:
            return
        if compute_chain_id(load_genesis(path)).hex() != chain.chain:
            message = f"the node at {self.settings.chain} is not of the chain of {path}; name that chain's node"
            raise Refused(message, rule="chain.genesis")

    async def account(self) -> AccountView:
        """The requester's own account on the chain."""
        self.require_open()
        return await self.chain.account(self.signer.key)

    async def providers(self) -> list[ProviderView]:
        """The providers that offer themselves at the broker just now."""
        self.require_open()
        return await self.broker.providers()

    def make_means(self, row: JobRow) -> Means:
        """Clients of the parts that this job was sent to, which may be others than those of today's settings."""
        owner = self.store.load_documents(row.id).order.body.requester
        if owner != self.signer.key:
            message = f"job {row.id.hex()[:16]} was signed by {show_key(owner)}, not by your key; name its key by --key"
            raise Refused(message, rule="job.owner")
        broker, chain = self.broker, self.chain
        if row.broker != self.settings.broker:
            broker = make_broker_client(row.broker, self.signer)
            self._others.append(broker)
        if row.chain != self.settings.chain:
            chain = make_chain_client(row.chain)
            self._others.append(chain)
        return Means(self.store, broker, chain, self.signer, self.clock)


def load_clients() -> None:
    """Load what speaks HTTP, before a loop runs that this would hold up."""
    for name in ("chain.rpc.client", "broker.rpc.wire"):
        importlib.import_module(name)


def make_broker_client(url: str, signer: Signer) -> BrokerClient:
    """How a client of a broker is made; tests put their own here."""
    return BrokerClient(url, signer)


def make_chain_client(url: str) -> ChainClient:
    """The same for a node. Its module is loaded only now: aiohttp is a third of what importing a market takes."""
    from chain.rpc.client import ChainClient

    return ChainClient(url)
