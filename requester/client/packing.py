"""What is to be run, as blobs: functions, scripts and folders as code; arguments, items and states as inputs.

Functions travel as cloudpickle, which is only ever written here and loaded inside the sandbox; all else as packed
values. A function's own package goes along by value, since no provider has it. Large arrays are neither copied nor
joined: they are hashed and written to the blob store from where they lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from broker.protocol.folders import pack_folder as pack_files
from broker.protocol.jobs import Entry
from broker.protocol.tables import find_kind
from broker.protocol.values import BadValue, CannotCarry, measure, pack_list, pack_parts
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Kind
from requester.client.sources import check_script, choose_function, read_folder, read_script
from requester.store.blobs import SMALL_BYTES, BlobFolder

if TYPE_CHECKING:
    from broker.protocol.containers import Part


TABLES = frozenset({"pandas", "pyarrow"})
"""Packages whose tables are values."""

MAX_WALKED = 100_000
"""Parts of a value that are looked at for tables; who sends more names the package."""


class Inputs:
    """Packed inputs in parts, some of which may be the arrays themselves: leave those alone until the job is signed."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self.size = measure(parts)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all parts."""
        return _hash(self._parts)

    def join(self) -> bytes:
        """All parts in one piece."""
        return b"".join(self._parts)

    def keep(self, blobs: BlobFolder) -> None:
        """Write them into the blob store, hashed on the way. Raises `Unavailable` under `file.write`."""
        if self.size <= SMALL_BYTES:
            blobs.put(self.join())
            return
        beside = blobs.folder / f".incoming.{secrets.token_hex(8)}"
        try:
            blobs.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            whole = hashlib.sha256()
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for part in self._parts:
                    file.write(part)
                    whole.update(part)
                file.flush()
                os.fsync(file.fileno())
            self.__dict__["digest"] = whole.digest()
            blobs.adopt(beside, self.digest)
        except OSError as error:
            raise Unavailable(f"cannot write {beside}: {error}", rule="file.write") from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


class Code(msgspec.Struct, frozen=True):
    """What runs: a blob, what it is, and the function that a script or folder of a `map` or `train` is asked for."""

    entry: Entry
    blob: bytes
    title: str
    function: str = ""


class Work(msgspec.Struct, frozen=True):
    """A job without its limits and its price. `items` are the digests of a `map`'s items; `packages` are those without
    which nobody can read its inputs.
    """

    kind: Kind
    code: Code
    inputs: Inputs
    items: tuple[bytes, ...] = ()
    segments: int = 1
    packages: tuple[str, ...] = ()

    @property
    def item_root(self) -> bytes | None:
        """What a `map` starts from; None for other kinds."""
        return compute_root(self.items) if self.kind is Kind.MAP else None


# ---- code ----


def pack_function(function: Callable[..., Any]) -> Code:
    """A function as code. Raises `Refused` under `value.carry` for one that can't be carried."""
    import cloudpickle  # 30 ms, and only functions need it

    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        with _by_value(cloudpickle, function):
            blob = cloudpickle.dumps(function)
    except Exception as error:  # pickling runs code of the function's objects, which may raise anything
        raise Refused(f"{name} can't be sent: {type(error).__name__}: {error}", rule="value.carry") from error
    return Code(Entry.FUNCTION, blob, name)


def pack_source(path: Path, kind: Kind = Kind.RUN, function: str = "") -> Code:
    """A script, or a folder with a `main.py`, as code. For a `map` or `train` it has to define `function`; where none
    is named, see `choose_function`. Raises `Refused` under a `script.` or `folder.` rule.
    """
    if path.is_dir():
        files = read_folder(path)
        source = files["main.py"]
        check_script(source, path / "main.py")
        chosen = choose_function(source, path, kind, function)
        try:
            return Code(Entry.FOLDER, pack_files(files, name=path.name), path.resolve().name, chosen)
        except CannotCarry as error:
            raise Refused(str(error), rule="folder.files") from error
    source = read_script(path)
    check_script(source, path)
    return Code(Entry.SCRIPT, source, path.name, choose_function(source, path, kind, function))


def pack_code(what: Callable[..., Any] | str | Path, kind: Kind) -> Code:
    """A function, or `FILE.py:function`, or `FOLDER:function`, as code for a `map` or `train`."""
    if callable(what):
        return pack_function(what)
    path, function = split_source(str(what))
    return pack_source(path, kind, function)


def split_source(text: str) -> tuple[Path, str]:
    """(path, name of the function or empty) of `FILE.py:function`. A path that exists as it stands has no function."""
    path, colon, function = text.rpartition(":")
    if colon and function.isidentifier() and not Path(text).exists():
        return Path(path), function
    return Path(text), ""


# ---- inputs ----


def make_run(code: Code, args: Sequence[Any], kwargs: dict[str, Any]) -> Work:
    """One call: a script or folder finds `args` and `inputs` as globals and leaves its result in `result`.

    Raises `Refused` under `value.carry` for an argument that can't be carried.
    """
    inputs = (tuple(args), kwargs)
    return Work(Kind.RUN, code, Inputs(_pack(inputs, "arguments")), packages=find_packages(inputs))


def make_map(code: Code, items: Iterable[Any]) -> Work:
    """One call of `function(item)` for each item. Raises `Refused` under `value.carry`, `map.items` for none or too
    many.
    """
    packages: set[str] = set()
    rows = []
    for number, item in enumerate(items):
        rows.append(_pack(item, f"items[{number}]"))
        packages.update(find_packages(item))
    if not rows:
        raise Refused("a map needs at least one item", rule="map.items")
    digests = tuple(map(_hash, rows))
    try:
        return Work(Kind.MAP, code, Inputs(pack_list(rows)), digests, len(rows), tuple(sorted(packages)))
    except BadValue as error:
        raise Refused(f"these items cannot be sent: {error}", rule="map.items") from error


def make_train(code: Code, state: Any, steps: int) -> Work:
    """`steps` calls of `step(state, index)`, each given what the one before returned. Raises `Refused` under
    `value.carry`.
    """
    return Work(Kind.TRAIN, code, Inputs(_pack(state, "state")), (), steps, find_packages(state))


def find_packages(value: object) -> tuple[str, ...]:
    """The packages whose tables are among the first `MAX_WALKED` parts of a value; whoever has them not cannot read it.

    Where none of these packages is loaded there is no such table, and nothing is looked at.
    """
    if not TABLES & sys.modules.keys():
        return ()
    found: set[str] = set()
    pending = deque([value])
    for _ in range(MAX_WALKED):
        if not pending:
            break
        here = pending.popleft()
        if isinstance(here, dict):
            pending.extend(here.values())
        elif isinstance(here, list | tuple):
            pending.extend(islice(here, MAX_WALKED))
        elif find_kind(here):
            found.add(type(here).__module__.partition(".")[0])
    return tuple(sorted(found))


def _pack(value: Any, name: str) -> list[Part]:
    try:
        return pack_parts(value, name=name)
    except CannotCarry as error:
        raise Refused(str(error), rule="value.carry") from error


def _hash(parts: list[Part]) -> bytes:
    if len(parts) == 1:
        return compute_digest(parts[0])
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.digest()


@contextlib.contextmanager
def _by_value(cloudpickle: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Within, the package that the function stands in is pickled by value, unless every Python has it. Of a partial it
    is the function inside that counts.
    """
    while isinstance(function, partial):
        function = function.func
    top = (getattr(function, "__module__", None) or "__main__").partition(".")[0]
    module = sys.modules.get(top)
    installed = "site-packages" in (getattr(module, "__file__", None) or "")
    if module is None or top == "__main__" or top in sys.stdlib_module_names or installed:
        yield
        return
    known = top in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        if not known:
            cloudpickle.unregister_pickle_by_value(module)
