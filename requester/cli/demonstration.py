"""`tally demo`: a whole market on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import click

from requester.cli.app import Choices, json_flag, pass_choices


@click.command()
@click.option("--keep", is_flag=True, help="Leave all parts running and print their addresses.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where the parts keep their data.")
@json_flag
@pass_choices
def demo(choices: Choices, keep: bool, directory: Path | None) -> int:
    """Start a chain, a broker and providers, buy a job, pay for it, verify the receipt."""
    return load_demo()(choices.as_json, keep, directory)


def load_demo() -> Callable[[bool, bool, Path | None], int]:
    """The demo's entry point, loaded only now: it brings processes and supervision along."""
    found = importlib.util.find_spec("requester.demo.main")
    entry: Callable[[bool, bool, Path | None], int]
    entry = importlib.import_module("requester.demo.main" if found else "requester.demo").main
    return entry
