"""Control groups on made-up trees of both versions, and the real one where this machine has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from provider.sandbox import cgroups
from provider.sandbox.cgroups import Cgroup, CgroupTree, Reading, find_tree, get_family, sweep
from provider.sandbox.meter import CgroupMeter
from provider.sandbox.plan import CgroupLimits
from tests.provider.sandbox.world import MIB, is_alive, wait_until

WANTED = CgroupLimits(64 * MIB, 19, 1500)
UNLIMITED = CgroupLimits(None, None, None)


def make_tree(version: int, top: Path) -> CgroupTree:
    names = ("memory", "pids", "cpu") if version == 2 else ("memory", "pids", "cpu", "cpuacct")
    folders = {name: top if version == 2 else top / name for name in names}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    return CgroupTree(version, tuple((name, str(folder)) for name, folder in folders.items()), "tallystick.1.1")


def read_all(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_version_2_writes_its_limits(tmp_path: Path) -> None:
    tree = make_tree(2, tmp_path)
    tree.create("slot-0", WANTED)
    assert read_all(tree.get_folders("slot-0")["memory"]) == {
        "memory.max": str(64 * MIB), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "19",
        "cpu.max": "150000 100000",
    }  # fmt: skip


def test_version_1_writes_its_limits(tmp_path: Path) -> None:
    folders = make_tree(1, tmp_path).create("slot-0", WANTED)._folders
    assert read_all(folders["memory"])["memory.limit_in_bytes"] == str(64 * MIB)
    assert read_all(folders["memory"])["memory.memsw.limit_in_bytes"] == str(64 * MIB)
    assert read_all(folders["pids"]) == {"pids.max": "19"}
    assert read_all(folders["cpu"]) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_guard_left_out_is_not_written(version: int, tmp_path: Path) -> None:
    tree = make_tree(version, tmp_path)
    tree.create("slot-0", UNLIMITED)
    assert [read_all(folder) for folder in tree.get_folders("slot-0").values()] == [{}] * len(tree.folders)


def test_a_group_is_never_used_twice(tmp_path: Path) -> None:
    tree = make_tree(2, tmp_path)
    tree.create("slot-0", UNLIMITED)
    with pytest.raises(FileExistsError):
        tree.create("slot-0", UNLIMITED)


def test_limits_that_are_refused_leave_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(1, tmp_path)

    def refuse(path: Path, value: str, *, needed: bool = True) -> None:
        raise OSError(22, "refused", str(path))

    monkeypatch.setattr(cgroups, "_write", refuse)
    with pytest.raises(OSError, match="refused"):
        tree.create("slot-0", WANTED)
    assert not any(folder.exists() for folder in tree.get_folders("slot-0").values())


def test_the_largest_memory_seen_is_kept(tmp_path: Path) -> None:
    group = make_tree(2, tmp_path).create("slot-0", UNLIMITED)
    folder = tmp_path / "tallystick.1.1" / "slot-0"
    (folder / "cpu.stat").write_text("usage_usec 1\n")
    (folder / "memory.events").write_text("oom_kill 0\n")
    meter = CgroupMeter(group)
    peaks = []
    for present in (100, 300, 200):
        (folder / "memory.current").write_text(f"{present}\n")
        peaks.append(meter.read().peak_bytes)
    assert peaks == [100, 300, 300]


@pytest.mark.parametrize("own", ["0::/daemon\n", "0::/daemon/tallystick.7.8.daemon\n"])
def test_a_daemon_in_its_own_leaf_finds_the_same_tree(own: str, tmp_path: Path) -> None:
    top = tmp_path / "unified"
    (top / "daemon" / "tallystick.7.8.daemon").mkdir(parents=True)
    (top / "daemon" / "cgroup.controllers").write_text("cpu memory pids\n")
    mounts = f"22 1 0:20 / {top} rw,relatime - cgroup2 cgroup2 rw\n"
    tree, why = find_in(tmp_path, mounts, own)
    assert tree is None
    assert f"{top}/daemon/{get_family(os.getpid())}/probe/cpu.stat" in why
    leaf = top / "daemon" / f"{get_family(os.getpid())}.daemon"
    assert (leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert (top / "daemon" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_version_2_figures(tmp_path: Path) -> None:
    group = make_tree(2, tmp_path).create("slot-0", UNLIMITED)
    folder = tmp_path / "tallystick.1.1" / "slot-0"
    (folder / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (folder / "memory.current").write_text("4096\n")
    (folder / "memory.events").write_text("low 0\nmax 7\noom 2\noom_kill 1\n")
    assert group.read() == Reading(1234, 4096, 1)
    (folder / "memory.peak").write_text("8192\n")
    assert group.read() == Reading(1234, 8192, 1)


def test_version_1_figures(tmp_path: Path) -> None:
    group = make_tree(1, tmp_path).create("slot-0", UNLIMITED)
    (group._folders["cpuacct"] / "cpuacct.usage").write_text("5000999\n")
    (group._folders["memory"] / "memory.max_usage_in_bytes").write_text("8192\n")
    (group._folders["memory"] / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert group.read() == Reading(5000, 8192, 3)


def test_members_are_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        (tmp_path / "cgroup.procs").write_text(f"{process.pid}\n")
        assert Cgroup(1, {"pids": tmp_path}).kill()
        assert process.wait() == -9
    (tmp_path / "cgroup.procs").write_text("")
    assert not Cgroup(1, {"pids": tmp_path}).kill()
    assert (tmp_path / "pids.max").read_text() == "0", "nothing is born while members are killed one by one"


def test_version_2_kills_with_one_word(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("999999999\n")
    (tmp_path / "cgroup.kill").write_text("")
    assert Cgroup(2, {"memory": tmp_path}).kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1"


MOUNTS = """22 1 0:20 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
23 1 0:21 / {top}/memory rw,relatime - cgroup cgroup rw,memory
24 1 0:22 /outer {top}/pids rw,relatime - cgroup cgroup rw,pids
25 1 0:23 / {top}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""
OWN = "4:memory:/daemon\n3:pids:/outer/daemon\n2:cpu,cpuacct:/daemon\n0::/\n"


def find_in(tmp_path: Path, mounts: str, own: str) -> tuple[CgroupTree | None, str]:
    (tmp_path / "mounts").write_text(mounts.format(top=tmp_path))
    (tmp_path / "own").write_text(own)
    return find_tree(os.getpid(), mounts=str(tmp_path / "mounts"), own=str(tmp_path / "own"))


def test_why_there_is_no_tree_is_said(tmp_path: Path) -> None:
    tree, why = find_in(tmp_path, "", "")
    assert tree is None
    assert why == "version 2: no controller memory, pids, cpu; version 1: no controller memory, pids, cpuacct"


def test_folders_are_found_below_our_own_group(tmp_path: Path) -> None:
    """Made-up folders give no figures, so the trial fails; where it was tried tells what was found."""
    for name in ("memory", "pids", "cpu"):
        (tmp_path / name / "daemon").mkdir(parents=True)
    tree, why = find_in(tmp_path, MOUNTS, OWN)
    assert tree is None
    assert f"No such file or directory at {tmp_path}/cpu/daemon/{get_family(os.getpid())}/probe/cpuacct.usage" in why


def test_sweep_removes_what_dead_daemons_left_and_nothing_else(tmp_path: Path) -> None:
    tree = make_tree(2, tmp_path)
    names = ["tallystick.999999999.5", f"tallystick.{os.getpid()}.5", get_family(os.getpid()), "another"]
    for name in names:
        (tmp_path / name / "slot-0").mkdir(parents=True)
    assert sweep(tree) == 4
    assert [(tmp_path / name).exists() for name in names] == [False, False, True, True]


def test_sweep_gives_up_on_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_PATIENCE", 2)
    stuck = tmp_path / "tallystick.999999999.5" / "slot-0"
    stuck.mkdir(parents=True)
    (stuck / "file").write_text("a made-up reason why it can't be removed")
    assert sweep(make_tree(2, tmp_path)) == 0
    assert stuck.exists()


def test_the_real_tree_holds_and_kills(tmp_path: Path) -> None:
    tree, why = find_tree(os.getpid())
    if tree is None:
        pytest.skip(f"kernel: {why}")
    group = tree.create("test-real", WANTED)
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            group.add(process.pid)
            assert group.get_pids() == [process.pid]
            assert group.kill()
            assert wait_until(lambda: not is_alive(process.pid))
            process.wait()
        assert group.read().oom_kills == 0
    finally:
        assert wait_until(group.remove)
        tree.remove_family()
