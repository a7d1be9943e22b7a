"""A whole market on this machine: one chain node, one broker, some providers, each a process started by its own
command.

The demo, the benchmarks and the end-to-end tests stand on it. It holds the treasury's key and gives newcomers their
first credits; all else it does is start, ask and stop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from chain.base.errors import Unavailable
from chain.base.keys import Signer
from chain.base.units import MICRO
from chain.ledger.transactions import Transfer, sign_transaction
from chain.rpc.client import ChainClient
from chain.runtime.clock import SystemClock
from chain.runtime.files import write_atomically
from chain.runtime.keystore import create_key, load_key, load_or_create_key
from chain.runtime.processes import end_process
from requester.demo.supervisor import STOP_SECONDS, Part, Supervisor

TREASURY = 1_000_000
"""Credits in the demo's genesis."""

FIRST_CREDITS = 1_000 * MICRO
"""What each newcomer gets, in micro-credits."""


@dataclass(frozen=True)
class ProviderPlan:
    """One provider of the demo: its name, its price in percent of the usual one, its slots."""

    name: str
    factor: int = 100
    slots: int = 1


TWO_COMPETING_ONE_DEARER = (ProviderPlan("ada", 100), ProviderPlan("bell", 110), ProviderPlan("cray", 300))
"""Two that compete and one under the cap but dearer, whose losing bid stands in the book."""


class World:
    """The running market. `folder` holds everything it writes; `say` hears of deaths and restarts."""

    def __init__(self, folder: Path, say: Callable[[str], None], *, bus: str = "auto") -> None:
        self.folder = folder
        self.supervisor = Supervisor(say)
        self.clock = SystemClock()
        self.accounts: dict[str, bytes] = {}
        self._bus = bus
        self._treasury: Signer | None = None
        self._chain: ChainClient | None = None

    @property
    def chain(self) -> ChainClient:
        """Client of the node; valid after `start`."""
        if self._chain is None:
            raise Unavailable("the market has not been started", rule="demo.part")
        return self._chain

    @property
    def chain_url(self) -> str:
        """Address of the node."""
        return self.supervisor.running["chain"].address or ""

    @property
    def broker_url(self) -> str:
        """Address of the broker."""
        return self.supervisor.running["broker"].address or ""

    @property
    def genesis(self) -> Path:
        """The genesis file: all that an offline check needs to know of the chain."""
        return self.folder / "chain" / "genesis.json"

    async def start(
        self,
        providers: Sequence[ProviderPlan] = TWO_COMPETING_ONE_DEARER,
        *,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start chain, broker and providers and fund them; `tell` hears of each step. Raises `Unavailable` where a part
        does not become ready.
        """
        home = self.folder / "chain"
        tell("starting one chain node")
        await run_command(
            "tally-chain", "init", "--home", str(home), "--name", "demo", "--treasury-credits", str(TREASURY)
        )
        self._treasury = load_key(home / "treasury.pem")
        self._chain = ChainClient(await self.supervisor.start(self._part("chain", "tally-chain", "run")))
        self.accounts["treasury"] = self._treasury.key
        tell("giving broker and providers their first credits")
        names = ["broker", *(plan.name for plan in providers)]
        await asyncio.gather(*(self.fund(name, self._key(name)) for name in names))
        tell("starting one broker")
        await self.supervisor.start(
            self._part("broker", "tally-broker", "run", "--chain", self.chain_url, "--bus", self._bus)
        )
        tell(f"starting {len(providers)} providers")
        await asyncio.gather(*(self.start_provider(plan) for plan in providers))

    async def start_provider(self, plan: ProviderPlan) -> None:
        """Start one provider; it registers itself with its bond."""
        links = ("--chain", self.chain_url, "--broker", self.get_broker_url(plan.name))
        terms = ("--factor", str(plan.factor), "--slots", str(plan.slots))
        await self.supervisor.start(self._part(plan.name, "tally-provider", "run", *links, *terms))

    def get_broker_url(self, _provider: str) -> str:
        """The address at which a provider reaches the broker; a test puts a broken line in between."""
        return self.broker_url

    async def add_requester(self, name: str) -> Path:
        """A requester with a key, credits and settings of its own; returns its home, which is its TALLY_HOME."""
        folder = self.folder / name / "requester"
        key = create_key(folder / "key.pem")
        lines = {"broker": self.broker_url, "chain": self.chain_url, "genesis": self.genesis}
        text = "".join(f'{setting} = "{value}"\n' for setting, value in lines.items())
        write_atomically(folder / "settings.toml", text.encode(), mode=0o600)
        await self.fund(name, key.key)
        return folder.parent

    async def fund(self, name: str, key: bytes, amount: int = FIRST_CREDITS) -> None:
        """Give an account credits from the treasury; returns when the transfer is final."""
        if self._treasury is None:
            raise Unavailable("the market has not been started", rule="demo.part")
        self.accounts[name] = key
        info = await self.chain.info()
        valid_until = self.clock.now() + 60_000
        body = Transfer(key, amount)
        await self.chain.submit(
            sign_transaction(self._treasury, bytes.fromhex(info.chain), body, valid_until, os.urandom(16))
        )

    async def close(self) -> None:
        """Stop every part."""
        if self._chain is not None:
            await self._chain.close()
        await self.supervisor.stop()

    def _key(self, name: str) -> bytes:
        return load_or_create_key(self.folder / name / "key.pem").key

    def _part(self, name: str, command: str, *arguments: str) -> Part:
        home, ready = self.folder / name, self.folder / f"{name}.ready"

        def line(address: str | None) -> list[str]:
            listen = (
                [] if command == "tally-provider" else ["--listen", (address or "http://127.0.0.1:0").split("://")[1]]
            )
            return [*program(command), *arguments, "--home", str(home), "--ready-file", str(ready), *listen]

        return Part(name, line, ready, self.folder / f"{name}.log")


def program(command: str) -> list[str]:
    """How to start one of our commands with this very interpreter."""
    beside = Path(sys.executable).with_name(command)
    return [str(beside)] if beside.exists() else [command]


async def run_command(command: str, *arguments: str, home: Path | None = None, codes: Collection[int] = (0,)) -> str:
    """Run one of our commands to its end and return what it printed; `home` is its TALLY_HOME, `codes` are the exit
    codes that are taken.

    Raises `Unavailable` (`demo.part`) with its words where it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *program(command),
        *arguments,
        env=os.environ if home is None else {**os.environ, "TALLY_HOME": str(home)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        await end_process(process, STOP_SECONDS)
    if process.returncode not in codes:
        words = (err or out).decode(errors="replace").strip()[-2000:]
        raise Unavailable(f"{command} {arguments[0]} failed (exit {process.returncode}): {words}", rule="demo.part")
    return out.decode()
