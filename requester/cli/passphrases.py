"""Passphrases: from a variable, else from whoever sits at the terminal; never from a command line."""

from __future__ import annotations

import os
import sys

import click

from chain.base.errors import Refused
from chain.base.keys import Signer
from requester.client.settings import PASSPHRASE, RequesterSettings, get_passphrase, is_encrypted, open_wallet


def ask(what: str, variable: str, *, is_new: bool = False) -> str:
    """The passphrase `what` from `variable`, else typed (a new one twice). Raises `Refused` (`key.passphrase`) where
    neither can be: without a terminal nobody is asked.
    """
    given = os.environ.get(variable)
    if not given and not is_terminal():
        raise Refused(
            f"the {what} is needed and there is no terminal to type it at: set {variable}", rule="key.passphrase"
        )
    phrase: str = given or click.prompt(what, hide_input=True, confirmation_prompt=is_new, err=True)
    return phrase


def open_signer(settings: RequesterSettings) -> Signer:
    """The signer of the settings' key; its passphrase is asked for if it has one. Raises as `ask` and `open_wallet`."""
    path = settings.key_path
    if get_passphrase() or not path.exists() or not is_encrypted(path):
        return open_wallet(settings)
    return open_wallet(settings, ask("passphrase of the key", PASSPHRASE))


def is_terminal() -> bool:
    """Whether somebody can type an answer."""
    return sys.stdin.isatty()
