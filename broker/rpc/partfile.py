"""A file that arrives in parts: beside its target, hashed on the way, durable before it has its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from chain.base.errors import Unavailable
from chain.runtime.files import sync_folder

_BLOCK = 1 << 20


class PartFile:
    """What has arrived at `path`; an earlier process's part is taken up and hashed again. Calls block and belong into a
    thread; they raise `Unavailable` (`file.write`).
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._hasher = hashlib.sha256()
        with self._explain():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o600), "r+b")
            while block := self._file.read(_BLOCK):
                self._hasher.update(block)
                self.size += len(block)

    def append(self, chunks: Sequence[bytes]) -> None:
        """Add what came; all of it is with the operating system afterwards."""
        with self._explain():
            for chunk in chunks:
                self._hasher.update(chunk)
                self._file.write(chunk)
                self.size += len(chunk)
            self._file.flush()

    def compute_digest(self) -> bytes:
        """SHA-256 of all that is there."""
        return self._hasher.digest()

    def clear(self) -> None:
        """Begin anew."""
        with self._explain():
            self._file.seek(0)
            self._file.truncate()
        self._hasher, self.size = hashlib.sha256(), 0

    def finish(self, target: Path) -> None:
        """Give it its name, durably."""
        with self._explain():
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, target)
            sync_folder(target.parent)

    def discard(self) -> None:
        """Remove it."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave it for another time."""
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(f"cannot write {self._path}: {error}", rule="file.write") from error


_BINARY: int = getattr(os, "O_BINARY", 0)
"""Windows would translate line ends."""
