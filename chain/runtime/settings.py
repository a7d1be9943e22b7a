"""Settings: a TOML file, overridden by TALLY_… variables, overridden by flags. Unknown names are refused, so that a
typing error is not silence.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chain.base.errors import Refused

T = TypeVar("T", bound=msgspec.Struct)


def load_settings(kind: type[T], path: Path | None, prefix: str, flags: Mapping[str, object]) -> T:
    """Settings of type `kind`.

    `path` may be None or absent. A field `data_folder` is read from the variable `<prefix>DATA_FOLDER`. Flags that
    are None are as if not given. Raises `Refused` under `settings.form`, `settings.name`
    or `settings.value`.
    """
    names = {field.name for field in msgspec.structs.fields(kind)}
    merged: dict[str, Any] = _read_file(path) if path is not None and path.exists() else {}
    for name in names:
        variable = os.environ.get(f"{prefix}{name.upper()}")
        if variable is not None:
            merged[name] = variable
    merged.update({name: value for name, value in flags.items() if value is not None})
    unknown = sorted(set(merged) - names)
    if unknown:
        raise Refused(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}", rule="settings.name")
    try:
        return msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(f"settings: {error}", rule="settings.value") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refused(f"{path}: {error}", rule="settings.form") from error
