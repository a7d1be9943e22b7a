"""Files that are whole or absent: write beside, flush to disk, rename; and folders that one process owns."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from chain.base.errors import Refused, Unavailable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Make `path` hold `data`, durably, whole or not at all.

    Raises `Unavailable` under `file.write`; with `replace=False`, `Refused` under `file.exists` where `path` is there
    already, even if it appeared only now.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (os.replace if replace else _move_new)(beside, path)
        sync_folder(path.parent)
    except FileExistsError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise Refused(f"{path} exists and is not overwritten", rule="file.exists") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise Unavailable(f"cannot write {path}: {error}", rule="file.write") from error


def _move_new(source: Path, target: Path) -> None:
    """Rename, but never over something; raises `FileExistsError`."""
    if sys.platform == "win32":
        os.rename(source, target)
    else:
        os.link(source, target)
        source.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until names that came into a folder or left it are on the disk."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the kernel lets go when the process ends. Raises `Unavailable` under
    `folder.owned` where another one holds it, under `folder.open` where it can't be made or opened.
    """
    with contextlib.ExitStack() as opened:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = opened.enter_context((folder / "lock").open("a+b"))
        except OSError as error:
            raise Unavailable(f"cannot use the folder {folder}: {error}", rule="folder.open") from error
        try:
            _lock(file.fileno())
        except OSError as error:
            raise Unavailable(f"{folder} is in use by another process", rule="folder.owned") from error
        yield


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
