"""The command `tally-broker`: make a broker's key, run the broker, look at one.

Exit codes: 0 done, 1 refused by a rule, 2 wrong usage, 3 a part that is needed does not run, 4 a fault of our own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from broker.protocol.api import Info
from broker.rpc.client import BrokerClient
from broker.service.node import run_broker
from broker.service.settings import ENVIRONMENT, BrokerSettings
from chain import __version__
from chain.base.keys import Signer, show_key
from chain.runtime.command import EXIT_CODES, CommandGroup, make_account
from chain.runtime.logs import configure_logs
from chain.runtime.service import run_service
from chain.runtime.settings import load_settings

__all__ = ["main"]


@click.group(cls=CommandGroup, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="tally-broker")
def main() -> None:
    """Run the order book, the message bus and the file relay of a market.

    \b
    Examples:
      tally-broker init
      tally-broker run --chain http://127.0.0.1:7001
      tally-broker status
    """


@main.command()
@click.option("--home", type=click.Path(path_type=Path), help="The broker's folder; default: $TALLY_HOME/broker.")
def init(home: Path | None) -> None:
    """Make the broker's key and show its account, which needs credits: it pays the fee of each lease it opens, and
    a credit allows one more signature in two minutes (R15 d).

    The passphrase that encrypts the key comes from TALLY_BROKER_PASSPHRASE; without one the key is not encrypted.

    \b
    Examples:
      tally-broker init
      tally-broker init --home ./broker
    """
    settings = _load(home, {})
    signer = make_account(settings.key_file, settings.passphrase or None)
    click.echo(f"key      {settings.key_file}")
    click.echo(f"account  {show_key(signer.key)}")
    click.echo(f"Give it credits for its fees: tally-chain send {show_key(signer.key)} 1000")


@main.command()
@click.option("--home", type=click.Path(path_type=Path), help="The broker's folder; default: $TALLY_HOME/broker.")
@click.option("--listen", help="Host and port, port 0 for any free one; default: 127.0.0.1:7101.")
@click.option("--chain", help="URL of a chain node; default: http://127.0.0.1:7001.")
@click.option("--bus", help="auto (mosquitto, else iotcore), mosquitto, iotcore, or mqtt://host:port of a server.")
@click.option("--bus-listen", help="Where our MQTT server listens; default: loopback, a free port that is kept.")
@click.option("--bus-public", help="MQTT address told to others, where it differs.")
@click.option("--commission", type=int, help="Our share of what providers are paid, in basis points; default: 100.")
@click.option("--retention-hours", type=int, help="How long outputs are kept after their receipt; default: 168.")
@click.option("--ready-file", help="Write the URL here once the broker answers; default: url in its folder.")
@click.option("--log-json/--log-text", default=None, help="Logs as JSON lines, or for people (the default).")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
def run(home: Path | None, **flags: Any) -> None:
    """Run the broker until SIGTERM or Ctrl-C. The key is made if there is none.

    Settings may also stand in broker.toml in the folder, or in TALLY_BROKER_LISTEN and so on. The passphrase of an
    encrypted key comes from TALLY_BROKER_PASSPHRASE.

    \b
    Examples:
      tally-broker run
      tally-broker run --home ./broker --listen 127.0.0.1:0 --ready-file ./url
      tally-broker run --bus mqtt://10.0.0.5:1883 --commission 50
    """
    settings = _load(home, flags)
    configure_logs(json=settings.log_json, level=settings.log_level)
    sys.exit(run_service(lambda stop: run_broker(settings, stop)))


@main.command()
@click.option("--home", type=click.Path(path_type=Path), help="The broker's folder; default: $TALLY_HOME/broker.")
@click.option("--broker", "url", help="URL of a broker; default: the one that runs on the folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(home: Path | None, url: str | None, as_json: bool) -> None:
    """Show a running broker: account, chain, bus, commission, providers that are there.

    \b
    Examples:
      tally-broker status
      tally-broker status --json --broker http://127.0.0.1:7101
    """
    url = url or _find_url(_load(home, {}))
    info = asyncio.run(_ask(url))
    if as_json:
        click.echo(msgspec.json.encode({"url": url, "info": info}).decode())
        return
    click.echo(f"{info.software} at {url}")
    click.echo(f"account     {show_key(bytes.fromhex(info.broker))}")
    click.echo(f"chain       {info.chain}")
    click.echo(f"bus         {info.bus}")
    click.echo(f"commission  {info.commission_bps} basis points")
    click.echo(f"outputs     kept {info.retention_ms // 3_600_000} hours, blobs up to {info.max_blob_bytes} bytes")
    click.echo(f"providers   {info.providers}")
    if info.note:
        click.echo(f"note        {info.note}")


async def _ask(url: str) -> Info:
    async with BrokerClient(url, Signer(bytes(32))) as client:
        return await client.info()


def _load(home: Path | None, flags: dict[str, Any]) -> BrokerSettings:
    shown = str(home.absolute()) if home else None
    folder = load_settings(BrokerSettings, None, ENVIRONMENT, {"home": shown}).folder
    return load_settings(BrokerSettings, folder / "broker.toml", ENVIRONMENT, {"home": shown, **flags})


def _find_url(settings: BrokerSettings) -> str:
    try:
        return settings.address_file.read_text(encoding="utf-8").strip()
    except OSError:
        return f"http://{settings.listen}"
