"""The command: exit codes, messages, JSON, and that hostile text never reaches a terminal as it came."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chain
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.keys import show_key
from chain.base.units import MICRO
from chain.ledger.terms.outcome import Cause, Usage
from requester.cli import app, demonstration, output, progress
from requester.cli.app import COMMANDS, run
from requester.client import market as module
from requester.client.news import News
from requester.client.outcomes import JobEnded, JobFailed, JobPending, NoBid
from requester.client.packing import make_run, pack_source
from requester.client.settings import get_settings_path, load_requester_settings
from tests.requester.fakes import Deed, FakeMarket, install
from tests.requester.world import PROVIDER, REQUESTER, RIVAL

SCRIPT = "result = 42\n"
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202etxt\r\x00"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    (tmp_path / "job.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return install(FakeMarket(), tmp_path, monkeypatch)


class Said:
    """What one command said, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = run(arguments)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        found = json.loads(self.out)
        assert found["version"] == 1
        return found


# ---- buying ----


def test_a_script_is_run_paid_and_printed(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert said.code == 0
    assert said.out == "42\n"
    lines = said.err.splitlines()
    assert lines[0] == "at most 2 credits; bids up to 1.960785 credits are taken"
    assert lines[1].startswith("job ")
    assert "epoch 1" in lines
    assert lines[-1] == "1.02 credits paid, commission included; 40 checks passed"


def test_json_is_one_versioned_object_and_the_id_comes_first_on_stderr(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.deed.value = {"w": np.eye(2), "nan": float("nan"), "raw": b"\x01", "z": 1j, 3: (None, True)}
    said = Said(capsys, "run", "job.py", "--cap", "2", "--json")
    found = said.json
    assert said.err == f"job {found['job']}\n"
    assert found["value"] == {
        "w": {"dtype": "float64", "shape": [2, 2], "data": [[1.0, 0.0], [0.0, 1.0]]},
        "nan": "nan",
        "raw": {"bytes": "01"},
        "z": {"complex": [0.0, 1.0]},
        "3": [None, True],
    }
    assert (found["cost"], found["settled"], found["checks"]) == (1_020_000, True, 40)
    assert found["provider"] == PROVIDER.key.hex()


def test_arguments_and_inputs_reach_the_script(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("a", "b", "--input", "rate=0.5", "--input", "name=x y", "--cap", "2", "--", "--epochs")
    assert Said(capsys, "run", "job.py", *given).code == 0
    spec = fake.submitted[0].spec
    packed = make_run(pack_source(Path("job.py")), ("a", "b", "--epochs"), {"rate": 0.5, "name": "x y"})
    assert fake.blobs[spec.inputs] == packed.inputs.join()
    assert Said(capsys, "run", "job.py", "--cap", "2", "--input", "nonsense").code == 2


def test_a_dry_run_shows_who_gets_what_and_signs_nothing(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "run", "job.py", "--cap", "2", "--dry-run")
    assert said.code == 0
    assert said.out.startswith("You pay at most 2 credits")
    assert "silence accepts" in said.out
    rows = Said(capsys, "run", "job.py", "--cap", "2", "--dry-run", "--json").json["outcomes"]
    assert max(row["paid"] for row in rows) == 2 * MICRO
    deadlines = [
        Said(capsys, "run", "job.py", "--cap", "2", "--dry-run", "--json", *flags).json["deadline"]
        for flags in ([], ["--within", "3h"])
    ]
    assert deadlines[1] - deadlines[0] >= 7_200_000
    short = Said(capsys, "run", "job.py", "--cap", "2", "--wall", "1min", "--within", "1min")
    assert short.code != 0 and "the least is --within 152s" in short.err
    assert fake.submitted == []
    assert Said(capsys, "jobs").out.startswith("no jobs yet")


def test_detached_then_listed_then_taken_up(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.delivers = False
    job = Said(capsys, "run", "job.py", "--cap", "2", "--detach").out.strip()
    assert len(bytes.fromhex(job)) == 32
    listed = Said(capsys, "jobs", "--json").json["jobs"]
    assert [(row["job"], row["title"], row["settled"]) for row in listed] == [(job, "job.py", False)]
    fake.deliver(bytes.fromhex(job))
    assert Said(capsys, "logs", job[:8]).out == "epoch 1\n"
    assert Said(capsys, "result", job[:8]).out == "42\n"
    shown = Said(capsys, "jobs").out
    assert job[:16] in shown
    assert shown.splitlines()[1].split()[3:7] == ["run", "settled", "1/1", "1.02"]
    kept = datetime.fromtimestamp(Said(capsys, "jobs", "--json").json["jobs"][0]["kept_until"] / 1_000, UTC)
    assert shown.splitlines()[1].split()[7:] == [*f"{kept:%Y-%m-%d %H:%M}".split(), "job.py"]
    assert Said(capsys, "run", "job.py", "--cap", "2", "--detach", "--json").json["job"] != job


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("r.json", {"a": [1, 2]}, lambda path: json.loads(path.read_text())),
        ("r.npy", np.arange(3), lambda path: np.load(path, allow_pickle=False).tolist()),
        ("r.npz", {"a": np.arange(2), "b": 1.5}, lambda path: sorted(np.load(path, allow_pickle=False))),
        ("r.bin", "text", lambda path: path.read_bytes()),
    ],
)
def test_results_as_files(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, value: Any, read: Any
) -> None:
    fake.deed.value = value
    said = Said(capsys, "run", "job.py", "--cap", "2", "-o", name)
    assert (said.code, said.out) == (0, f"wrote {name}\n")
    expected = {"r.json": {"a": [1, 2]}, "r.npy": [0, 1, 2], "r.npz": ["a", "b"], "r.bin": b"\xa4text"}
    assert read(tmp_path / name) == expected[name]


@pytest.mark.parametrize("name", ["a.tar", "a", ".", "x.npy/", "absent/x.npz"])
def test_a_file_that_cannot_be_written_is_refused_before_signing(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "x.npy").mkdir()
    said = [Said(capsys, "run", "job.py", "--cap", "2", "-o", name), Said(capsys, "result", "ffff", "-o", name)]
    rules = ["[output.form]\n", "[job.unknown]\n" if name == "a" else "[output.form]\n"]
    assert [(one.code, one.err.endswith(rule)) for one, rule in zip(said, rules, strict=True)] == [(1, True)] * 2
    assert (fake.submitted, Said(capsys, "jobs", "--json").json["jobs"]) == ([], [])


@pytest.mark.parametrize(("name", "value"), [("r.npy", 42), ("r.npz", [1]), ("r.npz", {"a": [None]})])
def test_results_that_do_not_fit_their_file(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    fake.deed.value = value
    said = Said(capsys, "run", "job.py", "--cap", "2", "-o", name)
    assert said.code == 1
    assert "[result.form]" in said.err
    job = next(iter(fake.worlds)).hex()[:16]
    assert f"the result is kept: `tally result {job} -o FILE` writes it in another form" in said.err
    assert Said(capsys, "result", job, "-o", "r.json").code == 0


# ---- messages ----


def last(text: str) -> str:
    return text.splitlines()[-1]


def test_a_job_that_raises_shows_its_traceback_and_exits_5(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.deed = Deed(cause=Cause.PROGRAM, trace="Traceback:\nValueError: no\n")
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert said.code == 5
    assert said.err.splitlines()[-3:] == [
        "Traceback:",
        "ValueError: no",
        "tally: the job failed (program): ValueError: no; 1.02 credits paid: a failed segment is paid [job.program]",
    ]
    error = Said(capsys, "run", "job.py", "--cap", "2", "--json").json["error"]
    assert (error["cause"], error["exit"], error["traceback"]) == ("program", 5, "Traceback:\nValueError: no\n")


def test_over_memory_names_cause_and_figure(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.deed = Deed(cause=Cause.OOM, usage=Usage(1, 512 << 20, 1))
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert last(said.err) == (
        "tally: the job failed (oom): out of memory: it used 512 MiB of 512 MiB; raise --memory; "
        "1.02 credits paid: a failed segment is paid [job.oom]"
    )
    assert "the delivery passed every check and is accepted" in said.err.splitlines()


def test_a_cap_below_every_price_names_the_lowest(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.price = 3 * MICRO
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert said.code == 6
    expected = "tally: no bid: the lowest price at which someone would have bid is 3 credits per segment"
    assert last(said.err) == f"{expected} [auction.unmatched]"
    assert Said(capsys, "run", "job.py", "--cap", "2", "--json").json["error"]["lowest"] == 3 * MICRO


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("broker", "tally: no broker answers at its address; start one with `tally-broker run` [broker.unreachable]"),
        ("chain", "tally: no chain node answers at its address; start one with `tally-chain run` [chain.unreachable]"),
    ],
)
def test_a_part_that_is_not_running(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    fake.faults.add(fault)
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert (said.code, said.err) == (3, f"{message}\n")
    assert Said(capsys, "run", "job.py", "--cap", "2", "--json").json["error"]["exit"] == 3


def test_an_unknown_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(SCRIPT)
    install(FakeMarket(balance=0), tmp_path, monkeypatch)
    said = Said(capsys, "run", str(tmp_path / "job.py"), "--cap", "2")
    assert said.code == 1
    assert said.err.startswith(f"tally: the chain does not know your account {show_key(REQUESTER.key)}")
    shown = Said(capsys, "wallet")
    assert "balance  0 credits" in shown.out
    assert "does not know this account" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "rule"),
    [
        (("run", "absent.py", "--cap", "2"), 1, "script.file"),
        (("run", "job.py"), 1, "cap.missing"),
        (("run", "job.py", "--cap", "two"), 1, "units.credits"),
        (("run", "bad.py", "--cap", "2"), 1, "script.syntax"),
        (("result", "ffff"), 1, "job.unknown"),
        (("cancel", "ffff"), 1, "job.unknown"),
        (("receipt", "ffff"), 1, "job.unknown"),
        (("--key", "absent.pem", "wallet"), 1, "key.file"),
        (("--key", "open.pem", "wallet"), 1, "key.mode"),
        (("--key", "text.pem", "wallet"), 1, "key.form"),
        (("--key", "job.py", "wallet"), 1, "key.form"),
        (("run", "job.py", "--cap", "2", "--input", "c={"), 1, "input.json"),
        (("run", "job.py", "--cap", "2", "--input", "c=" + "[" * 100_000), 1, "input.json"),
        (("run", "job.py", "--cap", "2", "--input", 'c="a'), 1, "input.json"),
        *((("run", "job.py", "--cap", "2", "--cores", cores), 1, "spec.cores") for cores in ("-1", "nan", "inf", "0")),
        (("--broker", "127.0.0.1:7101", "wallet"), 1, "settings.url"),
        (("--chain", "localhost:7001", "wallet"), 1, "settings.url"),
        (("--chain", "http://", "wallet"), 1, "settings.url"),
        (("init", "--broker", "127.0.0.1:7101"), 1, "settings.url"),
        (("init", "--chain", "http://127.0.0.1:port"), 1, "settings.url"),
        (("wallet", "new"), 1, "key.exists"),
    ],
)
def test_what_is_refused_names_its_rule(
    fake: FakeMarket,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    rule: str,
) -> None:
    (tmp_path / "bad.py").write_text("result =\n")
    for name, mode in (("open.pem", 0o644), ("text.pem", 0o600)):
        (tmp_path / name).write_text("-----BEGIN no key")
        (tmp_path / name).chmod(mode)
    said = Said(capsys, *arguments)
    assert (said.code, said.err.count("\n")) == (code, 1)
    assert said.err.endswith(f"[{rule}]\n")


@pytest.mark.parametrize("arguments", [("nonsense",), ("run",), ("run", "job.py", "--cores", "many"), ("--nonsense",)])
def test_wrong_usage_exits_2(fake: FakeMarket, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert Said(capsys, *arguments).code == 2


def test_an_interrupted_run_says_that_the_job_goes_on(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.AsyncMarket, "result", interrupt)
    said = Said(capsys, "run", "job.py", "--cap", "2")
    assert said.code == 130
    job = said.err.split("tally result ")[1][:16]
    hint = f"the job goes on: `tally result {job}` waits for it, `tally cancel {job}` stops it"
    assert last(said.err) == f"tally: interrupted; {hint}"
    assert last(Said(capsys, "result", job).err) == f"tally: interrupted; {hint}"
    monkeypatch.setattr(module.AsyncMarket, "sign", interrupt)
    assert last(Said(capsys, "run", "job.py", "--cap", "2").err) == "tally: interrupted; nothing was signed"


EXITS: list[tuple[BaseException, int]] = [
    (Refused("no", rule="a.b"), 1),
    (JobEnded("00", "lapsed", "order.lapsed", "late"), 1),
    (JobPending("00", "running"), 1),
    (Unavailable("gone", rule="a.b"), 3),
    (Fault("ours", rule="a.b"), 4),
    (ZeroDivisionError("ours too"), 4),
    (JobFailed("00", Cause.WALL, "slow", ""), 5),
    (NoBid("nobody", 0), 6),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("error", "code"), EXITS, ids=[type(error).__name__ for error, _ in EXITS])
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert output.get_exit_code(error) == code
    assert f"{code} " in app.EPILOG


def test_hostile_text_never_reaches_the_terminal(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    """threats.md A9: traceback, live output, log, result."""
    fake.deed = Deed(value=HOSTILE, log=HOSTILE.encode())
    said = [Said(capsys, "run", "job.py", "--cap", "2")]
    job = fake.submitted[0].order.body
    said += [Said(capsys, "jobs"), Said(capsys, "logs", next(iter(fake.worlds)).hex())]
    fake.deed = Deed(cause=Cause.PROGRAM, trace=HOSTILE, log=HOSTILE.encode())
    said.append(Said(capsys, "run", "job.py", "--cap", "2"))
    assert job is not None
    for one in said:
        assert not set("\x1b\x07\x9b\u202e\r\x00") & set(one.out + one.err)
    assert "\\x1b]0;owned\\x07" in said[0].out
    assert "\\u202etxt" in said[-1].err


# ---- receipts ----


def test_a_receipt_is_shown_and_verified_offline(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    job = Said(capsys, "run", "job.py", "--cap", "2", "--json").json["job"]
    fake.faults |= {"broker", "chain", "broker.events", "chain.events"}
    said = Said(capsys, "receipt", job[:8], "--verify")
    assert said.code == 0
    assert last(said.out) == "verified"
    assert "cost         1.02 credits, commission 0.02" in said.out
    assert " 45 ok      lease 1, settled acceptance: the transaction carries this acceptance" in said.out
    found = Said(capsys, "receipt", job, "--verify", "--json").json
    assert found["verified"] is True
    assert len(found["checks"]) > 60
    assert Said(capsys, "receipt", job, "--json").json["verified"] is None


def test_a_receipt_of_another_chain_is_not_verified(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = Said(capsys, "run", "job.py", "--cap", "2", "--json").json["job"]
    text = (tmp_path / "requester" / "genesis.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"test"', '"other"'))
    said = Said(capsys, "receipt", job, "--verify", "--genesis", "other.json")
    assert said.code == 1
    assert last(said.out) == "NOT verified"
    assert " 40 FAILED  genesis" in said.out
    assert Said(capsys, "receipt", job, "--verify", "--genesis", "absent.json").err.endswith("[genesis.file]\n")


def test_no_receipt_yet(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.delivers = False
    job = Said(capsys, "run", "job.py", "--cap", "2", "--detach").out.strip()
    said = Said(capsys, "receipt", job)
    assert (said.code, said.err[-15:]) == (1, "[receipt.none]\n")
    stopped = Said(capsys, "cancel", job, "--json").json
    assert stopped["job"] == job
    assert Said(capsys, "cancel", job).code == 1


# ---- wallet, settings, the rest ----


def test_init_writes_settings_and_a_key_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLY_HOME", str(tmp_path))
    said = Said(capsys, "init", "--broker", "http://127.0.0.1:9001", "--chain", "http://127.0.0.1:9002")
    assert said.code == 0
    address = last(said.out).split()[-1]
    assert load_requester_settings().broker == "http://127.0.0.1:9001"
    assert get_settings_path().stat().st_mode & 0o777 == 0o600
    found = Said(capsys, "init", "--genesis", "g.json", "--json").json
    assert found["key"] == address
    assert load_requester_settings().chain == "http://127.0.0.1:9002"
    assert load_requester_settings(chain="http://127.0.0.1:9003").chain == "http://127.0.0.1:9003"
    assert Said(capsys, "init", "--genesis", 'a"b').err.endswith("[settings.form]\n")
    monkeypatch.setenv("TALLY_BROKER", "http://127.0.0.1:9009")
    assert load_requester_settings().broker == "http://127.0.0.1:9009"


def test_init_with_a_funded_account_does_not_ask_for_credits(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Said(capsys, "init").err == ""
    fake.faults.add("chain")
    assert "get credits from somebody" in Said(capsys, "init").err
    fake.faults.clear()
    fake.balance = 0
    assert "get credits from somebody" in Said(capsys, "init").err


def test_the_wallet_shows_address_and_balance(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("wallet",), ("wallet", "show")):
        assert Said(capsys, *arguments).out == f"address  {show_key(REQUESTER.key)}\nbalance  1000 credits\n"
    assert Said(capsys, "wallet", "--json").json["balance"] == 1_000 * MICRO
    assert Said(capsys, "--json", "wallet", "show").json["known"] is True
    made = Said(capsys, "--key", "second.pem", "wallet", "new")
    assert (made.code, made.out.splitlines()[0]) == (0, "key file  second.pem")
    assert Said(capsys, "--key", "third.pem", "wallet", "new", "--json").json["key"].startswith("did:key:z")


def test_a_key_with_a_passphrase_opens_by_the_environment(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLY_PASSPHRASE", "correct horse")
    assert Said(capsys, "--key", "locked.pem", "wallet", "new").code == 0
    assert Said(capsys, "--key", "locked.pem", "wallet").code == 0
    monkeypatch.setenv("TALLY_PASSPHRASE", "wrong")
    assert Said(capsys, "--key", "locked.pem", "wallet").err.endswith("[key.passphrase]\n")


def test_providers(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Said(capsys, "providers").out.splitlines()
    assert lines[0].startswith("2 provider(s) at ")
    assert lines[2].split()[:3] == [show_key(PROVIDER.key)[:24], "3.11", "ns+cgroup"]
    found = Said(capsys, "providers", "--json").json["providers"]
    assert [(one["key"], one["slots"]) for one in found] == [(PROVIDER.key.hex(), 2), (RIVAL.key.hex(), 2)]


def test_every_command_has_help_and_the_command_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert Said(capsys, name, "--help").code == 0
    said = Said(capsys, "--help")
    assert all(name in said.out for name in COMMANDS)
    assert "Exit codes: 0 ok, 1 refused" in said.out
    assert "1 MiB to stdout and stderr" in " ".join(Said(capsys, "run", "--help").out.split())
    assert Said(capsys, "--version").out == f"tally, version {chain.__version__}\n"


def test_the_demo_is_loaded_when_it_is_asked_for(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def main(*arguments: Any) -> int:
        asked.append(arguments)
        return 7

    monkeypatch.setattr(demonstration, "load_demo", lambda: main)
    assert Said(capsys, "demo", "--keep", "--json").code == 7
    assert asked == [(True, True, None)]


def test_a_sign_of_life_after_silence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn over itself on a terminal after 2 s, a line after 30 s elsewhere, nothing with --json."""
    shown = progress.Progress()
    start = time.monotonic()
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    shown.pulse(start + 1)
    assert capsys.readouterr().err == ""
    shown.pulse(start + 100)
    assert capsys.readouterr().err == "\r\x1b[Ksigning (100 s)"
    shown.hooks.tell(News("phase", "", "running"))
    assert capsys.readouterr().err == "\r\x1b[Kthe lease is final; the provider is working\n"
    monkeypatch.setattr(progress, "is_terminal", lambda: False)
    shown.hooks.tell(News("progress", "", done=1, total=2))
    shown.pulse(start + 20)
    shown.pulse(start + 100)
    shown.pulse(start + 101)
    assert capsys.readouterr().err == "1 of 2 segments done (100 s)\n"
    quiet = progress.Progress(quiet=True)
    quiet.pulse(start + 100)
    assert capsys.readouterr().err == ""


def test_trouble_of_one_kind_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.Progress()
    for rule in ("a.b", "a.b", "c.d"):
        shown.hooks.tell(News("trouble", "", text="gone\n\x1b[2J", rule=rule))
    assert capsys.readouterr().err == "gone\\n\\x1b[2J [a.b]; trying on\ngone\\n\\x1b[2J [c.d]; trying on\n"
