"""Keeps an output that is too long for memory: written as it comes, hashed on the way, removed unless it is taken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Spool"]


class Spool:
    """Writes the long outputs of one stay below `folder`, one at a time. `name` is no other stay's."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._path: Path | None = None
        self._file = -1
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, index: int, parts: Sequence[bytes]) -> None:
        """Adds to the output of a segment. Raises OSError where the disk takes no more; blocks: best in a thread."""
        if self._path is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path = self._folder / f"{self._name}.{index}.output"
            self._file = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            self._hash, self._size = hashlib.sha256(), 0
        for part in parts:
            self._hash.update(part)
            self._size += len(part)
            view = memoryview(part)
            while view:
                view = view[os.write(self._file, view) :]

    def finish(self) -> tuple[Path, bytes, int] | None:
        """(file, SHA-256, size) of what was written since the last time; None where nothing was. The file is the
        caller's now.
        """
        if self._path is None:
            return None
        path, self._path = self._path, None
        self._close()
        return path, self._hash.digest(), self._size

    def discard(self) -> None:
        """Removes what was written of an output that did not come to its end."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
