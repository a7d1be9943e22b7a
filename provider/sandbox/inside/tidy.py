"""Empties a folder that a hostile job filled, however deep: nested folders are hoisted to the top, so that no path and
no stack grows.
"""

from __future__ import annotations

import os


def empty_folder(top: str, keep: str = "") -> None:
    """Removes everything below `top` but what is named `keep`. Raises OSError where something can't be removed."""
    number = 0
    while names := [name for name in os.listdir(top) if name != keep]:
        for name in names:
            path = os.path.join(top, name)
            if not _is_folder(path):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for child in os.listdir(path):
                inner = os.path.join(path, child)
                if _is_folder(inner):
                    os.chmod(inner, 0o700)  # moving a folder rewrites its "..", which needs leave to write it
                    number = _hoist(inner, top, number)
                else:
                    os.unlink(inner)
            os.rmdir(path)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _hoist(inner: str, top: str, number: int) -> int:
    """Moves a folder to the top under a name that is free."""
    while True:
        number += 1
        target = os.path.join(top, f".{number}")
        if not os.path.lexists(target):
            os.rename(inner, target)
            return number
