"""`tally init` and `tally wallet`: settings; key, its back-up and its passphrase; balance."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from chain.base.errors import Refused, TallyError
from chain.base.keys import Signer, show_key
from chain.base.units import format_credits
from chain.runtime.keystore import create_key, save_key
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.client.market import AsyncMarket
from requester.client.settings import (
    PASSPHRASE,
    RequesterSettings,
    change_passphrase,
    get_passphrase,
    is_encrypted,
    open_wallet,
    read_seed,
    write_settings,
)

FUND = "get credits from somebody who has some, for example the treasury: `tally-chain send {key} CREDITS`"

BACKUP_PASSPHRASE = "TALLY_BACKUP_PASSPHRASE"
NEW_PASSPHRASE = "TALLY_NEW_PASSPHRASE"
"""Variables that answer what is else asked for."""

ASK_SECONDS = 3.0
"""How long `init`, which needs no chain, waits for its word on the account."""


@click.command(
    epilog="""\b
Examples:
  tally init
  tally init --broker http://127.0.0.1:7101 --chain http://127.0.0.1:7001 --genesis genesis.json
"""
)
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
    """Show your address and balance; `new` makes a key, `backup`, `restore` and `passphrase` look after it."""
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


@wallet.command(epilog="\b\nExamples:\n  tally wallet backup key-backup.pem")
@click.argument("file", type=click.Path(path_type=Path))
@json_flag
@pass_choices
def backup(choices: Choices, file: Path) -> int:
    """Write your key to FILE, encrypted by a passphrase (an ordinary PKCS#8 PEM file). Keep both, apart.

    The passphrase is asked for, or taken from TALLY_BACKUP_PASSPHRASE. An existing file is never overwritten.
    """
    settings = choices.load()
    seed = read_seed(settings.key_path, get_passphrase())
    phrase = _ask_new("passphrase of the backup", BACKUP_PASSPHRASE)
    signer = save_key(file, seed, phrase)
    return _tell_key(choices, show_key(signer.key), file)


@wallet.command(epilog="\b\nExamples:\n  tally wallet restore key-backup.pem")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase for the restored key file.")
@json_flag
@pass_choices
def restore(choices: Choices, file: Path, passphrase: bool) -> int:
    """Make your key file from the backup FILE. An existing key file is never overwritten.

    The backup's passphrase is asked for, or taken from TALLY_BACKUP_PASSPHRASE.
    """
    settings = choices.load()
    if settings.key_path.exists():
        raise Refused(f"{settings.key_path} exists; keys are never overwritten", rule="key.exists")
    seed = read_seed(file, _ask("passphrase of the backup", BACKUP_PASSPHRASE))
    phrase = _ask_new("passphrase of the key", PASSPHRASE) if passphrase else get_passphrase()
    signer = save_key(settings.key_path, seed, phrase)
    return _tell_key(choices, show_key(signer.key), settings.key_path)


@wallet.command(epilog="\b\nExamples:\n  tally wallet passphrase\n  tally wallet passphrase --remove")
@click.option("--remove", is_flag=True, help="Leave the key file without a passphrase.")
@json_flag
@pass_choices
def passphrase(choices: Choices, remove: bool) -> int:
    """Change the passphrase of your key file. The old file is in place until the new one is whole.

    The present passphrase comes from TALLY_PASSPHRASE or is asked for, the new one from TALLY_NEW_PASSPHRASE or is
    asked for.
    """
    path = choices.load().key_path
    old = _ask("present passphrase", PASSPHRASE) if is_encrypted(path) else None
    new = None if remove else _ask_new("new passphrase", NEW_PASSPHRASE)
    signer = change_passphrase(path, old, new)
    return _tell_key(choices, show_key(signer.key), path)


def _tell_key(choices: Choices, key: str, path: Path) -> int:
    if choices.as_json:
        output.print_json(key=key, key_file=str(path))
    else:
        click.echo(f"key file  {path}\naddress   {key}")
    return output.OK


def _ask(what: str, variable: str) -> str:
    phrase: str = os.environ.get(variable) or click.prompt(what, hide_input=True, err=True)
    return phrase


def _ask_new(what: str, variable: str) -> str:
    given = os.environ.get(variable)
    phrase: str = given or click.prompt(what, hide_input=True, confirmation_prompt=True, err=True)
    return phrase


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
