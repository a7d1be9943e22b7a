"""Passphrases: from a variable, else from whoever sits at the terminal; never from a command line."""

from __future__ import annotations

import os
import sys

import click

from chain.base.errors import Refused
from chain.base.keys import Signer
from requester.client.settings import (
    PASSPHRASE,
    Onlooker,
    RequesterSettings,
    find_account,
    get_passphrase,
    is_encrypted,
    open_wallet,
)

LEAST_CHARACTERS = 8
"""Of a new passphrase: what protects a key that others may come by must not be guessed in an afternoon."""


def ask(what: str, variable: str, *, is_new: bool = False) -> str:
    """The passphrase `what` from `variable`, else typed (a new one twice). Raises `Refused` (`key.passphrase`) where
    neither can be: without a terminal nobody is asked; as `check_new` for a new one.
    """
    given = os.environ.get(variable)
    if not given and not is_terminal():
        raise Refused(
            f"the {what} is needed and there is no terminal to type it at: set {variable}", rule="key.passphrase"
        )
    phrase: str = given or click.prompt(what, hide_input=True, confirmation_prompt=is_new, err=True)
    return check_new(phrase) if is_new else phrase


def check_new(phrase: str) -> str:
    """A passphrase that is to protect a key; raises `Refused` (`passphrase.short`) for one that is soon guessed."""
    if len(phrase) < LEAST_CHARACTERS:
        raise Refused(
            f"a new passphrase has at least {LEAST_CHARACTERS} characters, this one {len(phrase)}; take a longer one",
            rule="passphrase.short",
        )
    return phrase


def choose(what: str, *, wanted: bool) -> str | None:
    """The passphrase of a key file to be written: where `wanted`, as `ask` has it, else from TALLY_PASSPHRASE if that
    is set. Raises as `ask` and `check_new`.
    """
    given = get_passphrase()
    if wanted:
        return ask(what, PASSPHRASE, is_new=True)
    return None if given is None else check_new(given)


def open_signer(settings: RequesterSettings) -> Signer:
    """The signer of the settings' key; its passphrase is asked for if it has one. Raises as `ask` and `open_wallet`."""
    path = settings.key_path
    if get_passphrase() or not path.exists() or not is_encrypted(path):
        return open_wallet(settings)
    return open_wallet(settings, ask("passphrase of the key", PASSPHRASE))


def open_account(settings: RequesterSettings) -> Signer:
    """As `open_signer`, for what signs nothing: where the key's account is known, the key is not unlocked."""
    key = find_account(settings.key_path)
    return open_signer(settings) if key is None else Onlooker(key)


def is_terminal() -> bool:
    """Whether somebody can type an answer."""
    return sys.stdin.isatty()
