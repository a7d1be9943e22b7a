"""Results as files: JSON, NumPy's `.npy` and `.npz` (never with pickled objects), or the packed bytes as received."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from chain.base.errors import Refused
from chain.runtime.files import write_atomically
from requester.cli.output import to_json
from requester.client.outcomes import JobResult


def write_value(path: Path, found: JobResult) -> None:
    """Write a result in the form its file name asks for; any other name gets the packed value as it came.

    Raises `Refused` under `result.form` where the value does not fit the form, `Unavailable` under `file.write`.
    """
    writers = {".json": _make_json, ".npy": _make_npy, ".npz": _make_npz}
    write_atomically(path, writers.get(path.suffix.lower(), _get_packed)(found))


def _make_json(found: JobResult) -> bytes:
    return (json.dumps(to_json(found.value), allow_nan=False, indent=1) + "\n").encode()


def _make_npy(found: JobResult) -> bytes:
    if not isinstance(found.value, np.ndarray):
        raise Refused("the result is no array; write it to .json, .npz or another name", rule="result.form")
    buffer = io.BytesIO()
    np.save(buffer, found.value, allow_pickle=False)
    return buffer.getvalue()


def _make_npz(found: JobResult) -> bytes:
    value = found.value
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise Refused("only a dict with plain names as keys fits .npz; write it to .json", rule="result.form")
    arrays = {key: np.asarray(item) for key, item in value.items()}
    odd = sorted(key for key, array in arrays.items() if array.dtype.hasobject)
    if odd:
        raise Refused(f"{odd[0]!r} fits no array; write the result to .json", rule="result.form")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _get_packed(found: JobResult) -> bytes:
    return found.packed
