"""`tally wallet backup`, `restore`, `passphrase`: no key is ever lost, overwritten, or left in the open."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from chain.base.errors import Fault, Refused, Unavailable
from chain.base.keys import Signer, show_key
from chain.runtime import keystore
from requester.cli import passphrases
from requester.client import settings
from requester.client.settings import (
    Onlooker,
    change_passphrase,
    find_account,
    get_account_path,
    is_encrypted,
    read_seed,
)
from tests.requester.fakes import FakeMarket, install
from tests.requester.said import Said
from tests.requester.world import REQUESTER

ADDRESS = show_key(REQUESTER.key)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(FakeMarket(), tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("TALLY_BACKUP_PASSPHRASE", "TALLY_NEW_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_key_is_backed_up_and_restored(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLY_BACKUP_PASSPHRASE", "correct horse")
    said = Said(capsys, "wallet", "backup", "key.backup", "--json")
    assert said.fits("key")["key"] == ADDRESS
    data = (home / "key.backup").read_bytes()
    assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert (home / "key.backup").stat().st_mode & 0o777 == 0o600
    serialization.load_pem_private_key(data, b"correct horse")
    assert Said(capsys, "wallet", "restore", "key.backup").err.endswith("[key.exists]\n")
    assert Said(capsys, "wallet", "backup", "key.backup").err.endswith("[key.exists]\n")
    key = home / "requester" / "key.pem"
    key.rename(home / "old.pem")
    restored = Said(capsys, "wallet", "restore", "key.backup")
    assert (restored.code, restored.out) == (0, f"key file  {key}\naddress   {ADDRESS}\n")
    assert keystore.load_key(key).key == REQUESTER.key
    monkeypatch.setenv("TALLY_BACKUP_PASSPHRASE", "wrong")
    key.unlink()
    assert Said(capsys, "wallet", "restore", "key.backup").err.endswith("[key.passphrase]\n")
    absent = Said(capsys, "wallet", "restore", "nofile")
    words = "tally: there is no backup nofile; name the file that `tally wallet backup` wrote [backup.file]\n"
    assert (absent.code, absent.err) == (1, words)
    assert not key.exists()


def test_a_passphrase_is_changed_and_removed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = home / "requester" / "key.pem"
    monkeypatch.setenv("TALLY_NEW_PASSPHRASE", "first passphrase")
    assert Said(capsys, "wallet", "passphrase", "--json").fits("key")["key"] == ADDRESS
    assert is_encrypted(key)
    monkeypatch.setenv("TALLY_PASSPHRASE", "first passphrase")
    monkeypatch.setenv("TALLY_NEW_PASSPHRASE", "second passphrase")
    assert Said(capsys, "wallet", "passphrase").code == 0
    assert keystore.load_key(key, "second passphrase").key == REQUESTER.key
    assert Said(capsys, "wallet", "passphrase").err.endswith("[key.passphrase]\n")
    monkeypatch.setenv("TALLY_PASSPHRASE", "second passphrase")
    assert Said(capsys, "wallet", "passphrase", "--remove").code == 0
    assert keystore.load_key(key).key == REQUESTER.key
    assert [one.name for one in key.parent.iterdir() if one.name.startswith(".")] == []


def test_a_change_that_breaks_off_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = home / "requester" / "key.pem"
    before = key.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Unavailable):
        change_passphrase(key, None, "new")
    monkeypatch.undo()
    assert key.read_bytes() == before
    assert [one.name for one in key.parent.iterdir() if one.name.startswith(".")] == []


def test_passphrases_are_asked_for_where_no_variable_answers(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def prompt(text: str, *, hide_input: bool, confirmation_prompt: bool = False, err: bool) -> str:
        assert hide_input and err
        asked.append((text, confirmation_prompt))
        return "typed by hand"

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr(passphrases, "is_terminal", lambda: True)
    assert Said(capsys, "wallet", "backup", "b.pem").code == 0
    (home / "requester" / "key.pem").unlink()
    assert Said(capsys, "wallet", "restore", "b.pem", "--passphrase").code == 0
    get_account_path(home / "requester" / "key.pem").unlink()
    for _ in range(2):  # asked for once
        assert Said(capsys, "wallet").out.startswith(f"address  {ADDRESS}\n")
    assert Said(capsys, "--key", "n.pem", "wallet", "new", "--passphrase").code == 0
    assert is_encrypted(home / "n.pem")
    assert Said(capsys, "--key", "n.pem", "wallet", "new", "--passphrase").err.endswith("[key.exists]\n")
    assert Said(capsys, "wallet", "passphrase", "--remove").code == 0
    assert asked == [
        ("passphrase of the backup", True),
        ("passphrase of the backup", False),
        ("passphrase of the key", True),
        ("passphrase of the key", False),
        ("passphrase of the key", True),
        ("present passphrase", False),
    ]


def test_without_a_terminal_nobody_is_asked_and_the_variable_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prompt(*_: Any, **__: Any) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr(passphrases, "is_terminal", lambda: False)
    rows = [
        (("wallet", "backup", "b.pem"), "TALLY_BACKUP_PASSPHRASE"),
        (("wallet", "passphrase"), "TALLY_NEW_PASSPHRASE"),
        (("--key", "n.pem", "wallet", "new", "--passphrase"), "TALLY_PASSPHRASE"),
        (("--key", "n.pem", "init", "--passphrase"), "TALLY_PASSPHRASE"),
        (("--key", "n.pem", "wallet", "restore", "kept.pem"), "TALLY_BACKUP_PASSPHRASE"),
    ]
    (home / "kept.pem").touch()
    for arguments, variable in rows:
        said = Said(capsys, *arguments)
        assert (said.code, said.err.splitlines()[-1].endswith(f"set {variable} [key.passphrase]")) == (1, True), (
            said.err
        )
    key = home / "requester" / "key.pem"
    change_passphrase(key, None, "secret")
    get_account_path(key).unlink()
    for arguments in (("wallet",), ("wallet", "passphrase"), ("wallet", "backup", "b.pem"), ("init",)):
        assert Said(capsys, "--key", str(key), *arguments).err.endswith("set TALLY_PASSPHRASE [key.passphrase]\n"), (
            arguments
        )
    assert not (home / "b.pem").exists() and not (home / "n.pem").exists()


@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        ("TALLY_BACKUP_PASSPHRASE", ("wallet", "backup", "n.pem")),
        ("TALLY_NEW_PASSPHRASE", ("wallet", "passphrase")),
        ("TALLY_PASSPHRASE", ("--key", "n.pem", "wallet", "new", "--passphrase")),
        ("TALLY_PASSPHRASE", ("--key", "n.pem", "wallet", "new")),
        ("TALLY_PASSPHRASE", ("--key", "n.pem", "init")),
    ],
)
def test_a_new_passphrase_that_is_soon_guessed_is_refused(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv(variable, "1234567")
    said = Said(capsys, *arguments)
    assert (said.code, said.err.endswith("take a longer one [passphrase.short]\n")) == (1, True)
    assert not (home / "n.pem").exists() and not is_encrypted(home / "requester" / "key.pem")
    monkeypatch.setenv(variable, "12345678")
    assert Said(capsys, *arguments).code == 0


@pytest.fixture
def locked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The requester's key with a passphrase that nobody can be asked for."""
    monkeypatch.setattr(passphrases, "is_terminal", lambda: False)
    key = home / "requester" / "key.pem"
    change_passphrase(key, None, "correct horse")
    (home / "job.py").write_text("result = 42\n")
    return key


READS = [("wallet",), ("wallet", "show"), ("init",), ("providers",), ("run", "job.py", "--cap", "1", "--dry-run")]


@pytest.mark.parametrize("arguments", READS)
def test_only_what_signs_needs_the_passphrase(
    locked: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert Said(capsys, *arguments).code == 0
    assert Said(capsys, "run", "job.py", "--cap", "2").err.endswith("set TALLY_PASSPHRASE [key.passphrase]\n")
    assert Said(capsys, "estimate", "job.py").err.endswith("set TALLY_PASSPHRASE [key.passphrase]\n")


def test_the_providers_are_told_without_a_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, "--key", "absent.pem", "providers").code == 0


OTHER = Signer(bytes(32)).key
SPOILT: list[Callable[[bytes], bytes]] = [
    lambda line: b"",
    lambda line: line[:-5],
    lambda line: b"\xff" + line,
    lambda line: line.replace(line[8:20], b"z" * 12),
    lambda line: line.split()[0],
    lambda line: show_key(OTHER).encode() + b" " + bytes(64).hex().encode(),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_an_account_that_is_not_of_the_key_file_is_not_believed_and_mended_once_the_key_opens(
    locked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    good = get_account_path(locked).read_bytes()
    get_account_path(locked).write_bytes(spoil(good))
    assert Said(capsys, "wallet").err.endswith("set TALLY_PASSPHRASE [key.passphrase]\n")
    monkeypatch.setenv("TALLY_PASSPHRASE", "correct horse")
    assert Said(capsys, "wallet").out.startswith(f"address  {ADDRESS}\n")
    assert get_account_path(locked).read_bytes() == good


def test_what_is_signed_goes_by_the_key_whatever_lies_beside_it(
    locked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = get_account_path(locked)
    path.write_text(path.read_text().replace(ADDRESS, show_key(OTHER)))
    assert find_account(locked) == OTHER
    monkeypatch.setenv("TALLY_PASSPHRASE", "correct horse")
    assert Said(capsys, "run", "job.py", "--cap", "2").code == 0
    assert find_account(locked) == REQUESTER.key
    with pytest.raises(Fault) as refused:
        Onlooker(REQUESTER.key).sign_bytes(b"")
    assert refused.value.rule == "key.locked"


def test_an_account_lies_beside_every_key_that_gets_a_passphrase_and_no_other(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLY_BACKUP_PASSPHRASE", "correct horse")
    monkeypatch.setenv("TALLY_NEW_PASSPHRASE", "battery staple")
    assert Said(capsys, "wallet", "backup", "b.pem").code == 0
    key = home / "requester" / "key.pem"
    assert Said(capsys, "wallet").code == 0 and not get_account_path(key).exists()
    assert Said(capsys, "wallet", "passphrase").code == 0
    assert find_account(key) == REQUESTER.key
    monkeypatch.setenv("TALLY_PASSPHRASE", "battery staple")
    assert Said(capsys, "wallet", "passphrase", "--remove").code == 0
    assert not get_account_path(key).exists()
    for name, arguments in (
        ("n.pem", ("wallet", "new")),
        ("i.pem", ("init",)),
        ("r.pem", ("wallet", "restore", "b.pem")),
    ):
        assert Said(capsys, "--key", name, *arguments).code == 0
        assert find_account(home / name) == keystore.load_key(home / name, "battery staple").key


@pytest.mark.skipif(os.name != "posix", reason="platform: no file modes")
def test_an_account_that_cannot_be_kept_is_no_hindrance(
    locked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_account_path(locked).unlink()
    get_account_path(locked).mkdir()
    monkeypatch.setenv("TALLY_PASSPHRASE", "correct horse")
    assert Said(capsys, "wallet").out.startswith(f"address  {ADDRESS}\n")


def test_what_is_no_key_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unavailable):
        is_encrypted(home / "absent.pem")
    with pytest.raises(Unavailable):
        read_seed(home / "absent.pem", None)
    (home / "text.pem").write_text("no key")
    (home / "text.pem").chmod(0o600)
    with pytest.raises(Refused):
        settings.read_seed(home / "text.pem", None)
    assert Said(capsys, "--key", "absent.pem", "wallet", "passphrase", "--remove").err.endswith("[key.file]\n")
