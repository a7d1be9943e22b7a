"""The hostile rows: each held by the full plan, each breaching once the one guard it is about is taken out of the plan.

A row whose control does not breach proves nothing. Beside its own outcome every row asserts that a canary process of
the same kernel user lives, that no process of the job remains, and that memory stayed within bounds.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from chain.ledger.terms.outcome import Cause
from provider.sandbox.plan import Flag, Plan
from tests.provider.sandbox import bodies
from tests.provider.sandbox.world import (
    LIMITS,
    MIB,
    Host,
    Outcome,
    canary,
    is_alive,
    list_processes,
    make_task,
    wait_until,
)

SECRET = "s3cret-of-the-host"
MARK = "TALLY_MARK"


@dataclass
class Scene:
    """What a body may aim at, and what has become of it."""

    secret: Path
    port: int
    listener: socket.socket
    canary: int
    host: Host
    canary_lives: bool = True
    left_behind: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Row:
    """A hostile body, its arguments, the causes it may end by, what a breach is, and the plan without its guard."""

    name: str
    body: Callable[..., object]
    arguments: Callable[[Scene], tuple[object, ...]]
    causes: frozenset[Cause]
    breached: Callable[[Outcome, Scene], bool]
    weaken: Callable[[Plan], Plan]
    prepare: Callable[[Plan], Plan] = lambda plan: plan


def drop(*guards: str) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        for guard in guards:
            plan = plan.without(guard)
        return plan

    return change


def show_host(plan: Plan) -> Plan:
    """The guard is that the root is empty: its removal shows folders of the host."""
    shown = Flag("root", ("--ro-bind", "/etc", "/etc", "--ro-bind", "/var", "/var"))
    return msgspec.structs.replace(plan, flags=(*plan.flags[:-1], shown, plan.flags[-1]))


def share_processes(plan: Plan) -> Plan:
    """The guard is that whatever a job starts is in its own process namespace and cgroup."""
    return msgspec.structs.replace(plan.without("processes"), cgroup=None)


def hide_proc(plan: Plan) -> Plan:
    """A new /proc can only be mounted beside a new process namespace."""
    flags = tuple(flag for flag in plan.flags if flag.guard != "proc" and flag.args != ("--remount-ro", "/proc"))
    return msgspec.structs.replace(plan, flags=flags)


def mark_launcher(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, launcher_environment=((MARK, SECRET),))


def ended_with(check: Callable[[object], bool]) -> Callable[[Outcome, Scene], bool]:
    return lambda outcome, _: outcome.cause == Cause.OK and check(outcome.value)


OK = frozenset({Cause.OK})
ROWS = [
    Row("mem_bomb", bodies.mem_bomb, lambda _: (256 * MIB,), frozenset({Cause.OOM}),
        ended_with(lambda size: size == 256 * MIB), drop("memory")),
    Row("fork_bomb", bodies.fork_bomb, lambda _: (60,), OK,
        ended_with(lambda count: count == 60), drop("forks")),
    Row("read_host_files", bodies.read_host_files, lambda scene: (["/etc/passwd", str(scene.secret)],), OK,
        ended_with(bool), show_host),
    Row("tcp_udp_exfil", bodies.tcp_udp_exfil, lambda scene: (scene.port,), OK,
        ended_with(bool), drop("network")),
    Row("kill_all", bodies.kill_all, lambda scene: (scene.canary, scene.host.who != "user"), OK | {Cause.SIGNAL},
        lambda _, scene: not scene.canary_lives, share_processes, hide_proc),
    Row("env_leak", bodies.env_leak, lambda _: (), OK,
        ended_with(lambda text: SECRET in str(text)), drop("environment"), mark_launcher),
    Row("daemon_outlive", bodies.daemon_outlive, lambda _: (40,), OK,
        lambda _, scene: bool(scene.left_behind), share_processes, hide_proc),
    Row("stdout_flood", bodies.stdout_flood, lambda _: (2 * MIB,), frozenset({Cause.LOG}),
        lambda outcome, _: len(outcome.log("out") + outcome.log("err")) > LIMITS.log_bytes, drop("log")),
    Row("symlink_out", bodies.symlink_out, lambda scene: (str(scene.secret),), OK,
        ended_with(lambda found: SECRET in str(found)), show_host),
    Row("namespaces", bodies.namespaces, lambda _: (), OK,
        ended_with(bool), drop("namespaces")),
]  # fmt: skip


@pytest.fixture
def scene(host: Host) -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
        canary(host.uid) as pid,
    ):
        os.chmod(folder, 0o755)
        secret = Path(folder) / "secret"
        secret.write_text(SECRET)
        yield Scene(secret, listener.getsockname()[1], listener, pid, host)


def play(row: Row, scene: Scene, change: Callable[[Plan], Plan]) -> Outcome:
    """Runs a row under a plan and looks at what is left."""
    before = list_processes(scene.host.uid)
    outcome = scene.host.run(make_task(row.body, *row.arguments(scene)), lambda plan: change(row.prepare(plan)))
    scene.canary_lives = is_alive(scene.canary)
    scene.left_behind = frozenset(list_processes(scene.host.uid) - before)
    return outcome


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_full_plan_holds(row: Row, scene: Scene) -> None:
    outcome = play(row, scene, lambda plan: plan)
    assert not row.breached(outcome, scene), outcome.events
    assert outcome.cause in row.causes, outcome.events
    assert scene.canary_lives
    assert not scene.left_behind
    assert outcome.usage.peak_bytes < LIMITS.memory_bytes + 64 * MIB


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_control_breaches(row: Row, scene: Scene) -> None:
    outcome = play(row, scene, row.weaken)
    for pid in scene.left_behind:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(is_alive(pid) for pid in scene.left_behind))
    assert row.breached(outcome, scene), outcome.events
