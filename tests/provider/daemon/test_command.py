"""The command `tally-provider`: messages, exit codes, help."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from chain import __version__
from chain.base.keys import show_key
from chain.ledger.terms.work import Span
from chain.rpc.schema import LeaseView
from chain.runtime.keystore import load_key
from provider.cli import main
from provider.cli.commands import _show_lease
from tests.provider import scene
from tests.provider.daemon.world import make_view as show_view


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment)


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("words", [[], ["run"], ["init"], ["status"], ["doctor"], ["sandbox"], ["sandbox", "plan"]])
def test_help_says_what_it_is_for(words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


def test_version_and_exit_codes_are_in_the_help() -> None:
    assert __version__ in run("--version").output
    assert "Exit codes: 0 done, 1 refused" in run("--help").output


def test_init_makes_an_account_once(tmp_path: Path) -> None:
    first = run("init", "--home", str(tmp_path))
    account = show_key(load_key(tmp_path / "key.pem").key)
    assert first.stdout.strip() == account
    assert f"tally-chain send {account}" in first.stderr
    again = run("init", "--home", str(tmp_path))
    assert again.exit_code == 1 and f"never overwritten; its account is {account} [key.exists]" in again.output
    locked = run("init", "--home", str(tmp_path), TALLY_PROVIDER_PASSPHRASE="wrong")
    assert locked.exit_code == 1 and "never overwritten [key.exists]" in locked.output


ROWS: list[tuple[str, list[str], dict[str, str], int, str]] = [
    ("no key", ["run"], {}, 3, "no key file"),
    ("bad price", ["run", "--price", "cheap"], {}, 1, "no amount of credits"),
    ("bad slots", ["run", "--slots", "many"], {}, 2, "not a valid integer"),
    ("bad setting", ["run"], {"TALLY_PROVIDER_FACTOR": "0"}, 1, "settings.value"),
    ("unknown flag", ["run", "--fast"], {}, 2, "No such option"),
    ("no key for status", ["status"], {}, 3, "no key file"),
]


@pytest.mark.parametrize(
    ("words", "environment", "code", "text"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, words: list[str], environment: dict[str, str], code: int, text: str
) -> None:
    result = run(*words, "--home", str(tmp_path), **environment)
    assert result.exit_code == code and text in result.output
    assert "Traceback" not in result.output


def test_a_chain_that_does_not_run_is_named(tmp_path: Path, nowhere: str) -> None:
    run("init", "--home", str(tmp_path))
    result = run("status", "--home", str(tmp_path), "--chain", nowhere)
    assert result.exit_code == 3 and nowhere in result.output and "tally-chain run" in result.output


def make_view(**changes: Any) -> LeaseView:
    order = scene.make_order()
    view = show_view(bytes(range(32)), order, scene.make_award(order, scene.make_bid(order), Span(3, 9)), 5)
    return msgspec.structs.replace(view, **changes)


def test_a_lease_is_one_line_that_says_which_part_counts() -> None:
    line = _show_lease(make_view(served=4))
    assert "0001020304050607" in line and "4/9 segments from 3" in line and "open" in line and "at stake" not in line
    assert "4 still at stake" in _show_lease(make_view(state="delivered", served=4, held=4))
    assert "at stake" not in _show_lease(make_view(state="settled", served=4, held=4))


@pytest.mark.parametrize("words", [["init"], ["run"], ["status"], ["doctor"], ["sandbox", "plan"]])
def test_help_has_an_example(words: list[str]) -> None:
    assert f"tally-provider {' '.join(words)}" in run(*words, "--help").output


def test_settings_come_from_file_then_variables_then_flags(tmp_path: Path, nowhere: str) -> None:
    run("init", "--home", str(tmp_path))
    config = tmp_path / "provider.toml"
    config.write_text(f'home = "{tmp_path}"\nchain = "{nowhere}/file"\n')
    assert "/file" in run("status", "--config", str(config)).output
    assert "/env" in run("status", "--config", str(config), TALLY_PROVIDER_CHAIN=f"{nowhere}/env").output
    said = run("status", "--config", str(config), "--chain", f"{nowhere}/flag", TALLY_PROVIDER_CHAIN=f"{nowhere}/env")
    assert "/flag" in said.output
    config.write_text("colour = 1\n")
    assert "settings.name" in run("status", "--config", str(config)).output


def test_doctor_prints_what_the_host_can_enforce(tmp_path: Path) -> None:
    result = run("doctor", "--home", str(tmp_path), "--json")
    shown: dict[str, Any] = json.loads(result.output)
    assert result.exit_code == (3 if shown["level"] is None else 0)
    assert {"level", "arch", "bwrap", "reasons", "python"} <= set(shown)
    text = run("doctor", "--home", str(tmp_path))
    assert "isolation" in text.output and "runtime" in text.output


def test_the_plan_is_printed_as_data(tmp_path: Path) -> None:
    result = run("sandbox", "plan", "--home", str(tmp_path), "--memory", "300")
    if result.exit_code == 3:
        pytest.skip(f"kernel: {result.output}")
    plan = json.loads(result.output)
    assert {"flags", "bwrap"} <= set(plan) and str(300 << 20) in result.output
