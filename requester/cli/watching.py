"""`tally watch`: a job as it happens; on a terminal a view drawn over itself, else lines, with --json objects."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import click

from chain.base.units import format_credits
from chain.runtime.clock import SystemClock
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices, pass_job
from requester.cli.jobs import describe_kept, read_line
from requester.cli.printing import say_retention
from requester.cli.progress import Progress as Printer
from requester.cli.progress import name_provider, show_metric
from requester.client.board import Progress
from requester.client.market import AsyncMarket
from requester.client.news import Hooks, News
from requester.client.texts import escape_line
from requester.client.timing import describe_retention
from requester.purchase.phases import Phase

PULSE_SECONDS = 0.25
"""How often the view is drawn."""

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32
MAX_METRICS = 12
MAX_LINES = 6


@click.command(epilog="\b\nExamples:\n  tally watch 3f2a\n  tally watch 3f2a --json | jq .done")
@pass_job
@json_flag
@pass_choices
def watch(choices: Choices, job: str) -> int:
    """Watch JOB until it is over: segments per provider, metrics, cost so far, how long outputs are kept.

    It is driven too, as by `tally result`. Ctrl-C ends the watching; the job goes on.
    """

    async def look(market: AsyncMarket) -> int:
        row = market.store.find(job)
        if choices.as_json:
            return await _stream(market, row.id)
        if not output.is_terminal():
            return await _print_lines(market, row.id)
        return await _draw(market, row.id)

    try:
        return choices.do(look)
    except KeyboardInterrupt:
        output.say("\ntally: no longer watching; the job goes on")
        return output.INTERRUPTED


async def _stream(market: AsyncMarket, job: bytes) -> int:
    """One JSON object a line, the last with the outcome."""
    hooks = Hooks(on_news=lambda news: output.print_json(**describe_news(news)))
    with market.get_board(job).listening(hooks):
        await market.follow(job)
    line = read_line(market.store, market.store.get(job))
    output.print_json(
        kind="over",
        job=job.hex(),
        phase=line.row.phase,
        rule=line.row.rule,
        text=line.row.text,
        done=line.here,
        failed=line.failed,
        total=line.total,
        cost=line.cost.total,
        settled=line.cost.settled,
        kept_until=line.kept_until,
    )
    return output.OK


def describe_news(news: News) -> dict[str, Any]:
    """News as plain members; what is empty is left out."""
    members = {name: getattr(news, name) for name in news.__dataclass_fields__ if getattr(news, name)}
    members["kind"] = str(news.kind)
    if news.output:
        members["output"] = news.output.decode("utf-8", "replace")
    if news.indices:
        members["indices"] = list(news.indices)
    return members


async def _print_lines(market: AsyncMarket, job: bytes) -> int:
    printer = Printer(total=market.get_board(job).total)
    printer.job = job.hex()
    async with printer.ticking():
        with market.get_board(job).listening(printer.hooks):
            await market.follow(job)
    _say_end(market, job)
    return output.OK


def _say_end(market: AsyncMarket, job: bytes) -> None:
    line, now = read_line(market.store, market.store.get(job)), SystemClock().now()
    reason = f": {escape_line(line.row.text, limit=500)}" if line.row.text else ""
    credits, failed = format_credits(line.cost.total), f", {line.failed} failed" if line.failed else ""
    click.echo(f"{line.row.phase}{reason}; {line.here} of {line.total} segments{failed}, {credits} credits")
    click.echo(describe_kept(line, now))
    say_retention(job.hex(), line.kept_until, here=line.is_whole, quiet=False)


async def _draw(market: AsyncMarket, job: bytes) -> int:
    view = View(market.store.get(job).title)
    task = market.follow(job)
    board = market.get_board(job)
    with board.listening(Hooks(on_news=view.hear)):
        while not task.done():
            view.draw(board.show(), board.metrics)
            await asyncio.wait((task,), timeout=PULSE_SECONDS)
    view.draw(board.show(), board.metrics)
    task.result()
    _say_end(market, job)
    return output.OK


class View:
    """The picture of one job, drawn over itself on stderr."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._drawn = 0
        self._lines: list[str] = []

    def hear(self, news: News) -> None:
        """Keep the last lines of output and trouble."""
        if news.kind == "output":
            text = news.output.decode("utf-8", "replace")
            self._lines += [escape_line(line) for line in text.splitlines() if line.strip()]
        elif news.kind == "trouble":
            self._lines.append(f"{escape_line(news.text)} [{escape_line(news.rule)}]; trying on")
        self._lines = self._lines[-MAX_LINES:]

    def draw(self, progress: Progress, metrics: list[dict[str, Any]]) -> None:
        """Draw it in the place of the one before."""
        width, height = shutil.get_terminal_size()
        lines = render(self._title, progress, metrics, SystemClock().now()) + self._lines
        shown = [line[: width - 1] for line in lines[: max(3, height - 2)]]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        click.echo(up + "".join(f"\r\x1b[K{line}\n" for line in shown) + "\x1b[J", err=True, nl=False, color=True)
        self._drawn = len(shown)


def render(title: str, progress: Progress, metrics: list[dict[str, Any]], now: int) -> list[str]:
    """The lines of the picture; nothing in them can move a cursor."""
    done, total = progress.done, progress.total
    filled = round(24 * done / max(1, total))
    failed = f", {progress.failed} failed" if progress.failed else ""
    lines = [
        f"{escape_line(title, limit=60)}: {progress.phase}",
        f"[{'█' * filled}{'·' * (24 - filled)}] {done} of {total} segments are here{failed}",
        f"{format_credits(progress.cost)} credits so far, commission included",
    ]
    if progress.kept_until and not Phase(progress.phase).is_over:
        lines.append(describe_retention(progress.kept_until, now))
    for lease in progress.leases:
        span = f"{lease.first}-{lease.first + lease.count - 1}" if lease.count > 1 else f"{lease.first}"
        lines.append(
            f"  {name_provider(lease.provider)}  segments {span:<12} {lease.phase:<10} "
            f"{max(lease.told, lease.served)} done, {lease.served} here of {lease.count}"
        )
    return lines + render_metrics(metrics)


def render_metrics(metrics: list[dict[str, Any]]) -> list[str]:
    """The last value of each metric, with a small line of how it went."""
    series: dict[str, list[Any]] = {}
    for row in metrics:
        for name, value in row.items():
            if name != "segment":
                series.setdefault(name, []).append(value)
    return [
        f"  {escape_line(name, limit=24):<16} {show_metric(values[-1]):>12}  {draw_spark(values)}".rstrip()
        for name, values in list(series.items())[:MAX_METRICS]
    ]


def draw_spark(values: list[Any], width: int = SPARK_WIDTH) -> str:
    """Numbers as a line of bars, the last `width` of them; empty where there are fewer than two."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    numbers = numbers[-width:]
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((number - low) * scale)] for number in numbers)
