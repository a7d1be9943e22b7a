"""Bytes of blobs on disk, by digest: small ones are rows (`smallblobs`), larger ones files, written beside, hashed on
the way, flushed, renamed (threats.md A11, A14, rows 32, 36).

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
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from broker.service.smallblobs import MAX_SMALL_BYTES, SmallBlobs
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest, show_digest
from chain.runtime.files import sync_folder, write_atomically

SMALL = 1 << 20
"""Bytes that are gathered in memory and written at once."""


class BlobStore:
    """Blobs in a folder of their own; `prepare` comes before all else."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.folder = folder
        self._beside = folder / "incoming"
        self._arriving: Counter[bytes] = Counter()
        self._rows: SmallBlobs

    def prepare(self) -> None:
        """Make the folders; remove what an earlier process left half done."""
        self._beside.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._beside.iterdir():
            path.unlink()
        for path in self.folder.glob("??/.*"):
            path.unlink()
        self._rows = SmallBlobs(self.folder / "small.db")

    def close(self) -> None:
        """Close the file of the small ones."""
        self._rows.close()

    def get_path(self, digest: bytes) -> Path:
        """Where a large blob lies, whether it does or not."""
        name = digest.hex()
        if len(digest) != 32:
            raise Refused("a blob's name is a digest of 32 bytes", rule="blob.name")
        return self.folder / name[:2] / name

    def has(self, digest: bytes) -> bool:
        """Whether the bytes are there."""
        return self.measure(digest) is not None

    def measure(self, digest: bytes) -> int | None:
        """Size of a blob, None where the bytes are not there."""
        size = self._rows.measure(digest)
        if size is not None:
            return size
        try:
            return self.get_path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def get(self, digest: bytes) -> bytes | Path | None:
        """A small blob's bytes, a large one's file; None where the bytes are not there."""
        data = self._rows.get(digest)
        if data is not None:
            return data
        path = self.get_path(digest)
        return path if path.is_file() else None

    def read_small(self, digests: Iterable[bytes], limit_bytes: int) -> list[bytes]:
        """Small blobs in the order asked, up to the first that would exceed `limit_bytes` together; large ones and
        those that are not there are left out.
        """
        found: list[bytes] = []
        room = limit_bytes
        for digest in digests:
            data = self._rows.get(digest)
            if data is None:
                continue
            room -= len(data)
            if room < 0:
                break
            found.append(data)
        return found

    async def write(self, digest: bytes, data: bytes) -> None:
        """Store bytes that are all there; raises `Refused` (`blob.digest`, `blob.size`)."""
        await self.write_many({digest: data})

    async def write_many(self, blobs: Mapping[bytes, bytes]) -> None:
        """Store blobs that are all there, the small ones in one durable commit. Raises `Refused` (`blob.digest`,
        `blob.size`); then none of them is stored.
        """
        if any(len(data) > self.max_bytes for data in blobs.values()):
            raise _too_large(self.max_bytes)
        await asyncio.to_thread(self._write_all, dict(blobs))

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
        await asyncio.to_thread(self._write_all, {digest: b"".join(gathered)})
        return size

    def adopt(self, path: Path, digest: bytes, size: int) -> None:
        """Take over a file whose digest was checked; blocks until it is safe. Raises `Unavailable` (`blob.write`)."""
        try:
            if size <= MAX_SMALL_BYTES:
                self._rows.write({digest: path.read_bytes()})
                path.unlink()
                return
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target = self.get_path(digest)
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(path, target)
            sync_folder(target.parent)
        except OSError as error:
            raise Unavailable(f"the blob store cannot write: {error}", rule="blob.write") from error

    def remove(self, digests: Iterable[bytes]) -> None:
        """Delete blobs that nobody holds, unless they are just coming in again."""
        gone = [digest for digest in digests if digest not in self._arriving]
        if gone:
            self._rows.remove(gone)
        for digest in gone:
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
            await asyncio.to_thread(self.adopt, path, digest, size)
        except OSError as error:
            raise Unavailable(f"the blob store cannot write: {error}", rule="blob.write") from error
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return size

    def _write_all(self, blobs: Mapping[bytes, bytes]) -> None:
        for digest, data in blobs.items():
            if compute_digest(data) != digest:
                raise _wrong(digest)
        small = {digest: data for digest, data in blobs.items() if len(data) <= MAX_SMALL_BYTES}
        if small:
            self._rows.write(small)
        for digest, data in blobs.items():
            if digest not in small and not self.get_path(digest).is_file():
                write_atomically(self.get_path(digest), data, mode=0o600)


async def _chain(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
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
