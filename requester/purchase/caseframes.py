"""The frames of a case file: named parts of known length one after the other, and a closing digest over all of them.

No tar, no zip (threats.md A7): a part has a name from one table and no path, so nothing can be placed anywhere, nothing
is compressed, and nothing is read twice. Reading is by `FrameReader.feed`, in pieces of any size; writing gives pieces.
Neither holds a blob in memory. What the parts mean is `casefile`; the format for outsiders is `docs/case-file.md`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from chain.base.errors import Refused
from requester.purchase.documents import MAX_PART_BYTES

MAGIC = b"tally-case/1\n"
"""What a case file begins with; a later form has another number."""

_HEAD = struct.Struct(">16sQ")
"""Head of a frame: its name, filled up with zeros, and the length of what follows, big-endian."""

MAX_KEPT_BYTES = 256 << 20
"""Most bytes of parts that are held in memory together; blobs are not held."""

MAX_PARTS = 16_384
"""Most parts that are no blobs: up to 1,024 leases with a book each, and the chunks of 2^20 records and more."""

MAX_BLOBS = 262_144
"""Most blobs of one file: four for each of the 65,536 items that one object may name."""

_MAX_BLOB_BYTES = 1 << 40


class PartName(StrEnum):
    """All parts, in the order in which they stand."""

    MANIFEST = "manifest"
    HEAD = "head"
    ITEMS = "items"
    BOOK = "book"
    LEASE = "lease"
    RECORDS = "records"
    PROVENANCE = "provenance"
    ERROR = "error"
    LOG = "log"
    CODE = "code"
    INPUT = "input"
    OUTPUT = "output"
    END = "end"


@dataclass(frozen=True)
class PartRule:
    """What a part may be: its largest length, whether there is exactly one, whether it is held in memory."""

    max_bytes: int
    once: bool = False
    kept: bool = False


RULES: dict[PartName, PartRule] = {
    PartName.MANIFEST: PartRule(4_096, once=True, kept=True),  # two digests and a few numbers
    PartName.HEAD: PartRule(MAX_PART_BYTES, once=True, kept=True),
    PartName.ITEMS: PartRule(MAX_PART_BYTES, kept=True),
    PartName.BOOK: PartRule(MAX_PART_BYTES, kept=True),
    PartName.LEASE: PartRule(MAX_PART_BYTES, kept=True),
    PartName.RECORDS: PartRule(MAX_PART_BYTES, kept=True),
    PartName.PROVENANCE: PartRule(160 << 20, kept=True),  # 147 bytes for each of 2^20 segments in one lease
    PartName.ERROR: PartRule(1 << 20),  # `broker.protocol.jobs.MAX_ERROR_BYTES`
    PartName.LOG: PartRule(_MAX_BLOB_BYTES),  # logs, outputs and inputs have the job's own limits, checked later;
    PartName.CODE: PartRule(_MAX_BLOB_BYTES),  # they are hashed as they pass
    PartName.INPUT: PartRule(_MAX_BLOB_BYTES),
    PartName.OUTPUT: PartRule(_MAX_BLOB_BYTES),
    PartName.END: PartRule(32, once=True, kept=True),  # SHA-256 over every byte before this frame
}
"""Sizes with their reasons; known before a byte of the part is taken."""

_RANKS = {name: rank for rank, name in enumerate(PartName)}
_NAMES = {name.value.encode().ljust(16, b"\0"): name for name in PartName}
BLOBS = frozenset({PartName.PROVENANCE, PartName.ERROR, PartName.LOG, PartName.CODE, PartName.INPUT, PartName.OUTPUT})
"""Parts that are blobs: told by their digest, each at most once."""


class BadCase(Refused):
    """Bytes that are no case file, or not any more; `rule` is `case.` and what is wrong."""


@dataclass(frozen=True)
class Part:
    """One part as it was read: where its bytes begin in the file, how many, their digest, and they themselves if the
    part is one that is held in memory.
    """

    name: PartName
    offset: int
    size: int
    digest: bytes
    data: bytes = b""


class FrameReader:
    """Takes a file's bytes in order, then gives its parts. Every failure is a `BadCase`."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._whole = hashlib.sha256()
        self._position = 0
        self._buffer = bytearray()
        self._name: PartName | None = None
        self._left = 0
        self._size = 0
        self._hash = hashlib.sha256()
        self._kept_bytes = 0
        self._counts = {True: 0, False: 0}
        self._opened = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises `BadCase` under `case.magic`, `case.name`, `case.order`, `case.size`,
        `case.count`, `case.digest` or `case.trailing`.
        """
        view = memoryview(data)
        while len(view):
            if self._is_over:
                raise BadCase("bytes after the end of the case", rule="case.trailing")
            taken = self._take_body(view) if self._name else self._take_head(view)
            view = view[taken:]

    def close(self) -> list[Part]:
        """The parts, once all bytes were given; raises `BadCase` under `case.short` where some are missing."""
        if not self._is_over:
            raise BadCase(f"the file ends after {self._position} bytes, before its end", rule="case.short")
        return self._parts[:-1]

    @property
    def _is_over(self) -> bool:
        return bool(self._parts) and self._parts[-1].name is PartName.END

    def _take_head(self, view: memoryview) -> int:
        """Bytes of the magic or of a frame's head; returns how many were of use."""
        wanted = (_HEAD.size if self._opened else len(MAGIC)) - len(self._buffer)
        piece = view[:wanted]
        self._buffer += piece
        self._position += len(piece)
        if len(piece) < wanted:
            return len(piece)
        if self._opened:
            self._begin(bytes(self._buffer))
        else:
            if self._buffer != MAGIC:
                raise BadCase("this is no case file (of a form that is known here)", rule="case.magic")
            self._opened = True
            self._whole.update(self._buffer)
        self._buffer = bytearray()
        return len(piece)

    def _begin(self, head: bytes) -> None:
        raw, size = _HEAD.unpack(head)
        name = _NAMES.get(raw)
        if name is None:
            raise BadCase(f"a part of no known name at byte {self._position - _HEAD.size}", rule="case.name")
        self._check_order(name)
        rule = RULES[name]
        if size > rule.max_bytes or (name is PartName.END and size != rule.max_bytes):
            raise BadCase(f"a part `{name}` of {size} bytes; {rule.max_bytes} are taken", rule="case.size")
        self._kept_bytes += size if rule.kept else 0
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise BadCase(f"papers of more than {MAX_KEPT_BYTES} bytes", rule="case.size")
        self._counts[name in BLOBS] += 1
        if self._counts[True] > MAX_BLOBS or self._counts[False] > MAX_PARTS:
            raise BadCase(f"more than {MAX_PARTS} parts or {MAX_BLOBS} blobs", rule="case.count")
        if name is not PartName.END:
            self._whole.update(head)
        self._name, self._size, self._left, self._hash = name, size, size, hashlib.sha256()
        if size == 0:
            self._finish()

    def _check_order(self, name: PartName) -> None:
        last = self._parts[-1].name if self._parts else None
        before, rank = -1 if last is None else _RANKS[last], _RANKS[name]
        begins = before < _RANKS[PartName.HEAD]  # manifest and head stand there, in this order, and then once only
        if (rank != before + 1) if begins else (rank < before or (rank == before and RULES[name].once)):
            raise BadCase(f"a part `{name}` after `{last or 'nothing'}`", rule="case.order")

    def _take_body(self, view: memoryview) -> int:
        assert self._name is not None
        piece = view[: self._left]
        self._hash.update(piece)
        if self._name is not PartName.END:
            self._whole.update(piece)
        if RULES[self._name].kept:
            self._buffer += piece
        self._position += len(piece)
        self._left -= len(piece)
        if self._left == 0:
            self._finish()
        return len(piece)

    def _finish(self) -> None:
        assert self._name is not None
        part = Part(self._name, self._position - self._size, self._size, self._hash.digest(), bytes(self._buffer))
        if part.name is PartName.END and part.data != self._whole.digest():
            raise BadCase("the closing digest is not that of the file: a byte was changed", rule="case.digest")
        self._parts.append(part)
        self._name, self._buffer = None, bytearray()


class FrameWriter:
    """Makes a file's bytes, part by part in the order of `PartName`."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256(MAGIC)
        self._opened = False

    def write(self, name: PartName, size: int, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Bytes of one part, whose `pieces` add up to `size`. Raises `BadCase` under `case.size` where they don't, or
        where they are more than readers take.
        """
        if size > RULES[name].max_bytes:
            raise BadCase(f"a part `{name}` of {size} bytes; readers take {RULES[name].max_bytes}", rule="case.size")
        if not self._opened:
            self._opened = True
            yield MAGIC
        yield self._note(_HEAD.pack(name.value.encode(), size))
        written = 0
        for piece in pieces:
            written += len(piece)
            if written > size:
                break
            yield self._note(piece)
        if written != size:
            raise BadCase(f"{written} bytes of a part `{name}` of {size}", rule="case.size")

    def close(self) -> bytes:
        """The closing frame."""
        return _HEAD.pack(PartName.END.value.encode(), 32) + self._whole.digest()

    def _note(self, piece: bytes | memoryview) -> bytes | memoryview:
        self._whole.update(piece)
        return piece
