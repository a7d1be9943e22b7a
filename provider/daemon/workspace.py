"""The provider's disk: a database for machines' journals and promises, and one folder per lease for blobs and log.

Files are written whole before anything follows from them; after a crash of the machine itself a blob may be missing,
which is found by its digest and makes the lease be given back rather than served wrongly. Inputs are files of a lease
too, so that a restart needs no broker.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import msgspec

from chain.base.hashing import compute_digest
from chain.runtime.database import open_database
from chain.runtime.journal import SCHEMA, Journal
from provider.bidding.desk import Promise

STORE_VERSION = 1
"""Version of the database; another one is refused by name."""

_PROMISE = "promise/"
_LEASE = "lease/"


class Workspace:
    """All that a provider keeps, below one folder that it owns alone."""

    def __init__(self, folder: Path) -> None:
        self._database = open_database(folder / "provider.db", kind="provider", version=STORE_VERSION, schema=SCHEMA)
        self.journal = Journal(self._database)
        self._folder = folder / "leases"
        self._open: dict[bytes, LeaseFolder] = {}
        self._dropped: set[str] = set()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Promise)

    def close(self) -> None:
        """Tidy up and close the database."""
        self.tidy()
        self._database.close()

    def store_promise(self, order_id: bytes, promise: Promise, now: int) -> None:
        """Keep what a bid promises; durable on return. To be called before the bid is sent."""
        name = f"{_PROMISE}{order_id.hex()}"
        self._dropped.discard(name)
        self.journal.append(name, now, self._encoder.encode(promise))

    def load_promises(self) -> dict[bytes, Promise]:
        """All promises by order id."""
        self.tidy()
        found = {}
        for name in self.journal.names():
            if name.startswith(_PROMISE):
                rows = self.journal.load(name)
                found[bytes.fromhex(name.removeprefix(_PROMISE))] = self._decoder.decode(rows[-1][1])
        return found

    def drop_promise(self, order_id: bytes) -> None:
        """The bid lost, ran out, or its lease has a journal of its own. Takes effect at the next `tidy`."""
        self._dropped.add(f"{_PROMISE}{order_id.hex()}")

    def drop_lease(self, lease: bytes) -> None:
        """The lease is over: its files go now, its journal at the next `tidy`."""
        self.open_folder(lease).remove()
        self._open.pop(lease, None)
        self._dropped.add(name_machine(lease))

    def tidy(self) -> None:
        """Drop in one transaction what is no longer needed; nothing that is in a hurry waits for it."""
        if not self._dropped:
            return
        self._database.execute("BEGIN")
        try:
            for name in self._dropped:
                self.journal.drop(name)
        finally:
            self._database.execute("COMMIT")
        self._dropped.clear()

    def list_leases(self) -> list[bytes]:
        """Leases that have a journal."""
        self.tidy()
        names = [name for name in self.journal.names() if name.startswith(_LEASE)]
        return [bytes.fromhex(name.removeprefix(_LEASE)) for name in names]

    def open_folder(self, lease: bytes) -> LeaseFolder:
        """The folder of a lease, made at the first write."""
        if lease not in self._open:
            self._open[lease] = LeaseFolder(self._folder / lease.hex())
        return self._open[lease]

    def remove_folder(self, lease: bytes) -> None:
        """Remove a lease's files."""
        self.open_folder(lease).remove()
        self._open.pop(lease, None)

    def sweep(self) -> list[str]:
        """Remove folders of leases that have no journal: left over by an earlier life. Returns their names."""
        kept = {lease.hex() for lease in self.list_leases()}
        left = [path for path in self._folder.iterdir() if path.name not in kept] if self._folder.is_dir() else []
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in left]


def name_machine(lease: bytes) -> str:
    """Name of a lease's machine in the journal."""
    return f"{_LEASE}{lease.hex()}"


class LeaseFolder:
    """Blobs by digest, and the log, of one lease."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blobs: dict[bytes, bytes] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}
        self.log = bytearray()
        self._kept = 0

    def get_lock(self, digest: bytes) -> asyncio.Lock:
        """Held by whoever brings this blob, so that it is brought once."""
        return self._locks.setdefault(digest, asyncio.Lock())

    def put(self, data: bytes) -> bytes:
        """Keep a blob; returns its digest."""
        digest = compute_digest(data)
        if digest not in self._blobs and data:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside = self._path / f".{digest.hex()}"
            beside.write_bytes(data)
            os.replace(beside, self._path / digest.hex())
            self._blobs[digest] = data
        return digest

    def get(self, digest: bytes) -> bytes | None:
        """A blob, or None where it is not here (any more) as it was."""
        if digest not in self._blobs:
            try:
                data = (self._path / digest.hex()).read_bytes()
            except OSError:
                data = b""
            if compute_digest(data) != digest:
                return None
            self._blobs[digest] = data
        return self._blobs[digest]

    def begin_log(self, *, fresh: bool) -> None:
        """Start the log anew, or go on with what an earlier run left on disk."""
        self.log, self._kept = bytearray(), 0
        if fresh:
            (self._path / "log").unlink(missing_ok=True)
        elif (self._path / "log").exists():
            self.log += (self._path / "log").read_bytes()
            self._kept = len(self.log)

    def keep_log(self) -> None:
        """Write what came to the log since."""
        if self._kept < len(self.log):
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._path / "log", "ab") as file:
                file.write(self.log[self._kept :])
            self._kept = len(self.log)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._blobs.clear()
