"""Blobs by digest: small ones as rows of one SQLite file, many with one commit; larger ones a file each.

What is read is checked against its digest: what does not match is as if it were absent. Small ones are hashed with each
read, large ones once per process and then known by inode, time of change and size. That is enough for what this guards
against, a spoiled disk or a file that somebody changed: bytes in memory that were right do not change by themselves,
and a write that is not meant to deceive leaves another time. It is no guard against a program with the user's own
rights, and no hash could be one: it could change this process as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from chain.base.errors import Unavailable
from chain.base.hashing import compute_digest
from chain.runtime.database import open_database
from chain.runtime.files import sync_folder, write_atomically

SMALL_BYTES = 65_536
"""Largest blob that is a row."""

SCHEMA = "CREATE TABLE IF NOT EXISTS small_blobs (digest BLOB PRIMARY KEY, data BLOB NOT NULL) STRICT"

EMPTY = compute_digest(b"")


class BlobFolder:
    """Blobs below `folder`, which need not exist yet. Any thread may call; several processes may share it. All calls
    raise `Unavailable` under `file.write` or `store.open`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._checked: dict[bytes, tuple[int, int, int]] = {}

    def close(self) -> None:
        """Close the file of the small ones; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def put(self, data: bytes) -> bytes:
        """Keep `data`; returns its digest."""
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
        """Keep blobs, the small ones with one commit; returns their digests in order."""
        given = [(compute_digest(data), data) for data in blobs]
        small = [row for row in given if 0 < len(row[1]) <= SMALL_BYTES]
        if small:
            with self._rows() as rows, rows:
                rows.execute("BEGIN IMMEDIATE")
                rows.executemany("INSERT OR REPLACE INTO small_blobs VALUES (?, ?)", small)
        for digest, data in given:
            if len(data) > SMALL_BYTES and not self._is_stored(digest):
                write_atomically(self.path(digest), data, mode=0o600)
        return tuple(digest for digest, _ in given)

    def adopt(self, path: Path, digest: bytes) -> None:
        """Take over a file of the same file system, whose digest was checked when it was written."""
        try:
            stat = path.stat()
            if stat.st_size <= SMALL_BYTES:
                self.put(path.read_bytes())
                path.unlink()
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.replace(path, self.path(digest))
            sync_folder(self.folder)
        except OSError as error:
            raise Unavailable(f"cannot keep {path}: {error}", rule="file.write") from error
        self._checked[digest] = _identify(stat)

    def get(self, digest: bytes) -> bytes | None:
        """The blob, or None where there is none that matches."""
        small = self._get_small(digest)
        if small is not None:
            return small
        file = self._open_checked(digest)
        if file is None:
            return None
        with file:
            return file.read()

    def open(self, digest: bytes) -> memoryview | None:
        """The blob without reading it into memory: a read-only view of its file, for a small one of its bytes; None
        where there is none that matches.
        """
        small = self._get_small(digest)
        if small is not None:
            return memoryview(small)
        file = self._open_checked(digest)
        if file is None:
            return None
        with file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def path(self, digest: bytes) -> Path:
        """Where a large blob lies."""
        return self.folder / digest.hex()

    def _get_small(self, digest: bytes) -> bytes | None:
        if digest == EMPTY:
            return b""
        with self._rows() as rows:
            row = rows.execute("SELECT data FROM small_blobs WHERE digest = ?", (digest,)).fetchone()
        return bytes(row[0]) if row and compute_digest(row[0]) == digest else None

    def _is_stored(self, digest: bytes) -> bool:
        file = self._open_checked(digest)
        if file is not None:
            file.close()
        return file is not None

    def _open_checked(self, digest: bytes) -> BinaryIO | None:
        """A large blob's file, open, with its contents checked; None where it does not match or is not there."""
        try:
            file = self.path(digest).open("rb")
            identity = _identify(os.fstat(file.fileno()))
            if identity[2] and self._checked.get(digest) == identity:
                return file
            if identity[2] and hashlib.file_digest(file, "sha256").digest() == digest:
                self._checked[digest] = identity
                file.seek(0)
                return file
            file.close()
        except OSError:
            return None
        return None

    @contextlib.contextmanager
    def _rows(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                path = self.folder / "small.db"
                self._connection = open_database(path, kind="requester blobs", version=1, schema=SCHEMA)
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise Unavailable(f"cannot use {self.folder / 'small.db'}: {error}", rule="file.write") from error


def _identify(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
