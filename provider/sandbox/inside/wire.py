"""The bytes between host and sandbox: the task on its way in, behind the descriptor of its inputs (`inside.given`);
frames on their way out.

A frame is one byte of kind, a u32 of length, and that many bytes. The host trusts none of them
(`provider.sandbox.frames`).
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, CMSG_LEN, SOCK_STREAM, socket  # the C half alone: the whole costs 5 ms more

import msgpack

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from collections.abc import Iterable

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

READY = b"r"
"""What the runner says once, before it takes its task."""

_LENGTH = struct.Struct(">I")
_DESCRIPTOR = struct.Struct("i")


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Writes everything, however small the pipe is."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame. `payload` has at most `MAX_PAYLOAD` bytes."""
    return FRAME.pack(kind, len(payload)) + payload


def send(fd: int, kind: int, payload: bytes | memoryview) -> None:
    """Sends a payload as frames of at most `MAX_PAYLOAD` bytes, without copying it."""
    view = memoryview(payload)
    while view:
        part = view[:MAX_PAYLOAD]
        write_all(fd, FRAME.pack(kind, len(part)))
        write_all(fd, part)
        view = view[len(part) :]


def write_parts(fd: int, parts: Iterable[bytes | memoryview]) -> None:
    """Writes parts one after the other, small ones together."""
    pending = bytearray()
    for part in parts:
        if len(part) < MAX_PAYLOAD:
            pending += part
            if len(pending) < MAX_PAYLOAD:
                continue
            part = b""
        write_all(fd, pending)
        pending = bytearray()
        write_all(fd, part)
    write_all(fd, pending)


def read_exactly(fd: int, size: int) -> bytes:
    """That many bytes; raises EOFError where the other end closes before."""
    parts = bytearray()
    while len(parts) < size:
        part = os.read(fd, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError(f"{len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def read_into(fd: int, view: memoryview) -> None:
    """Fills the view; raises EOFError where the other end closes before."""
    while view:
        count = os.readv(fd, [view])
        if not count:
            raise EOFError(f"{len(view)} bytes are missing")
        view = view[count:]


def receive_file(fd: int) -> int:
    """The descriptor that comes before the task; waits for it. Raises EOFError where the host goes away before."""
    channel = socket(AF_UNIX, SOCK_STREAM, 0, fd)
    data, passed, *_ = channel.recvmsg(1, CMSG_LEN(_DESCRIPTOR.size))
    channel.detach()
    if not data:
        raise EOFError("no task came")
    file: int = _DESCRIPTOR.unpack(passed[0][2])[0]
    return file


def encode_task(header: dict[str, object], code: bytes) -> bytes:
    """The task as it is written into the sandbox."""
    packed = msgpack.packb({**header, "code": len(code)})
    return b"".join((_LENGTH.pack(len(packed)), packed, code))


def read_task(fd: int) -> dict[str, object]:
    """The task, with `code` as bytes. It comes from the host and is trusted."""
    header: dict[str, object] = msgpack.unpackb(read_exactly(fd, _LENGTH.unpack(read_exactly(fd, _LENGTH.size))[0]))
    size = header["code"]
    assert isinstance(size, int)
    header["code"] = read_exactly(fd, size)
    return header
