"""Files as values: what `requester.load` reads, without running anything that stands in them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chain.base.errors import Refused


def load(path: str | Path) -> Any:
    """The value of a file, by its ending, ready to be an argument of a job.

    - `.npy`: an array, mapped from the file: it is read once, when it is sent
    - `.npz`, `.safetensors`: a dict of arrays
    - `.json`: plain values
    - `.csv`, `.parquet`: a table of pandas, or of Arrow where only that is installed

    Nothing is ever unpickled. Raises `Refused`: `load.form` for another ending or a file that is not what it says,
    `load.package` where a package is missing, `load.file` where it can't be read.

        from pathlib import Path
        from requester import load

        Path("rates.json").write_text("[0.1, 0.01]")
        print(load("rates.json"))
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Refused(f"{path} has no known form; there are {', '.join(READERS)}", rule="load.form")
    try:
        return reader(path)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror or error}", rule="load.file") from error
    except Refused:
        raise
    except Exception as error:  # each package has errors of its own for a file that is none
        text = f"{path} cannot be read as {path.suffix.lower()}: {type(error).__name__}: {error}"
        raise Refused(text, rule="load.form") from error


def need(package: str, why: str) -> Any:
    """A package that is no dependency of this one; raises `Refused` under `load.package` with what to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        raise Refused(f"{why} needs the package {name}: pip install {name}", rule="load.package") from error


def _load_npy(path: Path) -> Any:
    return importlib.import_module("numpy").load(path, mmap_mode="r", allow_pickle=False)


def _load_npz(path: Path) -> Any:
    with importlib.import_module("numpy").load(path, allow_pickle=False) as found:
        return dict(found.items())


def _load_safetensors(path: Path) -> Any:
    return need("safetensors.numpy", f"{path}").load_file(path)


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _load_csv(path: Path) -> Any:
    return _find("pandas").read_csv(path) if _find("pandas") else need("pyarrow.csv", f"{path}").read_csv(path)


def _load_parquet(path: Path) -> Any:
    table = need("pyarrow.parquet", f"{path}").read_table(path)
    return table.to_pandas() if _find("pandas") else table


def _find(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        return None


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".safetensors": _load_safetensors,
    ".json": _load_json,
    ".csv": _load_csv,
    ".parquet": _load_parquet,
}
"""How a file is read, by the end of its name."""
