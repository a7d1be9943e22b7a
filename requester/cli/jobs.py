"""`tally jobs`, `result`, `logs`, `cancel`: jobs of this and earlier commands, also of killed ones."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from chain.base.units import format_credits
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.buying import HINT, print_result
from requester.cli.files import check_target
from requester.cli.progress import Progress
from requester.client.market import AsyncMarket
from requester.client.outcomes import read_cost
from requester.client.settings import get_folder
from requester.client.texts import escape, escape_line
from requester.purchase.quote import show_columns
from requester.store.jobs import JobRow, JobStore


@click.command()
@json_flag
@pass_choices
def jobs(choices: Choices) -> int:
    """List your jobs, newest first."""
    store = JobStore(get_folder())
    try:
        rows = store.list_jobs()
        costs = {row.id: read_cost(store.load_documents(row.id)) for row in rows}
    finally:
        store.close()
    if choices.as_json:
        described = [
            {
                "job": row.id.hex(),
                "title": row.title,
                "phase": row.phase,
                "signed": row.signed,
                "cost": costs[row.id][0],
                "settled": costs[row.id][2],
                "rule": row.rule,
                "text": row.text,
            }
            for row in rows
        ]
        output.print_json(jobs=described)
        return output.OK
    if not rows:
        click.echo("no jobs yet; `tally run SCRIPT --cap CREDITS` makes one")
        return output.OK
    head = ("job", "signed", "phase", "credits", "title")
    click.echo("\n".join(show_columns([head, *(_show_row(row, costs[row.id]) for row in rows)])))
    return output.OK


def _show_row(row: JobRow, cost: tuple[int, int, bool]) -> tuple[str, ...]:
    when = datetime.fromtimestamp(row.signed / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    paid = format_credits(cost[0]) if cost[2] else "-"
    return row.id.hex()[:16], when, row.phase, paid, escape_line(row.title, limit=60)


@click.command()
@click.argument("job")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write the result to a .json, .npy, .npz or .bin file."
)
@json_flag
@pass_choices
def result(choices: Choices, job: str, out: Path | None) -> int:
    """Wait for JOB (the beginning of its id) and print its result."""
    check_target(out)
    progress = Progress(quiet=choices.as_json)

    async def wait(market: AsyncMarket) -> int:
        row = market.store.find(job)
        progress.job = row.id.hex()
        async with progress.ticking():
            found = await market.result(row.id, progress.hooks)
        return print_result(found, out, as_json=choices.as_json)

    try:
        return choices.do(wait)
    except KeyboardInterrupt:
        output.say(f"tally: interrupted; {HINT.format(job=progress.job[:16])}")
        return output.INTERRUPTED


@click.command()
@click.argument("job")
@pass_choices
def logs(choices: Choices, job: str) -> int:
    """Print what JOB wrote, as it comes, until it is over."""

    async def follow(market: AsyncMarket) -> int:
        async for chunk in market.logs(market.store.find(job).id):
            click.echo(escape(chunk, limit=1 << 20), nl=False)
        return output.OK

    return choices.do(follow)


@click.command()
@click.argument("job")
@json_flag
@pass_choices
def cancel(choices: Choices, job: str) -> int:
    """Stop JOB. Once its lease is open this costs the cancelling fee; see `tally run --dry-run`."""

    async def stop(market: AsyncMarket) -> tuple[str, str]:
        row = market.store.find(job)
        return row.id.hex(), await market.cancel(row.id)

    found, text = choices.do(stop)
    if choices.as_json:
        output.print_json(job=found, text=text)
    else:
        click.echo(text)
    return output.OK
