"""The command for jobs of many segments: map, train, estimate, watch; and that every object is as the schema says."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from broker.protocol.jobs import Entry
from broker.protocol.values import split, unpack
from chain.base.keys import show_key
from chain.base.units import MICRO
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from requester.cli import output, printing, watching
from requester.cli.app import COMMANDS
from requester.cli.options import read_items, read_state
from requester.cli.output import FAILED
from requester.client.board import LeaseProgress, Progress
from tests.requester.fakes import Deed, FakeMarket, install
from tests.requester.said import Said, check, load_schema
from tests.requester.world import PROVIDER, RIVAL

SWEEP = "def score(item):\n    return item\n"
FIT = "def step(state, index):\n    return state\n\n\ndef other(state, index):\n    return state\n"
REPORT = b'epoch 1\n::report {"segment": 0, "loss": 0.5}\n::report {"segment": 0, "loss": 0.25}\n'
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202etxt\r\x00"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    for name, text in {"job.py": "result = 42\n", "sweep.py": SWEEP, "fit.py": FIT}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "items.json").write_text("[1, 2, 3, 4, 5]")
    monkeypatch.chdir(tmp_path)
    return install(FakeMarket(price=1_000, deed=Deed(values=lambda index: index * 10)), tmp_path, monkeypatch)


# ---- map and train ----


def test_a_map_prints_its_values_in_order_and_says_who_serves_what(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Said(capsys, "map", "sweep.py", "items.json", "--cap", "1", "--parallelism", "2")
    assert (said.code, said.out) == (0, "[0, 10, 20, 30, 40]\n")
    lines = said.err.splitlines()
    assert f"{show_key(PROVIDER.key)[8:20]}…: segments 0-2 open" in lines
    assert f"{show_key(RIVAL.key)[8:20]}…: segments 3-4 open" in lines
    spec = fake.submitted[0].spec
    assert (spec.kind, spec.entry, spec.function, spec.parallelism) == (Kind.MAP, Entry.SCRIPT, "score", 2)
    assert [unpack(bytes(item)) for item in split(fake.blobs[spec.inputs])] == [1, 2, 3, 4, 5]
    found = Said(capsys, "map", "sweep.py:score", "items.json", "--cap", "1", "--json").fits("result")
    assert (found["kind"], found["value"], found["failed"], found["missing"]) == ("map", [0, 10, 20, 30, 40], {}, [])
    assert found["providers"] == {PROVIDER.key.hex(): 3, RIVAL.key.hex(): 2}


def test_a_train_prints_its_last_state(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "train", "fit.py", "--state", '{"a": 1}', "--steps", "3", "--cap", "1")
    assert (said.code, said.out) == (0, "20\n")
    spec, order = fake.submitted[0].spec, fake.submitted[0].order.body
    assert (spec.kind, spec.function, order.segments, unpack(fake.blobs[spec.inputs])) == ("train", "step", 3, {"a": 1})
    Said(capsys, "train", "fit.py:other", "--state", "items.json", "--steps", "1", "--cap", "1", "--json").fits(
        "result"
    )
    assert fake.submitted[1].spec.function == "other"


def test_a_failed_item_fails_the_map_unless_what_came_is_wanted(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    """R9: what lies behind the failed one in its lease was not served."""
    fake.deed = Deed(cause=Cause.PROGRAM, fails=3, trace="Traceback\nValueError: no\n", values=lambda index: index)
    said = Said(capsys, "map", "sweep.py", "items.json", "--cap", "1")
    assert said.code == 5
    job = next(iter(fake.worlds)).hex()
    assert "segment 3: ValueError: no" in said.err.splitlines()[-2]
    assert said.err.splitlines()[-1] == f"`tally result {job[:16]} --partial` gives what came nevertheless"
    assert "--partial` gives what came" in Said(capsys, "result", job).err
    Said(capsys, "map", "sweep.py", "items.json", "--cap", "1", "--json").fits("error")
    part = Said(capsys, "map", "sweep.py", "items.json", "--cap", "1", "--partial")
    assert (part.code, part.out) == (0, "[0, 1, 2, None, None]\n")
    assert "segment 3 failed: ValueError: no" in part.err.splitlines()
    assert "1 segment(s) were not served" in part.err.splitlines()
    job = next(iter(fake.worlds)).hex()
    found = Said(capsys, "result", job, "--partial", "--json").fits("result")
    assert (found["value"], found["failed"], found["missing"]) == ([0, 1, 2, None, None], {"3": "ValueError: no"}, [4])


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("map", "sweep.py:absent", "items.json", "--cap", "1"), "script.function"),
    (("map", "fit.py", "items.json", "--cap", "1"), "script.function"),
    (("map", "job.py", "items.json", "--cap", "1"), "script.function"),
    (("map", "sweep.py", "absent.json", "--cap", "1"), "load.file"),
    (("map", "sweep.py", "job.py", "--cap", "1"), "map.items"),
    (("map", "sweep.py", "empty.json", "--cap", "1"), "map.items"),
    (("map", "sweep.py", "dict.json", "--cap", "1"), "map.items"),
    (("map", "sweep.py", "broken.jsonl", "--cap", "1"), "map.items"),
    (("map", "sweep.py", "items.json", "--cap", "1", "--parallelism", "0"), "spec.form"),
    (("train", "fit.py", "--state", "{", "--steps", "2", "--cap", "1"), "input.json"),
    (("train", "fit.py", "--state", "absent.npy", "--steps", "2", "--cap", "1"), "load.file"),
    (("map", "sweep.py", "items.json", "-o", "folder", "--cap", "1"), "output.form"),
    (("estimate", "fit.py", "--steps", "2"), "estimate.kind"),
    (("estimate", "sweep.py", "--items", "items.json", "--state", "1", "--steps", "2"), "estimate.kind"),
    (("watch", "ffff"), "job.unknown"),
    (("logs", "ffff"), "job.unknown"),
]


@pytest.mark.parametrize(("arguments", "rule"), REFUSED, ids=[f"{row[0][0]} {row[1]}" for row in REFUSED])
def test_what_is_refused_names_its_rule_before_anything_is_signed(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], rule: str
) -> None:
    for name, text in {"empty.json": "[]", "dict.json": "{}", "broken.jsonl": "1\n{\n"}.items():
        (tmp_path / name).write_text(text)
    said = Said(capsys, *arguments)
    assert (said.code, said.err.endswith(f"[{rule}]\n")) == (1, True), said.err
    assert fake.submitted == []
    assert Said(capsys, *arguments, "--json").fits("error")["error"]["rule"] == rule


def test_items_come_from_many_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n[2]\n')
    (tmp_path / "a.csv").write_text("rate,name\n1,a\n0.5,b c\n")
    np.save(tmp_path / "a.npy", np.arange(6).reshape(3, 2))
    (tmp_path / "folder").mkdir()
    for name in ("b", "a", ".hidden"):
        (tmp_path / "folder" / name).write_bytes(name.encode())
    assert read_items(str(tmp_path / "a.jsonl")) == [{"x": 1}, [2]]
    assert read_items(str(tmp_path / "a.csv")) == [{"rate": 1, "name": "a"}, {"rate": 0.5, "name": "b c"}]
    assert [row.tolist() for row in read_items(str(tmp_path / "a.npy"))] == [[0, 1], [2, 3], [4, 5]]
    assert read_items(str(tmp_path / "folder")) == [b"a", b"b"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert read_items("-") == ["one", "two"]
    np.savez(tmp_path / "s.npz", w=np.ones(2))
    assert read_state(str(tmp_path / "s.npz"))["w"].tolist() == [1.0, 1.0]
    assert read_state("[1]") == [1]


# ---- folders ----


def test_the_files_of_a_folder_job_go_to_a_directory_and_overwrite_nothing_unasked(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "main.py").write_text("import part\n")
    (project / "part.py").write_text("x = 1\n")
    fake.deed = Deed(value={"result": 7, "files": {"a/b.txt": b"text", "c.bin": b"\x00"}})
    said = Said(capsys, "run", "project", "--cap", "1")
    assert (said.code, said.out) == (0, "7\n")
    assert "2 file(s): a/b.txt (4 B), c.bin (1 B)" in said.err
    assert set(unpack(fake.blobs[fake.submitted[0].spec.code])) == {"main.py", "part.py"}
    found = Said(capsys, "run", "project", "--cap", "1", "-o", "out", "--json").fits("result")
    assert found["written"] == ["out/a/b.txt", "out/c.bin", "out/result.json"]
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"text"
    assert json.loads((tmp_path / "out/result.json").read_text()) == 7
    again = Said(capsys, "result", found["job"], "-o", "out")
    assert (again.code, again.err.endswith("[output.exists]\n")) == (1, True)
    (tmp_path / "out/c.bin").write_bytes(b"other")
    assert Said(capsys, "result", found["job"], "-o", "out", "--force").code == 0
    assert (tmp_path / "out/c.bin").read_bytes() == b"\x00"


HOSTILE_NAMES = ["../up", "/etc/x", "a/../../up", "a\\b", "con", "a\x1b[2J", "A/x", "", ".ssh/x"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_file_names_are_refused_and_shown_harmlessly(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """threats.md A7: names with escapes or traversal, and two that are one where case does not count."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/main.py").write_text("")
    fake.deed = Deed(value={"result": None, "files": {name: b"x", "a/x": b"y"}})
    said = Said(capsys, "run", "project", "--cap", "1", "-o", "out")
    assert (said.code, said.err.endswith("[result.form]\n")) == (1, True), said.err
    assert "\x1b" not in said.err
    assert not (tmp_path / "out").exists() and not (tmp_path.parent / "up").exists()


def test_a_link_in_the_way_leads_nowhere(fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/main.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    fake.deed = Deed(value={"result": None, "files": {"a/x": b"y"}})
    said = Said(capsys, "run", "project", "--cap", "1", "-o", "out", "--force")
    assert (said.code, said.err.endswith("[output.exists]\n")) == (1, True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- watching ----


def test_watch_in_lines(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.deed.log = REPORT
    fake.delivers = False
    job = Said(capsys, "run", "job.py", "--cap", "1", "--detach", "--json").fits("sent")["job"]
    fake.deliver(bytes.fromhex(job))
    said = Said(capsys, "watch", job[:10])
    assert said.code == 0
    assert said.out.splitlines() == ["settled; 1 of 1 segments, 0.00102 credits", "all outputs are here"]
    assert "loss 0.25" in said.err.splitlines()
    assert "::report" not in said.err
    logs = Said(capsys, "logs", job, "--json").fits("logs")
    assert (logs["log"], [row["loss"] for row in logs["metrics"]]) == ("epoch 1\n", [0.5, 0.25])


def test_watch_as_json_lines(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    fake.deed.log, fake.step, fake.delivers = REPORT, 1, False
    flags = ("map", "sweep.py", "items.json", "--cap", "1", "--detach", "--json")
    job = Said(capsys, *flags).fits("sent")["job"]
    fake.deliver(bytes.fromhex(job))
    said = Said(capsys, "watch", job, "--json")
    lines = [json.loads(line) for line in said.out.splitlines()]
    for line in lines:
        check("watch", line)
    segments = sorted(index for line in lines if line["kind"] == "segments" for index in line["indices"])
    assert segments == [0, 1, 2, 3, 4]
    costs = [line["cost"] for line in lines if line["kind"] == "segments"]
    assert costs == sorted(costs) and costs[-1] == 5_101 + 1
    assert {line["metrics"]["loss"] for line in lines if line["kind"] == "metrics"} == {0.5, 0.25}
    assert (lines[-1]["kind"], lines[-1]["phase"], lines[-1]["done"]) == ("over", "settled", 5)


def test_watch_draws_over_itself_on_a_terminal(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    fake.deed.log, fake.delivers = REPORT, False
    job = Said(capsys, "run", "job.py", "--cap", "1", "--detach").out.strip()
    fake.deliver(bytes.fromhex(job))
    said = Said(capsys, "watch", job)
    assert said.code == 0
    assert "\x1b[" in said.err and "1 of 1 segments are here" in said.err and "loss" in said.err


def test_the_picture_of_a_job_holds_all_that_matters_and_nothing_that_moves_a_cursor() -> None:
    lease = LeaseProgress("aa" * 32, "bb" * 32, "open", 4, 8, told=3, served=2)
    progress = Progress("running", 6, 12, 1, 1_500_000, 1_000_000, (lease,))
    metrics: list[dict[str, Any]] = [{"segment": n, "loss": 1.0 / (n + 1), HOSTILE: HOSTILE} for n in range(5)]
    lines = watching.render(HOSTILE, progress, metrics, 0)
    text = "\n".join(lines)
    for part in ("6 of 12 segments are here, 1 failed", "1.5 credits so far", "segments 4-11", "2 here of 8", "0.2"):
        assert part in text
    assert not set("\x1b\x07\x9b\u202e\r\x00") & set(text)


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1], ""), ([1, 1], "▁▁"), ([0, 7], "▁█"), ([0, "x", 1.0, True], "▁█"), ([3, 2, 1, 0], "█▆▃▁")],
)
def test_sparklines(values: list[Any], line: str) -> None:
    assert watching.draw_spark(values) == line
    assert len(watching.draw_spark(values * 100, 8)) <= 8


# ---- retention ----


class Later:
    """A clock at which a job's outputs are about to go."""

    def __init__(self, now: int) -> None:
        self._now = now

    def now(self) -> int:
        return self._now


def test_outputs_that_are_not_here_are_warned_of_a_day_before_they_go(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 2_000_000_000_000
    for here, at, warned in ((False, kept - 90_000_000, 0), (False, kept - 80_000_000, 1), (True, kept - 1, 0)):
        monkeypatch.setattr(printing, "SystemClock", lambda at=at: Later(at))
        printing.say_retention("ab" * 32, kept, here=here, quiet=False)
        printing.say_retention("ab" * 32, kept, here=here, quiet=True)
        said = capsys.readouterr().err
        assert said.count("warning: the broker keeps the outputs until 2033-05-18 03:33 UTC") == warned
    printing.say_retention("ab" * 32, 0, here=False, quiet=False)
    assert capsys.readouterr().err == ""
    printing.say_retention("ab" * 32, 1, here=False, quiet=False)
    assert "no longer promises" in capsys.readouterr().err


def test_jobs_list_what_is_here_and_how_long_the_rest_is_kept(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    Said(capsys, "map", "sweep.py", "items.json", "--cap", "1")
    fake.delivers = False
    Said(capsys, "run", "job.py", "--cap", "1", "--detach")
    found = Said(capsys, "jobs", "--json").fits("jobs")["jobs"]
    rows = {row["kind"]: row for row in found}
    assert (rows["map"]["here"], rows["map"]["segments"], rows["run"]["here"]) == (5, 5, 0)
    assert rows["map"]["kept_until"] > rows["run"]["kept_until"] == 0
    lines = [line.split() for line in Said(capsys, "jobs").out.splitlines()]
    assert {line[5] for line in lines[1:]} == {"5/5", "0/1"}


def test_a_job_that_failed_is_not_listed_like_one_that_went_well(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.deed = Deed(cause=Cause.WALL)
    assert Said(capsys, "run", "job.py", "--cap", "1").code == FAILED
    [row] = Said(capsys, "jobs", "--json").fits("jobs")["jobs"]
    assert (row["phase"], row["here"], row["failed"], row["segments"]) == ("settled", 0, 1, 1)
    assert "settled, 1 failed" in Said(capsys, "jobs").out
    said = Said(capsys, "watch", row["job"])
    assert said.out.splitlines()[0].startswith("settled; 0 of 1 segments, 1 failed, ")
    assert said.out.splitlines()[1] == "all outputs are here", "there is nothing to fetch before it goes"
    over = json.loads(Said(capsys, "watch", row["job"], "--json").out.splitlines()[-1])
    check("watch", over)
    assert (over["done"], over["failed"]) == (0, 1)


# ---- estimates ----


def test_an_estimate_needs_no_cap_and_signs_nothing(fake: FakeMarket, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "estimate", "sweep.py", "--items", "items.json")
    assert said.code == 0
    assert "2 of 2 fit" in said.out and "0.0051 credits in all" in said.out
    found = Said(capsys, "estimate", "sweep.py", "--items", "items.json", "--cap", "2", "--json").fits("estimate")
    assert (found["cap"], found["segments"], found["price"], found["likely"]) == (2 * MICRO, 5, 1_000, 5_100)
    short = Said(capsys, "estimate", "job.py", "--cap", "0.0001")
    assert "advice" in short.out and "0 of 2 fit" in short.out
    assert (fake.submitted, Said(capsys, "jobs", "--json").json["jobs"]) == ([], [])


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        ((), "assert args == () and inputs == {}\nresult = 1\n"),
        (("--items", "items.json"), "def f(item):\n    assert item == 1\n"),
        (("--state", "[7]", "--steps", "2"), "def step(state, index):\n    assert (state, index) == ([7], 0)\n"),
    ],
)
def test_a_sample_runs_one_segment_here_and_suggests_limits(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: tuple[str, ...], source: str
) -> None:
    (tmp_path / "one.py").write_text(source)
    said = Said(capsys, "estimate", "one.py", *flags, "--sample", "--json")
    found = said.fits("estimate")["sample"]
    assert found["wall_ms"] > 0 and found["peak_bytes"] > 1 << 20
    assert found["memory"].endswith("MiB") and found["wall"].endswith("s")
    assert "running one segment here" in said.err
    (tmp_path / "one.py").write_text(source + "1 / 0\n")
    failed = Said(capsys, "estimate", "one.py", *flags, "--sample")
    assert (failed.code, "ZeroDivisionError" in failed.err, "[sample.failed]" in failed.err) == (1, True, True)


# ---- the schema ----


def test_every_command_prints_what_the_schema_says(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Said(capsys, "run", "job.py", "--cap", "1", "--json").fits("result")["job"]
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("quote", ("run", "job.py", "--cap", "1", "--dry-run")),
        ("quote", ("map", "sweep.py", "items.json", "--cap", "1", "--dry-run")),
        ("result", ("result", job)),
        ("logs", ("logs", job)),
        ("receipt", ("receipt", job)),
        ("receipt", ("receipt", job, "--verify")),
        ("case", ("case", job, "-o", "job.case")),
        ("verify", ("verify", "job.case")),
        ("providers", ("providers",)),
        ("wallet", ("wallet",)),
        ("init", ("init",)),
        ("error", ("cancel", job)),
    ]
    for name, arguments in rows:
        Said(capsys, *arguments, "--json").fits(name)
    fake.delivers = False
    running = Said(capsys, "run", "job.py", "--cap", "1", "--detach").out.strip()
    Said(capsys, "cancel", running, "--json").fits("cancel")
    said = Said(capsys, "schema")
    assert (said.code, said.json) == (0, load_schema())
    jsonschema.Draft202012Validator.check_schema(said.json)


def test_the_schema_refuses_what_is_not_said() -> None:
    good = {"version": 1, "job": "ab" * 32, "text": "done"}
    check("cancel", good)
    for bad in ({**good, "version": 2}, {**good, "more": 1}, {**good, "job": "xyz"}, {"version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check("cancel", bad)


def test_every_command_has_examples_or_none_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "init",
        "run",
        "map",
        "train",
        "estimate",
        "jobs",
        "watch",
        "logs",
        "result",
        "cancel",
        "receipt",
        "case",
        "verify",
    ):
        assert name in COMMANDS
        assert "Examples:" in Said(capsys, name, "--help").out, name
