"""The frames of a case file, read and made by hand after the page for outsiders (docs/case-file.md)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

MAGIC = b"tally-case/1\n"
HEAD = struct.Struct(">16sQ")
Frames = list[tuple[str, bytes]]


def split_frames(data: bytes) -> Frames:
    """The frames of a file."""
    assert data.startswith(MAGIC)
    position, frames = len(MAGIC), []
    while position < len(data):
        name, size = HEAD.unpack_from(data, position)
        body = data[position + HEAD.size : position + HEAD.size + size]
        frames.append((name.rstrip(b"\0").decode(), body))
        position += HEAD.size + size
    return frames


def join_frames(frames: Iterable[tuple[str, bytes]], *, end: bool = True) -> bytes:
    """A file of these frames, with the right closing digest: anyone can make one."""
    whole = MAGIC + b"".join(HEAD.pack(name.encode(), len(body)) + body for name, body in frames)
    return whole + (HEAD.pack(b"end", 32) + hashlib.sha256(whole).digest() if end else b"")
