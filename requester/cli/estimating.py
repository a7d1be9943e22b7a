"""`tally estimate`: what a job would meet on the market, and what one segment of it takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused
from chain.base.units import format_credits
from chain.ledger.terms.agreement import Kind
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.options import (
    CAP_IF_KNOWN,
    DIVISION,
    LIMITS,
    read_inputs,
    read_items,
    read_state,
    read_wishes,
    with_options,
)
from requester.client.buying import Estimated
from requester.client.market import AsyncMarket
from requester.client.packing import Work, make_map, make_run, make_train, pack_source, split_source
from requester.client.sampling import Sample, sample_work
from requester.client.texts import escape_line, show_size, show_span


@click.command(
    epilog="""\b
Examples:
  tally estimate train.py --memory 1GiB --wall 10min
  tally estimate sweep.py:score --items settings.json --cap 5
  tally estimate fit.py --state '{"epoch": 0}' --steps 20 --sample
"""
)
@click.argument("script", metavar="SCRIPT|FOLDER[:FUNCTION]")
@click.argument("arguments", nargs=-1)
@click.option("--items", metavar="ITEMS", help="It is a map over these items, as for `tally map`.")
@click.option("--state", metavar="FILE|JSON", help="The first state of a train.")
@click.option("--steps", type=click.IntRange(min=1), help="It is a train of so many steps.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=JSON", help="A value in the script's dict `inputs`.")
@with_options(CAP_IF_KNOWN, LIMITS, DIVISION)
@click.option(
    "--sample", is_flag=True, help="Run one segment here, unprotected: your own code on your own machine. Measures it."
)
@json_flag
@pass_choices
def estimate(
    choices: Choices,
    /,
    script: str,
    arguments: tuple[str, ...],
    items: str | None,
    state: str | None,
    steps: int | None,
    inputs: tuple[str, ...],
    sample: bool,
    **flags: Any,
) -> int:
    """Say what a job would meet just now: how many providers fit, at which list price, and what would bring more.

    Nothing is signed, and no --cap is needed. Bids may differ from list prices.
    """
    wanted = read_wishes(flags)
    work = _make_work(script, arguments, items, state, steps, read_inputs(inputs))
    measured = None
    if sample:
        output.say("running one segment here, as yourself and without a sandbox")
        measured = sample_work(work)

    async def ask(market: AsyncMarket) -> int:
        found = await market.estimate_work(work, wanted)
        if choices.as_json:
            output.print_json(**describe(found), sample=None if measured is None else _describe_sample(measured))
        else:
            _print(found, measured)
        return output.OK

    return choices.do(ask)


def _make_work(
    script: str,
    arguments: tuple[str, ...],
    items: str | None,
    state: str | None,
    steps: int | None,
    inputs: dict[str, Any],
) -> Work:
    if items is not None and steps is not None:
        raise Refused("--items makes it a map, --steps a train; take one", rule="estimate.kind")
    if (steps is None) is not (state is None):
        raise Refused("a train has both --state and --steps", rule="estimate.kind")
    path, function = split_source(script)
    if items is not None:
        return make_map(pack_source(path, Kind.MAP, function), read_items(items))
    if steps is not None and state is not None:
        return make_train(pack_source(path, Kind.TRAIN, function), read_state(state), steps)
    return make_run(pack_source(Path(script)), arguments, inputs)


def describe(found: Estimated) -> dict[str, Any]:
    """An estimate as plain members, amounts in micro-credits."""
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


def _describe_sample(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}


def _print(found: Estimated, sample: Sample | None) -> None:
    click.echo(f"segments   {found.segments}")
    click.echo(f"providers  {found.matching} of {found.providers} fit")
    if found.matching:
        price, likely, median = (format_credits(one) for one in (found.price, found.likely, found.median))
        click.echo(f"price      {price} credits per segment at the lowest list price")
        click.echo(f"likely     {likely} credits in all, commission included; {median} at the middle one")
    if found.cap is not None:
        click.echo(f"at most    {format_credits(found.cap)} credits")
    if found.advice:
        click.echo(f"advice     {escape_line(found.advice, limit=500)}")
    if sample is not None:
        click.echo(
            f"sample     one segment took {show_span(sample.wall_ms)} and {show_size(sample.peak_bytes)} here"
            f"\n           try --wall {sample.wall} --memory {sample.memory}"
        )
