"""Chains for tests: folders copied from one that was made once, nodes in this process or as processes of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from chain.base.keys import Signer
from chain.base.units import MICRO
from chain.ledger.genesis import Genesis, Params, compute_chain_id
from chain.ledger.transactions import Body, SignedTransaction, Transfer, compute_transaction_id, sign_transaction
from chain.node.folder import ChainFolder, ChainPlan
from chain.node.node import Node
from chain.rpc.client import ChainClient
from chain.runtime.clock import SystemClock
from chain.runtime.keystore import load_key

TREASURY = 1_000_000 * MICRO
DEADLINE = 30.0
_salts = count(1)


@functools.cache
def _template(name: str) -> Path:
    """A chain's folder is slow to make (a beacon of 2^20 hashes): each is made once and copied."""
    home = Path(tempfile.mkdtemp(prefix="tally-test-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    ChainFolder(home).create(ChainPlan(name, TREASURY, Params(), SystemClock().now() - 1_000))
    return home


def make_folder(path: Path, name: str = "test") -> ChainFolder:
    """A new folder of the chain `name` under `path`: the same name, the same chain."""
    shutil.copytree(_template(name), path / name)
    return ChainFolder(path / name)


def make_signer(number: int) -> Signer:
    """A fixed account of tests."""
    return Signer(number.to_bytes(32, "big"))


@dataclass
class Payer:
    """Makes transactions of one account on one chain."""

    signer: Signer
    chain_id: bytes

    @classmethod
    def of_treasury(cls, folder: ChainFolder) -> Payer:
        return cls(load_key(folder.treasury_file), compute_chain_id(folder.read_genesis()))

    def sign(self, body: Body, *, valid_for: int = 60_000, salt: int | None = None) -> SignedTransaction:
        number = next(_salts) if salt is None else salt
        valid_until = SystemClock().now() + valid_for
        return sign_transaction(self.signer, self.chain_id, body, valid_until, number.to_bytes(16, "big"))

    def pay(self, to: bytes, amount: int = MICRO, *, valid_for: int = 60_000) -> SignedTransaction:
        return self.sign(Transfer(to, amount), valid_for=valid_for)


def name_transaction(signed: SignedTransaction) -> bytes:
    """Its id."""
    return compute_transaction_id(signed.body)


@dataclass
class World:
    """A running node of this process, a client of it, and the treasury."""

    folder: ChainFolder
    genesis: Genesis
    node: Node
    client: ChainClient
    treasury: Payer


@contextlib.asynccontextmanager
async def run_world(folder: ChainFolder) -> AsyncIterator[World]:
    """Run a node on a folder within this process."""
    genesis = folder.read_genesis()
    node = Node(folder, genesis, SystemClock())
    try:
        async with ChainClient(await node.start("127.0.0.1:0")) as client:
            yield World(folder, genesis, node, client, Payer.of_treasury(folder))
    finally:
        await node.close()


class NodeProcess:
    """`tally-chain run` as a process that can be killed."""

    def __init__(self, folder: ChainFolder, prelude: str = "") -> None:
        """`prelude` is Python that runs before the command, to make it die somewhere."""
        self.folder = folder
        self._prelude = prelude
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.errors = ""

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it and do not wait."""
        arguments = ["run", "--home", str(self.folder.path), "--listen", "127.0.0.1:0"]
        command = [sys.executable, "-c", f"{self._prelude}\nfrom chain.cli import main; main()", *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def start(self) -> str:
        """Start it and return its URL once it answers."""
        self.folder.address_file.unlink(missing_ok=True)
        self.process = self.launch()
        wait_until(lambda: self.folder.address_file.exists() or self.returncode is not None, "the node's address")
        if self.returncode is not None:
            self.end()
            raise AssertionError(self.errors)
        self.url = self.folder.address_file.read_text().strip()
        return self.url

    @property
    def returncode(self) -> int | None:
        return self.process.poll() if self.process else None

    def kill(self) -> None:
        """As a power cut of this process."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        if self.process.stderr and not self.process.stderr.closed:
            try:
                self.errors = self.process.communicate(timeout=DEADLINE)[1].decode()
            finally:
                self.process.kill()
        return self.process.returncode


@contextlib.contextmanager
def run_process(folder: ChainFolder, prelude: str = "") -> Iterator[NodeProcess]:
    """A node process, gone at the end whatever happened."""
    process = NodeProcess(folder, prelude)
    try:
        process.start()
        yield process
    finally:
        process.end(signal.SIGKILL)


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Look at a condition until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.0005)
