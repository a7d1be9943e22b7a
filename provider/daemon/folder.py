"""The files of one lease: blobs by digest, and the log.

Small blobs lie one behind the other in a pack: a batch of segments is one `write`, where a file and a rename each, or
rows in a database that syncs, would cost more than the segments themselves. Large ones are files of their own, which
the sandbox wrote and which are only renamed. Nothing is held in memory but where a packed blob lies.

What is written outlives the daemon. After a crash of the machine itself a blob may be missing or torn, which is found
by its digest and makes the lease be given back rather than served wrongly.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from chain.base.hashing import compute_digest
from provider.work.papers import EMPTY

SHORT_LOG_BYTES = 1 << 16
"""A log up to this lies among the small blobs, and travels with them."""

CUT = b"\n(the log is cut here: it is longer than a provider keeps)\n"
"""The end of a log that was longer."""

_HEAD = 36
"""Bytes before each packed blob: its digest and its length."""

_MIB = 1 << 20


class LeaseFolder:
    """Blobs and log of one lease, below `path`, which is made at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._packed: dict[bytes, tuple[int, int]] | None = None
        self._pack = -1
        self._end = 0
        self._trusted: set[bytes] = set()
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._log = bytearray()
        self._log_kept = 0
        self._log_limit = 0

    @property
    def spool(self) -> Path:
        """Where the sandbox puts outputs that are too long for memory."""
        return self.path / "spool"

    def get_lock(self, digest: bytes) -> asyncio.Lock:
        """Held by whoever brings this blob or lays it out, so that it is done once."""
        return self._locks.setdefault(digest, asyncio.Lock())

    # Blobs

    def put(self, data: bytes) -> bytes:
        """Keep a small blob; returns its digest."""
        return self.put_many((data,))[0]

    def put_many(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Keep small blobs by one write; returns their digests in order."""
        index, digests, rows, begun = self._open_pack(), [], bytearray(), self._end
        new: dict[bytes, tuple[int, int]] = {}
        for data in blobs:
            digest = compute_digest(data)
            digests.append(digest)
            if data and digest not in index and digest not in new:
                new[digest] = (begun + len(rows) + _HEAD, len(data))
                rows += digest + len(data).to_bytes(4, "big") + data
        if rows:
            self._append(rows)
            index |= new
        return digests

    def adopt(self, file: Path, digest: bytes) -> None:
        """Take over a file that holds a blob with this digest."""
        self._trusted.add(digest)
        os.replace(file, self.get_path(digest))

    def get_path(self, digest: bytes) -> Path:
        """Where a large blob lies, or is to be written."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.path / digest.hex()

    def trust(self, digest: bytes) -> None:
        """The file of this blob was checked as it was written."""
        self._trusted.add(digest)

    def is_packed(self, digest: bytes) -> bool:
        """Whether a blob is a small one that is here."""
        return digest == EMPTY or digest in self._open_pack()

    def measure(self, digest: bytes) -> int | None:
        """Bytes of a blob that is here, whole or not."""
        if digest == EMPTY:
            return 0
        if (found := self._open_pack().get(digest)) is not None:
            return found[1]
        try:
            return (self.path / digest.hex()).stat().st_size
        except OSError:
            return None

    def get(self, digest: bytes) -> bytes | None:
        """A blob that fits memory, or None where it is not here (any more) as it was."""
        if digest == EMPTY:
            return b""
        found = self._open_pack().get(digest)
        try:
            data = (
                (self.path / digest.hex()).read_bytes() if found is None else os.pread(self._pack, found[1], found[0])
            )
        except OSError:
            return None
        return data if compute_digest(data) == digest else None

    def has_file(self, digest: bytes) -> bool:
        """Whether a blob is here as a file, as it was. Reads it wholly the first time: best in a thread."""
        if digest in self._trusted:
            return (self.path / digest.hex()).exists()
        if not (self.path / digest.hex()).exists() or self._hash(self.path / digest.hex()) != digest:
            return False
        self._trusted.add(digest)
        return True

    def lay_out(self, digest: bytes) -> Path | None:
        """The file that holds a blob, made where it lay in the pack; None where the blob is not here as it was."""
        path = self.get_path(digest)
        if not self.is_packed(digest) or digest in self._trusted:
            return path if self.has_file(digest) else None
        data = self.get(digest)
        if data is None:
            return None
        beside = self.path / f".{digest.hex()}"
        beside.write_bytes(data)
        os.replace(beside, path)
        self._trusted.add(digest)
        return path

    def _open_pack(self) -> dict[bytes, tuple[int, int]]:
        """Where packed blobs lie; what an earlier life began to write and did not finish is overwritten."""
        if self._packed is None:
            self._packed = {}
            if (self.path / "pack").exists():
                self._pack = os.open(self.path / "pack", os.O_RDWR | os.O_CLOEXEC)
                self._scan(self._packed)
        return self._packed

    def _scan(self, index: dict[bytes, tuple[int, int]]) -> None:
        size = os.fstat(self._pack).st_size
        while self._end + _HEAD <= size:
            head = os.pread(self._pack, _HEAD, self._end)
            length = int.from_bytes(head[32:], "big")
            if self._end + _HEAD + length > size:
                break
            index[head[:32]] = (self._end + _HEAD, length)
            self._end += _HEAD + length

    def _append(self, rows: bytearray) -> None:
        if self._pack < 0:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._pack = os.open(self.path / "pack", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        at, view = self._end, memoryview(rows)
        while view:
            written = os.pwrite(self._pack, view, at)
            at, view = at + written, view[written:]
        self._end = at

    # The log

    @property
    def log_size(self) -> int:
        """Bytes of the log so far."""
        return self._log_kept + len(self._log)

    def begin_log(self, *, fresh: bool, limit: int) -> None:
        """Start the log anew, or go on with what an earlier run left on disk. Behind `limit` bytes it is cut, and says
        so: a run that is begun again writes some of it twice, and no more is taken of an honest provider.
        """
        self._log_limit = limit
        self._log, path = bytearray(), self.path / "log"
        if fresh:
            path.unlink(missing_ok=True)
        self._log_kept = path.stat().st_size if path.exists() else 0

    def add_log(self, data: bytes) -> bytes:
        """The job wrote something; returns what of it belongs to the log."""
        room = self._log_limit - self.log_size
        if room <= 0:
            return b""
        taken = data if len(data) <= room else data[:room] + CUT
        self._log += taken
        return taken

    def keep_log(self) -> None:
        """Write what came to the log since."""
        if self._log:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self.path / "log", "ab") as file:
                file.write(self._log)
            self._log_kept += len(self._log)
            self._log = bytearray()

    def close_log(self) -> bytes:
        """Keep the log as a blob; returns its digest."""
        self.keep_log()
        if not self._log_kept:
            return EMPTY
        if self._log_kept <= SHORT_LOG_BYTES:
            return self.put((self.path / "log").read_bytes())
        digest = self._hash(self.path / "log")
        self.get_path(digest).unlink(missing_ok=True)
        os.link(self.path / "log", self.get_path(digest))
        self._trusted.add(digest)
        return digest

    # The end

    def close(self) -> None:
        """Give the pack's file back; it is opened again when needed."""
        if self._pack >= 0:
            os.close(self._pack)
        self._pack, self._packed, self._end = -1, None, 0

    def clear_spool(self) -> None:
        """Remove what a run left that did not come to its end."""
        shutil.rmtree(self.spool, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._trusted.clear()

    @staticmethod
    def _hash(path: Path) -> bytes:
        """SHA-256 of a file, piece by piece."""
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(_MIB):
                digest.update(piece)
        return digest.digest()
