"""`tally jobs`, `result`, `logs`, `cancel`: jobs of this and earlier commands, also of killed ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from broker.protocol.jobs import Entry
from chain.base.units import format_credits
from chain.runtime.clock import SystemClock
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices, pass_job
from requester.cli.buying import HINT, advising
from requester.cli.files import check_target
from requester.cli.options import TARGET, with_options
from requester.cli.printing import print_result, say_retention, show_left
from requester.cli.progress import Progress
from requester.client.costs import Cost, count_failed, read_cost, read_kept_until
from requester.client.market import AsyncMarket
from requester.client.reading import count_here
from requester.client.settings import get_folder
from requester.client.texts import escape, escape_line
from requester.client.timing import describe_retention, is_going_soon
from requester.purchase.quote import show_columns
from requester.store.jobs import JobRow, JobStore


@dataclass(frozen=True)
class JobLine:
    """A job as it is listed: of its `total` segments `here` have their outputs in the store, and `failed` have none
    because their program failed.
    """

    row: JobRow
    kind: str
    cost: Cost
    here: int
    failed: int
    total: int
    kept_until: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing more is to be had."""
        return self.here + self.failed >= self.total


def read_line(store: JobStore, row: JobRow) -> JobLine:
    """One line of the list."""
    documents = store.load_documents(row.id)
    total = documents.order.body.segments
    failed = count_failed(documents.leases)
    here = count_here(store, row, documents) - failed
    kind = documents.spec.kind.value
    return JobLine(row, kind, read_cost(documents), here, failed, total, read_kept_until(documents))


@click.command(epilog="\b\nExamples:\n  tally jobs\n  tally jobs --json")
@json_flag
@pass_choices
def jobs(choices: Choices) -> int:
    """List your jobs, newest first: segments whose results are here, cost so far, and how long the broker keeps
    outputs.
    """
    store = JobStore(get_folder())
    try:
        lines = [read_line(store, row) for row in store.list_jobs()]
    finally:
        store.blobs.close()
        store.close()
    if choices.as_json:
        output.print_json(jobs=[_describe(line) for line in lines])
        return output.OK
    if not lines:
        click.echo("no jobs yet; `tally run SCRIPT --cap CREDITS` makes one")
        return output.OK
    now = SystemClock().now()
    head = ("job", "signed", "kind", "phase", "here", "credits", "kept until", "title")
    click.echo("\n".join(show_columns([head, *(_show(line, now) for line in lines)])))
    for line in lines:
        if not line.is_whole and is_going_soon(line.kept_until, now):
            say_retention(line.row.id.hex(), line.kept_until, here=False, quiet=False)
    return output.OK


def _describe(line: JobLine) -> dict[str, Any]:
    row = line.row
    return {
        "job": row.id.hex(),
        "title": row.title,
        "kind": line.kind,
        "phase": row.phase,
        "signed": row.signed,
        "segments": line.total,
        "here": line.here,
        "failed": line.failed,
        "cost": line.cost.total,
        "settled": line.cost.settled,
        "kept_until": line.kept_until,
        "rule": row.rule,
        "text": row.text,
    }


def _show(line: JobLine, now: int) -> tuple[str, ...]:
    row = line.row
    when = datetime.fromtimestamp(row.signed / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    paid = format_credits(line.cost.total) if line.cost.total or line.cost.settled else "-"
    here, left = f"{line.here}/{line.total}", show_left(line.kept_until, now)
    phase = f"{row.phase}, {line.failed} failed" if line.failed else row.phase
    return row.id.hex()[:16], when, line.kind, phase, here, paid, left, escape_line(row.title, limit=60)


@click.command(
    epilog="""\b
Examples:
  tally result 3f2a
  tally result 3f2a -o weights.safetensors
  tally result 3f2a -o results               (a directory, for the files of a folder job)
"""
)
@pass_job
@click.option("--partial", is_flag=True, help="Take the values that came, even where some segments have none.")
@with_options(TARGET)
@json_flag
@pass_choices
def result(choices: Choices, /, job: str, out: Path | None, force: bool, partial: bool) -> int:
    """Wait for JOB (the beginning of its id) and print its result."""
    check_target(out, force=force)
    progress = Progress(quiet=choices.as_json)

    async def wait(market: AsyncMarket) -> int:
        row = market.store.find(job)
        documents = market.store.load_documents(row.id)
        check_target(out, folder=documents.spec.entry is Entry.FOLDER, force=force)
        here = count_here(market.store, row, documents) == documents.order.body.segments
        say_retention(row.id.hex(), read_kept_until(documents), here=here, quiet=choices.as_json)
        progress.job, progress.total = row.id.hex(), documents.order.body.segments
        async with progress.ticking():
            with advising(row.id.hex()):
                found = await market.result(row.id, progress.hooks, partial=partial)
        return print_result(found, out, force=force, as_json=choices.as_json)

    try:
        with output.naming(lambda: progress.job):
            return choices.do(wait)
    except KeyboardInterrupt:
        output.say(f"tally: interrupted; {HINT.format(job=progress.job[:16])}")
        return output.INTERRUPTED


@click.command(epilog="\b\nExamples:\n  tally logs 3f2a\n  tally logs 3f2a --json")
@pass_job
@json_flag
@pass_choices
def logs(choices: Choices, job: str) -> int:
    """Print what JOB wrote, as it comes, until it is over; what it reported is shown by `tally watch`."""

    async def follow(market: AsyncMarket) -> int:
        chunks: list[bytes] = []
        async for chunk in market.logs(market.store.find(job).id):
            if choices.as_json:
                chunks.append(chunk)
            else:
                click.echo(escape(chunk, limit=1 << 20), nl=False)
        if choices.as_json:
            row = market.store.find(job)
            text = b"".join(chunks).decode("utf-8", "replace")
            output.print_json(job=row.id.hex(), log=text, metrics=market.metrics(row.id))
        return output.OK

    return choices.do(follow)


@click.command(epilog="\b\nExamples:\n  tally cancel 3f2a")
@pass_job
@json_flag
@pass_choices
def cancel(choices: Choices, job: str) -> int:
    """Stop JOB: nothing more of it is offered, and its leases end. A lease that is open costs the cancelling fee; see
    `tally run --dry-run`.
    """

    async def stop(market: AsyncMarket) -> tuple[str, str]:
        row = market.store.find(job)
        return row.id.hex(), await market.cancel(row.id)

    found, text = choices.do(stop)
    if choices.as_json:
        output.print_json(job=found, text=text)
    else:
        click.echo(text)
    return output.OK


def describe_kept(line: JobLine, now: int) -> str:
    """Whether a job's outputs are here, and else how long the broker keeps them."""
    return "all outputs are here" if line.is_whole else describe_retention(line.kept_until, now)
