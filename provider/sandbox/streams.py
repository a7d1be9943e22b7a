"""Reading and writing pipes and sockets from the event loop without ever waiting."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["read_available", "write_available"]

_CHUNK: Final = 1 << 18


def read_available(descriptor: int, limit: int = _CHUNK) -> tuple[bytes, bool]:
    """(what is there, up to `limit` bytes; whether the other end has closed)."""
    try:
        data = os.read(descriptor, limit)
    except BlockingIOError:
        return b"", False
    return data, not data


def write_available(descriptor: int, data: memoryview) -> tuple[memoryview, bool]:
    """(what is left to write; whether the other end has closed)."""
    try:
        return data[os.write(descriptor, data) :], False
    except BlockingIOError:
        return data, False
    except (BrokenPipeError, ConnectionResetError):
        return data, True
