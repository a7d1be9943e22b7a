"""The host's side of a task's inputs: a file that is looked at through a mapping and hashed piece by piece, so that the
daemon never holds a large one.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
from typing import Final

from broker.protocol import values
from chain.base.errors import Refused
from chain.ledger.terms.agreement import Kind
from provider.sandbox.spec import Task

__all__ = ["Inputs"]

_PIECE: Final = 4 << 20
_AT_ONCE: Final = 1 << 16
"""Bytes that are hashed without leaving the event loop: some 100 us."""


class Inputs:
    """The opened file of a task. Raises `Refused` where there is none or it does not hold the task's items."""

    def __init__(self, task: Task) -> None:
        self._task = task
        try:
            self.file = os.open(task.inputs, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Refused(f"the inputs can't be read: {error}", rule="sandbox.inputs") from error
        self._task_digest: asyncio.Task[bytes] | None = None
        try:
            self.size = os.fstat(self.file).st_size
            self._map = mmap.mmap(self.file, self.size, access=mmap.ACCESS_READ) if self.size else None
            self._items = self._split()
        except BaseException:
            os.close(self.file)
            raise

    def _split(self) -> list[memoryview]:
        """The packed inputs that are known beforehand: of each segment of a map, of the first one otherwise."""
        whole = memoryview(self._map if self._map is not None else b"")
        task = self._task
        if task.kind != Kind.MAP:
            return [whole]
        try:
            items = values.split(whole)
        except values.BadValue as error:
            raise Refused(f"the inputs of a map are a packed list: {error}", rule="sandbox.inputs") from error
        if len(items) < task.first + task.count:
            raise Refused(f"segment {task.first + task.count - 1} of {len(items)} items", rule="sandbox.inputs")
        return items[task.first : task.first + task.count]

    def get_size(self, index: int) -> int:
        """Bytes of a segment's packed input."""
        return len(self._get(index))

    async def hash(self, index: int) -> bytes:
        """SHA-256 of a segment's packed input; a long one is hashed in a thread."""
        item = self._get(index)
        if len(item) <= _AT_ONCE:
            return hashlib.sha256(item).digest()
        if self._task.kind == Kind.MAP:
            return await asyncio.to_thread(self._hash, item)
        self.begin_hashing()
        assert self._task_digest is not None
        return await asyncio.shield(self._task_digest)

    def begin_hashing(self) -> None:
        """Where there is one long input, it is hashed while the job already runs."""
        if self._task_digest is None and self._task.kind != Kind.MAP and self.size > _AT_ONCE:
            self._task_digest = asyncio.create_task(asyncio.to_thread(self._hash, self._items[0]), name="inputs")

    async def close(self) -> None:
        """Gives the file back, once nobody reads it."""
        if self._task_digest is not None:
            await asyncio.wait([self._task_digest])
        self._items = []
        self._map = None  # unmapped with the last view of it
        os.close(self.file)

    def _get(self, index: int) -> memoryview:
        return self._items[index - self._task.first if self._task.kind == Kind.MAP else 0]

    def _hash(self, item: memoryview) -> bytes:
        """Piece by piece; what was read is given back at once, else it would count as the daemon's memory."""
        digest = hashlib.sha256()
        for start in range(0, len(item), _PIECE):
            digest.update(item[start : start + _PIECE])
            if self._map is not None:
                self._map.madvise(mmap.MADV_DONTNEED)
        return digest.digest()
