"""The plan as data: every measure of threats.md 1.2 and 1.3 is in it, in the order that matters, for each host."""

from __future__ import annotations

import json
import os

import msgspec
import pytest

from broker.protocol.jobs import Entry, Level
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.cgroups import CgroupTree
from provider.sandbox.plan import Plan, build_environment, build_plan
from provider.sandbox.runtimes import RuntimeImage
from tests.provider.sandbox.world import LIMITS, make_folder, make_task

IMAGE = RuntimeImage("/data/runtimes/abc", bytes(32), "3.11", ())
TREE = CgroupTree(1, (("memory", "/sys/fs/cgroup/memory"),), "tallystick.1.2")
GUARDED = HostAbilities(Level.NS_CGROUP, "x86_64", "/usr/bin/bwrap", uid_base=61_000, cgroup=TREE)
BARE = HostAbilities(Level.NS, "aarch64", "/usr/bin/bwrap")


def plan_for(host: HostAbilities = GUARDED, slot: int = 0) -> Plan:
    return build_plan(IMAGE, host, make_task("result = 1"), slot)


def words(plan: Plan) -> list[str]:
    return [arg for flag in plan.flags for arg in flag.args]


def text(plan: Plan) -> str:
    return " ".join(words(plan))


MUST = [
    "--unshare-user", "--unshare-pid --as-pid-1", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--disable-userns",
    "--die-with-parent", "--new-session", "--cap-drop ALL", "--clearenv", "--hostname tallystick", "--chdir /job",
    "--seccomp @seccomp", "--info-fd @info", "--uid 1000 --gid 1000", "--tmpfs /dev --dev-bind /dev/null /dev/null",
    f"--size {LIMITS.shm_bytes} --perms 1777 --tmpfs /dev/shm", f"--size {LIMITS.tmp_bytes} --perms 0700 --tmpfs /job",
    "--proc /proc", "--remount-ro /proc", "--setenv LD_LIBRARY_PATH /lib", "--remount-ro /dev --remount-ro /",
]  # fmt: skip


@pytest.mark.parametrize("words_", MUST)
@pytest.mark.parametrize("host", [GUARDED, BARE], ids=["guarded", "bare"])
def test_flag_is_there(words_: str, host: HostAbilities) -> None:
    assert f" {words_} " in f" {text(plan_for(host))} "


def test_flags_that_must_not_be_there() -> None:
    assert {"--dev", "--bind", "--share-net", "--unshare-all", "--cap-add", "--dev-bind-try"} & set(
        words(plan_for())
    ) == set()


def test_the_root_is_made_read_only_last() -> None:
    assert plan_for().flags[-1].args == ("--remount-ro", "/")
    order = text(plan_for())
    assert order.index("--tmpfs /dev ") < order.index("--dev-bind") < order.index("--remount-ro /dev")


def test_only_the_image_and_five_devices_are_shown() -> None:
    flags = plan_for().flags
    sources = {flag.args[i + 1] for flag in flags for i, arg in enumerate(flag.args) if "bind" in arg}
    assert sources == {f"{IMAGE.path}/{name}" for name in ("py", "sp", "lib")} | {
        f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")
    }


def test_no_host_path_and_no_environment_in_sight_of_the_job() -> None:
    plan = plan_for()
    assert IMAGE.path not in " ".join(plan.command)
    assert plan.launcher_environment == ()
    assert {name for name, _ in build_environment(make_task("result = 1"))} >= {"PYTHONHASHSEED", "OMP_NUM_THREADS"}


def test_as_root_each_slot_has_a_user_of_its_own() -> None:
    assert [plan_for(slot=slot).uid for slot in (0, 1, 7)] == [61_000, 61_001, 61_007]
    assert plan_for(BARE).uid is None


def test_with_a_cgroup_the_kernel_limits_memory() -> None:
    plan = plan_for()
    assert plan.cgroup is not None
    assert (plan.cgroup.memory_bytes, plan.cgroup.processes) == (LIMITS.memory_bytes, LIMITS.processes + 3)
    assert plan.memfd
    assert plan.caps.polled_bytes is None
    assert "RLIMIT_DATA" not in {one.name for one in plan.rlimits}


def test_without_one_memory_is_limited_by_other_means() -> None:
    plan = plan_for(BARE)
    assert plan.cgroup is None
    assert not plan.memfd, "memfd is counted by no rlimit (trap 4)"
    assert plan.caps.polled_bytes == LIMITS.memory_bytes
    assert ("RLIMIT_DATA", LIMITS.memory_bytes) in {(one.name, one.hard) for one in plan.rlimits}


def test_where_proc_cant_be_mounted_there_is_none() -> None:
    plan = plan_for(msgspec.structs.replace(GUARDED, proc=False))
    assert not [word for word in words(plan) if "/proc" in word]


def test_processes_are_limited_inside_only() -> None:
    """Before the user namespace the limit counts all of the user's processes and breaks bubblewrap (trap 2)."""
    assert ("RLIMIT_NPROC", LIMITS.processes + 3) in {(one.name, one.hard) for one in plan_for().rlimits}
    assert "nproc" not in text(plan_for()).lower()


def test_teardown_waits_for_info_before_it_kills() -> None:
    steps = plan_for().teardown
    assert steps[0] == "wait for the whole of info"
    assert "pidfd" in steps[1]


def test_the_hash_seed_is_the_same_for_every_job() -> None:
    """Python takes it when it starts, and it may start before its task is known."""
    task = make_task("result = 1")
    others = [msgspec.structs.replace(task, seed=8), msgspec.structs.replace(task, order_id=b"p" * 32)]
    assert {dict(build_environment(one))["PYTHONHASHSEED"] for one in (task, *others)} == {"0"}


WITH_NUMPY = msgspec.structs.replace(IMAGE, packages=(("numpy", "2.0"),))


@pytest.mark.parametrize(
    ("code", "entry", "millicores", "image", "loaded"),
    [
        (b"x", Entry.FUNCTION, 1_000, WITH_NUMPY, ("cloudpickle",)),
        (b"x numpy", Entry.FUNCTION, 1_000, WITH_NUMPY, ("cloudpickle", "numpy")),
        (b"x numpy", Entry.SCRIPT, 500, WITH_NUMPY, ("numpy",)),
        (b"x numpy", Entry.SCRIPT, 2_000, WITH_NUMPY, ()),
        (b"x numpy", Entry.FUNCTION, 1_000, IMAGE, ("cloudpickle",)),
    ],
)
def test_what_the_code_speaks_of_is_loaded_before_the_task_comes(
    code: bytes, entry: Entry, millicores: int, image: RuntimeImage, loaded: tuple[str, ...]
) -> None:
    """By two cores NumPy would start threads, which no fork takes along."""
    limits = msgspec.structs.replace(LIMITS, millicores=millicores)
    task = msgspec.structs.replace(make_task("result = 1"), code=code, entry=entry, limits=limits)
    command = build_plan(image, GUARDED, task, 0).command
    assert command[command.index("@inputs") + 1 :] == loaded


def mould_of(host: HostAbilities = GUARDED, slot: int = 0, code: bytes = b"x", **changes: int) -> Plan:
    limits = msgspec.structs.replace(LIMITS, **changes)
    task = msgspec.structs.replace(make_task("result = 1"), code=code, limits=limits, order_id=os.urandom(32))
    return build_plan(WITH_NUMPY, host, task, slot).compute_mould()


def test_tasks_of_one_mould_differ_in_limits_alone() -> None:
    """And a mould holds no limit: one that were not set again would be another task's."""
    mould = mould_of()
    alike = [mould_of(slot=3), mould_of(memory_bytes=1 << 30), mould_of(cpu_ms=1), mould_of(processes=5)]
    alike += [mould_of(output_bytes=1), mould_of(log_bytes=1), mould_of(millicores=700), mould_of(open_files=9)]
    assert all(one == mould for one in alike)
    for change in ({"tmp_bytes": 1 << 25}, {"shm_bytes": 1 << 20}, {"millicores": 2_000}, {"code": b"numpy"}):
        assert mould_of(**change) != mould, change
    assert mould_of(BARE) != mould
    assert (mould.uid, mould.rlimits) == (None, ())
    assert mould.cgroup is not None
    assert set(msgspec.structs.astuple(mould.cgroup)) == set(msgspec.structs.astuple(mould.caps)) == {None}


def test_threads_follow_the_cores() -> None:
    for millicores, threads in ((500, "1"), (1000, "1"), (2999, "2"), (4000, "4")):
        limits = msgspec.structs.replace(LIMITS, millicores=millicores)
        environment = dict(build_environment(make_task("result = 1", limits=limits)))
        assert {environment[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")} == {threads}


def test_it_prints_as_json() -> None:
    printed = json.loads(plan_for().to_json())
    assert printed["arch"] == "x86_64"
    assert printed["flags"][0] == {"guard": "user", "args": ["--unshare-user"]}
    assert msgspec.json.decode(plan_for().to_json(), type=Plan) == plan_for()


def test_it_shows_how_inputs_come() -> None:
    told = dict(plan_for().descriptors)
    assert "closed before any code of the job" in told["task"]
    assert "seals" in told["inputs"]
    assert {word[1:] for word in (*words(plan_for()), *plan_for().command) if word.startswith("@")} <= set(told)
    assert "inputs" not in dict(build_environment(make_task("result = 1"))), "no path of the host is named"


def test_a_folders_files_do_not_take_the_jobs_own_room() -> None:
    files = {"main.py": b"x", "a/b": bytes(5000)}
    plan = build_plan(IMAGE, GUARDED, make_folder(files), 0)
    assert f"--size {LIMITS.tmp_bytes + 4 * 4096} --perms 0700 --tmpfs /job" in text(plan)
    large = make_folder({"main.py": bytes(LIMITS.tmp_bytes + 1)})
    (longest,) = [one.hard for one in build_plan(IMAGE, GUARDED, large, 0).rlimits if one.name == "RLIMIT_FSIZE"]
    assert longest > LIMITS.tmp_bytes


GUARDS = sorted(
    {flag.guard for flag in plan_for().flags} | {one.guard for one in plan_for().rlimits} | {"wall", "log", "output"}
)


@pytest.mark.parametrize("guard", GUARDS)
def test_without_takes_one_guard_and_nothing_else(guard: str) -> None:
    full, less = plan_for(BARE), plan_for(BARE).without(guard)
    assert less != full
    assert [flag for flag in full.flags if flag.guard != guard] == [*less.flags]
    assert [one for one in full.rlimits if one.guard != guard] == [*less.rlimits]
    assert less.uid == full.uid
    assert sum(getattr(less.caps, name) is None for name in less.caps.__struct_fields__) <= 2
