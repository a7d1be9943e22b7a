"""Large blobs to and from a broker in pieces, and small ones in parcels.

An upload asks where the broker stands, sends the next piece from there, and hashes the one behind it meanwhile. A
download goes into a file beside its target, hashed and written in a thread while more arrives; a lost connection, or a
lost process, goes on at its end. Memory: two pieces up, two gathered writes down.

After a lost connection both try again, `TRIES` times in a row without progress; so what a broker can make us do is
bounded by the size of the blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from broker.protocol.api import MAX_PARCEL_BYTES, MAX_PIECE_BYTES
from broker.rpc.ask import BLOB_SECONDS, UNREACHABLE, Ask, is_lost
from broker.rpc.partfile import PartFile
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest, show_digest

if TYPE_CHECKING:
    import aiohttp

    from broker.rpc.wire import Wire

TRIES = 5
"""Tries in a row that may end without progress."""

PAUSE_SECONDS = 0.2
"""Before the first new try; doubled with each."""

STEP = 1 << 20
"""Bytes that count as progress, and that are hashed and written at once."""

STALL_SECONDS = 30.0
"""How long a download may stand still."""

SMALL_BYTES = 65_536
"""Largest blob that travels in a parcel."""

MAX_TOGETHER = 2_048
"""Blobs in one parcel, and digests asked for at once."""

OnProgress = Callable[[int, int], None]
"""Told how many bytes of how many are done."""


class Source(Protocol):
    """What is uploaded."""

    size: int
    digest: bytes

    def read(self, offset: int, count: int) -> tuple[bytes, bytes]:
        """A piece and its SHA-256; called in a thread."""


class Held:
    """Bytes in memory."""

    def __init__(self, data: bytes, digest: bytes) -> None:
        self.size = len(data)
        self.digest = digest
        self._data = data

    def read(self, offset: int, count: int) -> tuple[bytes, bytes]:
        """A piece and its SHA-256."""
        piece = self._data[offset : offset + count]
        return piece, compute_digest(piece)


class Stored:
    """A file."""

    def __init__(self, file: BinaryIO, digest: bytes, size: int) -> None:
        self.size = size
        self.digest = digest
        self._file = file

    def read(self, offset: int, count: int) -> tuple[bytes, bytes]:
        """A piece and its SHA-256; raises `Refused` (`blob.digest`) where the file has become shorter, `Unavailable`
        (`file.read`) where it cannot be read.
        """
        try:
            self._file.seek(offset)
            piece = self._file.read(count)
        except OSError as error:
            raise Unavailable(f"cannot read {self._file.name}: {error}", rule="file.read") from error
        if len(piece) != count:
            raise Refused(f"{self._file.name} is shorter than {self.size} bytes", rule="blob.digest")
        return piece, compute_digest(piece)


@contextlib.contextmanager
def open_source(path: Path, digest: bytes, size: int) -> Iterator[Stored]:
    """A file to upload; raises `Unavailable` (`file.read`)."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error}", rule="file.read") from error
    with file:
        yield Stored(file, digest, size)


async def upload(wire: Wire, source: Source, on_progress: OnProgress | None = None) -> None:
    """Send what the broker has not yet; returns once it holds all of it safely."""
    patience, doubtful = _Patience(), True
    while True:
        try:
            offset = await _ask_offset(wire, source)
            doubtful = doubtful and bool(offset)
            patience.note(offset or 0)
            await _send_rest(wire, source, offset, on_progress, patience)
        except TallyError as error:
            if doubtful and error.rule == "blob.digest":
                # What an earlier process sent was spoiled, at the latest by a power cut; the broker has removed it.
                doubtful = False
                continue
            # Another offset than we think: an answer of an earlier try was lost on the way.
            if not is_lost(error) and error.rule != "upload.offset":
                raise
            await patience.wait(error)
        else:
            return


async def _ask_offset(wire: Wire, source: Source) -> int | None:
    """Where the broker stands; None if it holds the whole."""
    answer = await wire.send(Ask("HEAD", _name_upload(source.digest)))
    if answer.headers.get("Upload-Complete") == "?1":
        return None
    offset = _read_number(answer.headers.get("Upload-Offset"))
    if offset is None or offset > source.size:
        raise Fault(f"{wire.url} does not answer as a broker: no offset of the upload", rule="broker.answer")
    return offset


async def _send_rest(
    wire: Wire, source: Source, offset: int | None, on_progress: OnProgress | None, patience: _Patience
) -> None:
    def read(start: int) -> Awaitable[tuple[bytes, bytes]]:
        return asyncio.to_thread(source.read, start, min(MAX_PIECE_BYTES, source.size - start))

    ahead = asyncio.ensure_future(read(offset)) if offset is not None else None
    try:
        while offset is not None and ahead is not None:
            piece, digest = await ahead
            end = offset + len(piece)
            done = end == source.size
            ahead = None if done else asyncio.ensure_future(read(end))
            headers = {
                "Content-Type": "application/partial-upload",
                "Upload-Offset": str(offset),
                "Upload-Length": str(source.size),
                "Upload-Complete": "?1" if done else "?0",
            }
            path = _name_upload(source.digest)
            await wire.send(Ask("PATCH", path, None, headers, piece, digest, BLOB_SECONDS))
            offset = end
            patience.note(end)
            if on_progress is not None:
                on_progress(end, source.size)
            if done:
                return
    finally:
        if ahead is not None:  # a thread reads the source, which is closed behind us
            await asyncio.wait([ahead])
            ahead.exception()
    if on_progress is not None:
        on_progress(source.size, source.size)


async def download(wire: Wire, digest: bytes, path: Path, max_bytes: int, on_progress: OnProgress | None = None) -> int:
    """Fetch a blob into `path`; returns its size."""
    patience, fresh = _Patience(), False
    part = await asyncio.to_thread(PartFile, path.with_name(f".{path.name[:64]}.{digest.hex()[:16]}.part"))
    try:
        while True:
            fresh |= part.size == 0
            try:
                await _fetch_rest(wire, digest, part, max_bytes, on_progress)
            except TallyError as error:
                patience.note(part.size)
                if not is_lost(error):
                    raise
                await patience.wait(error)
                continue
            if part.compute_digest() == digest:
                await asyncio.to_thread(part.finish, path)
                return part.size
            await asyncio.to_thread(part.clear)
            # What an earlier process left may be spoiled; what came just now is the broker's word.
            if fresh:
                raise Fault(f"{wire.url} sent other bytes than {show_digest(digest)}", rule="blob.digest")
    except (Refused, Fault):
        part.discard()
        raise
    finally:
        part.close()


async def _fetch_rest(
    wire: Wire, digest: bytes, part: PartFile, max_bytes: int, on_progress: OnProgress | None
) -> None:
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    path = f"/v1/blobs/{digest.hex()}"
    async with wire.open(Ask("GET", path, None, headers, seconds=BLOB_SECONDS, stall=STALL_SECONDS)) as response:
        if response.status == 416 and part.size:  # nothing lies behind what we have: its digest decides
            return
        await wire.check(response)
        start, total = _read_span(response)
        if start not in (0, part.size) or total is None:
            raise Fault(f"{wire.url} does not answer as a broker: another range", rule="broker.answer")
        if total > max_bytes:
            raise Refused(f"{wire.url} sends more than {max_bytes} bytes", rule="blob.size")
        if start != part.size:
            await asyncio.to_thread(part.clear)
        await _pour(response, part, total, on_progress)
        if part.size != total:
            raise Unavailable(f"{wire.url} ended in the middle of a blob", rule=UNREACHABLE)


async def _pour(response: aiohttp.ClientResponse, part: PartFile, total: int, on_progress: OnProgress | None) -> None:
    """Hash and write in a thread what was gathered, while more is gathered."""
    writing: asyncio.Task[None] | None = None
    gathered: list[bytes] = []
    size, room = 0, total - part.size
    try:
        async for chunk in response.content.iter_any():
            room -= len(chunk)
            if room < 0:
                raise Fault("a range does not answer as a broker's: more bytes than it says", rule="broker.answer")
            gathered.append(chunk)
            size += len(chunk)
            if size >= STEP:
                if writing is not None:
                    await writing
                    if on_progress is not None:
                        on_progress(part.size, total)
                writing = asyncio.create_task(asyncio.to_thread(part.append, gathered))
                gathered, size = [], 0
    finally:
        # What came before a lost connection is kept: the next try goes on behind it.
        if writing is not None:
            await writing
        await asyncio.to_thread(part.append, gathered)
    if on_progress is not None:
        on_progress(part.size, total)


def _read_span(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and how many the whole blob has."""
    if response.status != 206:
        return 0, response.content_length
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""), re.ASCII)
    if found is None or int(found[2]) + 1 != int(found[3]):
        return -1, None
    return int(found[1]), int(found[3])


class _Patience:
    """Tries that are left: all of them again with each `STEP` of progress."""

    def __init__(self) -> None:
        self._left = TRIES
        self._mark = 0

    def note(self, done: int) -> None:
        if done >= self._mark + STEP:
            self._left, self._mark = TRIES, done

    async def wait(self, error: TallyError) -> None:
        """Pause before the next try; raises `error` where none is left."""
        if not self._left:
            raise error
        await asyncio.sleep(PAUSE_SECONDS * 2 ** (TRIES - self._left))
        self._left -= 1


def sort_blobs(blobs: Iterable[bytes]) -> tuple[list[tuple[bytes, ...]], list[bytes], tuple[bytes, ...]]:
    """Parcels of small blobs, blobs that are too large for one, and the digests of all in their order."""
    digests: list[bytes] = []
    small: list[list[bytes]] = []
    large: list[bytes] = []
    seen: set[bytes] = set()
    room = 0
    for blob in blobs:
        digests.append(compute_digest(blob))
        if digests[-1] in seen:
            continue
        seen.add(digests[-1])
        if len(blob) > SMALL_BYTES:
            large.append(blob)
            continue
        if len(blob) > room or not small or len(small[-1]) == MAX_TOGETHER:
            small.append([])
            room = MAX_PARCEL_BYTES
        small[-1].append(blob)
        room -= len(blob)
    return [tuple(parcel) for parcel in small], large, tuple(digests)


def _name_upload(digest: bytes) -> str:
    return f"/v1/uploads/{digest.hex()}"


def _read_number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text, re.ASCII) else None
