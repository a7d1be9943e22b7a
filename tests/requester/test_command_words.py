"""What the command says beside its results: in which order, under which names, with which advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chain.base.errors import Fault, Unavailable
from chain.base.keys import show_key
from requester.cli import output, progress
from requester.client import market as module
from requester.client.news import News
from tests.requester.fakes import Deed, FakeMarket, install
from tests.requester.said import Said
from tests.requester.world import PROVIDER


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    (tmp_path / "job.py").write_text("result = 42\n")
    monkeypatch.chdir(tmp_path)
    return install(FakeMarket(), tmp_path, monkeypatch)


def test_a_phase_that_is_past_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.Progress()
    for phase in ("sent", "announced", "accepted", "running", "delivered", "settled"):
        shown.hooks.tell(News("phase", "", phase))
    words = [progress.WORDS[phase] for phase in ("sent", "announced", "accepted")]
    assert capsys.readouterr().err.splitlines() == words


def test_a_failed_job_is_not_called_paid_before_its_failure(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.deed = Deed(cause=fake.deed.cause.PROGRAM, trace="Traceback\nValueError: no\n")
    lines = Said(capsys, "run", "job.py", "--cap", "2").err.splitlines()
    assert "paid" not in lines
    assert "1.02 credits paid" in lines[-1]


def test_providers_have_one_name(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    name = progress.name_provider(PROVIDER.key.hex())
    assert name.startswith("z6Mk") and len(name) == 13
    assert show_key(PROVIDER.key).startswith(f"did:key:{name[:-1]}")
    assert name[:-1] in Said(capsys, "providers").out
    assert (progress.name_provider(""), progress.name_provider("no\nhex")) == ("a provider", "no\\nhex")


def test_a_script_without_a_result_is_advised(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    assert "global `result`" not in Said(capsys, "run", "job.py", "--cap", "2").err
    fake.deed.value = None
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert (said.code, said.out) == (0, "None\n")
    assert "the script left nothing in its global `result`, so the value is None" in said.err.splitlines()


def test_an_existing_file_is_refused_before_anything_is_signed(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text("mine")
    said = Said(capsys, "run", "job.py", "--cap", "2", "-o", "r.json")
    assert (said.code, said.err) == (1, "tally: r.json is there already; --force overwrites [output.exists]\n")
    assert fake.submitted == []
    assert Said(capsys, "run", "job.py", "--cap", "2", "-o", "r.json", "--force").code == 0
    assert (tmp_path / "r.json").read_text() == "42\n"
    job = next(iter(fake.worlds)).hex()
    assert Said(capsys, "result", job, "-o", "r.json").err.endswith("[output.exists]\n")


def test_too_many_decimals_are_named(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    assert "at most six decimals [units.credits]" in Said(capsys, "run", "job.py", "--cap", "0.0000001").err


def test_help_says_what_fails_a_map_and_how_its_values_are_had(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(Said(capsys, "map", "--help").out.split())
    assert "The first failed item ends its provider's share" in text
    assert "tally result JOB --partial" in text
    assert "The most the job may cost, commission included. [required]" in text
    assert "[required]" not in Said(capsys, "estimate", "--help").out
    assert "A map may have so many failed items; with more, what they left undone is not offered again" in text


def test_init_says_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLY_HOME", str(tmp_path))
    old, new = "http://127.0.0.1:9001", "http://127.0.0.1:9002"
    said = [Said(capsys, "init", "--broker", old), Said(capsys, "init"), Said(capsys, "init", "--broker", new)]
    words = [one.out.splitlines()[0].partition(" (")[2] for one in said]
    assert words == ["new)", "unchanged)", f"broker: {new}, was {old})"]
    assert ["(unchanged)" in one.out.splitlines()[1] for one in said] == [False, True, True]


@pytest.mark.parametrize(
    ("error", "advised"),
    [(ZeroDivisionError("ours"), True), (Fault("ours", rule="a.b"), True), (Unavailable("gone", rule="a.b"), False)],
)
def test_what_breaks_after_the_signature_names_the_job(
    fake: FakeMarket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    advised: bool,
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module.AsyncMarket, "result", fail)
    said = Said(capsys, "run", "job.py", "--cap", "2", "--json")
    job = said.json["error"]["job"]
    assert said.json["error"]["exit"] == output.get_exit_code(error)
    assert Said(capsys, "jobs", "--json").json["jobs"][0]["job"] == job
    lines = Said(capsys, "result", job).err.splitlines()
    assert (f"the job is {job}; `tally result {job[:16]}` takes it up again" in lines) is advised
    monkeypatch.setattr(module.AsyncMarket, "sign", fail)
    del error.__dict__["job"]
    assert "job" not in Said(capsys, "run", "job.py", "--cap", "2", "--json").json["error"]
