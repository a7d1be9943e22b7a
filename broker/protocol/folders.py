"""A folder of files as one packed value, and the names that files of strangers may have.

The value is a dict of bytes by relative name with `/` between the parts. What is packed here is checked as strictly as
what is unpacked: a name that passes means the same file on every system and lies below the folder it is written to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from broker.protocol.refusals import BadValue, CannotCarry
from broker.protocol.values import pack, unpack

if TYPE_CHECKING:
    from broker.protocol.containers import Buffer

__all__ = ["MAX_FILES", "MAX_FOLDER_BYTES", "MAX_PARTS", "NAME", "check_files", "pack_folder", "unpack_folder"]

MAX_FILES: Final = 4096
MAX_FOLDER_BYTES: Final = 256 << 20
"""Bytes of all files together: a folder is held in memory at once, larger data goes into the arguments as arrays."""
MAX_PARTS: Final = 16
"""Folders within folders, the file counted."""
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
"""One part of a name. ASCII alone: no two such names are one after Unicode is normalised, and none starts with a dot,
so neither `..` nor a hidden file is among them.
"""
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_FORM: Final = "name files by letters, digits, `_`, `-` and `.`, not beginning or ending with a dot"
_OVERHEAD: Final = 1 << 24
"""Bytes that names and marks may add: 4,096 names of 16 parts of 100 characters, and some."""


def pack_folder(files: Mapping[str, bytes], *, name: str = "folder") -> bytes:
    """The bytes of a folder, the same for the same files. Raises `CannotCarry`, which names the file."""
    fault = _find_fault(files)
    if fault is not None:
        raise CannotCarry(f"{name}[{fault[0]!r:.200}]", *fault[1:])
    return pack({one: files[one] for one in sorted(files)}, name=name)


def unpack_folder(data: Buffer) -> dict[str, bytes]:
    """The files of a packed folder, whoever packed it. Raises `BadValue`."""
    return check_files(unpack(data, max_bytes=MAX_FOLDER_BYTES + _OVERHEAD, max_depth=1))


def check_files(files: object) -> dict[str, bytes]:
    """Files that a stranger named, such as the `files` of a result: returned if each can be written below one folder.
    Raises `BadValue`.
    """
    if type(files) is not dict:
        raise BadValue(f"a folder that is a {type(files).__name__}")
    fault = _find_fault(files)
    if fault is not None:
        raise BadValue(f"a folder with {fault[1]}: {fault[0]!a:.200}")
    return files


def _find_fault(files: Mapping[str, bytes]) -> tuple[object, str, str] | None:
    """(name, what is wrong, advice) of the first file that can't be carried."""
    if len(files) > MAX_FILES:
        return "", f"number of files beyond {MAX_FILES}", "put data into one file or into the arguments"
    for name, data in files.items():
        if type(name) is not str or not _is_name(name):
            return name, "name that is not the same everywhere", _FORM
        if type(data) is not bytes:
            return name, f"file of type {type(data).__name__}", "give its bytes"
    if sum(map(len, files.values())) > MAX_FOLDER_BYTES:
        return "", f"size beyond {MAX_FOLDER_BYTES} bytes", "put data into the arguments as arrays"
    return _find_collision(files)


def _is_name(name: str) -> bool:
    if len(name) > MAX_PARTS * 101:
        return False
    parts = name.split("/")
    return len(parts) <= MAX_PARTS and all(
        NAME.fullmatch(part) and not part.endswith(".") and not _DEVICES.fullmatch(part) for part in parts
    )


def _find_collision(names: Iterable[str]) -> tuple[object, str, str] | None:
    """Two names that are one where case does not count, or a file where another has a folder."""
    spelled: dict[str, tuple[str, bool]] = {}
    for name in names:
        parts = name.split("/")
        for length in range(1, len(parts) + 1):
            path, is_file = "/".join(parts[:length]), length == len(parts)
            before = spelled.setdefault(path.lower(), (path, is_file))
            if before[0] != path:
                return name, "name that differs from another by case alone", "rename one"
            if before[1] != is_file:
                return name, "name that is both file and folder", "rename one"
    return None
