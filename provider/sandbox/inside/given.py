"""What a job is given: its inputs as memory that is private to it, and the states it hands on to itself.

The host passes its file to the runner, which copies it into memory without a name (`inputs`) and seals that, so
that no job reaches a file of the host or sees its path, and what it was given counts as its memory. Each segment sees
pages of its own once it writes to them: nothing is doubled before, and nothing is changed for the next.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys

from broker.protocol import containers, values

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from typing import Any

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_COPY = 1 << 24
_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes})


def take_over(file: int, memory: int) -> None:
    """The runner, before it loads any code: copies the host's file into the nameless memory, seals it and closes the
    file. Raises OSError.
    """
    copied = 0
    while count := os.sendfile(memory, file, copied, _COPY):
        copied += count
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    os.close(file)


def is_taken(memory: int) -> bool:
    """Whether a task was taken over: its memory is sealed then, which nobody can undo."""
    return bool(fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL)


def open_inputs(memory: int, task: dict[str, Any]) -> Any:
    """The packed items of a `map`'s range, or all that the file holds. Closes the descriptor."""
    size = os.fstat(memory).st_size
    view = memoryview(mmap.mmap(memory, size, access=mmap.ACCESS_COPY) if size else b"")
    os.close(memory)
    if task["kind"] != "map":
        return view
    return values.split(view)[task["first"] : task["first"] + task["count"]]


def unpack(data: memoryview) -> Any:
    """The value of packed bytes that lie in private memory. Large arrays are views of it that can be written to:
    nothing is copied but the pages that are.
    """
    if not containers.is_container(data):
        return values.unpack(data)
    value = values.unpack(data, copy=False)
    return value if _make_writable(value) else values.unpack(data)


def _make_writable(value: Any) -> bool:
    """Opens all arrays in plain containers; False where there is something else, such as a table."""
    numpy = sys.modules["numpy"]
    pending = [value]
    while pending:
        here = pending.pop()
        kind = type(here)
        if kind is list or kind is tuple:
            pending.extend(here)
        elif kind is dict:
            pending.extend(here.values())
        elif kind is numpy.ndarray:
            here.flags.writeable = True
        elif kind not in _LEAVES and not isinstance(here, numpy.generic):
            return False
    return True


def make_state(size: int) -> memoryview:
    """Memory for the state that the next segment of a `train` begins with. It is inherited as it is and copied by the
    page, where written to.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) if size else memoryview(b"")
