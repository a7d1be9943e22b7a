"""Results as files: JSON, NumPy, safetensors, tables, the packed bytes; and a folder for the files of a folder job.

A file is whole or absent: it is written beside its place and moved there. Names that came from a job are checked before
anything is written below a directory, and nothing there is overwritten unasked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.protocol.folders import check_files
from broker.protocol.values import BadValue
from chain.base.errors import Refused, Unavailable
from chain.runtime.files import sync_folder, write_atomically
from requester.cli.output import to_json
from requester.client.data import need
from requester.client.results import Finished, JobResult, MapResult, TrainResult
from requester.client.texts import escape_line

RESULT_NAME = "result.json"
"""The value of a folder job beside its files."""


def get_value(found: Finished) -> Any:
    """What a result comes to: the value, the list of values, or the last state."""
    match found:
        case MapResult():
            return found.values
        case TrainResult():
            return found.state
        case JobResult():
            return found.value
        case _:
            return None


def write_result(path: Path, found: Finished, *, force: bool = False) -> list[str]:
    """Write a result in the form its name asks for; returns the names of what was written.

    Raises `Refused` under `output.form` (see `check_target`), `result.form` where the value does not fit the form,
    `output.exists` where such a file is there already and `force` is not set; `Unavailable` under `file.write`.
    """
    check_target(path, force=force)
    try:
        if _is_directory(path):
            return _write_folder(path, found, force=force)
        write = WRITERS[path.suffix.lower()]
        _write_whole(path, lambda beside: write(beside, found))
        return [str(path)]
    except Refused as error:
        kept = f"the result is kept: `tally result {found.job[:16]} -o FILE` writes it in another form"
        raise Refused(f"{error.message}; {kept}", rule=error.rule) from error


def check_target(path: Path | None, *, folder: bool = True, force: bool = False) -> None:
    """Whether a result (of a `folder` job: its files) can be written there, asked before anything is signed; None is no
    file at all. Raises `Refused` under `output.form`, `output.exists` where only `force` would overwrite a file, or
    `load.package` where the form needs a package that is absent.
    """
    if path is None:
        return
    known = path.suffix.lower() in WRITERS and not path.is_dir()
    if not known and not (folder and _is_directory(path)):
        message = (
            f"-o {path} names no file of a known form; end it in .json (any value), .npy (an array), .npz or "
            ".safetensors (a dict of arrays), .csv or .parquet (a table), .bin (the packed bytes), or in / for the "
            "files of a folder job"
        )
        raise Refused(message, rule="output.form")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent} for -o {path.name}; make it first", rule="output.form")
    if known:
        check_absent(path, force=force)
    for package in NEEDED.get(path.suffix.lower(), ()) if known else ():
        need(package, f"-o {path}")


def _is_directory(path: Path) -> bool:
    """A folder that is there, or a name without an ending, but for those that are no names."""
    return path.name not in ("", "..") and not path.suffix and (path.is_dir() or not path.exists())


def check_absent(path: Path, *, force: bool) -> None:
    """Raise `Refused` under `output.exists` where something is there that only `force` would overwrite."""
    if not force and (path.exists() or path.is_symlink()):
        raise Refused(f"{path} is there already; --force overwrites", rule="output.exists")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        mode = beside.stat().st_mode
        write(beside)
        beside.chmod(mode)  # a writer may have put a private file of its own there
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error}", rule="file.write") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _write_folder(path: Path, found: Finished, *, force: bool) -> list[str]:
    files = dict(found.files) if isinstance(found, JobResult) else {}
    if not files:
        raise Refused(f"the result has no files for the directory {path}", rule="result.form")
    if found.value is not None and RESULT_NAME not in files:  # type: ignore[attr-defined]  # only a JobResult has files
        files[RESULT_NAME] = _make_json(get_value(found))
    try:
        check_files(files)
    except BadValue as error:
        raise Refused(f"the files cannot be written: {error}", rule="result.form") from error
    taken = [name for name in sorted(files) if (path / name).exists() or (path / name).is_symlink()]
    if taken:
        check_absent(path / taken[0], force=force)
    _check_below(path, files)
    for name, data in sorted(files.items()):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path / name, data)
    return [str(path / name) for name in sorted(files)]


def _check_below(path: Path, files: dict[str, bytes]) -> None:
    """No folder on the way is a link that leads elsewhere, or a file."""
    for name in files:
        for folder in [path / parent for parent in Path(name).parents if parent != Path(".")]:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise Refused(f"{folder} is no folder of its own; nothing is written there", rule="output.exists")


# ---- forms ----


def _make_json(value: Any) -> bytes:
    return (json.dumps(to_json(value), allow_nan=False, indent=1) + "\n").encode()


def _write_json(path: Path, found: Finished) -> None:
    path.write_bytes(_make_json(get_value(found)))


def _write_npy(path: Path, found: Finished) -> None:
    np = need("numpy", ".npy")
    value = get_value(found)
    if isinstance(found, MapResult):
        try:
            value = np.stack([np.asarray(one) for one in value])
        except ValueError as error:
            raise Refused(
                f"the values do not make one array: {error}; take .json or .npz", rule="result.form"
            ) from error
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        raise Refused("the result is no array, so .npy can't hold it", rule="result.form")
    np.save(path, value, allow_pickle=False)


def _find_arrays(found: Finished, form: str) -> dict[str, Any]:
    """A dict of arrays: the value itself, or a map's values as item_0, item_1, …"""
    np = need("numpy", form)
    value = get_value(found)
    if isinstance(found, MapResult):
        value = {f"item_{index}": one for index, one in enumerate(value) if index not in found.failed}
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise Refused(f"only a dict with plain names as keys fits {form}", rule="result.form")
    arrays = {key: np.asarray(item) for key, item in value.items()}
    odd = sorted(key for key, array in arrays.items() if array.dtype.hasobject)
    if odd:
        raise Refused(f"{odd[0]!r} of the result fits no array, so {form} can't hold it", rule="result.form")
    return arrays


def _write_npz(path: Path, found: Finished) -> None:
    need("numpy", ".npz").savez(path, allow_pickle=False, **_find_arrays(found, ".npz"))


def _write_safetensors(path: Path, found: Finished) -> None:
    np, module = need("numpy", ".safetensors"), need("safetensors.numpy", ".safetensors")
    arrays = _find_arrays(found, ".safetensors")
    try:
        module.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except Exception as error:  # the package has no error of its own for a dtype that it lacks
        raise Refused(f"safetensors cannot hold this: {escape_line(str(error))}", rule="result.form") from error


def _find_table(found: Finished, form: str) -> Any:
    """A table of pandas: the value itself, or one made of rows."""
    pandas = need("pandas", form)
    value = get_value(found)
    if hasattr(value, "to_pandas"):
        return value.to_pandas()
    if isinstance(value, pandas.DataFrame | pandas.Series):
        return value if isinstance(value, pandas.DataFrame) else value.to_frame()
    try:
        rows = value if not isinstance(found, MapResult) or isinstance(value[0], dict) else {"value": value}
        return pandas.DataFrame(rows)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        kind = escape_line(type(value).__name__)
        raise Refused(
            f"the result, a {kind}, is no table; a table is a list of dicts (rows) or a dict of lists of one length "
            "(columns)",
            rule="result.form",
        ) from error


def _write_csv(path: Path, found: Finished) -> None:
    _find_table(found, ".csv").to_csv(path, index=False)


def _write_parquet(path: Path, found: Finished) -> None:
    _find_table(found, ".parquet").to_parquet(path)


def _write_packed(path: Path, found: Finished) -> None:
    if isinstance(found, MapResult):
        raise Refused(
            "a map has one packed value for each item; take .json, .npy (values of one shape), .npz or .safetensors "
            "(arrays, as item_0, item_1, …), .csv or .parquet (a row for each item)",
            rule="result.form",
        )
    data = found.packed if isinstance(found, JobResult | TrainResult) else b""
    path.write_bytes(data)


WRITERS: dict[str, Callable[[Path, Finished], None]] = {
    ".json": _write_json,
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".bin": _write_packed,
}
"""How a result is written, by the end of the file's name."""

NEEDED = {".safetensors": ("safetensors.numpy",), ".csv": ("pandas",), ".parquet": ("pandas", "pyarrow")}
"""Packages that a form needs besides those that are always here."""
