"""The folder of a job's code at /job/code, and the files it leaves at /job/outputs.

The folder is put right again between two segments: what one has changed there, the next does not see. What a job left
is read by the job's own process; the host believes none of it and requesters check the names again.
"""

from __future__ import annotations

import os
import stat

from broker.protocol import folders
from provider.sandbox.inside.tidy import empty_folder

CODE = "/job/code"
OUTPUTS = "/job/outputs"
_READ = 1 << 20


class CodeFolder:
    """The job's code as files: read-only, so that a job that takes it for a place to work in is told at once."""

    def __init__(self, packed: bytes, top: str = CODE) -> None:
        self.top = top
        self._files = folders.unpack_folder(packed)
        self._write()

    def restore(self) -> None:
        """Puts the folder right if anything in it has changed. Times tell nothing of changes through mapped memory, so
        the files are compared.
        """
        if not self._is_whole():
            if os.path.lexists(self.top) and (os.path.islink(self.top) or not os.path.isdir(self.top)):
                os.unlink(self.top)
            self._write()

    def _is_whole(self) -> bool:
        try:
            found = {name: self._read(path) for name, path, _ in _walk(self.top)}
        except (OSError, _Special):
            return False
        return found == self._files

    def _read(self, path: str) -> bytes:
        with open(path, "rb", buffering=0) as file:
            return file.readall()

    def _write(self) -> None:
        os.makedirs(self.top, 0o700, exist_ok=True)
        os.chmod(self.top, 0o700)
        empty_folder(self.top)
        inner = {self.top}
        for name, data in self._files.items():
            path = f"{self.top}/{name}"
            where = os.path.dirname(path)
            os.makedirs(where, 0o700, exist_ok=True)
            while where not in inner:
                inner.add(where)
                where = os.path.dirname(where)
            with open(path, "xb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o444)
        for where in inner:
            os.chmod(where, 0o555)


class _Special(Exception):
    """Something that is neither a file nor a folder."""


def _walk(top: str) -> list[tuple[str, str, int]]:
    """(name relative to the top, path, bytes) of each file below a folder, without following a link."""
    found: list[tuple[str, str, int]] = []
    pending = [("", top)]
    while pending:
        prefix, here = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if name.count("/") >= folders.MAX_PARTS:
                        raise _Special(f"{name!r:.300} lies deeper than {folders.MAX_PARTS} folders")
                    pending.append((f"{name}/", entry.path))
                    continue
                told = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(told.st_mode):
                    raise _Special(f"{name!r:.300} is neither a file nor a folder")
                found.append((name, entry.path, told.st_size))
                if len(found) > folders.MAX_FILES:
                    raise _Special(f"there are more than {folders.MAX_FILES} files")
    return found


def collect_outputs(most: int | None, top: str = OUTPUTS) -> dict[str, bytes]:
    """The files below /job/outputs by relative name; empty where there is no such folder.

    Raises `ValueError` for links and special files, names that are not the same everywhere, too many files and more
    than `most` bytes.
    """
    if not os.path.lexists(top):
        return {}
    if os.path.islink(top) or not os.path.isdir(top):
        raise ValueError(f"{top} is no folder")
    try:
        found = _walk(top)
    except _Special as error:
        raise ValueError(f"{top} can't be given back: {error}") from None
    left = folders.MAX_FOLDER_BYTES if most is None else min(most, folders.MAX_FOLDER_BYTES)
    files: dict[str, bytes] = {}
    for name, path, size in sorted(found):
        left -= size
        if left < 0:
            raise ValueError(f"{top} can't be given back: {sum(one[2] for one in found)} bytes are more than allowed")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb", buffering=0) as file:
            files[name] = file.read(size) or b""
    return folders.check_files(files)
