"""`tally run`: sign an order for a script, follow it, print its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.files import check_target, write_value
from requester.cli.progress import Progress
from requester.client.market import AsyncMarket, split_wishes
from requester.client.outcomes import JobResult
from requester.client.wishes import pack_script
from requester.purchase.quote import Quote, show_quote

HINT = "the job goes on: `tally result {job}` waits for it, `tally cancel {job}` stops it"


@click.command()
@click.argument("script", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("arguments", nargs=-1)
@click.option("--cap", metavar="CREDITS", help="The most the job may cost, commission included.")
@click.option("--memory", metavar="SIZE", help="Memory of the job (default 512MiB).")
@click.option("--wall", metavar="SPAN", help="Time the job may run (default 5min).")
@click.option("--within", metavar="SPAN", help="The work is done so long after signing at the latest (default 1h).")
@click.option("--auction", metavar="SPAN", help="How long to wait for bids if somebody is busy or silent (default 2s).")
@click.option("--acceptance", metavar="SPAN", help="How long after delivery your silence accepts (default 10min).")
@click.option("--cores", type=float, help="Cores of the job (default 1).")
@click.option("--output", metavar="SIZE", help="Largest result (default 64MiB).")
@click.option("--package", "packages", multiple=True, metavar="NAME", help="A package the job imports (default numpy).")
@click.option("--level", type=click.Choice(["ns", "ns+cgroup"]), help="Weakest isolation that is good enough.")
@click.option("--seed", type=int, help="Seed of the job's random numbers (default 0).")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=JSON",
    help="A value in the script's dict `inputs`. What begins with {, [ or \" has to be JSON; what is none is text.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write the result to a .json, .npy, .npz or .bin file."
)
@click.option("--detach", is_flag=True, help="Return once the order is signed and sent.")
@click.option("--dry-run", is_flag=True, help="Show who gets what in each outcome; sign nothing.")
@json_flag
@pass_choices
def run(
    choices: Choices,
    /,
    script: Path,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    packages: tuple[str, ...],
    out: Path | None,
    detach: bool,
    dry_run: bool,
    **wishes: Any,
) -> int:
    """Run SCRIPT on the market.

    It may write 1 MiB to stdout and stderr together; a job that writes more fails.

    The script finds ARGUMENTS in `sys.argv` and leaves its result in the global `result`: plain values and NumPy
    arrays. Put `--` before arguments that begin with a dash.

    A provider may let the job wait behind others as long as the deadline (--within) leaves time for its wall limit:
    the sooner the deadline, the fewer can promise it.
    """
    check_target(out)
    given = _read_inputs(inputs)
    wanted, _ = split_wishes(None, {**wishes, "packages": packages or None})
    work = pack_script(script, arguments, given)
    progress = Progress(quiet=choices.as_json)

    async def buy(market: AsyncMarket) -> int:
        if dry_run:
            _print_quote(await market.quote(work, wanted), as_json=choices.as_json)
            return output.OK
        async with progress.ticking():
            job = await market.sign(work, wanted, progress.hooks)
            progress.job = job.hex()
            if detach:
                await market.send(job, progress.hooks)
                return _print_sent(job.hex(), as_json=choices.as_json)
            found = await market.result(job, progress.hooks)
        return print_result(found, out, as_json=choices.as_json)

    try:
        return choices.do(buy)
    except KeyboardInterrupt:
        hint = HINT.format(job=progress.job[:16]) if progress.job else "nothing was signed"
        output.say(f"tally: interrupted; {hint}")
        return output.INTERRUPTED


def print_result(found: JobResult, out: Path | None, *, as_json: bool) -> int:
    """Show a result and what it cost; write it to a file if one is named."""
    if out is not None:
        write_value(out, found)
    if as_json:
        output.print_json(
            job=found.job,
            value=output.to_json(found.value) if out is None else None,
            file=None if out is None else str(out),
            provider=found.provider.hex(),
            cost=found.cost,
            commission=found.commission,
            settled=found.settled,
            checks=found.checks,
            cpu_ms=found.usage.cpu_ms,
            wall_ms=found.usage.wall_ms,
            peak_bytes=found.usage.peak_bytes,
        )
        return output.OK
    click.echo(output.show_value(found.value) if out is None else f"wrote {out}")
    paid = "paid" if found.settled else "to be paid"
    output.say(f"{found.credits} credits {paid}, commission included; {found.checks} checks passed")
    return output.OK


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
        commission_bps=quote.commission_bps,
        deadline=quote.deadline,
        outcomes=rows,
    )


def _read_inputs(inputs: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=JSON` pairs; what doesn't begin like JSON may be text. Raises `Refused` (`input.json`)."""
    values: dict[str, Any] = {}
    for pair in inputs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{pair!r} is not NAME=JSON", param_hint="--input")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError) as error:
            if text[:1] in ("{", "[", '"'):
                raise Refused(f"--input {name}: {text[:60]!r} is no JSON: {error}", rule="input.json") from error
            values[name] = text
    return values
