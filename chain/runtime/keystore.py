"""Key files: ordinary PKCS#8 PEM, encrypted with a passphrase where one is given, mode 0600, written atomically
(design.md section 3).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.base.errors import Refused, Unavailable
from chain.base.keys import Signer
from chain.runtime.files import write_atomically


def create_key(path: Path, passphrase: str | None = None) -> Signer:
    """Make a new key and its file. Raises `Refused` (`key.exists`) rather than overwrite one."""
    return save_key(path, os.urandom(32), passphrase)


def save_key(path: Path, seed: bytes, passphrase: str | None = None) -> Signer:
    """Write the key of a 32-byte seed. Raises `Refused` (`key.exists`) rather than overwrite one, even one that
    appears at the same moment; `Unavailable` (`file.write`).
    """
    private = Ed25519PrivateKey.from_private_bytes(seed)
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        how = serialization.BestAvailableEncryption(passphrase.encode())
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    try:
        write_atomically(path, pem, mode=0o600, replace=False)
    except Refused as error:
        raise Refused(f"{path} exists; keys are never overwritten", rule="key.exists") from error
    return Signer(seed)


def load_key(path: Path, passphrase: str | None = None) -> Signer:
    """Read a key file. Raises `Unavailable` (`key.file`) or `Refused` (`key.passphrase`, `key.form`, `key.mode`)."""
    try:
        pem = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        why = f"no key file {path} ({error.strerror}); make one first or name another"
        raise Unavailable(why, rule="key.file") from error
    if b"-----BEGIN " not in pem:
        raise Refused(f"{path} holds no key: it is no PEM file; name your key file", rule="key.form")
    if os.name == "posix" and mode & 0o077:
        raise Refused(f"{path} can be read by others; `chmod 600 {path}` and consider the key known", rule="key.mode")
    try:
        private = serialization.load_pem_private_key(pem, passphrase.encode() if passphrase else None)
    except TypeError as error:
        need = "needs a passphrase" if not passphrase else "has no passphrase, yet one was given"
        raise Refused(f"{path} {need}", rule="key.passphrase") from error
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        rule = "key.passphrase" if passphrase else "key.form"
        raise Refused(f"{path} can't be read: wrong passphrase or no PKCS#8 PEM", rule=rule) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Refused(f"{path} holds no Ed25519 key", rule="key.form")
    seed = private.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    return Signer(seed)


def load_or_create_key(path: Path, passphrase: str | None = None) -> Signer:
    """The key of `path`, made if there is none. Of several who do this at once, all get the same key."""
    if not path.exists():
        with contextlib.suppress(Refused):
            return create_key(path, passphrase)
    return load_key(path, passphrase)
