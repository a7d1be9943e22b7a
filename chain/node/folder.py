"""A chain's folder: what `tally-chain init` makes and a node opens.

| file | what |
|---|---|
| `genesis.json` | the chain; pass it to whoever wants to verify |
| `seat.pem` | the seat's key; two running copies of it are what the sign guard is for |
| `treasury.pem` | the account that genesis grants the credits |
| `beacon.bin` | values of the beacon's hash chain, derived from the seat's key; secret; made anew if missing |
| `chain.db` | blocks, state, sign guard |
| `lock` | held while a node runs |
| `address` | the running node's URL |
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from chain.base.errors import Refused, TallyError, Unavailable
from chain.base.hashing import NO_CHAIN, Tag, compute_digest, compute_signed_bytes
from chain.base.keys import Signer, show_key
from chain.consensus.beacon import CHAIN_SLOTS, CHECKPOINT_SPAN, BeaconChain, compute_checkpoints
from chain.ledger.genesis import Genesis, Params, Seat, make_genesis, read_genesis, write_genesis
from chain.runtime.files import write_atomically
from chain.runtime.keystore import create_key, load_key

__all__ = ["ChainFolder", "ChainPlan"]

_BEACON_BYTES = 32 * (CHAIN_SLOTS // CHECKPOINT_SPAN + 1)


class ChainPlan(msgspec.Struct, frozen=True):
    """What a new chain is to be: its name, the treasury's micro-credits, its constants, its first Instant."""

    name: str
    treasury: int
    params: Params
    time: int


class ChainFolder:
    """The folder at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def genesis_file(self) -> Path:
        """The chain's definition."""
        return self.path / "genesis.json"

    @property
    def seat_file(self) -> Path:
        """The seat's key."""
        return self.path / "seat.pem"

    @property
    def treasury_file(self) -> Path:
        """The treasury's key."""
        return self.path / "treasury.pem"

    @property
    def store_file(self) -> Path:
        """The database."""
        return self.path / "chain.db"

    @property
    def address_file(self) -> Path:
        """Where a running node writes its URL."""
        return self.path / "address"

    def create(self, plan: ChainPlan, passphrase: str | None = None) -> Genesis:
        """Make keys and genesis of a chain of one seat. Raises `Refused` under `chain.exists` where there is one, or
        as `make_genesis`.
        """
        if self.genesis_file.exists():
            message = f"{self.path} already holds a chain{self._describe()}; name another folder"
            raise Refused(message, rule="chain.exists")
        make_genesis(plan.name, plan.time, (Seat(Signer(bytes(32)).key, bytes(32)),), (), plan.params)
        seat = self._make_key(self.seat_file, passphrase)
        treasury = self._make_key(self.treasury_file, passphrase)
        checkpoints = self._make_beacon(seat)
        seats = (Seat(seat.key, checkpoints[-1]),)
        genesis = make_genesis(plan.name, plan.time, seats, ((treasury.key, plan.treasury),), plan.params)
        write_atomically(self.genesis_file, write_genesis(genesis).encode())
        return genesis

    def read_genesis(self) -> Genesis:
        """The chain's genesis. Raises `Unavailable` under `chain.absent`, or as `read_genesis`."""
        try:
            text = self.genesis_file.read_bytes()
        except OSError as error:
            message = f"no chain in {self.path} ({error.strerror}); make one with `tally-chain init`"
            raise Unavailable(message, rule="chain.absent") from error
        return read_genesis(text)

    def load_seat(self, passphrase: str | None = None) -> Signer:
        """The seat's key."""
        return load_key(self.seat_file, passphrase)

    def load_beacon(self, seat: Signer, head: bytes) -> BeaconChain:
        """The seat's hash chain, from its file or made anew. Raises `Refused` under `R17.head` if it does not end in
        `head`.
        """
        checkpoints = self._read_beacon()
        if checkpoints is None or checkpoints[-1] != head:
            checkpoints = self._make_beacon(seat)
        if checkpoints[-1] != head:
            message = (
                f"the beacon of {self.seat_file} does not end in the head that genesis names; use the seat's own key"
            )
            raise Refused(message, rule="R17.head")
        return BeaconChain(checkpoints)

    def _describe(self) -> str:
        """Whose it is, if its genesis can be read."""
        with contextlib.suppress(TallyError):
            genesis = self.read_genesis()
            treasury = genesis.balances[0].account if genesis.balances else None
            seat = show_key(genesis.seats[0].key)
            return f" of the seat {seat}" + (f" and the treasury {show_key(treasury)}" if treasury else "")
        return ""

    def _make_key(self, path: Path, passphrase: str | None) -> Signer:
        """A key left behind by an `init` that was cut off is used: no chain names it yet."""
        return load_key(path, passphrase) if path.exists() else create_key(path, passphrase)

    def _make_beacon(self, seat: Signer) -> tuple[bytes, ...]:
        """The secret is a signature nobody else can make and nobody sees: whoever keeps the key has it."""
        secret = compute_digest(seat.sign_bytes(compute_signed_bytes(Tag.BEACON, NO_CHAIN, ("seed",))))
        checkpoints = compute_checkpoints(secret)
        write_atomically(self.path / "beacon.bin", b"".join(checkpoints), mode=0o600)
        return checkpoints

    def _read_beacon(self) -> tuple[bytes, ...] | None:
        file = self.path / "beacon.bin"
        if (
            not file.exists()
            or file.stat().st_size != _BEACON_BYTES
            or (os.name == "posix" and file.stat().st_mode & 0o077)
        ):
            return None
        data = file.read_bytes()
        return tuple(data[start : start + 32] for start in range(0, len(data), 32))
