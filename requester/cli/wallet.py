"""`tally init` and `tally wallet`: settings; key, its back-up and its passphrase; balance."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import click

from chain.base.errors import Refused, TallyError
from chain.base.keys import Signer, show_key
from chain.base.units import format_credits
from chain.runtime.keystore import create_key, save_key
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.passphrases import ask, choose, open_account
from requester.client.market import AsyncMarket
from requester.client.settings import (
    PASSPHRASE,
    RequesterSettings,
    change_passphrase,
    get_settings_path,
    is_encrypted,
    keep_account,
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
@click.option("--passphrase", is_flag=True, help="Give a new key a passphrase: asked for, or TALLY_PASSPHRASE.")
@json_flag
@pass_choices
def init(choices: Choices, /, passphrase: bool, **given: str | None) -> int:
    """Write the settings file, and make a key if there is none."""
    settings = choices.load(**given)
    before = _read_file()
    path = write_settings(settings)
    changes = _describe_changes(before, _read_file())
    has_key = settings.key_path.exists()
    signer = open_account(settings) if has_key else _make_key(settings, passphrase)
    key = show_key(signer.key)
    if choices.as_json:
        output.print_json(settings=str(path), key=key, key_file=str(settings.key_path))
        return output.OK
    click.echo(f"settings  {path} ({changes})")
    click.echo(f"key file  {settings.key_path}{' (unchanged)' if has_key else ''}\naddress   {key}")
    if not asyncio.run(_is_funded(settings, signer)):
        output.say(FUND.format(key=key))
    return output.OK


def _read_file() -> dict[str, str] | None:
    """What the settings file itself holds; None where there is none."""
    path = get_settings_path()
    return tomllib.loads(path.read_text("utf-8")) if path.exists() else None


def _describe_changes(before: dict[str, str] | None, after: dict[str, str] | None) -> str:
    """What the settings file holds that it did not hold before."""
    if before is None or after is None:
        return "new"
    rows = [(name, before.get(name), after.get(name)) for name in RequesterSettings.__struct_fields__]
    changes = [f"{name}: {now or 'none'}, was {was or 'none'}" for name, was, now in rows if was != now]
    return "; ".join(changes) or "unchanged"


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
@click.option("--passphrase", is_flag=True, help="Give it a passphrase: asked for, or TALLY_PASSPHRASE.")
@json_flag
@pass_choices
def new(choices: Choices, passphrase: bool) -> int:
    """Make a new key; an existing one is never overwritten."""
    settings = choices.load()
    signer = _make_key(settings, passphrase)
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
    seed = read_seed(settings.key_path, _unlock(settings.key_path, "passphrase of the key"))
    phrase = ask("passphrase of the backup", BACKUP_PASSPHRASE, is_new=True)
    signer = save_key(file, seed, phrase)
    return _tell_key(choices, show_key(signer.key), file)


@wallet.command(epilog="\b\nExamples:\n  tally wallet restore key-backup.pem")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--passphrase", is_flag=True, help="Give the restored key file a passphrase: asked for, or TALLY_PASSPHRASE."
)
@json_flag
@pass_choices
def restore(choices: Choices, file: Path, passphrase: bool) -> int:
    """Make your key file from the backup FILE. An existing key file is never overwritten.

    The backup's passphrase is asked for, or taken from TALLY_BACKUP_PASSPHRASE.
    """
    settings = choices.load()
    if settings.key_path.exists():
        raise Refused(f"{settings.key_path} exists; keys are never overwritten", rule="key.exists")
    if not file.is_file():
        raise Refused(f"there is no backup {file}; name the file that `tally wallet backup` wrote", rule="backup.file")
    seed = read_seed(file, ask("passphrase of the backup", BACKUP_PASSPHRASE))
    phrase = choose("passphrase of the key", wanted=passphrase)
    signer = save_key(settings.key_path, seed, phrase)
    keep_account(settings.key_path, signer.key)
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
    old = _unlock(path, "present passphrase")
    new = None if remove else ask("new passphrase", NEW_PASSPHRASE, is_new=True)
    signer = change_passphrase(path, old, new)
    return _tell_key(choices, show_key(signer.key), path)


def _tell_key(choices: Choices, key: str, path: Path) -> int:
    if choices.as_json:
        output.print_json(key=key, key_file=str(path))
    else:
        click.echo(f"key file  {path}\naddress   {key}")
    return output.OK


def _unlock(path: Path, what: str) -> str | None:
    """The passphrase of a key file that has one."""
    return ask(what, PASSPHRASE) if is_encrypted(path) else None


def _make_key(settings: RequesterSettings, wants_passphrase: bool) -> Signer:
    if settings.key_path.exists():  # before anybody types a passphrase for it
        raise Refused(f"{settings.key_path} exists; keys are never overwritten", rule="key.exists")
    phrase = choose("passphrase of the key", wanted=wants_passphrase)
    signer = create_key(settings.key_path, phrase)
    keep_account(settings.key_path, signer.key)
    return signer


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

    return choices.do(ask, open_account)
