"""`tally demo`: a whole market on this machine."""

from __future__ import annotations

import importlib
import importlib.util
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
    found = importlib.util.find_spec("requester.demo.main")
    module = importlib.import_module("requester.demo.main" if found else "requester.demo")
    code: int = module.main(choices.as_json, keep, directory)
    return code
