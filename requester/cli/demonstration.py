"""`tally demo`: a whole market on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import click

from requester.cli.app import Choices, json_flag, pass_choices


@click.command()
@click.option("--keep", is_flag=True, help="Leave all parts running until Ctrl-C and print their addresses.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for all data and case files, which is kept.",
)
@json_flag
@pass_choices
def demo(choices: Choices, keep: bool, directory: Path | None) -> int:
    """Start a chain, a broker and three providers, let two requesters buy three jobs (a map, a train, a run), pay for
    them, verify their case files.

    Its folder goes when it ends, unless --directory names one.
    """
    return load_demo()(choices.as_json, keep, directory)


def load_demo() -> Callable[[bool, bool, Path | None], int]:
    """The demo's entry point, loaded only now: it brings processes and supervision along."""
    found = importlib.util.find_spec("requester.demo.main")
    entry: Callable[[bool, bool, Path | None], int]
    entry = importlib.import_module("requester.demo.main" if found else "requester.demo").main
    return entry
