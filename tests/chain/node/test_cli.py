"""The command `tally-chain`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chain import __version__
from chain.base.keys import show_key
from chain.cli import main
from chain.runtime.keystore import load_key
from tests.chain.node.world import make_folder, make_signer, run_process, wait_until

ALICE = make_signer(1)


def call(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env=environment or {})


def test_version_and_help() -> None:
    assert call("--version").output == f"tally-chain, version {__version__}\n"
    for command in ([], ["init"], ["run"], ["send"], ["status"]):
        shown = call(*command, "--help")
        assert shown.exit_code == 0
        assert "Example" in shown.output
    assert "Exit codes" in call("--help").output


def test_init_makes_a_chain_once(tmp_path: Path) -> None:
    home = tmp_path / "new"
    made = call("init", "--home", str(home), "--name", "lab", "--treasury-credits", "5", "--private", "--fee", "0")
    assert made.exit_code == 0, made.output
    assert "with 5 credits" in made.output
    genesis = json.loads((home / "genesis.json").read_text())
    assert (genesis["name"], genesis["params"]["fee"], genesis["params"]["private"]) == ("lab", 0, True)
    assert {file.name for file in home.iterdir() if file.stat().st_mode & 0o077 == 0} == {
        "seat.pem",
        "treasury.pem",
        "beacon.bin",
    }
    again = call("init", "--home", str(home))
    assert (again.exit_code, "chain.exists" in again.output) == (1, True)
    seat, treasury = (show_key(load_key(home / f"{name}.pem").key) for name in ("seat", "treasury"))
    assert f"holds a chain of the seat {seat} and the treasury {treasury}; name another folder" in again.output
    (home / "genesis.json").write_text("{")
    assert "already holds a chain; name another folder" in call("init", "--home", str(home)).output


def test_init_goes_by_tally_home(tmp_path: Path) -> None:
    assert call("init", environment={"TALLY_HOME": str(tmp_path)}).exit_code == 0
    assert (tmp_path / "chain" / "genesis.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "rule"),
    [
        (["init", "--fee", "0"], 1, "R15.c.fee"),
        (["init", "--fee", "many"], 1, "units.credits"),
        (["run"], 3, "chain.absent"),
        (["run", "--listen", "nowhere"], 3, "chain.absent"),
        (["status", "--chain", "http://127.0.0.1:1"], 3, "chain.unreachable"),
        (["send", "nobody", "1"], 1, "R18.key"),
        (["send", show_key(ALICE.key), "1.0000001"], 1, "units.credits"),
        (["send", show_key(ALICE.key), "1"], 3, "key.file"),
        (["send", show_key(ALICE.key)], 2, "CREDITS"),
        (["fly"], 2, "fly"),
    ],
)
def test_each_failure_is_one_message_and_its_exit_code(
    tmp_path: Path, arguments: list[str], code: int, rule: str
) -> None:
    result = call(*arguments, environment={"TALLY_HOME": str(tmp_path)})
    assert (result.exit_code, rule in result.output) == (code, True), result.output


def test_a_setting_that_is_unknown_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder.path / "node.toml").write_text('lisen = "127.0.0.1:0"\n')
    result = call("run", "--home", str(folder.path))
    assert (result.exit_code, "settings.name" in result.output) == (1, True)


def test_send_and_status_against_a_running_node(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    home = ["--home", str(folder.path)]
    with run_process(folder) as process:
        sent = call("send", *home, show_key(ALICE.key), "2.5")
        assert (sent.exit_code, "sent 2.5 credits, final in block 1" in sent.output) == (0, True), sent.output
        status = call("status", *home)
        assert "999999.99999 of 1000000: 999999.99999 free, 0 in bonds, 0 locked; 0.00001 burned" in status.output
        shown = json.loads(call("status", "--json", "--chain", process.url).output)
        assert (shown["info"]["height"], shown["supply"]["burned"], shown["url"]) == (1, 10, process.url)
        too_much = call("send", *home, show_key(ALICE.key), "2000000")
        assert (too_much.exit_code, too_much.output.count("\n")) == (1, 1)


def test_the_ready_file_holds_the_url_while_the_node_runs(tmp_path: Path) -> None:
    folder, ready = make_folder(tmp_path), tmp_path / "ready"
    (folder.path / "node.toml").write_text(f'ready_file = "{ready}"\nlog_json = true\n')
    with run_process(folder) as process:
        wait_until(ready.exists, "the ready file")
        assert ready.read_text().strip() == process.url
        assert process.end() == 0
        lines = [json.loads(line) for line in process.errors.splitlines()]
        assert [line["event"] for line in lines] == ["chain runs", "chain stopped"]
    assert not ready.exists()
