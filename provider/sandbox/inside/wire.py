"""The bytes between host and sandbox: the task on its way in, frames on their way out.

A frame is one byte of kind, a u32 of length, and that many bytes. The host trusts none of them
(`provider.sandbox.frames`).
"""

from __future__ import annotations

import os
import struct

import msgpack

FRAME = struct.Struct(">BI")
MAX_PAYLOAD = 1 << 18
"""Bytes of one frame: a few pipe buffers, so that the host never waits long for the rest of one."""

BEGIN, OUTPUT, ERROR, DONE, CLOSED = 1, 2, 3, 4, 5
INDEX = struct.Struct(">I")
OUTCOME = struct.Struct(">IBi")
"""Index, outcome, number of the signal or exit status."""
CLOSING = struct.Struct(">Bi")
"""How the runner ended: outcome and number."""

OK, RAISED, MEMORY, SIGNALED, EXITED = 0, 1, 2, 3, 4
"""Outcomes: returned, raised, raised MemoryError, died by a signal, left with an exit status and no result."""

_LENGTH = struct.Struct(">I")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes everything, however small the pipe is."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(fd: int, kind: int, payload: bytes | memoryview = b"") -> None:
    """Sends a payload as frames of at most `MAX_PAYLOAD` bytes."""
    view = memoryview(payload)
    while True:
        part = view[:MAX_PAYLOAD]
        write_all(fd, FRAME.pack(kind, len(part)) + bytes(part))
        view = view[len(part) :]
        if not view:
            return


def read_exactly(fd: int, size: int) -> bytes:
    """That many bytes; raises EOFError where the other end closes before."""
    parts = bytearray()
    while len(parts) < size:
        part = os.read(fd, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError(f"{len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def encode_task(header: dict[str, object], code: bytes, inputs: bytes) -> bytes:
    """The task as it is written into the sandbox."""
    packed = msgpack.packb({**header, "code": len(code), "inputs": len(inputs)})
    return b"".join((_LENGTH.pack(len(packed)), packed, code, inputs))


def read_task(fd: int) -> dict[str, object]:
    """The task, with `code` and `inputs` as bytes. It comes from the host and is trusted."""
    header: dict[str, object] = msgpack.unpackb(read_exactly(fd, _LENGTH.unpack(read_exactly(fd, _LENGTH.size))[0]))
    for name in ("code", "inputs"):
        size = header[name]
        assert isinstance(size, int)
        header[name] = read_exactly(fd, size)
    return header
