"""Commands of `tally-provider`. Not here: anything they do (`provider.daemon`, `provider.sandbox`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from chain import __version__
from chain.base.errors import Unavailable
from chain.base.keys import show_key
from chain.base.units import format_credits
from chain.rpc.client import ChainClient
from chain.rpc.schema import AccountView, LeaseView
from chain.runtime.command import EXIT_CODES, CommandGroup, make_account
from chain.runtime.keystore import load_key
from chain.runtime.logs import configure_logs
from chain.runtime.service import run_service
from chain.runtime.settings import load_settings
from provider.daemon.host import WARM_BYTES, count_warm, examine
from provider.daemon.service import run_provider
from provider.daemon.settings import ENVIRONMENT, ProviderSettings
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.plan import build_plan
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.spec import make_usual_task
from provider.work.events import LeaseState


def _add_home(command: Callable[..., Any]) -> Callable[..., Any]:
    option = click.option("--home", help="The provider's folder; default: $TALLY_HOME/provider.")
    return click.option("--config", type=click.Path(path_type=Path), help="Settings, TOML.")(option(command))


def _load(config: Path | None, **flags: object) -> ProviderSettings:
    return load_settings(ProviderSettings, config, ENVIRONMENT, flags)


@click.group(cls=CommandGroup, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="tally-provider")
def main() -> None:
    """Lend this machine: bid on orders, run them in a sandbox, be paid for each segment.

    \b
    Examples:
      tally-provider init
      tally-provider doctor
      tally-provider run --slots 2 --price 0.002
      tally-provider status --json
    """


@main.command()
@_add_home
def init(config: Path | None, home: str | None) -> None:
    """Make the provider's account and print it. It then needs credits for its bond and fees.

    \b
    Example:
      tally-provider init
    """
    settings = _load(config, home=home)
    signer = make_account(settings.key_file, settings.passphrase or None)
    click.echo(show_key(signer.key))
    click.echo(f"Give it credits for its bond and fees: tally-chain send {show_key(signer.key)} 100", err=True)


@main.command()
@_add_home
@click.option("--chain", help="URL of a chain node.")
@click.option("--broker", help="URL of a broker.")
@click.option("--bus", help="URL of the MQTT server, if not the one that the broker names.")
@click.option("--slots", type=int, help="Jobs at once; default: one per core.")
@click.option("--memory", "memory_mib", type=int, help="MiB lent in all; default: three quarters.")
@click.option("--cores", type=int, help="Cores lent in all; default: all.")
@click.option("--price", help="Credits per segment before rates; default 0.001.")
@click.option("--factor", type=int, help="Percent of the whole price; default 100.")
@click.option("--bond", help="Credits of bond to register; default 10.")
@click.option("--packages", help="Packages that jobs may import besides NumPy, e.g. 'pandas pyarrow'; installed here.")
@click.option("--warm", type=int, help="Sandboxes that stand ahead of their jobs; default: as many as slots.")
@click.option("--drain", "drain_s", type=int, help="Seconds that jobs may go on at shutdown; default 2.")
@click.option("--wait", "wait_s", type=int, help="Seconds to wait for parts at the start; default 10.")
@click.option("--ready-file", help="Written, with the account, once orders are taken.")
@click.option("--log-json/--no-log-json", default=None, help="Logs as JSON lines.")
@click.option("--log-level", help="debug, info, warning or error.")
def run(config: Path | None, **flags: object) -> None:
    """Take orders until told to stop (Ctrl-C). Jobs that can't end soon are then given back.

    \b
    Example:
      tally-provider run --chain http://127.0.0.1:7001 --broker http://127.0.0.1:7101
    """
    settings = _load(config, **flags)
    configure_logs(json=settings.log_json, level=settings.log_level)
    run_service(lambda stop: run_provider(settings, stop))


@main.command()
@_add_home
@click.option("--chain", help="URL of a chain node.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(config: Path | None, home: str | None, chain: str | None, as_json: bool) -> None:
    """The provider's account, bond and leases, as the chain has them.

    A lease is shown with its job, its state, how many of its segments are on the chain, of how many, from which on.

    \b
    Examples:
      tally-provider status
      tally-provider status --json
    """
    settings = _load(config, home=home, chain=chain)
    key = load_key(settings.key_file, settings.passphrase or None).key
    account, leases = asyncio.run(_ask(settings.chain, key))
    running = settings.ready_path.exists()
    if as_json:
        shown = {"account": show_key(key), "running": running, **msgspec.to_builtins(account)}
        click.echo(json.dumps({**shown, "leases": msgspec.to_builtins(leases)}))
        return
    click.echo(f"account  {show_key(key)}")
    click.echo(f"running  {'yes' if running else 'no'}")
    click.echo(f"balance  {format_credits(account.balance)} credits")
    click.echo(f"bond     {format_credits(account.bond)} credits, {format_credits(account.set_aside)} in leases")
    for lease in leases:
        click.echo(_show_lease(lease))


def _show_lease(lease: LeaseView) -> str:
    """One line. What waits to be accepted is less than the whole where the rest was given back."""
    part = f"{lease.served}/{lease.count} segments from {lease.first}"
    if LeaseState(lease.state).is_live and lease.held < lease.count:
        part += f", {lease.held} still at stake"
    paid = format_credits(lease.paid)
    return f"lease    {lease.id[:16]}  job {lease.order[:16]}  {lease.state:<10}  {part}  paid {paid}"


async def _ask(url: str, key: bytes) -> tuple[AccountView, list[LeaseView]]:
    async with ChainClient(url) as chain:
        return await chain.account(key), await chain.leases(provider=key)


@main.command()
@_add_home
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, home: str | None, as_json: bool) -> None:
    """Try out what this host can enforce, and say what is missing. Exit code 3 if it can't run jobs.

    \b
    Example:
      tally-provider doctor
    """
    settings = _load(config, home=home)
    image, abilities = asyncio.run(examine(settings))
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(abilities), "python": image.python, "image": image.path}))
    else:
        _show_abilities(settings, image, abilities)
    if abilities.level is None:
        ctx.exit(3)


def _show_abilities(settings: ProviderSettings, image: RuntimeImage, abilities: HostAbilities) -> None:
    pool = settings.pool
    version = ".".join(str(part) for part in abilities.bwrap_version)
    click.echo(f"isolation  {abilities.level.value if abilities.level else 'none: this host takes no jobs'}")
    click.echo(f"sandbox    {abilities.bwrap or 'no bubblewrap'} {version}")
    click.echo(f"runtime    Python {image.python} with {', '.join(f'{n} {v}' for n, v in image.packages)}")
    click.echo(f"lent       {pool.slots} slots, {pool.memory_bytes >> 20} MiB, {pool.millicores} millicores")
    warm = count_warm(settings)
    click.echo(f"ahead      {warm} sandboxes stand before their jobs come, about {warm * WARM_BYTES >> 20} MiB")
    for reason in abilities.reasons:
        click.echo(f"note       {reason}")


@main.group()
def sandbox() -> None:
    """Look at the sandbox."""


@sandbox.command()
@_add_home
@click.option("--memory", default=512, show_default=True, help="MiB of the sample job.")
def plan(config: Path | None, home: str | None, memory: int) -> None:
    """Print, as JSON, each step that would be carried out for a sample job.

    \b
    Example:
      tally-provider sandbox plan --memory 1024
    """
    settings = _load(config, home=home)
    image, abilities = asyncio.run(examine(settings))
    if abilities.level is None:
        raise Unavailable(f"this host can't sandbox: {'; '.join(abilities.reasons)}", rule="sandbox.level")
    made = build_plan(image, abilities, make_usual_task(memory << 20), 0)
    click.echo(json.dumps(msgspec.to_builtins(made, enc_hook=repr), indent=2))
