"""What code holds, once it is loaded, that a fork does not copy but share: memory mapped for sharing, and open files,
pipes and sockets, whose places and contents each segment would leave changed for the next.

A segment that saw another's traces could not be replayed alone (design.md section 2), so such code fails when it is
loaded, and says why. It may do all this within its function. A job that hides it from us spoils its own records only.
"""

from __future__ import annotations

import os

_DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
"""They have neither place nor contents."""


class SharedByAll(Exception):
    """Raised for code that holds what all its segments would share."""


def list_shared() -> frozenset[str]:
    """What is shared now, each in words; without /proc what can't be seen is left out."""
    return _list_descriptors() | _list_mappings()


def check_unshared(before: frozenset[str]) -> None:
    """Raise `SharedByAll` for what has been shared since `before`."""
    if new := sorted(list_shared() - before):
        text = f"when it was loaded the code opened {new[0]}, which all segments would share; open it in the function"
        raise SharedByAll(text)


def _list_descriptors() -> frozenset[str]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return frozenset()
    found = set()
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the folder itself, which is closed by now
        if target not in _DEVICES and not target.endswith("/fd"):
            found.add(f"{target} (descriptor {name})")
    return frozenset(found)


def _list_mappings() -> frozenset[str]:
    try:
        with open("/proc/self/maps") as file:
            rows = [line.split(maxsplit=5) for line in file]
    except OSError:
        return frozenset()
    shared = [row for row in rows if row[1][1] == "w" and row[1][3] == "s"]
    return frozenset(f"shared memory at {row[0]} ({row[5].strip() if len(row) > 5 else 'nameless'})" for row in shared)
