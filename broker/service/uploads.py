"""Uploads that go on where a connection ended (in the words of draft-ietf-httpbis-resumable-upload).

An upload belongs to an account and a digest: who knows a stranger's digest gets nothing, and two accounts that send the
same bytes send them twice, since sending is what proves to have them (threats.md row 36). It lies in a file of its
own, named by account, digest and length, and its offset is the size of that file: nothing else has to survive a kill. A
piece counts once all of it came and has the digest that was signed; else the file is cut back. The whole is hashed on
the way, anew after a restart, and is a blob only if its digest is right.

The whole length counts against the account's quota from the first piece on, what lies on the disk against the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from broker.rpc.signing import SignedBy
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.settings import HOUR, UPLOAD_GRACE
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import show_digest

MAX_UPLOADS = 1_024
"""Uploads under way, of all accounts."""

MAX_UPLOADS_EACH = 16
"""Uploads under way of one account."""

LIFETIME = HOUR
"""Milliseconds that an upload is kept behind its last piece."""

STEP = 1 << 20
"""Bytes that are hashed and written at once, while the next are read."""

_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})-(\d{1,18})", re.ASCII)


class WrongOffset(Refused):
    """A piece for another place than the end of what is there (`upload.offset`); `offset` is that end."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload stands at {offset}", rule="upload.offset")
        self.offset = offset


class Piece(NamedTuple):
    """What a request says of its body. `length` is that of the whole, None where it is not said; `abort` ends the
    connection it comes by.
    """

    account: bytes
    digest: bytes
    offset: int
    length: int | None
    size: int
    signed: SignedBy
    abort: Callable[[], None]


class _Upload:
    """One upload under way: `size` bytes of `length` are there; `hasher` is over these, None where it is not known."""

    def __init__(self, path: Path, length: int, size: int, touched: int) -> None:
        self.path = path
        self.length = length
        self.size = size
        self.touched = touched
        self.hasher = hashlib.sha256() if size == 0 else None
        self.lock = asyncio.Lock()
        self.abort: Callable[[], None] | None = None


class Uploads:
    """All uploads under way. One that is begun anew by its account while a connection still hangs ends that one."""

    def __init__(self, store: BlobStore, custody: Custody) -> None:
        self._store = store
        self._custody = custody
        self._folder = store.folder / "uploads"
        self._known: dict[tuple[bytes, bytes], _Upload] = {}

    def prepare(self) -> None:
        """Take up what an earlier process left; what is nobody's is removed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.iterdir():
            found, stat = _NAME.fullmatch(path.name), path.stat()
            if found is None or stat.st_size > int(found[3]):
                path.unlink()
                continue
            account, digest, length = bytes.fromhex(found[1]), bytes.fromhex(found[2]), int(found[3])
            self._custody.take_up(account, length, stat.st_size)
            self._known[account, digest] = _Upload(path, length, stat.st_size, stat.st_mtime_ns // 1_000_000)

    def find(self, account: bytes, digest: bytes) -> tuple[int, int | None]:
        """Offset and length of an account's upload; (0, None) where none is under way."""
        upload = self._known.get((account, digest))
        return (upload.size, upload.length) if upload is not None else (0, None)

    async def receive(self, piece: Piece, chunks: AsyncIterator[bytes], now: int) -> bool:
        """Take a piece; says whether the blob is whole, safe and held by the account now. Raises `WrongOffset`,
        `Refused` (`upload.length`, `upload.many`, `blob.size`, `blob.quota`, `blob.digest`, `http.digest`) or
        `Unavailable` (`blob.full`, `upload.full`).
        """
        key = (piece.account, piece.digest)
        upload = self._known.get(key) or self._begin(piece, now)
        try:
            async with self._turn(upload, piece):
                if self._known.get(key) is not upload:
                    raise WrongOffset(self.find(*key)[0])  # it became whole, or was given up, while we waited
                _check_piece(upload, piece)
                upload.touched = now
                await self._append(upload, piece, chunks)
                if upload.size < upload.length:
                    return False
                completing = asyncio.ensure_future(self._complete(upload, piece, now))
                try:
                    await asyncio.shield(completing)
                except asyncio.CancelledError:  # the client is gone; nobody takes a turn before this is through
                    await asyncio.wait([completing])
                    raise
                return True
        finally:
            begun = upload.size > 0 and upload.path.exists()
            if not begun and not upload.lock.locked() and self._known.get(key) is upload:
                self._forget(key)

    def sweep(self, now: int) -> None:
        """Remove uploads that nobody went on with."""
        for key, upload in list(self._known.items()):
            if upload.touched + LIFETIME < now and not upload.lock.locked():
                self._forget(key)

    def _begin(self, piece: Piece, now: int) -> _Upload:
        if piece.offset:
            raise WrongOffset(0)
        if piece.length is None:
            raise Refused("the first piece says the Upload-Length", rule="upload.length")
        if piece.length > self._store.max_bytes:
            raise Refused(f"a blob has at most {self._store.max_bytes} bytes here", rule="blob.size")
        if len(self._known) >= MAX_UPLOADS:
            raise Unavailable(f"{MAX_UPLOADS} uploads are under way; try later", rule="upload.full")
        if sum(account == piece.account for account, _ in self._known) >= MAX_UPLOADS_EACH:
            raise Refused(f"{MAX_UPLOADS_EACH} uploads of this account are under way", rule="upload.many")
        self._custody.reserve(piece.account, piece.length)
        path = self._folder / f"{piece.account.hex()}-{piece.digest.hex()}-{piece.length}"
        upload = self._known[piece.account, piece.digest] = _Upload(path, piece.length, 0, now)
        return upload

    @asynccontextmanager
    async def _turn(self, upload: _Upload, piece: Piece) -> AsyncIterator[None]:
        """One piece at a time; who still sends an earlier one has lost the connection or means it no more."""
        if upload.abort is not None:
            upload.abort()
        async with upload.lock:
            upload.abort = piece.abort
            try:
                yield
            finally:
                upload.abort = None

    async def _append(self, upload: _Upload, piece: Piece, chunks: AsyncIterator[bytes]) -> None:
        """Write a piece behind what is there; where it is not whole or not what was signed, nothing stays of it."""
        self._custody.fill(piece.size)
        writer = _Writer()
        try:
            await writer.open(upload)
            async for batch in _gather(chunks):
                await writer.write(batch)
            await writer.flush()
            if writer.size != piece.size:
                raise Refused("the body is shorter than it said", rule="http.digest")
            piece.signed.check_body(writer.part.digest())
            upload.size, upload.hasher = upload.size + writer.size, writer.whole
        except BaseException:
            self._custody.drain(piece.size)
            raise
        finally:
            await writer.close(upload.size)

    async def _complete(self, upload: _Upload, piece: Piece, now: int) -> None:
        key = (piece.account, piece.digest)
        if upload.hasher is None or upload.hasher.digest() != piece.digest:
            self._forget(key)
            raise Refused(f"the bytes are not those of {show_digest(piece.digest)}", rule="blob.digest")
        with self._store.arriving([piece.digest]):
            await asyncio.to_thread(self._store.adopt, upload.path, piece.digest, upload.length)
            self._custody.hold({piece.digest: upload.length}, piece.account, now + UPLOAD_GRACE)
        self._forget(key)

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        upload = self._known.pop(key)
        upload.path.unlink(missing_ok=True)
        self._custody.release(key[0], upload.length)
        self._custody.drain(upload.size)


class _Writer:
    """Writes and hashes a piece in threads, one step behind what is read. Nothing blocks the loop, and no thread is
    left with the file by who is cancelled.
    """

    def __init__(self) -> None:
        self.size = 0
        self.part = hashlib.sha256()
        self.whole = hashlib.sha256()
        self._file = -1
        self._busy: asyncio.Future[None] | None = None

    async def open(self, upload: _Upload) -> None:
        """Go to the end of what is there, hashing it if an earlier process wrote it."""
        self._busy = asyncio.ensure_future(asyncio.to_thread(self._open, upload))
        await self.flush()

    async def write(self, batch: list[bytes]) -> None:
        """Begin to write, as soon as what came before is written."""
        await self.flush()
        self._busy = asyncio.ensure_future(asyncio.to_thread(self._write, batch))

    async def flush(self) -> None:
        """Wait for what was begun."""
        if self._busy is not None:
            await asyncio.shield(self._busy)
            self._busy = None

    async def close(self, size: int) -> None:
        """Cut the file to what counts."""
        await asyncio.shield(asyncio.ensure_future(self._close(size)))

    async def _close(self, size: int) -> None:
        if self._busy is not None:
            await asyncio.wait([self._busy])
            self._busy.exception()  # who waited for it has heard
        if self._file >= 0:
            try:
                os.ftruncate(self._file, size)
            except OSError as error:
                raise _cannot_write(error) from error
            finally:
                os.close(self._file)

    def _open(self, upload: _Upload) -> None:
        # What is there must still be there: a file made anew would be filled up with zeros.
        flags = os.O_RDWR | (os.O_CREAT if upload.size == 0 else 0)
        try:
            self._file = os.open(upload.path, flags, 0o600)
            if upload.hasher is None:
                upload.hasher = _hash_file(self._file, upload.size)
            os.ftruncate(self._file, upload.size)
            os.lseek(self._file, upload.size, os.SEEK_SET)
        except OSError as error:
            raise _cannot_write(error) from error
        self.whole = upload.hasher.copy()

    def _write(self, batch: list[bytes]) -> None:
        try:
            for chunk in batch:
                self.part.update(chunk)
                self.whole.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(self._file, view) :]
                self.size += len(chunk)
        except OSError as error:
            raise _cannot_write(error) from error


async def _gather(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Chunks in batches of `STEP` bytes."""
    batch: list[bytes] = []
    size = 0
    async for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= STEP:
            yield batch
            batch, size = [], 0
    yield batch


def _check_piece(upload: _Upload, piece: Piece) -> None:
    if piece.length not in (None, upload.length):
        raise Refused(f"the upload was begun with a length of {upload.length}", rule="upload.length")
    if piece.offset != upload.size:
        raise WrongOffset(upload.size)
    if piece.offset + piece.size > upload.length:
        raise Refused(f"the piece goes beyond the length of {upload.length}", rule="upload.length")


def _hash_file(file: int, size: int) -> hashlib._Hash:
    hasher = hashlib.sha256()
    os.lseek(file, 0, os.SEEK_SET)
    while size and (block := os.read(file, min(size, STEP))):
        hasher.update(block)
        size -= len(block)
    return hasher


def _cannot_write(error: OSError) -> Unavailable:
    return Unavailable(f"the blob store cannot write: {error}", rule="blob.write")
