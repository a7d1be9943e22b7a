"""The command `tally-chain`: make a chain, run its node, send credits, look at it.

Exit codes: 0 done, 1 refused by a rule, 2 wrong usage, 3 a part that is needed does not run, 4 a fault of our own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from chain import __version__
from chain.base.keys import parse_key, show_key
from chain.base.units import format_credits, parse_credits
from chain.ledger.genesis import Params, compute_chain_id
from chain.ledger.transactions import Transfer, sign_transaction
from chain.node.folder import ChainFolder, ChainPlan
from chain.node.node import DEFAULT_LISTEN, NodeSettings, run_node
from chain.rpc.client import ChainClient
from chain.runtime.clock import SystemClock
from chain.runtime.command import EXIT_CODES, CommandGroup
from chain.runtime.home import tally_home
from chain.runtime.keystore import load_key
from chain.runtime.logs import configure_logs
from chain.runtime.service import run_service
from chain.runtime.settings import load_settings

__all__ = ["main"]

T = TypeVar("T")

VALIDITY = 60_000
"""Milliseconds for which a transaction made here may become final."""


def _home_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--home", type=click.Path(path_type=Path), help="The chain's folder; default: $TALLY_HOME/chain."
    )(command)


def _chain_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--chain", "url", help="URL of a node; default: the one that runs on the chain's folder.")(
        command
    )


@click.group(cls=CommandGroup, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="tally-chain")
def main() -> None:
    """Make and run a chain, and move its credits.

    \b
    Examples:
      tally-chain init --name testnet --treasury-credits 1000000
      tally-chain run --listen 127.0.0.1:7001
      tally-chain send did:key:z6Mk... 25
      tally-chain status
    """


@main.command()
@_home_option
@click.option("--name", default="tallystick", show_default=True, help="What the chain is called.")
@click.option("--treasury-credits", default="1000000", show_default=True, help="Credits granted to the treasury.")
@click.option("--fee", default="0.00001", show_default=True, help="Credits burned per transaction; 0 only if private.")
@click.option("--private", is_flag=True, help="A chain among parties who know each other.")
def init(home: Path | None, name: str, treasury_credits: str, fee: str, private: bool) -> None:
    """Make a new chain of one seat: its genesis, the seat's key and the treasury's key.

    \b
    Examples:
      tally-chain init
      tally-chain init --home ./chain --name lab --private --fee 0
    """
    folder = ChainFolder(_find_home(home))
    params = Params(fee=parse_credits(fee), private=private)
    plan = ChainPlan(name, parse_credits(treasury_credits), params, SystemClock().now())
    genesis = folder.create(plan, _passphrase())
    treasury = genesis.balances[0]
    click.echo(f"chain     {compute_chain_id(genesis).hex()}")
    click.echo(f"genesis   {folder.genesis_file}")
    click.echo(f"seat      {show_key(genesis.seats[0].key)}")
    click.echo(f"treasury  {show_key(treasury.account)} with {format_credits(treasury.amount)} credits")
    click.echo("One seat makes final what it likes: whoever holds its key is trusted by all.")


@main.command()
@_home_option
@click.option("--listen", help=f"Host and port, port 0 for any free one; default: {DEFAULT_LISTEN}.")
@click.option("--ready-file", "--port-file", help="Write the URL here once the node answers.")
@click.option("--log-json/--log-text", default=None, help="Logs as JSON lines, or for people (the default).")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
def run(home: Path | None, **flags: Any) -> None:
    """Run the node of a chain's folder until SIGTERM or Ctrl-C.

    Settings may also stand in node.toml in the folder, or in TALLY_CHAIN_LISTEN and so on. The passphrase of an
    encrypted key comes from TALLY_CHAIN_PASSPHRASE.

    \b
    Examples:
      tally-chain run
      tally-chain run --home ./chain --listen 127.0.0.1:0 --ready-file ./url
    """
    folder = _find_home(home)
    settings = load_settings(NodeSettings, folder / "node.toml", "TALLY_CHAIN_", {"home": str(folder), **flags})
    configure_logs(json=settings.log_json, level=settings.log_level)
    sys.exit(run_service(lambda stop: run_node(settings, stop)))


@main.command()
@_home_option
@_chain_option
@click.argument("to")
@click.argument("credits_", metavar="CREDITS")
@click.option("--from", "sender", type=click.Path(path_type=Path), help="Key file of the payer; default: the treasury.")
def send(home: Path | None, url: str | None, to: str, credits_: str, sender: Path | None) -> None:
    """Send CREDITS to the account TO, and wait until that is final. The first credits make the account.

    \b
    Examples:
      tally-chain send did:key:z6Mk... 25
      tally-chain send did:key:z6Mk... 0.5 --from ./key.pem --chain http://127.0.0.1:7001
    """
    folder = ChainFolder(_find_home(home))
    body = Transfer(parse_key(to), parse_credits(credits_))
    signer = load_key(sender or folder.treasury_file, _passphrase())

    async def pay(client: ChainClient) -> None:
        info = await client.info()
        valid_until = SystemClock().now() + VALIDITY
        signed = sign_transaction(signer, bytes.fromhex(info.chain), body, valid_until, os.urandom(16))
        outcome = await client.submit(signed)
        click.echo(f"sent {format_credits(body.amount)} credits, final in block {outcome.height}")
        click.echo(f"transaction {outcome.id}")

    _ask(_find_node(folder, url), pay)


@main.command()
@_home_option
@_chain_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(home: Path | None, url: str | None, as_json: bool) -> None:
    """Show a running chain: height, time, fee, and where all credits are.

    \b
    Examples:
      tally-chain status
      tally-chain status --json --chain http://127.0.0.1:7001
    """

    async def look(client: ChainClient) -> None:
        info, supply = await client.info(), await client.supply()
        if as_json:
            shown = {"url": client.url, "info": info, "supply": supply}
            click.echo(msgspec.json.encode(shown).decode())
            return
        click.echo(f"{info.name} at {client.url}, {info.software}")
        click.echo(f"chain    {info.chain}")
        click.echo(f"height   {info.height}, block time {info.time} ms")
        fault = (info.seats - 1) // 3
        click.echo(f"seats    {info.seats}; {fault} of them may be faulty")
        click.echo(f"fee      {format_credits(info.fee)} credits{', private chain' if info.private else ''}")
        click.echo(
            f"credits  {format_credits(supply.total)} of {format_credits(supply.genesis)}: "
            f"{format_credits(supply.accounts)} free, {format_credits(supply.bonds)} in bonds, "
            f"{format_credits(supply.locked)} locked; {format_credits(supply.burned)} burned"
        )

    _ask(_find_node(ChainFolder(_find_home(home)), url), look)


def _ask(url: str, question: Callable[[ChainClient], Coroutine[Any, Any, T]]) -> T:
    async def ask() -> T:
        async with ChainClient(url) as client:
            return await question(client)

    return asyncio.run(ask())


def _find_home(home: Path | None) -> Path:
    return (home or tally_home() / "chain").absolute()


def _find_node(folder: ChainFolder, url: str | None) -> str:
    """The URL named, else that of the node on the folder, else the default."""
    if url is not None:
        return url
    try:
        return folder.address_file.read_text(encoding="utf-8").strip()
    except OSError:
        return f"http://{DEFAULT_LISTEN}"


def _passphrase() -> str | None:
    return os.environ.get("TALLY_CHAIN_PASSPHRASE") or None
