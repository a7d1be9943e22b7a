"""Bytes of blobs on disk, by digest: written beside, hashed on the way, flushed, renamed (threats.md A11, A14, rows 32,
36).

A path is made from 32 bytes and from nothing else. What is not whole never has a blob's name. Blocking calls run in
threads (hashlib and file calls release the interpreter). Rights and quotas are `broker.service.custody`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest, show_digest
from chain.runtime.files import write_atomically

SMALL = 1 << 20
"""Bytes that are gathered in memory and written at once."""


class BlobStore:
    """Blobs in a folder of their own."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._beside = folder / "incoming"
        self._arriving: Counter[bytes] = Counter()

    def prepare(self) -> None:
        """Make the folders; remove what an earlier process left half done."""
        self._beside.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._beside.iterdir():
            path.unlink()
        for path in self._folder.glob("??/.*"):
            path.unlink()

    def get_path(self, digest: bytes) -> Path:
        """Where a blob lies, whether it does or not."""
        name = digest.hex()
        if len(digest) != 32:
            raise Refused("a blob's name is a digest of 32 bytes", rule="blob.name")
        return self._folder / name[:2] / name

    def has(self, digest: bytes) -> bool:
        """Whether the bytes are there."""
        return self.get_path(digest).is_file()

    def measure(self, digest: bytes) -> int | None:
        """Size of a blob, None where the bytes are not there."""
        try:
            return self.get_path(digest).stat().st_size
        except FileNotFoundError:
            return None

    async def write(self, digest: bytes, data: bytes) -> None:
        """Store bytes that are all there; raises `Refused` (`blob.digest`, `blob.size`)."""
        await self.receive(digest, _chain([data], None))

    @contextlib.contextmanager
    def arriving(self, digests: Iterable[bytes]) -> Iterator[None]:
        """Blobs that are written and then held inside this are safe from `remove` in between."""
        coming = tuple(digests)
        self._arriving.update(coming)
        try:
            yield
        finally:
            self._arriving.subtract(coming)
            self._arriving += Counter()

    async def receive(self, digest: bytes, chunks: AsyncIterator[bytes]) -> int:
        """Store what comes in; returns its size. Raises `Refused` (`blob.digest`, `blob.size`), and whatever the chunks
        raise; then nothing stays.
        """
        gathered: list[bytes] = []
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self.max_bytes:
                raise _too_large(self.max_bytes)
            gathered.append(chunk)
            if size > SMALL:
                return await self._receive_large(digest, _chain(gathered, chunks))
        await asyncio.to_thread(self._write_whole, digest, b"".join(gathered))
        return size

    def remove(self, digests: Iterable[bytes]) -> None:
        """Delete blobs that nobody holds, unless they are just coming in again."""
        for digest in digests:
            if digest not in self._arriving:
                self.get_path(digest).unlink(missing_ok=True)

    async def _receive_large(self, digest: bytes, chunks: AsyncIterator[bytes]) -> int:
        path = self._beside / secrets.token_hex(16)
        hasher = hashlib.sha256()
        size = 0
        try:
            with await asyncio.to_thread(_create, path) as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self.max_bytes:
                        raise _too_large(self.max_bytes)
                    await asyncio.to_thread(_append, file, hasher, chunk)
                if hasher.digest() != digest:
                    raise _wrong(digest)
                await asyncio.to_thread(self._finish, file, path, digest)
        except OSError as error:
            raise Unavailable(f"the blob store cannot write: {error}", rule="blob.write") from error
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return size

    def _write_whole(self, digest: bytes, data: bytes) -> None:
        if compute_digest(data) != digest:
            raise _wrong(digest)
        if not self.has(digest):
            write_atomically(self.get_path(digest), data, mode=0o600)

    def _finish(self, file: BinaryIO, path: Path, digest: bytes) -> None:
        file.flush()
        os.fsync(file.fileno())
        target = self.get_path(digest)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        os.replace(path, target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _chain(first: list[bytes], rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    if rest is None:
        return
    async for chunk in rest:
        yield chunk


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _append(file: BinaryIO, hasher: hashlib._Hash, chunk: bytes) -> None:
    hasher.update(chunk)
    file.write(chunk)


def _too_large(limit: int) -> Refused:
    return Refused(f"a blob has at most {limit} bytes here", rule="blob.size")


def _wrong(digest: bytes) -> Refused:
    return Refused(f"the bytes are not those of {show_digest(digest)}", rule="blob.digest")
