"""Completion: what click writes for each shell, and that ids of jobs come from the store."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from requester.cli.app import COMMANDS, complete_job, tally
from tests.requester.fakes import FakeMarket, install
from tests.requester.said import Said


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    (tmp_path / "job.py").write_text("result = 42\n")
    monkeypatch.chdir(tmp_path)
    return install(FakeMarket(), tmp_path, monkeypatch)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script_and_says_where_it_goes(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    said = Said(capsys, "completion", shell)
    assert said.code == 0
    assert "_TALLY_COMPLETE" in said.out and "tally" in said.out
    assert f"tally completion {shell}" in said.err
    assert Said(capsys, "completion", "tcsh").code == 2


def complete(*words: str) -> list[str]:
    found = ShellComplete(tally, {}, "tally", "_TALLY_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [one.value for one in found]


def test_commands_flags_and_jobs_are_completed(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    assert complete("wa") == ["wallet", "watch"]
    assert "--parallelism" in complete("map", "--par")
    assert set(complete("")) == set(COMMANDS)
    job = Said(capsys, "run", "job.py", "--cap", "2", "--detach").out.strip()
    for command in ("watch", "result", "logs", "cancel", "receipt"):
        assert complete(command, job[:4]) == [job[:16]], command
        assert complete(command, "zz") == []


def test_titles_of_jobs_cannot_move_a_cursor_in_a_completion(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    Said(capsys, "run", "job.py", "--cap", "2", "--title", "\x1b[2Jtitle\n\u202e", "--detach")
    [item] = complete_job(click.Context(tally), click.Argument(["job"]), "")
    assert item.help is not None and item.help.isprintable() and "title" in item.help


def test_without_a_store_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_HOME", str(tmp_path / "home"))
    assert complete_job(click.Context(tally), click.Argument(["job"]), "") == []
    assert not (tmp_path / "home").exists()
