"""The flags that `run`, `map`, `train` and `estimate` share, and what they mean as wishes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from chain.base.errors import Refused
from requester.client.data import READERS, load
from requester.client.wishes import Wishes, take_wishes

F = TypeVar("F", bound=Callable[..., Any])

_CAP_HELP = "The most the job may cost, commission included."

CAP = (click.option("--cap", metavar="CREDITS", required=True, help=_CAP_HELP),)

CAP_IF_KNOWN = (click.option("--cap", metavar="CREDITS", help=_CAP_HELP),)

LIMITS = (
    click.option("--memory", metavar="SIZE", help="Memory of a segment (default 512MiB)."),
    click.option("--wall", metavar="SPAN", help="Time a segment may run (default 5min)."),
    click.option("--within", metavar="SPAN", help="The work is done so long after signing at the latest (default 1h)."),
    click.option("--auction", metavar="SPAN", help="How long to wait for bids if somebody is silent (default 2s)."),
    click.option("--acceptance", metavar="SPAN", help="How long after delivery your silence accepts (default 10min)."),
    click.option("--cores", type=float, help="Cores of a segment (default 1)."),
    click.option("--output", metavar="SIZE", help="Largest result of a segment (default 64MiB)."),
    click.option("--package", "packages", multiple=True, metavar="NAME", help="A package it imports (default numpy)."),
    click.option("--level", type=click.Choice(["ns", "ns+cgroup"]), help="Weakest isolation that is good enough."),
    click.option("--seed", type=int, help="Seed of the job's random numbers (default 0)."),
    click.option(
        "--python", metavar="VERSION", help="Python minor version, e.g. 3.12 (default: that of this command)."
    ),
    click.option("--title", metavar="TEXT", help="Its name in `tally jobs` (default: that of the file)."),
)

DIVISION = (
    click.option("--parallelism", type=int, help="Among how many providers at a time a map is divided (default 4)."),
    click.option(
        "--tolerance",
        type=int,
        help="A map may have so many failed items; with more, what they left undone is not offered again (default 0).",
    ),
)

TARGET = (
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        help="Write the result to a .json, .npy, .npz, .safetensors, .csv, .parquet or .bin file; the files of a "
        "folder job to a directory.",
    ),
    click.option("--force", is_flag=True, help="Let -o overwrite files."),
)

SENDING = (
    click.option("--detach", is_flag=True, help="Return once the order is signed and sent."),
    click.option("--dry-run", is_flag=True, help="Show who gets what in each outcome; sign nothing."),
)


Option = Callable[[Any], Any]


def with_options(*groups: tuple[Option, ...]) -> Callable[[F], F]:
    """All options of these groups, in their order."""

    def wrap(function: F) -> F:
        wrapped: Any = function
        options: list[Any] = [option for group in groups for option in group]
        for option in reversed(options):
            wrapped = option(wrapped)
        found: F = wrapped
        return found

    return wrap


def read_wishes(given: dict[str, Any]) -> Wishes:
    """Wishes from flags."""
    return take_wishes(None, {**given, "packages": given.get("packages") or None})


def read_inputs(inputs: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=JSON` pairs; what doesn't begin like JSON may be text, `@FILE` is a file's value (`load`). Raises
    `Refused` (`input.json`), or as `load`.
    """
    values: dict[str, Any] = {}
    for pair in inputs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{pair!r} is not NAME=JSON", param_hint="--input")
        values[name] = load(text[1:]) if text.startswith("@") else _read_json(name, text)
    return values


def _read_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if text[:1] in ("{", "[", '"'):
            raise Refused(f"--input {name}: {text[:60]!r} is no JSON: {error}", rule="input.json") from error
        return text


def read_state(text: str) -> Any:
    """The first state of a train: a file of a known form, or JSON. Raises `Refused` (`input.json`), or as `load`."""
    if Path(text).suffix.lower() in READERS:
        return load(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        known = ", ".join(READERS)
        raise Refused(
            f"--state {text[:60]!r} is no JSON, and no file of a known form ({known})", rule="input.json"
        ) from error


def read_items(text: str) -> Any:
    """The items of a map: a list in .json, lines of .jsonl, rows of .npy, rows of .csv as dicts, the bytes of each file
    of a folder in the order of their names, or lines of stdin for `-`. Raises `Refused` under `map.items`, or as
    `load`.
    """
    if text == "-":
        return sys.stdin.read().splitlines()
    path, suffix = Path(text), Path(text).suffix.lower()
    try:
        if path.is_dir():
            return [one.read_bytes() for one in sorted(path.iterdir()) if one.is_file() and one.name[0] != "."]
        if suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        if suffix == ".csv":
            return _read_rows(path)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", rule="map.items") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} has a line that is no JSON: {error}", rule="map.items") from error
    found: Any = load(path) if suffix in (".json", ".npy") else None
    if found is None or isinstance(found, dict | str) or not hasattr(found, "__len__"):
        forms = ".json (a list), .jsonl, .npy (rows), .csv (rows), a folder of files, or - for lines of stdin"
        raise Refused(f"{text} holds no items; there are {forms}", rule="map.items")
    return found


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Each row as a dict by the names of the first; cells that are numbers become numbers."""
    import csv  # only a map over a table needs it

    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _read_cell(cell) for name, cell in row.items() if name} for row in csv.DictReader(file)]


def _read_cell(cell: Any) -> Any:
    kinds: tuple[Callable[[Any], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(cell)
        except (TypeError, ValueError):
            continue
    return cell
