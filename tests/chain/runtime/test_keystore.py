"""Key files: PKCS#8 PEM, 0600, encrypted where a passphrase is given, never overwritten (design.md section 3)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.base.errors import Refused, TallyError
from chain.base.keys import Signer
from chain.runtime.keystore import create_key, load_key, load_or_create_key, save_key

SEED = bytes(range(32))
posix = pytest.mark.skipif(os.name != "posix", reason="platform: no file modes")


def find_rule(path: Path, passphrase: str | None = None) -> str | None:
    try:
        load_key(path, passphrase)
    except TallyError as error:
        return error.rule
    return None


@pytest.mark.parametrize("passphrase", [None, "", "a pass phrase", "пароль"])
def test_a_key_survives_its_file(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "keys" / "me.pem"
    made = create_key(path, passphrase)
    assert load_key(path, passphrase).key == made.key
    assert load_or_create_key(path, passphrase).key == made.key
    assert [one.name for one in path.parent.iterdir()] == ["me.pem"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert create_key(tmp_path / "a").key != create_key(tmp_path / "b").key


def test_a_missing_key_is_made_where_that_is_asked_for(tmp_path: Path) -> None:
    made = load_or_create_key(tmp_path / "me.pem")
    assert load_key(tmp_path / "me.pem").key == made.key


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    """By OpenSSL alone: PKCS#8 with the seed we gave."""
    for passphrase in (None, "secret"):
        path = tmp_path / f"{passphrase}.pem"
        assert save_key(path, SEED, passphrase).key == Signer(SEED).key
        password = passphrase.encode() if passphrase else None
        private = serialization.load_pem_private_key(path.read_bytes(), password)
        assert isinstance(private, Ed25519PrivateKey)
        assert private.private_bytes_raw() == SEED
        kind = b"ENCRYPTED PRIVATE KEY" if passphrase else b"PRIVATE KEY"
        assert path.read_bytes().startswith(b"-----BEGIN " + kind + b"-----\n")


def test_an_encrypted_file_does_not_hold_the_seed(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    plain = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    save_key(tmp_path / "a.pem", SEED, "secret")
    pem = (tmp_path / "a.pem").read_bytes()
    assert SEED in plain
    assert SEED not in pem
    assert load_key(tmp_path / "a.pem", "secret").key == Signer(SEED).key


@posix
def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_key(tmp_path / "keys" / "me.pem")
    finally:
        os.umask(old)
    assert (tmp_path / "keys" / "me.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o601])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "me.pem")
    (tmp_path / "me.pem").chmod(mode)
    assert find_rule(tmp_path / "me.pem") == "key.mode"
    (tmp_path / "me.pem").chmod(0o400)
    assert find_rule(tmp_path / "me.pem") is None


PASSPHRASES = [("right", "right", None), ("right", "wrong", "key.passphrase"), ("right", None, "key.passphrase"),
               ("right", "", "key.passphrase"), (None, "too much", "key.passphrase"), (None, None, None)]  # fmt: skip


@pytest.mark.parametrize(("made", "given", "rule"), PASSPHRASES)
def test_the_passphrase_must_be_the_one(tmp_path: Path, made: str | None, given: str | None, rule: str | None) -> None:
    create_key(tmp_path / "me.pem", made)
    assert find_rule(tmp_path / "me.pem", given) == rule


def test_what_a_missing_passphrase_is_told_from_a_needless_one(tmp_path: Path) -> None:
    create_key(tmp_path / "locked.pem", "x")
    create_key(tmp_path / "open.pem")
    with pytest.raises(Refused, match="needs a passphrase"):
        load_key(tmp_path / "locked.pem")
    with pytest.raises(Refused, match="has no passphrase"):
        load_key(tmp_path / "open.pem", "x")


def make_pem(private: Any) -> bytes:
    pem: bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


FILES = {
    "empty": b"",
    "garbage": b"\x00\xff" * 100,
    "no base64": b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
    "cut": make_pem(Ed25519PrivateKey.from_private_bytes(SEED))[:60],
    "another curve": make_pem(ec.derive_private_key(7, ec.SECP256R1())),
    "X25519": make_pem(x25519.X25519PrivateKey.from_private_bytes(SEED)),
    "no seed": b"-----BEGIN PRIVATE KEY-----\nMA4CAQAwBQYDK2VwBAIEAA==\n-----END PRIVATE KEY-----\n",
    "unknown object": b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDKgMEBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"
                      b"-----END PRIVATE KEY-----\n",
}  # fmt: skip


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_that_holds_no_ed25519_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "me.pem"
    path.touch(0o600)
    path.write_bytes(data)
    assert find_rule(path) == "key.form"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert find_rule(tmp_path / "none.pem") == "key.file"
    assert find_rule(tmp_path) == "key.file"


@pytest.mark.parametrize("make", [create_key, lambda path: save_key(path, SEED)], ids=["create", "save"])
def test_a_key_is_never_overwritten(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "me.pem"
    first = create_key(path)
    with pytest.raises(Refused) as refused:
        make(path)
    assert refused.value.rule == "key.exists"
    assert load_key(path).key == first.key
    assert [one.name for one in tmp_path.iterdir()] == ["me.pem"]


@posix
def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "me.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused) as refused:
        create_key(tmp_path / "me.pem")
    assert refused.value.rule == "key.exists"
    assert not (tmp_path / "elsewhere").exists()


def test_of_many_who_make_the_same_key_at_once_one_does(tmp_path: Path) -> None:
    made: list[bytes] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        try:
            made.append(create_key(tmp_path / "me.pem").key)
        except Refused as error:
            assert error.rule == "key.exists"

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [load_key(tmp_path / "me.pem").key]


def test_of_many_who_want_the_same_key_all_get_it(tmp_path: Path) -> None:
    got: list[bytes] = []
    start = threading.Barrier(8)

    def want() -> None:
        start.wait()
        got.append(load_or_create_key(tmp_path / "me.pem").key)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1
