"""`tally schema` and `tally completion`: what --json prints, and how a shell completes commands."""

from __future__ import annotations

from importlib.resources import files

import click
from click.shell_completion import get_completion_class

from chain.base.errors import Refused
from requester.cli import output

SHELLS = {
    "bash": ("~/.bashrc", 'eval "$(tally completion bash)"'),
    "zsh": ("~/.zshrc", 'eval "$(tally completion zsh)"'),
    "fish": ("~/.config/fish/completions/tally.fish", "tally completion fish | source"),
}
"""Where a shell reads its settings, and the line that goes there."""


@click.command(epilog="\b\nExamples:\n  tally schema > tally.schema.json")
def schema() -> int:
    """Print the JSON Schema of what every command prints with --json; each object names its version."""
    click.echo(read_schema(), nl=False)
    return output.OK


def read_schema() -> str:
    """The schema as it is packaged."""
    return files("requester.cli").joinpath("schema.json").read_text("utf-8")


@click.command(epilog="\b\nExamples:\n" + "\n".join(f"  {line:<44} in {place}" for place, line in SHELLS.values()))
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the completion script of SHELL; it completes commands, flags and the ids of your jobs."""
    maker = get_completion_class(shell)
    if maker is None:
        raise Refused(f"there is no completion for {shell}", rule="shell.unknown")
    root = ctx.find_root().command
    click.echo(maker(root, {}, "tally", "_TALLY_COMPLETE").source(), nl=False)
    place, line = SHELLS[shell]
    output.say(f"# put this line into {place} and start the shell again:\n#   {line}")
    return output.OK
