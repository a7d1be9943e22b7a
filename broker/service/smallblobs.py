"""Small blobs as rows of one SQLite file, so that many are safe on disk with one commit.

A thousand files would be a thousand flushes of file and folder; a thousand rows are one. Writers wait for the disk in
threads, behind a lock; who reads has a connection of its own and waits for no commit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from chain.base.errors import Unavailable
from chain.runtime.database import open_database

MAX_SMALL_BYTES = 65_536
"""Largest blob that is a row; a larger one is a file."""

SCHEMA = "CREATE TABLE IF NOT EXISTS small_blobs (digest BLOB PRIMARY KEY, data BLOB NOT NULL) STRICT"


class SmallBlobs:
    """Rows of `path`. Raises as `open_database`."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._writer = open_database(path, kind="tallystick small blobs", version=1, schema=SCHEMA)
        self._reader = open_database(path, kind="tallystick small blobs", version=1, schema=SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._reading:
            self._writer.close()
            self._reader.close()

    def write(self, blobs: Mapping[bytes, bytes]) -> None:
        """Store blobs whose digests were checked, in one commit that is on the disk afterwards; raises `Unavailable`
        (`blob.write`).
        """
        try:
            with self._lock, self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.executemany("INSERT OR IGNORE INTO small_blobs VALUES (?, ?)", blobs.items())
        except sqlite3.Error as error:
            raise Unavailable(f"the blob store cannot write: {error}", rule="blob.write") from error

    def remove(self, digests: Iterable[bytes]) -> None:
        """Delete rows; those that are not there are no error."""
        with self._lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany("DELETE FROM small_blobs WHERE digest = ?", [(one,) for one in digests])

    def get(self, digest: bytes) -> bytes | None:
        """A blob, None where it is no row."""
        data = self._find("data", digest)
        return data if isinstance(data, bytes) else None

    def measure(self, digest: bytes) -> int | None:
        """Size of a blob, None where it is no row."""
        size = self._find("length(data)", digest)
        return size if isinstance(size, int) else None

    def _find(self, column: str, digest: bytes) -> bytes | int | None:
        with self._reading:  # one statement at a time: threads read too
            row = self._reader.execute(f"SELECT {column} FROM small_blobs WHERE digest = ?", (digest,)).fetchone()
        return row[0] if row else None
