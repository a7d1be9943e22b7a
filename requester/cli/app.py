"""The command's tree, its settings, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

import chain
from requester.cli import output

if TYPE_CHECKING:
    from chain.base.keys import Signer
    from requester.client.market import AsyncMarket
    from requester.client.settings import RequesterSettings

T = TypeVar("T")

COMMANDS = {
    "init": ("requester.cli.wallet", "init"),
    "wallet": ("requester.cli.wallet", "wallet"),
    "run": ("requester.cli.buying", "run"),
    "map": ("requester.cli.buying", "map_items"),
    "train": ("requester.cli.buying", "train"),
    "estimate": ("requester.cli.estimating", "estimate"),
    "jobs": ("requester.cli.jobs", "jobs"),
    "watch": ("requester.cli.watching", "watch"),
    "logs": ("requester.cli.jobs", "logs"),
    "result": ("requester.cli.jobs", "result"),
    "cancel": ("requester.cli.jobs", "cancel"),
    "receipt": ("requester.cli.receipts", "receipt"),
    "case": ("requester.cli.cases", "case"),
    "verify": ("requester.cli.cases", "verify"),
    "providers": ("requester.cli.providing", "providers"),
    "schema": ("requester.cli.shells", "schema"),
    "completion": ("requester.cli.shells", "completion"),
    "demo": ("requester.cli.demonstration", "demo"),
}

EPILOG = """\b
Examples:
  tally init --broker http://127.0.0.1:7101 --chain http://127.0.0.1:7001
  tally run train.py --cap 2 --memory 1GiB --wall 10min
  tally run train.py --cap 2 --dry-run
  tally estimate sweep.py --items settings.json
  tally map sweep.py settings.json --cap 5
  tally train fit.py --state '{"epoch": 0}' --steps 20 --cap 4 --detach
  tally jobs
  tally watch 3f2a
  tally result 3f2a -o weights.npz
  tally receipt 3f2a --verify --genesis genesis.json

\b
Exit codes: 0 ok, 1 refused, 2 usage, 3 a part is not running, 4 a fault of this program,
5 the job itself failed, 6 no bid, 7 verified, but more may have been paid,
130 interrupted (the job goes on).
"""


class Choices:
    """What the flags of the command itself say."""

    def __init__(self, as_json: bool, settings: dict[str, str | None]) -> None:
        self.as_json = as_json
        self._settings = settings

    def load(self, **named: str | None) -> RequesterSettings:
        """Settings as they hold now, those `named` first of all."""
        from requester.client.settings import load_requester_settings  # `tally --help` needs no settings

        return load_requester_settings(**self._settings | {name: one for name, one in named.items() if one is not None})

    def do(
        self,
        work: Callable[[AsyncMarket], Coroutine[Any, Any, T]],
        open_key: Callable[[RequesterSettings], Signer] | None = None,
    ) -> T:
        """Run `work` with an open market; no part has been asked anything yet. `open_key` is for what signs nothing."""
        from requester.cli.passphrases import open_signer
        from requester.client.market import AsyncMarket  # nor a market, which is most of the time of a start

        settings = self.load()
        # Outside of the loop: Ctrl-C has to end the question for a passphrase.
        signer = (open_key or open_signer)(settings)

        async def run() -> T:
            async with AsyncMarket(settings, signer) as market:
                return await work(market)

        return asyncio.run(run())


class LazyGroup(click.Group):
    """Loads a command when it is asked for: `tally --version` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command by its name."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(chain.__version__, prog_name="tally")
@click.option("--broker", metavar="URL", help="The broker's address.")
@click.option("--chain", metavar="URL", help="The chain node's address.")
@click.option("--key", metavar="FILE", help="Your key file.")
@click.option("--json", "as_json", is_flag=True, help="One versioned JSON object on stdout.")
@click.pass_context
def tally(ctx: click.Context, broker: str | None, chain: str | None, key: str | None, as_json: bool) -> None:
    """Buy computing: sign an order, watch it run, get the result and the receipt."""
    ctx.obj = Choices(as_json, {"broker": broker, "chain": chain, "key": key})


pass_choices = click.make_pass_decorator(Choices)
"""Gives a command its `Choices`."""

json_flag = click.option(
    "--json",
    "here_json",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _param, value: _also_json(ctx, value),
    help="One versioned JSON object on stdout.",
)
"""`--json` behind the name of a command too."""


def complete_job(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of jobs in the store that begin so, for the shell."""
    from requester.client.settings import get_folder
    from requester.store.jobs import JobStore

    if not (get_folder() / "jobs.db").exists():
        return []
    store = JobStore(get_folder())
    try:
        rows = store.list_jobs()
    finally:
        store.close()
    found = [row for row in rows if row.id.hex().startswith(incomplete.lower())]
    return [CompletionItem(row.id.hex()[:16], help=f"{row.phase} {ascii(row.title)[1:-1][:40]}") for row in found]


pass_job = click.argument("job", shell_complete=complete_job)
"""A job, named by the beginning of its id."""


def _also_json(ctx: click.Context, value: bool) -> None:
    if value:
        ctx.ensure_object(Choices).as_json = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tally`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code. Nothing but exit codes leaves here."""
    as_json = "--json" in arguments
    sys.set_int_max_str_digits(output.MAX_DIGITS)
    try:
        code = tally.main(args=list(arguments), prog_name="tally", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        return output.USAGE
    except (click.Abort, KeyboardInterrupt):
        output.say("tally: interrupted")
        return output.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return output.OK
    except Exception as error:  # noqa: BLE001  # the last door: whatever happened becomes one message, one exit code
        return output.report(error, as_json=as_json)
    return code if isinstance(code, int) else output.OK
