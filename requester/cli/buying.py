"""`tally run`, `map`, `train`: sign an order for a script or a folder, follow it, print its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from chain.ledger.terms.agreement import Kind
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.files import check_target
from requester.cli.options import (
    CAP,
    DIVISION,
    LIMITS,
    SENDING,
    TARGET,
    read_inputs,
    read_items,
    read_state,
    read_wishes,
    with_options,
)
from requester.cli.passphrases import open_account
from requester.cli.printing import print_result
from requester.cli.progress import Progress
from requester.client.market import AsyncMarket
from requester.client.outcomes import JobFailed
from requester.client.packing import Work, make_map, make_run, make_train, pack_source, split_source
from requester.purchase.quote import Quote, show_quote

HINT = "the job goes on: `tally result {job}` waits for it, `tally cancel {job}` stops it"


@click.command(
    epilog="""\b
Examples:
  tally run train.py --cap 2 --memory 1GiB --wall 10min
  tally run train.py --cap 2 --input rate=0.1 --input data=@digits.npz -o weights.npz
  tally run project/ --cap 2 -o results      (project/main.py, and what it leaves in /job/outputs)
  tally run train.py --cap 2 --detach        (then: tally watch JOB)
"""
)
@click.argument("script", metavar="SCRIPT|FOLDER", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1)
@with_options(CAP, LIMITS)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=JSON",
    help="A value in the script's dict `inputs`. What begins with {, [ or \" has to be JSON, @FILE is the value of a "
    ".npy, .npz, .safetensors, .json, .csv or .parquet file; what is none is text.",
)
@with_options(TARGET, SENDING)
@json_flag
@pass_choices
def run(
    choices: Choices,
    /,
    script: Path,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    **flags: Any,
) -> int:
    """Run SCRIPT, or the main.py of FOLDER, on the market.

    It may write 1 MiB to stdout and stderr together; a job that writes more fails.

    The script finds ARGUMENTS in `sys.argv` and leaves its result in the global `result`: plain values and NumPy
    arrays. Put `--` before arguments that begin with a dash. A FOLDER travels as a whole, but for what is hidden; the
    files that it writes to the folder /job/outputs come back.

    A provider may let the job wait behind others as long as the deadline (--within) leaves time for its wall limit:
    the sooner the deadline, the fewer can promise it.
    """
    check_target(flags["out"], folder=script.is_dir(), force=flags["force"])
    given = read_inputs(inputs)
    return buy(choices, lambda: make_run(pack_source(script), arguments, given), flags)


@click.command(
    name="map",
    epilog="""\b
Examples:
  tally map sweep.py settings.json --cap 5 --parallelism 8
  tally map images.py:embed photos/ --cap 3 -o vectors.npy
  tally map clean.py rows.csv --cap 1 -o clean.csv
  seq 100 | tally map prime.py:check - --cap 1
""",
)
@click.argument("script", metavar="SCRIPT[:FUNCTION]")
@click.argument("items", metavar="ITEMS")
@with_options(CAP, LIMITS, DIVISION)
@click.option("--partial", is_flag=True, help="Take the values that came, even where some items have none.")
@with_options(TARGET, SENDING)
@json_flag
@pass_choices
def map_items(choices: Choices, /, script: str, items: str, **flags: Any) -> int:
    """Call FUNCTION of SCRIPT (or of a folder's main.py) for each of ITEMS, divided among providers.

    ITEMS: a list in a .json file, a .jsonl file, rows of .npy, rows of .csv as dicts, a folder of files (the bytes of
    each), or - for the lines of stdin. FUNCTION need not be named where there is only one. Each item is a segment that
    is paid by itself; the result is the list of their values in the order of the items.

    The first failed item ends its provider's share: by default (--tolerance 0) what is left of the share is not offered
    again, and the job fails. --partial, or later `tally result JOB --partial`, gives the values that came nevertheless.
    """
    check_target(flags["out"], folder=False, force=flags["force"])
    path, function = split_source(script)
    return buy(choices, lambda: make_map(pack_source(path, Kind.MAP, function), read_items(items)), flags)


@click.command(
    epilog="""\b
Examples:
  tally train fit.py --state '{"epoch": 0}' --steps 20 --cap 4
  tally train fit.py:epoch --state weights.safetensors --steps 20 --cap 4 -o trained.safetensors
"""
)
@click.argument("script", metavar="SCRIPT[:STEP]")
@click.option("--state", required=True, metavar="FILE|JSON", help="The first state: a file as for --input, or JSON.")
@click.option("--steps", required=True, type=click.IntRange(min=1), help="How many steps.")
@with_options(CAP, LIMITS)
@click.option("--partial", is_flag=True, help="Take the last state that came, even where not all steps were done.")
@with_options(TARGET, SENDING)
@json_flag
@pass_choices
def train(choices: Choices, /, script: str, state: str, steps: int, **flags: Any) -> int:
    """Call `state = STEP(state, index)` of SCRIPT (or of a folder's main.py) so many times; the last state is the
    result.

    STEP is `step` unless another function is named. Each step is a segment that is paid by itself. If a provider
    leaves, another one goes on from the last state.
    """
    check_target(flags["out"], folder=False, force=flags["force"])
    path, function = split_source(script)
    first = read_state(state)
    return buy(choices, lambda: make_train(pack_source(path, Kind.TRAIN, function), first, steps), flags)


def buy(choices: Choices, make: Callable[[], Work], flags: dict[str, Any]) -> int:
    """Sign, send, follow, print, as the flags say."""
    out, force, detach, dry_run, partial = (flags.pop(name, False) for name in _HOW)
    wanted, work = read_wishes(flags), make()
    progress = Progress(quiet=choices.as_json, total=work.segments)

    async def go(market: AsyncMarket) -> int:
        if dry_run:
            _print_quote(await market.quote(work, wanted), as_json=choices.as_json)
            return output.OK
        async with progress.ticking():
            job = await market.sign(work, wanted, progress.hooks)
            progress.job = job.hex()
            if detach:
                await market.send(job, progress.hooks)
                return _print_sent(job.hex(), as_json=choices.as_json)
            with advising(job.hex()):
                found = await market.result(job, progress.hooks, partial=bool(partial))
        return print_result(found, out or None, force=bool(force), as_json=choices.as_json)

    try:
        with output.naming(lambda: progress.job):
            return choices.do(go, open_account if dry_run else None)
    except KeyboardInterrupt:
        hint = HINT.format(job=progress.job[:16]) if progress.job else "nothing was signed"
        output.say(f"tally: interrupted; {hint}")
        return output.INTERRUPTED


@contextlib.contextmanager
def advising(job: str) -> Iterator[None]:
    """A failure that left values says how to get them."""
    try:
        yield
    except JobFailed as error:
        if error.result is not None and error.result.came:
            error.add_note(f"`tally result {job[:16]} --partial` gives what came nevertheless")
        raise


_HOW = ("out", "force", "detach", "dry_run", "partial")
"""Flags that are no wishes."""


def _print_sent(job: str, *, as_json: bool) -> int:
    if as_json:
        output.print_json(job=job)
    else:
        click.echo(job)
    return output.OK


def _print_quote(quote: Quote, *, as_json: bool) -> None:
    if not as_json:
        click.echo(show_quote(quote))
        return
    rows = [{name: getattr(row, name) for name in row.__struct_fields__} for row in quote.outcomes]
    output.print_json(
        cap=quote.cap,
        limit=quote.limit,
        segments=quote.segments,
        leases=quote.leases,
        commission_bps=quote.commission_bps,
        deadline=quote.deadline,
        outcomes=rows,
    )
