"""Where a requester finds its broker, its chain, its key and its data: settings file, TALLY_… variables, arguments."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives import serialization

from chain.base.errors import Fault, Refused, Unavailable
from chain.base.keys import Signer, parse_key, show_key
from chain.ledger.genesis import Genesis, read_genesis
from chain.runtime.files import sync_folder, write_atomically
from chain.runtime.home import tally_home
from chain.runtime.keystore import load_key, save_key
from chain.runtime.settings import load_settings

PASSPHRASE = "TALLY_PASSPHRASE"
"""The variable that holds the key's passphrase; it never stands in a file or on a command line."""


class RequesterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a requester. `key` and `genesis` are paths; empty ones lie in the data folder."""

    broker: str = "http://127.0.0.1:7101"
    chain: str = "http://127.0.0.1:7001"
    key: str = ""
    genesis: str = ""

    @property
    def key_path(self) -> Path:
        """The key file."""
        return Path(self.key).expanduser() if self.key else get_folder() / "key.pem"

    @property
    def genesis_path(self) -> Path | None:
        """The genesis file, if one is named or lies in the data folder."""
        path = Path(self.genesis).expanduser() if self.genesis else get_folder() / "genesis.json"
        return path if self.genesis or path.exists() else None


def get_folder() -> Path:
    """The requester's data folder."""
    return tally_home() / "requester"


def get_settings_path() -> Path:
    """The settings file."""
    return get_folder() / "settings.toml"


def load_requester_settings(**flags: str | None) -> RequesterSettings:
    """Settings as they hold now: file, then TALLY_BROKER, TALLY_CHAIN, TALLY_KEY, TALLY_GENESIS, then `flags`.

    Raises `Refused` under `settings.url` for an address without scheme or host, else as `load_settings`.
    """
    settings = load_settings(RequesterSettings, get_settings_path(), "TALLY_", flags)
    _check_url("broker", settings.broker, 7101)
    _check_url("chain", settings.chain, 7001)
    return settings


def _check_url(name: str, url: str, port: int) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Refused(f"{name} {url!r} is no address; write http://127.0.0.1:{port}", rule="settings.url")


def write_settings(settings: RequesterSettings) -> Path:
    """Write the settings file; returns its path. Raises `Refused` under `settings.form` for what TOML can't hold."""
    lines = []
    for name in RequesterSettings.__struct_fields__:
        value = getattr(settings, name)
        if any(ord(character) < 32 or character in '"\\\x7f' for character in value):
            raise Refused(f"{name} {value!r} holds a quote, a backslash or a control character", rule="settings.form")
        if value:
            lines.append(f'{name} = "{value}"\n')
    path = get_settings_path()
    write_atomically(path, "".join(lines).encode(), mode=0o600)
    return path


def get_passphrase() -> str | None:
    """The key's passphrase from the environment, if it is there."""
    return os.environ.get(PASSPHRASE) or None


def open_wallet(settings: RequesterSettings, passphrase: str | None = None) -> Signer:
    """The requester's signer; raises what `chain.runtime.keystore.load_key` does, with advice where there is no key."""
    path = settings.key_path
    if not path.exists():
        raise Refused(
            f"there is no key at {path}; make one with `tally wallet new`, or name one by --key", rule="key.file"
        )
    signer = load_key(path, passphrase or get_passphrase())
    keep_account(path, signer.key)
    return signer


class Onlooker(Signer):
    """An account without its secret, for what signs nothing. Raises `Fault` under `key.locked` where it is to sign."""

    __slots__ = ()

    def __init__(self, key: bytes) -> None:
        self.key = key

    def sign_bytes(self, message: bytes) -> bytes:
        """Nothing is signed here."""
        raise Fault(f"{show_key(self.key)} is not unlocked here, so nothing can be signed", rule="key.locked")


def keep_account(path: Path, key: bytes) -> None:
    """Keep the account of a key file with a passphrase beside it, unless it lies there. Where it can't be written, the
    passphrase is asked for again, and that is all.
    """
    with contextlib.suppress(Unavailable, OSError):
        if is_encrypted(path) and find_account(path) != key:
            line = f"{show_key(key)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
            write_atomically(get_account_path(path), line.encode(), mode=0o600)


def find_account(path: Path) -> bytes | None:
    """The account of a key file as it lies beside it; None where none does, or that of another file. It is to be shown
    and asked about: whoever signs goes by the key itself.
    """
    try:
        account, digest = get_account_path(path).read_text("ascii").split()
        return parse_key(account) if digest == hashlib.sha256(path.read_bytes()).hexdigest() else None
    except (OSError, ValueError, Refused):
        return None


def get_account_path(path: Path) -> Path:
    """Where the account of a key file lies."""
    return path.with_name(f"{path.name}.account")


def read_seed(path: Path, passphrase: str | None) -> bytes:
    """The 32-byte seed of a key file, for a back-up; raises what `chain.runtime.keystore.load_key` does."""
    load_key(path, passphrase)  # its checks and its words
    private = serialization.load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    return private.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )


def is_encrypted(path: Path) -> bool:
    """Whether a key file has a passphrase; raises as `load_key` where there is no such file."""
    try:
        return b"ENCRYPTED" in path.read_bytes()
    except OSError as error:
        raise Unavailable(f"no key file {path} ({error.strerror})", rule="key.file") from error


def change_passphrase(path: Path, old: str | None, new: str | None) -> Signer:
    """Write a key file anew under another passphrase (None: without one), whole or not at all; returns its signer.
    Raises as `load_key`.
    """
    seed = read_seed(path, old)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        signer = save_key(beside, seed, new)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error}", rule="file.write") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    with contextlib.suppress(OSError):  # that of the old file is believed by nobody
        get_account_path(path).unlink()
    keep_account(path, signer.key)
    return signer


def load_genesis(path: Path) -> Genesis:
    """The genesis of a file; raises `Refused` under `genesis.file` where it can't be read, or as `read_genesis`."""
    try:
        return read_genesis(path.read_bytes())
    except OSError as error:
        raise Refused(f"cannot read the genesis file {path}: {error.strerror}", rule="genesis.file") from error
