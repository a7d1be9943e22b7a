"""`tally init`, `tally wallet`, `tally providers`: settings, key and balance, and who is there."""

from __future__ import annotations

import asyncio

import click

from chain.base.errors import TallyError
from chain.base.keys import Signer, show_key
from chain.base.units import format_credits
from chain.runtime.keystore import create_key
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.client.market import AsyncMarket
from requester.client.settings import RequesterSettings, get_passphrase, open_wallet, write_settings

FUND = "get credits from somebody who has some, for example the treasury: `tally-chain send {key} CREDITS`"

ASK_SECONDS = 3.0
"""How long `init`, which needs no chain, waits for its word on the account."""


@click.command()
@click.option("--broker", metavar="URL", help="The broker's address.")
@click.option("--chain", metavar="URL", help="The chain node's address.")
@click.option("--key", metavar="FILE", help="Your key file.")
@click.option("--genesis", metavar="FILE", help="The chain's genesis file, for offline checks.")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase for a new key.")
@json_flag
@pass_choices
def init(choices: Choices, /, passphrase: bool, **given: str | None) -> int:
    """Write the settings file, and make a key if there is none."""
    settings = choices.load(**given)
    path = write_settings(settings)
    signer = open_wallet(settings) if settings.key_path.exists() else _make_key(settings, ask=passphrase)
    key = show_key(signer.key)
    if choices.as_json:
        output.print_json(settings=str(path), key=key, key_file=str(settings.key_path))
        return output.OK
    click.echo(f"settings  {path}\nkey file  {settings.key_path}\naddress   {key}")
    if not asyncio.run(_is_funded(settings, signer)):
        output.say(FUND.format(key=key))
    return output.OK


async def _is_funded(settings: RequesterSettings, signer: Signer) -> bool:
    """Whether the chain says so; where none answers, it doesn't."""
    async with AsyncMarket(settings, signer) as market:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return (await market.account()).balance > 0
        except (TallyError, TimeoutError):
            return False


@click.group(invoke_without_command=True)
@json_flag
@click.pass_context
def wallet(ctx: click.Context) -> int:
    """Show your address and balance; `new` makes a key."""
    if ctx.invoked_subcommand is None:
        return _show(ctx.ensure_object(Choices))
    return output.OK


@wallet.command()
@json_flag
@pass_choices
def show(choices: Choices) -> int:
    """Show your address and balance."""
    return _show(choices)


@wallet.command()
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase.")
@json_flag
@pass_choices
def new(choices: Choices, passphrase: bool) -> int:
    """Make a new key; an existing one is never overwritten."""
    settings = choices.load()
    signer = _make_key(settings, ask=passphrase)
    if choices.as_json:
        output.print_json(key=show_key(signer.key), key_file=str(settings.key_path))
    else:
        click.echo(f"key file  {settings.key_path}\naddress   {show_key(signer.key)}")
    return output.OK


@click.command()
@json_flag
@pass_choices
def providers(choices: Choices) -> int:
    """Say how many providers the broker sees."""

    async def ask(market: AsyncMarket) -> int:
        info = (await market.check())[0]
        if choices.as_json:
            output.print_json(broker=market.settings.broker, providers=info.providers)
        else:
            click.echo(f"{info.providers} provider(s) at {market.settings.broker}")
        return output.OK

    return choices.do(ask)


def _make_key(settings: RequesterSettings, *, ask: bool) -> Signer:
    phrase = click.prompt("passphrase", hide_input=True, confirmation_prompt=True) if ask else get_passphrase()
    return create_key(settings.key_path, phrase)


def _show(choices: Choices) -> int:
    async def ask(market: AsyncMarket) -> int:
        account, key = await market.account(), show_key(market.signer.key)
        if choices.as_json:
            output.print_json(key=key, known=account.known, balance=account.balance)
            return output.OK
        click.echo(f"address  {key}\nbalance  {format_credits(account.balance)} credits")
        if not account.known:
            output.say(f"the chain does not know this account yet; {FUND.format(key=key)}")
        return output.OK

    return choices.do(ask)
