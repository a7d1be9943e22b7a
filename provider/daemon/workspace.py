"""The provider's disk: a database for machines' journals and promises, and one folder per lease for blobs and log.

What is in a lease's folder is written before its journal speaks of it (`provider.daemon.folder`). Inputs lie there too,
so that a restart needs no broker.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from chain.runtime.database import open_database
from chain.runtime.journal import SCHEMA, Journal
from provider.bidding.desk import Promise
from provider.daemon.folder import LeaseFolder

STORE_VERSION = 2
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
        """Tidy up and close the database and all folders."""
        for folder in self._open.values():
            folder.close()
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
