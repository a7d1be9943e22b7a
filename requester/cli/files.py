"""Results as files: JSON, NumPy's `.npy` and `.npz` (never with pickled objects), or the packed bytes as received."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chain.base.errors import Refused
from chain.runtime.files import write_atomically
from requester.cli.output import to_json
from requester.client.outcomes import JobResult


def write_value(path: Path, found: JobResult) -> None:
    """Write a result in the form its file name asks for.

    Raises `Refused` under `output.form` (see `check_target`) or `result.form` where the value does not fit the form,
    `Unavailable` under `file.write`.
    """
    check_target(path)
    try:
        data = WRITERS[path.suffix.lower()](found)
    except Refused as error:
        kept = f"the result is kept: `tally result {found.job[:16]} -o FILE` writes it in another form"
        raise Refused(f"{error.message}; {kept}", rule=error.rule) from error
    write_atomically(path, data)


def check_target(path: Path | None) -> None:
    """Whether a result can be written there, asked before anything is signed; None is no file at all. Raises `Refused`
    under `output.form`.
    """
    if path is None:
        return
    if path.suffix.lower() not in WRITERS or path.is_dir():
        message = (
            f"-o {path} names no file of a known form; end it in .json (any value), .npy (an array), .npz (a dict)"
        )
        raise Refused(f"{message}, or .bin (the packed bytes)", rule="output.form")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent} for -o {path.name}; make it first", rule="output.form")


def _make_json(found: JobResult) -> bytes:
    return (json.dumps(to_json(found.value), allow_nan=False, indent=1) + "\n").encode()


def _make_npy(found: JobResult) -> bytes:
    if not isinstance(found.value, np.ndarray):
        raise Refused("the result is no array, so .npy can't hold it", rule="result.form")
    buffer = io.BytesIO()
    np.save(buffer, found.value, allow_pickle=False)
    return buffer.getvalue()


def _make_npz(found: JobResult) -> bytes:
    value = found.value
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise Refused("only a dict with plain names as keys fits .npz", rule="result.form")
    arrays = {key: np.asarray(item) for key, item in value.items()}
    odd = sorted(key for key, array in arrays.items() if array.dtype.hasobject)
    if odd:
        raise Refused(f"{odd[0]!r} of the result fits no array, so .npz can't hold it", rule="result.form")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _get_packed(found: JobResult) -> bytes:
    return found.packed


WRITERS: dict[str, Callable[[JobResult], bytes]] = {
    ".json": _make_json,
    ".npy": _make_npy,
    ".npz": _make_npz,
    ".bin": _get_packed,
}
"""How a result is written, by the end of the file's name."""
