"""Finds the shared libraries that binaries need, as the system's own loader resolves them, the loader itself among
them.

Read from the ELF files by hand for the loader's name, from the loader for the rest. Not here: libraries that a package
brings along and finds by its own RPATH.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chain.base.errors import Unavailable

__all__ = ["find_libraries", "find_loader"]

_LOADED_BY_NAME: Final = ("libgcc_s.so.1", "libstdc++.so.6")
"""Loaded while running, so no binary names them: thread cancellation, and C++ code of packages."""
_PT_INTERP: Final = 3


def find_loader(binary: Path) -> Path:
    """The program interpreter a 64-bit little-endian ELF names. Raises `Unavailable` where it names none."""
    with open(binary, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise Unavailable(f"{binary} is no 64-bit little-endian ELF", rule="runtime.elf")
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for i in range(count):
            file.seek(offset + i * size)
            entry = file.read(56)
            if struct.unpack_from("<I", entry)[0] == _PT_INTERP:
                start, length = struct.unpack_from("<Q", entry, 8)[0], struct.unpack_from("<Q", entry, 32)[0]
                file.seek(start)
                return Path(os.fsdecode(file.read(length).rstrip(b"\0")))
    raise Unavailable(f"{binary} is linked statically; a runtime needs a dynamic Python", rule="runtime.elf")


def find_libraries(binaries: Sequence[Path]) -> dict[str, Path]:
    """Name to file of every library outside of packages. Raises `Unavailable` where the loader can't say."""
    loader = find_loader(Path(os.path.realpath(sys.executable)))
    found = {loader.name: Path(os.path.realpath(loader))}
    inside = {path.name for path in binaries}
    for binary in binaries:
        for name, path in _ask(loader, binary).items():
            if name not in inside:
                found.setdefault(name, path)
    near = found.get("libc.so.6")
    for name in _LOADED_BY_NAME:
        for folder in [near.parent] if near else []:
            if name not in found and (folder / name).exists():
                found[name] = Path(os.path.realpath(folder / name))
    return found


def _ask(loader: Path, binary: Path) -> dict[str, Path]:
    """What the loader would load for a binary. It does not run it."""
    done = subprocess.run([str(loader), "--list", str(binary)], capture_output=True, text=True, check=False, env={})
    if done.returncode:
        raise Unavailable(f"{loader} can't resolve {binary}: {done.stderr.strip()}", rule="runtime.libraries")
    rows = (line.split("=>") for line in done.stdout.splitlines() if "=>" in line)
    pairs = ((name.strip(), rest.rpartition("(")[0].strip()) for name, rest in rows)
    return {os.path.basename(name): Path(os.path.realpath(path)) for name, path in pairs if path.startswith("/")}
