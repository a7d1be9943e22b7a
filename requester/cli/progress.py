"""What the command shows while a job runs: its id at once, phases, live output, a sign of life after two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import click

from chain.base.units import format_credits
from requester.cli.output import is_terminal, say
from requester.client.news import Hooks, News
from requester.client.texts import escape, escape_line
from requester.purchase.quote import Quote

QUIET_SECONDS = 2.0
"""Silence after which the command shows that it still works."""

PLAIN_SECONDS = 30.0
"""The same where stderr is no terminal: a line in a log file now and then."""

WORDS = {
    "sent": "the broker has the order",
    "announced": "providers are bidding",
    "awarded": "a provider won; its lease is being opened",
    "running": "the lease is final; the provider is working",
    "delivered": "the result is being fetched and checked",
    "accepted": "the delivery passed every check and is accepted",
    "settled": "paid",
}


class Progress:
    """Prints news of one job to stderr. `job` is its id once it is signed."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.job = ""
        self._quiet = quiet
        self._what = "signing"
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
            say(f"at most {cap} credits; bids up to {limit} credits are taken")

    def _on_news(self, news: News) -> None:
        match news.kind:
            case "signed":
                self.job = news.job
                say(f"job {news.job}")
            case "output":
                self._print(escape(news.output).rstrip("\n"))
            case "phase":
                self._what = WORDS.get(news.phase, self._what)
                if news.phase in WORDS:
                    self._print(self._what)
            case "progress":
                self._what = f"{news.done} of {news.total} segments done"
            case "trouble" if news.rule != self._trouble:
                self._trouble = news.rule
                self._print(f"{escape_line(news.text, limit=500)} [{escape_line(news.rule)}]; trying on")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        if not self._quiet:
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
        text = f"{self._what} ({now - self._since:.0f} s)"
        if terminal:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False, color=True)
            self._drawn = True
        else:
            say(text)
            self._last = now

    def _wipe(self) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", err=True, nl=False, color=True)
            self._drawn = False
