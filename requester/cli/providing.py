"""`tally providers`: who offers what just now."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from broker.protocol.api import ProviderView
from chain.base.keys import show_key
from chain.base.units import format_credits
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.client.market import AsyncMarket
from requester.client.settings import Onlooker
from requester.client.texts import escape_line, show_size, show_span
from requester.purchase.quote import show_columns

HEAD = (
    "provider",
    "python",
    "level",
    "slots",
    "memory",
    "cores",
    "longest",
    "base",
    "core-hour",
    "GiB-hour",
    "packages",
)


@click.command(epilog="\b\nExamples:\n  tally providers\n  tally providers --json")
@json_flag
@pass_choices
def providers(choices: Choices) -> int:
    """List the providers that offer themselves at the broker, with what they can do and their list prices in credits.

    A bid may differ from the list price; `tally estimate` says what a job would meet.
    """

    async def ask(market: AsyncMarket) -> int:
        await market.check()
        found = await market.providers()
        if choices.as_json:
            output.print_json(broker=market.settings.broker, providers=[_describe(one) for one in found])
            return output.OK
        click.echo(f"{len(found)} provider(s) at {market.settings.broker}")
        if found:
            click.echo("\n".join(show_columns([HEAD, *map(_show, found)])))
        return output.OK

    return choices.do(ask, lambda _: Onlooker(bytes(32)))  # anybody may ask


def _describe(provider: ProviderView) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(provider)
    return members


def _show(provider: ProviderView) -> tuple[str, ...]:
    return (
        escape_line(_show_key(provider.key), limit=60),
        escape_line(",".join(provider.pythons), limit=40),
        escape_line(provider.level, limit=20),
        str(provider.slots),
        show_size(provider.memory_bytes),
        f"{provider.millicores / 1_000:g}",
        show_span(provider.segment_wall_ms),
        format_credits(provider.base),
        format_credits(provider.core_second * 3_600),
        format_credits(provider.gib_second * 3_600),
        escape_line(",".join(provider.packages), limit=60),
    )


def _show_key(key: str) -> str:
    """A key as an address, shortened; as it came where it is none."""
    try:
        return show_key(bytes.fromhex(key))[:24]
    except ValueError:
        return key
