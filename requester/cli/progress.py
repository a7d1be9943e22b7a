"""What the command shows while a job runs: its id at once, phases, leases, metrics, live output, and after two seconds
of silence how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import click

from chain.base.keys import show_key
from chain.base.units import format_credits
from requester.cli.output import is_terminal, say
from requester.client.news import Hooks, News
from requester.client.texts import escape, escape_line, show_size
from requester.purchase.quote import Quote

QUIET_SECONDS = 2.0
"""Silence after which the command shows that it still works."""

KEY_SHOWN = 12
"""Characters of a provider's did:key in a line."""

PLAIN_SECONDS = 30.0
"""The same where stderr is no terminal: a line in a log file now and then."""

WORDS = {
    "sent": "the broker has the order",
    "announced": "providers are bidding",
    "awarded": "a provider won; its lease is being opened",
    "running": "the lease is final; the provider is working",
    "delivered": "the result is being fetched and checked",
    "accepted": "what came passed every check and is accepted",
}
"""Phases that are worth a line, in their order; that a job is paid stands at its end, beside its result or failure."""


class Progress:
    """Prints news of one job to stderr. `job` is its id once it is signed; `total` its segments."""

    def __init__(self, *, quiet: bool = False, total: int = 1) -> None:
        self.job = ""
        self._quiet = quiet
        self.total = total
        self._what = "signing"
        self._phase = ""
        self._served: dict[str, int] = {}
        self._since = self._last = time.monotonic()
        self._drawn = False
        self._trouble = ""

    @property
    def hooks(self) -> Hooks:
        """Callbacks that feed this progress."""
        return Hooks(on_quote=self._on_quote, on_news=self._on_news)

    @contextlib.asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """Within, a sign of life is shown after two seconds of silence."""
        task = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield
        finally:
            task.cancel()
            self._wipe()

    def _on_quote(self, quote: Quote) -> None:
        if not self._quiet:
            cap, limit = format_credits(quote.cap), format_credits(quote.limit)
            each = "" if quote.segments == 1 else f" for each of {quote.segments} segments"
            say(f"at most {cap} credits; bids up to {limit} credits are taken{each}")

    def _on_news(self, news: News) -> None:
        match news.kind:
            case "signed":
                self.job = news.job
                say(f"job {news.job}")
            case "output":
                self._print(escape(news.output).rstrip("\n"))
            case "phase" if news.phase in WORDS and not self._is_past(news.phase):
                self._phase, self._what = news.phase, WORDS[news.phase]
                self._print(self._what)
            case "progress":
                if self.total == 1:
                    self._what = f"{news.done} of {news.total} segments done"
            case "trouble" if news.rule != self._trouble:
                self._trouble = news.rule
                self._print(f"{escape_line(news.text, limit=500)} [{escape_line(news.rule)}]; trying on")
            case _:
                self._show_work(news)

    def _is_past(self, phase: str) -> bool:
        """Whether a later phase was shown already: leases that move apart tell of theirs in any order."""
        order = list(WORDS)
        return self._phase in order and order.index(phase) < order.index(self._phase)

    def _show_work(self, news: News) -> None:
        match news.kind:
            case "lease" if self.total > 1:
                self._print(f"{name_provider(news.provider)}: segments {show_indices(news.indices)} {news.phase}")
            case "segments" if self.total > 1:
                provider = name_provider(news.provider)
                self._served[provider] = self._served.get(provider, 0) + len(news.indices)
                served = ", ".join(f"{name} {count}" for name, count in self._served.items())
                cost = format_credits(news.cost)
                self._what = f"{news.done} of {news.total} segments are here ({served}), {cost} credits so far"
                self._draw()
            case "metrics":
                segment = f"segment {news.indices[0]}: " if self.total > 1 and news.indices else ""
                self._print(f"{segment}{show_metrics(news.metrics)}")
            case "transfer":
                self._what = f"{news.text}: {show_size(news.done)} of {show_size(news.total)}"
            case _:
                pass

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        if not self._quiet and text:
            self._wipe()
            say(text)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.pulse(time.monotonic())

    def pulse(self, now: float) -> None:
        """Show that the job goes on if nothing was shown for a while; `now` is of the monotonic clock."""
        terminal = is_terminal()
        if self._quiet or now - self._last < (QUIET_SECONDS if terminal else PLAIN_SECONDS):
            return
        if terminal:
            self._draw(now)
        else:
            say(f"{self._what} ({now - self._since:.0f} s)")
            self._last = now

    def _draw(self, now: float | None = None) -> None:
        if not self._quiet and is_terminal():
            now = time.monotonic() if now is None else now
            click.echo(f"\r\x1b[K{self._what} ({now - self._since:.0f} s)", err=True, nl=False, color=True)
            self._drawn = True

    def _wipe(self) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", err=True, nl=False, color=True)
            self._drawn = False


def name_provider(key: str) -> str:
    """A provider in a line: its did:key without the prefix, shortened; `key` is hex."""
    try:
        return f"{show_key(bytes.fromhex(key)).removeprefix('did:key:')[:KEY_SHOWN]}…" if key else "a provider"
    except ValueError:
        return escape_line(key, limit=KEY_SHOWN)


def show_indices(indices: tuple[int, ...]) -> str:
    """Indices as ranges: `0-3, 7`."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:20])


def show_metrics(metrics: dict[str, Any]) -> str:
    """Metrics in one line, harmless for a terminal."""
    return " ".join(f"{escape_line(name)} {show_metric(value)}" for name, value in metrics.items())


def show_metric(value: Any) -> str:
    """One value of a report."""
    return f"{value:.6g}" if isinstance(value, float) else escape_line(str(value), limit=80)
