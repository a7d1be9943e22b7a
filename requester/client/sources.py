"""Scripts and folders of files as they are read from disk, and which of their functions a job calls."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from broker.protocol.folders import MAX_FILES, MAX_FOLDER_BYTES
from chain.base.errors import Refused
from chain.ledger.terms.agreement import Kind

MAX_SCRIPT_BYTES = 16 << 20
"""Largest script that is read."""

MAIN = "main.py"
"""The script of a folder."""

LEFT_OUT = ("__pycache__",)
"""Folders that stay behind, beside all whose names begin with a dot."""

USUAL = {Kind.TRAIN: "step"}
"""What a function is called that nobody named. A `train` takes no other: any function would be called, and paid."""


def read_script(path: Path) -> bytes:
    """A script's source; raises `Refused` under `script.file` or `script.size`."""
    try:
        size = path.stat().st_size
        if size > MAX_SCRIPT_BYTES:
            raise Refused(f"{path} is larger than {MAX_SCRIPT_BYTES} bytes", rule="script.size")
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"cannot read the script {path}: {error.strerror}", rule="script.file") from error


def check_script(source: bytes, path: Path) -> None:
    """Raise `Refused` under `script.syntax` for what is no Python script."""
    try:
        compile(source, path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Refused(f"{path} is no Python script: {error}", rule="script.syntax") from error


def read_folder(path: Path) -> dict[str, bytes]:
    """All files below a folder by their names in it; hidden ones and `__pycache__` stay behind.

    Raises `Refused`: `folder.file` where one can't be read, `folder.link` for a link (what it points to would be sent),
    `folder.size` for too much, `folder.main` where there is no `main.py`.
    """
    files: dict[str, bytes] = {}
    room = MAX_FOLDER_BYTES
    for one in _list_files(path):
        name = one.relative_to(path).as_posix()
        if one.is_symlink():
            raise Refused(f"{one} is a link; put the file itself into the folder", rule="folder.link")
        try:
            room -= one.stat().st_size
            if room < 0 or len(files) >= MAX_FILES:
                limits = f"{MAX_FILES} files and {MAX_FOLDER_BYTES >> 20} MiB"
                raise Refused(f"{path} holds more than {limits}; data goes into the arguments", rule="folder.size")
            files[name] = one.read_bytes()
        except OSError as error:
            raise Refused(f"cannot read {one}: {error.strerror}", rule="folder.file") from error
    if MAIN not in files:
        raise Refused(f"the folder {path} has no {MAIN}, which is the script that is run", rule="folder.main")
    return files


def _list_files(path: Path) -> list[Path]:
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise Refused(f"cannot read {error.filename}: {error.strerror}", rule="folder.file") from error

    for place, folders, names in os.walk(path, onerror=fail):
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in LEFT_OUT)
        found += [Path(place) / name for name in (*linked, *names) if not name.startswith(".")]
    return sorted(found)


def choose_function(source: bytes, path: Path, kind: Kind, named: str) -> str:
    """The function that each segment calls. A `run` calls none. Without a name it is `step` for a `train`, and for a
    `map` the only public function of the script.

    Raises `Refused` under `script.function`.
    """
    if kind is Kind.RUN:
        if named:
            raise Refused(
                f"a run executes the whole of {path}, not {named}; map and train call", rule="script.function"
            )
        return ""
    defined, bound = _list_names(source)
    if named:
        if named not in bound and "*" not in bound:
            raise Refused(f"{path} defines no {named}; it defines {_tell(defined)}", rule="script.function")
        return named
    public = [name for name in defined if not name.startswith("_")]
    usual = USUAL.get(kind, "")
    if usual in defined or (not usual and len(public) == 1):
        return usual or public[0]
    lacking = f", no {usual}" if usual else ""
    example = public[0] if public else "NAME"
    message = f"{path} defines {_tell(public)}{lacking}; say which is called, for example {path}:{example}"
    raise Refused(message, rule="script.function")


def _tell(names: list[str]) -> str:
    return ", ".join(names[:10]) or "no function"


def _list_names(source: bytes) -> tuple[list[str], set[str]]:
    """(functions, all names that may be bound) at the top of a script."""
    tree = ast.parse(source)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return defined, bound
